"""Datasets of batches for `fit` and the probes, and what they hold."""

import difflib
import hashlib
import math
import os
import pathlib
import re
import warnings

import numpy as np
import tensorflow as tf

from keras_simclr import _checks
from keras_simclr.decoding import SMALLEST_SIDE, fitted, read_images
from keras_simclr.folders import ImageFolder, rows_of_split

_SHOWN = 10  # Rows that an error message lists.
_KEYS = ("images", "labels", "view_1", "view_2", "sizes", "groups")

# Examples that wait, still encoded, to be drawn in random order.
_SHUFFLE_BUFFER = 16_384


def dataset_from_arrays(
    images,
    labels=None,
    *,
    batch_size=256,
    shuffle=True,
    seed=0,
    drop_remainder=True,
):
    """Dataset of batches from arrays in memory.

    Args:
        images: Array of shape `(N, ...)`, or a dictionary of such arrays.
        labels: Array of shape `(N,)`, or None.
        batch_size: Images in a batch.
        shuffle: Whether every epoch has another random order.
        seed: Integer the orders depend on.
        drop_remainder: Whether the images that do not fill a batch wait for
            the next epoch.

    Returns:
        A `tf.data.Dataset` of `images`, or of `(images, labels)`.

    Raises:
        ValueError: If the arrays differ in length or do not fill a batch.

    Example:

    >>> images = np.zeros((10, 8, 8, 3), "uint8")
    >>> dataset = dataset_from_arrays(images, batch_size=4)
    >>> dataset.element_spec.shape, len(dataset)
    (TensorShape([4, 8, 8, 3]), 2)
    """
    _checks.integer("batch_size", batch_size, minimum=1)
    arrays = images if labels is None else (images, labels)
    arrays = tf.nest.map_structure(tf.convert_to_tensor, arrays)
    sizes = {array.shape[0] for array in tf.nest.flatten(arrays)}
    if len(sizes) > 1:
        raise ValueError(
            "All arrays must have the same length. Received: arrays of length "
            + " and ".join(map(str, sorted(sizes)))
        )
    size = sizes.pop()
    _check_fills_a_batch(size, batch_size, drop_remainder, "images")
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


def dataset_from_tfds(
    name,
    split,
    *,
    data_dir=None,
    canvas_size=512,
    batch_size=256,
    shuffle=True,
    seed=0,
    drop_remainder=True,
):
    """Dataset of batches from TensorFlow Datasets.

    Args:
        name: Name in TFDS, such as `"cifar10"` or `"NAME/CONFIG"`. It must
            have a feature `image`; it may have a `label`.
        split: Split in TFDS's notation, such as `"train[:90%]"`.
        data_dir: Directory of the prepared datasets, or None for TFDS's own.
            What is not there is downloaded and prepared.
        canvas_size: As in `dataset_from_directory`, for images that are not
            all of one size.
        batch_size: Images in a batch.
        shuffle: Whether every epoch has another random order.
        seed: Integer the orders depend on.
        drop_remainder: Whether the images that do not fill a batch wait for
            the next epoch.

    Returns:
        A `tf.data.Dataset` of `(images, labels)`, or of `images` if TFDS has no
        label; of dictionaries, as from `dataset_from_directory`, if the images
        are not all of one size. Images are uint8.

    Raises:
        ValueError: If TFDS has no such dataset or split, or the split does not
            fill a batch.

    Example:

    ```python
    dataset = dataset_from_tfds("cifar10", "train")
    model.fit(dataset, epochs=100)
    ```
    """
    import tensorflow_datasets as tfds

    _checks.integer("batch_size", batch_size, minimum=1)
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError:
        near = difflib.get_close_matches(name, tfds.list_builders(), n=3)
        raise ValueError(
            "`name` must be a dataset of TensorFlow Datasets. Received: "
            f"name={name!r}. Near matches: {', '.join(near) or 'none'}"
        ) from None
    features = builder.info.features
    if "image" not in features:
        raise ValueError(
            "The dataset needs a feature `image`. Received: "
            f"name={name!r} with features {sorted(features)}"
        )
    builder.download_and_prepare()
    split_size = _split_size(builder, split)
    what = f"images in split={split!r}"
    _check_fills_a_batch(split_size, batch_size, drop_remainder, what)
    dataset = builder.as_dataset(
        split=split,
        shuffle_files=shuffle,
        read_config=tfds.ReadConfig(shuffle_seed=seed),
        decoders={"image": tfds.decode.SkipDecoding()},
    )
    if shuffle:
        dataset = dataset.shuffle(min(split_size, _SHUFFLE_BUFFER), seed=seed)

    def decode(example):
        image = features["image"].decode_example(example["image"])
        if None not in image.shape:
            return (image, example["label"]) if "label" in example else image
        element = _with_size(fitted(image, canvas_size))
        if "label" in example:
            element["labels"] = example["label"]
        return element

    dataset = dataset.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    if isinstance(dataset.element_spec, dict):
        dataset = _on_canvases(dataset, canvas_size, batch_size, drop_remainder)
    else:
        dataset = dataset.batch(batch_size, drop_remainder=drop_remainder)
    return dataset.prefetch(tf.data.AUTOTUNE)


