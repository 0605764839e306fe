import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_simclr import trials

RNG = np.random.default_rng(0)
GENERATOR = keras.random.SeedGenerator(1)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((8, 9, 3), "float32"),
        ((None, None, 1), "float64"),
        ((5,), "float32"),
        ((5,), "int32"),
        ((5,), "uint8"),
        ((2,), "string"),
        ((3,), "bfloat16"),
    ],
)
def test_examples_are_two_that_come_twice(shape, dtype):
    batch = trials.examples(shape, dtype)
    assert batch.dtype.name == dtype
    assert batch.shape.is_compatible_with((4, *shape))
    assert np.array_equal(batch[:2], batch[2:])
    assert not np.array_equal(batch[0], batch[1])
    if len(shape) == 3:
        assert 0 <= np.min(batch) < 0.1 < 0.9 < np.max(batch) <= 1


def test_ramps_use_the_whole_range_each():
    images = trials.ramps((8, None, 3))
    np.testing.assert_array_equal(np.min(images, axis=(1, 2, 3)), np.zeros(4))
    np.testing.assert_array_equal(np.max(images, axis=(1, 2, 3)), np.ones(4))


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: keras.random.dropout(x, 0.01),
        lambda x: keras.random.dropout(x, 0.5, seed=GENERATOR),
        lambda x: keras.random.dropout(x, 0.5, seed=1),  # One mask for ever.
        lambda x: x + tf.random.normal(tf.shape(x)),
        lambda x: x * tf.random.uniform(tf.shape(x), seed=5),
        lambda x: x * tf.random.uniform([]),
        lambda x: x * RNG.random(),
        lambda x: tf.nn.experimental.stateless_dropout(x, 0.5, seed=(1, 2)),
        tf.function(lambda x: x * RNG.random((4, 1))),
    ],
)
def test_all_randomness_is_found(draw):
    assert trials.is_random(draw, trials.examples((9,)))


@pytest.mark.parametrize(
    "compute",
    [
        tf.identity,
        lambda x: tf.cast(x, tf.bfloat16),
        lambda x: x @ tf.random.stateless_normal((9, 4), seed=(1, 2)),
        lambda x: keras.layers.BatchNormalization()(x, training=True),
        lambda x: x * np.nan,
    ],
)
def test_what_is_repeatable_is_not_random(compute):
    assert not trials.is_random(compute, trials.examples((9,)))


def test_no_state_moves():
    before = GENERATOR.state.numpy()
    norm = keras.layers.BatchNormalization()
    norm.build((None, 9))

    def function(x):
        return norm(keras.random.dropout(x, 0.5, seed=GENERATOR), training=True)

    assert trials.is_random(function, trials.examples((9,)))
    np.testing.assert_array_equal(GENERATOR.state.numpy(), before)
    np.testing.assert_array_equal(norm.moving_mean, np.zeros(9))


def test_a_layer_that_draws_a_seed_for_nothing_is_random_by_seeds_only():
    def function(x):
        keras.random.uniform(())
        return x

    inputs = trials.examples((9,))
    assert trials.is_random(function, inputs)
    assert not trials.is_random(function, inputs, at_rest=True)


def test_inputs_that_are_refused_tell_nothing():
    embedding = keras.layers.Embedding(1, 2)
    assert not trials.is_random(embedding, tf.fill((4, 2), "a word"))


@pytest.mark.parametrize(
    ("outputs", "dtypes", "is_other"),
    [
        ([1.0, 2.0], (), False),
        ([1.0, 2.001], (), True),
        ([1.0, 2.001], ("float32",), False),
        ([1.0, 2.01], ("float32",), True),
        ([1.0, 2.05], ("float16", "float32"), False),
        ([1.0, 2.2], ("bfloat16",), False),
        ([1.0, np.nan], ("bfloat16",), True),
        ([1.0], (), True),
    ],
)
def test_rounding_is_no_difference(outputs, dtypes, is_other):
    outputs = tf.constant(outputs)
    assert trials.differ(outputs, tf.constant([1.0, 2.0]), dtypes=dtypes) == (
        is_other
    )


def test_what_is_not_finite_is_not_compared():
    expected = tf.constant([1.0, np.nan, np.inf])
    assert not trials.differ(tf.constant([1.0, 2.0, 3.0]), expected)
    assert trials.differ(tf.constant([1.1, 2.0, 3.0]), expected)
