"""Fresh processes: how long a program waits for its imports."""

import pathlib
import subprocess
import sys


def python(code):
    """A Python process that runs `code`."""
    return _process([sys.executable, "-c", code])


def command_line(*, arguments):
    """The command `keras-simclr`."""
    path = pathlib.Path(sys.executable).with_name("keras-simclr")
    return _process([path, *arguments])


def _process(command):
    def work():
        subprocess.run(command, check=True, capture_output=True)
        return 1

    return work
