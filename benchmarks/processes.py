"""Contenders in processes of their own, and where the results are kept."""

import dataclasses
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
import threading

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
    default = _HERE / ".environments"
    return pathlib.Path(os.environ.get("BENCHMARK_ENVIRONMENTS", default))


def set_up_environments():
    """Makes the peers' environments with the pinned versions."""
    for requirements in _HERE.glob("requirements_*.txt"):
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


def report(text):
    """Prints a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def markdown(titles, rows):
    """A Markdown table."""
    rows = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def keep(title, table, **details):
    """Puts a result into results.json and results.md, over an older one.

    Args:
        title: Heading of the table.
        table: The table in Markdown.
        **details: What else results.json shall hold.
    """
    path = _HERE / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    today = datetime.date.today().isoformat()
    machine = _machine()
    results[title] = {
        "date": today,
        "machine": machine,
        **details,
        "table": table,
    }
    path.write_text(json.dumps(results, indent=1) + "\n")
    text = "\n\n".join(
        f"### {title}\n\n{result['table']}\n\n{result['machine']['cpu']}, "
        f"{result['machine']['cores']} cores, {result['date']}"
        for title, result in results.items()
    )
    path.with_suffix(".md").write_text(text + "\n")
    report(f"\n### {title}\n\n{table}\n")


def _machine():
    info = pathlib.Path("/proc/cpuinfo").read_text()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": info.split("model name")[1].split("\n")[0].strip("\t :"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "system": platform.system(),
    }
