import errno
import itertools
import json
import math
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from helpers import run_logs, standins
from helpers.replicas import mirrored

import keras_simclr as simclr
from keras_simclr import _files, callbacks, checkpoints, runs

pytestmark = pytest.mark.usefixtures("eagerly")
IMAGES, _ = standins.labelled_images()


def tiny_model(**arguments):
    keras.utils.set_random_seed(0)
    model = simclr.SimCLRModel(
        standins.encoder(keras.layers.BatchNormalization(), filters=4),
        keras.layers.Dense(4),
        augmentation=simclr.RandomResizedCrop(8, 8),
    )
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), **arguments)
    return model


def fit(model, *more, epochs=1, **arguments):
    model.fit(
        IMAGES,
        batch_size=8,
        epochs=epochs,
        verbose=0,
        callbacks=list(more),
        **arguments,
    )


def keep(run_dir, model=None, epochs=3, **arguments):
    model = model or tiny_model(run_eagerly=True)
    fit(model, callbacks.Checkpoints(run_dir), epochs=epochs, **arguments)
    return model


FOREIGN = [
    "epoch-best.weights.h5",
    "epoch-1.weights.h5",
    "epoch-000099.weights.h5",  # Later than all of this run.
    "epoch-000001.weights.h5.bak",
    "notes.txt",
]


@pytest.mark.fault(57)
def test_checkpoints_leave_what_they_did_not_write(tmp_path):
    for name in FOREIGN:
        (tmp_path / name).write_text(name)
    assert callbacks.restore(tiny_model(), tmp_path) == 0
    keep(tmp_path)
    # Also after a resumption, and what came between.
    (tmp_path / "epoch-000001.weights.h5").write_text("mine")
    resumed = tiny_model(run_eagerly=True)
    assert callbacks.restore(resumed, tmp_path) == 3
    keep(tmp_path, resumed, epochs=5, initial_epoch=3)
    for name in FOREIGN:
        assert (tmp_path / name).read_text() == name
    assert (tmp_path / "epoch-000001.weights.h5").read_text() == "mine"
    assert callbacks.restore(tiny_model(), tmp_path) == 5
    ours = ["epoch-000004.weights.h5", "epoch-000005.weights.h5"]
    ours += ["checkpoints.json", "model.keras", "epoch-000001.weights.h5"]
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == sorted([*FOREIGN, *ours])


@pytest.mark.parametrize("name", ["epoch-000002.weights.h5", "model.keras"])
@pytest.mark.fault(57)
def test_checkpoints_refuse_to_overwrite_before_they_train(name, tmp_path):
    (tmp_path / name).write_text("mine")
    model = tiny_model(run_eagerly=True)
    with pytest.raises(FileExistsError) as error:
        keep(tmp_path, model)
    assert str(error.value) == (
        "`run_dir` must hold nothing that would be overwritten. Received: "
        f"{str(tmp_path / name)!r}, which `Checkpoints` did not write there. "
        "Move it elsewhere"
    )
    assert int(model.optimizer.iterations) == 0
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"mine": 1}', '{"files": 3}'])
@pytest.mark.fault(57)
def test_record_of_somebody_else_is_left_alone(text, tmp_path):
    (tmp_path / "checkpoints.json").write_text(text)
    with pytest.raises(ValueError, match="must be what `Checkpoints` wrote"):
        keep(tmp_path)
    assert (tmp_path / "checkpoints.json").read_text() == text


def test_second_training_in_a_directory_keeps_its_own(tmp_path):
    keep(tmp_path, epochs=4)
    keep(tmp_path, epochs=1)  # Anew: what is newest has not the largest number.
    assert callbacks.restore(tiny_model(), tmp_path) == 1


def test_run_of_version_0_1_goes_on(tmp_path):
    """It kept no record; what lies beside its flags is its own."""
    keep(tmp_path)
    (tmp_path / "checkpoints.json").unlink()
    (tmp_path / "flags.txt").write_text("")
    (tmp_path / "epoch-best.weights.h5").write_text("mine")
    resumed = tiny_model(run_eagerly=True)
    assert callbacks.restore(resumed, tmp_path) == 3
    keep(tmp_path, resumed, epochs=4, initial_epoch=3)
    kept = sorted(path.name for path in tmp_path.glob("epoch-*"))
    assert kept == [
        "epoch-000003.weights.h5",
        "epoch-000004.weights.h5",
        "epoch-best.weights.h5",
    ]


