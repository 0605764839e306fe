import numpy as np
import pytest
import tensorflow as tf
from helpers import oracles

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


def dense(rows, scale, groups):
    """In float64, from the whole matrix: logs, and the largest."""
    similarities = np.where(groups[:, None] != groups, rows @ rows.T, -np.inf)
    largest = similarities.max(axis=1)
    terms = np.exp(scale * (similarities - largest[:, None]))
    return np.log(terms.sum(axis=1)), largest


def relative_to_largest(rows, scale, groups, **kwargs):
    return similarities.log_sum_exp(
        tf.constant(rows), scale, tf.constant(groups[:, None]), **kwargs
    )


GROUPS = {
    "each": np.arange(22),
    "pairs": np.tile(np.arange(11), 2),
    "triples": np.arange(22) % 3,
}


@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.parametrize("block_size", [None, 4, 5, 30])
def test_sums_are_those_of_the_whole_matrix(block_size, kind):
    rows, groups = unit_rows(22), GROUPS[kind]
    found = relative_to_largest(rows, 3.0, groups, block_size=block_size)
    np.testing.assert_allclose(found, dense(rows, 3.0, groups), rtol=1e-12)


@pytest.mark.parametrize("block_size", [None, 2])
def test_rows_without_others_have_no_sum_and_no_gradient(block_size):
    rows = tf.constant(unit_rows(5))
    with tf.GradientTape() as tape:
        tape.watch(rows)
        logs, largest = relative_to_largest(
            rows, 3.0, np.zeros(5, int), block_size=block_size
        )
        loss = tf.nn.softplus(logs)
    assert np.isneginf(logs).all()
    assert np.all(largest < -1)
    np.testing.assert_array_equal(tape.gradient(loss, rows), np.zeros((5, 6)))


@pytest.mark.parametrize("block_size", [None, 4])
def test_gradient_is_that_of_the_whole_matrix(block_size):
    rows = tf.constant(unit_rows(10))
    groups = GROUPS["triples"][:10]
    weights = np.random.default_rng(1).normal(size=10)
    with tf.GradientTape() as tape:
        tape.watch(rows)
        logs, _ = relative_to_largest(rows, 2.0, groups, block_size=block_size)
        total = tf.reduce_sum(weights * logs)

    def expected(rows):
        logs, largest = dense(rows, 2.0, groups)
        return weights @ (logs + 2 * largest)

    np.testing.assert_allclose(
        tape.gradient(total, rows),
        oracles.central_differences(expected, rows.numpy()),
        rtol=1e-5,
        atol=1e-7,
    )
