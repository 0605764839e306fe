import re
from contextlib import nullcontext

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import standins

import keras_simclr as simclr
from keras_simclr import copies

pytestmark = pytest.mark.filterwarnings("ignore:These layers:UserWarning")


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
    first.compile(run_eagerly=True)
    images, _ = standins.labelled_images()
    first.predict(images, verbose=0)
    first.evaluate(images, verbose=0)
    first.save(tmp_path / "model.keras")
    # In a fresh process: test_reuse.py.
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert copies.weights_digest(loaded) == digest
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


def table(*layers, dtype=None):
    """An encoder of tables with six columns."""
    return keras.Sequential([keras.Input((6,), dtype=dtype), *layers])


def adapted(layer, values):
    layer.adapt(values)
    return layer


def normalization():
    rng = np.random.default_rng(0)
    rows = rng.normal(5.0, 10.0, (64, 6)).astype("float32")
    return adapted(keras.layers.Normalization(), rows)


def looked_up(layer, dtype):
    embedding = keras.layers.Embedding(40, 2)
    return table(layer, embedding, keras.layers.Flatten(), dtype=dtype)


class Shift(keras.layers.Layer):
    """Holds what Keras knows nothing of."""

    shift = np.zeros(1, "float32")

    def call(self, inputs):
        return inputs - self.shift


class SavedShift(Shift):
    def save_own_variables(self, store):
        store["shift"] = self.shift

    def load_own_variables(self, store):
        self.shift = np.array(store["shift"])


def shifted(kind):
    layer = kind()
    layer.shift = np.full(1, 7.0, "float32")
    return table(layer, keras.layers.Dense(3))


def partly_frozen():
    inner = table(keras.layers.Dense(6), keras.layers.BatchNormalization())
    inner.trainable = False
    encoder = table(
        keras.layers.Dense(6),
        inner,
        keras.layers.BatchNormalization(),
        keras.layers.Dense(3),
    )
    encoder.layers[2].trainable = False
    return encoder


def nested():
    dense, inputs = keras.layers.Dense(6), keras.Input((6,))
    shared = dense(keras.layers.ReLU()(dense(normalization()(inputs))))
    inner = keras.Model(inputs, shared + normalization()(inputs))
    return table(normalization(), inner, table(keras.layers.Dense(3)))


