"""Notes of cameras in JPEG and PNG files: how a picture is to be turned."""

import tensorflow as tf

_ROOM = 30  # Bytes that tell what a block of a file is.
_RAW_PROFILE = "Raw profile type exif\0"  # Notes as ImageMagick wrote them.
_LONGEST_TEXT = 1 << 17  # Bytes: digits of 64 KiB, the most that notes have.
_ENTRIES = 256  # Of an EXIF directory that are looked at: usual are 12.


@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def orientation(contents):
    """How an image is to be turned, by the EXIF notes in its file.

    They are found in JPEG and PNG files, wherever they stand.

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
        return orientation_of(contents)


def orientation_of(contents):
    """As `orientation`, as a part of another function."""
    is_png = tf.strings.substr(contents, 0, 4) == b"\x89PNG"
    notes = tf.cond(
        tf.strings.substr(contents, 0, 2) == b"\xff\xd8",
        lambda: _notes(contents, 2, 4, _jpeg_block),
        lambda: _from_text(
            _notes(contents, 8 * tf.cast(is_png, tf.int64), 8, _png_block)
        ),
    )
    return _tag(notes)


# What stands in files that have notes, by their format.
_MARKS = {"JPEG": (r"Exif\x00\x00",), "PNG": ("eXIf", _RAW_PROFILE)}


def has_notes(contents, name):
    """Whether they may be there: a text is found in no time, blocks are not."""
    others = [
        tf.strings.regex_replace(contents, mark, "", replace_global=False)
        for mark in _MARKS[name]
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


def upright(image, orientation):
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
