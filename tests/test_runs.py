import json

import keras
import numpy as np
import pytest

import keras_simclr as simclr
from keras_simclr import runs


def tiny_model():
    keras.utils.set_random_seed(0)
    encoder = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    model = simclr.SimCLRModel(encoder, augmentation=simclr.RandomFlip())
    model.compile(keras.optimizers.SGD(0.1))
    return model


@pytest.fixture
def dataset():
    images = np.random.default_rng(0).random((8, 8, 8, 1), "float32")
    return simclr.dataset_from_arrays(images, batch_size=4)


def summary_of(run_dir):
    return json.loads((run_dir / "summary.json").read_text())


def test_run_directory_holds_all_that_a_run_was(tmp_path, dataset):
    model, run_dir = tiny_model(), tmp_path / "run"
    epochs = runs.pretrain(
        model, dataset, run_dir, epochs=2, flags="--a=1\n", summary={"b": 2}
    )
    assert epochs == 2
    assert sorted(path.name for path in run_dir.iterdir()) == [
        "flags.txt",
        "log.csv",
        "model.keras",
        "summary.json",
    ]
    assert (run_dir / "flags.txt").read_text() == "--a=1\n"
    lines = (run_dir / "log.csv").read_text().splitlines()
    assert lines[0].startswith("epoch,contrastive_accuracy,loss")
    assert len(lines) == 3
    assert summary_of(run_dir) == {
        "b": 2,
        "epochs_trained": 2,
        "steps_trained": 4,
    }
    loaded = runs.load_model(run_dir)
    for ours, theirs in zip(model.variables, loaded.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    assert int(loaded.optimizer.iterations) == 4


def test_interrupted_run_keeps_the_model_as_it_is_then(
    tmp_path, dataset, monkeypatch
):
    model, step = tiny_model(), simclr.SimCLRModel.train_step

    def interrupted(self, element):
        if int(self.optimizer.iterations) == 3:
            raise KeyboardInterrupt
        return step(self, element)

    monkeypatch.setattr(simclr.SimCLRModel, "train_step", interrupted)
    model.run_eagerly = True
    epochs = runs.pretrain(model, dataset, tmp_path / "run", epochs=5)
    assert epochs == 1
    assert summary_of(tmp_path / "run") == {
        "epochs_trained": 1,
        "steps_trained": 3,
    }
    loaded = runs.load_model(tmp_path / "run")
    assert int(loaded.optimizer.iterations) == 3


def test_run_never_overwrites(tmp_path, dataset):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="new or empty"):
        runs.pretrain(tiny_model(), dataset, tmp_path, epochs=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_failed_save_leaves_the_model_before_it(tmp_path, monkeypatch):
    model = tiny_model()
    runs.save_model(model, tmp_path)
    content = (tmp_path / "model.keras").read_bytes()

    def full_disk(path):
        path.write_text("half")
        raise OSError("No space left on device")

    monkeypatch.setattr(model, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        runs.save_model(model, tmp_path)
    assert (tmp_path / "model.keras").read_bytes() == content


def test_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        runs.load_model(tmp_path)
    assert str(error.value) == (
        "A run directory must hold model.keras, written by `pretrain`. "
        f"Received: {str(tmp_path)!r}"
    )


def test_summary_keeps_what_it_had(tmp_path):
    runs.update_summary(tmp_path, {"a": 1, "b": 2})
    runs.update_summary(tmp_path, {"b": 3})
    assert summary_of(tmp_path) == {"a": 1, "b": 3}
