"""Sounds, series and tables: what each command makes of them."""

import csv
import json
import pathlib

import keras
import numpy as np
import pytest
import soundfile
import tensorflow as tf
from helpers.replicas import mirrored

import keras_simclr as simclr
import keras_simclr_cli as cli
from keras_simclr import features, kind_recipes, recipe, run_accounts, runs

RATE, SECONDS = 2000, 0.2
FLAGS = {
    "audio": [f"--rate={RATE}", f"--seconds={SECONDS}"],
    "series": ["--kind=series", "--window=16"],
    "tables": [],
}
RAW = {"audio": "log-mel", "series": "statistics", "tables": "columns"}
SIZES = {"audio": 24, "series": 28, "tables": 24}


def write_sounds(directory):
    rng = np.random.default_rng(0)
    for number in range(24):
        name = ["high", "low"][number % 2]
        times = np.arange(rng.integers(200, 600)) / RATE
        sound = 0.5 * np.sin(2 * np.pi * [600, 200][number % 2] * times)
        sound += rng.normal(0, 0.01, len(sound))
        path = directory / "sounds" / name / f"{number:02}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, sound, RATE)
    return directory / "sounds"


def write_series(directory):
    rng, rows = np.random.default_rng(0), []
    for recording in range(4):
        label = ["fast", "slow"][recording % 2]
        steps = np.arange(64) / [1, 4][recording % 2]
        values = np.sin(steps) + rng.normal(0, 0.1, 64), rng.normal(size=64)
        rows += [
            [f"r{recording}", *map(float, value), label]
            for value in zip(*values, strict=True)
        ]
    path = directory / "series.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["recording", "x", "y", "label"], *rows])
    return path


def write_table(directory):
    rng, rows = np.random.default_rng(0), []
    for number in range(24):
        size = rng.normal(number % 2) if number != 5 else ""
        colour = ["red", "blue", "green"][rng.integers(3)]
        rows.append([size, colour, "yes" if number % 2 else "no"])
    path = directory / "table.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["size", "colour", "label"], *rows])
    return path


WRITE = {"audio": write_sounds, "series": write_series, "tables": write_table}


@pytest.fixture(params=sorted(FLAGS), scope="module")
def trained(request, tmp_path_factory):
    """Kind, path of the data and run directory of a training of two epochs."""
    directory = tmp_path_factory.mktemp(request.param)
    data, run_dir = WRITE[request.param](directory), directory / "run"
    flags = [
        *("--epochs=2", "--batch_size=8", "--width_multiplier=0.1"),
        *("--precision=float32", "--quiet", *FLAGS[request.param]),
    ]
    assert command("pretrain", data, f"--output_dir={run_dir}", *flags) == 0
    return request.param, data, run_dir


def command(name, data, *flags):
    return cli.main([name, f"--data={data}", *map(str, flags)])


def test_runs_know_what_they_are_of(trained):
    kind, _, run_dir = trained
    recorded = runs.recorded_flags(run_dir)
    assert recorded["kind"] == kind
    assert recorded.keys().isdisjoint(
        {"depth", "flip_rate", "trust_coefficient"}
    )
    model = runs.load_model(run_dir)
    assert (str(model.kind), model.number_of_views) == (kind, 2)
    assert isinstance(model.optimizer, keras.optimizers.Adam)
    assert (run_dir / "columns.keras").exists() == (kind == "tables")
    assert (run_dir / "columns.json").exists() == (kind == "series")


def test_evaluation_compares_with_what_needs_no_encoder(trained, capsys):
    kind, data, run_dir = trained
    flags = ["--labels=2", "--draws=2", "--probes=knn"]
    assert command("evaluate", data, f"--run_dir={run_dir}", *flags) == 0
    rows = json.loads((run_dir / "summary.json").read_text())["rows"]
    found = [(row["features"], row["probe"]) for row in rows]
    assert (RAW[kind], "extra_trees") in found
    assert (RAW[kind], "knn") in found
    assert ("simclr", "knn") in found
    shown = capsys.readouterr().out
    assert "image" not in shown
    if kind == "series":
        assert "4 recordings: none is divided" in shown


