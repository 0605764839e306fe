"""Image files, whatever is in them, as pixels on a canvas of one size."""

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
        canvas_size: Height and width of the canvas, pixels.

    Returns:
        Function from an int64 tensor, the places in `folder.paths` to be read
        in turn, to a `tf.data.Dataset` of `(place, image, size)`, the last two
        as `decode` returns them.

    Example:

    ```python
    read = reader(folder, 512)
    for place, image, size in read(tf.constant([2, 0, 1], tf.int64)):
        print(folder.paths[place], size)
    ```
    """
    paths = tf.constant([os.fsencode(path) for path in folder.paths])
    directory = os.fsencode(folder.directory)
    end = tf.constant([-1], tf.int64)  # Shows that all before were read.

    def load(turn, place):
        def image():
            path = tf.strings.join([directory, paths[place]], "/")
            return decode(tf.io.read_file(path), canvas_size)

        def nothing():
            canvas = tf.zeros((canvas_size, canvas_size, 3), tf.uint8)
            return canvas, tf.zeros(2, tf.int32)

        return turn, place, *tf.cond(place < 0, nothing, image)

    def read(order):
        def check(last, element):
            turn, *rest = element
            message = tf.cond(
                turn > last + 1,
                lambda: skip(order[last + 1 : turn]),
                lambda: tf.constant(""),
            )
            tf.debugging.Assert(tf.equal(message, ""), [message])
            return turn, tuple(rest)

        turns = tf.data.Dataset.from_tensor_slices(tf.concat([order, end], 0))
        images = turns.enumerate().map(
            load, num_parallel_calls=tf.data.AUTOTUNE
        )
        images = images.ignore_errors().scan(end[0], check)
        return images.filter(lambda place, *_: place >= 0)

    def skip(places):
        return tf.numpy_function(
            lambda places: os.fsencode(folder.skip(places)),
            [places],
            tf.string,
            stateful=False,
        )

    return read


def decode(contents, canvas_size):
    """Decodes an image file and puts it on a square canvas.

    JPEG, PNG, BMP, GIF (first frame) and WebP become 8-bit RGB, turned as
    their EXIF orientation says, on white where they are transparent. An image
    larger than the canvas is made smaller, in its proportions; JPEGs, as far as
    possible, while they are decoded. The rest of the canvas, below and to the
    right, is black.

    Args:
        contents: Scalar string tensor, the bytes of the file.
        canvas_size: Height and width of the canvas, pixels.

    Returns:
        uint8 tensor of shape `(canvas_size, canvas_size, 3)`, and the height
        and width of the image on it, int32 of shape `(2,)`.

    Raises:
        tf.errors.OpError: If it is no such file, or broken, or has less than 8
            pixels a side, or more pixels than `MOST_PIXELS`: that is seen in
            its header.

    Example:

    >>> contents = tf.io.encode_png(np.zeros((20, 10, 3), "uint8"))
    >>> image, size = decode(contents, 16)
    >>> image.shape, size.numpy()
    (TensorShape([16, 16, 3]), array([16,  8], dtype=int32))
    """
    is_jpeg = tf.strings.substr(contents, 0, 3) == b"\xff\xd8\xff"
    is_png = tf.strings.substr(contents, 0, 8) == b"\x89PNG\r\n\x1a\n"
    image = tf.cond(
        is_jpeg,
        lambda: _jpeg(contents, canvas_size),
        lambda: tf.cond(
            is_png, lambda: _png(contents), lambda: _other(contents)
        ),
    )
    return on_canvas(image, canvas_size)


def on_canvas(image, canvas_size):
    """Puts an image on a square canvas, smaller if it is larger than that.

    Args:
        image: uint8 tensor of shape `(height, width, channels)`.
        canvas_size: Height and width of the canvas, pixels.

    Returns:
        As `decode`.

    Raises:
        tf.errors.InvalidArgumentError: If it has less than 8 pixels a side.

    Example:

    >>> canvas, size = on_canvas(tf.ones((8, 12, 3), tf.uint8), 16)
    >>> canvas.shape, size.numpy()
    (TensorShape([16, 16, 3]), array([ 8, 12], dtype=int32))
    """
    image = _fitted(image, canvas_size)
    size = tf.shape(image)[:2]
    margins = [[0, canvas_size - size[0]], [0, canvas_size - size[1]], [0, 0]]
    canvas = tf.pad(image, margins)
    shape = (canvas_size, canvas_size, image.shape[2])
    return tf.ensure_shape(canvas, shape), size


def _jpeg(contents, canvas_size):
    shape = tf.io.extract_jpeg_shape(contents)
    head = tf.strings.substr(contents, 0, _HEAD)
    # The camera's notes come first, or after a JFIF block of 18 bytes.
    start = tf.strings.substr(head, 0, 64)
    has_notes = tf.size(tf.strings.split(start, _EXIF)) > 1
    with tf.control_dependencies([_check_size(shape[0], shape[1])]):
        # A length of 0.8 canvases is left as it is: halves would be too small.
        longest = tf.reduce_max(shape[:2])
        scales = tf.constant(_REDUCTIONS[1:])
        reductions = tf.reduce_sum(
            tf.cast(5 * (longest // scales) >= 4 * canvas_size, tf.int32)
        )
    image = tf.cond(
        shape[2] == 4,  # CMYK.
        lambda: _other(contents),
        lambda: tf.switch_case(
            reductions,
            [
                lambda scale=scale: tf.io.decode_jpeg(contents, 3, ratio=scale)
                for scale in _REDUCTIONS
            ],
        ),
    )
    orientation = tf.cond(
        has_notes & (shape[2] != 4),
        lambda: tf.numpy_function(
            _orientation, [head], tf.int64, stateful=False
        ),
        lambda: tf.constant(1, tf.int64),
    )
    return tf.cond(
        orientation > 1, lambda: _turned(image, orientation), lambda: image
    )


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

    def several_bits():
        image = tf.io.decode_png(contents, channels=4)
        color, alpha = image[..., :3], image[..., 3:]
        return tf.cond(
            tf.reduce_all(alpha == 255),
            lambda: color,
            lambda: _on_white(color, alpha),
        )

    with tf.control_dependencies([_check_size(sides[0], sides[1])]):
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
    return tf.debugging.assert_less_equal(
        pixels, tf.constant(MOST_PIXELS, tf.int64), "too many pixels"
    )


def _fitted(image, canvas_size):
    """The image, made smaller if it is larger than the canvas."""
    size = tf.shape(image)[:2]
    tf.debugging.assert_greater_equal(size, SMALLEST_SIDE, "too small")
    share = canvas_size / tf.reduce_max(size)
    smaller = tf.cast(tf.round(tf.cast(size, tf.float64) * share), tf.int32)

    def shrink():
        size = tf.maximum(smaller, 1)
        pixels = tf.image.resize(image, size, method="area")
        return tf.cast(tf.round(pixels), tf.uint8)

    return tf.cond(share < 1, shrink, lambda: image)
