"""Vectors of images that any tool made: tables in Parquet and NPZ files."""

import dataclasses
import hashlib
import os
import pathlib
import posixpath
from collections.abc import Callable

import numpy as np

from keras_simclr import array_files, parquet_files
from keras_simclr._checks import listing
from keras_simclr._files import valid_names
from keras_simclr.elements import unpack
from keras_simclr.orders import is_shuffled, passes_of

_ROWS_AT_ONCE, _AT_ONCE = 1_000, 1 << 24  # And numbers.
# Numbers in a Parquet file, for each byte of it: where most are zeros there are
# some 20. Runs of one take no room, and could fill the memory.
_DENSEST = 256
# What columns and arrays are called. The vectors may have any name.
_PATHS, _PLACES = ("path", "paths"), ("place", "places")
_VECTORS = ("embedding", "representation", "vector")
_VECTORS += tuple(f"{name}s" for name in _VECTORS)
_ONE_ROW = "one row for each image"
_CURE = "dataset.source = simclr.folders.ImageFolder(directory)"


class VectorTable:
    """A vector for each image, as any tool made it, read into memory.

    A row is of an image by its `path`: that which `embed` writes, perhaps with
    the folders above in front, some or all of them. Of data whose images have
    no paths it is by its `place`, which counts on from the images to learn from
    to those to test on; or, without one, the rows are in that order. Rows of
    other images of the data, and of other files that are there, are left alone.

    Args:
        path: Path of a Parquet file with a column of lists of numbers, all of
            one length, and perhaps `path` or `place`; or of an .npz file with
            an array `(N, D)` and perhaps `paths` or `places`. Where several
            columns or arrays could be the vectors, they are those named
            `embedding`, `representation` or `vector`, perhaps with an s. Others
            are left alone.

    Attributes:
        vectors: float32 array of shape `(N, D)`; after `follow`, of those
            images.
        paths: List of a text for each row, or None.
        places: Array of an integer for each row, or None.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is broken, has no vectors or several columns of them,
            or these are of different lengths or not finite.

    Example:

    ```python
    table = VectorTable("dinov3.parquet")  # path, embedding
    ```
    """

    def __init__(self, path):
        self._path, self._rows, self._sources = str(path), None, None
        is_npz = self._path.lower().endswith(".npz")
        columns = (_from_npz if is_npz else _from_parquet)(self._path)
        self._in_words = ", ".join(
            f"{name} ({column.kind})" for name, column in columns.items()
        )
        self.vectors = columns[self._name_of_vectors(columns)].read()
        self._check_values()
        self.paths, self.places = (
            next((columns[x].read() for x in names if x in columns), None)
            for names in (_PATHS, _PLACES)
        )
        if self.paths is not None:
            is_right = isinstance(self.paths, list) and all(
                isinstance(path, str) for path in self.paths
            )
            self._check_keys("a text as the path", self.paths, is_right)
        if self.places is not None:
            self.places = places = np.asarray(self.places)
            is_right = places.ndim == 1 and places.dtype.kind in "iu"
            self._check_keys("an integer as the place", places, is_right)

    def _refuse(self, rule, received):
        _refuse(self._path, rule, received)

    def _refuse_some(self, rule, what, keys):
        if len(keys):
            self._refuse(
                rule,
                f"{len(keys)} of {len(self.vectors)} rows that {what}: "
                f"{listing(keys)}",
            )

    def _name_of_vectors(self, columns):
        found = [x for x, column in columns.items() if column.has_vectors]
        named = [name for name in found if name in _VECTORS]
        if len(named or found) != 1:
            self._refuse(
                "one column of vectors (lists of numbers, or an array of shape "
                "(N, D)), or one that is named `embedding`",
                f"the columns {self._in_words or 'none'}. Make one of them",
            )
        return (named or found)[0]

    def _check_values(self):
        wrong = [
            start + row
            for start in range(0, len(self.vectors), _ROWS_AT_ONCE)
            for row in np.flatnonzero(
                ~np.isfinite(self.vectors[start : start + _ROWS_AT_ONCE]).all(1)
            )
        ]
        self._refuse_some("finite vectors", "hold NaN or infinity", wrong)
        if not self.vectors.size:
            self._refuse("vectors", self._in_words)

    def _check_keys(self, what, keys, is_right):
        if not is_right or len(keys) != len(self.vectors):
            self._refuse(
                f"{what} of each vector", f"the columns {self._in_words}"
            )

    def find_images(self, sources):
        """Finds whose the rows are, as far as that is known without images.

        Args:
            sources: Where the images to learn from are, and perhaps those to
                test on: a list of `folders.EncodedImages`, or None of others.

        Raises:
            ValueError: If rows lack paths that are needed; or if they are of
                unknown images, or of the same, or of images in both sets.
        """
        if not any(sources):
            if self.paths is not None and self.places is None:
                self._refuse(
                    "`place` and no `path` for images without paths, or "
                    "neither if the rows are in their order",
                    f"the columns {self._in_words}. Datasets from folders that "
                    f"were changed have lost the paths: {_CURE}",
                )
        elif not all(sources):
            self._refuse(
                "images to learn from and to test on that all have paths, or "
                "none of them",
                "one set of each kind",
            )
        elif self.paths is None:
            example = valid_names(sources[0].paths[:1])[0]
            self._refuse(
                f"the `path` of each image, such as {example!r}",
                f"the columns {self._in_words}",
            )
        else:
            self._sources = sources
            self._rows = self._rows_of_paths()

    def _rows_of_paths(self):
        """Of each source the row of each of its paths; -1 without one."""
        rows = [np.full(len(source.paths), -1) for source in self._sources]
        fronts = [_fronts(source.directory) for source in self._sources]
        known = [_known(source) for source in self._sources]
        places = [source.directory.absolute() for source in self._sources]
        homes = {home for x in places for home in (x, *x.parents)}
        unknown, shared, twice = [], [], []
        for row, path in enumerate(self.paths):
            hits = _hits(path, fronts, known)
            if not hits and not _is_there(path, homes):
                unknown.append(path)
            if len({self._sources[number].source for number, _ in hits}) > 1:
                shared.append(path)
            for number, place in hits:
                if place >= 0 and rows[number][place] >= 0:
                    twice.append(path)
                elif place >= 0:
                    rows[number][place] = row
        example = valid_names(self._sources[0].paths[:1])[0]
        self._refuse_some(
            f"paths of images of the data, such as {example!r}, perhaps with "
            "the folders above in front",
            "are of no image",
            unknown,
        )
        self._refuse_some(
            "paths that tell images to learn from and to test on apart, by the "
            "folders above in front",
            "are of both",
            shared,
        )
        self._refuse_some(_ONE_ROW, "are of the same", twice)
        return rows

    def check(self, dataset):
        """Refuses images whose order tells nothing, if the rows follow it."""
        if self._rows is not None:
            return
        if "places" in unpack(dataset.element_spec):
            self._refuse(
                "images whose paths are known",
                f"a dataset that was changed and has lost them. Cure: {_CURE}",
            )
        if is_shuffled(dataset) or passes_of(dataset):
            self._refuse(
                "a `path` in each row, or images in one order: shuffle=False",
                "a dataset that is shuffled",
            )

    def follow(self, sets):
        """Leaves the vectors of the images that are evaluated, in their order.

        Args:
            sets: List of pairs, for each set of images as in `find_images`: how
                many there are, and an array of the places of those evaluated.

        Raises:
            ValueError: If one of them has no row; or if rows in the order of
                the images are more or fewer than these, or places unknown or
                there twice.
        """
        counts, places = zip(*sets, strict=True)
        rows = self._rows or self._rows_of_places(counts)
        found = [x[y] for x, y in zip(rows, places, strict=True)]
        missing = [
            name
            for number, (y, x) in enumerate(zip(places, found, strict=True))
            for name in self._names(number, y[x < 0], counts)
        ]
        if missing:
            self._refuse(
                "a row for each labelled image",
                f"none for {len(missing)} of {sum(map(len, places))}: "
                f"{listing(missing)}",
            )
        found = np.concatenate(found)
        if not np.array_equal(found, np.arange(len(self.vectors))):
            self.vectors = self.vectors[found]

    @property
    def digest(self):
        """SHA-256 of the vectors."""
        return hashlib.sha256(np.ascontiguousarray(self.vectors)).hexdigest()

    def _names(self, number, places, counts):
        """What a table calls images of a set."""
        if self._sources is None:
            return (sum(counts[:number]) + places).tolist()
        paths = self._sources[number].paths
        return valid_names(paths[place] for place in places)

    def _rows_of_places(self, counts):
        """As `_rows_of_paths`, of sets of so many images."""
        total, size = sum(counts), len(self.vectors)
        places = self.places
        if places is None:
            places = np.arange(total)
            if size != total:
                numbers = " and ".join(f"{count:,}" for count in counts)
                self._refuse(
                    "a row for each image, or a `place` in each row",
                    f"{size:,} rows for {numbers} images",
                )
        is_known = (places >= 0) & (places < total)
        self._refuse_some(
            f"places from 0 to {total - 1}",
            "are of no image",
            places[~is_known],
        )
        firsts = np.unique(places, return_index=True)[1]
        self._refuse_some(
            _ONE_ROW, "are of the same", np.delete(places, firsts)
        )
        rows = np.full(total, -1)
        rows[places] = np.arange(size)
        return np.split(rows, np.cumsum(counts)[:-1])


