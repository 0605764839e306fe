"""The manifest of a scan: a table of images, and what is wrong with them."""

import dataclasses
import os
import pathlib

import numpy as np

from keras_simclr import parquet_files

# What each row has, and each row of a usable image.
_ALWAYS, _OF_IMAGES = ("path", "usable"), ("group", "width", "height")


def schema():
    """The columns of a manifest, which `scanning.scan` describes."""
    import pyarrow as pa

    return pa.schema(
        {
            "path": pa.binary(),
            "format": pa.string(),
            "width": pa.int32(),
            "height": pa.int32(),
            "channels": pa.int32(),
            "orientation": pa.int32(),
            "group": pa.int64(),
            "problem": pa.string(),
            "usable": pa.bool_(),
        }
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Manifest:
    """The usable images of a manifest, sorted by path.

    Attributes:
        paths: List of paths relative to the directory, as `find_images`.
        groups: int64 array; the same number for duplicates.
        widths: int64 array of pixels as seen, after EXIF rotation.
        heights: The same.
        problems: Dictionary from the paths of unusable files to the reason.
    """

    paths: list
    groups: np.ndarray
    widths: np.ndarray
    heights: np.ndarray
    problems: dict


def read_manifest(manifest):
    """Reads a manifest.

    Args:
        manifest: Path of a manifest that `scan` wrote.

    Returns:
        `Manifest`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no manifest.

    Example:

    ```python
    manifest = read_manifest("photos.parquet")
    ```
    """
    import pyarrow.compute as pc

    received = f"Received: manifest={os.fsdecode(manifest)!r}"
    if not pathlib.Path(manifest).is_file():
        raise FileNotFoundError(
            f"`manifest` must be that of a scan. {received}, which is no file. "
            "Write one with keras-simclr scan"
        )

    def refuse(what):
        raise ValueError(
            "`manifest` must be one that keras-simclr scan wrote. "
            f"{received} ({what}). Scan the images anew"
        ) from None

    with parquet_files.explaining(refuse):
        with parquet_files.open_table(manifest, refuse) as file:
            missing = set(schema().names) - {*file.schema_arrow.names}
            if missing:
                refuse(f"without a column {min(missing)}")
            table = file.read(schema().names).cast(schema())
    table = table.sort_by("path")
    images = table.filter(table["usable"])
    for name in (*_ALWAYS, *_OF_IMAGES):
        if (table if name in _ALWAYS else images)[name].null_count:
            refuse(f"a row without {name}")
    columns = {
        f"{name}s": images[name].to_numpy().astype("int64")
        for name in ("group", "width", "height")
    }
    others = table.filter(pc.invert(table["usable"]))
    problems = dict(
        zip(paths_of(others), others["problem"].to_pylist(), strict=True)
    )
    return Manifest(paths_of(images), problems=problems, **columns)


def paths_of(table):
    """The paths in a manifest, as text."""
    return [os.fsdecode(path) for path in table["path"].to_pylist()]
