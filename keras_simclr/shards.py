"""Images in shards: tar files as of WebDataset, Parquet as of Hugging Face."""

import functools
import glob
import io
import json
import logging
import os
import pathlib
import re
import shutil
import tarfile
import tempfile
import weakref

import numpy as np
import tensorflow as tf

from keras_simclr import _files, archives, parquet_files
from keras_simclr._checks import listing
from keras_simclr.decoding import promised_format
from keras_simclr.folders import EncodedImages, numbered_labels

_logger = logging.getLogger("keras_simclr")

_MOST_MISSING = 10  # Patterns that are looked for in vain.
_LONGEST_LABEL = 4096  # Bytes.
_AT_A_TIME = 1 << 22  # Bytes that are read or unpacked at a time.
_MOST_AT_A_TIME = 1 << 28  # The same, where sizes deceive.
# A shard may unpack to that much, and to so many times its own size.
_ROOM, _TIMES = 1 << 30, 1000
_COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")


def matching_files(pattern):
    """Lists the files of a pattern.

    Args:
        pattern: Path, with `*`, `?` and `[...]` as in a shell, and with ranges
            `{000..009}` and lists `{a,b}`, of which every one must be there.

    Returns:
        Sorted list of paths.

    Raises:
        FileNotFoundError: If a file, or all of them, are missing.

    Example:

    ```python
    matching_files("train-{000000..000009}.tar")
    ```
    """
    found, missing = set(), []
    pattern = str(pathlib.Path(pattern).expanduser())
    for path in [pattern] if os.path.exists(pattern) else _unbraced(pattern):  # noqa: PTH110
        hits = [path] if os.path.exists(path) else glob.glob(path)  # noqa: PTH110, PTH207
        hits = [hit for hit in hits if pathlib.Path(hit).is_file()]
        found.update(hits)
        missing += [] if hits else [path]
        if len(missing) > _MOST_MISSING:
            break
    if missing:
        raise FileNotFoundError(
            "The pattern of the shards must be one of files, such as "
            f"train-{{000..009}}.tar or folder/*.tar. Received: {pattern!r}, "
            f"without any {listing(missing)}"
        )
    return sorted(found)


def _unbraced(pattern):
    match = _BRACES.search(pattern)
    if not match:
        yield pattern
        return
    first, last, names = match.groups()
    if names is None:
        width = len(first) * (first[0] == "0")
        first, last = sorted((int(first), int(last)))
        names = (f"{x:0{width}}" for x in range(first, last + 1))
    else:
        names = names.split(",")
    for name in names:
        yield from _unbraced(
            f"{pattern[: match.start()]}{name}{pattern[match.end() :]}"
        )


class _Shards(EncodedImages):
    """Images that are parts of files: a kind lists where they begin."""

    prefix = None  # What stands before the pattern.

    def __init__(self, pattern, **kwargs):
        super().__init__(f"{self.prefix}:{os.fsdecode(pattern)}", **kwargs)

    @property
    def files(self):
        return self._names

    def _find(self, wanted):
        self._shards = matching_files(self.source.partition(":")[2])
        folders = [pathlib.Path(path).parent for path in self._shards]
        self.directory = pathlib.Path(os.path.commonpath(folders))
        self._names = [
            pathlib.Path(path).relative_to(self.directory).as_posix()
            for path in self._shards
        ]
        names, spans, self._classes = self._index(wanted)
        if not names:
            others = sum(self.not_read.values())
            raise ValueError(
                f"The shards must hold images. Received: {self.source!r} with "
                f"{others} other files in {len(self._shards)} shards"
            )
        order = sorted(range(len(names)), key=names.__getitem__)
        self._spans = np.array(spans, "int64")[order]
        self._classes = [self._classes[place] for place in order]
        return [names[place] for place in order]

    def _index(self, wanted):
        """Lists of names, of (file, first byte, bytes), and of classes."""
        raise NotImplementedError

    def _read(self, file, first, size):
        """Bytes of a file."""
        raise NotImplementedError

    def _labels(self):
        names = getattr(self, "_class_names", ())
        classes = [self._classes[number] for number in self._numbers]
        try:
            return numbered_labels(classes, names)
        except ValueError as error:
            raise ValueError(f"{error}, in {self.source!r}") from None

    def contents(self, place):
        """The bytes of the image at a place in `paths`."""
        file, first, size = self._spans[self._numbers[place]].tolist()
        contents = self._read(file, first, size)
        if len(contents) < size:
            raise OSError("its shard has been truncated")
        return contents

    def open_image(self, place):
        return io.BytesIO(self.contents(place))

    def _reader(self):
        def contents(place):
            text = tf.numpy_function(
                self.contents, [place], tf.string, stateful=False
            )
            return tf.ensure_shape(text, ())

        return contents


