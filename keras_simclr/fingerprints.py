"""Which data a run has seen: digests, for its record."""

import contextlib
import hashlib
import os
import pathlib

from keras_simclr import _files
from keras_simclr.folders import EncodedImages
from keras_simclr.tfds_builders import builder_of

_MOST_READ = 2**30  # Bytes of a folder that are read for its fingerprint.


def fingerprint(source, *, data_dir=None):
    """Tells which data these are, for the record of a run.

    Args:
        source: As in `open_dataset`.
        data_dir: As in `open_dataset`.

    Returns:
        Dictionary: `source`, with the version of a dataset of TFDS; and
        `sha256`, of the content of a file of arrays, or of the names and sizes
        of the files of a folder, list, shards or dataset, in order. Of all but
        the last also the number of `files` and, up to a gigabyte in all, the
        SHA-256 of their `content`.

    Example:

    ```python
    fingerprint("flowers.npz")  # {"source": "flowers.npz", "sha256": ...}
    ```
    """
    if isinstance(source, EncodedImages):
        return _fingerprint_of_files(source)
    if str(source).startswith("tfds:"):
        builder = builder_of(source.removeprefix("tfds:"), data_dir)
        directory = pathlib.Path(builder.data_dir)
        paths = sorted(path.name for path in directory.glob("*.*-of-*"))
        digest, _ = _names_and_sizes(directory, paths)
        return {"source": f"tfds:{builder.info.full_name}", "sha256": digest}
    path = getattr(source, "source", source)
    with pathlib.Path(path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return {"source": path, "sha256": digest.hexdigest()}


def _fingerprint_of_files(source):
    directory, paths = source.directory, source.files
    digest, size = _names_and_sizes(directory, paths)
    found = {"source": source.source, "sha256": digest, "files": len(paths)}
    if size <= _MOST_READ:
        found["content"] = _content(directory, paths)
    return found


def _names_and_sizes(directory, paths):
    """Their digest, and the bytes in all."""
    digest, total = hashlib.sha256(), 0
    for path in paths:
        size = _bytes_of(directory, path)
        digest.update(os.fsencode(path) + b"\0%d\0" % size)
        total += size
    return digest.hexdigest(), total


def _content(directory, paths):
    """The digest of what is in files; of none where one cannot be read."""
    digest = hashlib.sha256()
    for path in paths:
        with (
            contextlib.suppress(OSError),  # What reads it will say so.
            pathlib.Path(directory, path).open("rb") as file,
        ):
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _bytes_of(directory, path):
    # Joined as text, for a million files: pathlib takes three times as long.
    path = os.path.join(directory, path)  # noqa: PTH118
    size, _ = _files.state(path) or (0, None)
    return size  # Of what is missing 0: what reads it will say so.
