"""Arrays in .npz and .npy files, read without a second copy in memory."""

import contextlib
import pathlib
import weakref
import zipfile

import numpy as np

from keras_simclr import _files, archives
from keras_simclr.decoding import SMALLEST_SIDE
from keras_simclr.duplicates import image_keys
from keras_simclr.scanning import Row, write_manifest

_SAMPLE = 256  # Images whose values are looked at before anything is done.
_BLOCK = 1 << 20  # Bytes.
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_in_use = weakref.WeakValueDictionary()  # Not to be read twice.
# What arrays of objects should have been, if no texts or numbers.
_CURES = {
    "images": "images = np.stack(images), once all are of one size; or save "
    "them as files in a folder",
}


def is_array_file(path):
    """Whether a path is named like a file of arrays."""
    return str(path).lower().endswith((".npy", ".npz"))


def load_arrays(path):
    """The images of a file, and their labels if it has them.

    Arrays that are not compressed stay in the file: what is read of them is
    read then. Compressed ones are in memory once.

    Args:
        path: Path of an .npz file with `images` and perhaps `labels`, or of an
            .npy file of images.

    Returns:
        Dictionary of `images`, an array of shape `(N, height, width,
        channels)` that cannot be written to, and perhaps `labels`, `(N,)`. Grey
        images `(N, height, width)` get one channel.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is broken, or holds other arrays.

    Example:

    ```python
    arrays = load_arrays("flowers.npz")
    ```
    """
    if str(path).lower().endswith(".npy"):
        with _explaining(path), pathlib.Path(path).open("rb") as file:
            arrays = {"images": _array_at(path, "images", file, 0)}
    else:
        arrays = _from_archive(path)
    images = _checked_images(path, arrays["images"])
    images.flags.writeable = False
    if "labels" not in arrays:
        return {"images": images}
    labels = np.array(arrays["labels"])  # Small, and read at once.
    if labels.shape[:1] != images.shape[:1]:
        _refuse(
            path,
            "as many labels as images",
            f"labels of shape {labels.shape} for {len(images)} images",
        )
    if labels.dtype.kind not in "buifSU":
        _refuse(
            path,
            "labels that are numbers or texts",
            f"`labels` of dtype {labels.dtype}",
        )
    return {"images": images, "labels": labels}


@contextlib.contextmanager
def _explaining(path):
    """Context in which what NumPy and zipfile raise becomes one sentence."""
    try:
        yield
    except (_Refusal, MemoryError):
        raise
    except Exception as error:  # They raise what they like.
        if archives.is_of_system(error):
            raise
        text = str(error) or type(error).__name__
        raise ValueError(
            f"A file of arrays must be whole, as np.savez and np.save write "
            f"it. Received: {str(path)!r} ({text}). Copy it again, or write it "
            "anew"
        ) from None


class _Refusal(ValueError):
    """What we find wrong ourselves."""


def _refuse(path, rule, received):
    raise _Refusal(
        f"A file of arrays must hold {rule}. Received: {str(path)!r} with "
        f"{received}"
    )


def load_members(path):
    """All arrays of an .npz file by name, each read as `load_arrays` does.

    Args:
        path: Path of the file.

    Returns:
        Dictionary of arrays.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is broken, or holds arrays of objects.

    Example:

    ```python
    paths = load_members("embeddings.npz")["paths"]
    ```
    """
    with _explaining(path), zipfile.ZipFile(path) as archive:
        archives.check_members(path, archive)
        return {
            name: _member(path, name, archive, member)
            for name, member in _members(archive).items()
        }


def names_in(path):
    """Names of the arrays of an .npz file; refuses a broken one."""
    with _explaining(path), zipfile.ZipFile(path) as archive:
        return list(_members(archive))


def _members(archive):
    return {x.filename.removesuffix(".npy"): x for x in archive.infolist()}


def _from_archive(path):
    with _explaining(path), zipfile.ZipFile(path) as archive:
        archives.check_members(path, archive)
        members = _members(archive)
        if "images" not in members or set(members) - {"images", "labels"}:
            _refuse(
                path,
                "`images`, and may hold `labels`",
                f"{', '.join(sorted(members)) or 'nothing'}. Write it anew: "
                "np.savez(path, images=..., labels=...)",
            )
        return {
            name: _member(path, name, archive, x) for name, x in members.items()
        }


def _member(path, name, archive, member):
    """An array of an archive, as it was read if it is still in use."""
    key = str(path), name, _files.state(path)
    array = _in_use.get(key)
    if array is None:
        array = _read_member(path, name, archive, member)
        _in_use[key] = array
    return array


