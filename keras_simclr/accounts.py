"""What a report says of images that are compared, in words."""

import numpy as np

from keras_simclr import pages
from keras_simclr._files import in_one_line

_TRUSTED = 0.8  # Accuracy of a classifier whose word on labels counts.


def facts_of(found, choice, places, drawn):
    """What is said of images.

    Args:
        found: `comparisons.Comparison`.
        choice: `comparisons.Choice`.
        places: Array of shape `(M, 2)`: those of `choice.shown` on the map.
        drawn: List of M thumbnails, of the same.

    Returns:
        `pages.Facts` without what a run tells.

    Example:

    ```python
    facts = facts_of(found, choice, places, drawn)
    ```
    """
    number = {image: at for at, image in enumerate(choice.shown.tolist())}

    def numbers(images):
        return tuple(number[x] for x in np.asarray(images).tolist())

    def beside(images):
        return tuple(
            (
                number[x],
                tuple(
                    zip(
                        numbers(found.nearest[x]),
                        found.similarities[x].tolist(),
                        strict=True,
                    )
                ),
            )
            for x in images.tolist()
        )

    neighbours = {}
    if found.similarities.size:
        neighbours["Of images drawn at random"] = beside(choice.random)
        lonely = choice.lonely[: len(choice.random)]
        neighbours["Of the most lonely images"] = beside(lonely)
    return pages.Facts(
        title="",
        verdict=tuple(_verdict_on_images(found)),
        findings=None,
        log=None,
        views=(),
        images=tuple(_shown(found, choice, places, drawn)),
        classes=tuple(map(str, found.classes)),
        neighbours=neighbours,
        duplicates=tuple(numbers(group) for group in choice.groups),
        outliers=numbers(choice.lonely),
        first=tuple(zip(numbers(choice.centres), reasons(found), strict=True)),
        errors=tuple(zip(numbers(choice.errors), _wrong(found), strict=False)),
        confusion=_matrix(found),
        confused=tuple(
            (f"{given} taken for {other}: {_count(count, 'image')}", numbers(x))
            for given, other, count, x in choice.confused
        ),
        table=(),
        settings={},
        command="",
        remarks=_remarks(found, choice),
    )


def _shown(found, choice, places, drawn):
    likeness = found.likeness
    for image, place, thumbnail in zip(
        choice.shown, places, drawn, strict=True
    ):
        label, value = found.label(image), float(likeness[image])
        yield pages.Shown(
            name=found.name(image),
            label=None if label is None else str(label),
            split=found.splits[found.rows[image]],
            place=tuple(place.tolist()),
            likeness=None if np.isnan(value) else value,
            thumbnail=thumbnail,
        )


def _count(count, what):
    return f"{count:,} {what}{'s' if count != 1 else ''}"


def _verdict_on_images(found):
    """The images in sentences: how many, and what is odd about them."""
    size, compared = len(found.names), len(found.rows)
    text = _count(size, "image")
    if compared < size:
        text += f", of which {compared:,}, drawn at random, are compared"
    odd = []
    if found.groups:
        odd.append(_count(len(found.groups), "group") + " of near-duplicates")
    accuracy = _accuracy(found)
    if accuracy >= _TRUSTED and len(found.errors.places):
        odd.append(
            f"{_count(len(found.errors.places), 'label')} that may be wrong"
        )
    yield f"{text}{': ' * bool(odd)}{', '.join(odd)}."
    if found.errors is None:
        return
    tested = found.errors.is_tested
    labels = found.labels[found.rows[found.labelled[tested]]]
    _, counts = np.unique(labels.astype("U"), return_counts=True)
    yield (
        f"A linear classifier on the representations finds the class of "
        f"{accuracy:.1%} of {_count(int(tested.sum()), 'image')} that it was "
        f"not trained on ({len(found.errors.classes)} classes; the largest has "
        f"{counts.max() / counts.sum():.1%})."
    )


def _accuracy(found):
    """The share of labels that are found again; 0 if none can be."""
    if found.errors is None:
        return 0.0
    tested = found.errors.is_tested
    labels = found.labels[found.rows[found.labelled[tested]]]
    return float(np.mean(found.errors.predictions[tested] == labels))


