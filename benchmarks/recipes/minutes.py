r"""What `keras-simclr pretrain` reaches in so many minutes, not epochs.

    python benchmarks/recipes/minutes.py --cifar10=CIFAR10.npz [--minutes=3] \
        [--data=cifar10] [--seed=0] [--change='{"views": 4}' ...] [--test]

trains with each change of the recipe for as many steps as it takes in that
time, and probes: on held-out training images, or, with `--test`, on the test
images, having trained on all others. What a step takes is measured first, all
changes in turns: so a training that others disturb is as long as any. What is
in `minutes.json` of `--results` is not run again.

CIFAR10.npz has the arrays `images`, (60000, 32, 32, 3), and `labels`, the
10,000 test images last. Fashion-MNIST comes from TFDS.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import numpy as np
import scipy.stats

from benchmarks.results import (
    add_results_flag,
    circumstances,
    markdown,
    once,
    processor,
    report,
    store,
    stored,
)

_RESULTS = pathlib.Path(__file__).parent / "results"
# Of each data set: to train on, held out, all to train on, to test on.
_SPLITS = {
    "cifar10": (
        "train[:40000]",
        "train[40000:50000]",
        "train[:50000]",
        "train[50000:]",
    ),
    "fashion_mnist": ("train[:50000]", "train[50000:]", "train", "test"),
}
_SHAPES = {"cifar10": (32, 32, 3), "fashion_mnist": (28, 28, 1)}
# Shoes and bags all face one way: what a flip makes of them is never seen.
OF_DATA = {"cifar10": {}, "fashion_mnist": {"flip_rate": 0}}
_LABELS = 20_000  # That the probes of the search learn from.
_FEW, _DRAWS = 10, 5  # Labels of each class, and how often they are drawn.
PROBES = ("linear", "few_labels", "knn")
_TURNS, _SECONDS = 3, 4.0  # Of measuring steps.
_WARM_UP = 2  # Steps of a turn that are not.
# Flags that steps take longer for; others change a step by 1 % or less.
_SLOWING = (
    *("depth", "width_multiplier", "stem", "image_size", "views"),
    *("batch_size", "micro_batch_size"),
)


def main():
    """Reads the flags and runs."""
    arguments = parser(__doc__)
    arguments.add_argument("--seed", type=int, action="append")
    arguments.add_argument(
        "--change",
        type=json.loads,
        action="append",
        help="Flags of pretrain other than its defaults, as JSON.",
    )
    values = arguments.parse_args()
    changes, seeds = values.change or [{}], values.seed or [0]
    measure(changes, values)
    results = [[run(x, seed, values) for x in changes] for seed in seeds]
    report(table(changes, results))


def parser(text):
    """An `ArgumentParser` of the flags that all trainings need."""
    found = argparse.ArgumentParser(
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("--data", choices=_SPLITS, default="cifar10")
    found.add_argument("--cifar10", help="File of CIFAR-10.")
    found.add_argument("--data_dir", help="Directory of prepared TFDS data.")
    add_results_flag(found, _RESULTS)
    found.add_argument("--minutes", type=float, default=3.0)
    found.add_argument("--test", action="store_true")
    return found


def run(change, seed, values):
    """Trains and probes, unless the results are there."""
    flags = {**OF_DATA[values.data], **change}

    def train_and_probe():
        pace = known_pace(values, flags)
        images = 60 * values.minutes * pace
        start = time.perf_counter()
        model, steps = trained(flags, seed, values, images)
        seconds = time.perf_counter() - start
        shares = probed(model, values)
        return {
            "changed": change,
            "images_per_second": pace,
            "steps": steps,
            "seconds": round(seconds),
            **shares,
        }

    key = _key(change, seed, values)
    return once(values.results / "minutes.json", key, train_and_probe)


def table(changes, results):
    """Means of the seeds in %, and gains over the first change, in Markdown.

    Gains are of the same seeds, with half their 95 % interval. `results` has a
    list for each seed.
    """
    rows, shares = [], []
    for change, seeds in zip(changes, zip(*results, strict=True), strict=True):
        shares.append([[100 * x[probe] for x in seeds] for probe in PROBES])
        cells = [f"{np.mean(each):.1f}" for each in shares[-1]]
        if len(shares) > 1:
            gains = np.subtract(shares[-1], shares[0])
            halves = _half_interval(gains)
            for place, half in enumerate(halves):
                gain = f"{gains[place].mean():+.1f} ± {half:.1f}"
                cells[place] += f" ({gain})"
        rows.append([json.dumps(change), *cells])
    return markdown(["change", *PROBES], rows)


def _half_interval(gains):
    """Of each row's mean, by Student's t: nan where there is one seed."""
    count = gains.shape[1]
    if count < 2:
        return [float("nan")] * len(gains)
    deviations = gains.std(axis=1, ddof=1) / count**0.5
    return scipy.stats.t.ppf(0.975, count - 1) * deviations


def is_stored(change, seed, values):
    """Whether there is a result."""
    key = _key(change, seed, values)
    results = stored(values.results / "minutes.json")
    return any(key.items() <= result.items() for result in results)


def _key(change, seed, values):
    return {
        "data": values.data,
        "splits": list(_splits(values)),
        "minutes": values.minutes,
        "seed": seed,
        "flags": all_flags({**OF_DATA[values.data], **change}, values),
    }


def measure(changes, values):
    """Stores how many images a second each change trains on."""
    path = values.results / "paces.json"
    waiting = {}
    for change in changes:
        flags = {**OF_DATA[values.data], **change}
        if known_pace(values, flags) is None:
            waiting[json.dumps(_of_pace(flags, values), sort_keys=True)] = flags
    clock = _clock(_SECONDS) if waiting else None
    trainings = {
        key: (*_built(flags, 0, values, 10**6), [])
        for key, flags in waiting.items()
    }
    for turn in range(_TURNS + 1):
        for model, dataset, found in trainings.values():
            model.fit(
                dataset.repeat(),
                steps_per_epoch=10**6,
                verbose=0,
                callbacks=[clock],
            )
            if turn:  # The first compiles.
                size = _batch_size(dataset)
                found.append(size * clock.steps_per_second())
    for key, (_, _, found) in trainings.items():
        result = {
            "data": values.data,
            "flags": json.loads(key),
            "images_per_second": round(statistics.median(found), 1),
            "range": [round(min(found), 1), round(max(found), 1)],
            **circumstances(),
        }
        store(path, [*stored(path), result])
        report(json.dumps(result))


def _clock(seconds):
    """A callback that ends training after that time, and knows the pace."""
    import keras

    class Clock(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.ends = []

        def on_train_batch_end(self, batch, logs=None):
            float(logs["loss"])  # Waits for the device.
            self.ends.append(time.perf_counter())
            if len(self.ends) > _WARM_UP + 2:
                passed = self.ends[-1] - self.ends[_WARM_UP]
                self.model.stop_training = passed > seconds

        def steps_per_second(self):
            ends = self.ends[_WARM_UP:]
            return (len(ends) - 1) / (ends[-1] - ends[0])

    return Clock()


def _batch_size(dataset):
    from keras_simclr import elements

    return elements.unpack(dataset.element_spec)["images"].shape[0]


def known_pace(values, flags):
    """What was measured on this processor, or None."""
    here = {
        "data": values.data,
        "flags": _of_pace(flags, values),
        **processor(),
    }
    for result in stored(values.results / "paces.json"):
        if here.items() <= result.items():
            return result["images_per_second"]
    return None


def _of_pace(flags, values):
    """Of all flags, those that change how long a step takes."""
    found = all_flags(flags, values)
    return {k: v for k, v in found.items() if k in _SLOWING}


def all_flags(flags, values):
    """All flags that say something: others may come, and do nothing."""
    from keras_simclr.recipe import AUTO, Recipe

    recipe = Recipe(**flags)
    of_shape = recipe.for_shape(_SHAPES[values.data])
    found = {**dataclasses.asdict(recipe), **of_shape}
    del found["seed"]
    return {k: v for k, v in found.items() if v not in (None, False, AUTO)}


def _built(flags, seed, values, steps):
    """The compiled model for so many steps, and the images."""
    import keras

    from keras_simclr import devices
    from keras_simclr.recipe import Data, Recipe

    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy(devices.fastest_precision())
    recipe = Recipe(**flags, epochs=1, seed=seed)
    train, _ = _splits(values)
    _, dataset = recipe.open(Data(**_place(values), split=train))
    return recipe.build(dataset.element_spec, steps), dataset


def trained(flags, seed, values, images):
    """The model after so many images, and its steps."""
    from keras_simclr import features

    _, dataset = _built(flags, seed, values, 1)
    steps = round(images / _batch_size(dataset))
    model, dataset = _built(flags, seed, values, steps)
    if flags.get("start_from"):  # As `pretrain` does.
        features.settle_on(model, dataset)
    model.fit(dataset.repeat(), steps_per_epoch=steps, verbose=0)
    return model, steps


def probed(model, values):
    """Shares of 1 that probes of the encoder reach."""
    import keras_simclr as simclr

    train, test = arrays_of(values)
    labels = None if values.test else _LABELS
    train = [array[:labels] for array in train]
    features = [
        simclr.extract_features(model, images) for images in (train[0], test[0])
    ]
    return shares(features[0], train[1], features[1], test[1])


def shares(features, labels, test_features, test_labels):
    """Shares of the test images that probes of features get right.

    Args:
        features: (N, D), to learn from.
        labels: (N,)
        test_features: (M, D)
        test_labels: (M,)

    Returns:
        Dictionary: of a linear probe and of k-NN with all labels, and of a
        linear probe with few, the mean of several draws.
    """
    import keras_simclr as simclr

    arrays = features, labels, test_features, test_labels
    few = []
    for draw in range(_DRAWS):
        rng = np.random.default_rng(draw)
        rows = np.concatenate(
            [
                rng.choice(np.flatnonzero(labels == name), _FEW, replace=False)
                for name in np.unique(labels)
            ]
        )
        probe = simclr.linear_probe(features[rows], labels[rows], *arrays[2:])
        few.append(probe.accuracy)
    return {
        "linear": simclr.linear_probe(*arrays).accuracy,
        "knn": simclr.knn_probe(*arrays).accuracy,
        "few_labels": round(statistics.fmean(few), 5),
    }


def arrays_of(values):
    """Images and labels: to train on, and to test on."""
    from keras_simclr.recipe import Data

    found = []
    for split in _splits(values):
        _, dataset = Data(**_place(values), split=split).open_in_order(32)
        batches = list(dataset.as_numpy_iterator())
        parts = zip(*batches, strict=True)
        found.append([np.concatenate(part) for part in parts])
    return found


def _splits(values):
    """To train on and to test on: others than these, if `values` has some."""
    own = _SPLITS[values.data][2:] if values.test else _SPLITS[values.data][:2]
    return getattr(values, "splits", own)


def _place(values):
    if values.data == "cifar10":
        return {"data": values.cifar10}
    return {"data": f"tfds:{values.data}", "data_dir": values.data_dir}


if __name__ == "__main__":
    main()
