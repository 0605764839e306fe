"""Datasets from what people have: arrays, folders, TensorFlow Datasets."""

import os
import pathlib

import tensorflow as tf

from keras_simclr import (
    _checks,
    array_files,
    kinds,
    number_files,
    scanning,
)
from keras_simclr.data_kinds import kind_of_data, kind_of_source
from keras_simclr.decoding import (
    SMALLEST_SIDE,
    converted,
    fitted,
)
from keras_simclr.folders import EncodedImages, ImageFolder
from keras_simclr.lists import ImageList
from keras_simclr.orders import (
    batches_of,
    check_fills_a_batch,
    in_order_of_places,
    orders,
)
from keras_simclr.shards import ParquetShards, TarShards
from keras_simclr.sounds import SoundFolder, SoundList
from keras_simclr.source_words import (
    classes_in_words,
    not_read_in_words,
    parts_in_words,
)
from keras_simclr.splits import rows_of_split
from keras_simclr.tfds_builders import (
    builder_of,
    check_can_prepare,
    split_size,
)
from keras_simclr.windows import windows_of_all

# Examples that wait, still encoded, to be drawn in random order.
_SHUFFLE_BUFFER = 16_384
# Without it, errors become excerpts of our source code.
_plainly = tf.autograph.experimental.do_not_convert


def dataset_from_arrays(
    images,
    labels=None,
    *,
    window=None,
    stride=None,
    batch_size=256,
    shuffle=True,
    seed=0,
    drop_remainder=True,
):
    """Dataset of batches from arrays in memory.

    Args:
        images: Array of shape `(N, ...)`, or a dictionary of such arrays. With
            `window`, recordings of series: a list of arrays `(time, channels)`
            of any length, or an array `(N, time, channels)`.
        labels: Array of shape `(N,)`, or None. Of recordings also a list of
            arrays `(time,)`: a window has the most frequent of its steps.
        window: Steps of the windows that recordings are cut into; those with
            gaps (NaN) are left out. None: nothing is cut. Windows overlap:
            divide recordings into those to train and to test on, not windows.
        stride: Steps from one window to the next; None for half a window.
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
    if window is not None:
        images, labels, _ = windows_of_all(images, labels, window, stride)
    elif stride is not None:
        raise ValueError(
            "`stride` is that of windows: tell `window`, too. Received: "
            f"stride={stride!r}"
        )
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
    channels=None,
    bits=8,
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
        channels: 1 or 3, to which grey or RGB is converted; None for those
            that the images have.
        bits: As `decoding.decode`.
        batch_size: Images in a batch.
        shuffle: Whether every epoch has another random order.
        seed: Integer the orders depend on, beside that which
            `keras.utils.set_random_seed` sets.
        drop_remainder: Whether the images that do not fill a batch wait for
            the next epoch.

    Returns:
        A `tf.data.Dataset` of `(images, labels)`, or of `images` if TFDS has no
        label; of dictionaries, as from `dataset_from_directory`, if the images
        are not all of one size. Images are uint8, or float32 for 16 bits.

    Raises:
        OSError: If it is not prepared, and what to download is out of reach.
        ValueError: If TFDS has no such dataset or split, the split does not
            fill a batch, or the images have other channels.

    Example:

    ```python
    dataset = dataset_from_tfds("cifar10", "train")
    model.fit(dataset, epochs=100)
    ```
    """
    import tensorflow_datasets as tfds

    _checks.integer("batch_size", batch_size, minimum=1)
    _checks.seed("seed", seed)
    builder = builder_of(name, data_dir)
    features = builder.info.features
    if "image" not in features:
        raise ValueError(
            "The dataset needs a feature `image`. Received: "
            f"name={name!r} with features {sorted(features)}"
        )
    check_can_prepare(builder, name)
    builder.download_and_prepare()
    size = split_size(builder, split)
    what = f"images in split={split!r}"
    check_fills_a_batch(size, batch_size, drop_remainder, what)
    dataset = builder.as_dataset(
        split=split,
        shuffle_files=shuffle,
        read_config=tfds.ReadConfig(shuffle_seed=seed),
        decoders={"image": tfds.decode.SkipDecoding()},
    )
    if shuffle:
        dataset = dataset.shuffle(min(size, _SHUFFLE_BUFFER), seed=seed)

    # Whose errors would be tracebacks.
    @_plainly
    def decode(example):
        image = features["image"].decode_example(example["image"])
        image = converted(image, channels, bits)
        if None not in image.shape:
            return (image, example["label"]) if "label" in example else image
        element = _with_size(fitted(image, canvas_size))
        if "label" in example:
            element["labels"] = example["label"]
        return element

    dataset = dataset.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    if isinstance(dataset.element_spec, dict):
        canvas = canvas_size, canvas_size
        dataset = _on_canvases(dataset, canvas, batch_size, drop_remainder)
    else:
        dataset = dataset.batch(batch_size, drop_remainder=drop_remainder)
    return dataset.prefetch(tf.data.AUTOTUNE)


