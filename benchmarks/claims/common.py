"""What the scripts of the claims share: data, training, storing, verdicts."""

import argparse
import dataclasses
import datetime
import functools
import gc
import json
import math
import os
import pathlib
import statistics
import sys
import time

RESULTS = pathlib.Path(__file__).parent / "results"

# The defaults of `keras-simclr pretrain`, made small.
RECIPE = {
    "data": "fashion_mnist",
    "images": 4096,
    "width": 0.25,
    "batch_size": 128,
    "epochs": 6,
    "learning_rate": 1.0,  # At a batch of 256.
    "smallest_crop": 0.2,
    "evaluated_on": "test",
}
TEMPERATURE = 0.2
_QUICK = {"images": 256, "epochs": 1, "batch_size": 64}
_HELD_OUT = 5_000  # Training images to choose on.


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of the paper and how it is tried.

    Attributes:
        name: Of the script and of what it stores.
        title: Heading in the report.
        paper: What the paper says, with the place.
        here: How the trial differs, beyond its scale.
        configurations: Generator `(seed, runs)` of configurations; `runs`
            holds what is known by then.
        work: Function `(config, data)` that returns measures, shares of 1.
        statements: Function `(runs)` that returns a list of `Statement`.
        plot: Function `(runs, axes)`, or None for points.
        seeds: How many seeds by default.
    """

    name: str
    title: str
    paper: str
    here: str
    configurations: object
    work: object
    statements: object
    plot: object = None
    seeds: int = 3


@dataclasses.dataclass(frozen=True)
class Statement:
    """A sentence and whether it is so.

    Attributes:
        text: What the paper leads one to expect.
        verdict: Holds, does not hold, open or not run.
        evidence: The numbers.
    """

    text: str
    verdict: str
    evidence: str


@dataclasses.dataclass(frozen=True)
class Data:
    """Pairs of images and labels."""

    train: tuple
    held_out: tuple
    test: tuple


# Verdicts.


def interval(values):
    """Mean, and half the width of its 95 % t interval.

    Args:
        values: Numbers, one for each seed.

    Returns:
        Pair of numbers; the second is infinite for a single value.
    """
    from keras_simclr import sampling

    if len(values) < 2:
        return values[0], math.inf
    low, high = sampling.interval([[value] for value in values])
    return statistics.fmean(values), (high - low) / 2


def statement(text, differences, above=0.0):
    """Judges from differences that should lie above a number.

    It holds if the 95 % interval of their mean lies above `above`, does not
    hold if it lies below, and is open otherwise.

    Args:
        text: The sentence.
        differences: Shares of 1, one for each seed.
        above: Share of 1.

    Returns:
        A `Statement`.
    """
    if not differences:
        return Statement(text, "not run", "")
    mean, half = interval(differences)
    if mean - half > above:
        verdict = "holds"
    elif mean + half < above:
        verdict = "does not hold"
    else:
        verdict = "open"
    evidence = f"{100 * mean:+.2f} points, one seed"
    if len(differences) > 1:
        low, high = 100 * (mean - half), 100 * (mean + half)
        evidence = (
            f"{100 * mean:+.2f} points ({low:+.2f} to {high:+.2f}), "
            f"{len(differences)} seeds"
        )
    return Statement(text, verdict, evidence)


def by_seed(runs, measure="accuracy", **where):
    """A measure of the runs with these settings, by their seeds."""
    return {
        run["config"]["seed"]: run["result"][measure]
        for run in runs
        if where.items() <= run["config"].items()
    }


def differences(first, second):
    """First less second, for the seeds that both have."""
    return [
        first[seed] - second[seed] for seed in sorted(first.keys() & second)
    ]


# Running and storing.


def main(claim):
    """Reads the flags and runs what is not stored yet."""
    parser = argparse.ArgumentParser(description=claim.title)
    add_results_flag(parser)
    parser.add_argument(
        "--quick", action="store_true", help="Tiny; stores nothing."
    )
    parser.add_argument("--seeds", type=int, default=claim.seeds)
    parser.add_argument("--data_dir", help="Directory of prepared TFDS data.")
    parser.add_argument(
        "--data",
        default="/usr/share/openclipart/png",
        help="Folder of Open Clip Art, for the script that needs it.",
    )
    parser.add_argument("--manifest", help="What `scan` found in that folder.")
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    keras.config.set_dtype_policy("mixed_bfloat16")
    runs = [] if arguments.quick else stored(claim.name, arguments.results)
    for seed in range(1 if arguments.quick else arguments.seeds):
        for config in claim.configurations(seed, runs):
            if arguments.quick:
                config = {**config, **_QUICK}
            if any(run["config"] == config for run in runs):
                continue
            runs.append(_run(claim, config, arguments))
            if not arguments.quick:
                # Another process may have stored some meanwhile.
                others = stored(claim.name, arguments.results)
                results = [*others, runs[-1]]
                store(claim.name, results, arguments.results)


def _run(claim, config, arguments):
    import keras

    from keras_simclr import devices

    devices.forget_models()
    gc.collect()
    keras.utils.set_random_seed(config["seed"])
    data = _load(config["data"], config["images"], arguments)
    start = time.perf_counter()
    result = claim.work(config, data)
    result["seconds"] = round(time.perf_counter() - start, 1)
    varied = {k: v for k, v in config.items() if RECIPE.get(k) != v}
    sys.stdout.write(f"{claim.name} {varied}: {result}\n")
    sys.stdout.flush()
    return {"config": config, "result": result, **_circumstances()}


def add_results_flag(parser):
    """Adds `--results` to an `ArgumentParser`."""
    parser.add_argument(
        "--results",
        type=pathlib.Path,
        default=RESULTS,
        help="Directory of results. What is there is not run again: an empty "
        "one has everything run anew.",
    )


def stored(name, results=RESULTS):
    """What a script has stored: a list of dictionaries."""
    path = results / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else []


def store(name, runs, results=RESULTS):
    """Stores a list of dictionaries, a line each, in place of what there is."""
    results.mkdir(parents=True, exist_ok=True)
    part = results / f"{name}.part"
    lines = ",\n".join(json.dumps(run) for run in runs)
    part.write_text(f"[\n{lines}\n]\n")
    part.replace(results / f"{name}.json")


def once(name, key, make, results=RESULTS):
    """A result that is stored, or is made and stored; it is printed.

    Args:
        name: Of the script.
        key: Dictionary that tells the result from all others.
        make: Function without arguments that returns what else it holds.
        results: Directory.

    Returns:
        Dictionary that holds `key` and says where and when it was made.
    """
    for result in stored(name, results):
        if key.items() <= result.items():
            break
    else:
        result = {**key, **make(), **_circumstances()}
        store(name, [*stored(name, results), result], results)
    sys.stdout.write(f"{json.dumps(result)}\n")
    sys.stdout.flush()
    return result


def _circumstances():
    from keras_simclr import cards

    info = pathlib.Path("/proc/cpuinfo").read_text()
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": info.split("model name")[1].split("\n")[0].strip("\t :"),
        "cores": len(os.sched_getaffinity(0)),
        "versions": cards.versions(),
    }


# Data.


def _load(name, images, arguments):
    if name == "fashion_mnist":
        data = _fashion_mnist(arguments.data_dir)
    else:
        data = _clip_art(arguments.data, arguments.manifest)
    train = tuple(array[:images] for array in data.train)
    return dataclasses.replace(data, train=train)


@functools.cache
def _fashion_mnist(data_dir):
    """The training images in a fixed order, the last of them held out."""
    import numpy as np

    sys.path.insert(0, str(RESULTS.parents[1]))
    from images import fashion_mnist

    train, test = fashion_mnist("train", "test", data_dir=data_dir)
    order = np.random.default_rng(0).permutation(len(train[0]))
    kept, held = order[:-_HELD_OUT], order[-_HELD_OUT:]
    return Data(
        train=tuple(array[kept] for array in train),
        held_out=tuple(array[held] for array in train),
        test=test,
    )


@functools.cache
def _clip_art(directory, manifest):
    """Two thirds to train on, the others to test."""
    import numpy as np

    images, labels = _squeezed(directory, manifest)
    test, train = np.split(
        np.random.default_rng(0).permutation(len(labels)), [len(labels) // 3]
    )
    train, test = ((images[x], labels[x]) for x in (train, test))
    return Data(train=train, held_out=test, test=test)


def _squeezed(directory, manifest, size=32, smallest_class=100):
    """One image of each group of duplicates, squeezed to a square.

    Its label is the top-level folder; of those with enough images.
    """
    import tempfile

    import numpy as np

    import keras_simclr as simclr
    from keras_simclr import folders, scanning

    with tempfile.TemporaryDirectory() as temporary:
        if manifest is None:
            manifest = pathlib.Path(temporary, "manifest.parquet")
            scanning.scan(directory, manifest)
        folder = folders.ImageFolder(directory, manifest=manifest)
    places = np.arange(len(folder.paths))
    if folder.groups is not None:
        places = np.unique(folder.groups, return_index=True)[1]
    counts = np.bincount(folder.labels[places])
    places = places[counts[folder.labels[places]] >= smallest_class]
    folder.paths = [folder.paths[place] for place in places]
    folder.labels, folder.groups = folder.labels[places], None
    dataset = simclr.dataset_from_directory(
        folder, canvas_size=4 * size, shuffle=False, drop_remainder=False
    )
    squeeze = simclr.RandomResizedCrop(size, size)
    images, labels = [], []
    for batch in dataset:
        squeezed = squeeze(
            batch["images"], training=False, sizes=batch["sizes"]
        )
        images.append(np.round(255 * squeezed).astype("uint8"))
        labels.append(batch["labels"])
    return np.concatenate(images), np.concatenate(labels)


# Training.


def encoder(config, images):
    """ResNet-10 of the configuration's width, for these images."""
    import keras_simclr as simclr

    return simclr.ResNet(
        10,
        width_multiplier=config["width"],
        stem="cifar",
        input_shape=images.shape[1:],
    )


