"""Memory and time of a training step, by batch size and with micro-batches.

    python benchmarks/speed/large_batch.py [--width=1.0] [--largest=8192]

ResNet-18 on 32 px images, two cores. Each contender has a fresh process, and
one unit of work is a whole step, augmentation included. A plain batch of 64
works for some seconds before and after each unit: ratios compare what saw the
same machine. 25 minutes.
"""

import argparse
import dataclasses
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from benchmarks.results import keep_table, markdown, report
from benchmarks.speed.processes import (
    Contender,
    ContenderError,
    Worker,
    set_up_environments,
)

_BATCH_SIZES = (64, 256, 1024, 4096, 8192)
_LIMIT = 16  # GiB.


@dataclasses.dataclass(frozen=True)
class _Way:
    """Somebody's training step.

    Attributes:
        work: As in `Contender`.
        arguments: Of that function, but for width, steps and batch size.
        mib_per_image: What it holds at full width, as measured here.
    """

    work: str
    arguments: dict
    mib_per_image: float


_OURS = {"precision": "mixed_bfloat16"}
_WAYS = {
    "keras_simclr": _Way("contenders_ours:training", _OURS, 9.0),
    "keras_simclr, micro-batches of 64": _Way(
        "contenders_ours:training", {**_OURS, "micro_batch_size": 64}, 0.0
    ),
    "lightly, tuned": _Way(
        "contenders_torch:training", {"is_tuned": True, "workers": 1}, 4.9
    ),
}


def main():
    """Reads the flags and measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--largest", type=int, default=_BATCH_SIZES[-1])
    arguments = parser.parse_args()
    set_up_environments()
    run(arguments.width, [x for x in _BATCH_SIZES if x <= arguments.largest])


def run(width, batch_sizes):
    """Measures all ways at all batch sizes, and keeps the table."""
    plain = _worker("keras_simclr", width, 64)
    plain.ask()
    base = [plain.ask(0.0)]  # Warms up.
    rows = []
    for batch_size in batch_sizes:
        for name, way in _WAYS.items():
            row = {"batch_size": batch_size, "way": name}
            rows.append(row)
            needed = way.mib_per_image * width * batch_size / 1024
            if needed > _LIMIT:
                row["failed"] = f"needs about {needed:.0f} GiB"
                continue
            worker = _worker(name, width, batch_size)
            try:
                _measure(worker, plain, base, row)
            except ContenderError as error:
                row["failed"] = f"failed: {error}"
            worker.close()
            report(str(row))
    plain.close()
    keep_table(
        f"Batches of 64 to {batch_sizes[-1]:,}, ResNet-18 of width {width:g}",
        _table(rows, max(x["peak_mib"] for x in base)),
        rows=rows,
        base=base,
    )


def _worker(name, width, batch_size):
    way = _WAYS[name]
    size = {"width": width, "batch_size": batch_size, "steps": 1}
    return Worker(Contender(name, way.work, {**way.arguments, **size}), cores=2)


def _measure(worker, plain, base, row):
    """Turns between those of the plain batch of 64."""
    row["versions"] = worker.ask()["versions"]
    turns = []
    base.append(plain.ask(5.0))
    while True:
        turns.append(worker.ask(5.0))
        base.append(plain.ask(5.0))
        before, now, after = (
            1000 * x["seconds"] / x["items"]
            for x in (base[-2], turns[-1], base[-1])
        )
        turns[-1].update(ms=now, ratio=2 * now / (before + after))
        # The first warms up, unless it takes minutes: then it is the only one.
        first = turns[0]["seconds"]
        if len(turns) == (1 if first > 100 else 2 if first > 20 else 6):
            break
    for name in ("ms", "ratio"):
        row[name] = statistics.median(x[name] for x in turns[1:] or turns)
    row["peak_mib"] = max(x["peak_mib"] for x in turns)
    row["turns"] = turns


def _table(rows, peak):
    lines = []
    for row in rows:
        if "failed" in row:
            cells = [row["failed"], "", "", ""]
        else:
            cells = [
                f"{row['ms']:.1f}",
                f"{row['ratio']:.2f}",
                f"{row['peak_mib']:,.0f}",
                f"{row['peak_mib'] / peak:.2f}",
            ]
        lines.append([f"{row['batch_size']:,}", row["way"], *cells])
    titles = ["batch", "", "ms an image", "to a plain 64"]
    titles += ["peak MiB", "to a plain 64"]
    return markdown(titles, lines)


if __name__ == "__main__":
    main()