def dataset_from_directory(
    directory,
    *,
    kind="images",
    canvas_size=512,
    channels=3,
    bits=8,
    rate=16_000,
    seconds=5.0,
    batch_size=256,
    shuffle=True,
    seed=0,
    drop_remainder=True,
):
    """Dataset of batches from the image or sound files in a folder.

    Every JPEG, PNG or other image file (`decoding.FORMATS`) in it and its
    sub-folders is taken, hidden ones left out. Images of any size are put on a
    square canvas, made smaller where they are larger; the augmentation crops
    from them. Files that cannot be read are skipped and reported, up to a
    limit. Sounds are WAV, FLAC, OGG and MP3, of any length, rate and channels.

    Args:
        directory: Path of the folder; or a `folders.ImageFolder`, which takes
            a manifest, a part of the images, and the limit; or other
            `folders.EncodedImages`: a `lists.ImageList`, `shards.TarShards` or
            `shards.ParquetShards`, a `sounds.SoundFolder` or
            `sounds.SoundList`.
        kind: `"images"`, or `"audio"`: what is looked for in a path. For
            sounds, `canvas_size`, `channels` and `bits` mean nothing.
        canvas_size: Height and width of the canvas, pixels. With at least
            `image_size / sqrt(scale[0])` of the augmentation, no crop of a
            large image has to be enlarged.
        channels: 3 for RGB, 1 for grey, or the number that TIFF files have;
            files with others are skipped and reported.
        bits: 8; or 16 for floats, in which nothing is lost of files of 16 bits.
            They take four times the memory.
        rate: Samples in a second that sounds are resampled to.
        seconds: The most that is read of a sound: its middle.
        batch_size: Images in a batch.
        shuffle: Whether every epoch has another random order, a function of
            `seed` and the epoch. If not, the order is that of the paths.
        seed: Integer the orders depend on.
        drop_remainder: Whether the images that do not fill a batch wait for
            the next epoch. An epoch then has as many batches as if all files
            were readable: some images come twice in place of those that are
            not.

    Returns:
        A `tf.data.Dataset` of dictionaries: `images`, uint8 (float32 in [0, 1]
        for 16 bits) of shape
        `(batch_size, canvas_size, canvas_size, channels)`; `sizes`, int32 of
        shape `(batch_size, 2)`, height and width of the image at the upper
        left (of sounds float32 `(batch_size, samples)`, and `(batch_size, 1)`);
        `places`, int64 of shape `(batch_size,)`: those of the images in
        `EncodedImages.paths`, by which an image is known in every pass;
        `labels`, if they are known: of files in sub-folders, the places of
        theirs in `class_names`; `groups`, if a manifest knows of duplicates.
        The dataset has the list `class_names`, as those from
        `keras.utils.image_dataset_from_directory` have, by which `evaluate`,
        `fine_tune` and the probes tell classes; and, as `source`, the
        `folders.EncodedImages`, by which `evaluate` knows whose the rows of a
        table are.

    Raises:
        ImportError: If sounds are read, and soundfile is not installed.
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
    _checks.integer("channels", channels, minimum=1)
    _checks.choice("bits", bits, (8, 16))
    _checks.integer("batch_size", batch_size, minimum=1)
    _checks.seed("seed", seed)
    _checks.choice("kind", kind, [x.name for x in _FOLDERS])
    folder = directory
    if not isinstance(folder, EncodedImages):
        options = {"rate": rate, "seconds": seconds} if kind == "audio" else {}
        folder = _FOLDERS[kinds.named(kind)](directory, **options)
    size = len(folder.paths)
    check_fills_a_batch(size, batch_size, drop_remainder, folder.kind.plural)
    rides_along = {
        name: tf.constant(values)
        for name, values in (
            ("labels", folder.labels),
            ("groups", folder.groups),
        )
        if values is not None
    }

    canvas = folder.canvas(canvas_size)
    # Once more, for what is missing where files are unreadable.
    rounds = 2 if drop_remainder else 1
    places = orders(size, shuffle, seed, rounds)
    images = folder.read(places, canvas[0], channels, bits)

    def element(place, image):
        others = {k: values[place] for k, values in rides_along.items()}
        return {**_with_size(image), "places": place, **others}

    dataset = _on_canvases(
        images.map(element), canvas, batch_size, drop_remainder
    )
    if drop_remainder:
        batches = size // batch_size
        dataset = dataset.take(batches).apply(
            tf.data.experimental.assert_cardinality(batches)
        )
    dataset = dataset.prefetch(tf.data.AUTOTUNE)
    dataset.class_names, dataset.source = list(folder.class_names), folder
    return in_order_of_places(dataset, batch_size)


def _with_size(image):
    return {"images": image, "sizes": tf.shape(image)[:2]}


def _on_canvases(dataset, canvas, batch_size, drop_remainder):
    """Batches of images of any size; `canvas` is their shape, less channels."""
    shapes = {name: spec.shape for name, spec in dataset.element_spec.items()}
    shapes["images"] = (*canvas, *shapes["images"][len(canvas) :])
    return dataset.padded_batch(
        batch_size, shapes, drop_remainder=drop_remainder
    )


def find_source(
    data,
    split="train",
    *,
    kind="auto",
    manifest=None,
    data_dir=None,
    unreadable_limit=0.01,
    **reading,
):
    """What the command line calls `--data`, found and listed.

    Args:
        data: Path of a folder, of an .npz or .npy file, of a .csv file that
            lists files, or of a table, .csv or .parquet; `"tar:PATTERN"`,
            `"parquet:PATTERN"`; or `"tfds:NAME[/CONFIG]"`.
        split: Split in TFDS's notation, such as `"train[:90%]"`. Files have
            one split, `train`; encoded images are divided by their names.
        kind: Name of a `kinds.Kind`, or `"auto"` for what the data look like.
        manifest: As `folders.EncodedImages`.
        data_dir: Directory of the prepared TFDS datasets.
        unreadable_limit: As `folders.EncodedImages`.
        **reading: `rate` and `seconds`, as of `sounds.SoundFolder`; `window`,
            `stride`, `label` and `columns`, as of `number_files.NumberFile`.
            None is their default; other kinds leave them alone.

    Returns:
        `folders.EncodedImages`, those of sounds among them;
        `number_files.NumberFile`; or `data`, if it is a dataset of TFDS or a
        file of images as arrays.

    Raises:
        OSError: If it is not there, or may not be read.
        ValueError: If `data` has another form, or is given with what has no
            meaning for it; or if it holds both images and sounds.

    Example:

    ```python
    source = find_source("tar:train-{000..009}.tar", "train[:90%]")
    ```
    """
    data = os.fspath(data)
    prefix, _, pattern = data.partition(":")
    is_tfds = prefix == "tfds" and not pathlib.Path(data).exists()
    if data_dir is not None and not is_tfds:
        raise ValueError(
            "`data_dir` is where datasets of TFDS are: leave it out. Received: "
            f"data_dir={data_dir!r} with data={data!r}"
        )
    options = {
        "manifest": manifest,
        "split": split,
        "unreadable_limit": unreadable_limit,
    }
    what = kind_of_data(data, kind)
    if prefix in _SHARDS:
        return _SHARDS[prefix](pattern, **options)
    if what is kinds.AUDIO:
        names = [x for x in ("rate", "seconds") if reading.get(x)]
        options |= {name: reading[name] for name in names}
    if pathlib.Path(data).is_dir() and what in _FOLDERS:
        return _FOLDERS[what](data, **options)
    if data.lower().endswith(".csv") and what in _LISTS:
        return _LISTS[what](data, **options)
    is_array_file = array_files.is_array_file(data)
    is_table = data.lower().endswith((".csv", ".parquet"))
    if not (is_tfds or is_array_file or is_table):
        if what in _TABLES and pathlib.Path(data).is_dir():
            raise ValueError(
                f"`data` of {what.plural} must be one file, PATH.csv, "
                f"PATH.parquet or PATH.npz. Received: a folder, data={data!r}"
            )
        suffix = pathlib.Path(data).suffix[1:]
        hint = f". Write {suffix}:{data}" if suffix in _SHARDS else ""
        raise ValueError(
            "`data` must be an existing folder of files, PATH.npz, PATH.npy, "
            "PATH.csv, PATH.parquet, tar:PATTERN, parquet:PATTERN or "
            f"tfds:NAME[/CONFIG]. Received: data={data!r}{hint}"
        )
    if manifest is not None:
        raise ValueError(
            "`manifest` is of image files: leave it out. Received: "
            f"manifest={manifest!r} with data={data!r}. Take rows that it "
            "finds unusable out of the arrays"
        )
    if what is kinds.IMAGES:
        return data
    reading.pop("seconds", None)
    return number_files.NumberFile(data, what, split=split, **reading)


_FOLDERS = {kinds.IMAGES: ImageFolder, kinds.AUDIO: SoundFolder}
_LISTS = {kinds.IMAGES: ImageList, kinds.AUDIO: SoundList}
_TABLES = kinds.SERIES, kinds.TABLES
_SHARDS = {"tar": TarShards, "parquet": ParquetShards}


def open_dataset(
    source,
    split="train",
    *,
    data_dir=None,
    canvas_size=512,
    channels=None,
    bits=8,
    **kwargs,
):
    """Dataset of batches from what `find_source` returns.

    Args:
        source: What `find_source` takes, or returns.
        split: As in `find_source`. Encoded images are divided already.
        data_dir: Directory of the prepared TFDS datasets.
        canvas_size: As in `dataset_from_directory`.
        channels: As in `dataset_from_directory`, by default 3; of others than
            folders as in `dataset_from_tfds`.
        bits: As in `dataset_from_directory`.
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
    if isinstance(source, (str, os.PathLike)):
        source = find_source(source, split)
    if isinstance(source, EncodedImages):
        return dataset_from_directory(
            source,
            canvas_size=canvas_size,
            channels=channels or 3,
            bits=bits,
            **kwargs,
        )
    if isinstance(source, number_files.NumberFile):
        return _dataset_of_numbers(source, **kwargs)
    if source.startswith("tfds:"):
        name = source.removeprefix("tfds:")
        return dataset_from_tfds(
            name,
            split,
            data_dir=data_dir,
            canvas_size=canvas_size,
            channels=channels,
            bits=bits,
            **kwargs,
        )
    arrays = array_files.load_arrays(source)
    rows = rows_of_split(split, len(arrays["images"]))
    arrays = {name: array[rows] for name, array in arrays.items()}
    dataset = dataset_from_arrays(**arrays, **kwargs)
    if channels is None and bits == 8:
        return dataset

    @_plainly
    def convert(images, *labels):
        if images.shape.rank == 4:
            images = converted(images, channels, bits)
        return (images, *labels) if labels else images

    return in_order_of_places(dataset.map(convert))


