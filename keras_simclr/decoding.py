"""Image files, whatever is in them, as pixels that fit on a canvas."""

import dataclasses
import io
import math

import tensorflow as tf

# What Pillow calls a decompression bomb: 256 MiB as RGB. Refused unread.
MOST_PIXELS = 89_478_485
SMALLEST_SIDE = 8  # Pixels.


@dataclasses.dataclass(frozen=True)
class Format:
    """How files of an image format are recognised.

    Attributes:
        extensions: Tuple of what their names may end in, in lower case.
        first_bytes: Dictionary from offsets, bytes, to a tuple of what may
            stand there.
    """

    extensions: tuple
    first_bytes: dict


# The formats that are read, by the names that Pillow gives them.
FORMATS = {
    "JPEG": Format((".jpeg", ".jpg"), {0: (b"\xff\xd8\xff",)}),
    "PNG": Format((".png",), {0: (b"\x89PNG\r\n\x1a\n",)}),
    # Two letters alone could begin a text: lengths of a header follow.
    "BMP": Format(
        (".bmp",),
        {
            0: (b"BM",),
            14: tuple(
                length.to_bytes(4, "little")
                for length in (12, 40, 52, 56, 64, 108, 124)
            ),
        },
    ),
    "GIF": Format((".gif",), {0: (b"GIF87a", b"GIF89a")}),
    "WEBP": Format((".webp",), {0: (b"RIFF",), 8: (b"WEBP",)}),
}
# Formats by the extensions that promise them, sorted.
EXTENSIONS = dict(
    sorted((x, name) for name, y in FORMATS.items() for x in y.extensions)
)

_REDUCTIONS = (1, 2, 4, 8)  # Scales at which JPEGs can be decoded.
_HEAD = 1 << 16  # Bytes; an EXIF block is no longer.
_ENTRIES = 256  # Of an EXIF directory that are looked at: usual are 12.


def decode(contents, canvas_size):
    """Decodes an image file, to a size that fits on a square canvas.

    Files of all `FORMATS`, of animations the first frame, become 8-bit RGB,
    turned as their EXIF orientation says, on white where they are transparent.
    An image larger than the canvas is made smaller, in its proportions; JPEGs,
    as far as possible, while they are decoded.

    Args:
        contents: Scalar string tensor, the bytes of the file.
        canvas_size: Height and width of the canvas, pixels.

    Returns:
        uint8 tensor of shape `(height, width, 3)`.

    Raises:
        tf.errors.OpError: If it is no such file, or broken, or has less than 8
            pixels a side, or more pixels than `MOST_PIXELS`: that is seen in
            its header.

    Example:

    >>> contents = tf.io.encode_png(np.zeros((20, 10, 3), "uint8"))
    >>> decode(contents, 16).shape
    TensorShape([16, 8, 3])
    """
    return tf.switch_case(
        _kind(contents),
        [
            lambda: _jpeg(contents, canvas_size),
            lambda: _shrunk(_png(contents), canvas_size),
            lambda: _shrunk(_other(contents), canvas_size),
        ],
    )


def decode_jpeg_or_png(contents, canvas_size):
    """Decodes as `decode` does, by TensorFlow alone: for a SavedModel.

    Args:
        contents: As `decode`.
        canvas_size: As `decode`.

    Returns:
        As `decode`.

    Raises:
        tf.errors.OpError: As `decode`; and if it is another file.

    Example:

    >>> contents = tf.io.encode_png(np.zeros((20, 10, 3), "uint8"))
    >>> decode_jpeg_or_png(contents, 16).shape
    TensorShape([16, 8, 3])
    """
    kind = _kind(contents)
    text = "Encoded images must be JPEG or PNG."
    known = tf.raw_ops.Assert(condition=kind < 2, data=[text])
    with tf.control_dependencies([known]):
        kind = tf.identity(kind)
    return tf.cond(
        kind == 0,
        lambda: _jpeg(contents, canvas_size),
        lambda: _shrunk(_png(contents), canvas_size),
    )


