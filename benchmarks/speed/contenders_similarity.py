"""tensorflow-similarity, on the newest TensorFlow that it works with here."""

import os

import numpy as np
import tensorflow as tf
from tensorflow_similarity.augmenters import SimCLRAugmenter
from tensorflow_similarity.losses import SimCLRLoss

from benchmarks.speed.images import smooth_noise


def augmentation(source, size, batch_size):
    """Its augmenter: the official code under `tf.map_fn`, without blur."""
    cores = len(os.sched_getaffinity(0))
    augmenter = SimCLRAugmenter(size, size, num_cpu=cores)
    images = tf.constant(smooth_noise(batch_size, source))
    return lambda: len(augmenter.augment(images, None, 1, False)[0].numpy())


def loss(count, features=128):
    """Its `SimCLRLoss` and the gradient in a `tf.function`."""
    criterion = SimCLRLoss(temperature=0.1)
    rng = np.random.default_rng(0)

    @tf.function
    def gradients(z):
        with tf.GradientTape() as tape:
            tape.watch(z)
            value = criterion(z[0], z[1])
        return tape.gradient(value, z)

    def normals(count):
        return tf.constant(rng.normal(size=(2, count, features)), "float32")

    gradients(normals(8))
    z = normals(count)

    def work():
        gradients(z)
        return 1

    return work
