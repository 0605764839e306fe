import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import standins

import keras_simclr as simclr
from keras_simclr import classification, copies, embedding, features
from keras_simclr.features import Features, extract, raw_features


def small_encoder():
    norm = simclr.networks.FusedBatchNormalization()
    return standins.encoder(norm, keras.layers.ReLU())


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return simclr.SimCLRModel(small_encoder())


@pytest.fixture(scope="module")
def images():
    return standins.labelled_images()


def test_features_are_what_the_model_predicts(model, images):
    features = simclr.extract_features(model, images[0], batch_size=10)
    np.testing.assert_allclose(
        features, model.predict(images[0], verbose=0), atol=1e-6
    )


def test_features_of_arrays_datasets_and_uint8_agree(model, images):
    pixels = (images[0] * 255).astype("uint8")
    dataset = tf.data.Dataset.from_tensor_slices((pixels, images[1])).batch(5)
    expected = simclr.extract_features(model, pixels / np.float32(255))
    for source in (pixels, dataset):
        found = simclr.extract_features(model, source)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_features_of_a_keras_model_are_its_output(images):
    network = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
    features = simclr.extract_features(network, images[0])
    np.testing.assert_allclose(features, images[0].reshape(24, 64))


def test_features_are_float32_under_mixed_precision(images):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = simclr.SimCLRModel(small_encoder())
    finally:
        keras.config.set_dtype_policy("float32")
    features = simclr.extract_features(model, images[0])
    coarse = model.predict(images[0], verbose=0)
    assert features.dtype == coarse.dtype == np.float32
    assert 0 < np.abs(features - coarse).max() < 0.05 * np.abs(features).max()


def test_features_refuse_unusable_pixels(model, images):
    with pytest.raises(ValueError) as error:
        simclr.extract_features(model, images[0] * np.nan)
    assert str(error.value).startswith(
        "Values of `images` must be finite. Received: NaN or infinity in rows 0"
    )


IMAGES = np.zeros((4, 8, 8, 1), "uint8")
RULES = {
    "The encoder takes images with 1 channels. Received: images of shape "
    "(None, 8, 8, 3). Convert them": np.repeat(IMAGES, 3, axis=-1),
    "Images must have at least 8 pixels a side. Received": IMAGES[:, :4],
    "Images must have the shape (batch, height, width, channels)": IMAGES[0, 0],
    "Images must be uint8, or float with values in": IMAGES.astype("int32"),
}
USES = {
    "features": lambda model, data, path: simclr.extract_features(model, data),
    "worth": lambda model, data, path: simclr.evaluate(model, data),
    "held out": lambda model, data, path: simclr.evaluate(
        model, (IMAGES, np.arange(4) % 2), data
    ),
    "tuning": lambda model, data, path: simclr.fine_tune(model, data),
    "classifier": lambda model, data, path: classification.train_classifier(
        model, data, path
    ),
    "table": lambda model, data, path: embedding.write_embeddings(
        model, data, path.with_suffix(".csv")
    ),
}


def unread(images):
    """A dataset of labelled batches that fails when it is read."""

    def fail():
        raise AssertionError
        yield

    pixels = tf.TensorSpec((None, *images.shape[1:]), images.dtype)
    signature = pixels, tf.TensorSpec((None,), "int64")
    return tf.data.Dataset.from_generator(fail, output_signature=signature)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("rule", RULES)
def test_images_that_an_encoder_cannot_take_are_refused_unread(
    model, tmp_path, use, rule
):
    with pytest.raises(ValueError) as error:
        USES[use](model, unread(RULES[rule]), tmp_path / "out")
    assert str(error.value).startswith(rule)
    assert not any(tmp_path.iterdir())


def test_images_of_another_size_need_a_model_that_brings_them_to_it():
    network = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
    with pytest.raises(ValueError) as error:
        simclr.extract_features(network, np.zeros((2, 9, 8, 1), "uint8"))
    assert str(error.value).startswith(
        "The encoder takes images of shape (None, 8, 8, 1). Received: images "
        "of shape (None, 9, 8, 1). Convert them, or use a SimCLRModel"
    )


