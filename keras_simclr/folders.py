"""Encoded images, in a folder or elsewhere: reading them, skipping some."""

import collections
import contextlib
import functools
import logging
import os
import pathlib

import numpy as np
import tensorflow as tf

from keras_simclr import _checks, _files, kinds
from keras_simclr.decoding import (
    FORMATS,
    HEAD,
    decode,
    format_of,
    is_candidate,
    promised_format,
)
from keras_simclr.manifests import read_manifest
from keras_simclr.scanning import class_labels, duplicate_groups, examine
from keras_simclr.splits import places_of_split, rows_of_split

# Extensions of files of sounds, and what they hold.
SOUND_FORMATS = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".mp3": "MP3"}

_logger = logging.getLogger("keras_simclr")

_END = -1  # In place of a place, after all others.
# Files that are compared when a folder without a manifest is split: half a
# minute for photographs of 500 pixels on two cores.
_MOST_TO_COMPARE = 5_000
_compared = {}  # Groups of duplicates: both parts of a split ask.


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
    return _images_and_others(directory, ())[0]


def _images_and_others(directory, wanted):
    """Paths of images and of other files; the wanted ones count as images."""
    directory = _files.readable_directory(directory)
    images, others, wanted = [], [], set(wanted)
    for path in _files.walk(directory, raise_if_folder, promised_format):
        is_image = path in wanted or _is_image(directory, path)
        (images if is_image else others).append(path)
    if not images:
        sounds = sum(promised_sound(path) is not None for path in others)
        hint = f", {sounds} of them sounds: read them with kind='audio'"
        raise ValueError(
            f"`directory` must hold images ({', '.join(FORMATS)}). "
            f"Received: directory={directory!r} with {len(others)} other files"
            f"{hint * (sounds > 0)}"
        )
    return sorted(images), others


def promised_sound(path):
    """The format of a sound that a path's extension tells, or None."""
    return SOUND_FORMATS.get(path[path.rfind(".") :].lower())


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


def raise_if_folder(path, kind, error, what="images"):
    """Refuses folders that cannot be read; for `_files.walk`."""
    if kind == "unreadable folder":
        raise type(error)(
            f"Every sub-directory must be readable, or its {what} would "
            f"silently be missing. Received: {path!r} ({error.strerror}). "
            "Make it so, with chmod +rx, or move it elsewhere"
        )


