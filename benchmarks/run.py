"""Measures keras_simclr beside its peers; see README.md.

python benchmarks/run.py [--quick] [--only=augmentation,loss]
"""

import argparse
import statistics

import processes
import time_to_accuracy
from processes import Contender, ContenderError, Worker


def main():
    """Sets up the environments and runs the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="Smaller, within five minutes."
    )
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=list(_COMPARISONS),
        help=f"Some of: {', '.join(_COMPARISONS)}.",
    )
    parser.add_argument("--data_dir", help="Directory of prepared TFDS data.")
    arguments = parser.parse_args()
    processes.set_up_environments()
    for name in arguments.only:
        if name != "time_to_accuracy":
            _COMPARISONS[name](arguments.quick)
        elif not arguments.quick:
            time_to_accuracy.run(data_dir=arguments.data_dir)


def augmentation(quick):
    """Views per second on one core."""
    for source, size, batch_size in ((32, 32, 256), (320, 224, 32)):
        sizes = {"source": source, "size": size, "batch_size": batch_size}
        contenders = [
            Contender(name, f"contenders_{place}augmentation", sizes)
            for name, place in (
                ("keras_simclr", "ours:"),
                ("albumentations", "torch:albumentations_"),
                ("lightly", "torch:lightly_"),
                ("kornia", "torch:kornia_"),
                ("torchvision v2", "torch:torchvision_"),
                ("Keras layers", "keras:layers_"),
                ("tf.image", "keras:tf_image_"),
                ("tensorflow-similarity", "similarity:"),
            )
        ]
        compare(
            f"Augmentation, {size} px from {source} px",
            "views/s",
            contenders[:3] if quick else contenders,
            cores=1,
            seconds=0.5 if quick else 2.0,
            quick=quick,
        )


def training(quick):
    """Images per second of the whole training step on two cores."""
    widths = {0.25: ("quarter", 2)} if quick else _WIDTHS
    peers = {
        "lightly, tuned": {"is_tuned": True, "workers": 1},
        "lightly, default": {"is_tuned": False, "workers": 2},
    }
    if not quick:  # Compiling takes a minute.
        peers["lightly, tuned and compiled"] = {
            **peers["lightly, tuned"],
            "is_compiled": True,
        }
    for width, (name, steps) in widths.items():
        size = {"width": width, "steps": steps}
        ours = [
            Contender(
                f"keras_simclr, {precision}",
                "contenders_ours:training",
                {**size, "precision": precision},
            )
            for precision in ("mixed_bfloat16", "float32")
        ]
        theirs = [
            Contender(peer, "contenders_torch:training", {**size, **arguments})
            for peer, arguments in peers.items()
        ]
        compare(
            f"Training step, ResNet-18 of {name} width, batch 256, 32 px",
            "images/s",
            ours + theirs,
            seconds=0.0,
            quick=quick,
        )


# Width multiplier: name, steps at a time.
_WIDTHS = {1.0: ("full", 1), 0.25: ("quarter", 4)}


def loss(quick):
    """Time and memory of the loss and its gradient on two cores."""
    counts = (256, 1024, 4096, 8192, 16384, 65536)
    for count in (4096,) if quick else counts:
        size = {"count": count}
        matrix = 4 * (2 * count) ** 2 / 2**30  # GiB
        compare(
            f"NT-Xent, forward and backward, N = {count:,}, D = 128",
            "ms",
            [
                Contender("keras_simclr", "contenders_ours:loss", size),
                Contender(
                    "lightly",
                    "contenders_torch:loss",
                    size,
                    _too_large(_MATRICES["lightly"] * matrix),
                ),
                Contender(
                    "tensorflow-similarity",
                    "contenders_similarity:loss",
                    size,
                    _too_large(_MATRICES["tensorflow-similarity"] * matrix),
                ),
                Contender(
                    "three products",
                    "contenders_ours:products",
                    size,
                    _too_large(3 * matrix),
                ),
                Contender(
                    "three products, 64 rows at a time",
                    "contenders_ours:products",
                    {**size, "rows": 64},
                ),
            ],
            has_memory=True,
            seconds=0.5,
            rounds=5 if count < 65536 else 0,
            quick=quick,
        )


# Copies of the similarities that they hold at their peak.
_MATRICES = {"lightly": 4.3, "tensorflow-similarity": 2.7}


def _too_large(gib):
    return f"needs about {gib:.0f} GiB" if gib > 16 else None


def optimizer(quick):
    """One step of LARS beside one of SGD, on two cores."""
    compare(
        "Optimizer step, ResNet-50",
        "ms",
        [
            Contender(who, f"contenders_{module}:optimizer", {"name": name})
            for who, module, name in (
                ("keras_simclr, LARS", "ours", "LARS"),
                ("Keras, SGD", "ours", "SGD"),
                ("lightly, LARS", "torch", "LARS"),
                ("PyTorch, SGD", "torch", "SGD"),
            )
        ],
        seconds=1.0,
        quick=quick,
    )


def start_up(quick):
    """Seconds of fresh processes."""
    compare(
        "Start-up",
        "ms",
        [
            Contender(f"import {name}", _PYTHON, {"code": f"import {name}"})
            for name in ("keras_simclr", "keras")
        ]
        + [
            Contender(
                "keras-simclr --help",
                "contenders_start_up:command_line",
                {"arguments": ["--help"]},
            )
        ],
        seconds=0.0,
        rounds=0 if quick else 5,
        quick=quick,
    )


_PYTHON = "contenders_start_up:python"
_COMPARISONS = {
    "augmentation": augmentation,
    "training": training,
    "loss": loss,
    "optimizer": optimizer,
    "start_up": start_up,
    "time_to_accuracy": None,
}


def compare(
    title,
    unit,
    contenders,
    *,
    seconds,
    quick,
    cores=2,
    rounds=5,
    has_memory=False,
):
    """Lets the contenders work in turn, and keeps what they reached.

    Args:
        title: Title of the table.
        unit: `"ms"`, or items per second.
        contenders: List of `Contender`; the others are divided by the first.
        seconds: Time of a contender's turn, at least one unit of work.
        quick: Whether two rounds will do.
        cores: Cores each of them may use.
        rounds: Rounds after the warm-up; 0 takes the warm-up itself.
        has_memory: Whether to show the memory of the first unit of work.

    Returns:
        Dictionary from the contenders' names to what was measured.
    """
    rounds = min(rounds, 2) if quick else rounds
    rows = {c.name: {"samples": [], "failed": c.skipped} for c in contenders}
    workers = {c.name: Worker(c, cores) for c in contenders if not c.skipped}

    def ask(command):
        for name, worker in workers.items():
            row = rows[name]
            if not row["failed"]:
                try:
                    yield row, worker.ask(command)
                except ContenderError as error:
                    row["failed"] = f"failed: {error}"

    for row, answer in ask(None):
        row["versions"] = answer["versions"]
    for row, answer in ask(seconds):
        row["first"] = answer
    for _ in range(rounds):
        for row, answer in ask(seconds):
            row["samples"].append(answer)
    for worker in workers.values():
        worker.close()
    for row in rows.values():
        _summarize(row, unit)
    processes.keep(
        title, _table(unit, rows, has_memory), quick=quick, unit=unit, rows=rows
    )
    return rows


def _summarize(row, unit):
    if row["failed"]:
        return
    rates = [
        x["items"] / x["seconds"] for x in row["samples"] or [row["first"]]
    ]
    values = [1000.0 / rate for rate in rates] if unit == "ms" else rates
    row["median"] = statistics.median(values)
    row["min"], row["max"] = min(values), max(values)


def _table(unit, rows, has_memory):
    ours = next(iter(rows.values())).get("median")
    lines = []
    for name, row in rows.items():
        if row["failed"]:
            cells = [row["failed"], "", "", ""]
        else:
            ratio = f"{ours / row['median']:.2f}" if ours else ""
            cells = [
                _number(row["median"]),
                f"{_number(row['min'])} to {_number(row['max'])}",
                ratio,
                _number(row["first"]["extra_mib"]),
            ]
        lines.append([name, *cells])
    titles = ["", f"{unit}, median", "range", "ours / this", "extra MiB"]
    width = 5 if has_memory else 4
    return processes.markdown(titles[:width], [x[:width] for x in lines])


def _number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main()