def reasons(found):
    """Why each image should be labelled, in the order in which to do it.

    Args:
        found: `comparisons.Comparison`.

    Returns:
        List of sentences.

    Example:

    ```python
    print(reasons(compare([images]))[0])
    ```
    """
    centres = found.centres
    if centres is None:
        return []
    sentences = []
    for likeness, nearest, count in zip(
        centres.similarities, centres.nearest, centres.counts, strict=True
    ):
        whom = _count(count, "image") if count > 1 else "itself alone"
        stands = f"Stands for {whom}"
        if nearest < 0:
            sentences.append(f"{stands}. Nearest to the middle of all.")
            continue
        kind = "" if found.label(nearest) is None else "labelled "
        sentences.append(
            f"{stands}. Unlike all before it: likeness {likeness:.2f} to {kind}"
            f"{in_one_line(found.name(nearest))}."
        )
    return sentences


def _wrong(found):
    """What speaks against each label, the worst first."""
    errors = found.errors
    if errors is None:
        return
    columns = {x: n for n, x in enumerate(errors.classes.tolist())}
    for place in errors.places:
        image = found.labelled[place]
        given, other = found.label(image), errors.predictions[place]
        own = errors.probabilities[place, columns[given]]
        best = errors.probabilities[place].max()
        yield f"Labelled {given} ({own:.0%}), but like {other} ({best:.0%})."


def _matrix(found):
    """Counts of labelled images, given classes by those found; or None."""
    if found.errors is None:
        return None
    numbers = {x: n for n, x in enumerate(found.classes)}
    counts = np.zeros((len(numbers), len(numbers)), "int64")
    labels = found.labels[found.rows[found.labelled]]
    for place in np.flatnonzero(found.errors.is_tested):
        prediction = found.errors.predictions[place].item()
        counts[numbers[labels[place]], numbers[prediction]] += 1
    return counts


def _remarks(found, choice):
    """What stands at the head of each section."""
    compared = len(found.rows)
    rest = ""
    if compared < len(found.names):
        rest = (
            f" Of {len(found.names):,} images {compared:,} are compared, drawn "
            "at random."
        )
    none_alone = "There is only one image: nothing to compare it with."
    has_others = bool(found.similarities.size)
    likeness = (
        "The number is the cosine of the representations: 1 for the same, 0 "
        "for nothing in common."
    )
    map_words = (
        f"{_count(len(choice.shown), 'image')}, similar ones side by side "
        "(PCA, then t-SNE). Distances between far groups mean nothing. All "
        "images of this page are on it, and others drawn at random."
    )
    lonely = (
        f"The {len(choice.lonely)} images least like any other, by the mean "
        f"cosine to their {found.nearest.shape[1]} nearest: broken ones, "
        "strangers, or the only ones of their kind."
    )
    return {
        "verdict": "",
        "neighbours": f"{likeness}{rest}" if has_others else none_alone,
        "map-of-images": map_words,
        "duplicates": _on_duplicates(found, choice),
        "outliers": lonely if has_others else none_alone,
        "first": _on_first(found),
        **_on_labels(found, choice),
        "settings": "",
    }


def _on_labels(found, choice):
    """What is said of labels, where there are some."""
    labels = _count(len(found.labelled), "image")
    if not len(found.labelled):
        return {}
    if found.errors is None:
        return {
            "errors": f"{labels} with a label, but it takes two classes of two "
            "different images each to learn from."
        }
    count = len(found.errors.places)
    text = f"None of {labels} has a suspicious one."
    if count:
        text = (
            f"{_count(count, 'label')} of {labels} that a linear classifier, "
            "trained on the others, is sure against. Look before you change "
            "one."
        )
        accuracy = _accuracy(found)
        if accuracy < _TRUSTED:
            text += (
                f" It is right about {accuracy:.0%} of the images only: what "
                "it says against a label is worth little."
            )
        if len(choice.errors) < count:
            text += f" The worst {len(choice.errors)} are shown."
    return {
        "errors": text,
        "confusion": "What that classifier takes images for, by their label.",
    }


def _on_duplicates(found, choice):
    if not found.groups:
        return "None."
    count = sum(map(len, found.groups))
    text = (
        f"{_count(len(found.groups), 'group')} of {_count(count, 'image')} "
        "that are copies of each other, or nearly so by their pixels."
    )
    if len(choice.groups) < len(found.groups):
        text += f" The {len(choice.groups)} largest are shown."
    return text


def _on_first(found):
    if found.centres is None:
        return "All images have a label."
    return (
        "In this order, such that no image is far from all that are labelled "
        "(k-centre, greedy). label_first.csv has the same list; a name in it "
        "that begins like a formula is written ./name."
    )
