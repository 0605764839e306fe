"""Images in a directory: finding them, scanning them, and the manifest."""

import concurrent.futures
import dataclasses
import heapq
import logging
import os
import pathlib
import stat
import types
import warnings

import numpy as np

from keras_simclr import _checks, duplicates
from keras_simclr.decoding import MOST_PIXELS, SMALLEST_SIDE
from keras_simclr.examination import (
    EXTENSIONS,
    Row,
    examine,
    promised_format,
)

_logger = logging.getLogger("keras_simclr")

_SHOWN = 10  # Files that an error message lists.
_CHUNK = 1024  # Files that are read before their rows are stored.

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
    "wrong extension": "Nothing to do: the content decides.",
    "animated": "The first frame is used.",
    "CMYK": "Meant for print: the colours may look different on a screen.",
    "16-bit": "8 bits per channel are used.",
    "palette": "Nothing to do.",
    "transparency": "Transparent parts become white.",
    "EXIF rotation": "Nothing to do: width and height are as seen.",
}


def find_images(directory):
    """Lists the images in a directory and its sub-directories.

    An image is a regular file named .bmp, .gif, .jpeg, .jpg, .png or .webp
    (in any case). No file is opened. Hidden files and directories are left
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
    directory = _readable_directory(directory)
    files = list(_walk(directory, _raise_if_folder))
    images = sorted(path for path in files if promised_format(path))
    if not images:
        raise ValueError(
            f"`directory` must hold images ({', '.join(EXTENSIONS)}). "
            f"Received: directory={directory!r} with {len(files)} other files"
        )
    return images


def _readable_directory(directory):
    """Returns a directory's path as text; raises if it cannot be listed."""
    directory = os.fsdecode(directory)
    received = f"Received: directory={directory!r}"
    try:
        os.scandir(directory).close()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"`directory` must exist. {received}. Check its spelling, and "
            "that its disk is mounted"
        ) from None
    except NotADirectoryError:
        raise NotADirectoryError(
            f"`directory` must be a directory, not a file. {received}. Name "
            "the directory that holds the images"
        ) from None
    except PermissionError:
        raise PermissionError(
            f"`directory` must be readable. {received}. Make it so, with "
            "chmod +rx, or ask its owner"
        ) from None
    return directory


def _raise_if_folder(path, kind, error):
    if kind == "unreadable folder":
        raise type(error)(
            "Every sub-directory must be readable, or its images would "
            f"silently be missing. Received: {path!r} ({error.strerror}). "
            "Make it so, with chmod +rx, or move it elsewhere"
        )


def _walk(directory, report):
    """Yields regular files; reports what is in the way of others.

    `report` takes a path, the kind of problem and the `OSError` or None.
    """
    root, seen = pathlib.Path(directory), set()
    folders, links = [""], []
    while folders or links:
        # Links come last and in order: real paths win, and always the same.
        folder = folders.pop() if folders else heapq.heappop(links)
        try:
            status = (root / folder).stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(root / folder) as entries:
                entries = list(entries)
        except OSError as error:
            report(folder, "unreadable folder", error)
            continue
        prefix = folder and f"{folder}/"
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = prefix + entry.name
            if entry.is_file(follow_symlinks=False):
                yield path
            elif entry.is_dir(follow_symlinks=False):
                folders.append(path)
            else:
                yield from _follow(entry, path, links, report)


def _follow(entry, path, links, report):
    """What `_walk` does with links, fifos, sockets and devices."""
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        if promised_format(path):
            report(path, "broken link", error)
        return
    if stat.S_ISREG(mode):
        yield path
    elif stat.S_ISDIR(mode):
        heapq.heappush(links, path)
    elif promised_format(path):
        report(path, "not a regular file", None)