def _dataset_of_numbers(
    source, *, batch_size=256, shuffle=True, drop_remainder=True, **kwargs
):
    """Batches of a `NumberFile`; in order with the recordings as `groups`.

    So those who test on some of them divide none. In training windows of one
    recording are each other's negatives.
    """
    what = source.kind.plural
    check_fills_a_batch(len(source), batch_size, drop_remainder, what)
    arrays = {"images": source.images}
    if source.labels is not None:
        arrays["labels"] = source.labels
    if source.recordings is not None and not shuffle:
        arrays["groups"] = source.recordings
    dataset = dataset_from_arrays(
        arrays,
        batch_size=batch_size,
        shuffle=shuffle,
        drop_remainder=drop_remainder,
        **kwargs,
    )
    dataset.class_names, dataset.source = list(source.class_names), source
    return dataset


def scan_source(data, manifest, *, kind="auto", progress=None):
    """As `scanning.scan`, for what `find_source` takes, except TFDS.

    Args:
        data: As in `find_source`.
        manifest: Path of the manifest to write. Of sounds, `width` is the
            number of samples, and `height` how many make a second.
        kind: As in `find_source`.
        progress: As `scanning.scan`.

    Returns:
        `scanning.Scan`.

    Raises:
        OSError: As `find_source`.
        ValueError: As `find_source`; or if it is a dataset of TFDS.

    Example:

    ```python
    print(scan_source("tar:train-{000..009}.tar", "train.parquet"))
    ```
    """
    what = kind_of_data(data, kind)
    if pathlib.Path(data).is_dir() and what is kinds.IMAGES:
        return scanning.scan(data, manifest, progress=progress)
    is_array_file = array_files.is_array_file(data)
    if what in _TABLES or (what is kinds.AUDIO and is_array_file):
        raise ValueError(
            f"`data` must be files: {what.plural} are checked when they are "
            f"read. Received: data={data!r}"
        )
    source = find_source(data, kind=what.name)
    if isinstance(source, EncodedImages):
        return scanning.scan_images(source, manifest, progress=progress)
    if source.startswith("tfds:"):
        raise ValueError(
            "`data` must be files: what TFDS prepared was read then. "
            f"Received: data={data!r}"
        )
    return array_files.scan_arrays(source, manifest, progress=progress)