def _kind(contents):
    """0: JPEG; 1: PNG; 2: another format."""
    is_jpeg, is_png = (
        tf.strings.substr(contents, 0, len(start)) == start
        for name in ("JPEG", "PNG")
        for start in FORMATS[name].first_bytes[0]
    )
    return tf.where(is_jpeg, 0, tf.where(is_png, 1, 2))


def fitted(image, canvas_size):
    """The image, made smaller if it is larger than a square canvas.

    Args:
        image: uint8 tensor of shape `(height, width, channels)`.
        canvas_size: Height and width of the canvas, pixels.

    Returns:
        As `image`; neither side is longer than the canvas.

    Raises:
        tf.errors.InvalidArgumentError: If it has less than 8 pixels a side.

    Example:

    >>> fitted(tf.ones((8, 24, 3), tf.uint8), 12).shape
    TensorShape([4, 12, 3])
    """
    with _usable(tf.shape(image)[:2]):
        return _shrunk(image, canvas_size)


def _usable(size):
    """Context for what must only be done with images of a usable size."""
    # `tf.debugging.Assert` is a branch, and branches cost time per image.
    return tf.control_dependencies(
        [
            tf.raw_ops.Assert(condition=condition, data=[size])
            for condition in (
                tf.reduce_min(size) >= SMALLEST_SIDE,
                tf.reduce_prod(tf.cast(size, tf.int64)) <= MOST_PIXELS,
            )
        ]
    )


def _shrunk(image, canvas_size):
    size = tf.shape(image)[:2]
    share = canvas_size / tf.reduce_max(size)

    def shrunk():
        smaller = tf.round(tf.cast(size, tf.float64) * share)
        smaller = tf.maximum(tf.cast(smaller, tf.int32), 1)
        pixels = tf.image.resize(image, smaller, method="area")
        return tf.cast(tf.round(pixels), tf.uint8)

    return tf.cond(share < 1, shrunk, lambda: image)