def class_labels(paths):
    """Numbers the top-level sub-directories of images.

    Args:
        paths: Relative paths, as `find_images` lists them.

    Returns:
        `(labels, class_names)`: an int64 array of the paths' length, and the
        sorted names of the sub-directories. `(None, ())` if a file lies
        outside them, or there are fewer than two.

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
    if len(numbers) < 2 or labels.min() < 0:
        return None, ()
    names = sorted(numbers)
    places = np.empty(len(names), "int64")
    places[[numbers[name] for name in names]] = np.arange(len(names))
    return places[labels], tuple(names)


class ImageFolder:
    """The image files of a folder, or a part of them.

    Args:
        directory: Path of the folder.
        manifest: Path of its manifest, which `scan` wrote, or None. With it,
            files with problems are left out beforehand, and duplicates of an
            image are not its negatives.
        split: `"train"`, all images, or a part of them in TFDS's notation,
            such as `"train[:90%]"`, taken from a random order that is always
            the same.
        unreadable_limit: Share of the files that may be unreadable, 0 to 1.
            With more, reading stops with a list of them.

    Attributes:
        paths: List of paths relative to the folder, sorted.
        labels: int64 array, the place of each file's sub-folder in
            `class_names`; or None if files lie beside the sub-folders, or
            there are fewer than two of them.
        class_names: Tuple of the names of the sub-folders, or empty.
        groups: int64 array, equal for duplicates; or None if there are none,
            or no manifest.
        largest: Longest side of an image, pixels; infinite without a manifest.
        left_out: Dictionary from the paths of files that the manifest finds
            unusable to the reason.
        skipped: The same of files that could not be read, so far.

    Raises:
        OSError: If there is no such folder, or it may not be read.
        ValueError: If it holds no image, or `split` is another.

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
        rows = rows_of_split(split, len(self.paths))
        if rows != slice(0, len(self.paths)):
            shuffled = np.random.default_rng(0).permutation(len(self.paths))
            self._keep(np.sort(shuffled[rows]))
        if self.groups is not None:
            has_duplicates = len(np.unique(self.groups)) < len(self.groups)
            self.groups = self.groups if has_duplicates else None

    def _keep(self, places):
        self.paths = [self.paths[place] for place in places]
        if self.labels is not None:
            self.labels = self.labels[places]
        if self.groups is not None:
            self.groups = self.groups[places]

    def skip(self, places):
        """Notes and reports files as skipped.

        Args:
            places: Places in `paths`.

        Returns:
            Error message if there are too many by now, else an empty string.
        """
        for place in places:
            path = self.paths[place]
            if path not in self.skipped:
                row = examine(self.directory, path)
                reason = "broken" if row.usable else row.problem
                self.skipped[path] = reason
                _logger.warning("Skipped %r: %s", path, reason)
            if len(self.skipped) > self.unreadable_limit * len(self.paths):
                return self._complaint()
        return ""

    def readable(self):
        """The paths of the images that a dataset in order has, as it goes.

        Yields:
            Strings: `paths` without those that were skipped until then.
        """
        return (path for path in self.paths if path not in self.skipped)

    def _complaint(self):
        listing = [f"{p} ({why})" for p, why in self.skipped.items()]
        more = ", ..." * (len(listing) > _SHOWN)
        return (
            f"At most {self.unreadable_limit:.2%} of the files may be "
            f"unreadable. Received: {len(listing)} of {len(self.paths)} so "
            f"far: {', '.join(listing[:_SHOWN])}{more}. Scan the folder and "
            "use its manifest, or raise `unreadable_limit`"
        )


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
    import tensorflow_datasets as tfds

    _checks.choice("split", split.split("[")[0], ("train",))
    instruction = tfds.core.ReadInstruction.from_spec(split)
    whole = {"train": types.SimpleNamespace(num_examples=size)}
    (part,) = instruction.to_absolute(whole)
    first, last, _ = slice(part.from_, part.to).indices(size)
    return slice(first, last)


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

    def __str__(self):
        unusable = sum(number for number, _ in self.problems.values())
        images, files = _count(self.images, "image"), _count(unusable, "file")
        others = _count(self.others, "other file")
        lines = [f"{images} usable, {files} left out, {others}."]
        if self.images:
            formats = [f"{name} {n:,}" for name, n in self.formats.items()]
            sizes = ["{}x{}".format(*size) for size in self.sizes]
            lines += [
                f"Formats: {', '.join(formats)}.",
                "Sizes: smallest {}, median {}, largest {} "
                "(width x height).".format(*sizes),
            ]
        if self.class_names:
            shown = ", ".join(self.class_names[:10])
            more = ", ..." if len(self.class_names) > 10 else ""
            text = f"{len(self.class_names):,} folders: {shown}{more}"
            lines.append(f"Classes: {_printable(text)}.")
        duplicates = "none"
        if self.duplicate_groups:
            duplicates = (
                f"{_count(self.duplicate_images, 'image')} in "
                f"{_count(self.duplicate_groups, 'group')}"
            )
        lines.append(f"Duplicates: {duplicates}.")
        lines += _listing("Left out:", self.problems)
        lines += _listing("Used, but worth knowing:", self.remarks)
        return "\n".join(lines)


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
    - `format`: JPEG, PNG, BMP, GIF or WEBP, another one that is not
      supported, or null.
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
    import pyarrow as pa
    import pyarrow.parquet

    directory = _readable_directory(directory)
    manifest = pathlib.Path(manifest)
    if manifest.exists() or manifest.is_symlink():
        raise FileExistsError(
            "`manifest` must be a new file: nothing is overwritten. "
            f"Received: manifest={str(manifest)!r}"
        )
    problems = {}

    def report(path, kind, error):
        problems[path] = f"{kind}: {error.strerror}" if error else kind

    paths = sorted([*_walk(directory, report), *problems])
    manifest.parent.mkdir(parents=True, exist_ok=True)
    staged = manifest.with_name(f".staged-{manifest.name}")
    try:
        with staged.open("wb") as file:  # Fails now, not after an hour.
            table = _read_all(directory, paths, problems, progress)
            if not len(table):
                raise ValueError(
                    "`directory` must hold images. Received: "
                    f"directory={directory!r} with {len(paths)} other files"
                )
            pa.parquet.write_table(table, file)
        staged.replace(manifest)
    finally:
        staged.unlink(missing_ok=True)
    return _summary(table, others=len(paths) - len(table))


