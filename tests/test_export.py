import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

import keras_simclr as simclr
from keras_simclr import data, export

RUNTIMES = pathlib.Path(__file__).with_name("runtimes.py")


def small_model(size, channels=1, **kwargs):
    keras.utils.set_random_seed(0)
    encoder = keras.Sequential(
        [
            keras.Input((size, size, channels)),
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


def write_files(directory):
    """Image files such as cameras and programs make."""
    directory.mkdir()
    y, x = np.mgrid[:60, :100]
    pixels = np.stack([2.5 * x, 4 * y, x + y], axis=-1).astype("uint8")
    photo = PIL.Image.fromarray(pixels)
    photo.save(directory / "a.jpg")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    photo.resize((400, 240)).save(directory / "turned.jpg", exif=exif)
    photo.convert("CMYK").save(directory / "cmyk.jpg")
    photo.convert("L").save(directory / "gray.jpg")
    photo.save(directory / "b.png")
    photo.convert("1").save(directory / "bits.png")
    photo.convert("P").save(directory / "palette.png")
    clear = photo.copy()
    clear.putalpha(PIL.Image.fromarray(pixels[..., 0]))
    clear.save(directory / "clear.png")
    photo.resize((300, 9)).save(directory / "wide.png")


def of_files(model, directory):
    """Their representations as the command line finds them."""
    side = max(model.encoder.input_shape[1:3])
    dataset = simclr.dataset_from_directory(
        directory,
        canvas_size=data.canvas_for(side),
        shuffle=False,
        drop_remainder=False,
    )
    return simclr.extract_features(model, dataset)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A directory with the exports of several models, and what they return."""
    parent = tmp_path_factory.mktemp("exported")
    rng = np.random.default_rng(0)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        mixed = small_model(40)
    finally:
        keras.config.set_dtype_policy("float32")
    models = {
        "small": (small_model(8), ["keras"]),
        "mixed": (mixed, ["keras", "saved_model"]),
        "photos": (small_model(40, channels=3), export.FORMATS),
    }
    with pytest.warns(UserWarning, match="These layers"):
        models["table"] = (mlp_model(), ["keras", "hub", "onnx"])
    for name, (model, formats) in models.items():
        directory = parent / name
        directory.mkdir()
        shape = model.encoder.input_shape[1:]
        images = rng.random((4, *shape), "float32")
        arrays = {"images": images, "penalties": int(name == "table")}
        arrays["programs"] = {"small": 1, "photos": 6}.get(name, 3)
        arrays["expected"] = simclr.extract_features(model, images)
        if name != "table":
            arrays["other_size"] = rng.random((3, 50, 44, shape[2]), "float32")
            arrays["other_expected"] = simclr.extract_features(
                model, arrays["other_size"]
            )
        if name == "photos":
            write_files(directory / "files")
            arrays["of_files"] = of_files(model, directory / "files")
        np.savez(directory / "check.npz", **arrays)
        simclr.export_encoder(model, directory / "out", formats=formats)
    return parent


@pytest.mark.parametrize(
    ("runtime", "names"),
    [
        ("keras", ["small", "mixed", "photos", "table"]),
        ("tf_keras", ["photos"]),
        ("onnxruntime", ["photos", "table"]),
    ],
)
def test_exports_agree_in_a_fresh_process(exported, runtime, names):
    result = subprocess.run(
        [sys.executable, RUNTIMES, runtime, *(exported / x for x in names)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert result.returncode == 0, result.stderr[-3000:]


def test_card_tells_how_each_format_differs(exported):
    out = exported / "photos" / "out"
    card = json.loads((out / "model_card.json").read_text())
    others = {"README.md", "model_card.json"}
    assert {x.name for x in out.iterdir()} - {"photo.jpg"} == {
        *others,
        *export.FORMATS.values(),
    }
    differences = card["round_trip"]["max_difference"]
    assert set(differences) == {*export.FORMATS} - {"hub"}
    rounding = differences.pop("litert_int8")
    largest = card["round_trip"]["largest_value"]
    assert max(differences.values()) < 1e-5 * largest
    assert 0 < rounding < 0.1 * largest
    assert card["inputs"]["shape"] == [None, 40, 40, 3]
    assert card["inputs"]["saved_model_shape"] == [None, None, None, 3]
    assert "| litert_int8 | " in (out / "README.md").read_text()


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
