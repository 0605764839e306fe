"""Image files, whatever is in them, as pixels that fit on a canvas."""

import dataclasses
import math
import re

import tensorflow as tf

from keras_simclr import exif
from keras_simclr.pillow_files import DEPTHS, Picture, UnusableError

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
    "JPEG": Format(
        (".jfif", ".jpe", ".jpeg", ".jpg", ".mpo"), {0: (b"\xff\xd8\xff",)}
    ),
    "PNG": Format((".apng", ".png"), {0: (b"\x89PNG\r\n\x1a\n",)}),
    # Two letters alone could begin a text: lengths of a header follow.
    "BMP": Format(
        (".bmp", ".dib"),
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
    "TIFF": Format(
        (".tif", ".tiff"), {0: (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")}
    ),
    "AVIF": Format((".avif", ".avifs"), {4: (b"ftyp",), 8: (b"avif", b"avis")}),
    "JPEG2000": Format(
        (".j2c", ".j2k", ".jp2", ".jpc", ".jpf", ".jpx"),
        {0: (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")},
    ),
    "HEIF": Format(
        (".heic", ".heics", ".heif", ".heifs", ".hif"),
        {
            4: (b"ftyp",),
            8: tuple(
                b"heic heix heim heis hevc hevx hevm hevs mif1 msf1".split()
            ),
        },
    ),
}
HEAD = 32  # Bytes at the beginning of a file that tell its format.
# Formats by the extensions that promise them, sorted.
EXTENSIONS = dict(
    sorted((x, name) for name, y in FORMATS.items() for x in y.extensions)
)

_REDUCTIONS = (1, 2, 4, 8)  # Scales at which JPEGs can be decoded.
_GRAY = (19595, 38470, 7471)  # ITU-R 601-2 luma of RGB, of 65,536, as Pillow's.


def decode(contents, canvas_size, channels=3, bits=8):
    """Decodes an image file, to a size that fits on a square canvas.

    Files of all `FORMATS`, of animations the first frame, become RGB, turned as
    EXIF says, on white where they are transparent. Values of 16 bits are
    scaled by the depth of what they hold: the least of 8, 10, 12, 14 and 16
    bits that the image's largest value needs, because X-rays and raw
    photographs have 10 to 14 bits in files of 16. An image larger than the
    canvas is made smaller, in its proportions; JPEGs, as far as possible, while
    they are decoded.

    Args:
        contents: Scalar string tensor, the bytes of the file.
        canvas_size: Height and width of the canvas, pixels.
        channels: 3; 1 for grey (ITU-R 601); or another number, which only TIFF
            files have: their samples as they are.
        bits: 8; or 16 for floats, in which nothing is lost of the 16 bits that
            PNG, TIFF and grey JPEG 2000 may have.

    Returns:
        Tensor of shape `(height, width, channels)`: uint8; or float32 in
        [0, 1], for 16 bits.

    Raises:
        tf.errors.OpError: If it is no such file, or broken, or has other
            channels, or less than 8 pixels a side, or more pixels than
            `MOST_PIXELS`: that is seen in its header.

    Example:

    >>> contents = tf.io.encode_png(np.zeros((20, 10, 3), "uint8"))
    >>> decode(contents, 16).shape
    TensorShape([16, 8, 3])
    """
    if channels not in (1, 3):
        image = _other(contents, channels, bits)
        return _finished(image, contents, None, canvas_size, channels)
    image, has_notes = tf.switch_case(
        _kind(contents),
        [
            lambda: _jpeg(contents, canvas_size, bits),
            lambda: _png(contents, bits),
            lambda: (_other(contents, 3, bits), tf.constant(False)),
        ],
    )
    return _finished(image, contents, has_notes, canvas_size, channels)


def decode_jpeg_or_png(contents, canvas_size, channels=3, bits=8):
    """Decodes as `decode` does, by TensorFlow alone: for a SavedModel.

    Args:
        contents: As `decode`.
        canvas_size: As `decode`.
        channels: 3, or 1, as `decode`.
        bits: As `decode`.

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
    image, has_notes = tf.cond(
        kind == 0,
        lambda: _jpeg(contents, canvas_size, bits),
        lambda: _png(contents, bits),
    )
    return _finished(image, contents, has_notes, canvas_size, channels)


def _kind(contents):
    """0: JPEG; 1: PNG; 2: another format."""
    is_jpeg, is_png = (
        tf.strings.substr(contents, 0, len(start)) == start
        for name in ("JPEG", "PNG")
        for start in FORMATS[name].first_bytes[0]
    )
    return tf.where(is_jpeg, 0, tf.where(is_png, 1, 2))


def format_of(head):
    """The image format that a file's first bytes tell.

    Args:
        head: Bytes, the first `HEAD` of them or more.

    Returns:
        Name of the format, or None.

    Example:

    >>> format_of(b"GIF89a...")
    'GIF'
    """
    for name, known in FORMATS.items():
        parts = known.first_bytes.items()
        if all(head.startswith(part, start) for start, part in parts):
            # Where the first brand is a general one, the next ones tell.
            is_avif = name == "HEIF" and b"avif" in head[16:HEAD]
            return "AVIF" if is_avif else name
    return None


def converted(images, channels=None, bits=8):
    """Images as `decode` would have them, of what is decoded already.

    Args:
        images: Tensor of shape `(..., channels)`: uint8, floats in [0, 1], or
            uint16, of an image, which is scaled by the depth of what it holds.
        channels: As `decode`; None for those that they have.
        bits: As `decode`. Floats stay what they are.

    Returns:
        Tensor as `decode` returns it.

    Raises:
        ValueError: If they have other channels, which cannot be converted.

    Example:

    >>> converted(tf.zeros((20, 10, 3), tf.uint8), 1).shape
    TensorShape([20, 10, 1])
    """
    if images.dtype == tf.uint16:
        depth = _depth(images)
        images = (_as_floats if bits == 16 else _as_bytes)(images, depth)
    elif bits == 16 and images.dtype == tf.uint8:
        images = _as_floats(images, 8)
    found = images.shape[-1]
    if found == 1 and channels == 3:
        return tf.repeat(images, 3, axis=-1)
    if found == 3 and channels == 1:
        return _gray(images)
    if channels not in (found, None):
        raise ValueError(
            "`channels` must be those of the images, or 1 or 3, where they "
            f"have 3 or 1. Received: channels={channels}, and images with "
            f"{found}"
        )
    return images


def fitted(image, canvas_size):
    """The image, made smaller if it is larger than a square canvas.

    Args:
        image: Tensor of shape `(height, width, channels)`, uint8 or floats.
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
        return pixels if image.dtype.is_floating else _rounded(pixels)

    return tf.cond(share < 1, shrunk, lambda: image)


def _rounded(pixels):
    return tf.cast(tf.round(pixels), tf.uint8)


def _jpeg(contents, canvas_size, bits):
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
    image = image if bits == 8 else _as_floats(image, 8)
    return image, exif.has_notes(contents, "JPEG")


def _finished(image, contents, has_notes, canvas_size, channels):
    """The image, if need be turned and made smaller, or grey.

    `has_notes` is None for what is upright.
    """
    if has_notes is None:
        return _shrunk(image, canvas_size)

    def finish(image, contents, has_notes):
        orientation = tf.cond(
            has_notes,
            lambda: exif.orientation_of(contents),
            lambda: tf.constant(1, tf.int64),
        )
        return exif.upright(_shrunk(image, canvas_size), orientation)

    # Most images need neither, and of a branch that is not taken each operation
    # costs time: so there is one branch, and it is one operation.
    finish = tf.function(
        finish,
        autograph=False,
        experimental_attributes={"_noinline": True},
    )
    image = tf.cond(
        has_notes | (tf.reduce_max(tf.shape(image)) > canvas_size),
        lambda: finish(image, contents, has_notes),
        lambda: image,
    )
    image = tf.ensure_shape(image, (None, None, 3))
    return image if channels == 3 else _gray(image)


def _gray(images):
    """One channel of three."""
    if images.dtype.is_floating:
        luma = tf.constant(_GRAY, images.dtype) / 65536
        return tf.reduce_sum(images * luma, axis=-1, keepdims=True)
    luma = tf.cast(images, tf.int32) * tf.constant(_GRAY)
    luma = tf.reduce_sum(luma, axis=-1, keepdims=True) + 32768
    return tf.cast(luma // 65536, tf.uint8)


def _png(contents, bits):
    header = tf.strings.substr(contents, 16, 10)
    sides = tf.strings.substr(header, 0, 8)
    sides = tf.io.decode_raw(sides, tf.int32, little_endian=False)
    depth = tf.cast(tf.io.decode_raw(header, tf.uint8)[8], tf.int32)  # Bits.
    with _usable(sides):
        image = tf.cond(
            depth == 16,
            lambda: _deep_png(contents, bits)[0],
            lambda: _shallow_png(contents, bits),
        )
    color, alpha = image[..., :3], image[..., 3:]
    # Without transparency, TensorFlow (seen with 2.21) makes alpha as many
    # ones as an image of less than 8 bits has bits.
    most = tf.constant(255 if bits == 8 else 1, image.dtype)
    ones = tf.cast(2 ** tf.minimum(depth, 8) - 1, image.dtype)
    if bits == 16:
        ones /= 255
    image = tf.cond(
        tf.reduce_all(alpha == most) | tf.reduce_all(alpha == ones),
        lambda: color,
        lambda: _on_white(color, alpha),
    )
    return image, exif.has_notes(contents, "PNG")


def _shallow_png(contents, bits):
    image = tf.io.decode_png(contents, channels=4)
    return image if bits == 8 else _as_floats(image, 8)


def deep_png(contents):
    """Decodes a PNG of 16 bits per channel to 8, by the depth of its colours.

    Args:
        contents: Scalar string tensor, the bytes of the file.

    Returns:
        uint8 tensor of shape `(height, width, 4)`, with alpha, and a scalar
        tensor, the bits that its largest colour needs: 8, 10, 12, 14 or 16.

    Raises:
        tf.errors.OpError: If it is broken.

    Example:

    >>> ramp = np.arange(4096, dtype="uint16").reshape(64, 64, 1)
    >>> pixels, depth = deep_png(tf.io.encode_png(ramp))
    >>> len(np.unique(pixels[..., 0])), int(depth)
    (256, 12)
    """
    return _deep_png(contents, 8)


def _deep_png(contents, bits):
    image = tf.io.decode_png(contents, channels=4, dtype=tf.uint16)
    color, alpha = image[..., :3], image[..., 3:]
    scaled, depth = _as_bytes if bits == 8 else _as_floats, _depth(color)
    return tf.concat([scaled(color, depth), scaled(alpha, 16)], -1), depth


def _depth(image):
    """Bits that the largest of 16-bit values needs."""
    largest = tf.cast(tf.reduce_max(image), tf.int32)
    is_beyond = tf.cast(largest >= 2 ** tf.constant(DEPTHS[:-1]), tf.int32)
    return tf.gather(DEPTHS, tf.reduce_sum(is_beyond))


def _as_bytes(image, depth):
    shift = tf.cast(depth - 8, tf.uint16)
    return tf.cast(tf.bitwise.right_shift(image, shift), tf.uint8)


def _as_floats(image, depth):
    return tf.cast(image, tf.float32) / tf.cast(2**depth - 1, tf.float32)


def _on_white(color, alpha):
    if color.dtype.is_floating:
        return color * alpha + (1 - alpha)
    color, alpha = tf.cast(color, tf.int32), tf.cast(alpha, tf.int32)
    return tf.cast((color * alpha + 255 * (255 - alpha)) // 255, tf.uint8)


def _other(contents, channels, bits):
    image = tf.numpy_function(
        lambda contents: _pillow(contents, channels, bits),
        [tf.convert_to_tensor(contents)],
        tf.uint8 if bits == 8 else tf.float32,
        stateful=False,
    )
    return tf.ensure_shape(image, (None, None, channels))


def _pillow(contents, channels, bits):
    """The image as Pillow reads it."""
    if not isinstance(contents, bytes):  # As it comes in eager mode.
        contents = contents.item()
    name = format_of(contents[:HEAD])
    if name is None:
        raise ValueError("its first bytes are those of no image")
    picture = Picture(contents, name)
    check_size(picture)
    return picture.pixels(channels, bits)


def check_size(picture):
    """Raises `UnusableError` for a `Picture` too small or too large."""
    size = f"{picture.width}x{picture.height} pixels"
    if picture.width * picture.height > MOST_PIXELS:
        raise UnusableError(f"too large: {size}")
    if min(picture.width, picture.height) < SMALLEST_SIDE:
        raise UnusableError(f"too small: {size}")


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


def is_candidate(path):
    """Whether a file is looked into: by its name alone, for there may be many.

    It has an extension that promises an image, or none, which is a dot and up
    to five letters and digits, the first a letter. So a text beside each of a
    million images, or a raw photograph, whose first bytes are those of TIFF, is
    not opened.

    Args:
        path: Path.

    Returns:
        Boolean.

    Example:

    >>> [x for x in ("1.jpg", "2", "3.0", "4.txt", "5.nef") if is_candidate(x)]
    ['1.jpg', '2', '3.0']
    """
    name = path[path.rfind("/") + 1 :]
    has_other = re.search(r"\.[A-Za-z][A-Za-z0-9]{0,4}$", name)
    return promised_format(name) is not None or not has_other


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
