"""Labels: those of examples in memory, by name, and what two sets share."""

import collections
import logging
import os

import numpy as np
import tensorflow as tf

from keras_simclr import _files
from keras_simclr._checks import listing
from keras_simclr.augmentations import to_float
from keras_simclr.elements import unpack
from keras_simclr.fit_data import check_length, checked_elements, in_order

_logger = logging.getLogger("keras_simclr")

_BATCH_SIZE = 256


def in_order_with_labels(name, images):
    """As `in_order`, for images that must have one label each.

    Lists of labels are as good as arrays of them.
    """
    if isinstance(images, (tuple, list)) and len(images) == 2:
        images = tuple(
            np.asarray(part) if isinstance(part, (list, tuple)) else part
            for part in images
        )
    dataset = in_order(images)
    labels = unpack(dataset.element_spec).get("labels")
    if labels is None:
        cure = ""
        if hasattr(images, "class_names"):  # As datasets from folders have it.
            cure = (
                " of a folder. Put each of two or more classes into a "
                "sub-folder, and no image beside them. Parts of a data set, "
                "such as train/ and val/, are no classes: use "
                "--data=DIR/train --test_data=DIR/val. A list, PATH.csv, needs "
                "a column `label`, shards .cls or a column `label`, and "
                "another table --label=COLUMN"
            )
        raise ValueError(
            f"`{name}` must hold labels: elements (images, labels). "
            f"Received: images only{cure}"
        )
    columns = (None,), (None, 1)
    if not any(map(labels.shape.is_compatible_with, columns)):
        _refuse_labels_of(name, labels.shape)
    return dataset


def _refuse_labels_of(name, shape):
    cure = ". Of one-hot labels take labels.argmax(axis=1)" * (len(shape) == 2)
    raise ValueError(
        f"`{name}` must hold one label per image. Received: labels of shape "
        f"{shape}{cure}"
    )


class Labelled(dict):
    """What `load_labelled` returns: arrays of the same length, by name.

    Of them `places` are by which images are known, and `all_images` is how many
    there are, with those that have no label.
    """

    all_images = None


class TightImages:
    """Images of many sizes, which take no more memory than their pixels.

    `images[5]` is one of them, `images[rows]` are several; as an array, these
    lie on canvases of the size of the largest of all.
    """

    def __init__(self, images, canvas=None):
        self._images = images
        self._canvas = canvas or tuple(np.max([x.shape for x in images], 0))
        self.dtype = images[0].dtype

    def __len__(self):
        return len(self._images)

    def __getitem__(self, rows):
        places = np.arange(len(self))[rows]
        if places.ndim == 0:
            return self._images[places]
        return TightImages([self._images[x] for x in places], self._canvas)

    def __array__(self, dtype=None, copy=None):
        canvases = np.zeros(self.shape, dtype or self.dtype)
        for canvas, image in zip(canvases, self._images, strict=True):
            canvas[tuple(map(slice, image.shape))] = image
        return canvases

    @property
    def shape(self):
        return (len(self), *self._canvas)


