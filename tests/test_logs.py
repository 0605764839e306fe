import csv
import importlib.util

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import standins

import keras_simclr as simclr
from keras_simclr import callbacks, logs, optimizers, runs

pytestmark = pytest.mark.usefixtures("eagerly")
IMAGES = np.random.default_rng(0).random((8, 8, 8, 1), "float32")


def tiny_model():
    rate = optimizers.warmup_cosine(0.1, 8)
    return standins.model_to_train(rate, run_eagerly=True)


def batches():
    return simclr.dataset_from_arrays(IMAGES, batch_size=4)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_log_has_the_time_the_pace_and_the_rate(tmp_path):
    runs.pretrain(tiny_model(), batches(), tmp_path / "run", epochs=4)
    schedule = optimizers.warmup_cosine(0.1, 8)
    rows = rows_of(tmp_path / "run" / "log.csv")
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2, 3]
    for epoch, row in enumerate(rows):
        seconds, pace = float(row["seconds"]), float(row["images_per_second"])
        assert seconds > 0
        assert seconds * pace == pytest.approx(8)
        right = float(schedule(2 * epoch + 1))  # Of its last step.
        assert float(row["learning_rate"]) == pytest.approx(right)


def test_run_goes_on_with_a_log_that_has_other_columns(tmp_path):
    log = tmp_path / "log.csv"
    old = "epoch,contrastive_accuracy,loss,val_loss\r\n0,0.5,2.5,NA\r\n"
    log.write_text(old + "1,0.5,2.25,NA\r\n", newline="")
    writer = logs.Log(log, first=1)
    writer.on_train_begin()
    assert log.read_bytes().decode() == old  # More had been logged.
    writer.on_epoch_end(1, {"loss": 2.0, "contrastive_accuracy": 1, "b": 3})
    assert log.read_bytes().decode() == (
        "epoch,contrastive_accuracy,loss,val_loss,b\r\n"
        "0,0.5,2.5,NA,\r\n"
        "1,1,2.0,,3\r\n"
    )


def test_log_of_a_new_run_replaces_none(tmp_path):
    writer = logs.Log(tmp_path / "log.csv")
    writer.on_train_begin()
    assert not (tmp_path / "log.csv").exists()


def test_progress_is_that_of_the_whole_run(tmp_path):
    told = []

    def progress(done, total, more, ends):
        told.append((done, total, ends, more.split(", ")[0]))
        assert "contrastive accuracy " in more

    model = tiny_model()
    runs.pretrain(
        model, batches(), tmp_path / "run", epochs=2, progress=progress
    )
    assert told == [
        (1, 4, False, "epoch 1 of 2"),
        (2, 4, True, "epoch 1 of 2"),
        (3, 4, False, "epoch 2 of 2"),
        (4, 4, True, "epoch 2 of 2"),
    ]


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_progress_of_unknown_length_is_told():
    told = []

    def generate():
        yield from np.split(IMAGES, 2)

    model = tiny_model()
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    pace = logs.Pace(lambda *done: told.append(done[:2]))
    model.fit(generate(), callbacks=[pace], verbose=0)
    assert told == [(1, None), (2, None)]


@pytest.mark.fault(65)
def test_tensorboard_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        logs.watching(tf.distribute.get_strategy(), True, True)


def test_views_are_shown_beside_their_images():
    model = tiny_model()
    grid = logs.views_grid(model, (IMAGES[:3], None), 5)
    assert grid.shape == (24, 24, 1)
    views = model.views(IMAGES[:3], step=5)
    np.testing.assert_array_equal(grid[8:16, :8], IMAGES[1])
    np.testing.assert_array_equal(grid[8:16, 8:16], views[0][1])
    np.testing.assert_array_equal(grid[16:, 16:], views[1][2])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_has_all_columns_and_the_views(tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed",
    )
    watch = logs.watching(tf.distribute.get_strategy(), True, True)
    watchers = watch(batches(), tmp_path / "run", lambda text: None)
    runs.pretrain(
        tiny_model(),
        batches(),
        tmp_path / "run",
        epochs=2,
        callbacks=watchers,
    )
    directory = tmp_path / "run" / "tensorboard"
    found = {}
    for name in ("train", "views"):
        events = accumulator.EventAccumulator(
            str(directory / name), size_guidance={"tensors": 0}
        )
        events.Reload()
        found |= {tag: events.Tensors(tag) for tag in events.Tags()["tensors"]}
    rows = rows_of(tmp_path / "run" / "log.csv")
    for name in rows[0].keys() - {"epoch", "learning_rate"}:
        values = [
            float(tf.make_ndarray(event.tensor_proto))
            for event in found[f"epoch_{name}"]
        ]
        right = [float(row[name]) for row in rows]
        np.testing.assert_allclose(values, right, rtol=1e-6)
    assert {event.step for event in found["views"]} == {0, 1}
    picture = tf.io.decode_png(
        tf.make_ndarray(found["views"][0].tensor_proto)[2]
    )
    assert picture.shape == (8 * 8, 3 * 8, 1)


@pytest.mark.usefixtures("in_graphs")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_of_keras_works_in_fit(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    model = tiny_model()
    model.fit(
        IMAGES,
        batch_size=4,
        epochs=2,
        verbose=0,
        callbacks=[
            callbacks.Measures(IMAGES),
            keras.callbacks.TensorBoard(
                str(tmp_path), histogram_freq=1, update_freq=1
            ),
        ],
    )
    assert list(tmp_path.glob("train/events*"))