def spoil(network, value=np.nan):
    """Makes the last number of a weight unusable."""
    weight = network.weights[-1]
    array = np.array(weight)
    array.flat[-1] = value
    weight.assign(array)
    return weight


class _Diverges(keras.callbacks.Callback):
    """Spoils the weights after an epoch."""

    def __init__(self, epoch, value):
        super().__init__()
        self.epoch, self.value = epoch, value

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            spoil(self.model.encoder, self.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.fault(58)
def test_weights_that_are_not_finite_replace_no_checkpoint(value, tmp_path):
    model, keeper = (
        tiny_model(run_eagerly=True),
        callbacks.Checkpoints(tmp_path),
    )
    with pytest.warns(UserWarning, match="keeps what was saved before"):
        fit(model, _Diverges(2, value), keeper, epochs=3)
    assert (keeper.epochs, keeper.steps) == (2, 6)
    restored = tiny_model()
    assert callbacks.restore(restored, tmp_path) == 2
    kept = keras.models.load_model(tmp_path / "model.keras")
    weights = kept.get_weights(), restored.get_weights()
    for ours, right in zip(*weights, strict=True):
        np.testing.assert_array_equal(ours, right)
        assert np.isfinite(ours).all()


@pytest.mark.fault(58)
def test_checkpoint_that_is_not_finite_is_passed_over(tmp_path):
    model = keep(tmp_path)
    spoil(model.encoder)
    path = tmp_path / "epoch-000003.weights.h5"
    model.save_weights(path)
    record = tmp_path / "checkpoints.json"
    known = json.loads(record.read_text())
    known["files"][path.name] = {}
    record.write_text(json.dumps(known))
    with pytest.warns(UserWarning, match="Weights must be finite"):
        assert callbacks.restore(tiny_model(), tmp_path) == 2


@pytest.mark.fault(56)
def test_a_model_of_another_network_does_not_go_on(tmp_path):
    keep(tmp_path)
    encoder = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(7)]
    )
    other = simclr.SimCLRModel(encoder)
    other.compile()
    with (
        pytest.warns(UserWarning, match="passed over: .*shape|layer|variable"),
        pytest.raises(ValueError, match="can be read"),
    ):
        callbacks.restore(other, tmp_path)
    assert int(other.optimizer.iterations) == 0


@pytest.mark.fault(54)
def test_checkpoints_try_their_directory_before_they_train(
    tmp_path, monkeypatch
):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    model = tiny_model(run_eagerly=True)
    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(OSError, match="must be one that can be written"):
        keep(tmp_path, model)
    assert int(model.optimizer.iterations) == 0


@pytest.mark.fault(53)
def test_checkpoints_find_out_first_whether_there_is_room(
    tmp_path, monkeypatch
):
    """HDF5 ends the process where a disk is full."""

    def full(_, first, size):
        assert size > 4 * sum(math.prod(x.shape) for x in model.variables)
        raise OSError(28, "No space left on device")

    model = tiny_model(run_eagerly=True)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.warns(UserWarning, match=r"1\.weights\.h5' could not be writt"):
        keep(tmp_path, model, epochs=1)
    assert [x.name for x in tmp_path.iterdir()] == ["checkpoints.json"]


