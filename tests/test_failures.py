import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import run_logs, standins
from helpers.replicas import mirrored

import keras_simclr as simclr
import keras_simclr_cli as cli
from keras_simclr import checkpoints, failures, runs

pytestmark = pytest.mark.usefixtures("eagerly")
BLACK = 13  # The row of the image that has no brightest pixel.


@keras.saving.register_keras_serializable(package="test_failures")
class Brightest(keras.layers.Layer):
    """Divides by the brightest pixel: 0 / 0 where all are black."""

    def call(self, images):
        return images / keras.ops.max(images, axis=(1, 2, 3), keepdims=True)


def images(value=0.0):
    found = standins.labelled_images()[0].copy()
    found[BLACK] = value
    return found


def tiny_model(compiled=None, **arguments):
    keras.utils.set_random_seed(0)
    model = simclr.SimCLRModel(
        keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                Brightest(),
                keras.layers.Conv2D(4, 3),
                keras.layers.BatchNormalization(),
                keras.layers.GlobalAveragePooling2D(),
            ]
        ),
        keras.layers.Dense(4),
        augmentation=simclr.RandomFlip(),
        **arguments,
    )
    sgd = keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(sgd, **(compiled or {}))
    return model


def dataset(rows):
    return simclr.dataset_from_arrays(rows, batch_size=4, seed=2)


def step_of(rows):
    """The first step that has the black image."""
    batches = dataset(np.arange(len(rows))).as_numpy_iterator()
    return next(step for step, batch in enumerate(batches) if BLACK in batch)


def pretrain(model, rows, run_dir, **arguments):
    arguments = {"epochs": 3, "flags": "--seed=0\n", **arguments}
    return runs.pretrain(model, dataset(rows), run_dir, **arguments)


class TestStop:
    @pytest.mark.parametrize(
        ("value", "first"),
        [
            (0.0, "representations: no finite value"),
            (np.nan, "images: from"),
            (np.inf, "images: from"),
        ],
    )
    @pytest.mark.fault(1, 2, 58)
    def test_the_state_before_and_the_batch_are_kept(
        self, value, first, tmp_path
    ):
        rows, model = images(value), tiny_model()
        step = step_of(rows)
        assert 0 < step < 5  # Within the first epoch, of 6 steps.
        with pytest.raises(ValueError) as error:
            pretrain(model, rows, tmp_path)
        path = tmp_path / f"nan-step-{step}.npz"
        assert str(error.value).endswith(
            f"(epoch 1, step {step + 1}). The model is as the step before left "
            f"it. {str(path)!r} keeps its batch. To see where it fails: "
            f"keras-simclr replay --run_dir={tmp_path} --batch={path}"
        )
        with np.load(path) as file:
            kept = dict(file)
        assert kept.pop("step") == step
        (seen,) = kept.values()
        expected = list(dataset(rows).as_numpy_iterator())[step]
        np.testing.assert_array_equal(seen, expected)
        name = f"epoch-000000-step-{step:06d}.weights.h5"
        assert checkpoints.written(tmp_path) == [name]
        before = runs.load_model(tmp_path)
        assert int(before.optimizer.iterations) == step
        lines = failures.replay(before, path)
        told = [x for x in lines if "NaN or infinity" in x]
        assert told[0].startswith(first)
        if value:  # Batch norm brings it into all others.
            bad = ~np.isfinite(expected).all(axis=(1, 2, 3))
            assert told[0].endswith(f"in rows {np.flatnonzero(bad)[0]}")
        # Afterwards the run goes on from there, with images that are right.
        rows[BLACK] = 0.5
        assert pretrain(tiny_model(), rows, tmp_path) == 3

    def test_gradients_are_told_by_their_variables(self, tmp_path):
        rows = images()
        with pytest.raises(ValueError):
            pretrain(tiny_model(), rows, tmp_path)
        path = tmp_path / f"nan-step-{step_of(rows)}.npz"
        *_, loss, gradients = failures.replay(runs.load_model(tmp_path), path)
        assert loss == "loss: no finite value; NaN or infinity in rows 0"
        assert re.match("gradients: not finite for .*conv.*/kernel", gradients)

    def test_a_shuffle_of_somebody_elses_keeps_the_state_alone(self, tmp_path):
        rows = tf.data.Dataset.from_tensor_slices(images()).shuffle(24, seed=5)
        with pytest.raises(ValueError, match="The model is as the step before"):
            runs.pretrain(
                tiny_model(), rows.batch(4), tmp_path, epochs=3, flags="\n"
            )
        assert not list(tmp_path.glob("*.npz"))

    @pytest.mark.usefixtures("in_graphs")
    def test_steps_of_an_execution_that_were_made_count(self, tmp_path):
        rows = images()
        step = step_of(rows)
        for at_once in (1, 5):
            run_dir = tmp_path / str(at_once)
            model = tiny_model({"steps_per_execution": at_once})
            with pytest.raises(ValueError, match="keeps its batch"):
                pretrain(model, rows, run_dir)
            assert int(model.optimizer.iterations) == step
            name = f"epoch-000000-step-{step:06d}.weights.h5"
            assert checkpoints.written(run_dir) == [name]
            kept = np.load(run_dir / f"nan-step-{step}.npz")["images"]
            assert (kept == 0).all(axis=(1, 2, 3)).any()

    def test_a_callback_that_fails_is_no_fault_of_a_batch(self, tmp_path):
        """The step before it was made, and is behind."""
        rows, model, whole = images(0.5), tiny_model(), tiny_model()

        def look(batch, logs):
            if int(model.optimizer.iterations) == 4:
                model.evaluation_view(images(np.nan))

        looking = keras.callbacks.LambdaCallback(on_train_batch_end=look)
        with pytest.raises(ValueError, match="must be finite"):
            pretrain(model, rows, tmp_path / "run", callbacks=[looking])
        assert not list((tmp_path / "run").glob("*.npz"))
        resumed = tiny_model()
        pretrain(resumed, rows, tmp_path / "run")
        pretrain(whole, rows, tmp_path / "whole")
        weights = zip(resumed.get_weights(), whole.get_weights(), strict=True)
        for ours, right in weights:
            np.testing.assert_array_equal(ours, right)

    @pytest.mark.parametrize("content", [b"", b"PK", b"step"])
    def test_other_files_are_no_batch(self, content, tmp_path):
        (tmp_path / "nan-step-1.npz").write_bytes(content)
        with pytest.raises(ValueError, match="`batch` must be what a run kept"):
            failures.replay(tiny_model(), tmp_path / "nan-step-1.npz")

    def test_the_batch_of_another_step_is_refused(self, tmp_path):
        path = tmp_path / "batch.npz"
        np.savez(path, images=images()[:4], step=7)
        model = tiny_model()
        model.build_optimizer()
        with pytest.raises(ValueError) as error:
            failures.replay(model, path)
        assert str(error.value) == (
            "A step is replayed with the model as it was before. Received: "
            f"{str(path)!r}, of step 7, for a model after step 0"
        )

    def test_command(self, tmp_path, capsys):
        rows = images()
        with pytest.raises(ValueError):
            pretrain(tiny_model(), rows, tmp_path)
        (path,) = tmp_path.glob("*.npz")
        run = [f"--run_dir={tmp_path}", f"--batch={path}"]
        assert cli.main(["replay", *run]) == 0
        names = [x.split()[0] for x in capsys.readouterr().out.splitlines()]
        assert names == [
            "step",
            "images:",
            "views:",
            "representations:",
            "projections:",
            "loss:",
            "gradients:",
        ]


