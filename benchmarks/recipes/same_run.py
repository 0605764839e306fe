"""One run with batches of 4,096, carried out in four ways.

    python benchmarks/recipes/same_run.py [--data_dir=DIR] [--batch_norm]

Plain; in micro-batches of 256; by two workers; killed and resumed twice. Each
trains ResNet-10 of half width, ImageNet stem, on Fashion-MNIST for eight epochs
from the same seed, and a linear probe tells what its encoder is worth. Group
norm stands for batch norm (layer norm in the projection head), so that all ways
compute the same; `--batch_norm` keeps batch norm, which sees micro-batches by
themselves. What is in `same_run.json` of `--results`, by default the results
kept here, is not run again. An hour on one core of an AMD EPYC.
"""

import argparse
import json
import math
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from benchmarks.recipes.probes import probe_run
from benchmarks.results import add_results_flag, markdown, once, report

_RESULTS = pathlib.Path(__file__).parent / "results"
_BATCH_SIZE = 4096
EPOCHS = 8
_LEARNING_RATE = 0.004
_PLAIN, _MICRO = "plain", "micro-batches of 256"
_WORKERS, _RESUMED = "two workers", "resumed twice"
WAYS = (_PLAIN, _MICRO, _WORKERS, _RESUMED)


def main():
    """Reads the flags and runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", help="Directory of prepared TFDS data.")
    add_results_flag(parser, _RESULTS)
    parser.add_argument("--batch_norm", action="store_true")
    parser.add_argument("--way", choices=WAYS, help="One of the four.")
    parser.add_argument("--run_dir", help="Only train, into this directory.")
    values = parser.parse_args()
    if values.run_dir:
        train(values)
        return
    norm = "batch" if values.batch_norm else "group"
    results = {
        way: run(way, norm, values)
        for way in ([values.way] if values.way else WAYS)
    }
    plain = results.get(_PLAIN, {"linear": math.nan})["linear"]
    rows = [
        [way, f"{100 * x['linear']:.2f}", f"{100 * (x['linear'] - plain):+.2f}"]
        for way, x in results.items()
    ]
    titles = [f"{norm} norm", "linear probe, %", "less the plain run's"]
    report(markdown(titles, rows))


def run(way, norm, values):
    """Trains in one way and probes, unless the result is there.

    Args:
        way: One of `WAYS`.
        norm: `"batch"` or `"group"`.
        values: Flags `data_dir` and `results`.

    Returns:
        Dictionary: way, norm, epochs, shares of 1 of the probes, and minutes.
    """
    command = [sys.executable, __file__, f"--way={way}"]
    if values.data_dir:
        command.append(f"--data_dir={values.data_dir}")
    if norm == "batch":
        command.append("--batch_norm")

    def train_and_probe():
        with tempfile.TemporaryDirectory() as directory:
            run_dir = pathlib.Path(directory, "run")
            start = time.perf_counter()
            _train_in(way, [*command, f"--run_dir={run_dir}"], run_dir)
            minutes = round((time.perf_counter() - start) / 60, 1)
            with_group_norm()  # Loading needs its layer.
            shares = probe_run(run_dir, ("train", "test"), values.data_dir)
        return {**shares, "minutes": minutes}

    key = {"way": way, "norm": norm, "epochs": EPOCHS}
    return once(values.results / "same_run.json", key, train_and_probe)


def _train_in(way, command, run_dir):
    """Waits for the processes of a way."""
    if way == _WORKERS:
        addresses = [f"127.0.0.1:{_free_port()}" for _ in range(2)]
        workers = [
            _start(
                command,
                TF_CONFIG=json.dumps(
                    {
                        "cluster": {"worker": addresses},
                        "task": {"type": "worker", "index": index},
                    }
                ),
            )
            for index in range(2)
        ]
    else:
        if way == _RESUMED:
            for epochs in (EPOCHS // 3, 2 * EPOCHS // 3):
                _kill_after(epochs, _start(command), run_dir)
        workers = [_start(command)]
    if any([worker.wait() for worker in workers]):
        raise RuntimeError(f"The run has failed: {way}")


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _start(command, **environment):
    environment = {**os.environ, **environment}
    return subprocess.Popen(command, env=environment, stdout=sys.stderr)


def _kill_after(epochs, worker, run_dir):
    """Ends a process, without warning, once so many epochs are kept."""
    checkpoint = run_dir / f"epoch-{epochs:06}.weights.h5"
    while not checkpoint.exists():
        if worker.poll() is not None:
            raise RuntimeError("The run has ended before it was to be killed.")
        time.sleep(0.1)
    worker.kill()
    worker.wait()


def train(values):
    """Trains in this process, alone or as a worker of `TF_CONFIG`."""
    import keras

    import keras_simclr as simclr
    from keras_simclr import devices, runs
    from keras_simclr.recipe import Recipe

    recipe, shape = Recipe(stem="imagenet", blur_rate=0.5), (28, 28, 1)
    strategy = devices.make_strategy("auto")
    keras.utils.set_random_seed(0)
    dataset = simclr.dataset_from_tfds(
        "fashion_mnist",
        "train",
        data_dir=values.data_dir,
        batch_size=_BATCH_SIZE,
    )
    steps = EPOCHS * int(dataset.cardinality())
    with strategy.scope():
        encoder, head = recipe.encoder(shape), recipe.projection_head()
        if not values.batch_norm:
            encoder = keras.models.clone_model(
                encoder, clone_function=with_group_norm()
            )
            head = keras.Sequential(
                [
                    keras.layers.Dense(256),
                    keras.layers.LayerNormalization(),
                    keras.layers.ReLU(),
                    keras.layers.Dense(128),
                ]
            )
        model = simclr.SimCLRModel(
            encoder,
            head,
            augmentation=recipe.augmentation(shape),
            micro_batch_size=256 if values.way == _MICRO else None,
        )
        schedule = simclr.warmup_cosine(
            _LEARNING_RATE, steps, warmup_steps=steps // 10
        )
        model.compile(keras.optimizers.AdamW(schedule), recipe.loss())
    runs.pretrain(model, dataset, values.run_dir, epochs=EPOCHS)


def with_group_norm():
    """Function for `clone_model`, and the layer, which loading needs too."""
    import keras

    @keras.saving.register_keras_serializable(package="same_run")
    class GroupNorm(keras.layers.GroupNormalization):
        def call(self, inputs, training=None, mask=None):
            return super().call(inputs)  # Called as batch norm was.

    def clone(layer):
        if not isinstance(layer, keras.layers.BatchNormalization):
            return layer.__class__.from_config(layer.get_config())
        return GroupNorm(
            8,
            epsilon=layer.epsilon,
            gamma_initializer=layer.gamma_initializer,
            name=layer.name,
        )

    return clone


if __name__ == "__main__":
    main()
