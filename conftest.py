"""What the tests and the examples in docstrings share."""

import os

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def pytest_configure():
    """Makes four logical devices, for replicas, before TensorFlow starts."""
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    parts = [tf.config.LogicalDeviceConfiguration() for _ in range(4)]
    tf.config.set_logical_device_configuration(cpu, parts)


@pytest.fixture(autouse=True)
def _names_of_examples(doctest_namespace):
    import keras
    import numpy as np
    import tensorflow as tf

    import keras_simclr as simclr

    doctest_namespace.update(keras=keras, np=np, tf=tf, simclr=simclr)
