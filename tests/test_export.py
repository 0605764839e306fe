import dataclasses
import filecmp
import json
import os
import pathlib
import resource
import subprocess
import sys
import tarfile

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from helpers import standins

import keras_simclr as simclr
from keras_simclr import (
    _files,
    cards,
    copies,
    decoding,
    evaluation_views,
    export,
)

RUNTIMES = pathlib.Path(__file__).with_name("helpers") / "runtimes.py"


def small_model(size, channels=1, **kwargs):
    keras.utils.set_random_seed(0)
    encoder = keras.Sequential(
        [
            keras.Input((size, size, channels)),
            simclr.networks.FastConv2D(6, 3),
            simclr.networks.FusedBatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling2D(),
        ],
        name="encoder",
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
    xray = np.arange(6000, dtype="uint16").reshape(60, 100)
    PIL.Image.fromarray(xray).save(directory / "xray.png")


def of_files(model, directory, bits):
    """Their representations as the command line finds them."""
    side = max(model.encoder.input_shape[1:3])
    dataset = simclr.dataset_from_directory(
        directory,
        canvas_size=decoding.canvas_for(side),
        channels=model.encoder.input_shape[3],
        bits=bits,
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
        "photos": (small_model(40, channels=3), export.EXPORTS),
    }
    with pytest.warns(UserWarning, match="These layers"):
        models["table"] = (mlp_model(), ["keras", "hub", "onnx"])
    for name, (model, formats) in models.items():
        directory = parent / name
        directory.mkdir()
        shape = model.encoder.input_shape[1:]
        images = rng.random((4, *shape), "float32")
        arrays = {"images": images, "penalties": int(name == "table")}
        arrays["programs"] = {"small": 1, "mixed": 4, "photos": 6}.get(name, 3)
        arrays["expected"] = simclr.extract_features(model, images)
        if name != "table":
            arrays["other_size"] = rng.random((3, 50, 44, shape[2]), "float32")
            arrays["other_expected"] = simclr.extract_features(
                model, arrays["other_size"]
            )
        bits = 16 if name == "mixed" else 8
        if name in ("mixed", "photos"):
            write_files(directory / "files")
            arrays["of_files"] = of_files(model, directory / "files", bits)
        np.savez(directory / "check.npz", **arrays)
        simclr.export_encoder(
            model,
            directory / "out",
            formats=formats,
            about={"recipe": {"bits": str(bits)}},
        )
    return parent


@pytest.mark.fault(68)
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


@pytest.mark.parametrize("name", ["photos", "table"])
def test_converted_formats_call_their_input_images(exported, name):
    import onnx

    graph = onnx.load(exported / name / "out" / "encoder.onnx").graph
    assert [each.name for each in graph.input] == ["images"]


def test_card_tells_how_each_format_differs(exported):
    out = exported / "photos" / "out"
    card = json.loads((out / "model_card.json").read_text())
    others = {"README.md", "model_card.json"}
    assert {x.name for x in out.iterdir()} - {"photo.jpg"} == {
        *others,
        *(format.file for format in export.EXPORTS.values()),
    }
    differences = card["round_trip"]["max_difference"]
    assert set(differences) == {*export.EXPORTS} - {"hub"}
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


@pytest.mark.fault(69)
def test_export_refuses_a_directory_with_content(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError) as error:
        simclr.export_encoder(small_model(8), tmp_path)
    assert str(error.value) == (
        "The output directory must be new or empty: nothing is overwritten. "
        f"Received: {str(tmp_path)!r}"
    )
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.fault(53, 69)
@pytest.mark.parametrize("limit", [1_000, 60_000])
def test_a_full_disk_leaves_nothing(tmp_path, limit):
    """Files may not grow: first the Keras file fails, then the SavedModel."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match=r"could not be written|too large"):
            simclr.export_encoder(small_model(8), tmp_path / "new" / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.rglob("*")) == [tmp_path / "new"]


@pytest.mark.fault(54)
def test_a_disk_that_cannot_be_written_is_an_error():
    # Read-only, or not for directories, even where tests run as root.
    with pytest.raises(OSError, match="/sys/"):
        simclr.export_encoder(small_model(8), "/sys/encoder")


@pytest.mark.fault(65)
@pytest.mark.parametrize(
    ("formats", "kind", "message"),
    [
        (
            ["keras", "onx"],
            ValueError,
            (
                "`formats` must be one of 'hub', 'keras', 'litert', "
                "'litert_int8', 'onnx', 'saved_model'. Received: "
                "formats='onx'. Did you mean 'onnx'?"
            ),
        ),
        ([], ValueError, "`formats` must have a name. Received: no format"),
        (
            "onnx",
            TypeError,
            (
                "`formats` must be a list of names. Received: formats='onnx'. "
                "Write formats=['onnx']"
            ),
        ),
        (
            ["keras", "onnx"],
            ImportError,
            (
                "The format 'onnx' needs `onnxruntime`. Install it with: pip "
                "install 'keras_simclr[onnx]'"
            ),
        ),
    ],
)
def test_formats_are_checked_before_anything_is_written(
    tmp_path, monkeypatch, formats, kind, message
):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    model = small_model(8)
    with pytest.raises(kind) as error:
        simclr.export_encoder(model, tmp_path / "out", formats=formats)
    assert str(error.value) == message
    assert list(tmp_path.iterdir()) == []


def test_export_says_how_far_it_is():
    told = []
    formats = export._in_turn(
        ["keras", "saved_model"],
        told.append,
        lambda *both: told.append(both),
    )
    assert list(formats) == ["keras", "saved_model"]
    assert told == [
        (0, 2),
        "Writing keras: encoder.keras.",
        (1, 2),
        "Writing saved_model: saved_model.",
        (2, 2),
    ]


@pytest.mark.fault(68)
def test_a_format_that_disagrees_is_refused(tmp_path, monkeypatch):
    def load(path):
        return lambda images: np.full((8, 6), 9.0, "float32")

    wrong = dataclasses.replace(export.EXPORTS["keras"], load=load)
    monkeypatch.setitem(export.EXPORTS, "keras", wrong)
    with pytest.raises(ValueError, match="'keras', loaded again, must return"):
        simclr.export_encoder(small_model(8), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("size", "crops"), [(32, False), (40, True)])
def test_card_says_whether_the_centre_is_cut_out(tmp_path, size, crops):
    model, about = small_model(size), None
    if crops:
        about = {
            "official": {"architecture": "r50_1x_sk0"},
            "weights": copies.weights_digest(model),
        }
    out = simclr.export_encoder(
        model, tmp_path / "out", formats=["keras"], about=about
    )
    text = (out / "README.md").read_text()
    assert ("cut out the centre 7/8" in text) == crops
    assert ("that the official SimCLR code wrote" in text) == crops
    assert ("of your choice" in text) != crops
    # What the text says is so.
    encoder = keras.models.load_model(out / "encoder.keras")
    images = np.random.default_rng(0).random((1, size, size, 1), "float32")
    edged = images.copy()
    edged[:, 0] = edged[:, :, -1] = 1.0
    assert np.array_equal(encoder(images), encoder(edged)) == crops


def test_a_format_that_cannot_express_the_encoder_is_refused(tmp_path):
    crop = simclr.RandomResizedCrop(40, 40, interpolation="bicubic")
    model = small_model(40, augmentation=crop)
    with pytest.raises(ValueError, match="'litert' must be able to express"):
        simclr.export_encoder(model, tmp_path / "out", formats=["litert"])
    assert list(tmp_path.iterdir()) == []


def test_sizes_follow_from_augmentation_and_encoder(tmp_path):
    def shapes(encoder, augmentation):
        model = simclr.SimCLRModel(encoder, augmentation=augmentation)
        view = evaluation_views.view_of_model(model)
        return view.images, view.shape

    any_size = standins.encoder(shape=(None, None, 1))
    fixed = standins.encoder()
    crop, flip = simclr.RandomResizedCrop(8, 8), simclr.RandomFlip()
    free = (None, None, 1)
    assert shapes(fixed, crop) == (free, (8, 8, 1))
    assert shapes(any_size, crop) == (free, (8, 8, 1))
    assert shapes(fixed, flip) == ((8, 8, 1), (8, 8, 1))
    assert shapes(any_size, flip) == (free, free)


def test_an_encoder_of_any_size_takes_any_size(tmp_path):
    encoder = standins.encoder(shape=(None, None, 1))
    model = simclr.SimCLRModel(encoder, augmentation=simclr.RandomFlip())
    out = simclr.export_encoder(model, tmp_path / "out")
    images = np.random.default_rng(0).random((2, 9, 12, 1), "float32")
    module = tf.saved_model.load(out / "saved_model")
    np.testing.assert_allclose(module(images), model(images), atol=1e-6)


def test_the_archive_is_the_saved_model_and_is_repeatable(exported, tmp_path):
    out = exported / "photos" / "out"
    archive = out / "hub" / "kaggle" / "encoder.tar.gz"
    with tarfile.open(archive) as file:
        assert file.getnames() == sorted(file.getnames())
        file.extractall(tmp_path / "unpacked", filter="data")
    unpacked = filecmp.dircmp(out / "saved_model", tmp_path / "unpacked")
    assert "saved_model.pb" in unpacked.same_files
    assert "variables" in unpacked.common_dirs
    assert not unpacked.left_only + unpacked.right_only + unpacked.diff_files
    cards.pack(tmp_path / "unpacked", tmp_path / "again.tar.gz")
    assert (tmp_path / "again.tar.gz").read_bytes() == archive.read_bytes()


def test_pages_for_hub_and_kaggle_say_what_they_must(exported):
    hub = exported / "photos" / "out" / "hub"
    lines = (hub / "1.md").read_text().splitlines()
    assert lines[0] == "# Module INSERT_OWNER_SLUG_HERE/encoder/1"
    assert "<!-- asset-path: kaggle/encoder.tar.gz -->" in lines
    assert "<!-- task: image-feature-vector -->" in lines
    assert "<!-- format: saved_model_2 -->" in lines
    table = (exported / "table" / "out" / "hub" / "1.md").read_text()
    assert "image-feature-vector" not in table
    of_model, of_instance = (
        json.loads((hub / "kaggle" / f"{name}-metadata.json").read_text())
        for name in ("model", "model-instance")
    )
    # As `kaggle models init` and `kaggle models variations init` write them.
    assert list(of_model) == [
        "ownerSlug",
        "title",
        "slug",
        "subtitle",
        "isPrivate",
        "description",
        "publishTime",
        "provenanceSources",
    ]
    assert list(of_instance) == [
        "ownerSlug",
        "modelSlug",
        "instanceSlug",
        "framework",
        "overview",
        "usage",
        "licenseName",
        "fineTunable",
        "trainingData",
        "modelInstanceType",
        "baseModelInstance",
        "externalBaseModelUrl",
    ]
    assert of_instance["modelSlug"] == of_model["slug"] == "encoder"
    assert of_instance["framework"] == "tensorFlow2"


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
        8, augmentation=[keras.layers.Rescaling(0.5), simclr.RandomFlip()]
    )
    with pytest.raises(ValueError) as error:
        simclr.export_encoder(model, tmp_path / "out")
    assert str(error.value) == (
        "`augmentation` must leave images of the encoder's size as they are at "
        "rest (training=False). Put what is done to every image, such as a "
        "Rescaling layer, in front of the encoder instead."
    )


def test_a_new_or_empty_directory_is_free(tmp_path):
    _files.check_is_free(tmp_path / "new")
    _files.check_is_free(tmp_path)
    assert not pathlib.Path(tmp_path / "new").exists()


def test_card_holds_rows_of_its_own_weights_only(tmp_path):
    model = small_model(8)
    row = standins.row(probe="knn", interval=(0.8, 0.95))
    digest = copies.weights_digest(model)
    about = {"rows": [row], "evaluation": {"weights": digest}}
    export.export_encoder(model, tmp_path / "a", formats=["keras"], about=about)
    card = json.loads((tmp_path / "a" / "model_card.json").read_text())
    assert (card["weights"], card["evaluation"]["weights"]) == (digest, digest)
    readme = (tmp_path / "a" / "README.md").read_text()
    assert "90.0 | 80.0 to 95.0" in readme
    model.encoder.set_weights([x + 1.0 for x in model.encoder.get_weights()])
    with pytest.warns(UserWarning, match="evaluation, rows of other weights"):
        export.export_encoder(
            model, tmp_path / "b", formats=["keras"], about=about
        )
    card = json.loads((tmp_path / "b" / "model_card.json").read_text())
    assert not {"rows", "evaluation"} & card.keys()
    assert card["weights"] == copies.weights_digest(model) != digest
    assert "90.0" not in (tmp_path / "b" / "README.md").read_text()


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_export_refuses_what_is_not_finite(value, tmp_path):
    model = small_model(8)
    for weight in model.encoder.weights[:2]:  # The last is still finite.
        weight.assign(np.full(weight.shape, value))
    rule = "Weights" if not np.isfinite(value) else "Representations"
    with pytest.raises(ValueError, match=f"{rule} must be finite. Received: "):
        simclr.export_encoder(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_encoder_with_a_lambda_is_served_but_no_keras_file(tmp_path):
    encoder = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Lambda(lambda x: tf.nn.relu(x)),
            keras.layers.Flatten(),
        ]
    )
    model = simclr.SimCLRModel(encoder, augmentation=simclr.RandomFlip())
    with pytest.raises(ValueError, match="must hold no lambda"):
        simclr.export_encoder(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    out = simclr.export_encoder(
        model, tmp_path / "out", formats=["saved_model"]
    )
    assert (out / "saved_model").is_dir()


@pytest.mark.filterwarnings("ignore:These layers of `augmentation` take no")
def test_encoders_of_tokens_are_exported(tmp_path):
    inputs = keras.Input((6,), dtype="int32")
    # Where all tokens are 0 there is nothing to take the mean of.
    x = keras.layers.Embedding(9, 4, mask_zero=True)(inputs)
    encoder = keras.Model(inputs, keras.layers.GlobalAveragePooling1D()(x))
    model = simclr.SimCLRModel(encoder, augmentation=keras.layers.Identity())
    simclr.export_encoder(model, tmp_path / "out")
    tokens = np.random.default_rng(0).integers(1, 9, (5, 6))
    expected = model.predict(tokens, verbose=0)
    loaded = keras.models.load_model(tmp_path / "out/encoder.keras")
    np.testing.assert_array_equal(loaded.predict(tokens, verbose=0), expected)
    saved_model = tf.saved_model.load(tmp_path / "out/saved_model")
    found = saved_model(tf.cast(tokens, tf.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
