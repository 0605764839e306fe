import json
import pathlib
import shutil

import keras
import numpy as np
import pytest
from helpers import official_files, standins

import keras_simclr as simclr
import keras_simclr_cli as cli
from keras_simclr import architectures, classification, official, runs

RNG = np.random.default_rng(0)
SMALL = RNG.random((2, 32, 32, 3), "float32")
LARGE = RNG.random((1, 224, 224, 3), "float32")


def check(loaded, network, images):
    """All outputs of what was loaded are the official network's."""
    h = loaded.encoder(images)
    assert_close(h, network.representation)
    assert (loaded.projection_head is None) == (network.projection is None)
    if network.projection is not None:
        assert_close(loaded.projection_head(h), network.projection)
    if loaded.info["classes"]:
        assert_close(loaded.classifier(images), network.logits)


def assert_close(found, expected):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=1e-4 * scale)


@pytest.fixture(scope="module", autouse=True)
def _zeros():
    # Quicker to draw, and shows that every weight is filled.
    with pytest.MonkeyPatch.context() as patch:
        zeros = keras.initializers.Zeros
        patch.setattr(keras.initializers, "VarianceScaling", zeros)
        yield


@pytest.fixture(scope="module")
def r18():
    return official_files.Network(18, SMALL, stem="cifar", classes=10)


@pytest.fixture(scope="module")
def r50_sk():
    """As the fine-tuned ones: the classifier is on the first layer."""
    return official_files.Network(50, LARGE, sk=True, classes=7, on_layer=1)


def test_saved_model_is_read_by_its_objects(r18, tmp_path):
    official_files.write_saved_model(r18, tmp_path / "saved_model", on_layer=0)
    loaded = simclr.load_official(tmp_path / "saved_model")
    check(loaded, r18, SMALL)
    assert loaded.encoder.input_shape == (None, 32, 32, 3)
    assert loaded.classifier.output_shape == (None, 10)
    expected = {
        "architecture": "r18_1x_sk0",
        "depth": 18,
        "width_multiplier": 1,
        "sk_ratio": 0.0,
        "stem": "cifar",
        "format": "TF2 SavedModel",
        "projection_layers": 3,
        "projection_units": 128,
        "classes": 10,
        "variables": 121,
        "ignored": 0,
        "projection_layer": 0,
        "projection_layer_reason": "saved_model.pb says so",
    }
    assert loaded.info.items() >= expected.items()
    json.dumps(loaded.info)


def test_saved_model_without_objects_is_read_by_names(tmp_path):
    # Layers of another model, made before in the process, shift the numbers.
    network = official_files.Network(
        18, SMALL, stem="cifar", head_layers=2, classes=10, first=9
    )
    official_files.write_saved_model(network, tmp_path, has_structure=False)
    loaded = simclr.load_official(tmp_path, projection_layer=0)
    check(loaded, network, SMALL)
    assert loaded.info["projection_layers"] == 2


def test_training_checkpoint_is_the_latest_of_its_directory(r18, tmp_path):
    prefix = official_files.write_checkpoint(r18, tmp_path)
    (tmp_path / "checkpoint").write_text("model_checkpoint_path: elsewhere")
    check(simclr.load_official(prefix, projection_layer=0), r18, SMALL)
    for end in ("index", "data-00000-of-00001"):
        shutil.copy(f"{prefix}.{end}", tmp_path / f"ckpt-10.{end}")
        (tmp_path / f"ckpt-1.{end}").write_bytes(b"")
        (tmp_path / f"ckpt-9.{end}").write_bytes(b"")
    loaded = simclr.load_official(tmp_path, projection_layer=0)
    check(loaded, r18, SMALL)
    assert loaded.info["format"] == "TF2 checkpoint"
    assert loaded.info["ignored"] == 6


def test_fine_tuned_network_with_selective_kernels(r50_sk, tmp_path):
    path = tmp_path / "finetuned_10pct" / "r50_1x_sk1" / "saved_model"
    official_files.write_saved_model(r50_sk, path)
    loaded = simclr.load_official(path)
    check(loaded, r50_sk, LARGE)
    assert len(loaded.encoder.variables) == 371
    expected = {
        "architecture": "r50_1x_sk1",
        "sk_ratio": 0.0625,
        "stem": "imagenet",
        "category": "finetuned_10pct",
        "projection_layer": 1,
        "projection_layer_reason": "the path says finetuned_10pct",
    }
    assert loaded.info.items() >= expected.items()


