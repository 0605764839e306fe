"""The manifest of a scan: a table of images, and what is wrong with them."""

import dataclasses
import os
import pathlib

import numpy as np


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
    import pyarrow.parquet

    received = f"Received: manifest={os.fsdecode(manifest)!r}"
    if not pathlib.Path(manifest).is_file():
        raise FileNotFoundError(
            f"`manifest` must be that of a scan. {received}, which is no file. "
            "Write one with keras-simclr scan"
        )
    try:
        table = pyarrow.parquet.ParquetFile(manifest).read()
        table = table.select(schema().names).cast(schema())
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(
            "`manifest` must be one that keras-simclr scan wrote. "
            f"{received} ({error})"
        ) from None
    table = table.sort_by("path")
    images = table.filter(table["usable"])
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