def dataset_from_directory(
    directory,
    *,
    canvas_size=512,
    batch_size=256,
    shuffle=True,
    seed=0,
    drop_remainder=True,
):
    """Dataset of batches from the image files in a folder.

    Every JPEG, PNG, BMP, GIF and WebP file in it and its sub-folders is taken,
    hidden ones left out. Images of any size are put on a square canvas, made
    smaller where they are larger; the augmentation crops from them. Files that
    cannot be read are skipped and reported, up to a limit.

    Args:
        directory: Path of the folder; or a `folders.ImageFolder`, which takes
            a manifest, a part of the images, and the limit.
        canvas_size: Height and width of the canvas, pixels. With at least
            `image_size / sqrt(scale[0])` of the augmentation, no crop of a
            large image has to be enlarged.
        batch_size: Images in a batch.
        shuffle: Whether every epoch has another random order, a function of
            `seed` and the epoch. If not, the order is that of the paths.
        seed: Integer the orders depend on.
        drop_remainder: Whether the images that do not fill a batch wait for
            the next epoch. An epoch then has as many batches as if all files
            were readable: some images come twice in place of those that are
            not.

    Returns:
        A `tf.data.Dataset` of dictionaries: `images`, uint8 of shape
        `(batch_size, canvas_size, canvas_size, 3)`; `sizes`, int32 of shape
        `(batch_size, 2)`, height and width of the image in the upper left;
        `labels`, if the files are in sub-folders: the places of theirs in
        `ImageFolder.class_names`; `groups`, if a manifest knows of duplicates.

    Raises:
        OSError: If there is no such folder, or it may not be read.
        ValueError: If it holds no image, or fewer than a batch.

    Example:

    ```python
    dataset = simclr.dataset_from_directory("photos", canvas_size=256)
    encoder = simclr.ResNet(18, stem="cifar", input_shape=(64, 64, 3))
    model = simclr.SimCLRModel(encoder)
    model.compile()
    model.fit(dataset, epochs=100)
    ```
    """
    _checks.integer("canvas_size", canvas_size, minimum=SMALLEST_SIDE)
    _checks.integer("batch_size", batch_size, minimum=1)
    folder = directory
    if not isinstance(folder, ImageFolder):
        folder = ImageFolder(directory)
    size = len(folder.paths)
    _check_fills_a_batch(size, batch_size, drop_remainder, "images")
    rides_along = {
        name: tf.constant(values)
        for name, values in (
            ("labels", folder.labels),
            ("groups", folder.groups),
        )
        if values is not None
    }

    canvas_size = min(canvas_size, folder.largest)
    # Once more, for what is missing where files are unreadable.
    rounds = 2 if drop_remainder else 1
    orders = _orders(size, shuffle, seed)
    orders = orders.map(lambda order: tf.tile(order, [rounds]))
    images = read_images(folder, orders, rounds * size, canvas_size)

    def element(place, image):
        others = {k: values[place] for k, values in rides_along.items()}
        return {**_with_size(image), **others}

    dataset = _on_canvases(
        images.map(element), canvas_size, batch_size, drop_remainder
    )
    if drop_remainder:
        batches = size // batch_size
        dataset = dataset.take(batches).apply(
            tf.data.experimental.assert_cardinality(batches)
        )
    return dataset.prefetch(tf.data.AUTOTUNE)