def test_selective_kernels_are_counted_as_they_are_made(r50_sk, tmp_path):
    official_files.write_tf1(r50_sk, tmp_path / "model.ckpt-751")
    loaded = simclr.load_official(tmp_path, projection_layer=1)
    check(loaded, r50_sk, LARGE)
    assert loaded.info["projection_layer_reason"] == "as asked"


def test_pretrained_tf1_checkpoint_has_a_second_copy(tmp_path):
    network = official_files.Network(50, LARGE)
    prefix = tmp_path / "pretrained_r50_1x_sk0" / "model.ckpt-250228"
    prefix.parent.mkdir()
    official_files.write_tf1(network, prefix, has_ema=True)
    loaded = simclr.load_official(prefix)
    check(loaded, network, LARGE)
    assert loaded.classifier is None
    assert len(loaded.encoder.variables) == 265
    assert loaded.info["variables"] == 265 + 3 * 5 - 1
    expected = {
        "format": "TF1 checkpoint",
        "category": "pretrained",
        "classes": None,
        "projection_layer": None,
        "projection_layer_reason": "there is no classifier",
    }
    assert loaded.info.items() >= expected.items()


def test_tf1_checkpoint_of_v1_has_no_projection_head(tmp_path):
    network = official_files.Network(34, LARGE, head_layers=0, classes=5)
    official_files.write_tf1(network, tmp_path / "model.ckpt-225206")
    loaded = simclr.load_official(tmp_path)
    check(loaded, network, LARGE)
    assert loaded.info["architecture"] == "r34_1x_sk0"
    assert loaded.info["projection_layers"] == 0


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/finetuned_1pct/r50_1x_sk0", ("finetuned_1pct", 1)),
        ("/finetuned_10pct_r50_1x_sk0", ("finetuned_10pct", 1)),
        ("/distill_10pct/r50_1x_sk0/saved_model", ("distill_10pct", 1)),
        ("/finetuned_100pct/r50_1x_sk0", ("finetuned_100pct", 0)),
        ("/finetuned_1pct/supervised/r50_1x_sk0", ("supervised", 0)),
        ("/finetuned_1pct/my_pretrained_copies", ("finetuned_1pct", 1)),
        ("/unsupervised/x", (None, 0)),
        ("/pretrained/r50_1x_sk0", ("pretrained", 0)),
        ("/pretrain/1x", ("pretrain", 0)),
        ("/finetune_10pct/1x", ("finetune_10pct", 0)),
        ("/weights/r50", (None, 0)),
    ],
)
def test_path_says_where_the_classifier_sits(path, expected):
    assert official.named_layer(path) == expected


