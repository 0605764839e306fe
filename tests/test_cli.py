import contextlib
import csv
import errno
import io
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import types

import keras
import numpy as np
import pyarrow.parquet
import pytest
import tensorflow as tf
from absl import flags
from helpers import standins
from helpers.pictures import encoded, picture, tiff, write
from helpers.replicas import mirrored
from PIL import Image

import keras_simclr as simclr
import keras_simclr_cli as cli
from keras_simclr import (
    _terminal,
    classification,
    commands,
    copies,
    devices,
    embedding,
    evaluation as evaluating,
    finetuning,
    logs,
    micro_batches,
    replicas,
    runs,
    scanning,
)

COMMANDS = [
    "demo",
    "distill",
    "embed",
    "evaluate",
    "export",
    "finetune",
    "import-official",
    "plan",
    "predict",
    "pretrain",
    "report",
    "scan",
    "search",
]
PRETRAIN = [
    "pretrain",
    "--split=train[:32]",
    "--depth=10",
    "--width_multiplier=0.1",
    "--epochs=1",
    "--batch_size=16",
    "--precision=float32",
    "--nodoctor",  # It takes time to trace; tests/test_doctor.py has it.
]


@pytest.fixture(scope="module", autouse=True)
def _small():
    with pytest.MonkeyPatch.context() as patch:
        standins.use(patch)
        patch.setattr(finetuning, "_FEWEST_STEPS", 2)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng = np.random.default_rng(0)
    labels = np.arange(48) % 2
    images = (
        rng.integers(0, 128, (48, 8, 8, 1)) + 100 * labels[:, None, None, None]
    )
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, images=images.astype("uint8"), labels=labels)
    return f"--data={path}"


@pytest.fixture(scope="module")
def run_dir(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    assert cli.main([*PRETRAIN, data, f"--output_dir={path}"]) == 0
    return path


def test_help_is_complete_and_does_not_import_keras():
    code = (
        "import sys, keras_simclr_cli as cli\n"
        f"for command in {COMMANDS!r}: cli.main([command, '--help'])\n"
        "cli.main(['--help'])\n"
        "assert not {'keras', 'tensorflow', 'numpy'} & set(sys.modules)\n"
        # Nor do flags that are wrong, or that name what is not there.
        "for flag in ('--depth=7', '--data=absent'):\n"
        "    cli.main(['pretrain', '--data=.', '--output_dir=out', flag])\n"
        "assert not {'keras', 'tensorflow'} & set(sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    for command in COMMANDS:
        assert f"usage: keras-simclr {command} " in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_flag_and_its_default(command, capsys):
    values = flags.FlagValues()
    cli.define_flags(command, values)
    assert cli.main([command, "--help"]) == 0
    text = capsys.readouterr().out
    for name in values:
        assert f"  --{name}: " in text
        assert values[name].help.rstrip().endswith(".")


def test_no_command_shows_the_overview_and_fails(capsys):
    assert cli.main([]) == 2
    assert "usage: keras-simclr COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrian"], "unknown command 'pretrian'. Did you mean pretrain?"),
        (["export", "--nonsense=1"], "export: Unknown command line flag"),
        (["export", "RUN"], "export: "),
        (["pretrain", "--data=x.npz"], "pretrain: "),
        (
            ["demo", "runs"],
            "demo: write --flag=value, not 'runs'",
        ),
    ],
)
def test_wrong_usage_is_explained(arguments, message, capsys):
    assert cli.main(arguments) == 2
    assert f"keras-simclr: {message}" in capsys.readouterr().err


def test_scan_writes_a_manifest_and_a_report(tmp_path, capsys):
    keras.utils.save_img(tmp_path / "a.png", np.ones((9, 8, 3)), scale=False)
    (tmp_path / "b.jpg").write_text("<html>404</html>")
    out = tmp_path / "scanned"
    arguments = ["scan", f"--data={tmp_path}", f"--output_dir={out}"]
    assert cli.main(arguments) == 0
    assert "1 image usable, 1 file left out" in capsys.readouterr().out
    assert [path.name for path in out.iterdir()] == ["manifest.parquet"]
    assert cli.main(arguments) == 1
    assert "must be new or empty" in capsys.readouterr().err


def test_scan_of_no_directory_writes_nothing(tmp_path, capsys):
    out = tmp_path / "scanned"
    assert cli.main(["scan", "--data=absent", f"--output_dir={out}"]) == 1
    assert "`data` must be an existing" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            "photos",
            "`data` must be an existing folder of files, PATH.csv, PATH.parqu",
        ),
        (
            "tfds:fashion_mnits",
            "`name` must be a dataset of TensorFlow Datasets. Received: name=",
        ),
        (
            "absent.npz",
            "`data` must be an existing folder of files, PATH.csv, PATH.parqu",
        ),
    ],
)
def test_unknown_data_is_refused_before_anything_is_written(
    data, message, tmp_path, capsys
):
    out = tmp_path / "run"
    arguments = [*PRETRAIN, f"--data={data}", f"--output_dir={out}"]
    assert cli.main(arguments) == 1
    assert f"keras-simclr: pretrain: {message}" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.fault(57)