def _with_size(image):
    return {"images": image, "sizes": tf.shape(image)[:2]}


def _on_canvases(dataset, canvas_size, batch_size, drop_remainder):
    """Batches of a dataset whose elements have images of any size."""
    shapes = {name: spec.shape for name, spec in dataset.element_spec.items()}
    shapes["images"] = (canvas_size, canvas_size, shapes["images"][2])
    return dataset.padded_batch(
        batch_size, shapes, drop_remainder=drop_remainder
    )


def _orders(size, shuffle, seed):
    """Dataset of one order of `size` places, another one each time it is read.

    It takes a few bytes per place; `Dataset.shuffle` takes some hundred.
    """
    if not shuffle:
        return tf.data.Dataset.from_tensors(tf.range(size, dtype=tf.int64))
    epochs = tf.data.Dataset.random(seed, rerandomize_each_iteration=True)

    def order(number):
        bits = tf.random.stateless_uniform(
            [size], tf.stack([seed, number]), None, None, tf.int64, alg="philox"
        )
        return tf.cast(tf.argsort(bits, stable=True), tf.int64)

    return epochs.take(1).map(order)


def canvas_for(image_size, smallest_crop=0.2):
    """A canvas on which crops have at least the pixels of the views.

    Args:
        image_size: Side of the views, pixels.
        smallest_crop: Smallest share of an image's area that is cut out.

    Returns:
        A power of two: then images of usual sizes, or their half or quarter,
        in which JPEGs can be decoded, fill most of it.

    Example:

    >>> canvas_for(64), canvas_for(224)
    (256, 512)
    """
    return 2 ** math.ceil(math.log2(image_size / math.sqrt(smallest_crop)))


def open_dataset(
    source,
    split="train",
    *,
    data_dir=None,
    canvas_size=512,
    **kwargs,
):
    """Dataset of batches from what the command line calls `--data`.

    Args:
        source: `"PATH.npz"` with an array `images` and optionally `labels`;
            `"tfds:NAME[/CONFIG]"`; or a `folders.ImageFolder`.
        split: Split in TFDS's notation, such as `"train[:90%]"`. A file has
            one split, `train`; a folder has its own.
        data_dir: Directory of the prepared TFDS datasets.
        canvas_size: As in `dataset_from_directory`.
        **kwargs: Further arguments of `dataset_from_arrays`: `batch_size`,
            `shuffle`, `seed`, `drop_remainder`.

    Returns:
        A `tf.data.Dataset` of what `unpack` takes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If `source` has another form, or the file other arrays.

    Example:

    ```python
    dataset = open_dataset("flowers.npz", "train[:90%]", batch_size=64)
    ```
    """
    if isinstance(source, ImageFolder):
        return dataset_from_directory(source, canvas_size=canvas_size, **kwargs)
    if source.startswith("tfds:"):
        name = source.removeprefix("tfds:")
        return dataset_from_tfds(
            name, split, data_dir=data_dir, canvas_size=canvas_size, **kwargs
        )
    if not source.endswith(".npz"):
        raise ValueError(
            "`data` must be an existing folder of images, PATH.npz or "
            f"tfds:NAME[/CONFIG]. Received: data={source!r}"
        )
    with np.load(source) as arrays:
        arrays = dict(arrays)
    if "images" not in arrays or set(arrays) - {"images", "labels"}:
        raise ValueError(
            "An .npz file must hold `images`, and may hold `labels`. "
            f"Received: {source!r} with {', '.join(sorted(arrays))}"
        )
    rows = rows_of_split(split, len(arrays["images"]))
    arrays = {name: array[rows] for name, array in arrays.items()}
    return dataset_from_arrays(**arrays, **kwargs)