def _read_member(path, name, archive, member):
    """An array of an archive, in its place if it is not compressed."""
    with archive.open(member) as file:
        if member.compress_type != zipfile.ZIP_STORED:
            shape, _, dtype = _read_header(path, name, file)
            _check_holds(member.file_size - file.tell(), shape, dtype)
            file.seek(0)
            array = np.lib.format.read_array(file)
            file.read()  # To the end, where the check sum stands.
            return array
        while file.read(_BLOCK):
            pass  # For the check sum: later nobody looks.
    with pathlib.Path(path).open("rb") as file:
        # The lengths of a name and of further notes end its local header.
        file.seek(member.header_offset + 26)
        lengths = np.frombuffer(file.read(4), "<u2")
        start = file.tell() + int(lengths.sum())
        return _array_at(path, name, file, start)


def _array_at(path, name, file, start):
    """The array that begins at a byte of a file, without reading it."""
    file.seek(start)
    shape, is_fortran, dtype = _read_header(path, name, file)
    size = pathlib.Path(path).stat().st_size - file.tell()
    _check_holds(size, shape, dtype)
    if not np.prod(shape, dtype=object):
        return np.zeros(shape, dtype)
    order = "F" if is_fortran else "C"
    return np.memmap(path, dtype, "r", file.tell(), shape, order)


def _check_holds(size, shape, dtype):
    """Refuses a header that promises more than so many bytes behind it."""
    if size < int(np.prod(shape, dtype=object)) * dtype.itemsize:
        raise EOFError("it is cut short")


def _read_header(path, name, file):
    version = np.lib.format.read_magic(file)
    shape, is_fortran, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        cure = f"{name} = np.array({name}.tolist())"
        _refuse(
            path,
            "no arrays of objects, which may run code",
            f"`{name}`. Cure: {_CURES.get(name, cure)}",
        )
    return shape, is_fortran, dtype


def _checked_images(path, images):
    """The images with their channels; refuses what are none, with the cure."""
    with _explaining(path):
        shape = images.shape
        rule = "images of shape (N, height, width, channels)"
        received = f"`images` of shape {shape}"
        if images.ndim == 3:  # As keras.datasets.mnist has them.
            images = images[..., None]
        if images.ndim != 4:
            _refuse(path, rule, f"{received}, which are no images")
        if not len(images):
            _refuse(path, "at least one image", received)
        _, height, width, channels = images.shape
        if height < SMALLEST_SIDE <= min(width, channels) or (
            height < width == channels
        ):
            cure = "Cure: images = np.moveaxis(images, 1, -1)"
            _refuse(path, rule, f"{received}: channels come first. {cure}")
        if min(height, width) < SMALLEST_SIDE or not channels:
            _refuse(
                path,
                f"images of at least {SMALLEST_SIDE} pixels a side",
                received,
            )
        _check_values(path, images)
    return images


def _check_values(path, images):
    """Refuses numbers that are no pixels, with the cure, by some of them."""
    rule = "uint8 images, or floats in [0, 1]"
    received = f"`images` of dtype {images.dtype}"
    if images.dtype == "uint8":
        return
    if images.dtype.kind not in "biuf" or images.dtype.itemsize > 8:
        _refuse(path, rule, received)
    sample = images[:: -(-len(images) // _SAMPLE)].astype("float64")
    low, high = float(sample.min()), float(sample.max())
    received += f" and values from {low:g} to {high:g}"
    if images.dtype.kind == "f":
        # Of few or of NaN what reads them tells the rows.
        outside = (np.abs(sample - 0.5) > 0.501).any(axis=(1, 2, 3))
        if not np.isfinite(sample).all() or outside.mean() < 0.5:
            return
    scale = 255 if high <= 255 else 65535
    if images.dtype.kind == "b":
        cure = 'images.astype("uint8") * 255'
    elif low >= 0 and scale == 255 and images.dtype.kind != "f":
        cure = 'images.astype("uint8")'
    elif low >= 0:
        cure = f'(images / {scale}).astype("float32")'
    elif low >= -1 and high <= 1:
        cure = '((images + 1) / 2).astype("float32")'
    else:
        cure = "(images - images.min()) / (images.max() - images.min())"
    _refuse(path, rule, f"{received}. Cure: images = {cure}")


def scan_arrays(path, manifest, *, progress=None):
    """As `scanning.scan`, for a file of arrays: its rows are the paths.

    Args:
        path: As `load_arrays`.
        manifest: As `scanning.scan`.
        progress: As `scanning.scan`.

    Returns:
        As `scanning.scan`.

    Raises:
        OSError: As `load_arrays`.
        ValueError: As `load_arrays`.

    Example:

    ```python
    print(scan_arrays("flowers.npz", "flowers.parquet"))
    ```
    """
    images = load_arrays(path)["images"]
    width = len(str(len(images)))

    def read(place):
        image = np.asarray(images[place])
        height, length, channels = image.shape
        row = Row(f"{place:0{width}}", "array", length, height, channels)
        if not np.isfinite(image).all():
            row.problem = "NaN or infinity"
        elif image.dtype.kind == "f" and np.abs(image - 0.5).max() > 0.501:
            row.problem = "out of range"
        else:
            row.usable, row.key = True, image_keys(image)
            if image.min() == image.max():
                row.problem = "one value"
        return row

    return write_manifest(
        path, len(images), read, manifest, progress, has_folders=False
    )
