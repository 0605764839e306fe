"""Features that are kept in files, to be made only once."""

import contextlib
import hashlib
import logging
import pathlib
import re
import zipfile

import numpy as np

from keras_simclr import _files

_logger = logging.getLogger("keras_simclr")

_NAME = "{:.32}.npz"
_OURS = re.compile(r"[0-9a-f]{32}\.npz")
_MOST = 2**30  # Bytes of all.
_ARRAY = "representations"
# Of a file that is not there, not whole, or not ours.
_FAULTS = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


class FeatureFiles:
    """Files of features in a directory, up to a gigabyte.

    Finds nothing but features of these data and networks.

    Args:
        directory: Path; made when there is something to keep.
        data: Digest of the images.
        networks: Dictionary from names of features to the digest of what makes
            them.
        report: Function that is told, in words, what is kept where.
    """

    def __init__(self, directory, data, networks, report=None):
        self._directory = pathlib.Path(directory)
        self._report = report or (lambda text: None)
        self._read = ()
        self._paths = {
            name: self._directory / _NAME.format(_digest(data, name, network))
            for name, network in networks.items()
        }

    def read(self, examples):
        """Dictionary of the arrays that are there, by name.

        `examples` are the first rows, made anew, also by name: where what was
        kept begins otherwise, something else than weights has changed, and it
        is left out.
        """
        found = {}
        for name, path in self._paths.items():
            with contextlib.suppress(*_FAULTS):
                with path.open("rb") as file:
                    array = np.load(file)[_ARRAY]
                if _begins_with(array, examples[name]):
                    found[name] = array
        if found:
            names = ", ".join(found)
            self._report(f"Features of {names} are those in {self._directory}.")
        self._read = tuple(found)
        return found

    def write(self, arrays):
        """Keeps arrays, by name, and removes what was kept of others."""
        kept, total, is_new = [], 0, False
        try:
            for name, path in self._paths.items():
                size = arrays[name].nbytes
                if total + size > _MOST:
                    continue
                total += size
                kept.append(path)
                if name in self._read:
                    continue
                self._directory.mkdir(parents=True, exist_ok=True)
                with _files.replacing(path) as staged:
                    np.savez(staged, **{_ARRAY: arrays[name]})
                is_new = True
            self._remove_all_but(kept)
        except OSError as error:
            _logger.warning("Features are not kept: %s", error)
            return
        if is_new:
            self._report(
                f"{self._directory} keeps features, {total / 2**20:.0f} MiB, "
                "for another evaluation. It may be removed."
            )

    def _remove_all_but(self, kept):
        for path in {*found_in(self._directory)} - {*kept}:
            path.unlink(missing_ok=True)


def found_in(directory):
    """List of the files in a directory that keep features."""
    paths = pathlib.Path(directory).glob("*.npz")
    return [path for path in paths if _OURS.fullmatch(path.name)]


def _digest(*texts):
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def _begins_with(array, rows):
    """Whether the first rows of an array are these, but for rounding."""
    first = array[: len(rows)]
    if first.shape != rows.shape:
        return False
    size = np.abs(rows).max(initial=0.0)
    return np.allclose(first, rows, rtol=0.0, atol=1e-4 * size)
