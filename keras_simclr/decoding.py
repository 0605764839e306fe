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
_DEPTHS = (8, 10, 12, 14, 16)  # Bits per channel of cameras and scanners.
_ROOM = 30  # Bytes that tell what a block of a file is.
_RAW_PROFILE = "Raw profile type exif\0"  # Notes as ImageMagick wrote them.
_LONGEST_TEXT = 1 << 17  # Bytes: digits of 64 KiB, the most that notes have.
_ENTRIES = 256  # Of an EXIF directory that are looked at: usual are 12.


def decode(contents, canvas_size):
    """Decodes an image file, to a size that fits on a square canvas.

    Files of all `FORMATS`, of animations the first frame, become 8-bit RGB,
    turned as `orientation` says, on white where they are transparent. Values of
    16 bits are scaled by the depth of what they hold: the least of 8, 10, 12,
    14 and 16 bits that the image's largest value needs, because X-rays and raw
    photographs have 10 to 14 bits in files of 16. An image larger than the
    canvas is made smaller, in its proportions; JPEGs, as far as possible, while
    they are decoded.

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
    image, has_notes = tf.switch_case(
        _kind(contents),
        [
            lambda: (_jpeg(contents, canvas_size), _has_notes(contents, 0)),
            lambda: (_png(contents), _has_notes(contents, 1)),
            lambda: (_other(contents), _has_notes(contents, 2)),
        ],
    )
    return _finished(image, contents, has_notes, canvas_size)


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
    image, has_notes = tf.cond(
        kind == 0,
        lambda: (_jpeg(contents, canvas_size), _has_notes(contents, 0)),
        lambda: (_png(contents), _has_notes(contents, 1)),
    )
    return _finished(image, contents, has_notes, canvas_size)


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
    return image


def _finished(image, contents, has_notes, canvas_size):
    """The image, if need be turned and made smaller."""

    def finish(image, contents, has_notes):
        orientation = tf.cond(
            has_notes,
            lambda: _orientation(contents),
            lambda: tf.constant(1, tf.int64),
        )
        return _upright(_shrunk(image, canvas_size), orientation)

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
    return tf.ensure_shape(image, (None, None, 3))


@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def orientation(contents):
    """How an image is to be turned, by the EXIF notes in its file.

    They are found in JPEG, PNG and WebP files, wherever they stand.

    Args:
        contents: Scalar string tensor, the bytes of the file.

    Returns:
        Scalar int64 tensor, 1 to 8; 1, which means as it is, if there are no
        notes, or they are broken.

    Example:

    >>> contents = tf.io.encode_png(np.zeros((20, 10, 3), "uint8"))
    >>> int(orientation(contents))
    1

    References:
        - CIPA DC-008 (EXIF 2.32), 4.5 and 4.6.
    """
    with tf.device("CPU"):  # Of numbers, one at a time.
        return _orientation(contents)


def _orientation(contents):
    is_webp = tf.strings.substr(contents, 0, 4) == b"RIFF"
    is_webp = tf.cast(is_webp, tf.int64)
    notes = tf.switch_case(
        _kind(contents),
        [
            lambda: _notes(contents, 2, 4, _jpeg_block),
            lambda: _from_text(_notes(contents, 8, 8, _png_block)),
            lambda: _notes(contents, is_webp * 12, 8, _webp_block),
        ],
    )
    return _tag(notes)


# What stands in files that have notes, by their kind.
_MARKS = (
    (r"Exif\x00\x00",),
    ("eXIf", _RAW_PROFILE),
    ("EXIF",),
)


def _has_notes(contents, kind):
    """Whether they may be there: a text is found in no time, blocks are not."""
    others = [
        tf.strings.regex_replace(contents, mark, "", replace_global=False)
        for mark in _MARKS[kind]
    ]
    return tf.reduce_any(tf.stack(others) != contents)


def _notes(contents, start, header, read):
    """What is in the first of a file's blocks that holds notes, or nothing.

    Of a block's first bytes, `read` tells the length of the whole, 0 if it is
    the last, and whether this is it.
    """
    last = tf.cast(tf.strings.length(contents), tf.int64) - _ROOM

    def visit(place, size, _):
        place += size
        return place, *read(tf.strings.substr(contents, place, _ROOM))

    place, size, is_it = tf.while_loop(
        lambda place, size, is_it: ~is_it & (size > 0) & (place + size <= last),
        visit,
        (
            tf.constant(0, tf.int64),
            tf.cast(start, tf.int64),
            tf.constant(False),
        ),
    )
    found = tf.cast(is_it, tf.int64)
    size = tf.maximum(found * size - header, 0)
    return tf.strings.substr(contents, found * (place + header), size)


def _jpeg_block(head):
    words = tf.io.decode_raw(head, tf.uint16, little_endian=False)
    marker, size, *_ = tf.unstack(tf.cast(words, tf.int64), _ROOM // 2)
    is_it = (marker == 0xFFE1) & (tf.strings.substr(head, 4, 6) == b"Exif\0\0")
    size = tf.where(marker == 0xFFFF, tf.ones_like(size), size + 2)  # Filling.
    # The pixels come after the last block.
    size = tf.where(marker == 0xFFDA, tf.zeros_like(size), size)
    return size, is_it


def _png_block(head):
    size = _length(tf.strings.substr(head, 0, 4), little_endian=False)
    name = tf.strings.substr(head, 4, 4)
    is_text = tf.strings.substr(head, 8, 22) == _RAW_PROFILE
    is_text &= (name == b"tEXt") | (name == b"zTXt")
    return size + 12, (name == b"eXIf") | is_text & (size < _LONGEST_TEXT)


def _webp_block(head):
    size = _length(tf.strings.substr(head, 4, 4), little_endian=True)
    return size + size % 2 + 8, tf.strings.substr(head, 0, 4) == b"EXIF"


def _length(text, little_endian):
    number = tf.io.decode_raw(text, tf.int32, little_endian=little_endian)
    return tf.cast(tf.reshape(number, []), tf.int64) % 2**32


def _from_text(notes):
    """Notes of a PNG, if they are text in hexadecimal digits, as bytes."""

    def from_text():
        size = tf.strings.length(notes) - 4  # A check sum comes last.
        text = tf.strings.substr(notes, len(_RAW_PROFILE), size)
        # zTXt has a zero, the method, before what is compressed.
        text = tf.cond(
            tf.strings.substr(text, 0, 1) == b"\0",
            lambda: tf.io.decode_compressed(
                tf.strings.substr(text, 1, size), "ZLIB"
            ),
            lambda: text,
        )
        # A name and a length come first, each on a line of its own.
        text = tf.strings.regex_replace(text, r"^\s*\S+\s+\d+\s|\s", "")
        codes = tf.cast(tf.io.decode_raw(text, tf.uint8), tf.int32)
        digits = codes % 16 + 9 * tf.cast(codes >= ord("A"), tf.int32)
        pairs = tf.reshape(digits[: tf.size(digits) // 2 * 2], (-1, 2))
        codes = (16 * pairs[:, 0] + pairs[:, 1]) % 256
        bytes_ = [number.to_bytes() for number in range(256)]
        return tf.strings.reduce_join(tf.gather(bytes_, codes))

    start = tf.strings.substr(notes, 0, len(_RAW_PROFILE))
    return tf.cond(start == _RAW_PROFILE, from_text, lambda: notes)


def _tag(notes):
    """EXIF's number of the orientation; 1 if there is none or it is broken."""
    notes = tf.strings.regex_replace(notes, r"^(Exif\x00\x00)+", "")
    # A TIFF header, which says where the directory starts, and there entries of
    # 12 bytes: tag, type, count and value.
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
    is_it &= number(entries[:, 4:8]) == 1
    # Of one, two or four bytes.
    values = tf.add_n(
        [
            tf.where(number(entries[:, 2:4]) == kind, number(value), 0)
            for kind, value in (
                (1, entries[:, 8:9]),
                (3, entries[:, 8:10]),
                (4, entries[:, 8:12]),
            )
        ]
    )
    is_it &= (values >= 1) & (values <= 8)
    return tf.reduce_max(tf.where(is_it, values, 1))


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
        image = tf.cond(
            depth == 16,
            lambda: deep_png(contents)[0],
            lambda: tf.io.decode_png(contents, channels=4),
        )
    color, alpha = image[..., :3], image[..., 3:]
    # Without transparency, TensorFlow (seen with 2.21) makes alpha as many
    # ones as an image of less than 8 bits has bits.
    ones = tf.cast(2 ** tf.minimum(depth, 8) - 1, tf.uint8)
    return tf.cond(
        tf.reduce_all(alpha == 255) | tf.reduce_all(alpha == ones),
        lambda: color,
        lambda: _on_white(color, alpha),
    )


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
    image = tf.io.decode_png(contents, channels=4, dtype=tf.uint16)
    color, alpha = image[..., :3], image[..., 3:]
    largest = tf.cast(tf.reduce_max(color), tf.int32)
    is_beyond = tf.cast(largest >= 2 ** tf.constant(_DEPTHS[:-1]), tf.int32)
    depth = tf.gather(_DEPTHS, tf.reduce_sum(is_beyond))
    color = tf.bitwise.right_shift(color, tf.cast(depth - 8, tf.uint16))
    alpha = tf.bitwise.right_shift(alpha, tf.constant(8, tf.uint16))
    return tf.cast(tf.concat([color, alpha], axis=-1), tf.uint8), depth


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

    with PIL.Image.open(io.BytesIO(contents), formats=tuple(FORMATS)) as image:
        width, height = image.size
        if min(image.size) < SMALLEST_SIDE or width * height > MOST_PIXELS:
            raise ValueError(f"not of a usable size: {width} x {height}")
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
