import itertools
import json
import shutil
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_simclr as simclr
from keras_simclr import demo, evaluation, logs, runs


def small_model(steps, seed):
    """Instead of a ResNet and the whole recipe, which take long to compile."""
    keras.utils.set_random_seed(seed)
    encoder = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(8),
            keras.layers.BatchNormalization(),
        ]
    )
    model = simclr.SimCLRModel(
        encoder, keras.layers.Dense(4), augmentation=simclr.RandomFlip()
    )
    model.compile(keras.optimizers.SGD(0.1))
    return model


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "demo"

    def quick(*args, seed, **_):
        return evaluation.evaluate(
            *args, probes=("linear", "knn"), labels=(10,), draws=2, seed=seed
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "evaluate", quick)
        patch.setattr(demo, "build_model", small_model)
        demo.run(path, epochs=1)
    return path


def test_demo_writes_all_it_promises(output_dir):
    assert sorted(path.name for path in output_dir.iterdir()) == [
        "checkpoints.json",
        "digits.npz",
        "encoder",
        "epoch-000001.weights.h5",
        "flags.txt",
        "log.csv",
        "loss.png",
        "model.keras",
        "report",
        "summary.json",
        "views.png",
    ]
    summary = json.loads((output_dir / "summary.json").read_text())
    assert summary["command"] == "demo"
    assert len(summary["rows"]) == 6
    page = (output_dir / "report" / "report.html").read_text()
    assert "1,797 images" in page
    assert "360 images that it was not trained on" in page
    for name in ("loss.png", "views.png"):
        assert (output_dir / name).read_bytes().startswith(b"\x89PNG")


def test_demo_replaces_a_demo(output_dir, tmp_path):
    earlier, place = tmp_path / "earlier", tmp_path / "place"
    for path in (earlier, tmp_path / "real"):
        shutil.copytree(output_dir, path)
    # What evaluating it adds is its own.
    runs.update_summary(earlier, {"evaluation": {"seed": 1}})
    (earlier / "features").mkdir()
    (earlier / "features" / f"{0:032x}.npz").write_text("kept")
    demo._clear(earlier)
    assert not earlier.exists()
    place.symlink_to(tmp_path / "real")
    demo._clear(place)
    assert list(place.iterdir()) == []


def test_demo_that_is_asked_to_end_does_and_goes_on(tmp_path, monkeypatch):
    told = itertools.count(1)

    def asked(*_, **__):
        if next(told) == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(demo, "build_model", small_model)
    monkeypatch.setattr(logs.Pace, "on_train_batch_begin", asked)
    with pytest.raises(KeyboardInterrupt):
        demo.run(tmp_path / "demo", epochs=1)
    within = tmp_path / "demo" / "epoch-000000-step-000003.weights.h5"
    assert within.is_file()

    def evaluate(model, *_, **__):
        assert int(model.optimizer.iterations) == 11
        raise ZeroDivisionError

    monkeypatch.setattr(demo, "evaluate", evaluate)
    with pytest.raises(ZeroDivisionError):
        demo.run(tmp_path / "demo", epochs=1)
    assert within.name in runs.read_summary(tmp_path / "demo")["written"]


@pytest.mark.parametrize(
    "foreign",
    [
        "notes.txt",
        "epoch-best.weights.h5",
        "encoder/notes.txt",
        "encoder/README.md",  # Changed.
        "digits.npz",
        "features/mine.npz",
    ],
)
def test_demo_leaves_what_it_did_not_write(foreign, output_dir, tmp_path):
    shutil.copytree(output_dir, tmp_path, dirs_exist_ok=True)
    (tmp_path / foreign).parent.mkdir(exist_ok=True)
    (tmp_path / foreign).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match="must be new, empty"):
        demo.run(tmp_path, epochs=1)
    assert (tmp_path / foreign).read_text() == "mine"
    assert sorted(tmp_path.rglob("*")) == before


def test_demo_does_not_call_its_own_what_came_meanwhile(output_dir, tmp_path):
    shutil.copytree(output_dir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "epoch-latest.weights.h5").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "encoder")
    demo._record(tmp_path)
    demo._clear(tmp_path)
    assert (tmp_path / "epoch-latest.weights.h5").read_text() == "mine"
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "model.keras").exists()


def test_demo_notices_an_export_that_disagrees(output_dir, monkeypatch):
    images = np.zeros((4, 8, 8, 1), "float32")

    def run_here(command, *, check, stderr):
        """`subprocess.run`, without the seconds that TensorFlow starts."""
        assert check
        _, _, code, *arguments = command
        monkeypatch.setattr(sys, "argv", ["-c", *arguments])
        monkeypatch.delitem(sys.modules, "keras_simclr")
        exec(code, {})

    class Other:
        def predict(self, images, verbose):
            return np.full((len(images), 8), 7.0)

    monkeypatch.setattr(subprocess, "run", run_here)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        demo._check_export(output_dir / "encoder/saved_model", images, Other())


def test_model_of_the_demo_trains():
    model = demo.build_model(10)
    (images, _), _ = demo.digits()
    tf.config.run_functions_eagerly(True)  # Compiling it takes long.
    try:
        loss, _ = model.train_on_batch(images[:4])
    finally:
        tf.config.run_functions_eagerly(False)
    assert np.isfinite(loss)
    assert model.optimizer.iterations.numpy() == 1


def test_digits_are_split_by_class_and_scaled():
    (images, labels), (test_images, test_labels) = demo.digits()
    assert images.min() == test_images.min() == 0.0
    assert images.max() == test_images.max() == 1.0
    assert np.bincount(labels).min() >= 139
    assert np.bincount(test_labels).min() >= 34
