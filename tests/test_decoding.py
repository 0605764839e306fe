import io
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import tensorflow as tf

from keras_simclr import decoding

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


def test_first_picture_of_an_animation_is_read(decode):
    others = [picture().rotate(180)]
    data = contents(picture(), "GIF", save_all=True, append_images=others)
    check(decode, data)


def test_16_bits_of_gray_become_8(decode):
    deep = PIL.Image.fromarray(
        np.arange(8 * 8, dtype="uint16").reshape(8, 8) * 1000
    )
    pixels = decode(contents(deep, "PNG"))
    np.testing.assert_array_equal(pixels[..., 0], np.asarray(deep) >> 8)


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


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("jfif", [0, 18])
def test_notes_are_read_in_both_orders_of_bytes(decode, endian, jfif):
    exif = PIL.Image.Exif()
    exif.endian = endian
    exif[0x010F] = "a maker"
    exif[0x0112] = 6
    data = contents(picture(), "JPEG", exif=exif)
    data = data[: 2 + jfif] + data[20:]
    assert data[6 + jfif : 10 + jfif] == b"Exif"
    assert decode(data).shape == (24, 16, 3)


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
        contents(picture(), "TIFF"),
        png_that_claims(16_000, 16_000),
        png_that_claims(0, 16),
    ],
    ids=repr,
)
def test_what_is_no_usable_image_is_an_error(decode, data):
    with pytest.raises(tf.errors.OpError):
        decode(data)
