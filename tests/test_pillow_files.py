import io
import itertools
import sys

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from helpers.pictures import encoded, picture, tiff

from keras_simclr import decoding, pillow_files
from keras_simclr.pillow_files import Picture, UnusableError


def noise(channels, dtype="uint8", height=18, width=21):
    top = np.iinfo(dtype).max
    rng = np.random.default_rng(channels)
    values = rng.integers(0, top, (height, width, channels), endpoint=True)
    values[0, 0] = top
    return values.astype(dtype)


def opened(data):
    return PIL.Image.open(io.BytesIO(data))


@pytest.mark.parametrize(
    ("packed", "predicted"), [(False, False), (True, False), (True, True)]
)
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_samples_of_a_tiff_are_what_was_written(
    channels, planar, packed, predicted
):
    for order, dtype, tile in itertools.product(
        "<>", ("uint8", "uint16"), (None, 16)
    ):
        values = noise(channels, dtype)
        data = tiff(
            values,
            order=order,
            packed=packed,
            predicted=predicted,
            planar=planar and channels > 1,
            tile=tile,
            extra=0 if channels in (2, 5) else None,
        )
        picture = Picture(data, "TIFF")
        assert picture.channels == channels
        found = picture.pixels(channels, 16)[..., :channels]
        expected = values / np.float32(np.iinfo(dtype).max)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)
        found = picture.pixels(channels)[..., :channels]
        shift = 0 if dtype == "uint8" else 8
        np.testing.assert_array_equal(found, values >> shift)


@pytest.mark.fault(31)
@pytest.mark.parametrize("depth", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_scaled_by_the_depth_of_what_they_hold(channels, depth):
    values = noise(channels, "uint16") >> (16 - depth)
    picture = Picture(tiff(values), "TIFF")
    expected = np.broadcast_to(values >> (depth - 8), (18, 21, 3))
    np.testing.assert_array_equal(picture.pixels(), expected)
    assert picture.depth == depth
    expected = np.broadcast_to(values / (2**depth - 1), (18, 21, 3))
    np.testing.assert_allclose(picture.pixels(bits=16), expected, atol=1e-7)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize(
    ("channels", "extra"), [(4, 2), (4, None), (4, 1), (2, 2)]
)
def test_transparent_parts_of_a_tiff_are_white(channels, extra, dtype):
    top = np.iinfo(dtype).max
    values = noise(channels, dtype)
    values[:, :9, -1] = 0
    values[:, 9:, -1] = top
    if extra == 1:
        values[:, :9] = 0  # Multiplied by it.
    data = tiff(values, extra=extra)
    assert "transparency" in Picture(data, "TIFF").remarks
    for bits, white in ((8, 255), (16, 1)):
        pixels = Picture(data, "TIFF").pixels(bits=bits)
        assert (pixels[:, :9] == white).all()
        expected = values[:, 9:, :-1] / top * white
        assert abs(pixels[:, 9:] - expected).max() <= (1 if bits == 8 else 1e-6)


def test_zero_may_be_white():
    values = noise(1, "uint16")
    found = Picture(tiff(values, kind=0), "TIFF").pixels()
    np.testing.assert_array_equal(found[..., :1], 255 - (values >> 8))


@pytest.mark.fault(42)
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [3, 5])
def test_tiffs_are_turned_upright(channels, dtype, orientation):
    values = noise(channels, dtype)
    data = tiff(values, orientation=orientation, extra=0)
    picture = Picture(data, "TIFF")
    assert picture.orientation == orientation
    assert (picture.width, picture.height) == (21, 18)
    shown = (values[..., 0] >> (0 if dtype == "uint8" else 8)).astype("uint8")
    shown = PIL.Image.fromarray(shown)
    shown.getexif()[0x0112] = orientation
    expected = np.asarray(PIL.ImageOps.exif_transpose(shown))
    np.testing.assert_array_equal(picture.pixels(channels)[..., 0], expected)


@pytest.mark.parametrize("name", ["AVIF", "HEIF", "WEBP"])
def test_other_formats_are_turned_upright(name):
    has_plug_in(name)
    notes = PIL.Image.Exif()
    notes[0x0112] = 6
    data = encoded(picture(1), name, exif=notes.tobytes())
    pixels = Picture(data, name).pixels()
    assert pixels.shape == (48, 32, 3)
    upright = np.asarray(picture(1).transpose(PIL.Image.Transpose.ROTATE_270))
    assert abs(pixels.astype(int) - upright).mean() < 16


def test_avif_may_begin_with_a_general_brand():
    contents = encoded(picture(0), "AVIF")
    general = contents[:8] + b"mif1" + contents[12:]
    np.testing.assert_array_equal(
        decoding.decode(general, 64), decoding.decode(contents, 64)
    )


def has_plug_in(name):
    if name == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()