def test_output_directory_with_content_is_refused(data, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert cli.main([*PRETRAIN, data, f"--output_dir={tmp_path}"]) == 1
    assert capsys.readouterr().err == (
        "keras-simclr: pretrain: --output_dir: The output directory must be "
        "new or empty: nothing is overwritten. Received: "
        f"{str(tmp_path)!r}\n"
    )


def test_run_can_be_repeated_from_its_flags(run_dir, tmp_path):
    again = tmp_path / "again"
    flagfile = f"--flagfile={run_dir / 'flags.txt'}"
    assert cli.main(["pretrain", flagfile, f"--output_dir={again}"]) == 0
    first, second = (runs.load_model(path) for path in (run_dir, again))
    for ours, theirs in zip(first.variables, second.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_quiet_pretraining_prints_its_result_and_keeps_what_was_found(
    data, tmp_path, capsys
):
    out = tmp_path / "run"
    arguments = [*PRETRAIN, data, f"--output_dir={out}", "--doctor", "--quiet"]
    with standins.uncompiled():
        assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert text == f"{out} keeps the model after step 2.\n"
    summary = json.loads((out / "summary.json").read_text())
    found = {finding["rule"] for finding in summary["findings"]}
    assert "too_few_steps" in found
    # Not what a run must go on with.
    flags = (out / "flags.txt").read_text()
    assert not re.search("--(no)?(doctor|quiet|tensorboard)", flags)
    log = (out / "log.csv").read_text()
    assert "rankme" in log.splitlines()[0]


def test_evaluate_prints_and_stores_its_table(run_dir, data, capsys):
    arguments = [f"--run_dir={run_dir}", data, "--labels=5,all"]
    arguments += ["--probes=linear,knn", "--draws=2"]
    splits = ["--split=train[:32]", "--test_split=train[32:]"]
    assert cli.main(["evaluate", *arguments, *splits]) == 0
    assert "simclr, knn" in capsys.readouterr().out
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["command"] == "pretrain"
    assert summary["steps_trained"] == 2
    assert summary["data"]["split"] == "train[:32]"
    assert summary["data"]["images_per_epoch"] == 32
    assert len(summary["data"]["sha256"]) == 64
    assert summary["evaluation"]["test_examples"] == 16
    assert summary["evaluation"]["thorough"] is False
    assert len(list((run_dir / "features").iterdir())) == 2
    assert summary["evaluation"]["weights"] == summary["weights"]
    assert summary["evaluation"]["data"]["sha256"] == summary["data"]["sha256"]
    assert {row["labels"] for row in summary["rows"]} == {5, "all"}
    assert set(summary["rows"][0]) >= {
        "features",
        "probe",
        "labels",
        "accuracy",
        "std",
    }


def test_evaluate_without_a_test_set_compares_encoders(
    run_dir, data, tmp_path, capsys
):
    out = tmp_path / "mine"
    run = f"--run_dir={run_dir}"
    assert cli.main(["export", run, f"--output_dir={out}"]) == 0
    other = f"--encoders={out / 'encoder.keras'}"
    options = ["--probes=knn", "--draws=2", "--labels=all", other]
    assert cli.main(["evaluate", run, data, *options]) == 0
    text = capsys.readouterr().out
    assert f"{out / 'encoder.keras'}, knn" in text
    assert "No test set: 2 random splits of 48 images" in text


def test_evaluate_shows_what_a_run_started_from(
    run_dir, data, tmp_path, capsys
):
    told = ("--depth", "--width")
    arguments = [x for x in PRETRAIN if not x.startswith(told)]
    out, start = f"--output_dir={tmp_path / 'run'}", f"--start_from={run_dir}"
    assert cli.main([*arguments, data, out, start]) == 0
    run = f"--run_dir={tmp_path / 'run'}"
    options = ["--probes=knn", "--draws=2", "--labels=all"]
    assert cli.main(["evaluate", run, data, *options]) == 0
    text = capsys.readouterr().out
    assert f"Beside it its start, {run_dir}, as it was before.\n" in text
    assert "\nstart, knn  " in text
    (tmp_path / "start").mkdir()
    runs.save_model(runs.load_model(run_dir), tmp_path / "start")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        other = "--encoders=start"
        assert cli.main(["evaluate", run, data, *options, other]) == 1
    assert "other than 'start'" in capsys.readouterr().err


def paint(directory, shades, copies=6):
    """A folder with pictures of a shade for each class."""
    rng = np.random.default_rng(len(shades))
    for name, shade in shades.items():
        for number in range(copies):
            path = directory / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = shade + rng.integers(0, 20, (9, 11, 1))
            keras.utils.save_img(path, pixels, scale=False)


SHADES = {"cat": 20, "dog": 90, "fox": 160, "owl": 230}


@pytest.fixture(scope="module")
def grey_run(tmp_path_factory):
    """A run whose representation is the brightness."""
    run_dir = tmp_path_factory.mktemp("grey")
    encoder = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.GlobalAveragePooling2D()]
    )
    crop = simclr.RandomResizedCrop(8, 8)
    model = simclr.SimCLRModel(encoder, augmentation=crop)
    model.compile()
    model.save(run_dir / "model.keras")
    return run_dir


@pytest.fixture(scope="module")
def classifier(grey_run, tmp_path_factory):
    """What `finetune` writes, of a network that is not trained."""
    network = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    path = tmp_path_factory.mktemp("models") / "classifier"
    names = [str(x) for x in range(192)]
    model = runs.load_model(grey_run)
    classification.write_classifier(model, network, path, names)
    return path


def test_evaluate_tests_on_another_folder_by_names(grey_run, tmp_path, capsys):
    paint(tmp_path / "photos" / "train", SHADES)
    others = {name: SHADES[name] for name in ("cat", "fox", "owl")}
    paint(tmp_path / "photos" / "val", others)
    command = ["evaluate", f"--run_dir={grey_run}", "--probes=linear"]
    command += ["--labels=all", "--draws=2"]
    # The folders are parts, and the cure can be followed.
    photos = tmp_path / "photos"
    assert cli.main([*command, f"--data={photos}"]) == 1
    text = capsys.readouterr()
    assert "42 images in train, val: parts of a data set, no cl" in text.out
    assert "--data=DIR/train --test_data=DIR/val" in text.err
    command += [f"--data={photos / 'train'}", f"--test_data={photos / 'val'}"]
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    assert text.startswith(
        "To learn from: 24 images of 4 classes: cat (6), dog (6), fox (6), owl "
        "(6).\nTo test on: 18 images of 3 classes: cat (6), fox (6), owl (6).\n"
    )
    assert "No image to test on is of dog.\n" in text
    (row,) = (
        row
        for row in runs.read_summary(grey_run)["rows"]
        if row["features"] == "simclr"
    )
    assert row["accuracy"] == 1.0
    assert cli.main([*command, "--test_split=train[:50%]"]) == 0
    evaluation = runs.read_summary(grey_run)["evaluation"]
    assert 0 < evaluation["test_examples"] < 18
    assert evaluation["test_data"] == str(photos / "val")


def test_evaluate_takes_tables_that_any_tool_wrote(grey_run, tmp_path, capsys):
    """Of a folder above both, whose other images are left alone."""
    photos, out = tmp_path / "photos", tmp_path / "out"
    for part in ("train", "val", "more"):
        paint(photos / part, SHADES, copies=3)
    run = f"--run_dir={grey_run}"
    written = [f"--data={photos}", f"--output_dir={out}", "--format=parquet"]
    assert cli.main(["embed", run, *written]) == 0
    table = out / "embeddings.parquet"
    command = ["evaluate", run, "--probes=knn", "--labels=all", "--draws=2"]
    command += [f"--encoders={table}", f"--data={photos / 'train'}"]
    assert cli.main([*command, f"--test_data={photos / 'val'}"]) == 0
    assert f"{table}, knn" in capsys.readouterr().out
    summary = runs.read_summary(grey_run)
    found = {row["features"]: row["draws"] for row in summary["rows"]}
    assert found[str(table)] == found["simclr"]
    assert len(summary["evaluation"]["encoders"][str(table)]) == 64
    # That rows are of no images is found before any is read.
    shutil.rmtree(photos / "more")
    assert cli.main([*command, f"--test_data={photos / 'val'}"]) == 1
    text = capsys.readouterr()
    assert "Reading the images" not in text.out
    assert "12 of 36 rows that are of no image: more/cat/0.png, " in text.err


@pytest.mark.parametrize("kind", ["folder", "list"])
def test_evaluate_tests_on_one_class(grey_run, tmp_path, capsys, kind):
    paint(tmp_path / "train", SHADES)
    paint(tmp_path / "test", {"cat": 20})
    test_data = tmp_path / "test"
    if kind == "list":
        test_data = tmp_path / "test.csv"
        rows = [f"test/cat/{number}.png,cat" for number in range(6)]
        test_data.write_text("\n".join(["path,label", *rows]))
    command = ["evaluate", f"--run_dir={grey_run}", "--probes=knn"]
    command += ["--labels=all", "--draws=2", f"--data={tmp_path / 'train'}"]
    assert cli.main([*command, f"--test_data={test_data}"]) == 0
    text = capsys.readouterr().out
    assert "To test on: 6 images of 1 class: cat (6).\n" in text
    assert "No image to test on is of dog, fox, owl.\n" in text


