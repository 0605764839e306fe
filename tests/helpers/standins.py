"""Small stand-ins for what takes long to compile."""

import contextlib

import keras
import numpy as np
import tensorflow as tf

import keras_simclr as simclr
from keras_simclr import budgets


@contextlib.contextmanager
def uncompiled():
    """Spares the time of compiling where compilation is not the question."""
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


def encoder(*layers, filters=6, shape=(8, 8, 1)):
    """A convolution and what stands between it and the pooling."""
    return keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Conv2D(filters, 3),
            *layers,
            keras.layers.GlobalAveragePooling2D(),
        ]
    )


def model():
    """A model whose representations are what it says, and not trained."""
    keras.utils.set_random_seed(0)
    return simclr.SimCLRModel(
        encoder(keras.layers.BatchNormalization()),
        augmentation=simclr.RandomResizedCrop(8, 8),
    )


def model_to_train(rate=0.1, **compile_arguments):
    """A compiled model of a few weights, with batch norm."""
    keras.utils.set_random_seed(0)
    norm = keras.layers.BatchNormalization()
    model = simclr.SimCLRModel(
        encoder(norm, filters=4),
        keras.layers.Dense(4),
        augmentation=simclr.RandomFlip(),
    )
    model.compile(keras.optimizers.SGD(rate), **compile_arguments)
    return model


def labelled_images():
    """24 images of two classes, one brighter than the other."""
    labels = np.arange(24) % 2
    pixels = np.random.default_rng(0).random((24, 8, 8, 1), "float32")
    return pixels * np.float32((labels[:, None, None, None] + 1) / 2), labels


def use_rule(patch):
    """A rule of budgets that stays, however often it is measured anew."""
    patch.setattr(budgets, "_MEASURED", (65e6, 0.8e6))
    patch.setattr(budgets, "_PUBLISHED", (4.1e9, 256e6))
    limits = ((54_000, 60_000), (28, 32), (12, 65), (0.3, 2.5))
    rule = dict(zip(budgets._TRIED, limits, strict=True))
    patch.setattr(budgets, "_TRIED", rule)


def row(**changes):
    """A row of `Evaluation.rows`, as far as cards show it."""
    return {
        "features": "simclr",
        "probe": "linear",
        "labels": 10,
        "accuracy": 0.9,
        "interval": (0.85, 0.95),
        **changes,
    }


def use(patch):
    """Replaces ResNets and the paper's recipe for programs that take both.

    Arguments still have to be right: the real ones are made with them, too.
    """
    resnet, recipe = simclr.ResNet, simclr.SimCLRAugmentation

    def small_resnet(*args, **kwargs):
        shape = resnet(*args, **kwargs).input_shape[1:]
        norm = keras.layers.BatchNormalization()
        return encoder(norm, filters=4, shape=shape)

    def small_recipe(*args, **kwargs):
        return recipe(*args, **kwargs).crop

    patch.setattr(simclr, "ResNet", small_resnet)
    for place in ("keras_simclr", "keras_simclr.augmentations"):
        patch.setattr(f"{place}.SimCLRAugmentation", small_recipe)
