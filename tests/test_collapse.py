import math

import numpy as np
import pytest
import tensorflow as tf

from keras_simclr import collapse, losses


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def direction(row):
    return [x / math.sqrt(sum(y * y for y in row)) for x in row]


def squared_distance(a, b):
    pairs = zip(direction(a), direction(b), strict=True)
    return sum((x - y) ** 2 for x, y in pairs)


@pytest.mark.parametrize("shape", [(9, 4), (4, 9)])
def test_rankme_equals_its_formula(shape):
    features = normal(*shape)
    rows, columns = np.linalg.svd(features)[::2]
    right = rows.T @ features @ columns.T  # The singular values' diagonal.
    values = [abs(right[i, i]) for i in range(4)]
    entropy = 0.0
    for value in values:
        share = value / sum(values) + 1e-7
        entropy -= share * math.log(share)
    assert collapse.rankme(features) == pytest.approx(math.exp(entropy))


def test_rankme_counts_directions():
    basis = np.linalg.qr(normal(6, 6))[0]
    for rank in range(1, 7):
        features = np.repeat(np.eye(6)[:rank], 4, axis=0) @ basis
        assert collapse.rankme(features) == pytest.approx(rank, abs=1e-4)


def test_rankme_does_not_depend_on_scale_or_rotation():
    features, basis = normal(20, 6), np.linalg.qr(normal(6, 6, seed=1))[0]
    right = collapse.rankme(features)
    for other in (1e200 * features, 1e-200 * features, features @ basis):
        assert collapse.rankme(other) == pytest.approx(right)


def test_collapsed_features_have_rank_1_and_no_spread():
    for features in (np.zeros((5, 3)), np.ones((5, 3))):
        assert collapse.rankme(features) == pytest.approx(1, abs=1e-4)
        assert collapse.alignment(features, features) == 0
        assert collapse.uniformity(features) == pytest.approx(0, abs=1e-12)
        np.testing.assert_allclose(collapse.spread(features), 0, atol=1e-12)


def test_isotropic_features_have_full_rank_and_spread_1():
    features = normal(20_000, 8)
    assert collapse.rankme(features) == pytest.approx(8, abs=0.01)
    np.testing.assert_allclose(collapse.spread(features), 1, atol=0.03)


def test_alignment_equals_a_loop_over_pairs():
    z_1, z_2 = normal(7, 5), normal(7, 5, seed=1)
    right = [squared_distance(a, b) for a, b in zip(z_1, z_2, strict=True)]
    found = collapse.alignment(z_1, z_2)
    assert found == pytest.approx(sum(right) / 7, rel=1e-12)
    assert collapse.alignment(z_1, 3 * z_1) == pytest.approx(0, abs=1e-12)
    assert collapse.alignment(z_1, -z_1) == pytest.approx(4)


@pytest.mark.parametrize("rows", [2, 4, 5, 8, 11])
def test_uniformity_equals_a_loop_over_pairs(rows, monkeypatch):
    monkeypatch.setattr(collapse, "_ROWS_AT_ONCE", 4)
    z = normal(rows, 3)
    potentials = [
        math.exp(-2 * squared_distance(z[i], z[j]))
        for i in range(rows)
        for j in range(i)
    ]
    right = math.log(sum(potentials) / len(potentials))
    assert collapse.uniformity(z) == pytest.approx(right, rel=1e-12)


def test_uniformity_ranges_from_a_point_to_opposite_points():
    assert collapse.uniformity(np.eye(5)) == pytest.approx(-4)
    assert collapse.uniformity([[1e-300, 0], [-1e300, 0]]) == pytest.approx(-8)
    near = [[1, 0], [1, 1e-6]]
    assert collapse.uniformity(near) == pytest.approx(-2e-12, rel=1e-3)


def test_spread_equals_a_loop_over_axes():
    features = normal(7, 3)
    rows = [direction(row) for row in features]
    for axis, found in enumerate(collapse.spread(features)):
        values = [row[axis] for row in rows]
        mean = sum(values) / 7
        variance = sum((x - mean) ** 2 for x in values) / 7
        assert found == pytest.approx(math.sqrt(3 * variance), rel=1e-12)


def test_spread_shows_an_axis_that_is_not_used():
    features = normal(50, 4) * [1, 0, 1, 1]
    assert (collapse.spread(features) > 0.5).tolist() == [True, False] + (
        [True] * 2
    )


def test_tensors_are_measured_in_float64():
    z = tf.cast(normal(6, 4), tf.bfloat16)
    right = collapse.uniformity(np.asarray(z).astype("float64"))
    assert collapse.uniformity(z) == right
    assert collapse.spread(z).dtype == np.float64


def test_chance_loss_is_that_of_equal_projections():
    import keras_simclr as simclr

    z = np.ones((6, 3))
    for temperature in (0.1, 1.0):
        loss = float(simclr.nt_xent(z, z, temperature=temperature))
        assert simclr.NTXent(temperature).chance(6) == pytest.approx(loss)


@pytest.mark.parametrize(
    ("name", "measure"),
    [
        ("features", collapse.rankme),
        ("features", collapse.spread),
        ("z", collapse.uniformity),
        ("z_1", lambda z: collapse.alignment(z, np.eye(2))),
        ("z_2", lambda z: collapse.alignment(np.eye(2), z)),
    ],
)
def test_measures_refuse_what_is_no_set_of_features(name, measure):
    for shape in ((3,), (2, 2, 2), (1, 3), (0, 3), (2, 0)):
        with pytest.raises(ValueError) as error:
            measure(np.zeros(shape))
        assert str(error.value) == (
            f"`{name}` must have the shape (N, D), with at least two rows. "
            f"Received: {name} of shape {shape}"
        )
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError) as error:
            measure(np.full((2, 2), value))
        assert str(error.value) == (
            f"`{name}` must be finite. Received: NaN or infinity"
        )


def test_views_and_batches_that_do_not_fit_are_refused():
    with pytest.raises(ValueError) as error:
        collapse.alignment(np.eye(2), np.eye(3))
    assert str(error.value) == (
        "Both views need projections of the same shape (N, D). "
        "Received: z_1 of shape (2, 2), z_2 of shape (3, 3)"
    )
    with pytest.raises(ValueError) as error:
        losses.NTXent().chance(1)
    assert str(error.value) == (
        "`batch_size` must be an integer of at least 2. Received: batch_size=1"
    )