def load_labelled(
    name,
    source,
    class_names=(),
    *,
    kind=None,
    check=None,
    report=None,
    progress=None,
):
    """Labelled images in memory: a dictionary of arrays of the same length.

    Takes `(images, labels)` arrays, a dataset of batches of them, of which all
    that rides along is kept; or what it returned before. Labels of classes with
    names are these. Images without a label, which -1 means, are left out. Those
    with `sizes` are `TightImages`. `kind` is as in `checked_elements`; `check`
    refuses datasets before they are read; `report` and `progress` are as in
    `evaluate`.
    """
    if isinstance(source, Labelled):
        return source
    class_names = names_of_classes(name, source, class_names)
    dataset = in_order_with_labels(name, source)
    check_length(dataset, name=None)
    if check:
        check(dataset)
    if report:
        report(f"Reading the images of `{name}`.")
    images, others = [], collections.defaultdict(list)
    for element in checked_elements(dataset, progress, kind=kind):
        batch = {key: tensor.numpy() for key, tensor in element.items()}
        if "sizes" in batch:
            images += [
                canvas[tuple(map(slice, size))].copy()
                for canvas, size in zip(
                    batch["images"], batch["sizes"], strict=True
                )
            ]
            del batch["images"]
        for key, array in batch.items():
            others[key].append(array)
    examples = {key: joined(others.pop(key)) for key in list(others)}
    if images:
        examples["images"] = TightImages(images)
    labels, rows = known_labels(name, examples["labels"], class_names)
    size = len(examples["images"])
    examples.setdefault("places", np.arange(size))
    if not len(rows):
        raise ValueError(
            f"`{name}` must hold labels of 0 and more. Received: {size} "
            "negative labels, which mean that there are none"
        )
    if len(rows) < size:
        _logger.warning(
            "%d of %d images of `%s` are left out: their labels are negative, "
            "which means that there is none",
            size - len(rows),
            size,
            name,
        )
        examples = {key: array[rows] for key, array in examples.items()}
    found = Labelled({**examples, "labels": labels})
    found.all_images = size
    return found


def joined(arrays):
    """Arrays end to end. The list is emptied: nothing is held twice."""
    shape = (sum(map(len, arrays)), *arrays[0].shape[1:])
    whole = np.empty(shape, np.result_type(*{x.dtype for x in arrays}))
    end = len(whole)
    while arrays:
        array = arrays.pop()
        whole[end - len(array) : end] = array
        end -= len(array)
    return whole


def end_to_end(*sets):
    """Sets of examples end to end, their values made equal."""
    if len({"sizes" in each for each in sets}) > 1:
        raise ValueError(
            "`train` and `test` must both lie on canvases, or neither. "
            "Received: `sizes` in one of them"
        )
    shapes = [each["images"].shape[1:] for each in sets]
    if "sizes" not in sets[0] and len({*shapes}) > 1:
        raise ValueError(
            "`train` and `test` must hold images of one shape, or of `sizes` "
            f"on canvases. Received: images of shape {shapes[0]} in `train` "
            f"and {shapes[1]} in `test`. Resize one of them"
        )
    images = _images_end_to_end([each["images"] for each in sets])
    # Groups and places of two sources may be numbered alike.
    shared = set.intersection(*map(set, sets)) - {"groups", "places", "images"}
    others = {k: np.concatenate([each[k] for each in sets]) for k in shared}
    return {"images": images, **others}


def _images_end_to_end(sets):
    is_tight = isinstance(sets[0], TightImages)
    if len({images.dtype for images in sets}) > 1:
        sets = [
            [to_float(tf.constant(image)).numpy() for image in images]
            for images in sets
        ]
    if is_tight:
        return TightImages([image for images in sets for image in images])
    return np.concatenate(sets)


def in_batches(examples, progress=None):
    """Yields the images of what `load_labelled` returned, as elements."""
    total = len(examples["images"])
    for start in range(0, total, _BATCH_SIZE):
        rows = slice(start, start + _BATCH_SIZE)
        yield {
            key: tf.constant(np.asarray(examples[key][rows]))
            for key in ("images", "sizes")
            if key in examples
        }
        if progress:
            progress(min(rows.stop, total), total)


def names_of_classes(name, source, class_names=()):
    """Tuple of the names that labels are places in: a dataset's own, if any.

    Datasets from folders, ours and Keras's, have them as `class_names`.
    """
    own, given = (
        _files.valid_names(map(str, names))
        for names in (getattr(source, "class_names", None) or (), class_names)
    )
    if given and not set(own) <= set(given):
        raise ValueError(
            f"`class_names` must name all classes of `{name}`. Received: "
            f"class_names={given} for classes {own}. Leave them out, or rename "
            "the classes: dataset.class_names = [...]"
        )
    return tuple(own or given)


