"""Image files, whatever is in them, as pixels that fit on a canvas."""

import io
import os

import tensorflow as tf

# What Pillow calls a decompression bomb: 256 MiB as RGB. Refused unread.
MOST_PIXELS = 89_478_485
SMALLEST_SIDE = 8  # Pixels.

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP")
_REDUCTIONS = (1, 2, 4, 8)  # Scales at which JPEGs can be decoded.
_EXIF = b"Exif\0\0"
_HEAD = 1 << 16  # Bytes; an EXIF block is no longer.


def reader(folder, canvas_size):
    """Makes datasets of a folder's images, without those that are unreadable.

    Args:
        folder: A `folders.ImageFolder`, which is told what is skipped.
        canvas_size: Height and width of the canvas that images must fit on.

    Returns:
        Function from an int64 tensor, the places in `folder.paths` to be read
        in turn, to a `tf.data.Dataset` of `(place, image)`, the image as
        `decode` returns it.

    Example:

    ```python
    read = reader(folder, 512)
    for place, image in read(tf.constant([2, 0, 1], tf.int64)):
        print(folder.paths[place], image.shape)
    ```
    """
    # As they are where possible: copies of a million names take room.
    paths = [x if x.isascii() else os.fsencode(x) for x in folder.paths]
    paths = tf.constant(paths)
    directory = os.fsencode(folder.directory)

    def load(turn, place):
        path = tf.strings.join([directory, paths[place]], "/")
        return turn, place, decode(tf.io.read_file(path), canvas_size)

    def read(order):
        def check(last, element):
            turn, place, image = element
            message = tf.cond(
                turn > last + 1,
                lambda: skip(order[last + 1 : turn]),
                lambda: tf.constant(""),
            )
            tf.debugging.Assert(tf.equal(message, ""), [message])
            return turn, (place, image)

        turns = tf.data.Dataset.from_tensor_slices(order)
        images = turns.enumerate().map(
            load, num_parallel_calls=tf.data.AUTOTUNE
        )
        # Shows that all were read: whoever is missing has been skipped.
        size, nowhere = tf.size(order, tf.int64), tf.constant(-1, tf.int64)
        nothing = tf.zeros((0, 0, 3), tf.uint8)
        end = tf.data.Dataset.from_tensors((size, nowhere, nothing))
        images = images.ignore_errors().concatenate(end)
        return images.scan(nowhere, check).filter(lambda place, _: place >= 0)

    def skip(places):
        return tf.numpy_function(
            lambda places: os.fsencode(folder.skip(places)),
            [places],
            tf.string,
            stateful=False,
        )

    return read


