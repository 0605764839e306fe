"""What the files of a folder hold, what is wrong with them, the manifest."""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import os
import pathlib
import threading
import warnings

import numpy as np
import tensorflow as tf

from keras_simclr import _files, duplicates, kinds, manifests
from keras_simclr.decoding import (
    MOST_PIXELS,
    SMALLEST_SIDE,
    check_size,
    decode_jpeg_or_png,
    deep_png,
    format_of,
    is_candidate,
    promised_format,
)
from keras_simclr.duplicates import SMALL, perceptual_keys
from keras_simclr.exif import orientation
from keras_simclr.pillow_files import Picture, UnusableError

_CHUNK = 1024  # Files that are read before their rows are stored.
# Names of folders that parts of a data set have, and all classes never.
_PARTS = frozenset(
    "train training val valid validation dev test testing eval evaluation "
    "unlabeled unlabelled extra holdout".split()
)

_ADVICE = {
    "empty": "Copy or download it again.",
    "truncated": "Copy or download it again.",
    "corrupt": "Copy or download it again.",
    "not an image": "Often a failed download: try again.",
    "unreadable": "Make it readable: chmod +r.",
    "unreadable folder": "Make it readable: chmod +rx.",
    "broken link": "Restore the file that it points to.",
    "not a regular file": "It was not opened. Move it elsewhere.",
    "too small": f"Each side needs at least {SMALLEST_SIDE} pixels.",
    "too large": f"Scale it down to at most {MOST_PIXELS:,} pixels.",
    "unsupported format": "Convert it to JPEG or PNG.",
    "NaN or infinity": "Mend it, or take it out.",
    "out of range": "Bring floats to [0, 1].",
    "one value": "There is nothing to see in it: take it out.",
    "no samples": "Copy or download it again.",
    "not a sound": "Often a failed download: try again.",
    "silent": "There is nothing to hear in it: take it out.",
    "clipped": "It was recorded too loud: nothing to do, but record it anew.",
    "no plug-in": "Install it, or convert the images to JPEG or PNG.",
    "other channels": "Ask for that number: --channels.",
    "wrong extension": "Nothing to do: the content decides.",
    "animated": "The first frame or page is used.",
    "CMYK": "Meant for print: the colours may look different on a screen.",
    "16-bit": "8 are used, the upper ones of its content; --bits=16: all.",
    "more channels": "Only read if asked for: --channels.",
    "palette": "Nothing to do.",
    "transparency": "Transparent parts become white.",
    "EXIF rotation": "Nothing to do: width and height are as seen.",
}


@dataclasses.dataclass(frozen=True)
class Scan:
    """What a directory holds; `str()` is a report for people.

    Attributes:
        images: Number of usable images.
        others: Number of files that neither are nor claim to be images.
        formats: Dictionary from formats to numbers of usable images.
        sizes: `(width, height)` of the usable images that are smallest, median
            and largest by area; or empty.
        problems: Dictionary from kinds of problems, each of which makes a
            file unusable, to `(number of files, up to three of them)`.
        remarks: The same of what leaves an image usable.
        duplicate_groups: Number of groups of duplicates and near duplicates.
        duplicate_images: Number of images in them.
        class_names: As `class_labels` finds them.
        kind: What they are; of sounds, sizes are `(samples, samples in a
            second)`, by length.

    Example:

    >>> print(Scan(1, 0, {"PNG": 1}, ((8, 9),) * 3, {}, {}, 0, 0, ()))
    1 image usable, 0 files left out, 0 other files.
    Formats: PNG 1.
    Sizes: smallest 8x9, median 8x9, largest 8x9 (width x height).
    Duplicates: none.
    """

    images: int
    others: int
    formats: dict
    sizes: tuple
    problems: dict
    remarks: dict
    duplicate_groups: int
    duplicate_images: int
    class_names: tuple
    kind: kinds.Kind = kinds.IMAGES

    def __str__(self):
        unusable = sum(number for number, _ in self.problems.values())
        what = self.kind.example
        images, files = _count(self.images, what), _count(unusable, "file")
        others = _count(self.others, "other file")
        lines = [f"{images} usable, {files} left out, {others}."]
        if self.images:
            formats = [f"{name} {n:,}" for name, n in self.formats.items()]
            lines += [f"Formats: {', '.join(formats)}.", self._sizes_in_words()]
        if self.class_names:
            shown = ", ".join(self.class_names[:10])
            more = ", ..." if len(self.class_names) > 10 else ""
            count = _count(len(self.class_names), "folder")
            text = f"{count}: {shown}{more}"
            lines.append(f"Classes: {_printable(text)}.")
        duplicates = "none"
        if self.duplicate_groups:
            duplicates = (
                f"{_count(self.duplicate_images, what)} in "
                f"{_count(self.duplicate_groups, 'group')}"
            )
        lines.append(f"Duplicates: {duplicates}.")
        lines += _listing("Left out:", self.problems)
        lines += _listing("Used, but worth knowing:", self.remarks)
        return "\n".join(lines)

    def _sizes_in_words(self):
        if self.kind is kinds.AUDIO:
            lengths = [samples / rate for samples, rate in self.sizes]
            return (
                "Lengths: shortest {:,.2f}, median {:,.2f}, longest {:,.2f} "
                "seconds.".format(*lengths)
            )
        sizes = ["{}x{}".format(*size) for size in self.sizes]
        return (
            "Sizes: smallest {}, median {}, largest {} "
            "(width x height).".format(*sizes)
        )


