"""Training that is compared: networks, optimizers, one or several steps."""

import keras
import numpy as np
import tensorflow as tf

import keras_simclr as simclr
from helpers.replicas import mirrored
from keras_simclr.networks import FusedBatchNormalization

IMAGES = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), "uint8")


def network(norm=FusedBatchNormalization, **kwargs):
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(8, 3, use_bias=False, **kwargs),
            norm(),
            keras.layers.ReLU(),
            keras.layers.Conv2D(16, 3, use_bias=False),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )


def flip():
    return simclr.RandomFlip()


def light():
    return [simclr.RandomFlip(), simclr.RandomGaussianNoise()]


def linear_head():
    return keras.layers.Dense(8, use_bias=False)


def sgd():
    return keras.optimizers.SGD(1.0)


def lars():
    return simclr.LARS(
        keras.optimizers.SGD(0.1, momentum=0.9), trust_coefficient=0.02
    )


def is_reference(replicas, micro_batch_size):
    """What others are compared with need not be traced."""
    return replicas == 1 and micro_batch_size is None


def train(
    replicas=1,
    *,
    encoder=network,
    head=None,
    augmentation=flip,
    optimizer=sgd,
    dtype="float32",
    micro_batch_size=None,
    batch_size=32,
    others=None,
    loss=None,
    views=2,
):
    if dtype == "float64":
        keras.config.set_floatx("float64")
    keras.config.set_dtype_policy(dtype)
    keras.utils.set_random_seed(1)
    with mirrored(replicas).scope():
        model = simclr.SimCLRModel(
            encoder(),
            head and head(),
            augmentation=augmentation(),
            views=views,
            micro_batch_size=micro_batch_size,
            seed=3,
        )
        # In graphs, views, of float32, are rounded otherwise: within the
        # tolerance of all but float64.
        is_eager = is_reference(replicas, micro_batch_size)
        is_eager = is_eager and dtype != "float64"
        model.compile(optimizer(), loss, run_eagerly=is_eager)
    size = 4 * batch_size if dtype == "float64" else batch_size
    arrays = {"images": IMAGES, **(others or {})}
    history = model.fit(
        {name: array[:size] for name, array in arrays.items()},
        batch_size=batch_size,
        shuffle=False,
        verbose=0,
    )
    variables = [variable.numpy() for variable in model.variables]
    return history.history, variables


class Reverse(keras.layers.Layer):
    """An augmentation for rows that draws nothing."""

    def call(self, rows, training=True, seed=None):
        return tf.reverse(rows, [1]) if training else rows


class Same(keras.layers.Layer):
    def call(self, rows, training=True, seed=None):
        return tf.identity(rows)


def of_rows(*layers):
    """An encoder of rows of a table."""
    return keras.Sequential([keras.Input((6,)), *layers])


def train_rows(
    encoder,
    *,
    replicas=1,
    head=None,
    dtype="float64",
    optimizer=sgd,
    loss=None,
    micro_batch_size=None,
    has_validation=False,
):
    """Two steps on rows of a table: logs and variables.

    Validation takes a third of the time: it is for what it could change.
    """
    if dtype == "float64":
        keras.config.set_floatx("float64")
    keras.config.set_dtype_policy(dtype)
    keras.utils.set_random_seed(1)
    rows = np.random.default_rng(0).normal(size=(32, 6))
    with mirrored(replicas).scope():
        model = simclr.SimCLRModel(
            encoder(),
            head() if head else linear_head(),
            augmentation=Reverse(),
            second_augmentation=Same(),
            micro_batch_size=micro_batch_size,
        )
        is_eager = is_reference(replicas, micro_batch_size)
        model.compile(optimizer(), loss, run_eagerly=is_eager)
    validation = rows[:16] if has_validation else None
    history = model.fit(
        rows, batch_size=16, validation_data=validation, verbose=0
    )
    return history.history, [variable.numpy() for variable in model.variables]


def assert_equal(actual, expected, tolerance):
    (history, variables), (right_history, right_variables) = actual, expected
    for name, values in right_history.items():
        np.testing.assert_allclose(history[name], values, rtol=tolerance)
    for value, right in zip(variables, right_variables, strict=True):
        scale = np.abs(right).max() or 1.0
        np.testing.assert_allclose(value, right, atol=tolerance * scale)