class TarShards(_Shards):
    """Images in tar files, in WebDataset's layout.

    Members whose names agree up to the first dot behind the last slash are an
    example: `KEY.jpg`, and perhaps `KEY.cls` with its class, an integer or a
    text. All files named like images are taken, hidden ones left out. The
    headers are read once; then an image is read at its place, in any order.

    Args:
        pattern: As `matching_files`.
        **kwargs: `manifest`, `split`, `unreadable_limit`: as `EncodedImages`.

    Attributes:
        paths: As in `EncodedImages`: `SHARD/KEY.EXTENSION`.
        labels: As in `EncodedImages`: the numbers in `.cls`, or the places of
            texts in `class_names`.

    Raises:
        OSError: If a shard is missing, or may not be read.
        ValueError: As `EncodedImages`; if a shard is compressed or broken.

    Example:

    ```python
    shards = simclr.shards.TarShards("train-{000000..000009}.tar")
    dataset = simclr.dataset_from_directory(shards)
    ```
    """

    prefix = "tar"

    def _index(self, wanted):
        images, classes, others, wanted = {}, {}, [], set(wanted)
        self._states, twice = [_files.state(x) for x in self._shards], 0
        for number, path in enumerate(self._shards):
            for member, file in _members(path):
                name = pathlib.PurePosixPath(member.name).as_posix()
                if any(part.startswith(".") for part in _named(name)):
                    continue
                name = f"{self._names[number]}/{name}"
                key, extension = _key(name)
                if extension == "cls":
                    classes[key] = _class_in(file, member)
                elif not (promised_format(name) or name in wanted):
                    others.append(name)
                elif not member.isreg() or member.issparse():
                    self.left_out[name] = "not a regular file"
                else:
                    twice += name in images
                    images[name] = number, member.offset_data, member.size
        self._note_others(others)
        if twice:
            _logger.warning(
                "%d members of %s have the name of another one in their "
                "shard: the last of them counts",
                twice,
                self.source,
            )
        classes = _as_numbers([classes.get(_key(name)[0]) for name in images])
        return list(images), list(images.values()), classes

    def _read(self, file, first, size):
        path = self._shards[file]
        with pathlib.Path(path).open("rb", buffering=0) as shard:
            contents = os.pread(shard.fileno(), size, first)
        if len(contents) == size and _files.state(path) != self._states[file]:
            # Other images may stand where those began.
            raise OSError("its shard has changed since it was listed")
        return contents


def _named(name):
    """Parts of a path, without what only leads elsewhere."""
    return [part for part in name.split("/") if part != ".."]


def _key(name):
    """Name of a member up to the first dot, and what it ends in."""
    folder, _, file = name.rpartition("/")
    key, _, extension = file.partition(".")
    return f"{folder}/{key}", extension.lower()


def _members(path):
    """Yields the members of a tar file that are no folders, and the file."""
    with pathlib.Path(path).open("rb") as file:
        head = file.read(6)
        for start, tool in _COMPRESSED.items():
            if head.startswith(start):
                _refuse_shard(
                    path,
                    f"is compressed, and cannot be read in any order. Unpack "
                    f"it: {tool} {path}",
                )
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # Many: they would take room.
                    if not member.isdir():
                        yield member, file
                end = archive.offset
        except (tarfile.TarError, ValueError, OverflowError, OSError) as error:
            if archives.is_of_system(error):
                raise
            _refuse_shard(path, f"is broken ({error}). Copy it again")
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            _refuse_shard(path, f"is broken at byte {end:,}. Copy it again")
        while rest := file.read(_AT_A_TIME):
            if rest.strip(b"\0"):
                _refuse_shard(
                    path,
                    f"goes on behind its end at byte {end:,}. Name tar files "
                    "one by one instead of joining them",
                )


