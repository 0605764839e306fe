import numpy as np
import pytest
import tensorflow as tf

from keras_simclr import similarities


def unit_rows(count, size=6, seed=0):
    rows = np.random.default_rng(seed).normal(size=(count, size))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("shares", [1, 2, 3])
@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 5])
def test_each_pair_of_blocks_is_met_once(blocks, shares):
    def step(i, j, met):
        assert i <= j
        return [tf.tensor_scatter_nd_add(met, [[i, j]], [1])]

    rows = tf.zeros((blocks, 2, 3))
    met = sum(
        similarities._over_blocks(
            step,
            rows,
            [tf.zeros((blocks, blocks), tf.int32)],
            (tf.constant(share), tf.constant(shares)),
        )[0].numpy()
        for share in range(shares)
    )
    np.testing.assert_array_equal(met, np.triu(np.ones_like(met)))


def dense(rows, scale, groups=None):
    """In float64, from the whole matrix."""
    count = len(rows)
    similarities = rows @ rows.T
    partner = (np.arange(count) + count // 2) % count
    counts = ~np.eye(count, dtype=bool)
    if groups is not None:
        counts &= groups[:, None] != groups
        counts[np.arange(count), partner] = True
    to_partner = similarities[np.arange(count), partner]
    terms = np.exp(scale * (similarities - to_partner[:, None]))
    candidates = np.where(counts, similarities, -np.inf)
    return np.log((terms * counts).sum(axis=1)), candidates.argmax(axis=1) == (
        partner
    )


@pytest.mark.parametrize("has_groups", [False, True])
@pytest.mark.parametrize("block_size", [None, 4, 5, 30])
def test_sums_are_those_of_the_whole_matrix(block_size, has_groups):
    rows = unit_rows(22)
    groups = np.tile(np.arange(11) // 2, 2) if has_groups else None
    logs, found = similarities.log_sum_exp(
        tf.constant(rows),
        3.0,
        groups=None if groups is None else tf.constant(groups[:, None]),
        block_size=block_size,
    )
    expected, nearest = dense(rows, 3.0, groups)
    np.testing.assert_allclose(logs, expected, rtol=1e-12)
    np.testing.assert_array_equal(found, nearest)


def test_gradient_is_that_of_the_whole_matrix():
    rows = tf.constant(unit_rows(10))
    weights = tf.constant(np.random.default_rng(1).normal(size=10))
    with tf.GradientTape() as tape:
        tape.watch(rows)
        logs, _ = similarities.log_sum_exp(rows, 2.0, block_size=4)
        total = tf.reduce_sum(weights * logs)
    gradient = tape.gradient(total, rows).numpy()
    for place in np.ndindex(10, 6):
        values = []
        for step in (1e-6, -1e-6):
            moved = rows.numpy()
            moved[place] += step
            values.append(float(weights.numpy() @ dense(moved, 2.0)[0]))
        slope = (values[0] - values[1]) / 2e-6
        assert gradient[place] == pytest.approx(slope, rel=1e-5, abs=1e-7)