def pretrain(config, images, *, loss=None, layers=2, **augmentations):
    """Trains as `keras-simclr pretrain` does.

    Args:
        config: Dictionary with the keys of `RECIPE`, and `seed`.
        images: Array.
        loss: As `compile` takes it, or None for NT-Xent.
        layers: Layers of the projection head.
        **augmentations: `augmentation` and `second_augmentation` of
            `SimCLRModel`; without the first, the recipe's.

    Returns:
        The `SimCLRModel`, and the last epoch's measures.
    """
    import keras

    import keras_simclr as simclr

    size = images.shape[1]
    augmentations.setdefault(
        "augmentation",
        simclr.SimCLRAugmentation(size, scale=(config["smallest_crop"], 1.0)),
    )
    model = simclr.SimCLRModel(
        encoder(config, images),
        simclr.ProjectionHead(layers),
        seed=config["seed"],
        **augmentations,
    )
    steps = config["epochs"] * (len(images) // config["batch_size"])
    schedule = simclr.warmup_cosine(
        simclr.scaled_learning_rate(
            config["learning_rate"], config["batch_size"]
        ),
        steps,
        warmup_steps=steps // 10,
    )
    model.compile(
        simclr.LARS(
            keras.optimizers.SGD(schedule, momentum=0.9),
            trust_coefficient=0.02,
        ),
        loss or simclr.NTXent(TEMPERATURE),
    )
    history = model.fit(
        images,
        batch_size=config["batch_size"],
        epochs=config["epochs"],
        verbose=0,
    )
    return model, {k: v[-1] for k, v in history.history.items()}


def probe_run(run_dir, train, test):
    """Both probes of the encoder of a run.

    Args:
        run_dir: Directory that `pretrain` wrote.
        train: Pair of arrays, images and labels, to learn from.
        test: The same, to test on.

    Returns:
        Dictionary: `linear` and `knn`, shares of 1.
    """
    import keras_simclr as simclr
    from keras_simclr import runs

    model = runs.load_model(run_dir)
    arrays = []
    for images, labels in (train, test):
        arrays += [simclr.extract_features(model, images), labels]
    return {
        "linear": simclr.linear_probe(*arrays).accuracy,
        "knn": simclr.knn_probe(*arrays).accuracy,
    }


def probes(config, model, data, **transforms):
    """Accuracies of linear probes on the representations.

    Args:
        config: Dictionary with `evaluated_on` and `seed`.
        model: A `SimCLRModel`.
        data: `Data`.
        **transforms: By the names of further measures, functions from
            representations to what is probed, too.

    Returns:
        Dictionary of shares of the test images: `accuracy` and the others.
    """
    import numpy as np

    import keras_simclr as simclr

    train, test = data.train, getattr(data, config["evaluated_on"])
    features = [simclr.extract_features(model, x[0]) for x in (train, test)]

    def accuracy(train_features, test_features):
        return simclr.linear_probe(
            train_features,
            train[1],
            test_features,
            test[1],
            seed=config["seed"],
        ).accuracy

    result = {"accuracy": accuracy(*features)}
    for name, transform in transforms.items():
        transformed = [np.asarray(transform(x), "float32") for x in features]
        result[name] = accuracy(*transformed)
    return result


def train_and_probe(config, data, **options):
    """Pretrains and probes.

    Args:
        config: As `pretrain`.
        data: `Data`.
        **options: Of `pretrain`.

    Returns:
        Dictionary of measures; of a model that diverges all are 0.
    """
    model, last = pretrain(config, data.train[0], **options)
    if not math.isfinite(last["loss"]):
        return {"accuracy": 0.0, "contrastive_accuracy": 0.0}
    return {
        **probes(config, model, data),
        "contrastive_accuracy": round(last["contrastive_accuracy"], 4),
        "loss": round(last["loss"], 4),
    }