def test_path_is_looked_at_as_a_whole(tmp_path, monkeypatch):
    (tmp_path / "finetuned_1pct" / "saved_model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "finetuned_1pct")
    assert official.named_layer("saved_model") == ("finetuned_1pct", 1)


def failure(path, kind=ValueError, **kwargs):
    with pytest.raises(kind) as error:
        simclr.load_official(path, **kwargs)
    return str(error.value)


def test_classifier_must_fit_onto_its_layer(r18, tmp_path):
    official_files.write_tf1(r18, tmp_path / "model.ckpt-1")
    outputs = "{0: 512, 1: 512, 2: 512, 3: 128}"
    for layer in (3, 4):
        assert failure(tmp_path, projection_layer=layer) == (
            "`projection_layer` must be one of [0, 1, 2], whose outputs the "
            f"classifier takes (512). Received: projection_layer={layer} (as "
            f"asked). Layers and their outputs in path={str(tmp_path)!r}: "
            f"{outputs}"
        )
    assert failure(tmp_path, projection_layer=-1) == (
        "`projection_layer` must be an integer of at least 0. Received: "
        "projection_layer=-1"
    )


def test_layer_of_a_head_that_is_not_there_is_refused(tmp_path):
    network = official_files.Network(
        18, SMALL, stem="cifar", head_layers=0, classes=10
    )
    path = tmp_path / "finetuned_1pct"
    official_files.write_saved_model(network, path)
    assert failure(path) == (
        "`projection_layer` must be one of [0], whose outputs the classifier "
        "takes (512). Received: projection_layer=1 (the path says "
        f"finetuned_1pct). Layers and their outputs in path={str(path)!r}: "
        "{0: 512}"
    )
    check(simclr.load_official(path, projection_layer=0), network, SMALL)


@pytest.fixture(scope="module")
def on_first_layer():
    return official_files.Network(
        18, SMALL, stem="cifar", classes=10, on_layer=1
    )


def test_functions_of_a_saved_model_tell_the_layer(on_first_layer, tmp_path):
    path = tmp_path / "pretrained"  # A name is only a name.
    official_files.write_saved_model(on_first_layer, path, on_layer=1)
    loaded = simclr.load_official(path)
    check(loaded, on_first_layer, SMALL)
    assert loaded.info["projection_layer"] == 1
    assert loaded.info["projection_layer_reason"] == "saved_model.pb says so"
    assert "published_accuracy" not in loaded.info
    loaded = simclr.load_official(path, projection_layer=1)
    assert loaded.info["projection_layer_reason"] == "as asked"
    text = failure(path, projection_layer=0)
    assert text.startswith(
        "What says where the classifier sits must agree. Received: "
        "projection_layer=0 (as asked), projection_layer=1 (saved_model.pb "
        "says so)"
    )
    (path / "saved_model.pb").write_bytes(b"damaged")
    assert "saved_model.pb is damaged" in failure(path)


@pytest.mark.parametrize(
    ("selector", "layer", "above"), [(0, 0, 0), (1, 1, 2), (-2, 2, 0)]
)
def test_flags_of_the_official_code_tell_the_layer(
    on_first_layer, tmp_path, selector, layer, above
):
    directory = tmp_path.joinpath(*["saved_model", "100"][:above])
    directory.mkdir(parents=True, exist_ok=True)
    prefix = official_files.write_checkpoint(on_first_layer, directory)
    flags = tmp_path / "flags.json"
    flags.write_text(json.dumps({"ft_proj_selector": selector}))
    info = simclr.load_official(directory if above else prefix).info
    assert info["projection_layer"] == layer
    assert "ft_proj_selector" in info["projection_layer_reason"]
    other = (layer + 1) % 3
    assert "must agree" in failure(prefix, projection_layer=other)


@pytest.mark.parametrize("flags", ["{}", "no JSON", '{"ft_proj_selector": ""}'])
def test_where_nothing_tells_the_layer_it_is_asked_for(
    on_first_layer, tmp_path, flags
):
    prefix = official_files.write_checkpoint(on_first_layer, tmp_path)
    (tmp_path / "flags.json").write_text(flags)
    text = failure(prefix)
    assert text.startswith(
        "`projection_layer` must be one of [0, 1, 2], whose outputs the "
        "classifier takes (512). Received: projection_layer=None"
    )
    assert "Give `projection_layer`" in text
    loaded = simclr.load_official(prefix, projection_layer=1)
    check(loaded, on_first_layer, SMALL)


@pytest.mark.parametrize("size", [48, (40, 56), (None, None)])
def test_encoders_take_images_of_the_size_that_is_asked_for(
    r18, tmp_path, size
):
    prefix = official_files.write_checkpoint(r18, tmp_path)
    loaded = simclr.load_official(prefix, projection_layer=0, image_size=size)
    pair = (size, size) if isinstance(size, int) else size
    assert loaded.encoder.input_shape == (None, *pair, 3)
    assert loaded.classifier.input_shape == (None, *pair, 3)
    if size == (None, None):
        check(loaded, r18, SMALL)


@pytest.mark.parametrize("size", [0, -32, 2.5, (1, 2, 3), (0, 32), "32"])
def test_sizes_must_be_sizes(tmp_path, size):
    assert "`image_size` must be" in failure(tmp_path, image_size=size)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"extra": ["base_model/conv2d_3/bias"]},
            "squeeze-and-excitation (`se_ratio` above 0)",
        ),
        (
            {"extra": ["head_contrastive/nl_3/dense/kernel"]},
            "a projection head of 4 layers, more than 3",
        ),
    ],
)
def test_what_is_not_supported_is_said_in_short(r18, tmp_path, changes, words):
    official_files.write_tf1(r18, tmp_path / "model.ckpt-1", **changes)
    assert failure(tmp_path) == (
        "`path` must hold an official network of a kind that is known here. "
        f"Received: path={str(tmp_path)!r}. Not supported: {words}"
    )