def test_tables_of_shards_name_their_members(grey_run, tmp_path, capsys):
    paint(tmp_path / "images", {"cat": 20})
    (tmp_path / "images" / "cat" / "0.png").write_bytes(b"")
    (tmp_path / "images" / "cat" / "0.txt").write_bytes(b"")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "images" / "cat", "cats")
    options = [f"--data=tar:{tmp_path}/*.tar", "--unreadable_limit=0.5"]
    options += ["--format=csv", f"--output_dir={tmp_path / 'out'}"]
    assert cli.main(["embed", f"--run_dir={grey_run}", *options]) == 0
    assert capsys.readouterr().out.startswith(
        "Found: 6 images, no classes. 1 other file is not read: 1 .txt.\n"
    )
    with (tmp_path / "out" / "embeddings.csv").open() as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    assert paths == [f"a.tar/cats/{number}.png" for number in range(1, 6)]
    skipped = (tmp_path / "out" / "skipped.csv").read_text()
    assert skipped == "path,reason\na.tar/cats/0.png,empty\n"


def test_pillow_does_not_warn_of_large_images(
    grey_run, tmp_path, monkeypatch, recwarn
):
    paint(tmp_path / "images", {"cat": 20})
    with Image.open(tmp_path / "images" / "cat" / "0.png") as image:
        image.save(tmp_path / "images" / "cat" / "0.gif")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)  # It warns of 99.
    options = [f"--data={tmp_path / 'images'}", f"--output_dir={tmp_path}/out"]
    assert cli.main(["embed", f"--run_dir={grey_run}", *options]) == 0
    skipped = (tmp_path / "out" / "skipped.csv").read_text()
    assert skipped == "path,reason\n"
    assert not [x for x in recwarn if "exceeds limit" in str(x.message)]


def test_finetune_and_predict_say_what_they_found(grey_run, tmp_path, capsys):
    paint(tmp_path / "train", SHADES)
    data, run = f"--data={tmp_path}", f"--run_dir={grey_run}"
    out = f"--output_dir={tmp_path / 'out'}"
    assert cli.main(["finetune", run, data, out]) == 1
    assert "are no classes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    runs.load_model(grey_run).encoder.save(tmp_path / "mine.keras")
    mine = f"--encoder={tmp_path / 'mine.keras'}"
    assert cli.main(["finetune", mine, f"{data}/train", out]) == 0
    assert capsys.readouterr().out.startswith(
        "To learn from: 24 images of 4 classes: cat (6), dog (6), "
    )
    options = [f"--model={tmp_path / 'out'}", f"{data}/train"]
    out = tmp_path / "classes"
    assert cli.main(["predict", *options, f"--output_dir={out}"]) == 0
    assert capsys.readouterr().out.startswith("Found: 24 images of 4 classes: ")
    with (out / "predictions.csv").open() as file:
        for row in csv.DictReader(file):
            assert row["path"].startswith(row["class"])
    out = f"--output_dir={tmp_path / 'table'}"
    assert cli.main(["embed", run, data, out]) == 0
    assert capsys.readouterr().out.startswith(
        "Found: 24 images in train: parts"
    )


def test_what_an_npz_split_tests_on_and_cannot_learn_is_said(
    run_dir, tmp_path, capsys, said
):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), "uint8")
    labels = np.repeat([0, 1, 2, 3], 10)  # Sorted by class.
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    command = ["evaluate", f"--run_dir={run_dir}", "--probes=knn"]
    command += [f"--data={tmp_path / 'a.npz'}", "--labels=all", "--draws=2"]
    splits = ["--split=train[:30]", "--test_split=train[25:]"]
    assert cli.main([*command, *splits]) == 0
    text = capsys.readouterr().out
    assert text.count("\n10 of 15 images to test on are of classes ") == 1
    assert text.count("\nNo image to test on is of 0, 1.\n") == 1
    assert text.count("\n5 of 15 images to test on are duplicates of ") == 1
    assert len(said.messages) == 3
    assert all(f"\n{message}\n" in text for message in said.messages)
    splits = ["--split=train[:20]", "--test_split=train[20:]"]
    assert cli.main([*command, *splits]) == 1
    assert "Received: 2, 3 in `test` and 0, 1 in `train`" in (
        capsys.readouterr().err
    )


SPLITS = ["--split=train[:60%]", "--test_split=train[60%:]"]


# Found here or by `scan`, they reach random splits and those of a user.
@pytest.mark.parametrize(
    ("splits", "scanned"), [([], False), ([], True), (SPLITS, False)]
)
def test_pictures_that_are_there_twice_do_not_leak(
    tmp_path, splits, scanned, capsys
):
    """Random pictures with random labels: the truth is 50 %."""
    encoder = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    crop = simclr.RandomResizedCrop(8, 8)
    model = simclr.SimCLRModel(encoder, augmentation=crop)
    model.compile()
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    model.save(run_dir / "model.keras")
    rng = np.random.default_rng(0)
    names = rng.permutation(120)
    for place, label in enumerate(rng.permutation(np.arange(60) % 2)):
        for name in names[[place, place + 60]]:
            path = tmp_path / "images" / ("cat", "dog")[label] / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(place, 20, 16).save(path)
    data = [f"--data={tmp_path / 'images'}"]
    if scanned:
        out = tmp_path / "scan"
        assert cli.main(["scan", *data, f"--output_dir={out}"]) == 0
        data.append(f"--manifest={out / 'manifest.parquet'}")
    command = ["evaluate", f"--run_dir={run_dir}", *data, *splits]
    command += ["--probes=linear,knn", "--labels=all"]
    assert cli.main(command) == 0
    for row in runs.read_summary(run_dir)["rows"]:
        assert abs(row["accuracy"] - 0.5) < 0.17
    text = capsys.readouterr().out
    assert ("60 of 120 images are duplicates of others" in text) != bool(splits)


def test_file_has_one_split(run_dir, data, capsys):
    arguments = [f"--run_dir={run_dir}", data, "--test_split=test"]
    assert cli.main(["evaluate", *arguments]) == 1
    assert capsys.readouterr().err == (
        "keras-simclr: evaluate: `split` must be one of 'train'. Received: "
        "split='test'\n"
    )


def test_embed_writes_what_the_model_predicts(run_dir, data, tmp_path):
    out = tmp_path / "out"
    arguments = [f"--run_dir={run_dir}", data, f"--output_dir={out}"]
    assert cli.main(["embed", *arguments]) == 0
    found = np.load(out / "embeddings.npz")["representations"]
    images = np.load(data.removeprefix("--data="))["images"]
    model = runs.load_model(run_dir)
    expected = model.predict(images, verbose=0)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    summary = runs.read_summary(out)
    assert summary["weights"] == copies.weights_digest(model)
    assert len(summary["data"]["sha256"]) == 64


