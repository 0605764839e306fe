import io
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import tensorflow as tf
from helpers.pictures import tiff

from keras_simclr import decoding, exif as exif_notes, pillow_files

CANVAS = 32


@pytest.fixture(scope="module")
def decode():
    signature = [tf.TensorSpec([], tf.string)]
    return tf.function(
        lambda contents: decoding.decode(contents, CANVAS),
        input_signature=signature,
        autograph=False,
    )


def picture(width=24, height=16, mode="RGB"):
    """Smooth, so that JPEG keeps it, and different in its four corners."""
    y, x = np.mgrid[:height, :width]
    planes = [255 * x / width, 255 * y / height, 128 + 0 * x]
    pixels = np.stack(planes, axis=-1).astype("uint8")
    return PIL.Image.fromarray(pixels).convert(mode)


def contents(image, file_format, **kwargs):
    file = io.BytesIO()
    image.save(file, file_format, **kwargs)
    return file.getvalue()


def difference(actual, image):
    """The largest difference from what Pillow makes of it."""
    pixels = np.asarray(image.convert("RGB"))
    assert actual.shape == pixels.shape
    return abs(actual.numpy().astype(int) - pixels).max()


def check(decode, data, tolerance=0):
    expected = PIL.Image.open(io.BytesIO(data))
    assert difference(decode(data), expected) <= tolerance


@pytest.mark.fault(39)
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK"])
@pytest.mark.parametrize("file_format", ["PNG", "BMP", "GIF", "WEBP", "JPEG"])
def test_every_format_is_read_as_pillow_reads_it(decode, file_format, mode):
    no_such = [("PNG", "CMYK"), ("GIF", "CMYK"), ("BMP", "CMYK"), ("JPEG", "P")]
    if (file_format, mode) in no_such:
        pytest.skip("the format has no such mode")
    lossless = {"lossless": True} if file_format == "WEBP" else {}
    data = contents(picture(mode=mode), file_format, **lossless)
    # Inverse transforms of JPEG may round differently.
    check(decode, data, tolerance=3 if file_format == "JPEG" else 0)


@pytest.mark.fault(38)
def test_first_picture_of_an_animation_is_read(decode):
    others = [picture().rotate(180)]
    data = contents(picture(), "GIF", save_all=True, append_images=others)
    check(decode, data)


def png(values, bits=16, *, before=(), after=(), interlaced=False):
    """A PNG of an integer array (height, width, channels), written by hand."""
    kinds = {1: 0, 2: 4, 3: 2, 4: 6}
    height, width, channels = values.shape
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)]
        passes += [(2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = [
        b"\0" + row.astype(f">u{bits // 8}").tobytes()
        for y, x, down, right in passes
        for row in values[y::down, x::right]
    ]
    shape = struct.pack(">II", width, height)
    shape += bytes((bits, kinds[channels], 0, 0, interlaced))
    chunks = [(b"IHDR", shape), *before]
    chunks += [(b"IDAT", zlib.compress(b"".join(rows))), *after, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(x)) + k + x + struct.pack(">I", zlib.crc32(k + x))
        for k, x in chunks
    )


@pytest.mark.fault(31)
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("depth", [8, 10, 12, 14, 16])
def test_16_bits_are_read_by_the_depth_of_what_they_hold(
    decode, depth, channels, interlaced
):
    values = np.linspace(0, 2**depth - 1, 32 * 32).astype("uint16")
    values = np.tile(values.reshape(32, 32, 1), channels)
    if channels in (2, 4):
        values[..., -1] = 65535
    pixels = decode(png(values, interlaced=interlaced)).numpy()
    expected = (values[..., :1] >> (depth - 8)) + np.zeros(3, int)
    np.testing.assert_array_equal(pixels, expected)
    assert len(np.unique(pixels)) == 256


def test_depth_is_that_of_colours_alone_and_transparent_ones_are_white(decode):
    values = np.full((8, 8, 2), 4095)
    values[..., 1] = np.where(np.arange(8) < 4, 0, 65535)
    values[0, 7, 0] = 0
    pixels = decode(png(values)).numpy()
    assert (pixels[:, :4] == 255).all()
    assert (pixels[0, 7] == 0).all()
    assert (pixels[1:, 4:] == 255).all()
    # A transparent colour is one of 16 bits.
    data = png(values[..., :1], before=[(b"tRNS", struct.pack(">H", 0))])
    assert (decode(data).numpy() == 255).all()


@pytest.mark.fault(39)
@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "GIF"])
def test_transparent_pixels_are_white(decode, file_format):
    image = picture(mode="RGBA")
    alpha = np.zeros((16, 24), "uint8")
    alpha[:, 12:] = 255
    image.putalpha(PIL.Image.fromarray(alpha))
    lossless = {"lossless": True} if file_format == "WEBP" else {}
    pixels = decode(contents(image, file_format, **lossless))
    assert (pixels[:, :12].numpy() == 255).all()
    tolerance = 40 if file_format == "GIF" else 0  # Of its palette.
    opaque = image.crop((12, 0, 24, 16))
    assert difference(pixels[:, 12:], opaque) <= tolerance