@pytest.mark.parametrize("write", ["write_tf1", "write_saved_model"])
def test_selective_kernels_of_another_ratio_are_not_supported(
    tmp_path, monkeypatch, write
):
    monkeypatch.setattr(official_files, "SK_RATIO", 0.5)
    network = official_files.Network(50, SMALL, sk=True, head_layers=0)
    getattr(official_files, write)(network, tmp_path / "model.ckpt-1")
    path = tmp_path if write == "write_tf1" else tmp_path / "model.ckpt-1"
    text = failure(path)
    assert text.endswith(
        "Not supported: `sk_ratio` of about 0.5, other than 0.0625"
    )


def test_missing_and_unexpected_variables_are_listed(r18, tmp_path):
    official_files.write_tf1(
        r18,
        tmp_path / "model.ckpt-1",
        left_out=["base_model/conv2d_3/kernel"],
        extra=["base_model/dense/kernel", "base_model/batch_norm/gamma"],
    )
    assert failure(tmp_path) == (
        "`path` must hold the variables of an official network, all and no "
        f"others. Received: path={str(tmp_path)!r}, which looks like "
        "r18_1x_sk0 but for:\n"
        " - missing base_model/conv2d_3/kernel (3, 3, 64, 64)\n"
        " + unexpected base_model/batch_norm/gamma (2,)\n"
        " + unexpected base_model/dense/kernel (2,)"
    )


def test_unknown_layers_of_a_saved_model_are_listed(r18, tmp_path):
    official_files.write_saved_model(
        r18,
        tmp_path,
        extra=[
            ("resnet_model/block_groups/0/layers/0/se/dense/bias", "se/bias"),
            ("resnet_model/block_groups/0/layers/2/bn/gamma", "more/gamma"),
        ],
    )
    assert failure(tmp_path) == (
        "`path` must hold the variables of an official network, all and no "
        f"others. Received: path={str(tmp_path)!r}, which looks like "
        "r18_1x_sk0 but for:\n"
        " + unexpected resnet_model/block_groups/0/layers/2/bn/gamma (2,)\n"
        " + unexpected se/bias (2,)"
    )


def test_another_architecture_is_compared_with_the_nearest(tmp_path):
    network = official_files.Network(18, SMALL, stem="cifar", head_layers=0)
    left_out = [x for *_, x, _ in network.variables if "normalization_1" in x]
    official_files.write_tf1(network, tmp_path / "x", left_out=left_out)
    text = failure(tmp_path / "x")
    first, *missing, last = text.splitlines()
    assert first.endswith("which looks like r18_1x_sk0 but for:")
    assert (
        missing[0] == " - missing base_model/batch_normalization_1/beta (64,)"
    )
    assert (len(missing), last) == (20, f" - missing {len(left_out) - 20} more")


def test_another_network_is_refused(tmp_path):
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    network.export(tmp_path / "export", verbose=False)
    text = failure(tmp_path / "export")
    assert text.startswith(
        "`path` must hold an official SimCLR network. Received: "
        f"path={str(tmp_path / 'export')!r} with other variables:\n "
    )


@pytest.mark.parametrize("name", ["absent", "text", "directory"])
def test_path_must_be_a_checkpoint(tmp_path, name):
    (tmp_path / "text").write_text("model")
    (tmp_path / "directory").mkdir()
    kind = FileNotFoundError if name == "absent" else ValueError
    assert failure(tmp_path / name, kind) == (
        "`path` must be a SavedModel (a directory with saved_model.pb), a "
        "checkpoint without .index, or a directory of checkpoints. Received: "
        f"path={str(tmp_path / name)!r}"
    )


@pytest.mark.parametrize(
    ("end", "length"),
    [
        ("index", 0),
        ("index", 1000),
        ("data-00000-of-00001", 0),
        ("data-00000-of-00001", 40_000_000),
        ("data-00000-of-00001", None),
    ],
)
def test_damaged_files_are_refused(r18, tmp_path, end, length):
    prefix = official_files.write_checkpoint(r18, tmp_path)
    file = pathlib.Path(f"{prefix}.{end}")
    content = file.read_bytes()
    file.unlink()
    if length is not None:
        file.write_bytes(content[:length])
    text = failure(prefix)
    assert text.startswith(
        "`path` must be a whole checkpoint: its files are damaged or "
        f"incomplete. Received: path={prefix!r} ("
    )
    assert text.endswith("). Copy them again")