class EncodedImages:
    """Encoded images, each with a name and a place among them.

    What is common to all kinds of them; a kind lists the names (`_find`), tells
    labels (`_labels`) and gives an image's bytes (`open_image`).

    Args:
        source: Path of the folder or list, or pattern of the shards.
        manifest: Path of its manifest, which `scan` wrote, or None. With it,
            images with problems are left out beforehand, and duplicates of an
            image are not its negatives.
        split: `"train"`, all images, or a part of them in TFDS's notation.
            Each image has a random share, a function of its name alone, and
            duplicates have that of the first of them. `"train[:90%]"` are those
            with less than 90 %, whatever others there are, and so only about
            that many; `"train[:100]"` are those with the smallest.
        unreadable_limit: Share of the images that may be unreadable, 0 to 1.
            With more, reading stops with a list of them.

    Attributes:
        source: As given, as text.
        directory: Path that `paths` or `files` are relative to.
        paths: List of names, sorted.
        all_paths: The same with those that `manifest` and `split` leave out.
        labels: int64 array, places in `class_names`, or numbers of classes if
            these are empty; -1 where there is none. None if none has a label.
        class_names: Tuple of names of classes, or empty.
        groups: int64 array, equal for duplicates; or None if there are none,
            or no manifest.
        largest: Longest side of an image, pixels; infinite without a manifest.
        left_out: Dictionary from the names of images that are not read, as the
            manifest or the listing finds them unusable, to the reason.
        not_read: Dictionary from kinds of other files to their numbers.
        skipped: The same as `left_out` of images that could not be read so
            far.

    Raises:
        OSError: If there is no such source, or it may not be read.
        ValueError: If it holds no image, if `split` is another or empty, or if
            the manifest is that of other images.
    """

    kind = kinds.IMAGES
    has_folders = False  # Whether names are paths whose folders are classes.

    def __init__(
        self,
        source,
        *,
        manifest=None,
        split="train",
        unreadable_limit=0.01,
    ):
        self.source = os.fsdecode(source)
        self.directory = pathlib.Path(self.source)
        self.unreadable_limit = _checks.probability(
            "unreadable_limit", unreadable_limit
        )
        self.groups, self.largest = None, float("inf")
        self.left_out, self.skipped, self.not_read = {}, {}, {}
        listed = None if manifest is None else read_manifest(manifest)
        self.paths = self._find(() if listed is None else listed.paths)
        self.all_paths = self.paths
        self._numbers = np.arange(len(self.paths))  # In what was found.
        if listed is not None:
            self._follow(manifest, listed)
        self.labels, self.class_names = self._labels()
        if split != "train":
            rows_of_split(split, len(self.paths))  # Refuses others early.
            groups = self.groups
            if manifest is None:
                groups = self._found_duplicates()
            self._keep(places_of_split(split, self.paths, groups))
        if self.groups is not None:
            has_duplicates = len(np.unique(self.groups)) < len(self.groups)
            self.groups = self.groups if has_duplicates else None

    def _find(self, wanted):
        """The sorted names of all images; `wanted` are those of a manifest."""
        raise NotImplementedError

    def _labels(self):
        """`labels` and `class_names`."""
        raise NotImplementedError

    @property
    def files(self):
        """List of the files that hold the images, relative to `directory`."""
        return self.paths

    def open_image(self, place):
        """Opens the image at a place in `paths`, as a binary file."""
        return pathlib.Path(self.directory, self.paths[place]).open("rb")

    def examine(self, place, channels=None):
        """Reads the image at a place in `paths`: its `scanning.Row`."""
        opened = functools.partial(self.open_image, place)
        return examine(self.paths[place], opened, channels)

    def canvas(self, canvas_size):
        """Shape of what images are laid on, without channels."""
        side = min(canvas_size, self.largest)
        return side, side

    def _reader(self):
        """A function, for a graph, from a place to the image's bytes."""
        # As they are where possible: copies of a million names take room.
        paths = [x if x.isascii() else os.fsencode(x) for x in self.paths]
        paths = tf.constant(paths)
        directory = os.fsencode(self.directory)
        return lambda place: tf.io.read_file(
            tf.strings.join([directory, paths[place]], "/")
        )

    def _note_others(self, names):
        """Notes other files in `not_read`, by their extensions."""
        kinds = collections.Counter(
            pathlib.PurePath(name).suffix.lower() or "without extension"
            for name in names
        )
        self.not_read |= dict(sorted(kinds.items(), key=lambda x: (-x[1], x)))

    def _follow(self, manifest, listed):
        """Leaves out what a manifest finds unusable, or does not know."""
        if not listed.paths:
            raise ValueError(
                "`manifest` must list usable images. Received: "
                f"manifest={str(manifest)!r}, which finds fault with all "
                f"{len(listed.problems)} files"
            )
        places = {path: place for place, path in enumerate(self.paths)}
        missing = [path for path in listed.paths if path not in places]
        outside = [path for path in missing if _leads_out(path)]
        if outside or len(missing) > self.unreadable_limit * len(listed.paths):
            what = "lead out of it" if outside else "are not there"
            shown = outside or missing
            raise ValueError(
                "`manifest` must be that of these images. Received: "
                f"manifest={os.fsdecode(manifest)!r}, of whose "
                f"{len(listed.paths)} images {len(shown)} {what}, for "
                f"{self.source!r}: {_checks.listing(shown)}. Scan it anew"
            )
        rows = [row for row, x in enumerate(listed.paths) if x in places]
        self.left_out |= listed.problems
        self.left_out |= dict.fromkeys(missing, "missing")
        if missing:
            self.not_read["missing"] = len(missing)
        if new := places.keys() - set(listed.paths) - listed.problems.keys():
            self.not_read["not in the manifest"] = len(new)
        self._keep([places[listed.paths[row]] for row in rows])
        self.groups = listed.groups[rows]
        self.largest = self._largest(listed.widths[rows], listed.heights[rows])

    def _largest(self, widths, heights):
        return int(np.maximum(widths, heights).max())

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
        states = tuple(
            _files.state(os.path.join(self.directory, path))  # noqa: PTH118
            for path in self.files
        )
        key = self.source, tuple(self.paths), states
        if key not in _compared:
            _compared.clear()
            _compared[key] = duplicate_groups(len(self.paths), self.examine)
        return _compared[key]

    def _keep(self, places):
        self.paths = [self.paths[place] for place in places]
        self._numbers = self._numbers[places]
        for name in ("labels", "groups"):
            values = getattr(self, name, None)
            if values is not None:
                setattr(self, name, values[places])

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
        contents = self._reader()

        def load(place):
            return decode(contents(place), canvas_size, channels, bits)

        dtype = tf.uint8 if bits == 8 else tf.float32
        nothing = tf.TensorSpec((0, 0, channels), dtype)
        return self._in_turn(orders, load, nothing, channels)

    def _in_turn(self, orders, load, nothing, channels=None):
        """As `read`, where a function of a place loads what is there."""

        def turns(order):
            order = tf.concat([order, [_END]], axis=0)
            turn = tf.data.Dataset.range(tf.size(order, tf.int64))
            return turn.map(lambda turn: (order, turn))

        def load_turn(order, turn):
            image = tf.cond(
                order[turn] == _END,
                lambda: tf.zeros(nothing.shape, nothing.dtype),
                lambda: load(order[turn]),
            )
            return order, turn, image

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
            load_turn, num_parallel_calls=tf.data.AUTOTUNE
        )
        images = images.ignore_errors().scan(before_first, skip_gap)
        return images.filter(lambda place, _: place != _END)

    def _skip(self, places, channels):
        """Notes and reports files as skipped; raises if they are too many."""
        for place in places:
            path = self.paths[place]
            if path not in self.skipped:
                row = self.examine(place, channels)
                self.skipped[path] = reason = row.problem or "broken"
                _logger.warning("Skipped %r: %s", path, reason)
            count, size = len(self.skipped), len(self.paths)
            if count > self.unreadable_limit * size or count == size:
                _checks.fail(self._complaint())
        return True

    def _complaint(self):
        skipped = [f"{p} ({why})" for p, why in self.skipped.items()]
        most = f"At most {self.unreadable_limit:.2%} of the files may be"
        cure = (
            "Scan the folder and use its manifest, or raise `unreadable_limit`"
        )
        if len(skipped) == len(self.paths):
            most = "Not all files may be"
        if not self.directory.exists():
            cure = f"{str(self.directory)!r} is gone: see that it is mounted"
        return (
            f"{most} unreadable. Received: {len(skipped)} of "
            f"{len(self.paths)} so far: {_checks.listing(skipped)}. {cure}"
        )


