import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_simclr as simclr
from keras_simclr import copies, elements
from keras_simclr.networks import FusedBatchNormalization

IMAGES = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), "uint8")


@pytest.fixture(autouse=True)
def _policy():
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


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


def lars():
    return simclr.LARS(
        keras.optimizers.SGD(0.1, momentum=0.9), trust_coefficient=0.02
    )


def test_layers_are_found_at_any_depth():
    inner = keras.Sequential([keras.layers.BatchNormalization()])

    class Outer(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.parts = {"a": [inner], "b": (keras.layers.Dropout(0.5),)}

    outer = Outer()
    found = copies.nested_layers(keras.Sequential([outer]))
    assert {outer, inner, *inner.layers, *outer.parts["b"]} <= set(found)


class Replica:
    """Replica 1 of 2 as a TPU presents it: its number is a tensor."""

    num_replicas_in_sync = 2

    def __init__(self):
        self.replica_id_in_sync_group = tf.constant(1)

    def all_gather(self, rows, axis):
        return tf.concat([rows, rows], axis)

    def all_reduce(self, how, value):
        return value if how == tf.distribute.ReduceOp.MEAN else 2 * value


def test_whole_step_of_a_replica_compiles_with_static_shapes(monkeypatch):
    model = simclr.SimCLRModel(
        network(), augmentation=simclr.SimCLRAugmentation(8)
    )
    model.compile(lars())
    model.optimizer.build(model.trainable_variables)
    for layer in copies.nested_layers(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True

    def step(images):
        replica = Replica()
        monkeypatch.setattr(
            tf.distribute, "get_replica_context", lambda: replica
        )
        element = elements.unpack(images)
        with model._checked(element):
            gradients, loss, _ = model.replica_gradients(element)
        monkeypatch.undo()
        model.optimizer.apply(gradients, model.trainable_variables)
        return loss

    compiled = tf.function(step, jit_compile=True)
    assert np.isfinite(compiled(tf.constant(IMAGES[:8])))
    graphs = [compiled.get_concrete_function(tf.constant(IMAGES[:8])).graph]
    names = set()
    for graph in graphs:
        names |= {operation.type for operation in graph.get_operations()}
        graphs += [
            f.graph for f in graph._functions.values() if hasattr(f, "graph")
        ]
    assert not {name for name in names if "PyFunc" in name}