def fingerprint(source, *, data_dir=None):
    """Tells which data these are, for the record of a run.

    Args:
        source: As in `open_dataset`.
        data_dir: As in `open_dataset`.

    Returns:
        Dictionary: `source`, with the version of a dataset of TFDS; and
        `sha256`, of an `.npz` file's content, or of the names and sizes of the
        files of a folder or dataset, in order.

    Example:

    ```python
    fingerprint("flowers.npz")  # {"source": "flowers.npz", "sha256": ...}
    ```
    """
    if isinstance(source, ImageFolder):
        name, directory, paths = (
            source.directory,
            source.directory,
            source.paths,
        )
    elif source.startswith("tfds:"):
        import tensorflow_datasets as tfds

        builder = tfds.builder(source.removeprefix("tfds:"), data_dir=data_dir)
        name = f"tfds:{builder.info.full_name}"
        directory = pathlib.Path(builder.data_dir)
        paths = sorted(path.name for path in directory.glob("*.*-of-*"))
    else:
        with pathlib.Path(source).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        return {"source": source, "sha256": digest.hexdigest()}
    digest = hashlib.sha256()
    for path in paths:
        digest.update(
            os.fsencode(path) + b"\0%d\0" % _bytes_of(directory, path)
        )
    return {"source": str(name), "sha256": digest.hexdigest()}


def _bytes_of(directory, path):
    try:  # For a million files: pathlib takes three times as long.
        return os.stat(f"{directory}/{path}").st_size  # noqa: PTH116
    except OSError:
        return 0  # Missing: what reads it will say so.


def _check_fills_a_batch(size, batch_size, drop_remainder, what):
    if (size < batch_size and drop_remainder) or size == 0:
        raise ValueError(
            "The images must fill at least one batch. Received: "
            f"{size} {what}, batch_size={batch_size}. Use a smaller batch."
        )


def _split_size(builder, split):
    try:
        return builder.info.splits[split].num_examples
    except (KeyError, ValueError):
        _checks.choice("split", split, tuple(builder.info.splits))
        raise


def unpack(element):
    """Names the parts of a dataset element.

    Args:
        element: `images`, `(images, labels)`, or a dictionary with `images`
            (or `view_1` and `view_2`) and optionally `labels`, `sizes` (of
            `images` on a canvas) and `groups` (of duplicates): tensors or
            their specs.

    Returns:
        Such a dictionary.

    Raises:
        ValueError: If the element has another form. Two tensors of the same
            shape are refused too: labels never have the shape of images.

    Example:

    >>> sorted(unpack((tf.zeros((4, 8, 8, 3)), tf.zeros(4))))
    ['images', 'labels']
    """
    element = tf.nest.map_structure(_as_tensor, element)
    if isinstance(element, dict):
        return _unpack_dictionary(element)
    if not isinstance(element, (tuple, list)):
        return {"images": element}
    parts = [part for part in element if part is not None]
    if len(parts) not in (1, 2) or isinstance(parts[0], (dict, tuple, list)):
        raise ValueError(
            "A dataset element must be `images`, `(images, labels)` or a "
            f"dictionary. Received: a tuple of {len(parts)} parts"
        )
    if len(parts) == 2:
        first, second = parts[0].shape, parts[1].shape
        if first.rank == second.rank and first.is_compatible_with(second):
            raise ValueError(
                "A dataset element of two parts is (images, labels). "
                f"Received: two parts of shape {first}. If they are two views, "
                "name them: dataset = dataset.map(lambda a, b: "
                "{'view_1': a, 'view_2': b})"
            )
    return dict(zip(("images", "labels"), parts, strict=False))


