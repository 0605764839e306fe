"""Images per second from a folder of photographs, and a million files.

    python benchmarks/speed/input_pipeline.py [--quick] [--only=views,files]

Reads, decodes and augments on all cores: two views from each photograph. Then
how long the first batch of a folder of a million files takes, and how much
memory; the files are hard links to the photographs, in sub-folders, and are
removed afterwards. 20 minutes.
"""

import argparse
import os
import pathlib
import statistics
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from benchmarks.results import keep_table, markdown, report
from benchmarks.speed.comparison import compare
from benchmarks.speed.processes import (
    Contender,
    ContenderError,
    Worker,
    set_up_environments,
)

_BATCH_SIZE = 64
_PARTS = ("views", "files")
_SIZES = (224, 64)


def main():
    """Reads the flags and measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="Few files, two rounds."
    )
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=_PARTS,
        help=f"Some of: {', '.join(_PARTS)}.",
    )
    parser.add_argument(
        "--directory",
        type=pathlib.Path,
        default=pathlib.Path(__file__).parents[1] / ".photographs",
        help="Where the photographs are kept, and the links meanwhile.",
    )
    arguments = parser.parse_args()
    set_up_environments()
    count = 256 if arguments.quick else 2000
    photographs = _photographs(arguments.directory.resolve(), count)
    if "views" in arguments.only:
        for size in _SIZES:
            views(photographs, size, arguments.quick)
    if "files" in arguments.only:
        files(photographs, arguments.quick)


def _photographs(directory, count):
    """The folder of the photographs, made if it is not there."""
    folder = directory / str(count)
    if not folder.exists():
        report(f"Writing {count:,} photographs")
        part = folder.with_suffix(".part")
        arguments = {"directory": str(part), "count": count}
        _run_once(Contender("photographs", "photographs:write", arguments))
        part.rename(folder)
    mean = statistics.mean(x.stat().st_size for x in folder.iterdir())
    report(f"{count:,} photographs, {mean / 1000:.0f} kB on average")
    return folder


def views(photographs, size, quick):
    """Whole passes over the photographs, two views of each."""
    arguments = {
        "directory": str(photographs),
        "size": size,
        "batch_size": _BATCH_SIZE,
    }
    contenders = [
        Contender(name, f"contenders_{work}_pipeline", arguments)
        for name, work in (
            ("keras_simclr", "ours:input"),
            ("lightly, PIL", "torch:lightly"),
            ("albumentations, OpenCV", "torch:albumentations"),
            ("tf.image", "keras:tf_image"),
        )
    ]
    rows = compare(
        f"Two views of {size} px from JPEG files of about 500 x 375",
        "images/s",
        contenders,
        cores=len(os.sched_getaffinity(0)),
        seconds=0.0,
        quick=quick,
    )
    for name, row in rows.items():
        versions = row.get("versions", {}).items()
        report(f"{name}: {', '.join(' '.join(x) for x in versions)}")


def files(photographs, quick):
    """Seconds and memory until the first batch, in fresh processes."""
    count, rounds = (10_240, 2) if quick else (1_000_000, 5)
    with tempfile.TemporaryDirectory(dir=photographs.parent) as directory:
        report(f"Linking {count:,} files")
        links = _link(photographs, pathlib.Path(directory), count)
        rows = {
            "first batch of the photographs": ("first_batch", photographs),
            f"first batch of {count:,} files": ("first_batch", links),
            f"listing {count:,} files": ("listing", links),
        }
        samples = {name: [] for name in rows}
        for _ in range(rounds):
            for name, (work, folder) in rows.items():
                contender = Contender(
                    name, f"contenders_ours:{work}", {"directory": str(folder)}
                )
                samples[name].append(_run_once(contender))
    keep_table(
        f"A folder of {count:,} files",
        _table(samples),
        quick=quick,
        rows=samples,
    )


def _link(photographs, directory, count):
    """Sub-folders with a hard link to each photograph, `count` in all."""
    paths = list(photographs.iterdir())
    for number in range(count // len(paths)):
        folder = directory / f"class_{number:04}"
        folder.mkdir()
        for path in paths:
            os.link(path, folder / path.name)
    return directory


def _run_once(contender):
    """What one unit of work of a fresh process takes."""
    worker = Worker(contender, cores=len(os.sched_getaffinity(0)))
    try:
        worker.ask()
        return worker.ask(0.0)
    except ContenderError as error:
        raise SystemExit(f"{contender.name} failed: {error}") from None
    finally:
        worker.close()


def _table(samples):
    lines = []
    for name, answers in samples.items():
        seconds = [answer["seconds"] for answer in answers]
        lines.append(
            [
                name,
                f"{statistics.median(seconds):.1f}",
                f"{min(seconds):.1f} to {max(seconds):.1f}",
                f"{max(answer['extra_mib'] for answer in answers):,.0f}",
            ]
        )
    titles = ["", "seconds, median", "range", "extra MiB at most"]
    return markdown(titles, lines)


if __name__ == "__main__":
    main()
