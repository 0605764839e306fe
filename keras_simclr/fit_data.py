"""What Keras needs done to data: whole batches, one iterator, lengths."""

import logging
import warnings

import numpy as np
import tensorflow as tf

from keras_simclr import _checks, _files
from keras_simclr.elements import (
    failed_check,
    images_and_sizes,
    unpack,
    value_checks,
)

_logger = logging.getLogger("keras_simclr")

_BATCH_SIZE = 32  # Keras's default.
_SHOWN = 10  # Classes that a message lists.


def batches_of(arrays, batch_size, *, shuffle, seed, drop_remainder):
    """The dataset of `dataset_from_arrays`, of arrays in any structure."""
    _checks.integer("batch_size", batch_size, minimum=1)
    if isinstance(arrays, tuple):
        arrays = tuple(array for array in arrays if array is not None)
        arrays = arrays[0] if len(arrays) == 1 else arrays
    arrays = tf.nest.map_structure(tf.convert_to_tensor, arrays)
    sizes = {array.shape[0] for array in tf.nest.flatten(arrays)}
    if len(sizes) > 1:
        raise ValueError(
            "All arrays must have the same length. Received: arrays of length "
            + " and ".join(map(str, sorted(sizes)))
        )
    size = sizes.pop()
    check_fills_a_batch(size, batch_size, drop_remainder, "images")
    places = tf.data.Dataset.range(size)
    if shuffle:
        places = places.shuffle(size, seed=seed)
    places = places.batch(batch_size, drop_remainder=drop_remainder)
    return places.map(
        lambda batch: tf.nest.map_structure(
            lambda array: tf.gather(array, batch), arrays
        ),
        num_parallel_calls=tf.data.AUTOTUNE,
    ).prefetch(tf.data.AUTOTUNE)


def check_fills_a_batch(size, batch_size, drop_remainder, what):
    """Refuses images that make no batch at all."""
    if (size < batch_size and drop_remainder) or size == 0:
        raise ValueError(
            "The images must fill at least one batch. Received: "
            f"{size} {what}, batch_size={batch_size}. Use a smaller batch."
        )


def fit_arguments(call, seed, *, check, check_validation):
    """The arguments of `fit`, with checked datasets in place of its data.

    Args:
        call: Dictionary of the arguments of `keras.Model.fit`.
        seed: Integer that the orders of arrays depend on.
        check: Function that refuses datasets that cannot be trained on.
        check_validation: The same for validation.

    Returns:
        Dictionary of the same kind.
    """
    call, options = dict(call), {}
    data, validation = call.get("x"), call.pop("validation_data", None)
    if _is_arrays(data):
        data = data, call.pop("y", None)
        options = {
            "batch_size": call.pop("batch_size", None),
            "shuffle": call.get("shuffle", True),
            "seed": seed,
        }
        share = call.pop("validation_split", 0.0)
        if validation is None:
            data, validation = _held_out(data, share)
        if _is_arrays(validation):
            size = call.pop("validation_batch_size", None)
            size = size or options["batch_size"]
            validation = as_dataset(
                validation, batch_size=size, shrinks=True, check=None
            )
    call["x"] = as_dataset(data, check=check, **options)
    if isinstance(call["x"], tf.data.Dataset):
        check_length(call["x"], call.get("steps_per_epoch"))
        call["shuffle"] = False  # Keras warns that it leaves it to us.
        call.update(one_iterator(**call))
    if validation is not None:
        call["validation_data"] = as_dataset(validation, check=check_validation)
    return call


def evaluate_arguments(call, *, check):
    """The arguments of `evaluate`, as from `fit_arguments`."""
    call, data, options = dict(call), call.get("x"), {}
    if _is_arrays(data):
        data = data, call.pop("y", None)
        size = call.pop("batch_size", None)
        options = {"batch_size": size, "shrinks": True}
    call["x"] = as_dataset(data, check=check, **options)
    return call


def predict_arguments(call):
    """The arguments of `predict`, with a dataset for arrays, of all images."""
    call = dict(call)
    size = call.pop("batch_size", None)
    call["x"] = as_dataset(
        call.get("x"), batch_size=size, whole=False, check=None
    )
    return call