def count_images(source, split="train", *, data_dir=None):
    """How many images a source holds.

    Args:
        source: As in `open_dataset`.
        split: As in `open_dataset`.
        data_dir: As in `open_dataset`.

    Returns:
        Integer; of images that cannot be read, too.

    Example:

    ```python
    print(count_images("flowers.npz", "train[:10%]"))
    ```
    """
    if isinstance(source, EncodedImages):
        return len(source.paths)
    if isinstance(source, number_files.NumberFile):
        return len(source)
    if source.startswith("tfds:"):
        builder = builder_of(source.removeprefix("tfds:"), data_dir)
        return split_size(builder, split)
    images = array_files.load_arrays(source)["images"]
    return len(images[rows_of_split(split, len(images))])


def in_words(source, split="train", *, data_dir=None):
    """What a source holds, in words: images and, where they are known, classes.

    Args:
        source: As in `open_dataset`.
        split: As in `open_dataset`.
        data_dir: As in `open_dataset`.

    Returns:
        String, such as `"5 images of 2 classes: cat (3), dog (2)"`; and, in a
        second sentence, what other files are not read.

    Example:

    ```python
    print(in_words(simclr.folders.ImageFolder("labelled")))
    ```
    """
    kind, notes = kind_of_source(source), ""
    what, several = kind.example, kind.plural
    if isinstance(source, EncodedImages):
        size, labels = len(source.paths), source.labels
        names = source.class_names
    elif isinstance(source, number_files.NumberFile):
        size, labels, names = len(source), source.labels, source.class_names
        notes = "".join(f". Left out: {note}" for note in source.notes)
    elif source.startswith("tfds:"):
        builder = builder_of(source.removeprefix("tfds:"), data_dir)
        size, labels = split_size(builder, split), None
        features = dict(builder.info.features.items())
        names = getattr(features.get("label"), "names", ())
    else:
        arrays = array_files.load_arrays(source)
        rows = rows_of_split(split, len(arrays["images"]))
        images, labels, names = arrays["images"][rows], arrays.get("labels"), ()
        size, labels = len(images), None if labels is None else labels[rows]
        if images.shape[3] == 1:
            what, several = "grey image", "grey images"
    images = f"{size:,} {what if size == 1 else several}"
    return (
        images
        + (parts_in_words(source) or classes_in_words(labels, names))
        + not_read_in_words(getattr(source, "not_read", {}))
        + notes
    )


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
    splits = builder_of(name, data_dir).info.splits
    return "test" if "test" in splits else None
