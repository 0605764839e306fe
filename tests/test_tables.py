import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

import keras_simclr as simclr
from keras_simclr import features, kinds, tables

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(40, 6)).astype("float32")
GROUPS = [7, 7, -1, 2, 2, 2]
MANY = 4_000


def adapted(rows, *args, **kwargs):
    layer = tables.MarginalCorruption(*args, **kwargs)
    layer.adapt(rows)
    return layer


def numbered(rows, columns):
    """Rows in which each value tells its row and its column."""
    return (100 * np.arange(rows)[:, None] + np.arange(columns)).astype("f4")


@pytest.mark.parametrize(
    ("rate", "columns", "replaced"),
    [(0.6, 10, 6), (0.6, 5, 3), (0.4, 10, 4), (0.25, 10, 3), (1.0, 4, 4)],
)
def test_that_share_of_the_columns_is_replaced(rate, columns, replaced):
    """And not the rest, as in public code."""
    layer = adapted(numbered(50, columns), rate)
    views = layer(np.full((MANY, columns), -1.0), seed=(0, 1)).numpy()
    is_replaced = views != -1.0
    np.testing.assert_array_equal(is_replaced.sum(axis=1), replaced)
    # Each column as often as any other.
    counts = is_replaced.sum(axis=0)
    share = replaced / columns
    assert np.abs(counts / MANY - share).max() < 5 * np.sqrt(0.25 / MANY)


def test_values_are_draws_of_the_marginals():
    rows = RNG.gamma(0.5, size=(500, 2)).astype("float32")  # Far from uniform.
    rows[:, 1] = np.where(rows[:, 1] > 1.0, 1.0, 0.0)
    views = adapted(rows, 1.0)(np.zeros((MANY, 2)), seed=(0, 1)).numpy()
    assert np.isin(views[:, 0], rows[:, 0]).all()
    places = np.searchsorted(np.sort(rows[:, 0]), views[:, 0]) / 500
    assert stats.kstest(places, "uniform").pvalue > 0.001
    assert abs(views[:, 1].mean() - rows[:, 1].mean()) < 0.05


def test_columns_are_replaced_each_from_a_row_of_its_own():
    views = adapted(numbered(50, 4), 1.0)(np.zeros((MANY, 4)), seed=(0, 1))
    donors = np.asarray(views) // 100
    assert (donors % 1 == 0).all()
    correlations = np.corrcoef(donors.T) - np.eye(4)
    assert np.abs(correlations).max() < 0.08
    assert len(np.unique(donors)) == 50


def test_columns_of_a_group_are_replaced_together():
    layer = adapted(numbered(50, 6), 0.5, groups=GROUPS)
    views = layer(np.full((MANY, 6), -1.0), seed=(0, 1)).numpy()
    donors = np.where(views == -1.0, -1, views // 100)
    np.testing.assert_array_equal(donors[:, 0], donors[:, 1])
    np.testing.assert_array_equal(donors[:, 3], donors[:, 4])
    np.testing.assert_array_equal(donors[:, 3], donors[:, 5])
    groups = donors[:, [0, 2, 3]]
    # Half of three, to the nearest: two groups, of different rows.
    np.testing.assert_array_equal((groups >= 0).sum(axis=1), 2)
    both = groups[(groups[:, 0] >= 0) & (groups[:, 1] >= 0)]
    assert (both[:, 0] == both[:, 1]).mean() < 0.1
    columns = np.where(views == -1.0, np.arange(6), views % 100)
    np.testing.assert_array_equal(columns, np.tile(np.arange(6), (MANY, 1)))


def test_more_rows_than_are_kept_are_sampled_evenly(monkeypatch):
    monkeypatch.setattr(tables, "_KEPT_ROWS", 100)
    rows = np.repeat(np.arange(1000.0)[:, None], 2, axis=1)
    layer = adapted(
        simclr.dataset_from_arrays(
            rows, batch_size=64, shuffle=False, drop_remainder=False
        ),
        1.0,
    )
    kept = layer.rows.numpy()[:, 0]
    assert len(np.unique(kept)) == 100
    assert stats.kstest(kept / 1000, "uniform").pvalue > 0.001


def test_wide_tables_keep_fewer_rows(monkeypatch):
    monkeypatch.setattr(tables, "_KEPT_VALUES", 100)
    layer = adapted(numbered(40, 30), 0.5)
    assert layer.rows.shape == (3, 30)


def test_fewer_rows_than_are_kept_are_all_that_is_drawn():
    layer = adapted(numbered(3, 2) + 1.0, 1.0)
    views = layer(np.zeros((MANY, 2)), seed=(0, 1)).numpy()
    np.testing.assert_array_equal(np.unique(views[:, 0]), [1.0, 101.0, 201.0])


def test_parts_of_a_batch_get_the_views_of_the_whole():
    layer = adapted(ROWS, groups=GROUPS)
    whole = layer(ROWS, seed=(3, 4))
    parts = [
        layer(ROWS[a:b], seed=(3, 4), part=(a, 40))
        for a, b in ((0, 7), (7, 39), (39, 40))
    ]
    np.testing.assert_array_equal(tf.concat(parts, axis=0), whole)


def test_rows_at_rest_or_at_rate_0_come_back():
    layer = tables.MarginalCorruption()
    np.testing.assert_array_equal(layer(ROWS, training=False), ROWS)
    layer = tables.MarginalCorruption(0.0)
    np.testing.assert_array_equal(layer(ROWS, seed=(0, 1)), ROWS)
    assert layer.kind is kinds.TABLES


def test_corruption_must_have_seen_rows():
    layer = tables.MarginalCorruption(name="first")
    sentence = re.escape(
        "MarginalCorruption must see rows before it makes views: adapt(...). "
        "Received: none, for 'first'"
    )
    for call in (layer, tf.function(layer)):
        with pytest.raises(ValueError, match=sentence):
            call(tf.constant(ROWS))
    for wrong in (ROWS[:0], ROWS * np.nan, ROWS[0], ROWS > 0):
        with pytest.raises(ValueError, match="Received"):
            tables.MarginalCorruption().adapt(wrong)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"rate": 1.1}, "rate"),
        ({"rate": -0.1}, "rate"),
        ({"rate": "0.6"}, "rate"),
        ({"groups": []}, "groups"),
        ({"groups": [0.5, 1.0]}, "groups"),
        ({"groups": [[0, 1]]}, "groups"),
        ({"groups": 3}, "groups"),
    ],
)
def test_wrong_argument_is_named(arguments, name):
    with pytest.raises(ValueError, match=f"^`{name}` must .*Received: {name}="):
        tables.MarginalCorruption(**arguments)