def by_hand(rows, model, epochs):
    """The same training, where somebody leaves the black image's step out."""
    model.build_optimizer()
    order = dataset(np.arange(len(rows)))
    for _ in range(epochs):
        for batch in order.as_numpy_iterator():
            if BLACK in batch:
                model.optimizer.iterations.assign_add(1)
            else:
                model.train_on_batch(rows[batch])


class TestSkip:
    @pytest.mark.parametrize("value", [0.0, np.nan])
    @pytest.mark.fault(1, "26b")
    def test_the_step_is_as_if_it_had_not_been(self, value, tmp_path):
        rows = images(value)
        model, expected = tiny_model(on_nan="skip"), tiny_model()
        assert pretrain(model, rows, tmp_path) == 3
        by_hand(rows, expected, 3)
        for ours, right in zip(
            model.optimizer.variables + model.weights,
            expected.optimizer.variables + expected.weights,
            strict=True,
        ):
            np.testing.assert_array_equal(ours.numpy(), right.numpy())
        assert [
            dict(x)["skipped"] for x in run_logs.untimed(tmp_path / "log.csv")
        ] == ["1.0"] * 3

    @pytest.mark.usefixtures("in_graphs")
    @pytest.mark.parametrize(
        ("compiled", "arguments"),
        [
            ({}, {}),
            ({"jit_compile": True}, {}),
            ({}, {"micro_batch_size": 2}),
            ({"steps_per_execution": 2}, {}),
        ],
    )
    @pytest.mark.filterwarnings("ignore:With `jit_compile=True` pixel values")
    def test_in_graphs(self, compiled, arguments):
        rows = images()
        model = tiny_model(compiled, on_nan="skip", **arguments)
        history = model.fit(dataset(rows), epochs=2, verbose=0).history
        assert history["skipped"] == [1, 1]
        assert np.isfinite(history["loss"]).all()
        assert all(np.isfinite(x).all() for x in model.get_weights())
        assert int(model.optimizer.iterations) == 12

    @pytest.mark.parametrize("compiled", [{}, {"jit_compile": True}])
    @pytest.mark.filterwarnings("ignore:With `jit_compile=True` pixel values")
    def test_not_too_many(self, compiled):
        rows, model = images(), tiny_model(compiled, on_nan="skip")
        rows[:] = 0
        with pytest.raises(ValueError, match="At most 10 steps of an epoch"):
            model.fit(rows, batch_size=2, verbose=0)
        assert all(np.isfinite(x).all() for x in model.get_weights())

    def test_values_that_are_none_of_pixels_are_refused_all_the_same(self):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
            tiny_model(on_nan="skip").fit(255 * images(), batch_size=4)

    def test_it_is_kept_and_checked(self):
        model = tiny_model(on_nan="skip")
        config = keras.saving.serialize_keras_object(model)
        assert keras.saving.deserialize_keras_object(config).on_nan == "skip"
        with pytest.raises(ValueError, match="`on_nan` must be one of"):
            tiny_model(on_nan="ignore")
        with (
            pytest.raises(ValueError, match="works on one device"),
            mirrored(2).scope(),
        ):
            tiny_model(on_nan="skip")

    def test_an_unfinished_run_may_go_on_so(self, tmp_path):
        """What stopped it may be skipped now."""
        data = tmp_path / "data.npz"
        np.savez(data, images=images(np.nan))
        arguments = ["pretrain", f"--data={data}", "--batch_size=4"]
        arguments += ["--depth=10", "--width_multiplier=0.1", "--epochs=2"]
        arguments += [f"--output_dir={tmp_path / 'run'}", "--nodoctor"]
        arguments += ["--strategy=one", "--precision=float32"]
        assert cli.main(arguments) == 1
        assert list((tmp_path / "run").glob("nan-step-*.npz"))
        assert cli.main([*arguments, "--on_nan=skip"]) == 0
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert summary["finished"]
