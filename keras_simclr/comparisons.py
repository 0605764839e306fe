"""Images compared by their representations, and which of them to show."""

import dataclasses

import numpy as np

from keras_simclr import duplicates
from keras_simclr.label_errors import LabelErrors, find_label_errors
from keras_simclr.neighbours import Centres, NearestNeighbours, k_centres

_NEIGHBOURS = 6
_MOST_TO_LABEL = 100
_MOST_SHOWN = 1_000
_QUERIES = 12
_OUTLIERS = 24
_GROUPS, _OF_A_GROUP = 24, 6
_ERRORS = 24
_CONFUSED, _OF_CONFUSED = 8, 6


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What is known of images, and what their neighbours tell of them.

    Of many images only some are compared. Those are counted from 0, too: all
    arrays but the first four have `n` entries, or hold such numbers.

    Attributes:
        names: List of the names of all images.
        splits: List of what each is of.
        labels: Array of objects, the class of each, or None.
        features: float32 array of shape `(N, D)`.
        rows: Array of shape `(n,)`: places of the images that are compared.
        nearest: Integers of shape `(n, k)`: the nearest others, the most
            similar first; k is at most 6.
        similarities: float32 array of the same shape, their cosines.
        groups: Tuple of arrays: near-duplicates of each other, two or more.
        classes: List of the classes, sorted.
        labelled: Array of those that have a label.
        centres: `neighbours.Centres`, what to label first; None if all are.
        errors: `label_errors.LabelErrors` of `labelled`; None without two
            classes of two images.
    """

    names: list
    splits: list
    labels: np.ndarray
    features: np.ndarray
    rows: np.ndarray
    nearest: np.ndarray
    similarities: np.ndarray
    groups: tuple
    classes: list
    labelled: np.ndarray
    centres: Centres | None
    errors: LabelErrors | None

    @property
    def likeness(self):
        """Mean cosine to the nearest others, of each; NaN of an only image."""
        if not self.similarities.size:
            return np.full(len(self.rows), np.nan, "float32")
        return self.similarities.mean(axis=1)

    def name(self, image):
        """Name of an image that is compared."""
        return self.names[self.rows[image]]

    def label(self, image):
        """Its class, or None."""
        return self.labels[self.rows[image]]

    @property
    def group_of(self):
        """Number of the group of each, from 1; 0 if it is in none."""
        numbers = np.zeros(len(self.rows), "int64")
        for number, group in enumerate(self.groups, 1):
            numbers[group] = number
        return numbers


def compare(sets, seed=0):
    """Compares the images of sets that were seen.

    Args:
        sets: List of `image_sets.ImageSet`, after `see`.
        seed: Integer.

    Returns:
        `Comparison`.

    Raises:
        ValueError: If some classes have names and others numbers.

    Example:

    ```python
    images = ImageSet("images", images)
    images.see(model, most=1_000)
    compare([images]).groups
    ```
    """
    starts = np.cumsum([0, *(len(x.names) for x in sets)])
    rows = np.concatenate(
        [x.compared + start for x, start in zip(sets, starts, strict=False)]
    )
    features = np.concatenate([x.features for x in sets])
    labels = np.concatenate(
        [
            np.full(len(x.names), None, object)
            if x.labels is None
            else x.labels
            for x in sets
        ]
    )
    classes = _classes(labels)
    ours, count = features[rows], min(_NEIGHBOURS, len(rows) - 1)
    nearest = np.empty((len(rows), 0), "int64")
    similarities = np.empty((len(rows), 0), "float32")
    if count:
        nearest, similarities = NearestNeighbours(ours).others(count)
    groups = duplicates.group(
        np.concatenate([x.keys for x in sets]),
        np.concatenate([x.is_varied for x in sets]),
    )
    known = np.array([labels[row] is not None for row in rows], bool)
    labelled, centres = np.flatnonzero(known), None
    if not known.all():
        centres = k_centres(ours, _MOST_TO_LABEL, known)
    return Comparison(
        names=[name for x in sets for name in x.names],
        splits=[x.split for x in sets for _ in x.names],
        labels=labels,
        features=features,
        rows=rows,
        nearest=nearest,
        similarities=similarities,
        groups=_members(groups),
        classes=classes,
        labelled=labelled,
        centres=centres,
        errors=_errors(
            ours[labelled], labels[rows[labelled]], groups[labelled], seed
        ),
    )


def _classes(labels):
    classes = {label for label in labels if label is not None}
    kinds = {isinstance(x, str) for x in classes}
    if len(kinds) > 1:
        raise ValueError(
            "`labelled` and `images` must both have names of classes, or both "
            f"numbers. Received: {sorted(map(str, classes))[:10]}"
        )
    return sorted(classes)


def _members(groups):
    """Those with the same number, where they are several; the largest first."""
    order = np.argsort(groups, kind="stable")
    ends = np.flatnonzero(np.diff(groups[order])) + 1
    found = [x for x in np.split(order, ends) if len(x) > 1]
    return tuple(sorted(found, key=lambda x: (-len(x), x[0])))


def _errors(features, labels, groups, seed):
    """None where there are no two classes of two different images."""
    classes, places = np.unique(labels.astype("U"), return_inverse=True)
    several = [
        len(np.unique(groups[places == x])) > 1 for x in range(len(classes))
    ]
    if sum(several) < 2:
        return None
    labels = np.array(labels.tolist())
    return find_label_errors(features, labels, groups=groups, seed=seed)


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which of the images that are compared a page shows; all are numbers.

    Attributes:
        random: Some that are drawn.
        lonely: Those least like their nearest others, the loneliest first.
        groups: Tuple of arrays: near-duplicates, some of each group.
        centres: What to label first, in order.
        errors: Those whose label is probably wrong, the worst first.
        confused: Tuple of `(given, found, count, images)`, by their number:
            two classes, how many of the first are taken for the second, and
            some of these.
        shown: All of these with their neighbours, and others that are drawn.
    """

    random: np.ndarray
    lonely: np.ndarray
    groups: tuple
    centres: np.ndarray
    errors: np.ndarray
    confused: tuple
    shown: np.ndarray