@pytest.mark.parametrize("mode", ["P", "L"])
def test_a_transparent_colour_is_white(decode, mode):
    image = picture(mode=mode)
    image.putpixel((0, 0), 3)
    data = contents(image, "PNG", transparency=3)
    transparent = np.asarray(image) == 3
    assert (decode(data).numpy()[transparent] == 255).all()


@pytest.mark.fault(42)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(decode, orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    for file_format, options in (
        ("JPEG", {"quality": 95}),
        ("WEBP", {"lossless": True}),
    ):
        data = contents(picture(), file_format, exif=exif, **options)
        turned = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data)))
        tolerance = 10 if file_format == "JPEG" else 0
        assert difference(decode(data), turned) <= tolerance


def exif(orientation=6, endian="<", kind=3, **tags):
    """Notes of one entry more than `tags` has, as TIFF has them."""
    value = struct.pack(endian + {1: "B", 3: "H", 4: "I"}[kind], orientation)
    entries = [(0x010F, 2, b"abc"), (0x0112, kind, value)]
    return (
        {"<": b"II*\0", ">": b"MM\0*"}[endian]
        + struct.pack(endian + "IH", 8, len(entries))
        + b"".join(
            struct.pack(endian + "HHI", tag, kind, 4 if kind == 2 else 1)
            + value.ljust(4, b"\0")
            for tag, kind, value in entries
        )
        + bytes(4)
    )


def segment(marker, data):
    return struct.pack(">HH", marker, len(data) + 2) + data


def jpeg(*segments):
    """A JPEG with these segments in place of the JFIF one."""
    data = contents(picture(), "JPEG", quality=95)
    return data[:2] + b"".join(segments) + data[20:]


def text_chunk(notes, is_packed):
    notes = b"Exif\0\0" + notes
    text = f"\nexif\n{len(notes):8}\n{notes.hex()}\n".encode()
    name = b"Raw profile type exif\0"
    if is_packed:
        return b"zTXt", name + b"\0" + zlib.compress(text)
    return b"tEXt", name + text


PIXELS = np.asarray(picture())
APP0 = segment(0xFFE0, b"JFIF\0\1\1\0\0\1\0\1\0\0")
XMP = segment(0xFFE1, b"http://ns.adobe.com/xap/1.0/\0<x/>" + bytes(3000))
ICC = segment(0xFFE2, b"ICC_PROFILE\0\1\1" + bytes(65_000))


def app1(notes):
    return segment(0xFFE1, b"Exif\0\0" + notes)


