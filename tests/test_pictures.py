import base64
import io

import numpy as np
import pytest
import soundfile

from keras_simclr import kinds
from keras_simclr.pictures import picture_of, played


def test_spectrograms_have_low_notes_below():
    view = np.zeros((5, 3))
    view[1, 0] = 1.0  # The lowest band, in the second step.
    picture = picture_of(view, kinds.AUDIO)
    assert picture.shape == (3, 5, 1)
    assert picture[2, 1] == 1.0
    assert picture.sum() == 1.0


def test_curves_show_each_channel_in_a_colour_of_its_own():
    rising, falling = np.linspace(0, 1, 50), np.linspace(1, 0, 50)
    picture = picture_of(np.stack([rising, falling], 1), kinds.SERIES)
    height = len(picture)
    left, right = picture[:, 0], picture[:, -1]
    assert (left[height - 1] == right[0]).all()
    assert (left[0] == right[height - 1]).all()
    assert (left[0] != left[height - 1]).any()
    assert (picture == 255).all(axis=-1).mean() > 0.8


def test_rows_are_cells_in_order():
    picture = picture_of(np.array([0.0, 1.0, 2.0]), kinds.TABLES)
    cells = picture[::8, ::8, 0]
    np.testing.assert_allclose(cells, [[0.0, 0.5], [1.0, 0.0]])


@pytest.mark.parametrize("kind", [kinds.AUDIO, kinds.SERIES, kinds.TABLES])
def test_what_is_flat_has_a_picture(kind):
    shape = (4,) if kind is kinds.TABLES else (4, 3)
    assert np.isfinite(picture_of(np.ones(shape), kind)).all()


def test_images_are_shown_as_they_are():
    image = np.zeros((4, 3, 1), "uint8")
    assert picture_of(image, kinds.IMAGES) is image


def test_sounds_that_are_played_are_what_they_were():
    rng = np.random.default_rng(0)
    sound = rng.uniform(-1, 1, 30_000)
    address = played(sound, 8000)
    head, _, text = address.partition(",")
    assert head == "data:audio/wav;base64"
    found, rate = soundfile.read(io.BytesIO(base64.b64decode(text)))
    assert rate == 8000
    np.testing.assert_allclose(found, sound[:16_000], atol=0.01)