def _schema():
    import pyarrow as pa

    return pa.schema(
        {
            "path": pa.binary(),
            "format": pa.string(),
            "width": pa.int32(),
            "height": pa.int32(),
            "channels": pa.int32(),
            "orientation": pa.int32(),
            "group": pa.int64(),
            "problem": pa.string(),
            "usable": pa.bool_(),
        }
    )


def _read_all(directory, paths, problems, progress):
    """The manifest of files as a `pyarrow.Table`."""
    import imagehash  # noqa: F401 Here, not in several threads at once.
    import pyarrow as pa
    from PIL import Image

    Image.init()

    def read(path):
        if path in problems:
            return Row(path, problem=problems[path])
        return examine(directory, path)

    schema = _schema()
    tables, size = [schema.empty_table()], 0
    keys = np.zeros(len(paths), duplicates.KEYS)
    # Threads are enough: Pillow lets others run while it decodes.
    with (
        warnings.catch_warnings(),
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        warnings.simplefilter("ignore")
        for start in range(0, len(paths), _CHUNK):
            rows = []
            results = pool.map(read, paths[start : start + _CHUNK])
            for done, row in enumerate(results, start + 1):
                rows += [row] if row else []
                if progress:
                    progress(done, len(paths))
            tables.append(_as_table(rows, schema))
            for row in rows:
                keys[size] = row.key or 0
                size += 1
    table = pa.concat_tables(tables)
    groups = duplicates.group(keys[:size], table["usable"].to_numpy())
    place = schema.get_field_index("group")
    return table.set_column(place, schema.field(place), pa.array(groups))


def _as_table(rows, schema):
    import pyarrow as pa

    columns = {
        name: [getattr(row, name) for row in rows] for name in schema.names
    }
    columns["path"] = [os.fsencode(path) for path in columns["path"]]
    return pa.table(columns, schema)


def _summary(table, others):
    """The `Scan` of a manifest."""
    paths, usable = _paths(table), table["usable"].to_numpy()
    problems, remarks = {}, {}
    for path, is_usable, text in zip(
        paths, usable, table["problem"].to_pylist(), strict=True
    ):
        for part in text.split("; ") if text and is_usable else [text]:
            _add_example(remarks if is_usable else problems, part, path)
    images = table.filter(usable)
    names, numbers = np.unique(images["format"].to_pylist(), return_counts=True)
    sizes = np.stack([images["width"], images["height"]], axis=1)
    order = np.argsort(sizes.prod(axis=1, dtype="int64"), kind="stable")
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
        class_names=class_names,
    )


def _add_example(kinds, text, path):
    if text:
        kind = text.partition(":")[0]
        number, examples = kinds.get(kind, (0, ()))
        kinds[kind] = number + 1, (*examples, path)[:3]


@dataclasses.dataclass(frozen=True, eq=False)
class Manifest:
    """The usable images of a manifest, sorted by path.

    Attributes:
        paths: List of paths relative to the directory, as `find_images`.
        groups: int64 array; the same number for duplicates.
        widths: int64 array of pixels as seen, after EXIF rotation.
        heights: The same.
        problems: Dictionary from the paths of unusable files to the reason.
    """

    paths: list
    groups: np.ndarray
    widths: np.ndarray
    heights: np.ndarray
    problems: dict


def read_manifest(path):
    """Reads a manifest.

    Args:
        path: Path of a manifest that `scan` wrote.

    Returns:
        `Manifest`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no manifest.

    Example:

    ```python
    manifest = read_manifest("photos.parquet")
    ```
    """
    import pyarrow.compute as pc
    import pyarrow.parquet

    received = f"Received: path={os.fsdecode(path)!r}"
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(
            f"`path` must be a manifest. {received}, which is no file. Write "
            "one with keras-simclr scan"
        )
    try:
        table = pyarrow.parquet.ParquetFile(path).read()
        table = table.select(_schema().names).cast(_schema())
    except (ValueError, KeyError) as error:
        raise ValueError(
            "`path` must be a manifest that keras-simclr scan wrote. "
            f"{received} ({error})"
        ) from None
    table = table.sort_by("path")
    images = table.filter(table["usable"])
    columns = {
        f"{name}s": images[name].to_numpy().astype("int64")
        for name in ("group", "width", "height")
    }
    others = table.filter(pc.invert(table["usable"]))
    problems = dict(
        zip(_paths(others), others["problem"].to_pylist(), strict=True)
    )
    return Manifest(_paths(images), problems=problems, **columns)


def _paths(table):
    return [os.fsdecode(path) for path in table["path"].to_pylist()]
