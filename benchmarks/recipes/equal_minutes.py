r"""What keras_simclr and lightly reach in the same minutes of training.

    python benchmarks/recipes/equal_minutes.py --cifar10=CIFAR10.npz \
        [--data=cifar10] [--minutes=10] [--seeds=3] [--test]

The same encoder for all, on two cores. How fast each trains is measured first,
in turns; then each trains for as many steps as it takes in that time, a tenth
of them at a time, in turns, and is probed: on held-out training images, or,
with `--test`, on the test images, having trained on all others. What is in
`equal_minutes.json` of `--results` is not run again.

lightly is there as its documentation has it; and tuned: in bfloat16, channels
last, both views in one pass, by albumentations, with the recipe of
dkobak/simclr-cifar10@44b2500 (its README's best of 100 epochs).
"""

import contextlib
import pathlib
import statistics
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import numpy as np

from benchmarks.recipes import minutes
from benchmarks.results import circumstances, markdown, report, store, stored
from benchmarks.speed.processes import Contender, Worker, set_up_environments

_WIDTH = 0.5  # Of all encoders, a ResNet-10: what `pretrain` has.
_SGD = {"name": "SGD", "momentum": 0.9, "weight_decay": 5e-4}
_RECIPES = {
    "lightly, tuned": {
        **_SGD,
        "is_tuned": True,
        "workers": 1,
        "batch_size": 512,
        "lr": 0.12,
        "temperature": 0.5,
        "hidden": 1024,
        "augmentation": {
            "min_scale": 0.2,
            "strength": 0.5,
            "grayscale_rate": 0.1,
            "blur_rate": 0.0,
        },
    },
    "lightly, documented": {
        **_SGD,
        "is_tuned": False,
        "workers": 2,
        "batch_size": 256,
        "lr": 0.06,
    },
}
_PARTS = 10
_TURNS, _SECONDS, _STEPS = 3, 4.0, 10_000  # Of measuring, and never so many.


def main():
    """Reads the flags and runs."""
    parser = minutes.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    values = parser.parse_args()
    missing = [seed for seed in range(values.seeds) if not _found(seed, values)]
    if missing:
        set_up_environments("torch")
        with tempfile.TemporaryDirectory() as directory:
            train, test = minutes.arrays_of(values)
            data = pathlib.Path(directory, "data.npz")
            np.savez(data, images=train[0], test_images=test[0])
            paces = _paces(data, values)
            for seed in missing:
                rows = _trained(data, paces, seed, values)
                _keep(seed, rows, train[1], test[1], values)
    report(_table(values))


def _contenders(data, values, **arguments):
    """All, on that data."""
    from keras_simclr.recipe import Recipe

    of_data = minutes.OF_DATA[values.data]
    arguments = {"data": str(data), **arguments}
    yield Contender(
        "keras_simclr",
        "contenders_ours:Pretraining",
        {
            "width_multiplier": _WIDTH,
            "batch_size": Recipe.batch_size,
            **of_data,
            **arguments,
        },
    )
    for name, recipe in _RECIPES.items():
        own = {**recipe, "width": _WIDTH, **arguments}
        if of_data:
            flip = "flip_rate" if own["is_tuned"] else "hf_prob"
            own["augmentation"] = {
                **own.get("augmentation", {}),
                flip: of_data["flip_rate"],
            }
        yield Contender(name, "contenders_torch:Pretraining", own)


def _paces(data, values):
    """Images a second of each contender, measured in turns."""
    found = {}
    with contextlib.ExitStack() as stack:
        workers = _ready(
            stack, _contenders(data, values, steps=_STEPS, parts=_STEPS // 4)
        )
        for turn in range(_TURNS + 1):
            for name, worker in workers.items():
                answer = worker.ask(_SECONDS)
                if turn:  # The first compiles.
                    pace = answer["items"] / answer["seconds"]
                    found.setdefault(name, []).append(pace)
    paces = {name: statistics.median(x) for name, x in found.items()}
    report(f"Images a second: {paces}")
    return paces


def _ready(stack, contenders):
    """Workers by name; they end with the stack."""
    workers = {}
    for contender in contenders:
        worker = Worker(contender, cores=2)
        stack.callback(worker.close)
        worker.ask()
        workers[contender.name] = worker
    return workers


def _trained(data, paces, seed, values):
    """Features, steps and seconds of each contender."""
    contenders = []
    for contender in _contenders(data, values, parts=_PARTS, seed=seed):
        images = paces[contender.name] * 60 * values.minutes
        steps = round(images / contender.arguments["batch_size"])
        arguments = {**contender.arguments, "steps": steps}
        contenders.append(Contender(contender.name, contender.work, arguments))
    rows = {}
    with contextlib.ExitStack() as stack:
        workers = _ready(stack, contenders)
        seconds = dict.fromkeys(workers, 0.0)
        for part in range(_PARTS):
            for name, worker in workers.items():
                seconds[name] += worker.ask(0)["seconds"]
            report(f"Seed {seed}: {part + 1} of {_PARTS} parts.")
        for contender in contenders:
            name = contender.name
            path = data.with_name("features.npz")
            workers[name].ask(path)
            rows[name] = {
                "features": dict(np.load(path)),
                "images_per_second": round(paces[name], 1),
                "steps": contender.arguments["steps"],
                "seconds": round(seconds[name]),
            }
    return rows


def _keep(seed, rows, labels, test_labels, values):
    """Stores what probes say of the contenders' features."""
    path = values.results / "equal_minutes.json"
    for name, row in rows.items():
        h = row.pop("features")
        shares = minutes.shares(h["train"], labels, h["test"], test_labels)
        result = {
            **_key(seed, values),
            "contender": name,
            **row,
            **shares,
            **circumstances(),
        }
        store(path, [*stored(path), result])
        report(f"{name}: {shares}")


def _key(seed, values):
    return {
        "data": values.data,
        "minutes": values.minutes,
        "test": values.test,
        "seed": seed,
    }


def _found(seed, values):
    """What is stored of a seed: results by contender."""
    key = _key(seed, values)
    return {
        result["contender"]: result
        for result in stored(values.results / "equal_minutes.json")
        if key.items() <= result.items()
    }


def _table(values):
    """Means of the seeds, and how far ours is ahead at least, in Markdown."""
    seeds = [_found(seed, values) for seed in range(values.seeds)]
    rows = []
    for name in ("keras_simclr", *_RECIPES):
        cells = []
        for probe in minutes.PROBES:
            own = [100 * seed[name][probe] for seed in seeds]
            ours = [100 * seed["keras_simclr"][probe] for seed in seeds]
            leads = np.subtract(ours, own)
            cells.append(f"{np.mean(own):.1f}")
            if name != "keras_simclr":
                cells[-1] += f" ({leads.min():+.1f} to {leads.max():+.1f})"
        pace = statistics.median(x[name]["images_per_second"] for x in seeds)
        rows.append([name, f"{pace:,.0f}", *cells])
    titles = ["", "images/s", *(f"{probe}, %" for probe in minutes.PROBES)]
    return markdown(titles, rows)


if __name__ == "__main__":
    main()
