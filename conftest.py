"""What the tests and the examples in docstrings share."""

import logging
import os

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if "PYTEST_XDIST_WORKER" in os.environ:
    # As many processes as cores: more threads would only wait for each other.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure():
    """Makes four logical devices, for replicas, before TensorFlow starts."""
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    parts = [tf.config.LogicalDeviceConfiguration() for _ in range(4)]
    tf.config.set_logical_device_configuration(cpu, parts)


@pytest.fixture(autouse=True)
def _names_of_examples(request, doctest_namespace):
    import keras
    import numpy as np
    import tensorflow as tf

    import keras_simclr as simclr

    doctest_namespace.update(keras=keras, np=np, tf=tf, simclr=simclr)
    is_example = isinstance(request.node, pytest.DoctestItem)
    # Fine-tuning takes many steps, which graphs are faster at.
    if is_example and "finetuning" not in request.node.name:
        request.getfixturevalue("eagerly")


@pytest.fixture(scope="module")
def eagerly():
    """Runs functions as they are: tracing few steps takes longer than these.

    For tests of what is around training. What is traced and compiled is tried
    by those of the model, the layers and replicas.
    """
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def in_graphs():
    """Traces functions again, in a module that runs them eagerly."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(False)
    yield
    tf.config.run_functions_eagerly(True)


@pytest.fixture(autouse=True)
def _float32_afterwards():
    """Lets a test set the policy and the type of floats, or a command of it."""
    import keras

    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def said(caplog):
    """What is logged, but for what TensorFlow has to say of tracing."""
    logger = logging.getLogger("tensorflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield caplog
    logger.setLevel(level)


@pytest.fixture
def in_float64():
    """Has everything computed in float64, where small errors show."""
    import keras

    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