def _refuse(path, rule, received):
    raise ValueError(
        f"A table of embeddings must have {rule}. Received: {path!r} with "
        f"{received}"
    ) from None


def _known(source):
    """Places of all images of a source by their names; -1 if left out."""
    known = dict.fromkeys(valid_names(source.all_paths), -1)
    return known | {x: y for y, x in enumerate(valid_names(source.paths))}


def _fronts(directory):
    """What may stand in front of a name: nothing, or more and more folders."""
    directory = pathlib.Path(directory)
    fronts = [""]
    for name in reversed(directory.absolute().parts):
        fronts.append(posixpath.join(name, fronts[-1]))
    return [*fronts, posixpath.join(directory.resolve().as_posix(), "")]


def _hits(path, fronts, known):
    """Pairs of a source's number and a place in it, for a path of a table.

    Of all ways to read it, those that take the fewest folders for known.
    """
    path = posixpath.normpath(path)
    for level in range(max(map(len, fronts))):
        hits = [
            (number, names[path.removeprefix(front)])
            for number, (front, names) in enumerate(
                (x[min(level, len(x) - 1)], y)
                for x, y in zip(fronts, known, strict=True)
            )
            if path.startswith(front) and path.removeprefix(front) in names
        ]
        if hits:
            return hits
    return []