def test_no_images_make_no_features(model):
    empty = tf.data.Dataset.from_tensors(IMAGES).filter(lambda _: False)
    with pytest.raises(ValueError, match="at least one image"):
        simclr.extract_features(model, empty)


def test_progress_is_told_with_and_without_a_known_number(model):
    def told(images):
        numbers = []
        simclr.extract_features(
            model, images, progress=lambda *both: numbers.append(both)
        )
        return numbers

    dataset = tf.data.Dataset.from_tensor_slices(np.repeat(IMAGES, 4, axis=0))
    assert told(dataset.batch(8)) == [(8, 16), (16, 16)]
    # It is told of as many batches of the first one's size.
    assert told(dataset.batch(6)) == [(6, 18), (12, 18), (16, 18), (16, 16)]
    unknown = dataset.batch(8).filter(lambda _: True)
    assert told(unknown) == [(8, None), (16, None), (16, 16)]


def test_untrained_encoder_is_drawn_without_touching_global_state(model):
    state = random.getstate()
    drawn = [copies.untrained_copy(model, 1) for _ in range(2)]
    assert random.getstate() == state
    for first, second, trained in zip(
        *(m.encoder.get_weights() for m in (*drawn, model)), strict=True
    ):
        np.testing.assert_array_equal(first, second)
        if first.ndim > 1:
            assert not np.array_equal(first, trained)


def test_raw_features_large_images_are_averaged():
    network = keras.Sequential([keras.Input((64, 48, 1)), keras.layers.ReLU()])
    images = np.random.default_rng(0).random((2, 64, 48, 1), "float32")
    pixels = raw_features(network)(tf.constant(images), None).numpy()
    assert pixels.shape == (2, 32 * 32)
    np.testing.assert_allclose(pixels.mean(), images.mean(), rtol=1e-5)


def test_outputs_and_labels_are_joined():
    elements = [{"images": tf.ones((2, 3)), "labels": tf.zeros((2, 1))}] * 2
    (doubles,), others = extract([lambda x, _: 2 * x], elements)
    np.testing.assert_array_equal(doubles, np.full((4, 3), 2))
    assert {k: array.shape for k, array in others.items()} == {"labels": (4, 1)}


def test_features_come_with_the_places_of_their_images(model, images):
    element = {"images": images[0], "places": np.arange(24)[::-1] * 10}
    dataset = tf.data.Dataset.from_tensor_slices(element).batch(7)
    features, places = simclr.extract_features(
        model, dataset, return_places=True
    )
    np.testing.assert_array_equal(places, element["places"])
    same, counted = simclr.extract_features(
        model, images[0], return_places=True
    )
    np.testing.assert_array_equal(features, same)
    np.testing.assert_array_equal(counted, np.arange(24))


def test_features_of_examples_have_names_and_widths(images):
    functions = {
        "pixels": lambda x, _: tf.reshape(x, (len(x), -1)),
        "means": lambda x, _: tf.reduce_mean(x, axis=(1, 2)),
    }
    features = Features(functions, {"images": images[0]})
    assert features.widths == {"pixels": 64, "means": 1}
    np.testing.assert_array_equal(
        features.arrays["pixels"], images[0].reshape(24, 64)
    )


def batch_norms(model):
    return [
        layer
        for layer in copies.nested_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]


