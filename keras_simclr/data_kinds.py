"""Which kind of examples data hold, by how they look."""

import collections
import csv
import os
import pathlib

from keras_simclr import _checks, _files, kinds, number_files
from keras_simclr.decoding import promised_format
from keras_simclr.folders import promised_sound

_PREFIXES = {"tar", "parquet", "tfds"}  # Of what holds images alone.
_CHOICES = "auto", "images", "audio", "series", "tables"
_PROMISES = {kinds.IMAGES: promised_format, kinds.AUDIO: promised_sound}


def kind_of_data(data, kind="auto"):
    """The kind of what `find_source` takes: as it is called, or as it looks.

    Args:
        data: As in `find_source`.
        kind: As in `find_source`.

    Returns:
        A `kinds.Kind`; images where nothing is, which others refuse.

    Raises:
        ValueError: If `kind` is none of these, or `data` holds images alone.

    Example:

    >>> str(kind_of_data("tfds:mnist")), str(kind_of_data("parquet:a.parquet"))
    ('images', 'images')
    """
    _checks.choice("kind", kind, _CHOICES)
    data = os.fspath(data)
    path, prefix = pathlib.Path(data), data.partition(":")[0]
    if prefix in _PREFIXES and not path.exists():
        if kind not in ("auto", "images"):
            raise ValueError(
                f"What {prefix}: names must be images. Received: kind={kind!r} "
                f"with data={data!r}. Name a folder or a file"
            )
        return kinds.IMAGES
    if kind != "auto":
        return kinds.named(kind)
    if path.is_dir():
        return _kind_of_folder(path)
    if path.suffix.lower() == ".csv" and path.is_file():
        return _kind_of_list(path)
    if path.suffix.lower() == ".parquet":
        return kinds.TABLES
    if path.suffix.lower() == ".npz" and path.is_file():
        return number_files.kind_of_arrays(path) or kinds.IMAGES
    return kinds.IMAGES


def _kind_of_folder(directory):
    """The kind of most files in a folder; the others are told as not read."""
    names = _files.walk(directory, lambda *_: None, lambda _: False)
    found = collections.Counter(
        kind
        for name in names
        for kind, promised in _PROMISES.items()
        if promised(name)
    )
    return max(_PROMISES, key=lambda kind: found[kind])


def _kind_of_list(path):
    """The kind of the files that a CSV file lists; of a table, that."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            names = [name.strip() for name in next(rows, ())]
            if "path" not in names:
                return kinds.TABLES
            first = dict(zip(names, next(rows, ()), strict=False))
    except (csv.Error, UnicodeDecodeError):
        return kinds.IMAGES  # What reads it says what is wrong.
    is_sound = promised_sound(first.get("path", "").strip())
    return kinds.AUDIO if is_sound else kinds.IMAGES


def check_are_images(name, value, kind):
    """Refuses examples that are no images, for a command of these alone.

    Args:
        name: Name of the argument.
        value: Its value.
        kind: `kinds.Kind` of what it holds.

    Raises:
        ValueError: If they are others.

    Example:

    >>> check_are_images("data", "tfds:mnist", simclr.kinds.IMAGES)
    """
    if kind is not kinds.IMAGES:
        raise ValueError(
            f"`{name}` must be of images: this is for no others yet. Received: "
            f"{name}={value!r}, of {kind.plural}"
        )


def kind_of_source(source):
    """The `kinds.Kind` of what `find_source` returned; of None, images."""
    return getattr(source, "kind", kinds.IMAGES)
