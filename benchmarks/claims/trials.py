"""A claim of the paper, and running what has to be tried for it."""

import argparse
import dataclasses
import gc
import pathlib
import time

import keras

from benchmarks.claims.data import load_data
from benchmarks.claims.training import RECIPE
from benchmarks.results import (
    add_results_flag,
    circumstances,
    report,
    store,
    stored,
)
from keras_simclr import devices

RESULTS = pathlib.Path(__file__).parent / "results"
_QUICK = {"images": 256, "epochs": 1, "batch_size": 64, "distilled_epochs": 1}


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


def main(claim):
    """Reads the flags and runs what is not stored yet."""
    parser = argparse.ArgumentParser(description=claim.title)
    add_results_flag(parser, RESULTS)
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
    parser.add_argument("--cifar10", help="File of CIFAR-10, for that script.")
    parser.add_argument(
        "--precision",
        default="mixed_bfloat16",
        help="Where the processor has no bfloat16 float32 is faster.",
    )
    parser.add_argument("--manifest", help="What `scan` found in that folder.")
    arguments = parser.parse_args()
    keras.config.set_dtype_policy(arguments.precision)
    path = arguments.results / f"{claim.name}.json"
    runs = [] if arguments.quick else stored(path)
    for seed in range(1 if arguments.quick else arguments.seeds):
        for config in claim.configurations(seed, runs):
            if arguments.quick:
                config |= {k: _QUICK[k] for k in _QUICK.keys() & config}
            if any(run["config"] == config for run in runs):
                continue
            if config["data"] == "cifar10" and not arguments.cifar10:
                report("Of CIFAR-10 nothing is run: --cifar10 names its file.")
                continue
            runs.append(_run(claim, config, arguments))
            if not arguments.quick:
                # Another process may have stored some meanwhile.
                store(path, [*stored(path), runs[-1]])


def _run(claim, config, arguments):
    devices.forget_models()
    gc.collect()
    keras.utils.set_random_seed(config["seed"])
    data = load_data(config, arguments)
    start = time.perf_counter()
    result = claim.work(config, data)
    if arguments.precision != "mixed_bfloat16":
        result["precision"] = arguments.precision
    result["seconds"] = round(time.perf_counter() - start, 1)
    varied = {k: v for k, v in config.items() if RECIPE.get(k) != v}
    report(f"{claim.name} {varied}: {result}")
    return {"config": config, "result": result, **circumstances()}