@pytest.mark.fault(39)
@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "CMYK", "1"])
@pytest.mark.parametrize("name", ["TIFF", "AVIF", "JPEG2000", "HEIF"])
def test_every_mode_is_read_as_pillow_reads_it(name, mode):
    has_plug_in(name)
    if name == "JPEG2000" and mode in ("P", "1"):
        pytest.skip("the format has no such mode")
    data = encoded(picture(2).convert(mode), name)
    expected = np.asarray(opened(data).convert("RGB"))
    found = Picture(data, name).pixels()
    np.testing.assert_array_equal(found, expected)
    found = Picture(data, name).pixels(bits=16)
    np.testing.assert_allclose(found, expected / 255, atol=1e-7)


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg", "packbits"])
def test_compressed_tiffs_are_read_as_pillow_reads_them(compression):
    data = encoded(picture(3), "TIFF", compression=compression)
    expected = np.asarray(opened(data))
    np.testing.assert_array_equal(Picture(data, "TIFF").pixels(), expected)


def test_grey_jpeg_2000_keeps_16_bits():
    values = noise(1, "uint16")[..., 0]
    data = encoded(PIL.Image.fromarray(values), "JPEG2000")
    found = Picture(data, "JPEG2000").pixels(bits=16)
    np.testing.assert_allclose(found[..., 0], values / 65535, atol=1e-7)


@pytest.mark.fault(38)
def test_first_page_is_read_and_others_are_known():
    others = {"save_all": True, "append_images": [picture(5)]}
    picture_ = Picture(encoded(picture(4), "TIFF", **others), "TIFF")
    assert picture_.remarks == ["animated"]
    np.testing.assert_array_equal(picture_.pixels(), np.asarray(picture(4)))


def test_floats_are_read_in_the_unit_range_and_no_others():
    values = np.random.default_rng(0).random((9, 8, 1)).astype("float32")
    found = Picture(tiff(values), "TIFF").pixels(bits=16)
    np.testing.assert_array_equal(found[..., :1], values)
    found = Picture(tiff(values), "TIFF").pixels()
    np.testing.assert_array_equal(found[..., :1], np.round(255 * values))
    for low, high in ((-1, 1), (0, 2), (0, np.nan)):
        values[0, 0], values[1, 1] = low, high
        with pytest.raises(UnusableError, match=r"of floats from .* not in"):
            Picture(tiff(values), "TIFF").pixels()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (noise(1).astype("int32"), "TIFF of signed or 32-bit integers"),
        (noise(1).astype("int16"), "TIFF of signed or 32-bit integers"),
        (
            np.zeros((9, 9, 5), "float32"),
            "TIFF of 5 channels of 32 bits, kind 3, compression 1",
        ),
    ],
)
def test_what_has_no_known_scale_is_refused(values, message):
    with pytest.raises(UnusableError) as raised:
        Picture(tiff(values, extra=0), "TIFF").pixels(values.shape[2])
    assert str(raised.value) == f"unsupported format: {message}"


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [2, 4, 6])
def test_channels_that_are_no_colours_are_not_dropped(channels, dtype):
    picture = Picture(tiff(noise(channels, dtype), extra=0), "TIFF")
    assert picture.has_others
    assert picture.pixels(channels).shape == (18, 21, channels)
    for other in (1, 3, channels + 1):
        with pytest.raises(UnusableError) as raised:
            picture.pixels(other)
        assert str(raised.value) == (
            f"other channels: {channels}, where {other} are asked for"
        )


def test_alpha_of_a_tiff_is_a_channel_where_four_are_asked_for():
    """Many programs call the fourth band of an image so."""
    values = noise(4)
    for extra in (None, 1, 2):
        found = Picture(tiff(values, extra=extra), "TIFF").pixels(4)
        np.testing.assert_array_equal(found, values)


def test_no_other_format_has_further_channels():
    image = picture(6).convert("RGBA")
    image.putpixel((0, 0), (0, 0, 0, 0))
    for name in ("PNG", "WEBP"):
        data = encoded(image, name)
        for channels in (2, 4, 5):
            with pytest.raises(UnusableError, match="other channels: 4, where"):
                Picture(data, name).pixels(channels)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_tiff_that_was_cut_is_an_error(dtype, packed):
    """Its directory stands in front, as many programs write it."""
    values = noise(3, dtype)
    image = PIL.Image.fromarray(values.astype("uint8"))
    if dtype == "uint16":
        image = PIL.Image.fromarray(values[..., 0])
    kind = "tiff_lzw" if packed else "raw"
    data = encoded(image, "TIFF", compression=kind)
    for length in (len(data) - 1, len(data) - 20, len(data) // 2):
        with pytest.raises(Exception):  # noqa: B017 Pillow's are of any kind.
            Picture(data[:length], "TIFF").pixels()


def test_big_tiffs_are_read():
    values = noise(3)
    data = tiff(values)
    with PIL.Image.open(io.BytesIO(data)) as image:
        big = encoded(image, "TIFF", big_tiff=True)
    np.testing.assert_array_equal(Picture(big, "TIFF").pixels(), values)
    with pytest.raises(UnusableError, match="big-endian and big"):
        Picture(b"MM\0+" + bytes(40), "TIFF")


@pytest.mark.fault(65)
def test_a_missing_plug_in_is_named_with_its_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UnusableError) as raised:
        Picture(b"", "HEIF")
    assert str(raised.value) == (
        "no plug-in: HEIF. Install it with: pip install 'keras_simclr[formats]'"
    )
    monkeypatch.setitem(pillow_files._FEATURES, "BMP", "libimagequant")
    monkeypatch.setattr("PIL.features.check", lambda name: False)
    with pytest.raises(UnusableError, match="no plug-in: BMP"):
        Picture(b"", "BMP")
