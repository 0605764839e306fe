"""Splits: parts of a data set, in the notation of TensorFlow Datasets."""

import hashlib
import os
import re

import numpy as np

from keras_simclr import _checks

_SHARES = 1 << 52  # In so many parts files are divided by their names.
_BOUND = r"(?:(-?[\d_.]+)(%|shard)?)?"
_PART = re.compile(rf"([\w-]+)(?:\[{_BOUND}:{_BOUND}\])?")


def places_of_split(split, paths, groups=None):
    """Places of the files of a split, by a function of each file's path.

    Args:
        split: `"train"`, or a part of it in TFDS's notation.
        paths: List of paths relative to the folder.
        groups: Integers, equal for duplicates, which all go where the first of
            them goes; or None.

    Returns:
        Sorted int64 array.

    Raises:
        ValueError: If there is no such split, or nothing in it.

    Example:

    >>> paths = [f"{number}.png" for number in range(10)]
    >>> places_of_split("train[:50%]", paths)
    array([0, 1, 2, 3, 8])
    >>> places_of_split("train[:50%]", paths[1:]) + 1
    array([1, 2, 3, 8])
    """
    turns = np.array([_share_of_name(path) for path in paths])
    if groups is not None:
        _, firsts, numbers = np.unique(
            groups, return_index=True, return_inverse=True
        )
        turns = turns[firsts][numbers]
    part = rows_of_split(split, len(paths))
    if "%" in split:
        part = rows_of_split(split, _SHARES)
    else:
        turns = np.searchsorted(np.sort(turns), turns)
    places = np.flatnonzero((part.start <= turns) & (turns < part.stop))
    if not len(places):
        raise ValueError(
            f"`split` must hold at least one of {len(paths)} images. "
            f"Received: split={split!r}, into which none falls by its name"
        )
    return places


def _share_of_name(path):
    digest = hashlib.blake2b(os.fsencode(path), digest_size=8).digest()
    return int.from_bytes(digest) % _SHARES


def rows_of_split(split, size):
    """Places of a split's images among those of a file or folder.

    Args:
        split: `"train"`, or a part of it in TFDS's notation.
        size: Number of images.

    Returns:
        A slice.

    Raises:
        ValueError: If there is no such split.

    Example:

    >>> rows_of_split("train[:90%]", 50)
    slice(0, 45, None)
    """
    name = re.split(r"[\[+]", split)[0].strip()
    _checks.choice("split", name, ("train",))
    parts = [_PART.fullmatch(part.strip()) for part in split.split("+")]
    if not all(parts) or (len(parts) == 1 and split.endswith("[:]")):
        _refuse(split)
    (_, *bounds), *others = (part.groups() for part in parts)
    first, unit, last, last_unit = bounds
    unit = unit or last_unit
    if others or unit == "shard":
        _refuse_part(split, size)
    read = float if unit == "%" else int
    try:
        first, last = (x and read(x) for x in (first, last))
    except ValueError:
        _refuse(split)
    if unit == "%":
        if max(abs(first or 0), abs(last or 0)) > 100:
            _refuse(split)
        first, last = (
            None if x is None else round(x * size / 100.0)
            for x in (first, last)
        )
    if max(abs(first or 0), abs(last or 0)) > size:
        _refuse_part(split, size)
    first, last, _ = slice(first, last).indices(size)
    return slice(first, last)


def _refuse(split):
    raise ValueError(
        "`split` must be a split in TFDS's notation, such as 'train[:90%]'. "
        f"Received: split={split!r}"
    )


def _refuse_part(split, size):
    raise ValueError(
        f"`split` must be one part of {size} images, such as 'train[:90%]'. "
        f"Received: split={split!r}"
    )