class AskedTo(keras.callbacks.Callback):
    """Has a signal come in a step, counted over all epochs."""

    def __init__(self, step, number=signal.SIGINT):
        super().__init__()
        self.step, self.number = step, number

    def on_train_batch_begin(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == self.step - 1:
            signal.raise_signal(self.number)


def arrays(tmp_path):
    return simclr.dataset_from_arrays(IMAGES[:20], batch_size=4, seed=5)


def folder(tmp_path):
    return simclr.dataset_from_directory(
        tmp_path / "photos", channels=1, batch_size=4, canvas_size=8, seed=3
    )


def folder_with_a_broken_file(tmp_path):
    images = simclr.folders.ImageFolder(
        tmp_path / "broken", unreadable_limit=0.2
    )
    return simclr.dataset_from_directory(
        images, channels=1, batch_size=4, canvas_size=8, seed=3
    )


def shuffled(tmp_path):
    images = tf.data.Dataset.from_tensor_slices(IMAGES[:20])
    return images.shuffle(20, seed=7).batch(4, drop_remainder=True)


def from_arrays_and_mapped(tmp_path):
    return arrays(tmp_path).map(lambda x: 1 - x)


SOURCES = [arrays, folder, folder_with_a_broken_file, shuffled]
SOURCES += [from_arrays_and_mapped]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    place = tmp_path_factory.mktemp("sources")
    for name in ("photos", "broken"):
        (place / name).mkdir()
        for number, image in enumerate(IMAGES[:20, ..., 0]):
            picture = PIL.Image.fromarray(np.uint8(255 * image))
            picture.save(place / name / f"{number:02d}.png")
    (place / "broken" / "07.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    return place


def train(source, run_dir, *more, place=None, epochs=3, **arguments):
    model = tiny_model(**arguments)
    done = runs.pretrain(
        model, source(place), run_dir, epochs=epochs, callbacks=more
    )
    return done, model


def assert_same(run_dir, model, whole_dir, whole):
    for ours, right in zip(model.variables, whole.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), right.numpy())
    states = (x.optimizer.variables for x in (model, whole))
    for ours, right in zip(*states, strict=True):
        np.testing.assert_array_equal(ours.numpy(), right.numpy())
    ours, right = (
        run_logs.untimed(x / "log.csv") for x in (run_dir, whole_dir)
    )
    assert ours == right


class TestAnyStep:
    @pytest.mark.parametrize("source", SOURCES)
    @pytest.mark.fault(51)
    def test_a_run_goes_on_from_any_step(
        self, source, photos, tmp_path, caplog
    ):
        whole_dir = tmp_path / "whole"
        _, whole = train(source, whole_dir, place=photos, epochs=2)
        for step in (1, 5, 8) if source is arrays else (7,):
            run_dir = tmp_path / f"stopped-{step}"
            stop = AskedTo(step)
            first, _ = train(source, run_dir, stop, place=photos, epochs=2)
            assert first == step // 5
            done, model = train(source, run_dir, place=photos, epochs=2)
            assert done == 2
            assert_same(run_dir, model, whole_dir, whole)
            # Files and arrays need not be, if all can be read.
            is_told = f"Reads {step % 5} batches of epoch" in caplog.text
            assert is_told == (source not in (arrays, folder) and step % 5 > 0)

    @pytest.mark.usefixtures("in_graphs")
    @pytest.mark.fault(51)
    def test_a_run_may_be_stopped_again_and_again(self, tmp_path):
        done, whole = train(arrays, tmp_path / "whole")
        for step in (2, 3, 14):
            train(arrays, tmp_path / "run", AskedTo(step))
        done, model = train(arrays, tmp_path / "run")
        assert done == 3
        assert runs.read_summary(tmp_path / "run")["resumed"] == [0, 0, 2]
        assert_same(tmp_path / "run", model, tmp_path / "whole", whole)

    @pytest.mark.usefixtures("in_graphs")
    @pytest.mark.parametrize(
        ("steps", "asked", "kept"),
        [
            (2, 6, "epoch-000001-step-000002"),
            (3, 6, "epoch-000001-step-000003"),
            (3, 4, "epoch-000001"),  # In the last execution of an epoch.
        ],
    )
    def test_several_steps_at_once(self, steps, asked, kept, tmp_path):
        arguments = {"steps_per_execution": steps, "run_eagerly": False}
        _, whole = train(arrays, tmp_path / "whole", **arguments)
        train(arrays, tmp_path / "run", AskedTo(asked), **arguments)
        names = checkpoints.written(tmp_path / "run")
        assert names[-1] == f"{kept}.weights.h5"
        _, model = train(arrays, tmp_path / "run", **arguments)
        assert_same(tmp_path / "run", model, tmp_path / "whole", whole)

    @pytest.mark.fault(52)
    def test_on_another_number_of_replicas(self, tmp_path, in_float64):
        _, whole = train(arrays, tmp_path / "whole")
        train(arrays, tmp_path / "run", AskedTo(7))
        with mirrored(2).scope():
            model = tiny_model(run_eagerly=False)
        runs.pretrain(model, arrays(None), tmp_path / "run", epochs=3)
        for ours, right in zip(model.variables, whole.variables, strict=True):
            np.testing.assert_allclose(ours.numpy(), right.numpy(), atol=1e-9)
        logs = (tmp_path / x / "log.csv" for x in ("run", "whole"))
        ours, right = (
            [[float(x) for _, x in row] for row in run_logs.untimed(log)]
            for log in logs
        )
        np.testing.assert_allclose(ours, right, atol=1e-9)

    def test_what_was_seen_is_not_read_again(self, photos, tmp_path):
        shutil.copytree(photos / "photos", tmp_path / "photos")
        _, whole = train(folder, tmp_path / "whole", place=photos, epochs=1)
        train(folder, tmp_path / "run", AskedTo(4), place=photos, epochs=1)
        seen = list(folder(photos).take(4))
        for place in np.concatenate([x["places"] for x in seen]):
            (tmp_path / "photos" / f"{place:02d}.png").write_bytes(b"gone")
        done, model = train(folder, tmp_path / "run", place=tmp_path, epochs=1)
        assert done == 1
        assert_same(tmp_path / "run", model, tmp_path / "whole", whole)

    @pytest.mark.parametrize("epochs", [2, 3])
    def test_the_callback_alone_goes_on_too(self, epochs, tmp_path):
        """With validation, a progress bar, and a history of all epochs."""
        both = {"epochs": epochs, "validation_data": IMAGES[20:]}
        whole, model, resumed = tiny_model(), tiny_model(), tiny_model()
        expected = whole.fit(arrays(None), verbose=0, **both).history
        keeper = callbacks.Checkpoints(tmp_path)
        keeper.is_asked = lambda: int(model.optimizer.iterations) == 8
        with pytest.raises(KeyboardInterrupt):
            model.fit(arrays(None), verbose=0, callbacks=[keeper], **both)
        first = callbacks.restore(resumed, tmp_path)
        assert first == 1
        found = resumed.fit(arrays(None), initial_epoch=first, **both).history
        assert found == {k: x[1:] for k, x in expected.items()}
        weights = zip(resumed.get_weights(), whole.get_weights(), strict=True)
        for ours, right in weights:
            np.testing.assert_array_equal(ours, right)

    def test_callbacks_see_one_training(self, tmp_path):
        seen = []
        watch = keras.callbacks.LambdaCallback(
            on_train_begin=lambda logs: seen.append("begin"),
            on_epoch_begin=lambda epoch, logs: seen.append(epoch),
            on_train_batch_begin=lambda batch, logs: seen.append(f"b{batch}"),
            on_train_batch_end=lambda batch, logs: seen.append(f"e{batch}"),
            on_train_end=lambda logs: seen.append("end"),
        )
        train(arrays, tmp_path, AskedTo(3), epochs=2)
        train(arrays, tmp_path, watch, epochs=2)
        every = [f"{x}{batch}" for batch in range(5) for x in "be"]
        assert seen == ["begin", 0, *every[6:], 1, *every, "end"]

    def test_other_use_of_a_restored_model_begins_with_an_epoch(self, tmp_path):
        train(arrays, tmp_path, AskedTo(3), epochs=2)
        model = tiny_model()
        assert callbacks.restore(model, tmp_path) == 0
        history = model.fit(arrays(None), verbose=0)
        assert int(model.optimizer.iterations) == 3 + 5
        assert history.epoch == [0]
        assert model.unfinished is None


class TestWhatStays:
    def test_as_many_as_are_asked_for(self, tmp_path):
        keeper = callbacks.Checkpoints(tmp_path, keep=3, keep_every=4)
        fit(tiny_model(), keeper, epochs=9)
        found = sorted(x.name for x in tmp_path.glob("epoch-*"))
        epochs = (4, 7, 8, 9)
        assert found == [f"epoch-{x:06d}.weights.h5" for x in epochs]
        assert checkpoints.written(tmp_path) == found

    def test_minutes_count_from_the_last(self, tmp_path, monkeypatch):
        """A clock on which a step takes a minute."""
        model = tiny_model()
        model.build_optimizer()
        now = model.optimizer.iterations
        monkeypatch.setattr(
            checkpoints.time, "monotonic", lambda: 60.0 * int(now)
        )
        keeper = callbacks.Checkpoints(tmp_path, minutes=2, keep=99)
        model.fit(arrays(None), epochs=2, verbose=0, callbacks=[keeper])
        assert [x[6:] for x in checkpoints.written(tmp_path)] == [
            f"{x}.weights.h5"
            for x in (
                *("000000-step-000002", "000000-step-000004", "000001"),
                *("000001-step-000002", "000001-step-000004", "000002"),
            )
        ]

    @pytest.mark.parametrize(
        "wrong",
        [{"minutes": 0}, {"keep": 0}, {"keep_every": 0}, {"minutes": np.nan}],
    )
    def test_numbers_are_checked(self, wrong, tmp_path):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must"):
            callbacks.Checkpoints(tmp_path, **wrong)

    @pytest.mark.fault(55)
    def test_of_a_file_that_is_not_what_was_written_the_one_before(
        self, tmp_path
    ):
        _, whole = train(arrays, tmp_path / "whole")
        train(arrays, tmp_path / "run", AskedTo(8))
        last = checkpoints.written(tmp_path / "run")[-1]
        assert last == "epoch-000001-step-000003.weights.h5"
        content = bytearray((tmp_path / "run" / last).read_bytes())
        content[len(content) // 2] ^= 1
        (tmp_path / "run" / last).write_bytes(content)
        with pytest.warns(UserWarning, match="not what was written .SHA-256"):
            _, model = train(arrays, tmp_path / "run")
        assert_same(tmp_path / "run", model, tmp_path / "whole", whole)

    @pytest.mark.fault(49)
    def test_what_may_not_be_complete_is_not_taken(self, tmp_path, monkeypatch):
        """Killed at any of the steps of writing a checkpoint."""

        class Killed(BaseException):
            pass

        train(arrays, tmp_path / "run", AskedTo(2))
        for last in range(20):
            run_dir = tmp_path / f"run-{last}"
            shutil.copytree(tmp_path / "run", run_dir)
            number = itertools.count()

            def dying(staged, place, last=last, number=number):
                if next(number) == last:
                    raise Killed
                return pathlib.Path.rename(staged, place)

            with monkeypatch.context() as patch:
                patch.setattr(pathlib.Path, "replace", dying)
                try:
                    train(arrays, run_dir, AskedTo(4))
                except Killed:
                    pass
                else:
                    break
            _, model = train(arrays, run_dir, AskedTo(5))
            assert int(model.optimizer.iterations) == 5
        assert 4 < last < 19


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


class FullIn(keras.callbacks.Callback):
    """Has something fail in some epochs, and work in the others."""

    def __init__(self, patch, epochs, *failing):
        super().__init__()
        self.patch, self.epochs, self.failing = patch, epochs, failing

    def on_epoch_begin(self, epoch, logs=None):
        self.patch.undo()
        if epoch in self.epochs:
            self.patch.setattr(*self.failing)


class TestDisk:
    @pytest.mark.fault(53)
    def test_training_outlives_two_failures(self, tmp_path, monkeypatch):
        model, run_dir = tiny_model(), tmp_path / "run"
        disk = FullIn(monkeypatch, (1, 2, 4, 5), model, "save_weights", full)
        with pytest.warns(UserWarning) as record:
            done = runs.pretrain(
                model, arrays(None), run_dir, epochs=7, callbacks=[disk]
            )
        told = [str(x.message) for x in record]
        told = [x for x in told if x.startswith("The checkpoint after")]
        assert len(told) == 4
        assert told[1] == (
            "The checkpoint after epoch 3 could not be written: "
            f"{str(run_dir / 'epoch-000003.weights.h5')!r} could not be "
            f"written: No space left on device. Training goes on; "
            f"{str(run_dir)!r} keeps the model after step 5"
        )
        assert done == 7
        assert checkpoints.written(run_dir)[-1] == "epoch-000007.weights.h5"
        assert len(run_logs.untimed(run_dir / "log.csv")) == 7

    @pytest.mark.fault(53)
    def test_a_third_in_a_row_ends_it(self, tmp_path, monkeypatch):
        model = tiny_model()
        monkeypatch.setattr(model, "save_weights", full)
        with (
            pytest.warns(UserWarning, match="Training goes on"),
            pytest.raises(OSError, match="3 checkpoints in a row could not"),
        ):
            runs.pretrain(model, arrays(None), tmp_path / "run", epochs=5)
        assert int(model.optimizer.iterations) == 15
        monkeypatch.undo()
        # What it had is there, and the same command goes on.
        _, model = train(arrays, tmp_path / "run", epochs=5)
        assert int(model.optimizer.iterations) == 25

    def test_a_log_that_cannot_be_written_waits(self, tmp_path, monkeypatch):
        replacing = _files.replacing

        def without_log(path):
            return full() if path.name == "log.csv" else replacing(path)

        disk = FullIn(monkeypatch, (1,), _files, "replacing", without_log)
        with pytest.warns(
            UserWarning, match="No space left on device. Training goes"
        ):
            train(arrays, tmp_path / "run", disk)
        assert len(run_logs.untimed(tmp_path / "run" / "log.csv")) == 3


def mount(place, size, *more):
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}{''.join(more)}"]
    return subprocess.run(
        [*command, "tmpfs", place], capture_output=True, check=False
    )


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 320 kilobytes, and what gives it more room."""
    (tmp_path / "disk").mkdir()
    if mount(tmp_path / "disk", "320k").returncode:
        pytest.skip("Only root may mount a disk.")
    yield (
        tmp_path / "disk",
        lambda: mount(tmp_path / "disk", "64m", ",remount"),
    )
    subprocess.run(["umount", "-l", tmp_path / "disk"], check=True)


@pytest.mark.fault(53)
def test_a_disk_that_is_full_loses_nothing(small_disk, tmp_path):
    disk, grow = small_disk
    keeping = {"keep": 99}
    _, whole = train(arrays, tmp_path / "whole", epochs=12)
    with (
        pytest.warns(UserWarning, match="Training goes on"),
        pytest.raises(OSError, match="No space left on device"),
    ):
        runs.pretrain(
            tiny_model(), arrays(None), disk / "run", epochs=99, keeping=keeping
        )
    assert not list((disk / "run").glob("staged-*"))
    kept = runs.load_model(disk / "run")
    before = int(kept.optimizer.iterations)
    assert 5 <= before < 12 * 5
    grow()
    model = tiny_model()
    epochs = runs.pretrain(
        model, arrays(None), disk / "run", epochs=12, keeping=keeping
    )
    assert epochs == 12
    assert_same(disk / "run", model, tmp_path / "whole", whole)


@pytest.fixture
def no_locks(monkeypatch):
    """A disk that has none."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(_files.fcntl, "flock", refuse)


@pytest.mark.usefixtures("no_locks")
class TestLockWithoutTheSystem:
    @pytest.mark.fault(60)
    def test_of_a_process_that_is_gone(self, tmp_path):
        with subprocess.Popen([sys.executable, "-c", ""]) as process:
            process.wait()
        here, lock = socket.gethostname(), tmp_path / _files.LOCK
        for text in (f"{process.pid} {here}", "", "nobody", "12"):
            lock.write_text(text)
            with _files.locked(tmp_path):
                assert lock.read_text() == f"{os.getpid()} {here}"
            assert not lock.exists()

    @pytest.mark.parametrize("host", [socket.gethostname(), "another"])
    @pytest.mark.fault(60)
    def test_of_one_that_may_be_at_work(self, host, tmp_path):
        lock, process = tmp_path / _files.LOCK, os.getppid()
        lock.write_text(f"{process} {host}")
        with (
            pytest.raises(BlockingIOError) as error,
            _files.locked(tmp_path),
        ):
            pass
        assert str(error.value) == (
            "The output directory must be written by one process at a time. "
            f"Received: {str(tmp_path)!r}, where process {process} on {host} "
            "is at work. Wait until it ends, or choose another directory. If "
            f"that has ended, delete {str(lock)!r}"
        )
        assert lock.read_text() == f"{process} {host}"


TERMINAL = """
import runpy, signal, sys, time
terminal = runpy.run_path(sys.argv[1])
number = getattr(signal, sys.argv[2])
with terminal["deferred"]() as came:
    for _ in range(int(sys.argv[3])):
        signal.raise_signal(number)
    print("the step ends")
print("went on")
"""


@pytest.mark.parametrize(
    ("name", "times", "said", "code"),
    [
        ("SIGINT", 1, ["the step ends", "went on"], 0),
        ("SIGTERM", 1, ["the step ends"], -signal.SIGTERM),
        ("SIGHUP", 1, ["the step ends"], -signal.SIGHUP),
        ("SIGINT", 2, [], -signal.SIGINT),
        ("SIGTERM", 2, [], -signal.SIGTERM),
    ],
)
@pytest.mark.fault(50)
def test_the_second_signal_ends_at_once(name, times, said, code):
    """The first waits; then nobody but Ctrl-C lets the process go on."""
    file = _files.__file__.replace("_files", "_terminal")
    done = subprocess.run(
        [sys.executable, "-uc", TERMINAL, file, name, str(times)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.split("\n")[:-1], done.returncode) == (said, code)
    assert "Ending after this step; once more ends at once." in done.stderr