def placed(notes):
    """Files that have these notes, by the place where they stand."""
    yield "first", jpeg(app1(notes))
    yield "behind JFIF", jpeg(APP0, app1(notes))
    yield "behind a profile", jpeg(APP0, ICC, ICC, app1(notes))
    yield "behind XMP", jpeg(XMP, app1(notes), ICC)
    yield "behind filling", jpeg(APP0, b"\xff" * 5 + app1(notes))
    yield "first of two", jpeg(app1(notes), app1(exif(3)))
    tail = jpeg()[2:]
    start = tail.index(b"\xff\xda")
    yield (
        "before the pixels",
        (b"\xff\xd8" + tail[:start] + app1(notes) + tail[start:]),
    )
    chunk = b"eXIf", notes
    yield "before IDAT", png(PIXELS, 8, before=[chunk])
    yield "behind IDAT", png(PIXELS, 8, after=[chunk])
    yield "16 bits", png(PIXELS.astype("uint16") * 257, before=[chunk])
    for packed in (False, True):
        before = [(b"tEXt", b"a\0b"), text_chunk(notes, packed)]
        yield f"text, {packed}", png(PIXELS, 8, before=before)
    yield "WebP", contents(picture(), "WEBP", lossless=True, exif=notes)


PLACES = [place for place, _ in placed(exif())]


def orientation(data):
    name = decoding.format_of(data)
    if name in ("JPEG", "PNG"):
        return exif_notes.orientation(data)
    return pillow_files.Picture(data, name).orientation


def check_turned(decode, data):
    """Reading and scanning agree with Pillow."""
    image = PIL.Image.open(io.BytesIO(data))
    number = image.getexif().get(0x0112, 1)
    number = number if number in range(1, 9) else 1
    assert orientation(data) == number
    tolerance = 10 if image.format == "JPEG" else 0
    turned = PIL.ImageOps.exif_transpose(image)
    pixels = decode(data)
    assert difference(pixels, turned) <= tolerance
    return pixels.shape[:2], int(number)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4])
def test_notes_are_found_wherever_they_stand(decode, place, endian, kind):
    data = dict(placed(exif(6, endian, kind)))[place]
    assert check_turned(decode, data) == ((24, 16), 6)


@pytest.mark.parametrize("place", ["behind XMP", "behind IDAT", "WebP"])
@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_known_and_no_other(decode, place, orientation):
    check_turned(decode, dict(placed(exif(orientation)))[place])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("length", [0, 3, 8, 12, 25])
def test_notes_that_were_cut_do_no_harm(decode, place, length):
    data = dict(placed(exif()[:length]))[place]
    assert orientation(data) == 1
    assert decode(data).shape == (16, 24, 3)


def test_what_only_looks_like_notes_is_none(decode):
    other = segment(0xFFE2, b"FPXR\0" + app1(exif()))
    behind = jpeg(APP0) + app1(exif())
    picture_of_it = contents(picture(8, 8), "BMP") + b"EXIF" + exif()
    chunk = png(PIXELS, 8, before=[(b"tEXt", b"about\0eXIf" + exif())])
    for data in (jpeg(other), behind, picture_of_it, chunk):
        assert orientation(data) == 1
        size = PIL.Image.open(io.BytesIO(data)).size
        assert decode(data).shape == (*size[::-1], 3)


def test_larger_pictures_are_shrunk_and_turned(decode):
    data = contents(picture(64, 32), "PNG", exif=b"Exif\0\0" + exif(8))
    assert decode(data).shape == (32, 16, 3)
    assert decoding.decode_jpeg_or_png(data, CANVAS).shape == (32, 16, 3)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_of_gray_are_read_as_pillow_reads_them(decode, bits):
    values = np.arange(64, dtype="uint8").reshape(8, 8) % 2**bits
    rows = [
        b"\0" + np.packbits(np.unpackbits(row[:, None], 1)[:, -bits:]).tobytes()
        for row in values
    ]
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 8, 8, bits, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"".join(rows))),
        (b"IEND", b""),
    ]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(x)) + k + x + struct.pack(">I", zlib.crc32(k + x))
        for k, x in chunks
    )
    assert (
        np.asarray(PIL.Image.open(io.BytesIO(data)).convert("L")).max() == 255
    )
    check(decode, data)