def _broken(path):
    return lambda text: _refuse_shard(
        path, f"is broken ({text}). Copy it again"
    )


def _refuse_shard(path, what):
    raise ValueError(
        f"A shard must be a whole, readable file. Received: {path!r}, which "
        f"{what}"
    ) from None


def _class_in(file, member):
    text = os.pread(
        file.fileno(),
        max(min(member.size, _LONGEST_LABEL), 0),
        member.offset_data,
    )
    return text.decode("utf-8", "replace").strip() or None


def _as_numbers(classes):
    """Texts as integers, if all of them are."""
    known = [text for text in classes if text is not None]
    if all(re.fullmatch(r"-?\d{1,18}", text) for text in known):
        return [None if text is None else int(text) for text in classes]
    return classes


class ParquetShards(_Shards):
    """Images in Parquet files, in Hugging Face's layout.

    The column `image` holds the bytes of encoded files, or structures of them
    (`bytes`) and their names (`path`); or another one does, if it is the only
    such column. The column `label`, if there is one, holds integers, whose
    names may stand in the metadata, or texts.

    A row cannot be read without those stored with it. So the bytes are unpacked
    once, a few megabytes at a time, into a temporary file (in the directory
    that the environment variable `TMPDIR` names), from which they are read in
    any order; it goes when the process ends.

    Args:
        pattern: As `matching_files`.
        **kwargs: `manifest`, `split`, `unreadable_limit`: as `EncodedImages`.

    Attributes:
        paths: As in `EncodedImages`: `SHARD/PATH`, with the row in place of
            `PATH` where these do not tell the images of a shard apart.
        labels: As in `EncodedImages`.

    Raises:
        OSError: If a shard is missing or may not be read, or there is no room
            to unpack them.
        ValueError: As `EncodedImages`; if a shard is broken, or has no column
            of images.

    Example:

    ```python
    shards = simclr.shards.ParquetShards("data/train-*.parquet")
    dataset = simclr.dataset_from_directory(shards)
    ```
    """

    prefix = "parquet"

    def _index(self, wanted):
        names, classes, found, known = [], [], [], None
        for path, shard in zip(self._shards, self._names, strict=True):
            with _parquet(path) as file:
                if not file.metadata.num_rows:  # And perhaps no types.
                    continue
                column = _image_column(path, file.schema_arrow)
                found.append((path, column, _files.state(path)))
                with parquet_files.explaining(_broken(path)):
                    paths, labels = _names_and_labels(file, column)
                _check_count(path, file, labels)
                class_names = _class_names(file.schema_arrow)
            known = class_names if known is None else known
            if class_names != known:
                _refuse_shard(path, "names other classes than the first one")
            names += [f"{shard}/{name}" for name in paths]
            classes += labels
        self._class_names = known
        self._unpacked, spans = _unpacked(tuple(found))
        if spans and not any(size for *_, size in spans):
            _refuse_shard(
                self._shards[0],
                "names images, but holds none of their bytes. Save it anew "
                "with them, for example with push_to_hub of Hugging Face's "
                "datasets",
            )
        return names, spans, classes

    def _read(self, file, first, size):
        return self._unpacked.read(first, size)


def _parquet(path):
    def refuse(what):
        _refuse_shard(path, f"is no Parquet file or broken ({what})")

    # Without `pre_buffer` a group of rows is not read as a whole.
    return parquet_files.open_table(
        path, refuse, buffer_size=1 << 20, pre_buffer=False
    )


def _image_column(path, schema):
    """Path of the column of bytes, such as `image.bytes`."""
    import pyarrow as pa

    def is_bytes(kind):
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    found = {}
    for field in schema:
        if is_bytes(field.type):
            found[field.name] = field.name
        elif pa.types.is_struct(field.type):
            place = field.type.get_field_index("bytes")
            if place >= 0 and is_bytes(field.type.field(place).type):
                found[field.name] = f"{field.name}.bytes"
    if "image" not in found and len(found) != 1:
        columns = ", ".join(f"{x.name} ({x.type})" for x in schema)
        _refuse_shard(
            path,
            "has no column `image` of encoded images (bytes, or a structure of "
            f"bytes and path), but {columns or 'none'}. Rename yours, for "
            "example with rename_column of Hugging Face's datasets",
        )
    return found.get("image") or next(iter(found.values()))