def _count(number, noun):
    return f"{number:,} {noun}" + ("s" if number != 1 else "")


def _printable(text):
    """The text without what a terminal cannot show, as `repr` escapes it."""
    return repr(text)[1:-1]


def _listing(title, kinds):
    lines = [title] if kinds else []
    for kind, (number, examples) in kinds.items():
        shown = ", ".join(repr(path) for path in examples)
        more = ", ..." if number > len(examples) else ""
        lines.append(f"  {kind}: {number:,}. {_ADVICE[kind]}")
        lines.append(f"    {shown}{more}")
    return lines


def scan(directory, manifest, *, progress=None):
    """Decodes every image of a directory once and writes a manifest.

    The manifest is a Parquet file with a row per candidate, sorted: a file
    that is named like an image, or whose content is one. Its columns:

    - `path`: relative to `directory`, as bytes (`os.fsencode`), because names
      need not be valid UTF-8.
    - `format`: one of `decoding.FORMATS`, another one that is not supported,
      `array`, or null.
    - `width`, `height`: pixels as seen, after EXIF rotation; or null.
    - `channels`: 1 (grey), 2 (with alpha), 3 (colour), 4 (with alpha, or
      CMYK); or null.
    - `orientation`: EXIF's number, 1 to 8; or null.
    - `group`: int64; the same for duplicates and near duplicates (resized,
      saved again).
    - `problem`: why it is unusable (`kind: detail`), or remarks on a usable
      image, separated by `; `; or null.
    - `usable`: whether it can be decoded and is neither too small nor too
      large.

    Nothing but the manifest is written, and it only when it is complete. It
    takes about a kilobyte of memory per file.

    Args:
        directory: Path of the images.
        manifest: Path of the file to write. Its directory is made if missing.
        progress: Function of the number of files done and their total, called
            after each, or None.

    Returns:
        `Scan`, whose `str()` is a report.

    Raises:
        FileExistsError: If `manifest` exists.
        OSError: If `directory` cannot be listed, as `find_images`. An
            unreadable sub-directory becomes a row.
        ValueError: If it holds no candidate.

    Example:

    ```python
    print(scan("photos", "photos.parquet"))
    ```
    """
    directory = _files.readable_directory(directory)
    manifest = pathlib.Path(manifest)
    _files.check_is_new("manifest", manifest)
    problems = {}

    def report(path, kind, error):
        problems[path] = f"{kind}: {error.strerror}" if error else kind

    paths = sorted(
        [*_files.walk(directory, report, promised_format), *problems]
    )

    def look(place):
        path = pathlib.Path(directory, paths[place])
        return examine(paths[place], lambda: path.open("rb"))

    read_file = _reading(paths, look, problems)

    def read(place):
        path = paths[place]
        if path in problems:
            return read_file(place)
        row = read_file(place) if is_candidate(path) else None
        return row if promised_format(path) or (row and row.format) else None

    return write_manifest(directory, len(paths), read, manifest, progress)