def _jpeg(contents, canvas_size):
    size = tf.io.extract_jpeg_shape(contents)[:2]
    longest = tf.reduce_max(size)
    # A length of 0.8 canvases is left as it is: halves would be too small.
    reductions = tf.reduce_sum(
        tf.cast(5 * (longest // _REDUCTIONS[1:]) >= 4 * canvas_size, tf.int32)
    )
    with _usable(size):
        image = tf.switch_case(
            reductions,
            [
                lambda scale=scale: tf.io.decode_jpeg(contents, 3, ratio=scale)
                for scale in _REDUCTIONS
            ],
        )
    # The camera's notes come first, or after a JFIF block of 18 bytes.
    starts = [tf.strings.substr(contents, place, 4) for place in (6, 24)]
    has_notes = tf.stack(starts) == b"Exif"
    is_large = tf.reduce_max(tf.shape(image)) > canvas_size

    def turned_and_shrunk():
        place = tf.where(has_notes[0], 12, 30)
        notes = tf.strings.substr(contents, place, _HEAD)
        is_turned = tf.reduce_any(has_notes)
        orientation = tf.where(is_turned, _orientation(notes), 1)
        return _upright(_shrunk(image, canvas_size), orientation)

    # Most images are neither: one branch costs less than two.
    return tf.cond(
        tf.reduce_any(has_notes) | is_large, turned_and_shrunk, lambda: image
    )


def _orientation(notes):
    """What EXIF notes say about the image, 1 to 8; 1 if they are broken."""
    # EXIF 2.32: a TIFF header, which says where the directory starts, and there
    # entries of 12 bytes, of which one has the tag 0x0112.
    header = tf.strings.substr(notes, 0, 4)
    is_little_endian = header == b"II*\0"
    is_known = is_little_endian | (header == b"MM\0*")
    beyond = tf.constant(b"\0" * (12 * _ENTRIES + 8))
    codes = tf.io.decode_raw(tf.strings.join([notes, beyond]), tf.uint8)

    def number(codes):
        codes = tf.cast(codes, tf.int64)
        weights = 256 ** tf.range(codes.shape[-1], dtype=tf.int64)
        return tf.where(
            is_little_endian,
            tf.reduce_sum(codes * weights, axis=-1),
            tf.reduce_sum(codes * weights[::-1], axis=-1),
        )

    length = tf.cast(tf.strings.length(notes), tf.int64)
    first = number(tf.ensure_shape(codes[4:8], [4]))
    codes = codes[tf.minimum(first, length) :]
    count = number(tf.ensure_shape(codes[:2], [2]))
    entries = tf.reshape(codes[2 : 2 + 12 * _ENTRIES], (_ENTRIES, 12))
    is_it = number(entries[:, :2]) == 0x0112
    is_it &= is_known & (tf.range(_ENTRIES, dtype=tf.int64) < count)
    return tf.reduce_max(tf.where(is_it, number(entries[:, 8:10]), 1))


def _upright(image, orientation):
    """5 to 8 are transposed, 3, 4, 7 and 8 upside down, 2, 3, 6, 7 mirrored."""
    for orientations, turned in (
        ((5, 6, 7, 8), lambda image: tf.transpose(image, (1, 0, 2))),
        ((3, 4, 7, 8), lambda image: tf.reverse(image, [0])),
        ((2, 3, 6, 7), lambda image: tf.reverse(image, [1])),
    ):
        image = tf.cond(
            tf.reduce_any(orientation == orientations),
            lambda image=image, turned=turned: turned(image),
            lambda image=image: image,
        )
    return image


def _png(contents):
    header = tf.strings.substr(contents, 16, 10)
    sides = tf.strings.substr(header, 0, 8)
    sides = tf.io.decode_raw(sides, tf.int32, little_endian=False)
    depth = tf.cast(tf.io.decode_raw(header, tf.uint8)[8], tf.int32)  # Bits.
    with _usable(sides):
        image = tf.io.decode_png(contents, channels=4)
    color, alpha = image[..., :3], image[..., 3:]
    # Without transparency, TensorFlow (seen with 2.21) makes alpha as many
    # ones as an image of less than 8 bits has bits.
    ones = tf.cast(2 ** tf.minimum(depth, 8) - 1, tf.uint8)
    return tf.cond(
        tf.reduce_all(alpha == 255) | tf.reduce_all(alpha == ones),
        lambda: color,
        lambda: _on_white(color, alpha),
    )


def _on_white(color, alpha):
    color, alpha = tf.cast(color, tf.int32), tf.cast(alpha, tf.int32)
    return tf.cast((color * alpha + 255 * (255 - alpha)) // 255, tf.uint8)


def _other(contents):
    image = tf.numpy_function(_pillow, [contents], tf.uint8, stateful=False)
    return tf.ensure_shape(image, (None, None, 3))


def _pillow(contents):
    """The image as Pillow reads it."""
    import numpy as np
    import PIL.Image
    import PIL.ImageOps

    with PIL.Image.open(io.BytesIO(contents), formats=tuple(FORMATS)) as image:
        width, height = image.size
        if min(image.size) < SMALLEST_SIDE or width * height > MOST_PIXELS:
            raise ValueError(f"not of a usable size: {width} x {height}")
        image = PIL.ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = PIL.Image.new("RGBA", image.size, "white")
            image = PIL.Image.alpha_composite(white, image)
        return np.asarray(image.convert("RGB"))


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


def canvas_for(image_size, smallest_crop=0.2):
    """A canvas on which crops have at least the pixels of the views.

    Args:
        image_size: Side of the views, pixels.
        smallest_crop: Smallest share of an image's area that is cut out.

    Returns:
        A power of two: then images of usual sizes, or their half or quarter,
        in which JPEGs can be decoded, fill most of it.

    Example:

    >>> canvas_for(64), canvas_for(224)
    (256, 512)
    """
    return 2 ** math.ceil(math.log2(image_size / math.sqrt(smallest_crop)))
