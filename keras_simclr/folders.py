"""Images in a directory: finding them, reading them, skipping some."""

import contextlib
import functools
import hashlib
import logging
import os
import pathlib
import types

import numpy as np
import tensorflow as tf

from keras_simclr import _checks, _files
from keras_simclr.decoding import (
    FORMATS,
    HEAD,
    decode,
    format_of,
    is_candidate,
    promised_format,
)
from keras_simclr.elements import fail
from keras_simclr.scanning import (
    class_labels,
    duplicate_groups,
    examine,
    read_manifest,
)

_logger = logging.getLogger("keras_simclr")

_SHOWN = 10  # Files that an error message lists.
_END = -1  # In place of a place, after all others.
# Files that are compared when a folder without a manifest is split: half a
# minute for photographs of 500 pixels on two cores.
_MOST_TO_COMPARE = 5_000
_SHARES = 1 << 52  # In so many parts files are divided by their names.


def find_images(directory):
    """Lists the images in a directory and its sub-directories.

    An image is a regular file with one of `decoding.EXTENSIONS` (in any
    case), or one without extension that begins as an image does: no others
    are opened (`decoding.is_candidate`). Hidden files and directories are left
    out; links are followed, but no directory is visited twice. Links to
    nothing are left out too: `scan` reports them.

    Args:
        directory: Path.

    Returns:
        Sorted list of paths relative to `directory`, as text with `/`. Names
        that are not valid UTF-8 are kept as `os.fsdecode` writes them.

    Raises:
        FileNotFoundError: If there is no such directory.
        NotADirectoryError: If it is a file.
        PermissionError: If it, or a sub-directory, cannot be read: images
            that are silently missing would be worse.
        ValueError: If it holds no image.

    Example:

    >>> from sklearn import datasets
    >>> find_images(datasets.__path__[0])
    ['images/china.jpg', 'images/flower.jpg']
    """
    directory = _files.readable_directory(directory)
    files = list(_files.walk(directory, _raise_if_folder, promised_format))
    images = sorted(path for path in files if _is_image(directory, path))
    if not images:
        raise ValueError(
            f"`directory` must hold images ({', '.join(FORMATS)}). "
            f"Received: directory={directory!r} with {len(files)} other files"
        )
    return images


def _is_image(directory, path):
    """By its extension or, if it has none, by its first bytes."""
    if promised_format(path) or not is_candidate(path):
        return promised_format(path) is not None
    with (
        contextlib.suppress(OSError),
        pathlib.Path(directory, path).open("rb") as file,
    ):
        return format_of(file.read(HEAD)) is not None
    return False


def _raise_if_folder(path, kind, error):
    if kind == "unreadable folder":
        raise type(error)(
            "Every sub-directory must be readable, or its images would "
            f"silently be missing. Received: {path!r} ({error.strerror}). "
            "Make it so, with chmod +rx, or move it elsewhere"
        )