def test_for_a_saved_model_jpeg_and_png_are_all(decode):
    for file_format in ("JPEG", "PNG"):
        data = contents(picture(64, 40), file_format)
        found = decoding.decode_jpeg_or_png(data, CANVAS)
        np.testing.assert_array_equal(found, decode(data))
    with pytest.raises(tf.errors.OpError, match="must be JPEG or PNG"):
        decoding.decode_jpeg_or_png(contents(picture(), "BMP"), CANVAS)


# All of the head, or only where it points.
@pytest.mark.parametrize(("start", "length"), [(6, 12), (10, 4)])
def test_broken_notes_of_the_camera_do_no_harm(decode, start, length):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    data = contents(picture(), "JPEG", exif=exif)
    start += data.index(b"Exif")
    pixels = decode(data[:start] + b"\xff" * length + data[start + length :])
    assert pixels.shape == (16, 24, 3)


@pytest.mark.parametrize(
    ("width", "height", "size", "file_format"),
    [
        (64, 32, (16, 32), "PNG"),
        (64, 32, (16, 32), "JPEG"),
        (64, 32, (16, 32), "BMP"),
        (30, 300, (32, 3), "PNG"),
        (33, 20, (19, 32), "PNG"),
    ],
)
def test_larger_pictures_are_shrunk_to_the_canvas(
    decode, width, height, size, file_format
):
    data = contents(picture(width, height), file_format)
    box = PIL.Image.Resampling.BOX
    shrunk = PIL.Image.open(io.BytesIO(data)).resize(size[::-1], box)
    assert difference(decode(data), shrunk) <= 8