def in_order(images, *, batch_size=256):
    """Brings images to a dataset of batches, if they are none yet.

    Args:
        images: Array, `(images, labels)` arrays, a dictionary of arrays, or a
            `tf.data.Dataset` of batches, which stay as they are.
        batch_size: Images in a batch, for arrays.

    Returns:
        A `tf.data.Dataset` of all of them, as `prepared` returns it.

    Example:

    >>> len(in_order(np.zeros((10, 8, 8, 3)), batch_size=4))
    3
    """
    if isinstance(images, tf.data.Dataset):
        return prepared(images)
    parts = images if isinstance(images, tuple) else (images,)
    dataset = dataset_from_arrays(
        *parts, batch_size=batch_size, shuffle=False, drop_remainder=False
    )
    return prepared(dataset)


def in_order_with_labels(name, images):
    """As `in_order`, for images that must have labels.

    Args:
        name: What they are called in messages.
        images: As `in_order`.

    Returns:
        A `tf.data.Dataset`.

    Raises:
        ValueError: If labels are missing, or not one per image.

    Example:

    >>> images, labels = np.zeros((10, 8, 8, 3)), np.zeros(10)
    >>> len(in_order_with_labels("train", (images, labels)))
    1
    """
    dataset = in_order(images)
    labels = unpack(dataset.element_spec).get("labels")
    if labels is None:
        raise ValueError(
            f"`{name}` must hold labels: elements (images, labels). "
            "Received: images only"
        )
    columns = (None,), (None, 1)
    if not any(map(labels.shape.is_compatible_with, columns)):
        raise ValueError(
            f"`{name}` must hold one label per image. Received: labels of "
            f"shape {labels.shape}"
        )
    return dataset


def images_and_sizes(element):
    """The images of a dataset element, for use without training.

    Args:
        element: As `unpack`.

    Returns:
        Tensor of images, and tensor of their sizes or None.

    Raises:
        ValueError: If there are none.

    Example:

    >>> images, sizes = images_and_sizes((tf.zeros((4, 8, 8, 3)), tf.zeros(4)))
    >>> images.shape, sizes
    (TensorShape([4, 8, 8, 3]), None)
    """
    element = unpack(element)
    if "images" not in element:
        raise ValueError(
            "Without training, a dataset element needs `images`. Received: "
            f"{', '.join(sorted(element))}"
        )
    return element["images"], element.get("sizes")


def _as_tensor(part):
    return tf.convert_to_tensor(part) if hasattr(part, "__array__") else part


def _unpack_dictionary(element):
    unknown = sorted(set(element) - set(_KEYS))
    if unknown:
        raise ValueError(
            f"The keys of a dataset element are {', '.join(_KEYS)}. "
            f"Received: unknown {', '.join(map(repr, unknown))}"
        )
    views = [name for name in ("view_1", "view_2") if name in element]
    if len(views) == 1 or ("images" in element) == bool(views):
        raise ValueError(
            "A dataset element needs either `images`, or `view_1` and "
            f"`view_2`. Received: {', '.join(sorted(element)) or 'nothing'}"
        )
    if views and "sizes" in element:
        raise ValueError(
            "`sizes` belong to `images`; views fill their canvas. Received: "
            f"{', '.join(sorted(element))}"
        )
    return dict(element)


