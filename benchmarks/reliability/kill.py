r"""What is lost where a training is killed, again and again, at any moment.

    python benchmarks/reliability/kill.py [--kills=100] [--terms=50] \
        [--worker_kills=20] [--seed=0]

A small run keeps a checkpoint every third of a second: so most moments are in
or near the writing of one. It is killed (SIGKILL, which no process can catch)
or asked to end (SIGTERM) at random moments, and started again, until it has
finished; then another one begins. Each is compared with a run that nobody
disturbed: weights, optimizer and log, bit for bit. Files of somebody else lie
in the run directory, and beside it. Of two processes that train together one is
killed, or asked to end; both are started again.

What was lost is the time from the last step that the next start knows of to the
kill; nothing where it knows of all steps.
"""

import argparse
import csv
import dataclasses
import hashlib
import json
import os
import pathlib
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from benchmarks.results import circumstances, markdown, report, store, stored

_RESULTS = pathlib.Path(__file__).parent / "results"
_MINUTES = 1 / 180  # Between checkpoints.
_EPOCHS, _BATCHES = 12, 30  # Of 30 steps.
_PAUSE = 0.01  # Seconds that a step takes longer, so that few epochs do.
_LONGEST = 2.5  # Seconds from the first step to a kill, at most.
_PATIENCE = 600  # Seconds for a start; and what SIGTERM has, until SIGKILL.
_TIMES = ("seconds", "images_per_second")  # Columns of a log.
_FOREIGN = ("notes.txt", "epoch-best.weights.h5", "epoch-000099.weights.h5")


def main():
    """Reads the flags and runs."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--terms", type=int, default=50)
    parser.add_argument("--worker_kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=pathlib.Path, default=_RESULTS)
    parser.add_argument("--train", type=pathlib.Path, help=argparse.SUPPRESS)
    values = parser.parse_args()
    if values.train:
        _train(values.train)
        return
    rng = random.Random(values.seed)
    trials = [
        (1, signal.SIGKILL, values.kills),
        (1, signal.SIGTERM, values.terms),
        (2, signal.SIGKILL, values.worker_kills),
        (2, signal.SIGTERM, values.worker_kills),
    ]
    rows = [_tried(*trial, rng) for trial in trials if trial[-1]]
    path = values.results / "kill.json"
    store(path, [*stored(path), *({**x, **circumstances()} for x in rows)])
    titles = list(rows[0])
    report(markdown(titles, [[str(row[x]) for x in titles] for row in rows]))


def _tried(workers, number, count, rng):
    """What became of so many signals, as a row of the table."""
    with tempfile.TemporaryDirectory() as home:
        home = pathlib.Path(home)
        whole = home / "whole"
        _Training(whole, workers).finish(None, None)
        expected = _contents(whole)
        lost, ends, equal, touched = [], [], [], 0
        place, made = None, 0
        while made < count or place:
            if place is None:
                place = home / f"run-{len(equal)}"
            training = _Training(place, workers)
            foreign = _put_foreign(place)
            moment = rng.uniform(0, _LONGEST) if made < count else None
            end = training.finish(number, moment, rng.randrange(workers))
            touched += foreign is not None and _put_foreign(place) != foreign
            if end is not None:
                made += 1
                ends.append(end.seconds)
                lost.append(end.kept(place))
                report(f"{number.name} {made} of {count}: {end}")
            if _is_finished(place):  # Also if it was killed after that.
                equal.append(_contents(place) == expected)
                place = None
    return {
        "workers": workers,
        "signal": number.name,
        "signals": made,
        "runs": len(equal),
        "equal to undisturbed": sum(equal),
        "most lost, s": round(max(lost, default=0), 2),
        "median, s": round(statistics.median(lost or [0]), 2),
        "longest end, s": round(max(ends, default=0), 2),
        "foreign files touched": touched,
    }


@dataclasses.dataclass
class _End:
    """Of a training that was ended: how long that took, and its steps."""

    seconds: float
    when: float
    steps: list

    def kept(self, place):
        """Seconds of work that are lost for the next start."""
        kept = json.loads((place / "checkpoints.json").read_text())["files"]
        kept = [x for x, known in kept.items() if known is not None]
        step = _step_of(kept[-1]) if kept else 0
        if step >= self.steps[-1][0]:
            return 0.0
        times = [when for number, when in self.steps if number <= step]
        return self.when - (times[-1] if times else self.steps[0][1])

    def __str__(self):
        return f"after step {self.steps[-1][0]}"


def _is_finished(place):
    path = place / "summary.json"
    return path.exists() and json.loads(path.read_text()).get("finished")


def _step_of(name):
    numbers = [int(x) for x in name.split(".")[0].split("-") if x.isdigit()]
    epochs, step = (*numbers, 0)[:2]
    return epochs * _BATCHES + step


class _Training:
    """One or several processes that train in a directory together."""

    def __init__(self, place, workers):
        self._place, self._log = place, place.with_name(f"{place.name}.steps")
        self._log.unlink(missing_ok=True)
        self._errors = place.with_name(f"{place.name}.stderr")
        addresses = [f"localhost:{_free_port()}" for _ in range(workers)]
        self._processes = []
        for index in range(workers):
            environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
            if workers > 1:
                cluster = {"worker": addresses}
                task = {"type": "worker", "index": index}
                environment["TF_CONFIG"] = json.dumps(
                    {"cluster": cluster, "task": task}
                )
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, __file__, f"--train={place}"],
                    env=environment,
                    stderr=self._errors.open("ab"),
                )
            )

    def finish(self, number, seconds, victim=0):
        """Waits for the end; or ends one after so many seconds of steps.

        Returns:
            None, or an `_End`.
        """
        deadline = time.monotonic() + _PATIENCE
        while not self._steps() and self._are_running():
            if time.monotonic() > deadline:
                raise TimeoutError(f"No step in {_PATIENCE} seconds")
            time.sleep(0.01)
        moment = time.time() + (_PATIENCE if seconds is None else seconds)
        while self._are_running() and time.time() < moment:
            time.sleep(0.002)
        if not self._are_running():
            codes = [process.wait() for process in self._processes]
            if any(codes):
                said = self._errors.read_text()[-2000:]
                raise RuntimeError(f"A training has failed: {codes}. {said}")
            return None
        when = time.time()
        self._processes[victim].send_signal(number)
        if number == signal.SIGKILL:  # The others wait for it for ever.
            self._processes[victim].wait()
            for process in self._processes:
                process.kill()
        for process in self._processes:
            process.wait(_PATIENCE)
        return _End(time.time() - when, when, self._steps())

    def _are_running(self):
        return any(process.poll() is None for process in self._processes)

    def _steps(self):
        if not self._log.exists():
            return []
        lines = self._log.read_text().splitlines()
        return [(int(x), float(y)) for x, y in map(str.split, lines)]


def _free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def _put_foreign(place):
    """Files of somebody else's, there and beside; their contents."""
    found = {}
    for path in (place.with_name("beside.txt"), *(place / x for x in _FOREIGN)):
        if not path.exists() and (place / "flags.txt").exists():
            path.write_text(path.name)
        found[path.name] = path.exists() and path.read_text() == path.name
    return found if all(found.values()) else None


