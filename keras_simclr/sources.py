"""Datasets from what people have: arrays, folders, TensorFlow Datasets."""

import contextlib
import difflib
import hashlib
import os
import pathlib

import numpy as np
import tensorflow as tf

from keras_simclr import _checks, _files
from keras_simclr._files import valid_names
from keras_simclr.decoding import SMALLEST_SIDE, fitted
from keras_simclr.folders import ImageFolder, parsed_split, rows_of_split
from keras_simclr.labelled import one_per_row
from keras_simclr.orders import batches_of, check_fills_a_batch, orders
from keras_simclr.scanning import are_parts

# Examples that wait, still encoded, to be drawn in random order.
_SHUFFLE_BUFFER = 16_384
_SHOWN = 10  # Classes that are listed.
_MOST_READ = 2**30  # Bytes of a folder that are read for its fingerprint.


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
    return batches_of(
        (images, labels),
        batch_size,
        shuffle=shuffle,
        seed=seed,
        drop_remainder=drop_remainder,
    )


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
    _checks.seed("seed", seed)
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
    check_fills_a_batch(split_size, batch_size, drop_remainder, what)
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

    Every JPEG, PNG or other image file (`decoding.FORMATS`) in it and its
    sub-folders is taken, hidden ones left out. Images of any size are put on a
    square canvas, made smaller where they are larger; the augmentation crops
    from them. Files that cannot be read are skipped and reported, up to a
    limit.

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
        `places`, int64 of shape `(batch_size,)`: those of the images in
        `ImageFolder.paths`, by which an image is known in every pass; `labels`,
        if the files are in sub-folders: the places of theirs in
        `ImageFolder.class_names`; `groups`, if a manifest knows of duplicates.
        The dataset has the list `class_names`, as those from
        `keras.utils.image_dataset_from_directory` have, by which `evaluate`,
        `fine_tune` and the probes tell classes.

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
    _checks.seed("seed", seed)
    folder = directory
    if not isinstance(folder, ImageFolder):
        folder = ImageFolder(directory)
    size = len(folder.paths)
    check_fills_a_batch(size, batch_size, drop_remainder, "images")
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
    tiled = orders(size, shuffle, seed).map(
        lambda order: tf.tile(order, [rounds])
    )
    images = folder.read(tiled, canvas_size)

    def element(place, image):
        others = {k: values[place] for k, values in rides_along.items()}
        return {**_with_size(image), "places": place, **others}

    dataset = _on_canvases(
        images.map(element), canvas_size, batch_size, drop_remainder
    )
    if drop_remainder:
        batches = size // batch_size
        dataset = dataset.take(batches).apply(
            tf.data.experimental.assert_cardinality(batches)
        )
    dataset = dataset.prefetch(tf.data.AUTOTUNE)
    dataset.class_names = list(folder.class_names)
    return dataset


def _with_size(image):
    return {"images": image, "sizes": tf.shape(image)[:2]}


def _on_canvases(dataset, canvas_size, batch_size, drop_remainder):
    """Batches of a dataset whose elements have images of any size."""
    shapes = {name: spec.shape for name, spec in dataset.element_spec.items()}
    shapes["images"] = (canvas_size, canvas_size, shapes["images"][2])
    return dataset.padded_batch(
        batch_size, shapes, drop_remainder=drop_remainder
    )


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


def in_words(source, split="train", *, data_dir=None):
    """What a source holds, in words: images and, where they are known, classes.

    Args:
        source: As in `open_dataset`.
        split: As in `open_dataset`.
        data_dir: As in `open_dataset`.

    Returns:
        String, such as `"5 images of 2 classes: cat (3), dog (2)"`.

    Example:

    ```python
    print(in_words(simclr.folders.ImageFolder("labelled")))
    ```
    """
    if isinstance(source, ImageFolder):
        size, labels = len(source.paths), source.labels
        names = source.class_names
    elif source.startswith("tfds:"):
        import tensorflow_datasets as tfds

        builder = tfds.builder(source.removeprefix("tfds:"), data_dir=data_dir)
        size, labels = _split_size(builder, split), None
        features = dict(builder.info.features.items())
        names = getattr(features.get("label"), "names", ())
    else:
        size, labels, names = *_size_and_labels(source, split), ()
    images = f"{size:,} image{'s' * (size != 1)}"
    tops = {path.partition("/")[0] for path in getattr(source, "paths", ())}
    if labels is None and tops and are_parts(tops):
        example = str(source.directory / min(tops))
        example, *parts = valid_names([example, *sorted(tops)])
        return (
            f"{images} in {', '.join(parts)}: parts of a data set, no classes. "
            f"Take one, such as {example}"
        )
    return images + _classes_in_words(labels, names)