def fit_arguments(arguments, seed):
    """The arguments of `fit`, with datasets of whole batches for arrays.

    Args:
        arguments: Dictionary of the arguments of `keras.Model.fit`.
        seed: Integer that the orders of the images depend on.

    Returns:
        Dictionary of the same kind.

    Example:

    >>> images = np.zeros((8, 4, 4, 1))
    >>> len(fit_arguments({"x": images, "batch_size": 4}, seed=0)["x"])
    2
    """
    if not _is_arrays(arguments.get("x")):
        return arguments
    call = dict(arguments)
    arrays = call.pop("x"), call.pop("y", None)
    batch_size = call.pop("batch_size", None) or 32
    size = _length(arrays)
    held_out = int(size * call.pop("validation_split", 0.0))
    validation = call.get("validation_data")
    if validation is None and held_out:
        validation = _slice_of(arrays, slice(size - held_out, None))
        arrays = _slice_of(arrays, slice(size - held_out))
    if _is_arrays(validation):
        if not isinstance(validation, (tuple, list)):
            validation = (validation,)
        validation_size = call.pop("validation_batch_size", None) or batch_size
        call["validation_data"] = _whole_batches(
            validation, min(validation_size, _length(validation))
        )
    call["x"] = _whole_batches(
        arrays, batch_size, shuffle=call.get("shuffle", True), seed=seed
    )
    return call


def evaluate_arguments(arguments):
    """The arguments of `evaluate`, with a dataset for arrays.

    Args:
        arguments: Dictionary of the arguments of `keras.Model.evaluate`.

    Returns:
        Dictionary of the same kind.

    Example:

    >>> images = np.zeros((8, 4, 4, 1))
    >>> evaluate_arguments({"x": images})["x"].element_spec.shape
    TensorShape([8, 4, 4, 1])
    """
    if not _is_arrays(arguments.get("x")):
        return arguments
    call = dict(arguments)
    arrays = call.pop("x"), call.pop("y", None)
    batch_size = call.pop("batch_size", None) or 32
    call["x"] = _whole_batches(arrays, min(batch_size, _length(arrays)))
    return call


def one_iterator(x, steps_per_epoch=None, initial_epoch=0, **_):
    """The data of a `fit` that goes on after some epochs.

    Keras makes two iterators for each epoch of known length, each with an order
    of its own: here it is one for all of them.

    Args:
        x: Dataset, made anew.
        steps_per_epoch: As in `keras.Model.fit`.
        initial_epoch: The same.
        **_: Other arguments of `fit`.

    Returns:
        Dictionary of those arguments of `fit` that change.

    Example:

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


def _is_arrays(x):
    parts = [part for part in tf.nest.flatten(x) if part is not None]
    return bool(parts) and all(hasattr(part, "__array__") for part in parts)


def _whole_batches(arrays, batch_size, *, shuffle=False, seed=0):
    size = _length(arrays)
    remainder = size % batch_size
    if remainder and size > batch_size:
        others = ", others in each epoch" if shuffle else ""
        warnings.warn(
            f"{remainder} of {size} images do not fill a batch of {batch_size} "
            f"and are left out{others}.",
            stacklevel=5,
        )
    return dataset_from_arrays(
        *arrays, batch_size=batch_size, shuffle=shuffle, seed=seed
    )


def _length(arrays):
    return len(tf.nest.flatten(arrays)[0])


def _slice_of(arrays, rows):
    return tf.nest.map_structure(
        lambda array: None if array is None else array[rows], arrays
    )


def check_length(dataset, steps_per_epoch=None):
    """Refuses a dataset that is known to be empty, or to have no end.

    Args:
        dataset: A `tf.data.Dataset` of batches.
        steps_per_epoch: Batches in an epoch, or None for all.

    Raises:
        ValueError: If the dataset is empty, or infinite without
            `steps_per_epoch`.

    Example:

    >>> check_length(tf.data.Dataset.range(8).batch(4))
    """
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
    seconds then takes 5. Without it `AUTOTUNE` stands for one call per core,
    at most 16.

    Of several workers each reads everything and keeps its part of each batch:
    by files, as TensorFlow would have it, the batches would be others than
    those of one device.

    Args:
        dataset: A `tf.data.Dataset`.

    Returns:
        A `tf.data.Dataset` with the same elements.

    Example:

    >>> prepared(tf.data.Dataset.range(2)).options().autotune.enabled
    False
    """
    options = tf.data.Options()
    if dataset.options().autotune.enabled is None:
        options.autotune.enabled = False
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.DATA
    )
    return dataset.with_options(options)