def choose(found, seed=0):
    """Chooses what a page shows.

    Args:
        found: `Comparison`.
        seed: Integer that is drawn by.

    Returns:
        `Choice`, of at most 1,000 images.

    Example:

    ```python
    choose(compare([images])).shown
    ```
    """
    size = len(found.rows)
    order = np.random.default_rng(seed).permutation(size)
    lonely = np.argsort(found.likeness, kind="stable")[:_OUTLIERS]
    if not found.similarities.size:
        lonely = lonely[:0]
    random = np.sort(order[:_QUERIES])
    queries = np.concatenate([random, lonely[:_QUERIES]])
    groups = tuple(group[:_OF_A_GROUP] for group in found.groups[:_GROUPS])
    centres = errors = np.array([], "int64")
    confused = ()
    if found.centres is not None:
        centres = found.centres.places
    if found.errors is not None:
        errors = found.labelled[found.errors.places[:_ERRORS]]
        confused = _confused(found)
    parts = [
        queries,
        found.nearest[queries].ravel(),
        lonely,
        *groups,
        centres,
        errors,
        *(images for *_, images in confused),
        order,
    ]
    _, firsts = np.unique(np.concatenate(parts), return_index=True)
    shown = np.concatenate(parts)[np.sort(firsts)[:_MOST_SHOWN]]
    return Choice(
        random, lonely, groups, centres, errors, confused, np.sort(shown)
    )


def _confused(found):
    """Pairs of classes of which the first is taken for the second."""
    errors, labels = found.errors, found.labels[found.rows[found.labelled]]
    wrong = np.flatnonzero(errors.is_tested & (errors.predictions != labels))
    pairs = {}
    for place in wrong:
        pair = labels[place], errors.predictions[place].item()
        pairs.setdefault(pair, []).append(found.labelled[place])
    largest = sorted(pairs.items(), key=lambda x: -len(x[1]))[:_CONFUSED]
    return tuple(
        (*pair, len(images), np.array(images[:_OF_CONFUSED]))
        for pair, images in largest
    )