# Counted as in test_networks.py; no weights of it were published.
R200 = official.Published("r200_1x_sk0", 62_624_832)


@pytest.mark.parametrize(
    "model", [*official.PUBLISHED, R200], ids=lambda model: model.name
)
def test_published_parameters_are_those_of_our_network(model):
    depth, width, has_sk = model.name[1:].replace("x", "").split("_")
    ratio = official.SK_RATIO * (has_sk == "sk1")
    table = architectures.resnet_layers(
        int(depth), int(width), "imagenet", ratio
    )
    layers = list(table.convolutions())
    total = sum(x.size**2 * x.inputs * x.outputs for x in layers)
    # Gamma and beta of each, but for the last of a selective kernel.
    total += sum(2 * x.outputs for x in layers)
    blocks = sum(architectures.ARCHITECTURES[int(depth)][0])
    if ratio:
        mixed = [x for x in layers if x.side(224) == 1][1::2]
        assert len(mixed) == blocks
        total -= sum(2 * x.outputs for x in mixed)
    assert total == model.parameters


@pytest.fixture(scope="module")
def imported(r18, tmp_path_factory):
    directory = tmp_path_factory.mktemp("imported")
    path = official_files.write_checkpoint(r18, directory)
    out = directory / "run"
    arguments = [f"--path={path}", f"--output_dir={out}"]
    arguments.append("--projection_layer=0")
    assert cli.main(["import-official", *arguments]) == 0
    return out


def test_imported_weights_are_a_run(r18, imported):
    assert sorted(path.name for path in imported.iterdir()) == [
        "classifier",
        "export",
        "model.keras",
        "summary.json",
    ]
    model = runs.load_model(imported)
    assert_close(model(SMALL), r18.representation)
    assert_close(model.projection_head(model(SMALL)), r18.projection)
    encoder = keras.models.load_model(imported / "export" / "encoder.keras")
    assert_close(encoder(SMALL), r18.representation)
    summary = json.loads((imported / "summary.json").read_text())
    assert summary["command"] == "import-official"
    assert summary["official"]["architecture"] == "r18_1x_sk0"


def test_imported_classifier_predicts(r18, imported, tmp_path):
    path = tmp_path / "predictions.csv"
    dataset = simclr.dataset_from_arrays(
        SMALL, batch_size=2, shuffle=False, drop_remainder=False
    )
    classification.write_predictions(imported / "classifier", dataset, path)
    rows = [line.split(",") for line in path.read_text().splitlines()[1:]]
    logits = np.array(r18.logits)
    assert [int(row[1]) for row in rows] == list(logits.argmax(axis=1))
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = (shares / shares.sum(axis=1, keepdims=True)).max(axis=1)
    found = [float(row[2]) for row in rows]
    np.testing.assert_allclose(found, shares, atol=2e-4)


def test_import_overwrites_nothing(imported, capsys):
    arguments = ["--path=.", f"--output_dir={imported}"]
    assert cli.main(["import-official", *arguments]) == 1
    assert "must be new or empty" in capsys.readouterr().err


def headless(*_, **__):
    """A small network in place of what `load_official` would find."""
    encoder = standins.encoder(shape=(8, 8, 3))
    return official.Official(encoder, None, None, {"classes": None})


def test_imported_weights_without_heads_have_none(tmp_path, monkeypatch):
    monkeypatch.setattr(official, "load_official", headless)
    told = []
    official.import_official(
        "files", tmp_path / "run", progress=lambda *both: told.append(both)
    )
    assert told == [(done, 4) for done in range(5)]
    assert not (tmp_path / "run" / "classifier").exists()
    assert runs.load_model(tmp_path / "run").projection_head.stages == []


def test_a_failed_import_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(official, "load_official", headless)
    monkeypatch.setattr(official, "export_encoder", full_disk)
    with pytest.raises(OSError, match="No space left"):
        official.import_official("files", tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_are_refused(r18, tmp_path, monkeypatch):
    path = tmp_path / "saved_model"
    official_files.write_saved_model(r18, path)
    read = simclr.official_files.OfficialFile.read
    monkeypatch.setattr(
        simclr.official_files.OfficialFile,
        "read",
        lambda *args: read(*args) * np.nan,
    )
    with pytest.raises(ValueError, match="Weights must be finite"):
        simclr.load_official(path, projection_layer=0)