def test_a_classifier_is_trained_and_used(trained, tmp_path, capsys):
    kind, data, run_dir = trained
    made, out = tmp_path / "classifier", tmp_path / "classes"
    flags = [f"--output_dir={made}", "--quiet"]
    assert command("finetune", data, f"--run_dir={run_dir}", *flags) == 0
    flags = [f"--output_dir={out}", "--quiet"]
    assert command("predict", data, f"--model={made}", *flags) == 0
    with (out / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == SIZES[kind]
    names = json.loads((made / "class_names.json").read_text())
    assert {row["class"] for row in rows} <= {*names}

    exported = tmp_path / "exported"
    flags = [f"--model={made}", f"--output_dir={exported}", "--formats=keras"]
    assert cli.main(["export", *flags]) == 0
    ours, theirs = (
        keras.saving.load_model(path / "classifier.keras")
        for path in (made, exported)
    )
    examples = np.random.default_rng(0).normal(
        0, 0.1, (3, *ours.input_shape[1:])
    )
    np.testing.assert_allclose(theirs(examples), ours(examples), atol=1e-6)

    if kind != "audio":  # Sounds are brought to the length.
        raw = {"series": "windows", "tables": "rows"}[kind]
        other = tmp_path / "other.npz"
        np.savez(other, **{raw: np.zeros((2, *ours.input_shape[1:-1], 99))})
        flags = [f"--model={made}", f"--output_dir={tmp_path / 'none'}"]
        assert command("predict", other, *flags) == 1
        assert "of the classifier's shape" in capsys.readouterr().err


def test_commands_of_images_alone_refuse_others_at_once(
    trained, tmp_path, capsys
):
    kind, data, run_dir = trained
    out = f"--output_dir={tmp_path / 'out'}"
    given = FLAGS[kind][:1] if kind == "series" else []
    query = data if data.is_file() else next(data.rglob("*.wav"))
    for name, flags in (
        ("plan", given),
        ("distill", [f"--teacher={run_dir}", out, *given]),
        ("search", [f"--run_dir={run_dir}", f"--query={query}"]),
    ):
        assert command(name, data, *flags) == 1
        assert "must be of images" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_exported_does_what_the_model_does(trained, tmp_path):
    _, data, run_dir = trained
    out = tmp_path / "encoder"
    arguments = [f"--run_dir={run_dir}", f"--output_dir={out}"]
    assert cli.main(["export", *arguments]) == 0
    model = runs.load_model(run_dir)
    given = recipe.Data(data=str(data))
    given = runs.as_seen(given, run_dir, model.encoder.input_shape[-1])
    _, dataset = given.open_in_order(8)
    element = next(iter(dataset))
    seen = {k: x for k, x in element.items() if k in ("images", "sizes")}
    expected = model.predict_on_batch(seen)
    module = tf.saved_model.load(out / "saved_model")
    examples = tf.cast(element["images"], tf.float32)
    if "sizes" in element:
        found = module.on_canvas(examples, element["sizes"])
    else:
        found = module(examples)
        plain = keras.saving.load_model(out / "encoder.keras")
        np.testing.assert_allclose(plain(examples), expected, atol=1e-4)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    card = json.loads((out / "model_card.json").read_text())
    assert card["inputs"]["contract"].startswith(model.kind.plural.capitalize())


def test_a_report_shows_them(trained, tmp_path):
    kind, data, run_dir = trained
    flags = [f"--run_dir={run_dir}", f"--output_dir={tmp_path / 'report'}"]
    assert command("report", data, *flags, "--quiet") == 0
    text = pathlib.Path(tmp_path, "report", "report.html").read_text()
    assert text.count("<image id=") >= SIZES[kind]
    assert ("data:audio/wav;base64," in text) == (kind == "audio")


def test_representations_are_written(trained, tmp_path):
    kind, data, run_dir = trained
    out = tmp_path / "embeddings"
    flags = [f"--run_dir={run_dir}", f"--output_dir={out}", "--quiet"]
    assert command("embed", data, *flags) == 0
    arrays = np.load(out / "embeddings.npz")
    assert len(arrays[arrays.files[0]]) == SIZES[kind]


def test_a_run_goes_on_with_the_columns_that_it_began_with(tmp_path):
    data, run_dir = write_table(tmp_path), tmp_path / "run"
    flags = [
        *("--batch_size=8", "--width_multiplier=0.1", "--quiet"),
        *("--precision=float32", f"--output_dir={run_dir}"),
    ]
    assert command("pretrain", data, "--epochs=1", *flags) == 0
    before = (run_dir / "columns.keras").read_bytes()
    data.write_text(data.read_text().replace("red", "pink"))
    flags += ["--more_epochs=1", "--accept_changed_data"]
    assert command("pretrain", data, "--epochs=1", *flags) == 0
    assert (run_dir / "columns.keras").read_bytes() == before
    assert "columns" not in runs.recorded_flags(run_dir)
    assert runs.load_model(run_dir).optimizer.iterations == 6

    # Another run with these columns keeps them, too, and finds its own.
    other = tmp_path / "other"
    flags = [*flags[:-3], f"--output_dir={other}"]
    flags += ["--epochs=1", f"--columns={run_dir / 'columns.keras'}"]
    assert command("pretrain", data, *flags) == 0
    seen = runs.as_seen(run_accounts.own_data(other), other, None)
    assert seen.columns == str(other / "columns.keras")
    _, dataset = seen.open_in_order(8)
    assert (
        dataset.element_spec["images"].shape[1]
        == (runs.load_model(run_dir).encoder.input_shape[1])
    )


def trained_sgd(kind, replicas):
    """Losses and weights after two steps of a small network."""
    shape = {"series": (12, 3), "tables": (6,)}[kind]
    examples = np.random.default_rng(0).normal(size=(32, *shape))
    dataset = simclr.dataset_from_arrays(
        examples.astype("float32"), batch_size=16, shuffle=False
    )
    keras.utils.set_random_seed(1)
    with mirrored(replicas).scope():
        layers = [keras.Input(shape), keras.layers.Flatten()]
        model = simclr.SimCLRModel(
            keras.Sequential([*layers, keras.layers.Dense(8)]),
            keras.layers.Dense(8, use_bias=False),
            **getattr(simclr, kind).default_augmentation((None, *shape)),
            seed=3,
        )
        model.compile(keras.optimizers.SGD(1.0))
    features.adapt(model, dataset)
    history = model.fit(dataset, verbose=0)
    return [history.history["loss"], *model.get_weights()]


@pytest.mark.parametrize("kind", ["series", "tables"])
def test_replicas_train_as_one_device(kind):
    one, two = trained_sgd(kind, 1), trained_sgd(kind, 2)
    for ours, theirs in zip(two, one, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def test_layers_adapt_to_what_fits_into_memory(monkeypatch):
    monkeypatch.setattr(features, "_ADAPTED_BYTES", 3 * 8 * 4 * 4)
    rows = np.random.default_rng(0).normal(size=(80, 4)).astype("float32")
    parts = simclr.tables.default_augmentation((None, 4))
    model = simclr.SimCLRModel(
        simclr.tables.default_encoder((4,), 0.05), **parts
    )
    dataset = simclr.dataset_from_arrays(rows, batch_size=8)
    features.adapt(model, dataset)
    assert parts["second_augmentation"].count == 3 * 8


def test_labels_may_come_after_training_but_never_in_rows(tmp_path, capsys):
    data, known = write_table(tmp_path), tmp_path / "known.csv"
    known.write_text(data.read_text().replace("label", "answer"))
    rows = [x.rpartition(",")[0] for x in data.read_text().splitlines()]
    data.write_text("\n".join(rows) + "\n")
    flags = ["--epochs=1", "--batch_size=8", "--width_multiplier=0.1"]
    flags += ["--precision=float32", "--quiet"]
    for name, examples in ("without", data), ("within", known):
        run = f"--output_dir={tmp_path / name}"
        assert command("pretrain", examples, run, *flags) == 0
    how = ["--label=answer", "--probes=knn", "--labels=2", "--draws=2"]
    run = f"--run_dir={tmp_path / 'without'}"
    assert command("evaluate", known, run, *how) == 0
    run = f"--run_dir={tmp_path / 'within'}"
    assert command("evaluate", known, run, *how) == 1
    assert "no 'answer' beside its labels" in capsys.readouterr().err


def test_flags_of_other_kinds_are_refused(tmp_path, capsys):
    data = write_table(tmp_path)
    for flag in ("--depth=18", "--rate=8000", "--flip_rate=0.1"):
        out = f"--output_dir={tmp_path / 'run'}"
        assert command("pretrain", data, out, flag) != 0
        text = capsys.readouterr().err
        assert "must be left out: these data are rows" in text
        assert flag.strip("-").partition("=")[0] in text


def test_recipes_of_a_program_have_the_defaults_of_the_kind(tmp_path):
    data = recipe.Data(data=str(write_table(tmp_path)))
    given = recipe.Recipe(
        epochs=1, batch_size=8, width_multiplier=0.1, precision="float32"
    )
    done = runs.carry_out(given, data, tmp_path / "run", report=str)
    recorded = runs.recorded_flags(tmp_path / "run")
    assert (recorded["batch_size"], recorded["learning_rate"]) == ("8", "0.001")
    assert done.model.number_of_views == 2
    deep = recipe.Recipe(depth=18)
    with pytest.raises(ValueError, match="depth"):
        runs.carry_out(deep, data, tmp_path / "other", report=str)


def test_defaults_of_a_kind_give_way_to_what_is_chosen():
    data = recipe.Data(data="words", kind="audio")
    given = recipe.Recipe(temperature=0.3)
    found = kind_recipes.with_defaults(given, data, {"temperature"})
    assert (found.temperature, found.batch_size) == (0.3, 250)
    images = recipe.Data(data="photos", kind="images")
    assert kind_recipes.with_defaults(given, images, set()) == given


def test_layers_adapt_once_when_a_run_begins(tmp_path):
    rows = np.random.default_rng(0).normal(3.0, 1.0, (32, 4)).astype("float32")
    parts = simclr.tables.default_augmentation((None, 4))
    model = simclr.SimCLRModel(
        simclr.tables.default_encoder((4,), 0.05), **parts
    )
    model.compile("sgd")
    dataset = simclr.dataset_from_arrays(rows, batch_size=8)
    runs.pretrain(model, dataset, tmp_path / "run", epochs=1)
    kept = [x.numpy() for x in parts["second_augmentation"].variables]
    largest = max(kept, key=np.size)
    assert np.isin(rows[:, 0], largest[..., 0]).all()
    again = runs.load_model(tmp_path / "run")
    layer = again.second_augmentation
    for ours, theirs in zip(layer.variables, kept, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_what_is_exported_holds_no_rows(tmp_path):
    rows = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    layer = simclr.tables.MarginalCorruption()
    layer.adapt(rows)
    encoder = simclr.tables.default_encoder((4,), 0.05)
    model = simclr.SimCLRModel(encoder, augmentation=layer)
    simclr.export_encoder(model, tmp_path / "encoder")
    reader = tf.train.load_checkpoint(
        str(tmp_path / "encoder/saved_model/variables/variables")
    )
    for name in reader.get_variable_to_shape_map():
        if name.endswith("VARIABLE_VALUE"):
            assert not np.isin(rows, reader.get_tensor(name)).any()