def decode(contents, canvas_size):
    """Decodes an image file, to a size that fits on a square canvas.

    JPEG, PNG, BMP, GIF (first frame) and WebP become 8-bit RGB, turned as
    their EXIF orientation says, on white where they are transparent. An image
    larger than the canvas is made smaller, in its proportions; JPEGs, as far as
    possible, while they are decoded.

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
    is_jpeg = tf.strings.substr(contents, 0, 3) == b"\xff\xd8\xff"
    is_png = tf.strings.substr(contents, 0, 8) == b"\x89PNG\r\n\x1a\n"
    image = tf.switch_case(
        tf.where(is_jpeg, 0, tf.where(is_png, 1, 2)),
        [
            lambda: _jpeg(contents, canvas_size),
            lambda: _png(contents),
            lambda: _other(contents),
        ],
    )
    return fitted(image, canvas_size)


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
    size = tf.shape(image)[:2]
    tf.debugging.Assert(tf.reduce_min(size) >= SMALLEST_SIDE, ["too small"])
    share = canvas_size / tf.reduce_max(size)

    def shrunk():
        smaller = tf.round(tf.cast(size, tf.float64) * share)
        smaller = tf.maximum(tf.cast(smaller, tf.int32), 1)
        pixels = tf.image.resize(image, smaller, method="area")
        return tf.cast(tf.round(pixels), tf.uint8)

    return tf.cond(share < 1, shrunk, lambda: image)


def _jpeg(contents, canvas_size):
    shape = tf.io.extract_jpeg_shape(contents)
    _check_size(shape[0], shape[1])
    # A length of 0.8 canvases is left as it is: halves would be too small.
    reductions = tf.reduce_sum(
        tf.cast(
            5 * (tf.reduce_max(shape[:2]) // _REDUCTIONS[1:])
            >= 4 * canvas_size,
            tf.int32,
        )
    )
    is_cmyk = shape[2] == 4
    image = tf.switch_case(
        tf.where(is_cmyk, len(_REDUCTIONS), reductions),
        [
            lambda scale=scale: tf.io.decode_jpeg(contents, 3, ratio=scale)
            for scale in _REDUCTIONS
        ]
        + [lambda: _other(contents)],
    )
    # The camera's notes come first, or after a JFIF block of 18 bytes.
    starts = [tf.strings.substr(contents, place, 4) for place in (6, 24)]
    has_notes = tf.reduce_any(tf.stack(starts) == b"Exif")

    def turned():
        head = tf.strings.substr(contents, 0, _HEAD)
        return _turned(
            image,
            tf.numpy_function(_orientation, [head], tf.int64, stateful=False),
        )

    return tf.cond(has_notes & ~is_cmyk, turned, lambda: image)


def _orientation(head):
    """EXIF orientation, 1 to 8, in the first bytes of a JPEG file."""
    import numpy as np
    import PIL.Image

    exif = PIL.Image.Exif()
    try:
        exif.load(head[head.index(_EXIF) :])
        orientation = int(exif.get(0x0112, 1))
    except Exception:  # Whatever Pillow makes of broken notes.
        orientation = 1
    return np.int64(orientation if 1 <= orientation <= 8 else 1)


def _turned(image, orientation):
    """The image upright (EXIF 2.32, tag 0x0112)."""
    image = tf.cond(
        orientation >= 5, lambda: tf.transpose(image, (1, 0, 2)), lambda: image
    )
    is_flipped = tf.reduce_any(orientation == [3, 4, 7, 8])
    image = tf.cond(is_flipped, lambda: image[::-1], lambda: image)
    is_mirrored = tf.reduce_any(orientation == [2, 3, 6, 7])
    return tf.cond(is_mirrored, lambda: image[:, ::-1], lambda: image)


def _png(contents):
    header = tf.strings.substr(contents, 16, 10)
    sides = tf.strings.substr(header, 0, 8)
    sides = tf.io.decode_raw(sides, tf.int32, little_endian=False)
    depth = tf.io.decode_raw(header, tf.uint8)[8]  # Bits.
    _check_size(sides[0], sides[1])

    def several_bits():
        image = tf.io.decode_png(contents, channels=4)
        color, alpha = image[..., :3], image[..., 3:]
        return tf.cond(
            tf.reduce_all(alpha == 255),
            lambda: color,
            lambda: _on_white(color, alpha),
        )

    # TensorFlow (seen with 2.21) reads less than 8 bits of gray wrongly.
    return tf.cond(depth >= 8, several_bits, lambda: _other(contents))


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

    with PIL.Image.open(io.BytesIO(contents), formats=FORMATS) as image:
        width, height = image.size
        if width * height > MOST_PIXELS:
            raise ValueError(f"too many pixels: {width} x {height}")
        image = PIL.ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = PIL.Image.new("RGBA", image.size, "white")
            image = PIL.Image.alpha_composite(white, image)
        return np.asarray(image.convert("RGB"))


def _check_size(height, width):
    pixels = tf.cast(height, tf.int64) * tf.cast(width, tf.int64)
    tf.debugging.Assert(pixels <= MOST_PIXELS, ["too many pixels"])