def numbered_labels(classes, class_names=()):
    """Labels, and names of classes, from what stands beside images.

    Args:
        classes: List of integers or texts; None where there is none.
        class_names: Tuple of names that integers are places in, or empty.

    Returns:
        `labels` and `class_names`, as `EncodedImages` has them.

    Raises:
        ValueError: If they are of both kinds, or neither.

    Example:

    >>> numbered_labels(["dog", None, "cat"])
    (array([ 1, -1,  0]), ('cat', 'dog'))
    """
    known = [x for x in classes if x is not None]
    if all(isinstance(x, str) for x in known):
        class_names = tuple(sorted(set(known)))
        numbers = {name: place for place, name in enumerate(class_names)}
        labels = [numbers.get(x, -1) for x in classes]
    elif all(isinstance(x, int) and x < 2**63 for x in known):
        labels = [-1 if x is None else max(x, -1) for x in classes]
        if class_names and max(labels) >= len(class_names):
            raise ValueError(
                f"Labels must be places in the {len(class_names)} names of "
                f"classes. Received: the label {max(labels)}"
            )
    else:
        kinds = {type(x): x for x in known}
        raise ValueError(
            "Labels must be integers of 64 bits, or all of them texts. "
            "Received: "
            f"{', '.join(repr(x)[:40] for x in kinds.values())}"
        )
    return (np.array(labels, "int64"), class_names) if known else (None, ())


def _leads_out(path):
    """Whether a path of a manifest is not one below its folder."""
    return path.startswith("/") or ".." in path.split("/")


class ImageFolder(EncodedImages):
    """The image files of a folder, or a part of them.

    Args:
        directory: Path of the folder.
        **kwargs: `manifest`, `split`, `unreadable_limit`: as `EncodedImages`.

    Attributes:
        paths: As in `EncodedImages`: paths relative to the folder, of the
            files that `find_images` finds; with a manifest, of those that it
            lists.
        labels: int64 array, the place of each file's sub-folder in
            `class_names`; or None if files lie beside the sub-folders, or these
            are parts of a data set, such as `train` and `val`.
        class_names: Tuple of the names of the sub-folders, or empty.

    Raises:
        OSError: If there is no such folder, or it may not be read.
        ValueError: As `EncodedImages`.

    Example:

    ```python
    folder = simclr.folders.ImageFolder("photos", split="train[:90%]")
    dataset = simclr.dataset_from_directory(folder)
    ```
    """

    has_folders = True

    def __init__(self, directory, **kwargs):
        # Without a slash at the end: runs record it.
        super().__init__(pathlib.Path(os.fsdecode(directory)), **kwargs)

    def _find(self, wanted):
        images, others = _images_and_others(self.directory, wanted)
        self._note_others(others)
        return images

    def _labels(self):
        return class_labels(self.paths)
