"""What `keras-simclr pretrain` reaches on Fashion-MNIST.

    python benchmarks/recipes/recipe.py [--results=DIR] [--data_dir=DIR]

trains with its defaults, but for `RECIPE`, three seeds, and probes on the test
images: an hour. With `--search` it tries what the defaults were chosen from:
`BASE`, for few epochs, with one change at a time; it trains on 54,000 of the
training images and probes on the other 6,000. What is in `recipe.json` of
`--results` is not run again; by default these are the results kept here, and
an empty directory has all of it run anew.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from benchmarks.recipes.probes import probe_run
from benchmarks.results import add_results_flag, once

_RESULTS = pathlib.Path(__file__).parent / "results"
_KEPT, _HELD_OUT = "train[:90%]", "train[90%:]"
_IMAGES = 60_000  # Of Fashion-MNIST; nine tenths have as many epochs.
_LABELS = 20_000  # That the probes of the search learn from.

# Shoes and bags all face one way: what a flip makes of them is never seen.
RECIPE = {"flip_rate": 0}

BASE = {"depth": 10, "width_multiplier": 0.25, "epochs": 3}
CHANGES = (
    {},
    {"batch_size": 128},
    {"batch_size": 512},
    {"blur_rate": 0},
    {"flip_rate": 0},
    {"grayscale_rate": 0},
    {"learning_rate": 0.5},
    {"learning_rate": 2},
    {"projection_layers": 3},
    {"smallest_crop": 0.08},
    {"smallest_crop": 0.4},
    {"strength": 0.5},
    {"strength": 1.5},
    {"temperature": 0.1},
    {"temperature": 0.5},
    {"weight_decay": 1e-4},
    {"width_multiplier": 0.5},
    {"stem": "imagenet", "width_multiplier": 1},
)


def main():
    """Reads the flags and runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", help="Directory of prepared TFDS data.")
    add_results_flag(parser, _RESULTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--search", action="store_true")
    parser.add_argument(
        "--change",
        type=json.loads,
        action="append",
        help="Search with this change, as JSON; by default with all.",
    )
    values = parser.parse_args()
    if values.search or values.change:
        for change in values.change or CHANGES:
            chosen = {**BASE, **change}
            run(chosen, 0, values, (_KEPT, _HELD_OUT), _LABELS)
        return
    results = [
        run(RECIPE, seed, values, ("train", "test"))
        for seed in range(values.seeds)
    ]
    for probe in ("linear", "knn"):
        shares = [result[probe] for result in results]
        sys.stdout.write(
            f"{probe}: {100 * statistics.fmean(shares):.2f} %, the worst of "
            f"{len(shares)} seeds {100 * min(shares):.2f} %\n"
        )


def run(changed, seed, values, splits, labels=None):
    """Trains and probes, unless the results are there.

    Args:
        changed: Dictionary: flags of `pretrain` other than its defaults.
        seed: Integer.
        values: Flags `data_dir` and `results`.
        splits: Pair: to learn from and to test on.
        labels: Most labels that the probes learn from, or None for all.

    Returns:
        Dictionary: the flags of training (`auto` as it is: processors differ),
        seed, splits, shares of 1 and minutes.
    """
    from keras_simclr.recipe import Recipe

    given = {"data": "tfds:fashion_mnist", "split": splits[0], "seed": seed}
    if values.data_dir:
        given["data_dir"] = values.data_dir

    def train_and_probe():
        with tempfile.TemporaryDirectory() as directory:
            run_dir = pathlib.Path(directory, "run")
            flagged = {**given, **changed, "output_dir": run_dir}
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "keras_simclr", "pretrain"]
                + [f"--{name}={value}" for name, value in flagged.items()],
                check=True,
                stdout=sys.stderr,
            )
            minutes = round((time.perf_counter() - start) / 60, 1)
            shares = probe_run(run_dir, splits, values.data_dir, labels)
        return {**shares, "minutes": minutes}

    recipe = Recipe(**changed)
    recipe = recipe.completed(_IMAGES // recipe.batch_size)
    flags = dataclasses.asdict(recipe)
    del flags["seed"]
    key = {"flags": flags, "seed": seed, "splits": list(splits)}
    return once(values.results / "recipe.json", key, train_and_probe)


if __name__ == "__main__":
    main()
