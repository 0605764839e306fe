"""Contenders in processes and environments of their own."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import threading

from benchmarks.results import report

_HERE = pathlib.Path(__file__).parent
_LIMIT = 1800  # Seconds until a contender that does not answer is ended.


@dataclasses.dataclass(frozen=True)
class Contender:
    """Somebody's way of doing the work.

    Attributes:
        name: Row of the table.
        work: `module:function` that makes it; see worker.py.
        arguments: Arguments of that function.
        skipped: Why it is not run, or None.
    """

    name: str
    work: str
    arguments: dict
    skipped: str | None = None


class Worker:
    """The process of a contender."""

    versions: dict

    def __init__(self, contender, cores):
        environment = {
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "NO_ALBUMENTATIONS_UPDATE": "1",
        }
        self._process = subprocess.Popen(
            [
                _interpreter(contender),
                _HERE / "worker.py",
                str(cores),
                contender.work,
                json.dumps(contender.arguments),
            ],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, command=None):
        """Sends a line and returns the answer; None waits until it is ready."""
        timer = threading.Timer(_LIMIT, self._process.kill)
        timer.start()
        try:
            if command is not None:
                self._process.stdin.write(f"{command}\n")
                self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        answer = json.loads(line or '{"failed": "process ended"}')
        if "failed" in answer:
            raise ContenderError(answer["failed"])
        return answer

    def close(self):
        """Ends the process."""
        self._process.kill()
        self._process.communicate()


class ContenderError(Exception):
    """A contender failed; the message says how."""


def _interpreter(contender):
    module = contender.work.split(":")[0]
    name = module.removeprefix("contenders_")
    if not (_HERE / f"requirements_{name}.txt").exists():
        return sys.executable
    return _environments() / name / "bin" / "python"


def _environments():
    default = _HERE.parent / ".environments"
    return pathlib.Path(os.environ.get("BENCHMARK_ENVIRONMENTS", default))


def set_up_environments(which="*"):
    """Makes the peers' environments, or one, with the pinned versions."""
    for requirements in _HERE.glob(f"requirements_{which}.txt"):
        name = requirements.stem.removeprefix("requirements_")
        directory = _environments() / name
        python = directory / "bin" / "python"
        if not python.exists():
            report(f"Installing {requirements.name}")
            subprocess.run(
                [sys.executable, "-m", "venv", directory], check=True
            )
        install = ["-m", "pip", "install", "--quiet", "-r", requirements]
        subprocess.run([python, *install], check=True)