def _contents(place):
    """Digests of what a finished run holds that says how it was trained."""
    last = place / f"epoch-{_EPOCHS:06d}.weights.h5"
    with (place / "log.csv").open(newline="") as file:
        rows = [
            {k: x for k, x in row.items() if k not in _TIMES}
            for row in csv.DictReader(file)
        ]
    return hashlib.sha256(_arrays(last) + repr(rows).encode()).hexdigest()


def _arrays(path):
    import h5py

    found = []

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            found.append(f"{name} {item.dtype} {item.shape}".encode())
            found.append(item[()].tobytes())

    with h5py.File(path) as file:
        file.visititems(visit)
    return b"".join(found)


def _train(place):
    """The training that is killed."""
    import keras
    import numpy as np
    import tensorflow as tf

    import keras_simclr as simclr
    from keras_simclr import _terminal, devices, runs

    strategy = devices.make_strategy("auto")
    is_alone = strategy.num_replicas_in_sync == 1
    tf.config.run_functions_eagerly(is_alone)  # To begin sooner.
    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).integers(
        0, 256, (8 * _BATCHES, 8, 8, 1), "uint8"
    )
    with strategy.scope():
        encoder = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Conv2D(16, 3),
                keras.layers.BatchNormalization(),
                keras.layers.GlobalAveragePooling2D(),
            ]
        )
        model = simclr.SimCLRModel(
            encoder,
            simclr.ProjectionHead(1, units=16),
            augmentation=simclr.RandomResizedCrop(8, 8),
        )
        model.compile(keras.optimizers.SGD(0.01, momentum=0.9))
    is_chief = strategy.extended.should_checkpoint

    class Steps(keras.callbacks.Callback):
        """Writes when each step ended, at once."""

        def on_train_batch_end(self, batch, logs=None):
            if is_chief:
                step = model.optimizer.iterations.numpy()
                os.write(file, f"{step} {time.time()}\n".encode())
            time.sleep(_PAUSE)

    log = place.with_name(f"{place.name}.steps")
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with _terminal.interruptible() as came:
        runs.pretrain(
            model,
            simclr.dataset_from_arrays(images, batch_size=8, seed=3),
            place,
            epochs=_EPOCHS,
            flags="--seed=0\n",
            callbacks=[Steps()],
            keeping={"minutes": _MINUTES},
        )
    sys.exit(128 + came[0] if came else 0)


if __name__ == "__main__":
    main()