def known_labels(name, labels, class_names=()):
    """The labels that there are, and the rows which have them.

    Args:
        name: What holds them, for errors.
        labels: Array of integers, or texts. A negative one means that there is
            none.
        class_names: Names that labels are places in; or empty.

    Returns:
        `(labels, rows)`: array of the labels, of texts where there are names;
        and the places at which these stood.
    """
    labels = one_per_row(labels)
    if labels.ndim != 1:
        _refuse_labels_of(name, labels.shape)
    # TensorFlow gives bytes as objects, pandas anything.
    if labels.dtype.kind == "O" and not any(map(_is_text, labels)):
        labels = np.array(labels.tolist())
    wrong = labels if labels.dtype.kind not in "biu" else ()
    if labels.dtype.kind == "f":  # NaN equals nothing.
        wrong = labels[(labels != np.floor(labels)) | np.isinf(labels)]
    if labels.dtype.kind in "OSTU":  # NaN between texts would be a class.
        wrong = [label for label in labels if not _is_text(label)]
        if not wrong:
            texts = _files.valid_names(map(os.fsdecode, labels))
            return np.array(texts, "U"), np.arange(len(texts))
    if len(wrong):
        raise ValueError(
            f"`{name}` must hold the class of each image: an integer or a "
            f"text, and -1 where it is not known. Received: {len(wrong)} "
            f"labels such as {wrong[0]}"
        )
    rows = np.flatnonzero(labels >= 0)
    labels = labels[rows]
    if class_names and len(labels):
        if labels.max() >= len(class_names):
            raise ValueError(
                f"Labels of `{name}` must be places in its {len(class_names)} "
                f"class names. Received: the label {labels.max()}"
            )
        labels = np.array(class_names)[labels.astype("int64")]
    return labels, rows


def _is_text(label):
    return isinstance(label, (bytes, str))


def check_classes(name, labels):
    """Refuses fewer than two classes to learn from."""
    classes = np.unique(labels)
    if len(classes) < 2:
        raise ValueError(
            f"`{name}` must hold at least two classes. Received: "
            f"{classes.tolist()}"
        )


def compare_classes(labels, test_labels):
    """What a test set lacks of the classes to learn, or adds, in sentences.

    Args:
        labels: Array of labels to learn from.
        test_labels: Array of labels to test on.

    Returns:
        List of strings, empty if both have the same classes.

    Raises:
        ValueError: If one has names and the other numbers, or they have no
            class in common.
    """
    classes = np.unique(labels)
    test_classes, counts = np.unique(test_labels, return_counts=True)
    if (classes.dtype.kind == "U") != (test_classes.dtype.kind == "U"):
        raise ValueError(
            "`train` and `test` must both have names of classes, or both "
            f"numbers. Received: {listing(classes)} in `train` and "
            f"{listing(test_classes)} in `test`. Set dataset.class_names, or "
            "pass the names themselves as labels"
        )
    is_new = ~np.isin(test_classes, classes)
    if is_new.all():
        raise ValueError(
            "`test` must hold classes of `train`. Received: "
            f"{listing(test_classes)} in `test` and {listing(classes)} in "
            "`train`"
        )
    sentences = []
    if is_new.any():
        sentences.append(
            f"{counts[is_new].sum()} of {counts.sum()} images to test on are "
            "of classes without images to learn from, and count as wrong: "
            f"{listing(test_classes[is_new])}."
        )
    missing = np.setdiff1d(classes, test_classes)
    if len(missing):
        sentences.append(f"No image to test on is of {listing(missing)}.")
    return sentences


def warn_of_classes(labels, test_labels):
    """Logs what `compare_classes` finds, with the same arguments and errors."""
    for sentence in compare_classes(labels, test_labels):
        _logger.warning(sentence)


def one_per_row(labels):
    """Labels as an array of shape `(N,)`, also from `(N, 1)`."""
    labels = np.asarray(labels)
    is_column = labels.ndim == 2 and labels.shape[1] == 1
    return labels[:, 0] if is_column else labels
