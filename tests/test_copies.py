import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers import standins

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


def network(*norms):
    return keras.Sequential(
        [keras.Input((3,)), *norms, keras.layers.Dense(2), keras.layers.ReLU()]
    )


def test_digest_of_weights_survives_saving_and_other_names(tmp_path):
    first = standins.model()
    digest = copies.weights_digest(first)
    first.compile()
    images, _ = standins.labelled_images()
    first.predict(images, verbose=0)
    first.evaluate(images, verbose=0)
    first.save(tmp_path / "model.keras")
    code = (
        "import sys, keras, keras_simclr.copies as copies\n"
        "model = keras.models.load_model(sys.argv[1])\n"
        "print(copies.weights_digest(model))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.keras")],
        check=True,
        capture_output=True,
        text=True,
    )
    assert found.stdout.split()[-1] == digest
    # Of a copy, whose layers have other names.
    plain = copies.plain_copy(first.encoder)
    encoder = copies.weights_digest(first.encoder)
    assert copies.weights_digest(plain) == encoder != digest
    first.fit(images, batch_size=8, verbose=0)
    assert copies.weights_digest(first) != digest


@pytest.mark.parametrize("change", ["kernel", "moving_mean", "statistics"])
def test_digest_of_weights_tells_any_change(change):
    norm = keras.layers.BatchNormalization()
    adapted = keras.layers.Normalization()
    adapted.adapt(np.arange(12.0).reshape(4, 3))
    model = network(adapted, norm)
    before = copies.weights_digest(model)
    if change == "statistics":
        adapted.adapt(np.arange(9.0).reshape(3, 3))
    else:
        names = {weight.name: weight for weight in model.weights}
        names[change].assign(names[change] + 1e-6)
    assert copies.weights_digest(model) != before


def test_digest_of_weights_tells_shapes_apart():
    shapes = [(2, 3), (3, 2)]
    models = [
        keras.Sequential([keras.Input(x[:1]), keras.layers.Dense(x[1])])
        for x in shapes
    ]
    for model in models:
        model.set_weights([np.zeros(x.shape) for x in model.get_weights()])
    assert len({*map(copies.weights_digest, models)}) == 2


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
