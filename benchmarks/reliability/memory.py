"""Whether memory stays flat, however long something goes on.

    python benchmarks/reliability/memory.py [--only=epochs,predict]

500 epochs of a tiny run, as `pretrain` does it (doctor, log, checkpoints);
1,000 calls of `evaluate`; 1,000 epochs with validation and a `KNNProbe`; 10,000
calls of `predict`; 30 models made, trained and forgotten one after the other.
Each in a process of its own, whose resident memory is read at 40 times, after
what is unused was collected. Flat is what grows by less than 2 % from the end
of the first quarter, which warms up, to the end. What is in `memory.json` of
`--results`, by default the results kept here, is not run again. Half an hour on
one core of an AMD EPYC.
"""

import argparse
import functools
import gc
import json
import os
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from benchmarks.results import add_results_flag, markdown, once, report

_RESULTS = pathlib.Path(__file__).parent / "results"
_TIMES = 40  # That memory is read.
_WARM_UP = 0.25  # Of what is done.
_FLAT = 0.02  # Of what there is after warming up.


def main():
    """Reads the flags and runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_results_flag(parser, _RESULTS)
    parser.add_argument("--only", help="Names of cases, with commas.")
    parser.add_argument("--case", choices=CASES, help="One, in this process.")
    parser.add_argument("--share", type=float, default=1.0, help="Of the work.")
    values = parser.parse_args()
    if values.case:
        run(values.case, times_of(values.case, values.share))
        return
    chosen = values.only.split(",") if values.only else CASES
    path = values.results / "memory.json"
    rows = []
    for case in chosen:
        key = {"case": case, "times": times_of(case, values.share)}
        make = functools.partial(measure, case, values.share)
        rows.append(row(once(path, key, make)))
    titles = ["", "times", "warm, MiB", "in the end", "a thousand times", ""]
    report(markdown(titles, rows))


def times_of(case, share):
    """How often a case does what it does."""
    return max(round(CASES[case][2] * share), 8)


def measure(case, share):
    """Has a case run in a process of its own."""
    command = [sys.executable, __file__, f"--case={case}", f"--share={share}"]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    found = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, env=environment
    )
    return {"samples": json.loads(found.stdout.splitlines()[-1])}


def row(result):
    """A row of the table, of what was measured in a case."""
    warm, last = of_samples(result["samples"])
    times = last[0] - warm[0]
    growth = last[1] - warm[1]
    return [
        CASES[result["case"]][0],
        f"{last[0]:,}",
        f"{warm[1]:.0f}",
        f"{last[1]:.0f}",
        f"{1000 * growth / times:+.1f}",
        "flat" if growth < _FLAT * warm[1] else "grows",
    ]


def of_samples(samples):
    """What was done and the memory then, after warming up and in the end."""
    last = samples[-1]
    warm = next(x for x in samples if x[0] >= _WARM_UP * last[0])
    return warm, last


def run(case, total):
    """Runs a case, and prints the samples of memory."""
    import psutil

    samples, step = [], max(total // _TIMES, 1)

    def sample(done):
        if done % step == 0 and (not samples or samples[-1][0] < done):
            gc.collect()
            memory = psutil.Process().memory_info().rss / 2**20
            samples.append([done, round(memory, 2)])

    CASES[case][1](total, sample)
    report(json.dumps(samples))


def small_model():
    """A compiled model of a few weights, and images with labels for it."""
    import keras
    import numpy as np

    import keras_simclr as simclr

    encoder = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(8, 3),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    model = simclr.SimCLRModel(
        encoder,
        keras.layers.Dense(4),
        augmentation=simclr.SimCLRAugmentation(8),
    )
    model.compile("sgd")
    images = np.random.default_rng(0).random((64, 8, 8, 1), "float32")
    return model, images, np.arange(64) % 2


def epochs(total, sample):
    """A run as `pretrain` makes it."""
    import numpy as np

    from keras_simclr import recipe, runs

    directory = pathlib.Path(tempfile.mkdtemp())
    images = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), "uint8")
    np.savez(directory / "images.npz", images=images)
    steps = 4

    def progress(done, *_, **__):
        if done % steps == 0:
            sample(done // steps)

    runs.carry_out(
        recipe.Recipe(
            depth=10,
            width_multiplier=0.1,
            image_size=16,
            batch_size=64 // steps,
            epochs=total,
            precision="float32",
        ),
        recipe.Data(data=str(directory / "images.npz")),
        directory / "run",
        report=lambda text: None,
        progress=progress,
    )


def probes(total, sample):
    """Epochs with validation and a probe."""
    import keras

    import keras_simclr as simclr

    model, images, labels = small_model()
    both = images, labels
    probe = simclr.callbacks.KNNProbe(both, both)
    told = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: sample(epoch + 1)
    )
    model.fit(
        images,
        batch_size=32,
        epochs=total,
        validation_data=both,
        callbacks=[probe, told],
        verbose=0,
    )


def calls(method, total, sample):
    """Calls of a method of the model."""
    model, images, _ = small_model()
    for number in range(total):
        getattr(model, method)(images, batch_size=32, verbose=0)
        sample(number + 1)


def models(total, sample):
    """Models that are made, trained and forgotten."""
    from keras_simclr import devices

    for number in range(total):
        model, images, _ = small_model()
        model.fit(images, batch_size=32, verbose=0)
        del model
        devices.forget_models()
        sample(number + 1)


evaluations, predictions = (
    functools.partial(calls, method) for method in ("evaluate", "predict")
)
CASES = {
    "epochs": ("epochs of `pretrain`", epochs, 500),
    "evaluate": ("calls of `evaluate`", evaluations, 1000),
    "probe": ("epochs with validation and `KNNProbe`", probes, 1000),
    "predict": ("calls of `predict`", predictions, 10_000),
    "models": ("models made, trained, forgotten", models, 30),
}

if __name__ == "__main__":
    main()