def _is_there(path, homes):
    """Whether there is such a file below one of some folders."""
    return any(os.path.exists(os.path.join(home, path)) for home in homes)  # noqa: PTH110, PTH118


@dataclasses.dataclass(frozen=True)
class _Column:
    """A column or an array: what it is, in words, and what reads it."""

    kind: str
    has_vectors: bool
    read: Callable


def _from_npz(path):
    """The arrays of a file, as columns by name."""

    def column(array):
        is_text = array.dtype.kind in "SU"
        has_vectors = array.ndim == 2 and array.dtype.kind in "iuf"

        def read():
            if is_text:
                return valid_names(map(os.fsdecode, array.ravel().tolist()))
            with np.errstate(over="ignore"):  # Infinity is refused.
                return array.astype("float32") if has_vectors else array

        kind = f"{array.dtype} of shape {array.shape}"
        return _Column(kind, has_vectors, read)

    arrays = array_files.load_members(path)
    return {name: column(array) for name, array in arrays.items()}


def _from_parquet(path):
    """The columns of a file, by name."""

    def refuse(what):
        _refuse(path, "whole columns", f"an error: {what}")

    def column(field):
        has_vectors = _holds_numbers(field.type)

        def read():
            with parquet_files.explaining(refuse):
                if has_vectors:
                    return _lists(path, file, field.name)
                values = file.read([field.name]).column(0)
                return values.to_pylist()

        return _Column(str(field.type), has_vectors, read)

    file = parquet_files.open_table(path, refuse)
    return {field.name: column(field) for field in file.schema_arrow}


def _holds_numbers(kind):
    """Whether values of a type of Arrow are lists of numbers."""
    import pyarrow.types as types

    is_list = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    is_number = (types.is_floating, types.is_integer)
    return any(is_kind(kind) for is_kind in is_list) and any(
        is_kind(kind.value_type) for is_kind in is_number
    )


def _width(file, name):
    """Length of the first list in a column; 0 if there is none."""
    for batch in file.iter_batches(1, columns=[name]):
        return len(batch.column(0).flatten())
    return 0


def _lists(path, file, name):
    """A column of lists as a float32 array, read a few rows at a time."""
    import pyarrow.compute as pc

    size, done, wrong, vectors = file.metadata.num_rows, 0, [], None
    width = _width(file, name)
    room = _DENSEST * pathlib.Path(path).stat().st_size
    if size * width > max(room, _AT_ONCE):
        _refuse(
            path,
            "vectors that fill it",
            f"{size:,} of {width:,} numbers in {room // _DENSEST:,} bytes",
        )
    at_once = min(_ROWS_AT_ONCE, _AT_ONCE // max(width, 1) + 1)
    for batch in file.iter_batches(at_once, columns=[name]):
        column = batch.column(0)
        lengths = pc.list_value_length(column).fill_null(0).to_numpy()
        if vectors is None:
            vectors = np.empty((size, lengths[0]), "float32")
        is_wrong = lengths != vectors.shape[1]
        wrong += (done + np.flatnonzero(is_wrong)).tolist()
        if not wrong:
            numbers = column.flatten().to_numpy(zero_copy_only=False)
            with np.errstate(over="ignore"):  # Infinity is refused.
                vectors[done : done + len(column)] = numbers.reshape(
                    len(column), -1
                )
        done += len(column)
    if wrong:
        _refuse(
            path,
            "vectors of one length",
            f"{vectors.shape[1]} numbers in row 0 and others in {len(wrong)} "
            f"of {size} rows: {listing(wrong)}",
        )
    return np.empty((0, 0), "float32") if vectors is None else vectors
