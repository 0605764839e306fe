r"""Whether it helps to start from an encoder of other images.

    python benchmarks/recipes/continuing.py --cifar10=CIFAR10.npz \
        [--minutes=6] [--share=0.33] [--rate=0.3 ...] [--seed=0]

pretrains on the first 25,000 images of CIFAR-10, and on the other 25,000 from
nothing, for as many steps as that time takes; then on the others from the
encoder of the first, for a share of the time, at each rate. All are probed on
the test images, with the labels of the others. What is in `continuing.json` of
`--results` is not run again.
"""

import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from benchmarks.recipes import minutes
from benchmarks.results import markdown, once, report

_FIRST, _OTHERS, _TEST = "train[:25000]", "train[25000:50000]", "train[50000:]"
_FLAGS = {"depth": 10, "width_multiplier": 0.25}


def main():
    """Reads the flags and runs."""
    parser = minutes.parser(__doc__)
    parser.set_defaults(minutes=6.0)
    parser.add_argument("--share", type=float, default=1 / 3)
    parser.add_argument("--rate", type=float, action="append")
    parser.add_argument("--seed", type=int, action="append")
    values = parser.parse_args()
    values.splits = _OTHERS, _TEST
    minutes.measure([_FLAGS], values)
    for seed in values.seed or [0]:
        results = [_run(None, seed, values)]
        results += [_run(x, seed, values) for x in values.rate or [0.3]]
        report(_table(results))


def _run(rate, seed, values):
    """From nothing, or from the other encoder at that rate."""
    share = 1.0 if rate is None else values.share
    key = {
        "minutes": values.minutes,
        "share": share,
        "rate": rate,
        "seed": seed,
        "flags": minutes.all_flags(_FLAGS, values),
    }

    def train_and_probe():
        flags = _FLAGS
        if rate is not None:
            flags = {"start_from": _start(seed, values), "learning_rate": rate}
        images = share * _images(values)
        model, steps = minutes.trained(flags, seed, values, images)
        return {"steps": steps, **minutes.probed(model, values)}

    return once(values.results / "continuing.json", key, train_and_probe)


def _start(seed, values):
    """Path of the encoder of the first images, trained if it is not there."""
    directory = pathlib.Path(tempfile.gettempdir(), "continuing")
    path = directory / f"{values.minutes:g}-{seed}.keras"
    if not path.exists():
        directory.mkdir(exist_ok=True)
        values.splits = _FIRST, _TEST
        model, _ = minutes.trained(_FLAGS, seed, values, _images(values))
        values.splits = _OTHERS, _TEST
        model.encoder.save(path)
    return str(path)


def _images(values):
    return 60 * values.minutes * minutes.known_pace(values, _FLAGS)


def _table(results):
    rows = []
    for result in results:
        rate, share = result["rate"], result["share"]
        name = f"from the other, rate {rate}" if rate else "from nothing"
        cells = [f"{100 * result[probe]:.1f}" for probe in minutes.PROBES]
        rows.append([name, f"{share * result['minutes']:.1f}", *cells])
    titles = ["", "minutes", *(f"{probe}, %" for probe in minutes.PROBES)]
    return markdown(titles, rows)


if __name__ == "__main__":
    main()