def test_rows_of_other_columns_are_refused():
    layer = adapted(ROWS, groups=GROUPS)
    with pytest.raises(ValueError, match="6 groups for rows of shape"):
        layer(np.zeros((2, 5)))
    with pytest.raises(ValueError, match=r"\(batch, columns\)"):
        layer(np.zeros((2, 5, 6)))


def test_network_needs_layers():
    for wrong in ({"units": ()}, {"units": (0,)}, {"units": (2.5,)}):
        with pytest.raises(ValueError, match="Received: "):
            tables.MLP(**wrong, input_shape=(5,))
    assert tables.default_encoder((5,), 0.5).output_shape == (None, 128)


def build():
    keras.utils.set_random_seed(0)
    encoder = tables.MLP((8, 4), input_shape=(6,))
    model = simclr.SimCLRModel(
        encoder,
        simclr.ProjectionHead(units=4),
        **tables.default_augmentation((None, 6)),
    )
    features.adapt(model, simclr.dataset_from_arrays(ROWS, batch_size=8))
    model.compile(keras.optimizers.SGD(0.1))
    return model


def test_model_of_rows_trains_and_comes_back(tmp_path):
    model = build()
    assert model.kind is kinds.TABLES
    first, second = model.views(ROWS)
    np.testing.assert_array_equal(first, ROWS)
    assert np.mean(second != ROWS) == pytest.approx(4 / 6, abs=0.04)
    history = model.fit(ROWS, batch_size=20, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    h = model.predict(ROWS, verbose=0)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    loaded, other = keras.saving.load_model(tmp_path / "model.keras"), build()
    other.second_augmentation.adapt(np.ones((3, 6)))
    other.load_weights(tmp_path / "model.weights.h5")
    for copy in (loaded, other):
        np.testing.assert_allclose(copy.predict(ROWS, verbose=0), h, atol=1e-6)
        np.testing.assert_array_equal(copy.views(ROWS)[1], second)
    directory = tmp_path / "exported"
    simclr.export_encoder(model, directory, formats=["keras", "saved_model"])
    plain = keras.saving.load_model(directory / "encoder.keras")
    np.testing.assert_allclose(plain.predict(ROWS, verbose=0), h, atol=1e-5)
    module = tf.saved_model.load(str(directory / "saved_model"))
    np.testing.assert_allclose(module(ROWS), h, atol=1e-5)


def test_replicas_train_on_rows_as_one_device():
    dataset = simclr.dataset_from_arrays(ROWS, batch_size=16)
    simclr.testing.assert_replica_parity(build, dataset)
