import keras
import numpy as np
import pytest

from keras_simclr import copies


def test_layers_are_found_at_any_depth():
    inner = keras.Sequential([keras.layers.BatchNormalization()])

    class Outer(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.parts = {"a": [inner], "b": (keras.layers.Dropout(0.5),)}

    outer = Outer()
    found = copies.nested_layers(keras.Sequential([outer]))
    assert {outer, inner, *inner.layers, *outer.parts["b"]} <= set(found)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "float64"])
@pytest.mark.parametrize(
    ("value", "name"),
    [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")],
)
def test_weights_must_be_finite_at_any_depth(policy, value, name):
    inner = keras.Sequential(
        [
            keras.layers.Dense(3, dtype=policy),
            keras.layers.BatchNormalization(dtype=policy),
        ],
        name="inner",
    )
    network = keras.Sequential([keras.Input((2,)), inner], name="outer")
    assert copies.check_finite(network) is None
    for weight in network.weights:
        before = weight.numpy()
        array = before.copy()
        array.flat[-1] = value
        weight.assign(array)
        with pytest.raises(ValueError) as error:
            copies.check_finite(network)
        assert str(error.value) == (
            f"Weights must be finite. Received: {name} in `{weight.path}` of "
            "'outer', whose training has diverged. Train anew, with a lower "
            "learning rate"
        )
        weight.assign(before)


def test_weights_that_are_integers_are_finite():
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dropout(0.5)])
    lookup = keras.layers.Normalization()
    lookup.adapt(np.ones((4, 2)))
    for each in (network, lookup):
        assert copies.check_finite(each) is None
