"""One of several processes that train together, or one that trains alone."""

import importlib.util
import signal
import sys

import keras
import numpy as np
import pytest

import keras_simclr as simclr
from keras_simclr import devices, logs, replicas, runs

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 1), "uint8")
LABELS = np.arange(50) % 3


def build_model(strategy):
    keras.utils.set_random_seed(1)
    with strategy.scope():
        encoder = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Conv2D(4, 3),
                keras.layers.BatchNormalization(),
                keras.layers.ReLU(),
                keras.layers.GlobalAveragePooling2D(),
            ]
        )
        model = simclr.SimCLRModel(
            encoder,
            simclr.ProjectionHead(1, units=4),
            augmentation=simclr.RandomFlip(),
        )
    model.compile()
    return model


def dataset():
    return simclr.dataset_from_arrays(IMAGES, batch_size=8)


def train(model, run_dir, path):
    """Two epochs, perhaps one of them done; results are written to `path`."""
    runs.pretrain(model, dataset(), run_dir, epochs=2)
    validation = simclr.dataset_from_arrays(IMAGES[:16], batch_size=8)
    losses = model.evaluate(validation, verbose=0)
    np.savez(path, *(variable.numpy() for variable in model.variables), losses)


def stop_within_an_epoch(model, strategy, run_dir):
    """Leaves a checkpoint, and a model that knows nothing any more.

    One worker is asked to end, and all do at the same step.
    """

    def ask(batch, logs):
        is_asked = strategy.cluster_resolver.task_id == 1
        if is_asked and model.optimizer.iterations.numpy() == 7:
            signal.raise_signal(signal.SIGINT)

    asking = keras.callbacks.LambdaCallback(on_train_batch_begin=ask)
    epochs = runs.pretrain(
        model, dataset(), run_dir, epochs=2, callbacks=[asking]
    )
    assert (epochs, model.optimizer.iterations.numpy()) == (1, 8)
    with strategy.scope():
        for variable in (*model.variables, *model.optimizer.variables):
            variable.assign(keras.ops.zeros_like(variable))
    replicas.check_agreement(strategy, 8)  # And waits for the chief.


def check_what_machines_exchange(strategy, run_dir):
    keras.config.set_floatx("float32")  # Not all can be in bfloat16.
    keras.config.set_dtype_policy("mixed_bfloat16")
    train, test = ((IMAGES[x::2], LABELS[x::2]) for x in (0, 1))
    probe = simclr.callbacks.KNNProbe(train, test)
    measures = simclr.callbacks.Measures(IMAGES)
    model, told = build_model(strategy), []
    has_board = importlib.util.find_spec("tensorboard") is not None
    watch = logs.watching(strategy, True, has_board)
    watchers = watch(dataset(), run_dir, told.append)
    history = model.fit(
        dataset(), verbose=0, callbacks=[probe, measures, *watchers]
    )
    # Both find the same; the first alone speaks, and writes for TensorBoard.
    found = {x["rule"]: x["text"] for x in watchers[0].findings}
    assert list(found) == ["small_batch", "too_few_steps"]
    is_chief = strategy.cluster_resolver.task_id == 0
    assert told == [found["small_batch"]] * is_chief
    assert len(watchers) == 1 + 2 * (is_chief and has_board)
    values = {name: values[0] for name, values in history.history.items()}
    assert np.isfinite(list(values.values())).all()
    features = [simclr.extract_features(model, x) for x, _ in (train, test)]
    right = simclr.knn_probe(features[0], train[1], features[1], test[1])
    assert values["knn_accuracy"] == right.accuracy
    chance = np.log(2 * 8 - 1)
    np.testing.assert_allclose(
        values["loss_over_chance"], values["loss"] / chance
    )
    number = strategy.cluster_resolver.task_id
    with pytest.raises(ValueError, match=r"average of step 0\.5"):
        replicas.check_agreement(strategy, number)
    with pytest.raises(ValueError, match=f"same flags and .*'seed {number}'"):
        replicas.check_agreement(strategy, 1, f"seed {number}")


def main(run_dir, path):
    strategy = devices.make_strategy("auto")
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    model = build_model(strategy)
    stop_within_an_epoch(model, strategy, run_dir)
    train(model, run_dir, path)
    check_what_machines_exchange(strategy, f"{run_dir}-watched")


if __name__ == "__main__":
    main(*sys.argv[1:])