def checked_elements(dataset):
    """The elements of a dataset of images, for use without training.

    Args:
        dataset: A `tf.data.Dataset` of batches.

    Yields:
        Dictionaries, as `unpack` returns them.

    Raises:
        ValueError: If values are unusable, or files cannot be read.

    Example:

    >>> dataset = tf.data.Dataset.from_tensors(tf.zeros((4, 8, 8, 3)))
    >>> [sorted(element) for element in checked_elements(dataset)]
    [['images']]
    """
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


def value_checks(batch, name, *, in_unit_range):
    """Operations that fail unless the values of a batch are usable.

    Args:
        batch: Tensor whose first axis is the batch.
        name: What the error message calls it.
        in_unit_range: Whether floats must lie in [0, 1], and not only be
            finite.

    Returns:
        List of operations for `tf.control_dependencies`. In eager mode they
        have run.

    Raises:
        tf.errors.InvalidArgumentError: When an operation fails.

    Example:

    >>> with tf.control_dependencies(
    ...     value_checks(tf.zeros((2, 8)), "images", in_unit_range=True)
    ... ):
    ...     pass
    """
    if not batch.dtype.is_floating:
        return []
    values = tf.reshape(batch, (tf.shape(batch)[0], -1))
    unusable = tf.reduce_any(~tf.math.is_finite(values), axis=1)
    checks = [
        _assert_no_row(
            unusable,
            f"Values of `{name}` must be finite. Received: NaN or infinity",
        )
    ]
    if in_unit_range:
        # Interpolation may overshoot by a rounding error.
        outside = tf.abs(values - 0.5) > 0.501
        outside = tf.reduce_any(outside & tf.math.is_finite(values), axis=1)
        checks.append(
            _assert_no_row(
                outside,
                f"Float values of `{name}` must lie in [0, 1]. If they are 0 "
                "to 255, add: dataset = dataset.map(lambda images, *labels: "
                "(images / 255.0, *labels)). Received: values from",
                tf.reduce_min(values),
                "to",
                tf.reduce_max(values),
            )
        )
    return checks


def _assert_no_row(is_bad, *text):
    rows = tf.where(is_bad)[:, 0]
    return check(~tf.reduce_any(is_bad), *text, "in rows", rows, "of the batch")


def check(condition, *text):
    """`tf.debugging.Assert` with one form of message in eager and graph mode.

    Args:
        condition: Scalar boolean tensor.
        *text: Strings and tensors that make up the message.

    Returns:
        An operation, or None in eager mode.

    Raises:
        tf.errors.InvalidArgumentError: If `condition` is false.

    Example:

    >>> check(tf.constant(True), "All is well")
    """
    if not tf.executing_eagerly():
        return tf.debugging.Assert(condition, text, summarize=_SHOWN)
    if not condition:
        parts = []
        for part in text:
            numbers = [] if isinstance(part, str) else np.ravel(part.numpy())
            more = "..." * (len(numbers) > _SHOWN)
            listing = " ".join(map(str, numbers[:_SHOWN])) + more
            parts.append(part if isinstance(part, str) else listing)
        message = f"assertion failed: [{'] ['.join(parts)}]"
        raise tf.errors.InvalidArgumentError(None, None, message)
    return None


def failed_check(error):
    """The message of a failed `check`, as a sentence.

    Args:
        error: A `tf.errors.InvalidArgumentError`.

    Returns:
        String, or None if the error is another.

    Example:

    >>> try:
    ...     check(tf.constant(False), "At least two. Received:", tf.constant(1))
    ... except tf.errors.InvalidArgumentError as error:
    ...     failed_check(error)
    'At least two. Received: 1'
    """
    message = re.search(r"assertion failed: \[(.*)\]", str(error))
    if message is None:
        return None
    text = message[1].replace("] [", " ")
    # TensorFlow escapes quotes as C does.
    text = text.encode().decode("unicode_escape").encode("latin-1", "replace")
    return text.decode(errors="replace")
