"""One contender in a process of its own, which works when it is told to.

    python worker.py CORES MODULE:FUNCTION '{"argument": 1}'

The function makes the contender: a callable without arguments that does one
unit of work and returns its number of items. Then a line of JSON is printed for
each line read:

    0.5     works for about half a second, at least one unit: items, seconds,
            CPU seconds, the peak of memory, and how far it rose above where
            it stood before
    PATH    calls the contender's `save(PATH)`
"""

import importlib
import importlib.metadata
import json
import os
import pathlib
import re
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

_PACKAGES = (
    "albumentations",
    "keras",
    "kornia",
    "lightly",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "scikit-image",
    "scikit-learn",
    "tensorflow",
    "torch",
    "torchvision",
)


def main(cores, name, arguments):
    """Makes the contender and answers until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # What libraries print is no answer.
    cpus = sorted(os.sched_getaffinity(0))[-int(cores) :]
    os.sched_setaffinity(0, cpus)
    os.environ["OMP_NUM_THREADS"] = str(len(cpus))
    try:
        module, function = name.split(":")
        module = importlib.import_module(f"benchmarks.speed.{module}")
        make = getattr(module, function)
        work = make(**json.loads(arguments))
        print(json.dumps({"versions": _versions()}), file=answers)
        for line in sys.stdin:
            print(json.dumps(_obey(work, line.strip())), file=answers)
    except Exception as error:
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        text = re.sub(r"/\S*/", "", text)[:200]  # No one else's directories.
        print(json.dumps({"failed": text}), file=answers)
        raise


def _obey(work, command):
    try:
        seconds = float(command)
    except ValueError:
        work.save(command)
        return {}
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # Forget the peak.
    before = _memory("VmRSS")
    items, start, cpu = 0, time.perf_counter(), time.process_time()
    while True:
        items += work()
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            break
    return {
        "items": items,
        "seconds": elapsed,
        "cpu_seconds": time.process_time() - cpu,
        "extra_mib": _memory("VmHWM") - before,
        "peak_mib": _memory("VmHWM"),
    }


def _memory(name):
    """Resident memory in MiB: `VmRSS` now, `VmHWM` at its peak."""
    # `resource.getrusage` will not do: its peak cannot be reset, and a child
    # inherits its parent's.
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) / 1024


def _versions():
    versions = {"python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


if __name__ == "__main__":
    main(*sys.argv[1:])
