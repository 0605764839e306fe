import base64
import io

import numpy as np
import PIL.Image
import pytest

from keras_simclr import thumbnails


def decoded(thumbnail):
    start = "data:image/webp;base64,"
    assert thumbnail.address.startswith(start)
    data = base64.b64decode(thumbnail.address.removeprefix(start))
    return PIL.Image.open(io.BytesIO(data))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_small_images_are_what_they_were(channels, dtype):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (12, 9, channels), "uint8")
    given = image if dtype == "uint8" else (image / 255).astype(dtype)
    (found,) = thumbnails.encode([thumbnails.shrunk(given)], 10**6)
    assert (found.width, found.height) == (9, 12)
    assert found.is_exact
    shown = image[..., :3] if channels > 2 else image[..., [0, 0, 0]]
    np.testing.assert_array_equal(np.asarray(decoded(found)), shown)


def test_large_images_keep_their_proportions():
    picture = thumbnails.shrunk(np.zeros((400, 100, 3), "uint8"))
    (found,) = thumbnails.encode([picture], 10**6)
    assert (found.width, found.height) == (24, 96)
    assert not found.is_exact
    assert decoded(found).size == (24, 96)


@pytest.mark.parametrize("most", [300_000, 60_000])
def test_many_pictures_take_no_more_than_they_may(most):
    noise = np.random.default_rng(0).integers(
        0, 256, (60, 200, 150, 3), "uint8"
    )
    found = thumbnails.encode([*map(thumbnails.shrunk, noise)], most)
    assert sum(len(x.address) for x in found) <= most
    assert len(found) == 60


def test_nothing_but_pixels_goes_out():
    picture = thumbnails.shrunk(np.zeros((64, 64, 3), "uint8"))
    picture.info["exif"] = b"Exif\0\0secret"
    (found,) = thumbnails.encode([picture], 10**6)
    assert not decoded(found).info.get("exif")


def test_no_picture_is_none():
    assert thumbnails.encode([], 10) == []
