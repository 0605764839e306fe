"""Small pictures of images, as text that stands in a page."""

import base64
import dataclasses
import io

import numpy as np

_SIDES = (96, 80, 64, 48, 32, 24)  # Pixels, the best first.
_EXACT = 32  # Up to this side nothing is lost.
_QUALITY = 70
_TRIED = 32  # Of which the size of all is estimated.


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """A picture in a page.

    Attributes:
        address: `data:` address of a WebP file.
        width: Its width, pixels.
        height: Its height, pixels.
    """

    address: str
    width: int
    height: int


def shrunk(image, side=_SIDES[0]):
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
    for side in _SIDES:
        few = [_encoded(x, side) for x in pictures[::step]]
        share = len(pictures) / max(1, len(few))
        if side > _SIDES[-1] and share * _length(few) > most:
            continue
        found = [_encoded(x, side) for x in pictures]
        if side == _SIDES[-1] or _length(found) <= most:
            break
    return found


def _length(thumbnails):
    return sum(len(x.address) for x in thumbnails)


def _encoded(picture, side):
    from PIL import Image

    is_exact = max(picture.size) <= _EXACT
    if max(picture.size) > side:
        picture = picture.copy()
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(
        file, "WEBP", lossless=is_exact and side > _EXACT, quality=_QUALITY
    )
    text = base64.b64encode(file.getvalue()).decode("ascii")
    return Thumbnail(f"data:image/webp;base64,{text}", *picture.size)
