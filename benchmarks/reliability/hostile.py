"""What becomes of files from a stranger: 200 mutations of each kind.

    python benchmarks/reliability/hostile.py [--files=200] [--kind=KIND ...]

Each kind is read in a process of its own, which is watched: a file may take 10
seconds of CPU and 2 GiB, and has to end in a result or in one sentence. The
mutations are those of tests/helpers/mutations.py: a kind and a number give the
same bytes.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import psutil

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
sys.path.insert(1, str(pathlib.Path(__file__).parents[2] / "tests"))

from benchmarks.results import markdown, report

_SECONDS, _BYTES = 10.0, 2 << 30  # That a file may take.
_PATIENCE = 120.0  # Seconds in which a process that does nothing is ended.
_PAUSE = 0.02  # Between looks.
_LINE = 240  # Characters that are shown of what is wrong.
_WELL = ("result", "sentence")


@dataclasses.dataclass
class _Count:
    """What became of the files of a kind."""

    files: int = 0
    results: int = 0
    sentences: int = 0
    others: list = dataclasses.field(default_factory=list)
    seconds: float = 0.0  # Of the slowest.
    mib: float = 0.0  # Beyond what the process had taken before, the most.

    def add(self, number, found, seconds, mib):
        self.files += 1
        self.results += found.count("result")
        self.sentences += found.count("sentence")
        self.others += [(number, x) for x in found if x not in _WELL]
        self.seconds = max(self.seconds, seconds)
        self.mib = max(self.mib, mib)


def main():
    """Reads the flags and runs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--kind", action="append")
    parser.add_argument("--first", type=int, help=argparse.SUPPRESS)
    values = parser.parse_args()
    if values.first is not None:
        _read_all(values.kind[0], values.first, values.files)
        return
    rows, wrong = [], 0
    for kind in values.kind or _kinds():
        count = _watched(kind, values.files)
        for number, text in count.others:
            report(f"{kind}, {number}: {' '.join(text.split())}"[:_LINE])
        wrong += len(count.others)
        numbers = count.files, count.results, count.sentences
        row = [kind, *map(str, (*numbers, len(count.others)))]
        rows.append([*row, f"{count.seconds:.1f}", f"{count.mib:,.0f}"])
        report(f"| {' | '.join(rows[-1])} |")
    titles = ["kind", "files", "results", "sentences", "anything else"]
    titles += ["slowest, CPU s", "most, MiB"]
    report(f"\n{markdown(titles, rows)}")
    sys.exit(bool(wrong))


def _kinds():
    from helpers import mutations

    return [*mutations.KINDS]


def _watched(kind, files):
    """The count of a kind; a process that has to be ended is made anew."""
    count, first = _Count(), 0
    while first < files:
        first = _watch_one(kind, first, files, count)
    return count


def _watch_one(kind, first, files, count):
    """Watches a process that reads files from the first on; returns the next.

    It writes a line when it begins with a file, and one when it is done.
    """
    command = [sys.executable, __file__, f"--kind={kind}", f"--first={first}"]
    with (
        tempfile.TemporaryDirectory() as place,
        tempfile.TemporaryFile() as said,
        pathlib.Path(place, "log").open("w+") as log,
    ):
        process = subprocess.Popen(
            [*command, f"--files={files}"],
            stdout=log,
            stderr=said,
            cwd=place,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        with pathlib.Path(place, "log").open() as lines:
            ended = _watch(process, lines, count)
        number = ended.get("number")
        if number is None or ended["is_done"]:
            if process.returncode or number is None:
                said.seek(0)
                raise RuntimeError(said.read().decode("utf-8", "replace"))
            return files
        why = ended["why"] or f"the process ended: {process.returncode}"
        count.add(number, [why], 0.0, 0.0)
        return number + 1


def _watch(process, lines, count):
    """Looks at a process until it ends; what it was at then."""
    at = {"number": None, "is_done": False, "why": ""}
    watched, began, cpu, base = psutil.Process(process.pid), 0.0, 0.0, 0
    rest = ""
    while True:
        is_over = process.poll() is not None
        rest += lines.read()
        *whole, rest = rest.split("\n")
        for line in map(json.loads, whole):
            base = line.pop("base", base)
            if "outcomes" in line:
                count.add(at["number"], *line.values())
                at["is_done"] = True
            else:
                at |= {"number": line["number"], "is_done": False}
                began, cpu = time.monotonic(), None
        if is_over:
            return at
        with contextlib.suppress(psutil.Error):
            used = sum(watched.cpu_times()[:2])
            cpu = used if cpu is None else cpu
            size = watched.memory_info().rss
            if at["number"] is not None and not at["is_done"]:
                if used - cpu > _SECONDS:
                    at["why"] = f"more than {_SECONDS:g} s of CPU"
                elif time.monotonic() - began > _PATIENCE:
                    at["why"] = f"nothing within {_PATIENCE:g} s"
                elif size - base > _BYTES:
                    at["why"] = f"{(size - base) >> 20:,} MiB"
        if at["why"]:
            process.kill()
            process.wait()
            return at
        time.sleep(_PAUSE)


def _read_all(kind, first, files):
    """Reads the files of a kind from the first on, and says what they do."""
    from helpers import mutations

    place = pathlib.Path.cwd()
    mutations.outcomes(kind, _put(place, mutations.sound(kind)))
    for number in range(first, files):
        given = mutations.mutant(kind, number)
        directory = _put(place, given)
        base = _in_use("VmRSS")
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # Peak: now.
        report(json.dumps({"number": number, "base": base}))
        began = time.process_time()
        found = mutations.outcomes(kind, directory)
        seconds = time.process_time() - began
        mib = max(_in_use("VmHWM") - base, 0) / 2**20
        if mib * 2**20 > _BYTES:
            found.append(f"{mib:,.0f} MiB")
        if {x.name for x in place.iterdir()} != {"log", "given"}:
            found.append("files elsewhere")
        done = {"outcomes": found, "seconds": seconds, "mib": mib}
        report(json.dumps(done))


def _put(place, files):
    from helpers.pictures import write

    with contextlib.suppress(FileNotFoundError):
        for path in sorted((place / "given").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    return write(place / "given", files)


def _in_use(name):
    """Bytes that this process takes, as Linux calls it."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) * 1024


if __name__ == "__main__":
    main()
