"""Which kind of examples data hold, by how they look."""

import collections
import csv
import pathlib

from keras_simclr import _files, kinds, number_files
from keras_simclr.decoding import promised_format
from keras_simclr.folders import promised_sound

_PROMISES = {kinds.IMAGES: promised_format, kinds.AUDIO: promised_sound}


def kind_of_data(data, kind="auto"):
    """The kind of what `find_source` takes: as it is called, or as it looks.

    Args:
        data: As in `find_source`.
        kind: As in `find_source`.

    Returns:
        A `kinds.Kind`; images where nothing is, which others refuse.

    Example:

    >>> str(kind_of_data("tfds:mnist"))
    'images'
    """
    if kind != "auto":
        return kinds.named(kind)
    path = pathlib.Path(data)
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


def kind_of_source(source):
    """The `kinds.Kind` of what `find_source` returned; of None, images."""
    return getattr(source, "kind", kinds.IMAGES)