def test_report_is_of_the_images_that_a_run_saw(run_dir, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["report", f"--run_dir={run_dir}", f"--output_dir={out}"]
    assert cli.main(arguments) == 0
    assert f"{out / 'report.html'} shows what was learnt." in (
        capsys.readouterr().out
    )
    text = (out / "report.html").read_text()
    assert "The run is finished after 1 epoch, 2 steps." in text
    assert "32 images" in text
    assert "--run_dir=run --output_dir=OUT" in text
    assert str(tmp_path.parent) not in text
    assert sorted(x.name for x in out.iterdir()) == [
        "embeddings.parquet",
        "label_first.csv",
        "report.html",
    ]
    split = "--split=train[32:]"
    other = [arguments[0], arguments[1], f"--output_dir={tmp_path / 'b'}"]
    assert cli.main([*other, split]) == 0
    text = (tmp_path / "b" / "report.html").read_text()
    assert "split train[:32] then, split train[32:] now" in text


def test_report_learns_from_labels_elsewhere(
    grey_run, tmp_path, monkeypatch, capsys
):
    paint(tmp_path, {"photos": 20}, copies=5)
    paint(tmp_path / "known", {"dark": 10, "light": 200}, copies=4)
    monkeypatch.chdir(tmp_path)
    arguments = ["report", f"--run_dir={grey_run}", "--data=photos"]
    assert cli.main([*arguments, "--labelled=photos", "--output_dir=a"]) == 1
    assert "`labelled` must hold labels" in capsys.readouterr().err
    assert not pathlib.Path("a").exists()
    assert cli.main([*arguments, "--labelled=known", "--output_dir=a"]) == 0
    table = pyarrow.parquet.read_table("a/embeddings.parquet").to_pylist()
    assert {x["split"] for x in table} == {"train", "labelled"}
    assert {x["label"] for x in table[5:]} == {"dark", "light"}


def test_report_of_an_encoder_without_a_run(run_dir, data, tmp_path, capsys):
    model = runs.load_model(run_dir)
    path = tmp_path / "mine.keras"
    model.encoder.save(path)
    arguments = [
        "report",
        f"--encoder={path}",
        f"--output_dir={tmp_path / 'a'}",
    ]
    assert cli.main(arguments) == 1
    assert "`data` must be given" in capsys.readouterr().err
    assert cli.main([*arguments, data]) == 0
    text = (tmp_path / "a" / "report.html").read_text()
    assert "<h1>mine.keras</h1>" in text
    assert 'id="curves"' not in text


def test_pretrain_reports_in_the_end(data, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = [*PRETRAIN, data, f"--output_dir={run}", "--report"]
    assert cli.main(arguments) == 0
    page = run / "report" / "report.html"
    assert "1 epoch, 2 steps" in page.read_text()
    assert "--report" not in (run / "flags.txt").read_text()
    before = page.read_bytes()
    assert cli.main([*arguments, "--more_epochs=1"]) == 1
    assert f"{str(run / 'report')!r}" in capsys.readouterr().err
    assert page.read_bytes() == before
    assert runs.read_summary(run)["epochs_trained"] == 1


def test_data_of_a_run_that_are_gone_are_named(data, tmp_path, capsys):
    moved = tmp_path / "moved.npz"
    shutil.copy(data.removeprefix("--data="), moved)
    run = tmp_path / "run"
    assert cli.main([*PRETRAIN, f"--data={moved}", f"--output_dir={run}"]) == 0
    moved.unlink()
    for command in (
        ["report", f"--output_dir={tmp_path / 'out'}"],
        ["search", f"--query={__file__}"],
    ):
        assert cli.main([*command, f"--run_dir={run}"]) == 1
        assert f"{str(moved)!r}" in capsys.readouterr().err


def test_search_finds_the_image_itself_first(run_dir, tmp_path, capsys):
    files = {f"{n}.png": encoded(picture(n, 16, 12), "PNG") for n in range(9)}
    photos = write(tmp_path / "photos", files)
    arguments = ["search", f"--run_dir={run_dir}", f"--data={photos}"]
    assert cli.main([*arguments, f"--query={photos / '4.png'}"]) == 0
    first, *rest = [
        line.split(" ")
        for line in capsys.readouterr().out.splitlines()
        if re.match(r"-?\d\.\d{4} ", line)
    ]
    assert first == ["1.0000", "4.png"]
    assert sorted(x for _, x in [first, *rest]) == sorted(files)
    similarities = [float(x) for x, _ in rest]
    assert similarities == sorted(similarities, reverse=True)
    few = [*arguments, f"--query={photos / '4.png'}", "--count=2"]
    assert cli.main(few) == 0
    assert len(re.findall(r"\.png\n", capsys.readouterr().out)) == 2
    assert cli.main([*arguments, f"--query={__file__}"]) == 1
    assert "`query` must be an image file" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["embed", "predict", "scan"])
def test_table_does_not_overwrite_what_came_meanwhile(
    command, grey_run, classifier, tmp_path, monkeypatch, capsys
):
    paint(tmp_path / "photos", {"k\udcfft": 20}, copies=2)
    out, module, function, name = {
        "embed": ("e", embedding, "write_embeddings", "embeddings.npz"),
        "predict": (
            "p",
            classification,
            "write_predictions",
            "predictions.csv",
        ),
        "scan": ("s", scanning, "scan", "manifest.parquet"),
    }[command]
    out, write = tmp_path / out, getattr(module, function)
    out.mkdir()

    def slowly(*args, **kwargs):
        (out / name).write_text("mine")
        return write(*args, **kwargs)

    monkeypatch.setattr(module, function, slowly)
    arguments = [command, f"--data={tmp_path / 'photos'}"]
    if command == "predict":
        arguments.append(f"--model={classifier}")
    elif command == "embed":
        arguments.append(f"--run_dir={grey_run}")
    assert cli.main([*arguments, f"--output_dir={out}"]) == 1
    assert (out / name).read_text() == "mine"
    assert "has appeared meanwhile" in capsys.readouterr().err
    (kept,) = out.glob(".staged-*")
    assert (kept / name).stat().st_size > 4


def test_export_writes_formats_and_a_card_of_the_run(run_dir, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [f"--run_dir={run_dir}", f"--output_dir={out}"]
    assert cli.main(["export", *arguments]) == 0
    names = ["README.md", "encoder.keras", "model_card.json", "saved_model"]
    assert sorted(path.name for path in out.iterdir()) == names
    text = f"{out} holds README.md, encoder.keras, model_card.json, saved_model"
    assert f"{text}.\n" in capsys.readouterr().out
    card = json.loads((out / "model_card.json").read_text())
    assert card["recipe"]["depth"] == "10"
    assert "output_dir" not in card["recipe"]
    assert card["steps_trained"] == 2
    assert set(card["round_trip"]["max_difference"]) == {"keras", "saved_model"}


def test_export_needs_known_formats_and_their_packages(
    run_dir, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    out = tmp_path / "out"
    arguments = [f"--run_dir={run_dir}", f"--output_dir={out}"]
    assert cli.main(["export", *arguments, "--formats=keras,onnx"]) == 1
    assert capsys.readouterr().err == (
        "keras-simclr: export: The format 'onnx' needs `onnxruntime`. Install "
        "it with: pip install 'keras_simclr[onnx]'\n"
    )
    assert cli.main(["export", *arguments, "--formats=tflite"]) == 2
    assert "`formats` must be one of" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.fault(50)
def test_interrupted_run_says_what_it_kept(data, tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(logs.Log, "on_epoch_end", interrupted)
    monkeypatch.setattr(devices, "fastest_precision", lambda: "mixed_bfloat16")
    out = tmp_path / "run"
    arguments = [*PRETRAIN, data, f"--output_dir={out}", "--epochs=3"]
    assert cli.main([*arguments, "--precision=auto"]) == 130
    assert "--precision=mixed_bfloat16\n" in (out / "flags.txt").read_text()
    text = capsys.readouterr().out
    assert f"{out} keeps the model after step 2.\n" in text
    assert "Interrupted after 0 of 3 epochs. The same command goes on" in text
    assert int(runs.load_model(out).optimizer.iterations) == 2
    # The same command goes on, with what it chose then.
    monkeypatch.undo()
    monkeypatch.setattr(devices, "fastest_precision", lambda: "float32")
    assert cli.main([*arguments, "--precision=auto"]) == 0
    assert "--precision=mixed_bfloat16\n" in (out / "flags.txt").read_text()
    assert json.loads((out / "summary.json").read_text())["finished"]


@pytest.mark.fault(50)
@pytest.mark.parametrize(
    ("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)]
)
@pytest.mark.parametrize(
    ("module", "function"),
    [(runs, "load_model"), (embedding, "write_embeddings")],
)
def test_signals_end_a_command_and_nothing_is_left(
    name, code, module, function, grey_run, tmp_path, monkeypatch, capsys
):
    number, act = getattr(signal, name), getattr(module, function)
    before = signal.getsignal(number)

    def stopped(*args, **kwargs):
        result = act(*args, **kwargs)
        signal.raise_signal(number)
        return result

    monkeypatch.setattr(module, function, stopped)
    paint(tmp_path / "photos", {"cat": 20}, copies=2)
    arguments = [f"--run_dir={grey_run}", f"--data={tmp_path / 'photos'}"]
    out = f"--output_dir={tmp_path / 'out'}"
    assert cli.main(["embed", *arguments, out]) == code
    assert capsys.readouterr().err == "keras-simclr: embed: interrupted\n"
    assert [x.name for x in tmp_path.iterdir()] == ["photos"]
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(
    ("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)]
)
@pytest.mark.fault(50)
def test_training_ends_after_the_step_and_goes_on(
    name, code, data, tmp_path, monkeypatch, capsys
):
    number, told = getattr(signal, name), itertools.count(1)

    def asked(*_, **__):
        if next(told) == 3:  # The first step of the second epoch.
            signal.raise_signal(number)

    monkeypatch.setattr(logs.Pace, "on_train_batch_begin", asked)
    out = tmp_path / "run"
    arguments = [*PRETRAIN, data, f"--output_dir={out}", "--epochs=3"]
    assert cli.main(arguments) == code
    assert capsys.readouterr().out.endswith(
        f"{out} keeps the model after step 3.\n"
        "Interrupted after 1 of 3 epochs. The same command goes on from the "
        "last checkpoint.\n"
    )
    assert (out / "epoch-000001-step-000001.weights.h5").is_file()
    assert cli.main(arguments) == 0
    assert json.loads((out / "summary.json").read_text())["finished"]


def test_signals_that_are_ignored_stay_so(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr(
            commands, "_demo", lambda values: signal.raise_signal(signal.SIGHUP)
        )
        assert cli.main(["demo", "--output_dir=out"]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.fault(50)
def test_signal_that_ends_a_training_in_order_is_told(monkeypatch):
    def train(values):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        return 130

    monkeypatch.setattr(commands, "_demo", train)
    assert cli.main(["demo", "--output_dir=out"]) == 143


@pytest.mark.parametrize("place", [(runs, "load_model"), (cli, "_module")])
def test_interruption_that_a_library_turns_into_an_error_is_one(
    place, export, monkeypatch, capsys
):
    def load(_):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("could not import datetime") from None

    monkeypatch.setattr(*place, load)
    assert cli.main(export) == 130
    assert capsys.readouterr().err == "keras-simclr: export: interrupted\n"


def shown(is_terminal, monkeypatch, capsys, *tells):
    """What progress shows that is told, every second, what is done."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    seconds = itertools.count()
    monkeypatch.setattr(_terminal.time, "monotonic", lambda: next(seconds))
    show = _terminal.progress("file")
    for tell in tells:
        show(*tell)
    return capsys.readouterr().out


def test_progress_is_a_line_every_30_seconds(monkeypatch, capsys):
    tells = [(x, 100) for x in range(1, 101)]
    tells += [(x, None) for x in range(1, 40)]
    assert shown(False, monkeypatch, capsys, *tells).splitlines() == [
        "31 of 100 files, 0:01:09 left.",
        "61 of 100 files, 0:00:39 left.",
        "91 of 100 files, 0:00:09 left.",
        "31 files.",
    ]


def test_progress_is_a_bar_on_terminals(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    tells = [(0, 4), (1, 4, "loss 1.5", True), (3, 4), (4, 4), (9, None)]
    assert shown(True, monkeypatch, capsys, *tells) == (
        "\r[                    ] 0 of 4 files\x1b[K"
        "\r[=====               ] 1 of 4 files, 0:00:03 left; loss 1.5\x1b[K\n"
        "\r[===============     ] 3 of 4 files, 0:00:01 left\x1b[K"
        "\r[====================] 4 of 4 files\x1b[K\n"
        "\r9 files\x1b[K"
    )
    line = shown(True, monkeypatch, capsys, (1, 2, "much " * 20))
    assert len(line) == len("\r\x1b[K") + 59


@pytest.mark.parametrize(
    ("command", "table"),
    [("embed", "npz"), ("embed", "csv"), ("embed", "parquet"), ("predict", "")],
)
def test_no_readable_image_makes_no_table(
    command, table, grey_run, classifier, tmp_path, capsys
):
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.jpg"):
        (tmp_path / "photos" / name).write_text("<html>404</html>")
    out = tmp_path / "out"
    arguments = [command, f"--data={tmp_path / 'photos'}"]
    arguments += ["--unreadable_limit=1", f"--output_dir={out}"]
    if command == "embed":
        arguments += [f"--run_dir={grey_run}", f"--format={table}"]
    else:
        arguments += [f"--model={classifier}"]
    assert cli.main(arguments) == 1
    text = capsys.readouterr().err
    assert f"{command}: `data` must hold an image that can be read" in text
    assert "a.png (not an image" in text
    assert not out.exists()


def test_chosen_micro_batch_and_strategy_are_used(
    data, tmp_path, monkeypatch, capsys
):
    def largest(step, batch_size):
        assert batch_size == 8  # Of each replica.
        assert len(step(4)) > 0
        return 4

    def pretrain(model, *_, flags, **__):
        assert model.micro_batch_size == 4
        assert model.distribute_strategy.num_replicas_in_sync == 2
        assert model.encoder.layers[1].compute_dtype == "bfloat16"
        assert "--micro_batch_size=4\n" in flags
        return 1

    monkeypatch.setattr(micro_batches, "largest_micro_batch", largest)
    monkeypatch.setitem(devices._STRATEGIES, "mirrored", lambda: mirrored(2))
    monkeypatch.setattr(runs, "pretrain", pretrain)
    arguments = ["--micro_batch_size=auto", "--strategy=mirrored"]
    arguments += ["--precision=mixed_bfloat16"]
    arguments += [data, f"--output_dir={tmp_path / 'run'}"]
    with standins.uncompiled():
        assert cli.main([*PRETRAIN, *arguments]) == 0
    text = capsys.readouterr().out
    assert "Devices: 4 x CPU found; training on 2.\n" in text
    assert "Chosen for this machine: --micro_batch_size=4.\n" in text


def test_more_epochs_are_for_a_run_that_is_finished(
    data, tmp_path, monkeypatch, capsys
):
    def carry_out(*_, more_epochs, **__):
        assert more_epochs == 2
        model = standins.model()
        model.compile()
        return runs.Run(model, None, 3, 3)

    monkeypatch.setattr(runs, "carry_out", carry_out)
    for name in ("flags.txt", "start.keras"):
        (tmp_path / name).touch()
    (tmp_path / "summary.json").write_text('{"finished": true}')
    arguments = ["pretrain", data, f"--output_dir={tmp_path}"]
    arguments += ["--start_from=gone"]  # The run has it.
    assert cli.main([*arguments, "--more_epochs=2"]) == 0
    assert cli.main(arguments) == 1
    assert "whose run is finished" in capsys.readouterr().err
    (tmp_path / "start.keras").unlink()
    assert cli.main([*arguments, "--more_epochs=2"]) == 1
    assert "`start_from` must be an existing" in capsys.readouterr().err


def test_micro_batches_are_of_a_number(data, tmp_path, capsys):
    arguments = ["--micro_batch_size=few", f"--output_dir={tmp_path / 'run'}"]
    assert cli.main([*PRETRAIN, data, *arguments]) == 2
    assert capsys.readouterr().err == (
        "keras-simclr: pretrain: `micro_batch_size` must be a positive integer "
        "or auto. Received: micro_batch_size='few'\n"
    )


def test_workers_must_not_choose_by_themselves(
    data, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(replicas, "has_workers", lambda strategy: True)
    arguments = [*PRETRAIN, data, f"--output_dir={tmp_path / 'run'}"]
    assert cli.main([*arguments, "--precision=auto"]) == 1
    assert capsys.readouterr().err == (
        "keras-simclr: pretrain: `precision` must be the same for all workers. "
        "Received: precision='auto'. Run one worker alone to see what it "
        "chooses\n"
    )


@pytest.mark.fault(63)
def test_multi_worker_needs_its_machines(data, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    arguments = [*PRETRAIN, data, f"--output_dir={tmp_path / 'run'}"]
    assert cli.main([*arguments, "--strategy=multi_worker"]) == 1
    assert capsys.readouterr().err == (
        "keras-simclr: pretrain: `strategy` multi_worker needs the environment "
        "variable TF_CONFIG, which names all workers and this one. It is not "
        "set.\n"
    )


def test_module_and_script_are_the_same(monkeypatch):
    import runpy

    monkeypatch.setattr(sys, "argv", ["keras_simclr", "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("keras_simclr", run_name="__main__")
    assert stop.value.code == 0


def test_a_folder_goes_from_scan_to_a_table(tmp_path, capsys):
    photos, run, scan = (tmp_path / name for name in ("photos", "run", "scan"))
    rng = np.random.default_rng(0)
    for number in range(24):
        path = photos / ("dog", "cat")[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (9 + number, 20, 3), "uint8")
        keras.utils.save_img(path, pixels, scale=False)
    (photos / "cat" / "empty.png").write_bytes(b"")
    data = f"--data={photos}"
    assert cli.main(["scan", data, f"--output_dir={scan}"]) == 0
    known = [data, f"--manifest={scan / 'manifest.parquet'}"]
    options = ["--image_size=8", "--batch_size=8", "--split=train"]
    arguments = [*PRETRAIN, *known, *options, f"--output_dir={run}"]
    assert cli.main(arguments) == 0
    run = f"--run_dir={run}"
    options = ["--split=train[:60%]", "--test_split=train[60%:]"]
    options += ["--labels=all", "--probes=linear"]
    assert cli.main(["evaluate", run, *known, *options]) == 0
    # Labelled images make a classifier, which puts all images into classes.
    classifier, out = tmp_path / "classifier", tmp_path / "classes"
    output = f"--output_dir={classifier}"
    assert cli.main(["finetune", run, *known, output]) == 0
    text = capsys.readouterr().out
    options = [f"--model={run.removeprefix('--run_dir=')}", data]
    options.append(f"--output_dir={out}")
    assert cli.main(["predict", *options]) == 1
    assert "`model` must be a directory with " in capsys.readouterr().err
    # The advice can be followed: nothing is in the way of another try.
    options[0] = f"--model={classifier}"
    assert cli.main(["predict", *options, "--unreadable_limit=0"]) == 1
    assert "`unreadable_limit`" in capsys.readouterr().err
    assert cli.main(["predict", *options, "--unreadable_limit=0.1"]) == 0
    with (out / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    images = [f"{x.parent.name}/{x.name}" for x in photos.rglob("[0-9]*")]
    assert [row["path"] for row in rows] == sorted(images)
    assert {row["class"] for row in rows} <= {"cat", "dog"}
    assert all(0.5 <= float(row["probability"]) <= 1.0 for row in rows)
    skipped = (out / "skipped.csv").read_text()
    assert skipped == "path,reason\ncat/empty.png,empty\n"
    # Without the manifest, the file that cannot be read is met on the way.
    options = [data, "--unreadable_limit=0.1", "--format=csv"]
    out = tmp_path / "out"
    assert cli.main(["embed", run, *options, f"--output_dir={out}"]) == 0
    lines = (out / "embeddings.csv").read_text().splitlines()
    paths = [line.split(",")[0] for line in lines[1:]]
    assert paths == sorted(images)
    skipped = (out / "skipped.csv").read_text()
    assert skipped == "path,reason\ncat/empty.png,empty\n"
    text += capsys.readouterr().out
    assert "24 images usable, 1 file left out, 0 other files." in text
    assert "simclr, linear" in text
    assert "with a cross-validated accuracy of " in text
    assert f"{out / 'embeddings.csv'} holds 24 representations." in text


def test_files_of_all_kinds_are_seen_as_the_encoder_was_trained(
    tmp_path, capsys
):
    """In one channel and 16 bits, which no later command has to be told."""
    photos, run = tmp_path / "photos", tmp_path / "run"
    values = np.random.default_rng(0).integers(0, 4096, (8, 9, 8, 3), "uint16")
    for number, value in enumerate(values):
        names = ("a.tif", "b.png", "c.avif", "d.tiff", "e")
        image = picture(number, 9, 8)
        files = (
            tiff(value),
            encoded(Image.fromarray(value[..., 0]), "PNG"),
            encoded(image, "AVIF"),
            encoded(image, "TIFF"),
            encoded(image, "JPEG"),
        )
        label = ("cat", "dog")[number % 2]
        for name, data in zip(names, files, strict=True):
            write(photos, {f"{label}/{number}{name}": data})
    data = f"--data={photos}"
    options = ["--channels=1", "--bits=16", "--split=train", "--image_size=8"]
    arguments = [*PRETRAIN, data, *options, f"--output_dir={run}"]
    assert cli.main(arguments) == 0
    run = f"--run_dir={run}"
    options = [data, "--labels=all", "--probes=linear", "--draws=2"]
    assert cli.main(["evaluate", run, *options]) == 0
    outputs = [tmp_path / name for name in ("model", "out", "table", "export")]
    model, out, table, export = (f"--output_dir={x}" for x in outputs)
    assert cli.main(["finetune", run, data, model]) == 0
    assert cli.main(["predict", f"--model={outputs[0]}", data, out]) == 0
    assert cli.main(["embed", run, data, table]) == 0
    assert cli.main(["export", run, "--formats=saved_model", export]) == 0
    lines = (outputs[1] / "predictions.csv").read_text().splitlines()
    assert len(lines) == 41
    arrays = np.load(outputs[2] / "embeddings.npz")
    for directory in (outputs[0], outputs[3]):
        module = tf.saved_model.load(directory / "saved_model")
        encode = module.signatures["encoded_images"]
        names = ["cat/0b.png", "dog/1e"]
        files = tf.constant([(photos / name).read_bytes() for name in names])
        found = encode(image_bytes=files)["default"]
        if directory == outputs[3]:
            places = [list(arrays["paths"]).index(name) for name in names]
            expected = arrays["representations"][places]
            np.testing.assert_allclose(found, expected, atol=1e-5)
    capsys.readouterr()
    assert cli.main(["embed", run, data, "--channels=3", f"{table}2"]) == 1
    assert "Received: channels=3, where it saw 1" in capsys.readouterr().err


def test_help_shows_both_defaults_where_they_differ(capsys):
    assert cli.main(["pretrain", "--help"]) == 0
    text = capsys.readouterr().out
    assert "(default 0.2; of NTXent itself 0.1)\n" in text
    assert "(default 0.02; of LARS itself 0.001)\n" in text
    assert "(default 0.2; of SimCLRAugmentation itself 0.08)\n" in text


def faulty(kind):
    """A command with a fault of that kind in it."""

    def run(*_, **__):
        if kind is TypeError:
            return 1 + None
        if kind is KeyError:
            return {}["a key"]
        if kind is AttributeError:
            return None.attribute
        return int("ten")  # ValueError, raised by Python.

    return run


@pytest.fixture
def export(tmp_path):
    """Arguments of an export that comes to loading the model."""
    (tmp_path / "model.keras").write_text("")
    return [
        "export",
        f"--run_dir={tmp_path}",
        f"--output_dir={tmp_path / 'out'}",
    ]


@pytest.mark.parametrize(
    "kind", [TypeError, KeyError, AttributeError, ValueError]
)
def test_fault_of_the_program_keeps_its_traceback(
    kind, export, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(runs, "load_model", faulty(kind))
    assert cli.main(export) == 1
    (log,) = tmp_path.glob("keras-simclr-*.log")
    assert capsys.readouterr().err == (
        "keras-simclr: export: that should not happen. Please report it, with "
        f"{log}\n"
    )
    first, *others = log.read_text().splitlines()
    assert first.startswith(f"keras-simclr {simclr.__version__}, Python 3.")
    assert others[: len(export)] == export
    assert "Traceback (most recent call last):" in others
    assert others[-1].startswith(f"{kind.__name__}: ")


def test_fault_is_shown_if_it_cannot_be_kept(export, monkeypatch, capsys):
    monkeypatch.setattr(runs, "load_model", faulty(TypeError))
    monkeypatch.setattr(tempfile, "mkstemp", full_disk)
    assert cli.main(export) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == (
        "keras-simclr: export: that should not happen. Please report it, with "
        "the lines above"
    )


@pytest.mark.parametrize("kind", [TypeError, ValueError, OSError, MemoryError])
def test_what_a_check_raises_is_one_line(kind, export, monkeypatch, capsys):
    # Of the package, as its checks are.
    names = {"__name__": "keras_simclr.checks", "kind": kind}
    exec("def check(*_):\n    raise kind('`a` must be b')", names)
    monkeypatch.setattr(runs, "load_model", names["check"])
    assert cli.main(export) == 1
    assert capsys.readouterr().err == "keras-simclr: export: `a` must be b\n"


@pytest.fixture
def evaluation(run_dir, data, tmp_path):
    """Arguments of a short evaluation, and the copy of a run it is for."""
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    options = ["--labels=all", "--probes=knn", "--draws=2"]
    return ["evaluate", f"--run_dir={copy}", data, *options], copy


@pytest.mark.parametrize("given", [True, False])
def test_what_is_not_given_is_as_thorough_says(evaluation, monkeypatch, given):
    arguments, run_dir = evaluation
    seen = {}

    def noting(*_, **options):
        seen.update(options)
        return types.SimpleNamespace(summary={"evaluation": {}})

    monkeypatch.setattr(evaluating, "evaluate", noting)
    more = ["--labels=5,10%", "--probes=finetune"] * given
    assert cli.main([*arguments[:3], "--thorough", *more]) == 0
    chosen = ([5, "10%"], ["finetune"]) if given else (None, None)
    assert (seen["labels"], seen["probes"]) == chosen
    assert seen["thorough"] is True
    assert seen["features_dir"] == run_dir / "features"


def rows_of(run_dir):
    summary = json.loads((run_dir / "summary.json").read_text())
    return summary.get("rows")


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_table_is_printed_if_it_cannot_be_stored(
    evaluation, monkeypatch, capsys
):
    arguments, run_dir = evaluation
    (run_dir / "summary.json").write_text("{}")
    monkeypatch.setattr(runs, "update_summary", full_disk)
    assert cli.main(arguments) == 1
    text = capsys.readouterr()
    assert "simclr, knn" in text.out
    assert text.err.endswith("evaluate: [Errno 28] No space left on device\n")


class Broken(io.TextIOBase):
    """A terminal that is gone, at the first word or at the end."""

    encoding = "utf-8"

    def __init__(self, error, *methods):
        for method in methods:
            setattr(self, method, self._fail)
        self.error = error

    def write(self, text):
        return len(text)

    def _fail(self, *_):
        raise self.error


@pytest.mark.parametrize(
    "stream",
    [
        Broken(BrokenPipeError(errno.EPIPE, "Broken pipe"), "write", "flush"),
        Broken(OSError(errno.ENOSPC, "No space left on device"), "flush"),
        Broken(ValueError("I/O operation on closed file"), "write"),
    ],
    ids=lambda stream: str(stream.error),
)
def test_table_is_stored_if_it_cannot_be_printed(
    stream, evaluation, monkeypatch, capsys
):
    arguments, run_dir = evaluation
    (run_dir / "summary.json").write_text("{}")
    monkeypatch.setattr(sys, "stdout", stream)
    assert cli.main(arguments) == 1
    assert rows_of(run_dir)
    assert capsys.readouterr().err.endswith(
        f"keras-simclr: not all could be printed: {stream.error}\n"
    )


def test_terminals_that_know_little_are_shown_what_they_can(
    evaluation, monkeypatch
):
    arguments, run_dir = evaluation
    (run_dir / "summary.json").write_text("{}")
    shown = io.BytesIO()
    stream = io.TextIOWrapper(shown, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(evaluating.Evaluation, "verdict", "worth it: ± 1")
    assert cli.main(arguments) == 0
    assert b"simclr, knn" in shown.getvalue()
    assert b"\\xb1" in shown.getvalue()  # The plus or minus.
    assert rows_of(run_dir)


def test_no_terminal_at_all_is_no_fault(evaluation, monkeypatch):
    arguments, run_dir = evaluation
    (run_dir / "summary.json").write_text("{}")
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(arguments) == 0
    assert rows_of(run_dir)


def test_broken_summary_is_refused_before_the_work(evaluation, capsys):
    arguments, run_dir = evaluation
    (run_dir / "summary.json").write_text('{"half": ')
    assert cli.main(arguments) == 1
    text = capsys.readouterr()
    assert "evaluate: summary.json must be the JSON object that" in text.err
    assert text.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo"],
        ["scan", "--data=."],
        ["pretrain", "--data=."],
        ["finetune", "--run_dir=.", "--data=."],
        ["predict", "--model=.", "--data=."],
        ["embed", "--run_dir=.", "--data=."],
        ["export", "--run_dir=."],
        ["report", "--run_dir=.", "--data=."],
        ["import-official", "--path=."],
    ],
    ids=lambda arguments: arguments[0],
)
def test_every_command_tries_its_output_before_the_work(
    arguments, tmp_path, monkeypatch, capsys
):
    there = tmp_path / "there"
    there.mkdir()
    for name in ("model.keras", "class_names.json"):
        (there / name).write_text("")
    monkeypatch.chdir(there)
    monkeypatch.setattr(tempfile, "mkdtemp", full_disk)
    out = tmp_path / "a" / "out"
    assert cli.main([*arguments, f"--output_dir={out}"]) == 1
    assert capsys.readouterr().err.endswith(
        f"{arguments[0]}: --output_dir: The output directory must be one that "
        f"can be written. Received: {str(out)!r} (No space left on device). "
        "Choose another, or see that it is mounted for writing, yours, and has "
        "room\n"
    )
    assert list(tmp_path.iterdir()) == [there]


def test_evaluate_tries_its_output_before_the_work(
    evaluation, monkeypatch, capsys
):
    arguments, _ = evaluation
    monkeypatch.setattr(tempfile, "mkdtemp", full_disk)
    monkeypatch.setattr(evaluating, "evaluate", None)  # Not come to that.
    assert cli.main(arguments) == 1
    assert "must be one that can be written" in capsys.readouterr().err


def test_accuracy_is_printed_if_the_classifier_cannot_be_written(
    run_dir, data, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(classification, "write_network", full_disk)
    arguments = [f"--run_dir={run_dir}", data, f"--output_dir={tmp_path / 'c'}"]
    assert cli.main(["finetune", *arguments]) == 1
    assert "with a cross-validated accuracy of" in capsys.readouterr().out


def spoil(path):
    """Makes a weight of a saved model NaN."""
    model = keras.models.load_model(path)
    network = getattr(model, "encoder", model)
    weight = network.weights[0]
    weight.assign(np.full(weight.shape, np.nan))
    model.save(path)


@pytest.mark.parametrize("command", ["evaluate", "finetune", "embed", "export"])
def test_weights_that_are_not_finite_are_said_to_be_so(
    command, run_dir, data, tmp_path, capsys
):
    copy, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(run_dir, copy)
    spoil(copy / "model.keras")
    arguments = [command, f"--run_dir={copy}"]
    arguments += [data] * (command != "export")
    arguments += [f"--output_dir={out}"] * (command != "evaluate")
    assert cli.main(arguments) == 1
    text = capsys.readouterr().err
    assert f"{command}: Weights must be finite. Received: NaN in `" in text
    assert not out.exists()


def test_other_encoders_that_are_not_finite_are_said_to_be_so(
    evaluation, tmp_path, capsys
):
    arguments, run_dir = evaluation
    out = tmp_path / "out"
    run = f"--run_dir={run_dir}"
    assert cli.main(["export", run, f"--output_dir={out}"]) == 0
    spoil(out / "encoder.keras")
    encoder = f"--encoders={out / 'encoder.keras'}"
    assert cli.main([*arguments, encoder]) == 1
    assert "Weights must be finite. Received: NaN" in capsys.readouterr().err


def test_images_and_steps_are_told_first(data, tmp_path, capsys):
    arguments = [*PRETRAIN, data, f"--output_dir={tmp_path / 'run'}"]
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    found = text.index(
        ". An epoch: 32 images, 4 views of each, without their labels."
    )
    assert found < text.index("keeps the model after")
    assert "Epochs: 1. Steps: 2 an epoch, 2 in all: too few." in text
    assert "Cure: --epochs=400, or no --epochs." in text


def test_changed_data_is_accepted_on_demand(tmp_path, monkeypatch, capsys):
    path, out = tmp_path / "images.npz", tmp_path / "run"
    arguments = ["pretrain", f"--data={path}", f"--output_dir={out}"]
    arguments += ["--epochs=2", "--batch_size=8", "--precision=float32"]

    def ctrl_c(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt

    for count, options, code in (
        (16, [], 130),
        (24, [], 1),
        (24, ["--accept_changed_data"], 0),
    ):
        np.savez(path, images=np.full((count, 8, 8, 1), count, "uint8"))
        with monkeypatch.context() as patch:
            if code == 130:
                patch.setattr(logs.Log, "on_epoch_begin", ctrl_c)
            assert cli.main([*arguments, *options]) == code
    assert "goes on with the data that it began" in capsys.readouterr().err
    summary = json.loads((out / "summary.json").read_text())
    assert summary["earlier_data"][0]["images_per_epoch"] == 16
    assert "accept_changed_data" not in (out / "flags.txt").read_text()


def test_version_and_help_of_a_command(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"keras-simclr {simclr.__version__}\n"
    texts = []
    for arguments in (["help", "scan"], ["scan", "--help"], ["-h", "scan"]):
        assert cli.main(arguments) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0].startswith("usage: keras-simclr scan ")
    assert texts[0] == texts[1] == texts[2]
    assert cli.main(["help", "scam"]) == 2
    assert "Did you mean scan?" in capsys.readouterr().err


def test_home_is_found(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = ["scan", "--data=~/photos", "--output_dir=~/scan"]
    assert cli.main(arguments) == 1
    assert f"data={str(tmp_path / 'photos')!r}" in capsys.readouterr().err


BARE = """
import sys, time

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise OSError("There is no network.")

sys.addaudithook(refuse)
clock = iter(range(2**31, 0, -(2**20)))
time.time = lambda: float(next(clock))  # A year back every half a minute.
import keras_simclr_cli
sys.exit(keras_simclr_cli.main())
"""


@pytest.mark.fault(64)
def test_no_home_no_network_no_letters_and_no_clock_are_needed(tmp_path):
    """Under the locale C names are ASCII, and other bytes are kept."""
    photos, run = tmp_path / "fotos ü", tmp_path / "läufe" / "日本"
    paint(photos, {"é": 20, "ß": 90}, copies=4)
    kept = {k: os.environ[k] for k in ("PATH", "PYTHONPATH") if k in os.environ}
    found = subprocess.run(
        [
            *(sys.executable, "-c", BARE, "pretrain", "--epochs=2"),
            *(f"--data={photos}", f"--output_dir={run}", "--batch_size=4"),
            *("--precision=float32", "--width_multiplier=0.1"),
        ],
        capture_output=True,
        cwd=pathlib.Path(cli.__file__).parent,
        env={
            **kept,
            "LC_ALL": "C",
            "PYTHONUTF8": "0",
            "PYTHONCOERCECLOCALE": "0",
        },
    )
    assert found.returncode == 0, found.stderr
    assert json.loads((run / "summary.json").read_text())["finished"]
    assert b"8 images of 2 classes" in found.stdout
    with (run / "log.csv").open(newline="") as file:
        assert all(float(row["seconds"]) > 0 for row in csv.DictReader(file))


def test_nothing_stands_between_the_user_and_the_result(tmp_path):
    environment = {k: v for k, v in os.environ.items() if "LOG_LEVEL" not in k}
    found = subprocess.run(
        [
            sys.executable,
            *("-c", "import keras_simclr_cli as x, sys; sys.exit(x.main())"),
            *("scan", "--data=nowhere"),
            f"--output_dir={tmp_path}",
        ],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert found.stdout == ""
    assert found.stderr.startswith("keras-simclr: scan: `data` must be an")
    assert found.stderr.count("\n") == 1
