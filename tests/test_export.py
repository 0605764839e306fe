import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_simclr as simclr
from keras_simclr import export

# Loads what was exported in a process that never imports keras_simclr.
_FRESH_PROCESS = """
import pathlib, sys
import keras
import numpy as np
import tensorflow as tf

for directory in map(pathlib.Path, sys.argv[1:]):
    check = np.load(directory / "check.npz")
    images, expected = check["images"], check["expected"]
    encoder = keras.models.load_model(directory / "out" / "encoder.keras")
    np.testing.assert_allclose(encoder(images), expected, atol=1e-5)
    assert all(type(x).__module__.startswith("keras.") for x in encoder.layers)

    module = tf.saved_model.load(str(directory / "out" / "saved_model"))
    for found in (
        module(images),
        module(images, training=False),
        module.signatures["serving_default"](tf.constant(images))["default"],
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    if "other_size" in check:
        found = module(check["other_size"])
        np.testing.assert_allclose(found, check["other_expected"], atol=1e-5)
    assert not np.allclose(module(images, training=True), expected, atol=1e-5)
    assert len(module.trainable_variables) < len(module.variables)
    assert len(module.regularization_losses) == int(check["penalties"])
    for penalty in module.regularization_losses:
        assert float(penalty()) > 0

    # Both can be fine-tuned.
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(module(images, training=True)[:, :3] ** 2)
    variables = list(module.trainable_variables)
    gradients = tape.gradient(loss, variables)
    assert all(gradient is not None for gradient in gradients)
    before = encoder.get_weights()
    head = keras.Sequential([encoder, keras.layers.Dense(2)])
    head.compile("sgd", "mse", run_eagerly=True)  # A step is faster so.
    head.fit(images, np.ones((len(images), 2)), verbose=0)
    assert any((a != b).any() for a, b in zip(before, encoder.get_weights()))
assert "keras_simclr" not in sys.modules
"""


def small_model(size, **kwargs):
    keras.utils.set_random_seed(0)
    encoder = keras.Sequential(
        [
            keras.Input((size, size, 1)),
            simclr.networks.FastConv2D(6, 3),
            simclr.networks.FusedBatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    for variable in encoder.weights:  # As if it had been trained.
        rng = np.random.default_rng(0)
        variable.assign(variable + 0.1 * rng.random(variable.shape))
    return simclr.SimCLRModel(encoder, **kwargs)


def mlp_model():
    keras.utils.set_random_seed(0)
    encoder = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(5, kernel_regularizer="l2"),
            keras.layers.BatchNormalization(),
        ]
    )
    return simclr.SimCLRModel(
        encoder, augmentation=keras.layers.GaussianNoise(0.1, seed=0)
    )


@pytest.mark.filterwarnings("ignore:These layers:UserWarning")
def test_exports_agree_in_a_fresh_process(tmp_path):
    rng = np.random.default_rng(0)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        mixed = small_model(40)
    finally:
        keras.config.set_dtype_policy("float32")
    models = {"8": small_model(8), "40": mixed, "table": mlp_model()}
    for name, model in models.items():
        directory = tmp_path / name
        directory.mkdir()
        images = rng.random((4, *model.encoder.input_shape[1:]), "float32")
        arrays = {"images": images, "penalties": int(name == "table")}
        arrays["expected"] = simclr.extract_features(model, images)
        if name != "table":
            arrays["other_size"] = rng.random((3, 50, 44, 1), "float32")
            arrays["other_expected"] = simclr.extract_features(
                model, arrays["other_size"]
            )
        np.savez(directory / "check.npz", **arrays)
        simclr.export_encoder(model, directory / "out")
    result = subprocess.run(
        [sys.executable, "-c", _FRESH_PROCESS, *map(str, tmp_path.iterdir())],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.parametrize("shape", [(40, 40), (40, 56), (9, 40)])
def test_plain_layers_equal_the_evaluation_view(shape):
    crop = simclr.RandomResizedCrop(*shape, interpolation="bicubic")
    images = np.random.default_rng(0).random((2, *shape, 3), "float32")
    inputs = keras.Input((*shape, 3))
    found = keras.Model(inputs, crop.plain_at_rest(inputs))(images)
    found = np.clip(found, 0.0, 1.0)
    np.testing.assert_allclose(found, crop(images, training=False), atol=1e-5)


def test_export_refuses_a_directory_with_content(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError) as error:
        simclr.export_encoder(small_model(8), tmp_path)
    assert str(error.value) == (
        "The output directory must be new or empty: nothing is overwritten. "
        f"Received: {str(tmp_path)!r}"
    )
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_failed_export_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(tf.saved_model, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        simclr.export_encoder(small_model(8), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_export_refuses_what_is_not_a_simclr_model(tmp_path):
    network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(TypeError) as error:
        simclr.export_encoder(network, tmp_path)
    assert str(error.value) == (
        f"`model` must be a SimCLRModel. Received: model={network!r}"
    )


@pytest.mark.filterwarnings("ignore:These layers:UserWarning")
def test_export_refuses_an_augmentation_that_changes_images_at_rest(tmp_path):
    model = small_model(
        8, augmentation=[keras.layers.Rescaling(2.0), simclr.RandomFlip()]
    )
    with pytest.raises(ValueError) as error:
        simclr.export_encoder(model, tmp_path / "out")
    assert str(error.value) == (
        "`augmentation` must leave images of the encoder's size as they are at "
        "rest (training=False). Put what is done to every image, such as a "
        "Rescaling layer, in front of the encoder instead."
    )


def test_a_new_or_empty_directory_is_free(tmp_path):
    export.check_is_free(tmp_path / "new")
    export.check_is_free(tmp_path)
    assert not pathlib.Path(tmp_path / "new").exists()