class ImageFolder:
    """The image files of a folder, or a part of them.

    Args:
        directory: Path of the folder.
        manifest: Path of its manifest, which `scan` wrote, or None. With it,
            files with problems are left out beforehand, and duplicates of an
            image are not its negatives.
        split: `"train"`, all images, or a part of them in TFDS's notation.
            Each file has a random share, a function of its path alone, and
            duplicates have that of the first of them. `"train[:90%]"` are the
            files with less than 90 %, whatever others there are, and so only
            about that many; `"train[:100]"` are those with the smallest.
        unreadable_limit: Share of the files that may be unreadable, 0 to 1.
            With more, reading stops with a list of them.

    Attributes:
        paths: List of paths relative to the folder, sorted.
        labels: int64 array, the place of each file's sub-folder in
            `class_names`; or None if files lie beside the sub-folders, there
            are fewer than two of them, or they are parts, such as `train` and
            `val`.
        class_names: Tuple of the names of the sub-folders, or empty.
        groups: int64 array, equal for duplicates; or None if there are none,
            or no manifest.
        largest: Longest side of an image, pixels; infinite without a manifest.
        left_out: Dictionary from the paths of files that the manifest finds
            unusable to the reason.
        skipped: The same of files that could not be read, so far.

    Raises:
        OSError: If there is no such folder, or it may not be read.
        ValueError: If it holds no image, or `split` is another or empty.

    Example:

    ```python
    folder = simclr.folders.ImageFolder("photos", split="train[:90%]")
    dataset = simclr.dataset_from_directory(folder)
    ```
    """

    def __init__(
        self,
        directory,
        *,
        manifest=None,
        split="train",
        unreadable_limit=0.01,
    ):
        self.directory = pathlib.Path(directory)
        self.unreadable_limit = _checks.probability(
            "unreadable_limit", unreadable_limit
        )
        self.groups, self.largest = None, float("inf")
        self.left_out, self.skipped = {}, {}
        if manifest is None:
            self.paths = find_images(directory)
        else:
            listed = read_manifest(manifest)
            self.paths, self.groups = listed.paths, listed.groups
            self.left_out = listed.problems
            if not self.paths:
                raise ValueError(
                    "`manifest` must list usable images. Received: "
                    f"manifest={str(manifest)!r}, which finds fault with all "
                    f"{len(self.left_out)} files"
                )
            self.largest = int(max(listed.widths.max(), listed.heights.max()))
        self.labels, self.class_names = class_labels(self.paths)
        if split != "train":
            rows_of_split(split, len(self.paths))  # Refuses others early.
            groups = self.groups
            if manifest is None:
                groups = self._found_duplicates()
            self._keep(places_of_split(split, self.paths, groups))
        if self.groups is not None:
            has_duplicates = len(np.unique(self.groups)) < len(self.groups)
            self.groups = self.groups if has_duplicates else None

    def _found_duplicates(self):
        """Groups of duplicates among few files; None, and said, of many."""
        if len(self.paths) > _MOST_TO_COMPARE:
            _logger.warning(
                "Duplicates unknown: %d files are too many to compare now. "
                "Scan the folder and use its manifest, or a split may divide "
                "them",
                len(self.paths),
            )
            return None
        states = [_files.state(self.directory / path) for path in self.paths]
        return _groups_of(self.directory, tuple(self.paths), tuple(states))

    def _keep(self, places):
        self.paths = [self.paths[place] for place in places]
        if self.labels is not None:
            self.labels = self.labels[places]
        if self.groups is not None:
            self.groups = self.groups[places]

    def read(self, orders, canvas_size, channels=3, bits=8):
        """Makes a dataset of the images, without those that are unreadable.

        These are noted in `skipped` and reported.

        Args:
            orders: `tf.data.Dataset` of one int64 tensor: the places in `paths`
                to be read in turn.
            canvas_size: Height and width of the canvas that images must fit on.
            channels: As `decoding.decode`.
            bits: As `decoding.decode`.

        Returns:
            A `tf.data.Dataset` of `(place, image)`, the image as
            `decoding.decode` returns it. It fails if too many files are
            unreadable; `elements.failed_check` knows that error.

        Example:

        ```python
        orders = tf.data.Dataset.from_tensors(tf.constant([2, 0, 1], tf.int64))
        for place, image in folder.read(orders, 512):
            print(folder.paths[place], image.shape)
        ```
        """
        # As they are where possible: copies of a million names take room.
        paths = [x if x.isascii() else os.fsencode(x) for x in self.paths]
        paths = tf.constant(paths)
        directory = os.fsencode(self.directory)

        def turns(order):
            order = tf.concat([order, [_END]], axis=0)
            turn = tf.data.Dataset.range(tf.size(order, tf.int64))
            return turn.map(lambda turn: (order, turn))

        def load(order, turn):
            def image():
                path = tf.strings.join([directory, paths[order[turn]]], "/")
                contents = tf.io.read_file(path)
                return decode(contents, canvas_size, channels, bits)

            def nothing():
                dtype = tf.uint8 if bits == 8 else tf.float32
                return tf.zeros((0, 0, channels), dtype)

            return order, turn, tf.cond(order[turn] == _END, nothing, image)

        before_first = tf.constant(-1, tf.int64)

        def skip_gap(last, element):
            order, turn, image = element
            places = order[last + 1 : turn]
            is_skipped = tf.cond(
                tf.size(places) == 0,
                lambda: True,
                lambda: tf.numpy_function(
                    lambda places: self._skip(places, channels),
                    [places],
                    tf.bool,
                    stateful=False,
                ),
            )
            is_end = order[turn] == _END
            before_next = tf.where(is_end, before_first, turn)
            with tf.control_dependencies([is_skipped]):
                return before_next, (order[turn], image)

        # Not inside `flat_map`, where a pass takes twice as long to start. Nor
        # is each image a dataset of its own, whose errors could be ignored one
        # by one: that takes two thirds more time. So the gaps tell.
        images = orders.flat_map(turns).map(
            load, num_parallel_calls=tf.data.AUTOTUNE
        )
        images = images.ignore_errors().scan(before_first, skip_gap)
        return images.filter(lambda place, _: place != _END)

    def _skip(self, places, channels):
        """Notes and reports files as skipped; raises if they are too many."""
        for place in places:
            path = self.paths[place]
            if path not in self.skipped:
                row = examine(self.directory, path, channels)
                reason = "broken" if row.usable else row.problem
                self.skipped[path] = reason
                _logger.warning("Skipped %r: %s", path, reason)
            if len(self.skipped) > self.unreadable_limit * len(self.paths):
                fail(self._complaint())
        return True

    def _complaint(self):
        listing = [f"{p} ({why})" for p, why in self.skipped.items()]
        more = ", ..." * (len(listing) > _SHOWN)
        return (
            f"At most {self.unreadable_limit:.2%} of the files may be "
            f"unreadable. Received: {len(listing)} of {len(self.paths)} so "
            f"far: {', '.join(listing[:_SHOWN])}{more}. Scan the folder and "
            "use its manifest, or raise `unreadable_limit`"
        )


@functools.lru_cache(maxsize=1)
def _groups_of(directory, paths, states):
    """Groups of the files in these states: both parts of a split ask."""
    return duplicate_groups(directory, list(paths))


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
    _checks.choice("split", split.split("[")[0], ("train",))
    instruction = parsed_split(split)
    whole = {"train": types.SimpleNamespace(num_examples=size)}
    try:
        (part,) = instruction.to_absolute(whole)
    except (AttributeError, ValueError):  # Shards; several; beyond the images.
        raise ValueError(
            f"`split` must be one part of {size} images, such as "
            f"'train[:90%]'. Received: split={split!r}"
        ) from None
    first, last, _ = slice(part.from_, part.to).indices(size)
    return slice(first, last)


def parsed_split(split):
    """A split as `tfds.core.ReadInstruction`; refuses what is none."""
    import tensorflow_datasets as tfds

    try:
        return tfds.core.ReadInstruction.from_spec(split)
    except ValueError:
        raise ValueError(
            "`split` must be a split in TFDS's notation, such as "
            f"'train[:90%]'. Received: split={split!r}"
        ) from None
