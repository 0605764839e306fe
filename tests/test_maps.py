import numpy as np
import pytest

from keras_simclr import maps


@pytest.mark.parametrize("size", [1, 2, 3, 9, 10, 40])
def test_any_number_of_rows_has_places(size):
    rows = np.random.default_rng(0).normal(size=(size, 5))
    places = maps.lay_out(rows)
    assert places.shape == (size, 2)
    assert places.dtype == "float32"
    assert np.isfinite(places).all()
    assert np.abs(places).max() == (size > 1)


def test_similar_rows_lie_side_by_side():
    rng = np.random.default_rng(0)
    kinds = np.arange(90) % 3
    rows = 5 * np.eye(8)[kinds] + 0.3 * rng.normal(size=(90, 8))
    places = maps.lay_out(rows)
    distances = np.linalg.norm(places[:, None] - places, axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (kinds[distances.argmin(axis=1)] == kinds).all()


def test_same_rows_make_the_same_map():
    rows = np.random.default_rng(0).normal(size=(60, 6))
    assert maps.lay_out(rows).tobytes() == maps.lay_out(rows).tobytes()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_rows_lie_in_the_middle(value):
    assert not maps.lay_out(np.full((20, 3), value)).any()


def test_one_feature_is_enough():
    assert maps.lay_out(np.arange(-6.0, 6)[:, None]).shape == (12, 2)