@pytest.mark.parametrize(
    ("longest", "expected"),
    [(40, 32), (51, 32), (52, 26), (64, 32), (103, 32), (104, 26), (208, 26)],
)
def test_jpegs_are_decoded_at_the_scale_that_fits(decode, longest, expected):
    """From 0.8 canvases on, and not below."""
    pixels = decode(contents(picture(longest, longest // 2), "JPEG"))
    assert pixels.shape[1] == expected


def png_that_claims(width, height):
    data = bytearray(contents(picture(), "PNG"))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return bytes(data)


@pytest.mark.fault(40, 41)
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html></html>",
        contents(picture(), "JPEG")[:-40],
        contents(picture(), "PNG")[:-40],
        contents(picture(), "BMP")[:-40],
        contents(picture(), "WEBP")[:-40],
        contents(picture(7, 300), "PNG"),
        contents(picture(300, 7), "JPEG"),
        png_that_claims(16_000, 16_000),
        png_that_claims(0, 16),
    ],
    ids=repr,
)
def test_what_is_no_usable_image_is_an_error(decode, data):
    with pytest.raises(tf.errors.OpError):
        decode(data)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_one_channel_is_the_grey_that_pillow_makes(file_format, mode):
    if mode == "CMYK" and file_format in ("PNG", "BMP"):
        pytest.skip("the format has no such mode")
    data = contents(picture(mode=mode), file_format)
    expected = PIL.Image.open(io.BytesIO(data)).convert("RGB").convert("L")
    found = decoding.decode(data, CANVAS, channels=1)
    assert found.dtype == tf.uint8
    found = found.numpy()[..., 0].astype(int)
    tolerance = 3 if file_format == "JPEG" else 0
    assert abs(found - np.asarray(expected)).max() <= tolerance


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("canvas", [CANVAS, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_8_bits_as_floats_are_the_same(file_format, canvas, channels):
    lossless = {"lossless": True} if file_format == "WEBP" else {}
    data = contents(picture(), file_format, **lossless)
    expected = decoding.decode(data, canvas, channels).numpy() / 255
    found = decoding.decode(data, canvas, channels, 16)
    assert found.dtype == tf.float32
    assert found.shape[-1] == channels
    # Once where it was shrunk, once where it became grey.
    rounded = ((canvas < CANVAS) + (channels == 1)) * 0.5001 / 255 + 1e-7
    np.testing.assert_allclose(found, expected, rtol=0, atol=rounded)


@pytest.mark.parametrize("depth", [8, 12, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_floats_keep_16_bits_of_png_and_tiff(channels, depth):
    values = np.linspace(0, 2**depth - 1, 1024).astype("uint16")
    values = np.tile(values.reshape(32, 32, 1), channels)
    if channels in (2, 4):
        values[..., -1] = 65535
        values[0, 0, -1] = 0
    expected = (values[..., :1] / (2**depth - 1)).astype("float32")
    expected[0, 0] = 1 if channels in (2, 4) else 0
    for data in (png(values), tiff(values, extra=2)):
        found = decoding.decode(data, CANVAS, bits=16).numpy()
        assert found.shape == (32, 32, 3)
        np.testing.assert_allclose(found - expected, 0, atol=1e-6)
        found = decoding.decode(data, CANVAS, 1, 16).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert len(np.unique(found)) > 256 or depth == 8
        halved = decoding.decode(data, 16, 1, 16).numpy()
        blocks = expected.reshape(16, 2, 16, 2).mean(axis=(1, 3))
        np.testing.assert_allclose(halved[..., 0], blocks, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 16])
def test_further_channels_are_read_shrunk_and_of_known_shape(bits):
    values = np.arange(32 * 24 * 5).reshape(32, 24, 5) % 256
    data = tiff(values.astype("uint8"), extra=0)
    function = tf.function(
        lambda contents: decoding.decode(contents, 16, 5, bits),
        input_signature=[tf.TensorSpec([], tf.string)],
    )
    spec = function.get_concrete_function().structured_outputs
    assert spec.shape.as_list() == [None, None, 5]
    found = function(data)
    blocks = values.reshape(16, 2, 12, 2, 5).mean(axis=(1, 3))
    expected = blocks if bits == 8 else blocks / 255
    assert found.dtype == (tf.uint8 if bits == 8 else tf.float32)
    tolerance = 0.5 if bits == 8 else 1e-6
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    for data in (contents(picture(), "PNG"), contents(picture(), "TIFF")):
        with pytest.raises(
            (tf.errors.OpError, ValueError), match="where 5 are"
        ):
            function(data)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_for_a_saved_model_channels_and_bits_are_the_same(channels, bits):
    for data in (contents(picture(40, 30), "JPEG"), png(XRAY)):
        expected = decoding.decode(data, 24, channels, bits)
        found = decoding.decode_jpeg_or_png(data, 24, channels, bits)
        np.testing.assert_array_equal(found, expected)


XRAY = np.linspace(0, 4095, 900).astype("uint16").reshape(30, 30, 1)


def test_what_is_decoded_already_is_converted_alike():
    rgb = tf.constant(PIXELS)
    for bits in (8, 16):
        data = contents(picture(), "PNG")
        np.testing.assert_array_equal(
            decoding.converted(rgb, 1, bits),
            decoding.decode(data, CANVAS, 1, bits),
        )
        np.testing.assert_array_equal(
            decoding.converted(tf.constant(XRAY), 3, bits),
            decoding.decode(png(XRAY), CANVAS, 3, bits),
        )
    assert decoding.converted(rgb) is rgb
    with pytest.raises(ValueError) as raised:
        decoding.converted(rgb, 4)
    assert str(raised.value) == (
        "`channels` must be those of the images, or 1 or 3, where they have 3 "
        "or 1. Received: channels=4, and images with 3"
    )


def test_names_tell_what_is_looked_into():
    names = ["a.JFIF", "b.jpe", "c.tif", "d.heif", "e", "f/g.1/h", "i.0", "j."]
    names += ["k.jpeg_large", "l.jpg?size=large", "1.2.826.0"]
    assert all(map(decoding.is_candidate, names))
    others = ["a.txt", "b.jpg.part", "c.nef", "d.DNG", "e.json", "f/g.h5", ".x"]
    assert not any(map(decoding.is_candidate, others))
