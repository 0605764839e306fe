"""Small pictures of images, as text that stands in a page."""

import base64
import dataclasses
import io

import numpy as np

# Sides in pixels, and WebP's quality, the best first.
_SIZES = ((96, 70), (80, 70), (64, 70), (48, 70), (32, 90), (32, 70), (24, 70))
_EXACT = 32  # Up to this side nothing is lost, if there is room.
_TRIED = 32  # Of which the size of all is estimated.


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """A picture in a page.

    Attributes:
        address: `data:` address of a WebP file.
        width: Its width, pixels.
        height: Its height, pixels.
        is_exact: Whether it is a small image itself, in which pixels count.
    """

    address: str
    width: int
    height: int
    is_exact: bool = False


def shrunk(image, side=_SIZES[0][0]):
    """An image as `encode` takes it, no larger than a side.

    Args:
        image: Array of shape `(height, width, channels)`, uint8 or float in
            [0, 1]. Of other than three or more channels the first is shown in
            grey, of more than three the first three in colour.
        side: Pixels of the longer side at most; nothing is made larger.

    Returns:
        `PIL.Image` of RGB.

    Example:

    >>> shrunk(np.zeros((200, 100, 1), "uint8"), 50).size
    (25, 50)
    """
    from PIL import Image

    image = np.asarray(image)
    if image.dtype != np.uint8:
        image = np.round(255 * np.clip(image, 0, 1)).astype("uint8")
    image = image[..., : 3 if image.shape[2] > 2 else 1]
    image = np.broadcast_to(image, (*image.shape[:2], 3))
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture


def encode(pictures, most):
    """Encodes pictures anew, as large as they may be.

    Nothing but the pixels is in them: no EXIF, no names.

    Args:
        pictures: List of `PIL.Image`, as `shrunk` returns them.
        most: Bytes that all together may take, as text in a page; if 24 pixels
            a side take more, they are so.

    Returns:
        List of `Thumbnail`.

    Example:

    >>> pictures = [shrunk(np.zeros((9, 8, 3), "uint8"))]
    >>> thumbnail = encode(pictures, most=10_000)[0]
    >>> thumbnail.address[:23], thumbnail.width, thumbnail.height
    ('data:image/webp;base64,', 8, 9)
    """
    step = max(1, len(pictures) // _TRIED)
    for size in _SIZES:
        few = [_encoded(x, *size) for x in pictures[::step]]
        share = len(pictures) / max(1, len(few))
        if size != _SIZES[-1] and share * _length(few) > most:
            continue
        found = [_encoded(x, *size) for x in pictures]
        if size == _SIZES[-1] or _length(found) <= most:
            break
    return found


def _length(thumbnails):
    return sum(len(x.address) for x in thumbnails)


def _encoded(picture, side, quality):
    from PIL import Image

    is_exact = max(picture.size) <= _EXACT < side
    if max(picture.size) > side:
        picture = picture.copy()
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "WEBP", lossless=is_exact, quality=quality)
    text = base64.b64encode(file.getvalue()).decode("ascii")
    address = f"data:image/webp;base64,{text}"
    return Thumbnail(address, *picture.size, is_exact)