def scan_images(images, manifest, *, progress=None):
    """As `scan`, for images that lie in shards or stand in a list.

    Args:
        images: `folders.EncodedImages`.
        manifest: As `scan`.
        progress: As `scan`.

    Returns:
        As `scan`.

    Raises:
        FileExistsError: As `scan`.

    Example:

    ```python
    shards = simclr.shards.TarShards("train-{0..9}.tar")
    print(scan_images(shards, "train.parquet"))
    ```
    """
    problems = images.left_out
    paths = [*images.paths, *problems]
    read = _reading(paths, images.examine, problems)
    others = sum(images.not_read.values())
    return write_manifest(
        images.source,
        len(paths),
        read,
        manifest,
        progress,
        others,
        images.has_folders,
        images.kind,
    )


def _reading(paths, look, problems):
    """A function from a place in a list of images to its `Row`."""

    def read(place):
        path = paths[place]
        if path in problems:
            return Row(path, problem=problems[path])
        return look(place)

    return read


def write_manifest(
    source,
    size,
    read,
    manifest,
    progress=None,
    others=0,
    has_folders=True,
    kind=kinds.IMAGES,
):
    """Writes the manifest of images that are read one by one.

    Args:
        source: What they are in, for an error.
        size: Number of them.
        read: Function of a place, 0 to `size`, that returns its `Row`, or None
            if it is no image.
        manifest: As `scan`.
        progress: As `scan`.
        others: Number of files that are no images, beside those that `read`
            finds to be none.
        has_folders: Whether paths tell classes.
        kind: What they are.

    Returns:
        As `scan`.
    """
    import pyarrow.parquet

    manifest = pathlib.Path(manifest)
    _files.check_is_new("manifest", manifest)
    manifest.parent.mkdir(parents=True, exist_ok=True)
    # Opened now, to fail now and not after an hour.
    with _files.replacing(manifest) as staged, staged.open("wb") as file:
        table = _read_all(size, read, progress)
        if not len(table):
            raise ValueError(
                "`directory` must hold images. Received: "
                f"directory={source!r} with {size} other files"
            )
        pyarrow.parquet.write_table(table, file)
    others += size - len(table)
    return _summary(table, others, has_folders, kind)


