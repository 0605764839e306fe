"""What an image file holds, and what is wrong with it."""

import contextlib
import dataclasses
import hashlib
import pathlib
import threading

import numpy as np

from keras_simclr.decoding import FORMATS, MOST_PIXELS, SMALLEST_SIDE
from keras_simclr.duplicates import SMALL, perceptual_keys

# Extensions by the format that they promise.
EXTENSIONS = {
    ".bmp": "BMP",
    ".gif": "GIF",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
}
_HEAD = 512  # Bytes that tell what a file holds.

# First bytes of image formats, also of those that are not supported.
_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"8BPS": "PSD",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000",
}
_BRANDS = {
    b"avif": "AVIF",
    b"heic": "HEIC",
    b"heix": "HEIC",
    b"mif1": "HEIC",
    b"msf1": "HEIC",
}
_BMP_HEADERS = {
    size.to_bytes(4, "little") for size in (12, 40, 52, 56, 64, 108, 124)
}
_CONTROLS = frozenset(range(32)) - frozenset(b"\t\n\f\r\x1b")

# What turns an image as EXIF's number asks: `PIL.Image.Transpose`.
_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}

# Images above so many pixels are decoded one at a time, for memory's sake.
_LARGE = 1 << 24
_ONE_LARGE = threading.Lock()


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


def examine(directory, path):
    """Reads an image file and says what it is.

    Args:
        directory: Path of the folder.
        path: Path of a regular file relative to it.

    Returns:
        A `Row`; None if the file neither is an image nor named like one.

    Example:

    >>> from sklearn import datasets
    >>> row = examine(datasets.__path__[0], "images/china.jpg")
    >>> row.format, row.width, row.height, row.problem
    ('JPEG', 640, 427, None)
    """
    row = Row(path)
    try:
        with pathlib.Path(directory, path).open("rb") as file:
            head = file.read(_HEAD)
            row.format = _format(head)
            if row.format in FORMATS:
                file.seek(0)
                _decode(row, file, head)
            else:
                row.problem = _foreign(row.format, head)
    except Exception as error:  # Decoders raise what they like.
        row.problem = _explain(error)
    row.usable = row.problem is None
    if row.usable:
        row.problem = "; ".join(row.remarks) or None
    return row if row.format or promised_format(path) else None


def promised_format(path):
    """The format that a file's extension promises.

    Args:
        path: Path.

    Returns:
        Name of the format, or None.

    Example:

    >>> promised_format("photos/1.JPG")
    'JPEG'
    """
    return EXTENSIONS.get(path[path.rfind(".") :].lower())


def _format(head):
    """The image format that a file's first bytes tell, or None."""
    for start, name in _MAGIC.items():
        if head.startswith(start):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12])
    # Two letters alone could begin a text; a BMP's header has these lengths.
    if head[:2] == b"BM" and head[14:18] in _BMP_HEADERS:
        return "BMP"
    return None


def _foreign(name, head):
    """Why a file of no supported format is unusable."""
    if name:
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

    if isinstance(error, Image.DecompressionBombError):
        return "too large: more than twice the limit"
    if isinstance(error, MemoryError):
        return "too large: not enough memory"
    if isinstance(error, OSError) and error.errno:
        return f"unreadable: {error.strerror}"
    if isinstance(error, Image.UnidentifiedImageError):
        return "corrupt: its header is damaged"
    text = " ".join(str(error).split())[:80] or type(error).__name__
    kind = "truncated" if "truncated" in text.lower() else "corrupt"
    return f"{kind}: {text}"


def _decode(row, file, head):
    """Fills in what the image tells."""
    from PIL import Image

    digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8))
    with Image.open(file, formats=[row.format]) as image:
        row.width, row.height = image.size
        row.channels = 3 if image.mode == "P" else len(image.getbands())
        pixels = row.width * row.height
        if pixels > MOST_PIXELS:
            row.problem = f"too large: {row.width}x{row.height} pixels"
            return
        if min(image.size) < SMALLEST_SIDE:
            row.problem = f"too small: {row.width}x{row.height} pixels"
            return
        row.remarks = _remarks(row, image, head)
        # Whole images in memory at a time: one large one, or small ones.
        large = pixels > _LARGE and row.format != "JPEG"
        with _ONE_LARGE if large else contextlib.nullcontext():
            small = _shrink(image, row.format)
        row.orientation = _orientation(image)
    if row.orientation > 1:
        row.remarks.append("EXIF rotation")
        small = small.transpose(_TURNS[row.orientation])
    if row.orientation > 4:
        row.width, row.height = row.height, row.width
    row.key = (
        int.from_bytes(digest.digest()),
        *perceptual_keys(small),
    )


def _remarks(row, image, head):
    remarks = []
    if row.format != promised_format(row.path):
        remarks.append(f"wrong extension: {row.format}")
    if row.format != "JPEG" and getattr(image, "is_animated", False):
        remarks.append("animated")
    if image.mode == "CMYK":
        remarks.append("CMYK")
    # Pillow opens 16-bit colour as 8-bit: the header tells.
    if row.format == "PNG" and head[24] == 16:
        remarks.append("16-bit")
    if image.mode == "P" and row.format != "GIF":
        remarks.append("palette")
    if image.has_transparency_data:
        remarks.append("transparency")
    return remarks


def _shrink(image, name):
    """Decodes all of an image, into 32 x 32 pixels of RGB."""
    from PIL import Image

    box = None
    if name == "JPEG":
        # Inverse transforms for 128 pixels are enough, and 3 times as fast.
        _, box = image.draft(None, (128, 128)) or (None, None)
    image.load()
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype("uint8"))
    elif image.mode == "P" or "transparency" in image.info:
        image = image.convert("RGBA")
    elif image.mode == "1":
        image = image.convert("L")
    small = image.resize(SMALL, Image.Resampling.BILINEAR, box=box)
    if small.has_transparency_data:
        white = Image.new("RGBA", small.size, "white")
        small = Image.alpha_composite(white, small.convert("RGBA"))
    return small.convert("RGB")


def _orientation(image):
    """EXIF's number; 1, which means as it is, if there is none."""
    try:
        number = image.getexif().get(0x0112, 1)
    except Exception:  # Damaged EXIF does not harm the image.
        return 1
    return number if number in range(1, 9) else 1
