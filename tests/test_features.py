import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import standins

import keras_simclr as simclr
from keras_simclr import copies
from keras_simclr.features import Features, extract, pixels_of


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


def test_pixels_of_large_images_are_averaged():
    network = keras.Sequential([keras.Input((64, 48, 1)), keras.layers.ReLU()])
    images = np.random.default_rng(0).random((2, 64, 48, 1), "float32")
    pixels = pixels_of(network)(tf.constant(images), None).numpy()
    assert pixels.shape == (2, 32 * 32)
    np.testing.assert_allclose(pixels.mean(), images.mean(), rtol=1e-5)


def test_outputs_and_labels_are_joined():
    elements = [{"images": tf.ones((2, 3)), "labels": tf.zeros((2, 1))}] * 2
    (doubles,), labels = extract([lambda x, _: 2 * x], elements)
    np.testing.assert_array_equal(doubles, np.full((4, 3), 2))
    assert labels.shape == (4,)


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