def _read_all(size, read, progress):
    """The manifest of images as a `pyarrow.Table`."""
    import imagehash  # noqa: F401 Here, not in several threads at once.
    import pyarrow as pa
    from PIL import Image

    Image.init()

    schema = manifests.schema()
    tables, count = [schema.empty_table()], 0
    keys = np.zeros(size, duplicates.KEYS)
    for function in (orientation, _read_small):
        function.get_concrete_function()  # Not in several threads at once.
    # Threads are enough: Pillow lets others run while it decodes.
    with (
        warnings.catch_warnings(),
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        warnings.simplefilter("ignore")
        for start in range(0, size, _CHUNK):
            rows = []
            results = pool.map(read, range(start, min(start + _CHUNK, size)))
            for done, row in enumerate(results, start + 1):
                rows += [row] if row else []
                if progress:
                    progress(done, size)
            tables.append(_as_table(rows, schema))
            for row in rows:
                keys[count] = row.key or 0
                count += 1
    table = pa.concat_tables(tables)
    groups = duplicates.group(keys[:count], table["usable"].to_numpy())
    place = schema.get_field_index("group")
    return table.set_column(place, schema.field(place), pa.array(groups))


def duplicate_groups(size, look):
    """Groups of the duplicates among images, as their manifest has them.

    Args:
        size: Number of them.
        look: Function of a place, 0 to `size`, that returns its `Row`.

    Returns:
        int64 array: equal for duplicates.

    Example:

    >>> from sklearn import datasets
    >>> folder = datasets.__path__[0] + "/images/"
    >>> paths = ["china.jpg", "flower.jpg"]
    >>> rows = [examine(x, lambda x=x: open(folder + x, "rb")) for x in paths]
    >>> duplicate_groups(2, lambda place: rows[place])
    array([0, 1])
    """
    return _read_all(size, look, None)["group"].to_numpy()


def _as_table(rows, schema):
    import pyarrow as pa

    columns = {
        name: [getattr(row, name) for row in rows] for name in schema.names
    }
    columns["path"] = [os.fsencode(path) for path in columns["path"]]
    return pa.table(columns, schema)


def _summary(table, others, has_folders, kind):
    """The `Scan` of a manifest."""
    paths, usable = manifests.paths_of(table), table["usable"].to_numpy()
    problems, remarks = {}, {}
    for path, is_usable, text in zip(
        paths, usable, table["problem"].to_pylist(), strict=True
    ):
        for part in text.split("; ") if text and is_usable else [text]:
            _add_example(remarks if is_usable else problems, part, path)
    images = table.filter(usable)
    names, numbers = np.unique(images["format"].to_pylist(), return_counts=True)
    sizes = np.stack([images["width"], images["height"]], axis=1)
    extents = sizes.prod(axis=1, dtype="int64")
    if kind is kinds.AUDIO:
        extents = sizes[:, 0] / sizes[:, 1]  # Seconds.
    order = np.argsort(extents, kind="stable")
    shown = order[[0, len(order) // 2, -1]] if len(order) else order
    groups = np.bincount(images["group"].to_numpy(), minlength=1)
    _, class_names = class_labels(
        [
            path
            for path, is_usable in zip(paths, usable, strict=True)
            if is_usable
        ]
    )
    return Scan(
        images=len(images),
        others=others,
        formats=dict(zip(names.tolist(), numbers.tolist(), strict=True)),
        sizes=tuple(map(tuple, sizes[shown].tolist())),
        problems=problems,
        remarks=remarks,
        duplicate_groups=int((groups > 1).sum()),
        duplicate_images=int(groups[groups > 1].sum()),
        class_names=class_names if has_folders else (),
        kind=kind,
    )


def _add_example(kinds, text, path):
    if text:
        kind = text.partition(":")[0]
        number, examples = kinds.get(kind, (0, ()))
        kinds[kind] = number + 1, (*examples, path)[:3]


_HEAD = 512  # Bytes that tell what a file holds that is no image.


# First bytes of image formats that are not supported.
_FOREIGN = {
    b"8BPS": "PSD",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
}


_CONTROLS = frozenset(range(32)) - frozenset(b"\t\n\f\r\x1b")


# Images above so many pixels are decoded one at a time, for memory's sake.
_LARGE = 1 << 24


_ONE_LARGE = threading.Lock()
_CANVAS = 128  # Pixels: JPEGs are decoded at a smaller scale, 3 times as fast.


@dataclasses.dataclass(slots=True)
class Row:
    """A row of the manifest; `scan` describes its columns.

    Attributes:
        path: Path relative to the folder.
        format: Format of the content, or None.
        width: Pixels as seen, or None.
        height: The same.
        channels: Channels, or None.
        orientation: EXIF's number, or None.
        problem: Why the file is unusable, or remarks, or None.
        usable: Whether it is an image that can be used.
        group: None; known when all files are.
        remarks: List of what leaves it usable but is worth knowing, or None.
        key: Fields of `duplicates.KEYS`, or None.
    """

    path: str
    format: str | None = None
    width: int | None = None
    height: int | None = None
    channels: int | None = None
    orientation: int | None = None
    problem: str | None = None
    usable: bool = False
    group: int | None = None  # Known at the end.
    remarks: list | None = None
    key: tuple | None = None


def examine(path, open_file, channels=None):
    """Reads an image file and says what it is.

    Args:
        path: Its path or name.
        open_file: Function without arguments that opens it, as a binary file.
        channels: Channels that are asked for; None: any.

    Returns:
        A `Row`.

    Example:

    >>> from sklearn import datasets
    >>> path = datasets.__path__[0] + "/images/china.jpg"
    >>> row = examine("china.jpg", lambda: open(path, "rb"))
    >>> row.format, row.width, row.height, row.problem
    ('JPEG', 640, 427, None)
    """
    row = Row(path)
    try:
        with open_file() as file:
            head = file.read(_HEAD)
            row.format = format_of(head)
            if row.format is not None:
                contents = head + file.read()
        if row.format is None:
            row.problem = _foreign(row, head)
        else:
            _examine_image(row, contents, channels)
    except Exception as error:  # Decoders raise what they like.
        row.problem = _explain(error)
    row.usable = row.problem is None
    if row.usable:
        row.problem = "; ".join(row.remarks) or None
    return row


def _foreign(row, head):
    """Why a file of no supported format is unusable."""
    for start, name in _FOREIGN.items():
        if head.startswith(start):
            row.format = name
            return f"unsupported format: {name}"
    if not head:
        return "empty"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "not an image: HTML"
    if start.startswith((b"<svg", b"<?xml")):
        return "not an image: XML or SVG"
    is_text = not set(head) & _CONTROLS
    return "not an image: text" if is_text else "not an image: unknown content"


def _explain(error):
    """What an exception of the system or a decoder means for the file."""
    from PIL import Image

    if isinstance(error, UnusableError):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return "too large: more than twice the limit"
    if isinstance(error, MemoryError):
        return "too large: not enough memory"
    if isinstance(error, OSError) and error.errno:
        return f"unreadable: {error.strerror}"
    if isinstance(error, (Image.UnidentifiedImageError, SyntaxError)):
        return "corrupt: its header is damaged"
    text = " ".join(str(error).split())[:80] or type(error).__name__
    kind = "truncated" if "truncated" in text.lower() else "corrupt"
    return f"{kind}: {text}"


def _examine_image(row, contents, channels):
    """Fills in what the image tells."""
    picture = Picture(contents, row.format)
    row.width, row.height = picture.width, picture.height
    row.channels = picture.channels
    check_size(picture)
    if channels is not None:
        picture.check(channels)
    large = row.width * row.height > _LARGE and row.format != "JPEG"
    # Whole images in memory at a time: one large one, or small ones.
    with _ONE_LARGE if large else contextlib.nullcontext():
        small = _small(picture)
    row.orientation = picture.orientation
    if row.format in ("JPEG", "PNG"):
        row.orientation = int(orientation(contents))
    if row.orientation > 4:
        row.width, row.height = row.height, row.width
    row.remarks = _remarks(row, picture)
    digest = hashlib.blake2b(contents, digest_size=8)
    row.key = (
        int.from_bytes(digest.digest()),
        *perceptual_keys(small),
    )


def _remarks(row, picture):
    remarks = list(picture.remarks)
    if row.format != promised_format(row.path):
        remarks.insert(0, f"wrong extension: {row.format}")
    if picture.has_others:
        remarks.append(f"more channels: {picture.channels}")
    if picture.depth is not None:
        used = f": {picture.depth} bits in use" if picture.depth < 16 else ""
        remarks.append(f"16-bit{used}")
    if row.orientation > 1:
        remarks.append("EXIF rotation")
    return remarks


def _small(picture):
    """The image as training reads it, so that both agree, made small."""
    from PIL import Image

    if picture.name in ("JPEG", "PNG"):
        try:
            pixels = _read_small(picture.contents).numpy()
            if picture.name == "PNG" and picture.contents[24] == 16:
                picture.depth = int(deep_png(picture.contents)[1])
        # The latter where the message holds bytes of the file.
        except (tf.errors.OpError, UnicodeDecodeError):
            picture.load()  # Says better what is wrong.
            raise ValueError("it cannot be decoded") from None
    elif picture.has_others:
        pixels = picture.pixels(picture.channels)[..., :3]
        pixels = pixels if picture.channels > 2 else pixels[..., [0, 0, 0]]
    else:
        pixels = picture.pixels()
    image = Image.fromarray(pixels)
    return image.resize(SMALL, Image.Resampling.BILINEAR)


@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def _read_small(contents):
    with tf.device("CPU"):
        return decode_jpeg_or_png(contents, _CANVAS)


def are_parts(names):
    """Whether folders of these names are parts of a data set, and no classes.

    Example:

    >>> are_parts(["Train", "val"]), are_parts(["bus", "train"])
    (True, False)
    """
    return all(name.casefold() in _PARTS for name in names)


def class_labels(paths):
    """Numbers the top-level sub-directories of images.

    Args:
        paths: Relative paths, as `find_images` lists them.

    Returns:
        `(labels, class_names)`: an int64 array of the paths' length, and the
        sorted names of the sub-directories. `(None, ())` if a file lies
        outside them, or they are parts of a data set: `are_parts`.

    Example:

    >>> class_labels(["cat/1.jpg", "dog/2.jpg", "cat/old/3.jpg"])
    (array([0, 1, 0]), ('cat', 'dog'))
    """
    numbers = {}  # In the order in which they come: no list of all names.
    labels = np.fromiter(
        (
            numbers.setdefault(path.partition("/")[0], len(numbers))
            if "/" in path
            else -1
            for path in paths
        ),
        "int64",
        len(paths),
    )
    if not numbers or labels.min() < 0 or are_parts(numbers):
        return None, ()
    names = sorted(numbers)
    places = np.empty(len(names), "int64")
    places[[numbers[name] for name in names]] = np.arange(len(names))
    return places[labels], tuple(names)