def as_dataset(
    data,
    *,
    check,
    batch_size=None,
    shrinks=False,
    whole=True,
    shuffle=False,
    seed=0,
):
    """Brings whatever Keras is given to checked batches, if that can be.

    Args:
        data: A `tf.data.Dataset` of batches; an array, or arrays in a tuple or
            dictionary; or anything else.
        check: Function that refuses datasets, or None.
        batch_size: Images in a batch of arrays, or None for Keras's 32.
        shrinks: Whether fewer images make a smaller batch.
        whole: Whether images that do not fill a batch are left out, with a
            warning.
        shuffle: Whether every epoch has another order.
        seed: Integer that the orders depend on.

    Returns:
        A `tf.data.Dataset` as `prepared` returns it; `data` itself if it is
        neither arrays nor a dataset.
    """
    if _is_arrays(data):
        size = _length(data)
        batch_size = batch_size or _BATCH_SIZE
        batch_size = min(batch_size, size) if shrinks else batch_size
        if whole and size > batch_size:
            _warn_of_the_rest(size, batch_size, shuffle)
        data = batches_of(
            tuple(data) if isinstance(data, list) else data,
            batch_size,
            shuffle=shuffle,
            seed=seed,
            drop_remainder=whole,
        )
    if isinstance(data, tf.data.Dataset):
        if check is not None:
            check(data)
        data = prepared(data)
    return data


def _warn_of_the_rest(size, batch_size, shuffle):
    remainder = size % batch_size
    if remainder:
        others = ", others in each epoch" if shuffle else ""
        warnings.warn(
            f"{remainder} of {size} images do not fill a batch of {batch_size} "
            f"and are left out{others}.",
            stacklevel=5,
        )


def _held_out(arrays, share):
    """Splits `(x, y)` as `validation_split` asks: the last ones are held out.

    The second is None if nothing is.
    """
    size = _length(arrays)
    held_out = int(size * share)
    if not held_out:
        return arrays, None
    return tuple(
        tf.nest.map_structure(
            lambda array, rows=rows: None if array is None else array[rows],
            arrays,
        )
        for rows in (slice(size - held_out), slice(size - held_out, None))
    )


def _is_arrays(x):
    """Whether `x` is an array, or arrays in any structure."""
    arrays = [each for each in tf.nest.flatten(x) if each is not None]
    return bool(arrays) and all(hasattr(x, "__array__") for x in arrays)


def _length(arrays):
    return len(tf.nest.flatten(arrays)[0])


def one_iterator(x, steps_per_epoch=None, initial_epoch=0, **_):
    """The data of a `fit` that goes on after some epochs.

    Keras makes two iterators for each epoch of known length, each with an order
    of its own: here it is one for all of them. Takes arguments of `fit`, and
    returns those that change.

    >>> one_iterator(tf.data.Dataset.range(3))["steps_per_epoch"]
    3
    """
    if steps_per_epoch is not None:
        return {"x": x.skip(initial_epoch * steps_per_epoch)}
    for _epoch in range(initial_epoch):
        iter(x)  # Has the order of the next epoch drawn.
    length = int(x.cardinality())
    if length <= 0:
        return {}
    return {"x": x.repeat(), "steps_per_epoch": length}


def check_length(dataset, steps_per_epoch=None):
    """Refuses a dataset that is empty, or has no end and no number of steps."""
    batches = dataset.cardinality().numpy()
    if batches == 0:
        raise ValueError(
            "The dataset must hold at least one batch. Received: an empty "
            "dataset. If it ends in batch(..., drop_remainder=True), use a "
            "smaller batch."
        )
    if batches == tf.data.INFINITE_CARDINALITY and steps_per_epoch is None:
        raise ValueError(
            "An infinite dataset needs `steps_per_epoch`. Pass it to `fit`, or "
            "leave out `repeat()`."
        )


def prepared(dataset):
    """Sets the options with which a dataset is read fast, and by all workers.

    tf.data's tuner is turned off, unless the dataset says that it wants it:
    when an iterator ends, TensorFlow (seen with 2.21) often waits until the
    tuner's sleep is over, and the sleeps double, up to a minute: an epoch of 3
    seconds then takes 5. Without it `AUTOTUNE` stands for one call per core, at
    most 16.

    Of several workers each reads everything and keeps its rows of each batch:
    by files, as TensorFlow would have it, the batches would be others than
    those of one device.
    """
    options = tf.data.Options()
    if dataset.options().autotune.enabled is None:
        options.autotune.enabled = False
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.DATA
    )
    return dataset.with_options(options)