def _size_and_labels(path, split):
    """Number of images of an .npz file's split, and their labels or None."""
    with np.load(path) as arrays:
        # Of the images the header is enough: they may be many.
        name = "labels" if "labels" in arrays.files else "images"
        with arrays.zip.open(f"{name}.npy") as file:
            np.lib.format.read_magic(file)
            (size, *_), *_ = np.lib.format.read_array_header_1_0(file)
        labels = arrays["labels"] if name == "labels" else None
    rows = rows_of_split(split, size)
    return len(range(size)[rows]), None if labels is None else labels[rows]


def _classes_in_words(labels, names):
    """Classes that have names, or labels, or both."""
    if labels is None:
        found = list(names)
    else:
        labels = one_per_row(labels)
        if labels.ndim != 1:
            return ""
        if labels.dtype.kind in "if":  # A negative one means: none.
            labels = labels[labels >= 0]
        classes, sizes = np.unique(labels, return_counts=True)
        found = [
            f"{names[x] if len(names) else x} ({size:,})"
            for x, size in zip(classes.tolist(), sizes, strict=True)
        ]
    if not found:
        return ", no classes"
    more = ", ..." * (len(found) > _SHOWN)
    listing = ", ".join(valid_names(found[:_SHOWN]))
    classes = "classes" if len(found) > 1 else "class"
    return f" of {len(found):,} {classes}: {listing}{more}"


def own_test_split(source, *, data_dir=None):
    """The split to test on that a source has of itself, or None.

    Args:
        source: As in `open_dataset`.
        data_dir: As in `open_dataset`.

    Returns:
        `"test"`, where TFDS has such a split; else None.
    """
    name = str(source).removeprefix("tfds:")
    if name == str(source):
        return None
    import tensorflow_datasets as tfds

    splits = tfds.builder(name, data_dir=data_dir).info.splits
    return "test" if "test" in splits else None


def fingerprint(source, *, data_dir=None):
    """Tells which data these are, for the record of a run.

    Args:
        source: As in `open_dataset`.
        data_dir: As in `open_dataset`.

    Returns:
        Dictionary: `source`, with the version of a dataset of TFDS; and
        `sha256`, of an `.npz` file's content, or of the names and sizes of the
        files of a folder or dataset, in order. Of a folder also the number of
        `files` and, up to a gigabyte in all, the SHA-256 of their `content`.

    Example:

    ```python
    fingerprint("flowers.npz")  # {"source": "flowers.npz", "sha256": ...}
    ```
    """
    if isinstance(source, ImageFolder):
        return _fingerprint_of_folder(source.directory, source.paths)
    if source.startswith("tfds:"):
        import tensorflow_datasets as tfds

        builder = tfds.builder(source.removeprefix("tfds:"), data_dir=data_dir)
        directory = pathlib.Path(builder.data_dir)
        paths = sorted(path.name for path in directory.glob("*.*-of-*"))
        digest, _ = _names_and_sizes(directory, paths)
        return {"source": f"tfds:{builder.info.full_name}", "sha256": digest}
    with pathlib.Path(source).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return {"source": source, "sha256": digest.hexdigest()}


def _fingerprint_of_folder(directory, paths):
    digest, size = _names_and_sizes(directory, paths)
    found = {"source": str(directory), "sha256": digest, "files": len(paths)}
    if size <= _MOST_READ:
        found["content"] = _content(directory, paths)
    return found


def _names_and_sizes(directory, paths):
    """Their digest, and the bytes in all."""
    digest, total = hashlib.sha256(), 0
    for path in paths:
        size = _bytes_of(directory, path)
        digest.update(os.fsencode(path) + b"\0%d\0" % size)
        total += size
    return digest.hexdigest(), total


def _content(directory, paths):
    """The digest of what is in files; of none where one cannot be read."""
    digest = hashlib.sha256()
    for path in paths:
        with (
            contextlib.suppress(OSError),  # What reads it will say so.
            pathlib.Path(directory, path).open("rb") as file,
        ):
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _bytes_of(directory, path):
    # Joined as text, for a million files: pathlib takes three times as long.
    size, _ = _files.state(f"{directory}/{path}") or (0, None)
    return size  # Of what is missing 0: what reads it will say so.


def _split_size(builder, split):
    splits = tuple(builder.info.splits)
    try:
        return builder.info.splits[split].num_examples
    except (KeyError, ValueError):
        if split.split("[")[0] not in splits:
            _checks.choice("split", split, splits)
        parsed_split(split)
        raise