class Subclassed(keras.Model):
    """A model with layers in containers, whose weights are made by its call."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        norm = keras.layers.BatchNormalization()
        self.parts = {"b": [keras.layers.Dense(4), norm]}
        self.last = keras.layers.SpectralNormalization(keras.layers.Dense(3))

    def call(self, inputs, training=False):
        dense, norm = self.parts["b"]
        inputs = norm(dense(inputs), training=training)
        return self.last(inputs, training=training)


def subclassed():
    model = Subclassed()
    model(np.random.default_rng(0).random((8, 6)), training=True)
    return model


def of_policy(policy, make):
    keras.config.set_dtype_policy(policy)
    try:
        return make()
    finally:
        keras.config.set_dtype_policy("float32")


def doubled(inputs):
    """An activation that nobody registered."""
    return 2.0 * inputs


NUMBERS, WORDS = np.arange(20), np.array(["0", "1", "b"])
ENCODERS = {
    "adapted": lambda: table(normalization(), keras.layers.Dense(3)),
    "given statistics": lambda: table(
        keras.layers.Normalization(mean=3.0, variance=4.0)
    ),
    "bins": lambda: looked_up(
        adapted(keras.layers.Discretization(num_bins=4), NUMBERS * 1.0), None
    ),
    "integers": lambda: looked_up(
        adapted(keras.layers.IntegerLookup(), NUMBERS), "int32"
    ),
    "words": lambda: looked_up(
        adapted(keras.layers.StringLookup(), WORDS), "string"
    ),
    "hashes": lambda: looked_up(keras.layers.Hashing(10), "int32"),
    "state in a store": lambda: shifted(SavedShift),
    "own function": lambda: table(keras.layers.Dense(3, activation=doubled)),
    "partly frozen": partly_frozen,
    "nested": nested,
    "subclassed": subclassed,
    "float16": lambda: of_policy("float16", nested),
    "mixed_bfloat16": lambda: of_policy("mixed_bfloat16", nested),
    "resnet": lambda: of_policy(
        "bfloat16",
        lambda: simclr.ResNet(10, stem="cifar", input_shape=(None, None, 1)),
    ),
}


def moved(network):
    """The network with other values in all of its weights."""
    rng = np.random.default_rng(1)
    for variable in network.trainable_variables:
        variable.assign(variable + 0.1 * rng.random(variable.shape))
    return network


@pytest.mark.parametrize("name", ENCODERS)
def test_copies_return_what_the_encoder_returns(name):
    encoder = moved(ENCODERS[name]())
    copy = copies.plain_copy(encoder)
    inputs = copies.examples_for(encoder)
    # The proof itself, written once more.
    expected = np.float32(encoder(inputs, training=False))
    error = np.abs(copy(inputs, training=False) - expected).max()
    is_half = "16" in encoder.compute_dtype
    assert error <= (0.05 if is_half else 1e-5) * np.abs(expected).max()
    for layer in copies.nested_layers(copy):
        assert "16" not in layer.compute_dtype


@pytest.mark.parametrize("name", ENCODERS)
def test_untrained_copies_keep_what_is_not_trained(name):
    encoder = moved(ENCODERS[name]())
    copy = copies.untrained_copy(encoder, 0)
    for ours, new in copies._pairs(encoder, copy):
        if isinstance(ours, keras.layers.Normalization):
            np.testing.assert_array_equal(new.mean, ours.mean)
        elif isinstance(ours, SavedShift):
            np.testing.assert_array_equal(new.shift, ours.shift)
        elif hasattr(ours, "get_vocabulary"):
            assert new.get_vocabulary() == ours.get_vocabulary()
    for ours, new in zip(
        encoder.trainable_variables, copy.trainable_variables, strict=True
    ):
        assert np.any(np.float32(ours) != np.float32(new))


def test_statistics_of_a_network_for_imagenet_are_copied():
    encoder = keras.applications.EfficientNetB0(
        weights=None, include_top=False, pooling="avg", input_shape=(32, 32, 3)
    )
    (norm,) = (
        layer
        for layer in encoder.layers
        if isinstance(layer, keras.layers.Normalization)
    )
    norm.load_own_variables(
        {"0": np.full(3, 0.45), "1": np.full(3, 0.05), "2": np.array(0)}
    )
    assert not np.any(norm(np.full((1, 1, 1, 3), 0.45)))
    images = np.random.default_rng(0).random((4, 32, 32, 3), "float32")
    model = simclr.SimCLRModel(encoder)
    features = simclr.extract_features(model, images)
    assert np.abs(features).max() > 0
    np.testing.assert_allclose(
        features, model.predict(images, verbose=0), rtol=1e-3, atol=1e-6
    )


def test_state_that_no_copy_can_have_is_refused():
    with pytest.raises(ValueError) as error:
        copies.plain_copy(shifted(Shift))
    assert re.fullmatch(
        r"A copy of 'sequential.*' must return what it returns. Received: "
        r"other outputs. A layer holds what Keras does not save with it: make "
        r"it a weight \(`add_weight`\), an entry of `get_config`, or override "
        r"`save_own_variables` and `load_own_variables`.",
        str(error.value),
    )


class Noise(keras.layers.Layer):
    """Random at rest, too."""

    def call(self, inputs):
        return inputs + tf.random.normal(tf.shape(inputs))


def test_an_encoder_that_is_random_at_rest_is_refused():
    encoder = table(Noise(), keras.layers.Dense(3))
    message = "must draw nothing at rest"
    with pytest.raises(ValueError, match=message):
        copies.plain_copy(encoder)
    model = simclr.SimCLRModel(encoder, augmentation=keras.layers.Identity())
    model.compile()
    with pytest.raises(ValueError, match=message):
        model.fit(np.zeros((4, 6), "float32"), batch_size=2, verbose=0)


def test_copies_change_nothing():
    encoder = moved(partly_frozen())
    encoder.compile(loss=lambda y, z: tf.reduce_mean(z))  # Not copied.
    weights, policy = encoder.get_weights(), keras.config.dtype_policy()
    copies.plain_copy(encoder)
    assert keras.config.dtype_policy() == policy
    for before, after in zip(weights, encoder.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_values_that_an_encoder_refuses_prove_nothing():
    few = keras.layers.Embedding(1, 2)
    encoder = table(few, keras.layers.Flatten(), dtype="int32")
    assert copies.plain_copy(encoder)(np.zeros((1, 6), "int32")).shape == (
        1,
        12,
    )


def test_encoders_with_vocabularies_are_probed_again_and_again():
    encoder = table(
        adapted(keras.layers.IntegerLookup(output_mode="multi_hot"), NUMBERS),
        keras.layers.Dense(4),
        dtype="int32",
    )
    model = simclr.SimCLRModel(encoder, augmentation=keras.layers.Identity())
    model.compile()
    rows = np.random.default_rng(0).integers(0, 20, (24, 6)).astype("int32")
    both = rows, rows[:, 0] > 9
    history = model.fit(
        rows,
        batch_size=8,
        epochs=2,
        verbose=0,
        callbacks=[simclr.callbacks.KNNProbe(both, both)],
    )
    assert len(history.history["knn_accuracy"]) == 2
    result = simclr.fine_tune(model, both, both)
    expected = result.classifier(rows).numpy().argmax(axis=1)
    np.testing.assert_array_equal(result.predictions, expected == 1)


@pytest.mark.parametrize("part", ["encoder", "head"])
def test_fit_says_what_cannot_be_saved(part):
    odd = [keras.layers.Lambda(lambda x: 2 * x)]
    encoder = table(*odd * (part == "encoder"), keras.layers.Dense(3))
    head = keras.Sequential([*odd * (part == "head"), keras.layers.Dense(2)])
    model = simclr.SimCLRModel(
        encoder, head, augmentation=keras.layers.Identity()
    )
    model.compile()
    message = "This model can be trained, but not saved: A model to be saved"
    for warns in (pytest.warns(UserWarning, match=message), nullcontext()):
        with warns:
            model.fit(np.zeros((4, 6), "float32"), batch_size=2, verbose=0)


def test_adapted_statistics_reach_all_that_is_made_of_an_encoder(tmp_path):
    images, labels = standins.labelled_images()
    norm = adapted(keras.layers.Normalization(), 0.3 * images)
    encoder = keras.Sequential([keras.Input((8, 8, 1)), norm])
    encoder.add(standins.encoder())
    model = simclr.SimCLRModel(encoder, augmentation=simclr.RandomFlip())
    expected = model.predict(images, verbose=0)

    def assert_equal(features):
        np.testing.assert_allclose(features, expected, atol=1e-5)

    assert_equal(simclr.extract_features(model, images))
    out = simclr.export_encoder(model, tmp_path / "out")
    assert_equal(keras.models.load_model(out / "encoder.keras")(images))
    assert_equal(tf.saved_model.load(out / "saved_model")(images))
    for from_scratch in (False, True):
        result = simclr.fine_tune(
            model, (images, labels), from_scratch=from_scratch
        )
        (found,) = (
            layer
            for layer in copies.nested_layers(result.classifier)
            if isinstance(layer, keras.layers.Normalization)
        )
        np.testing.assert_array_equal(found.mean, norm.mean)


def test_a_model_of_a_file_draws_on_where_it_was(tmp_path):
    encoder = standins.encoder(keras.layers.Dropout(0.5))
    model = simclr.SimCLRModel(encoder, augmentation=simclr.RandomFlip())
    images = np.ones((2, 8, 8, 1), "float32")
    encoder(images, training=True)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    expected = encoder(images, training=True)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        loaded.encoder(images, training=True), expected
    )
    model.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(encoder(images, training=True), expected)