def in_order(images, *, batch_size=256):
    """All images in batches, in order, for use without training.

    Takes an array, `(images, labels)`, a dictionary of arrays, or a dataset of
    batches, which stay as they are.
    """
    if not isinstance(images, tf.data.Dataset):
        images = batches_of(
            images, batch_size, shuffle=False, seed=0, drop_remainder=False
        )
    return prepared(images)


def in_order_with_labels(name, images):
    """As `in_order`, for images that must have one label each."""
    dataset = in_order(images)
    labels = unpack(dataset.element_spec).get("labels")
    if labels is None:
        cure = ""
        if hasattr(images, "class_names"):  # As datasets from folders have it.
            cure = (
                " of a folder. Put each of two or more classes into a "
                "sub-folder, and no image beside them. Parts of a data set, "
                "such as train/ and val/, are no classes: use "
                "--data=DIR/train --test_data=DIR/val"
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


def checked_elements(dataset):
    """Yields the elements of a dataset, as dictionaries of usable values."""
    try:
        for element in prepared(dataset):
            element = unpack(element)
            images, _ = images_and_sizes(element)
            is_image = images.shape.rank == 4
            value_checks(images, "images", in_unit_range=is_image)
            yield element
    except tf.errors.InvalidArgumentError as error:
        text = failed_check(error)
        if text is None:
            raise
        raise ValueError(text) from None


class Labelled(dict):
    """What `load_labelled` returns: arrays of the same length, by name."""


def load_labelled(name, source, class_names=()):
    """Labelled images in memory: a dictionary of arrays of the same length.

    Takes `(images, labels)` arrays, a dataset of batches of them, of which all
    that rides along is kept; or what it returned before. Labels of classes with
    names are these. Images without a label, which -1 means, are left out.
    """
    if isinstance(source, Labelled):
        return source
    class_names = names_of_classes(name, source, class_names)
    dataset = in_order_with_labels(name, source)
    check_length(dataset)
    batches = list(checked_elements(dataset))
    examples = {
        key: np.concatenate([batch[key].numpy() for batch in batches])
        for key in batches[0]
    }
    labels, rows = known_labels(name, examples["labels"], class_names)
    size = len(examples["images"])
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
    return Labelled({**examples, "labels": labels})


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
    if labels.dtype.kind in "OSU":  # TensorFlow gives bytes as objects.
        texts = [x.decode() if isinstance(x, bytes) else str(x) for x in labels]
        return np.array(texts, "U"), np.arange(len(texts))
    is_float = labels.dtype.kind == "f"
    wrong = labels[labels != np.floor(labels)] if is_float else ()
    if len(wrong):  # NaN is among them: it equals nothing.
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


def check_classes(name, labels):
    """Refuses fewer than two classes to learn from."""
    classes = np.unique(labels)
    if len(classes) < 2:
        raise ValueError(
            f"`{name}` must hold at least two classes. Received: "
            f"{classes.tolist()}"
        )


def check_comparable(labels, test_labels):
    """Refuses names of classes beside numbers."""
    classes, test_classes = np.unique(labels), np.unique(test_labels)
    if (classes.dtype.kind == "U") != (test_classes.dtype.kind == "U"):
        raise ValueError(
            "`train` and `test` must both have names of classes, or both "
            f"numbers. Received: {_listing(classes)} in `train` and "
            f"{_listing(test_classes)} in `test`. Set dataset.class_names, or "
            "pass the names themselves as labels"
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
    check_comparable(labels, test_labels)
    classes = np.unique(labels)
    test_classes, counts = np.unique(test_labels, return_counts=True)
    is_new = ~np.isin(test_classes, classes)
    if is_new.all():
        raise ValueError(
            "`test` must hold classes of `train`. Received: "
            f"{_listing(test_classes)} in `test` and {_listing(classes)} in "
            "`train`"
        )
    sentences = []
    if is_new.any():
        sentences.append(
            f"{counts[is_new].sum()} of {counts.sum()} images to test on are "
            "of classes without images to learn from, and count as wrong: "
            f"{_listing(test_classes[is_new])}."
        )
    missing = np.setdiff1d(classes, test_classes)
    if len(missing):
        sentences.append(f"No image to test on is of {_listing(missing)}.")
    return sentences


def _listing(classes):
    more = ", ..." * (len(classes) > _SHOWN)
    return ", ".join(map(str, classes[:_SHOWN])) + more


def one_per_row(labels):
    """Labels as an array of shape `(N,)`, also from `(N, 1)`."""
    labels = np.asarray(labels)
    is_column = labels.ndim == 2 and labels.shape[1] == 1
    return labels[:, 0] if is_column else labels