def _names_and_labels(file, column):
    """What tells the images of a shard apart, and their labels or None."""
    import pyarrow as pa
    import pyarrow.compute as pc

    schema, names = file.schema_arrow, []
    if column not in schema.names:
        column = column.removesuffix(".bytes")
    kind = schema.field(column).type
    if pa.types.is_struct(kind) and kind.get_field_index("path") >= 0:
        paths = file.read([f"{column}.path"]).column(column)
        names = pc.struct_field(paths, "path").to_pylist()
        names = [name and name.lstrip("/") for name in names]
    if not all(names) or len(set(names)) < file.metadata.num_rows:
        names = [f"{row:08}" for row in range(file.metadata.num_rows)]
    labels = [None] * len(names)
    if "label" in schema.names:
        labels = file.read(["label"]).column("label").to_pylist()
        if pa.types.is_floating(schema.field("label").type):
            labels = [_integer(label) for label in labels]
    return names, labels


def _integer(label):
    """Integers with gaps are floats in pandas: NaN is none, others stay."""
    if label is None or label != label:
        return None
    return int(label) if label.is_integer() else label


def _class_names(schema):
    """Names of the classes of `label`, as Hugging Face notes them."""
    try:
        notes = json.loads((schema.metadata or {})[b"huggingface"])
        names = notes["info"]["features"]["label"]["names"]
        return tuple(map(str, names))
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()


class _Unpacked:
    """A temporary file, which is gone when nobody needs it."""

    def __init__(self):
        self.file = tempfile.TemporaryFile()
        weakref.finalize(self, self.file.close)

    def read(self, first, size):
        return os.pread(self.file.fileno(), size, first)


@functools.lru_cache(maxsize=2)
def _unpacked(shards):
    """A temporary file of all images one after the other, and their spans.

    Takes paths, columns and states of the shards: to learn from and to test on,
    these are unpacked once.
    """
    import pyarrow as pa

    unpacked, spans, end = _Unpacked(), [], 0
    for number, (path, column, _) in enumerate(shards):
        first = len(spans)
        with _parquet(path) as file:
            sizes = _sizes(file)
            _check_room(path, sum(sizes))
            rows = max(file.metadata.num_rows, 1)
            at_a_time = max(_AT_A_TIME * rows // max(sum(sizes), 1), 1)
            # Rows may share a value, which is as large as all of them.
            at_a_time = min(at_a_time, _MOST_AT_A_TIME // max(1, *sizes) + 1)
            most = end + _ROOM + _TIMES * pathlib.Path(path).stat().st_size
            with parquet_files.explaining(_broken(path)):
                for batch in file.iter_batches(
                    min(at_a_time, rows), columns=[column], use_threads=False
                ):
                    values = batch.column(0)
                    if pa.types.is_struct(values.type):
                        values = values.field("bytes")
                    for value in values:
                        contents = value.as_py() or b""
                        unpacked.file.write(contents)
                        spans.append((number, end, len(contents)))
                        end += len(contents)
                    if end > most:
                        _refuse_shard(path, "unpacks to far more than it holds")
            _check_count(path, file, spans[first:])
    unpacked.file.flush()
    return unpacked, spans


def _check_count(path, file, values):
    """Refuses a column that is longer or shorter than its file says."""
    if len(values) != file.metadata.num_rows:
        _refuse_shard(path, "has columns of several lengths. Copy it again")


def _sizes(file):
    """Bytes of each group of rows, of which a part holds a value once.

    What is known of its columns is not asked for: where that is damaged,
    PyArrow (seen with 26.0) ends the process.
    """
    groups = range(file.metadata.num_row_groups)
    return [file.metadata.row_group(x).total_byte_size for x in groups]


def _check_room(path, size):
    directory = tempfile.gettempdir()
    if size > shutil.disk_usage(directory).free:
        raise OSError(
            f"There must be room for what is in a shard. Received: {path!r}, "
            f"which needs {size / 1e9:.1f} GB in {directory!r}. Set the "
            "environment variable TMPDIR to another directory"
        )