@pytest.mark.parametrize("is_frozen", [False, True])
@pytest.mark.parametrize(
    "norm",
    [keras.layers.BatchNormalization, simclr.networks.FusedBatchNormalization],
)
def test_batch_norm_is_shown_the_images_and_nothing_else(norm, is_frozen):
    inner = standins.encoder(norm(momentum=0.99, name="inner"))
    inner.trainable = not is_frozen
    layers = [keras.Input((8, 8, 1)), norm(name="first"), inner]
    model = simclr.SimCLRModel(keras.Sequential(layers))
    rng = np.random.default_rng(0)
    images = 0.2 + 0.3 * rng.random((300, 8, 8, 1), "float32")
    images[200:] = 1.0  # Which are not to be learned from.
    weights = [x.numpy() for x in model.projection_head.weights]
    features.settle_batch_norm(model, {"images": images}, np.arange(200), 0)
    norms = {layer.name: layer for layer in batch_norms(model)}
    seen = images[:200]
    np.testing.assert_allclose(norms["first"].moving_mean, [seen.mean()], 1e-4)
    np.testing.assert_allclose(
        norms["first"].moving_variance, [seen.var()], 1e-3
    )
    assert norms["inner"].momentum == 0.99
    # What stands behind them at rest is normalised, at any depth.
    before = keras.Model(inner.inputs, norms["inner"].output)
    values = before(norms["first"](seen, training=False), training=False)
    np.testing.assert_allclose(np.mean(values, (0, 1, 2)), 0.0, atol=0.02)
    np.testing.assert_allclose(np.std(values, (0, 1, 2)), 1.0, atol=0.02)
    for old, new in zip(weights, model.projection_head.weights, strict=True):
        np.testing.assert_array_equal(old, new)


def test_averages_of_batch_norm_are_those_of_all_batches():
    encoder = keras.Sequential(
        [keras.Input((2,)), keras.layers.BatchNormalization()]
    )
    rows = np.random.default_rng(0).normal(3.0, 2.0, (300, 2))
    features.settle_batch_norm(
        encoder, {"images": rows.astype("float32")}, np.arange(300), 0
    )
    (norm,) = batch_norms(encoder)
    np.testing.assert_allclose(norm.moving_mean, rows.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(norm.moving_variance, rows.var(axis=0), rtol=0.1)


def test_a_network_without_batch_norm_stays_as_it_is():
    encoder = standins.encoder()
    before = copies.weights_digest(encoder)
    images = {"images": np.ones((4, 8, 8, 1), "float32")}
    features.settle_batch_norm(encoder, images, np.arange(4), 0)
    assert copies.weights_digest(encoder) == before


def unusable(value):
    """A network with such a weight; finite ones may still overflow."""
    scale = keras.layers.Dense(3, kernel_initializer="ones")
    network = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            scale,
            keras.layers.Lambda(lambda x: x * x),
        ]
    )
    scale.kernel.assign(scale.kernel * value)
    return network


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.nan, "Weights must be finite. Received: NaN in `"),
        (
            1e38,
            (
                "Representations must be finite. Received: NaN or infinity for "
                "24 of 24 images, such as 'row 0'. The training has diverged"
            ),
        ),
    ],
)
def test_features_that_are_not_finite_are_refused(value, words, images):
    with pytest.raises(ValueError) as error:
        simclr.extract_features(unusable(value), images[0])
    assert str(error.value).startswith(words)
    if np.isnan(value):
        model = simclr.SimCLRModel(unusable(value))
        with pytest.raises(ValueError, match="Weights must be finite"):
            simclr.extract_features(model, images[0])


def test_batch_norm_settles_on_the_first_images_of_a_dataset(monkeypatch):
    monkeypatch.setattr(features, "_SETTLED_ON", 12)
    norm = keras.layers.BatchNormalization(momentum=0.999)
    encoder = standins.encoder(norm)
    encoder.trainable = False
    model = simclr.SimCLRModel(
        encoder, augmentation=simclr.RandomFlip(), micro_batch_size=3
    )
    images = np.random.default_rng(0).random((24, 8, 8, 1), "float32")
    images[12:] = 1.0  # Which are not seen.
    dataset = tf.data.Dataset.from_tensor_slices(images).batch(4)
    before = [np.copy(x) for x in encoder.layers[0].weights]
    features.settle_on(model, dataset)
    seen = encoder.layers[0](images[:12])
    mean = np.mean(seen, axis=(0, 1, 2))
    np.testing.assert_allclose(norm.moving_mean, mean, rtol=1e-4)
    assert (norm.momentum, norm.trainable) == (0.999, False)
    for old, new in zip(before, encoder.layers[0].weights, strict=True):
        np.testing.assert_array_equal(old, new)
