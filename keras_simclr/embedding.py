"""Representations of many images as a table in a file."""

import contextlib
import csv
import shutil
import tempfile
import zipfile

import numpy as np

from keras_simclr import _checks, _files, elements, fit_data
from keras_simclr.csv_files import path_cell
from keras_simclr.features import check_fits, representation


def write_embeddings(model, dataset, path, names=None, progress=None):
    """Writes the representation of every image as a row, batch by batch.

    CSV has columns `h0`, `h1`, ..., Parquet a column `representation` of lists,
    NPZ an array `representations` of shape `(N, features)`; all float32. Where
    the images have names, these are the first column, `path`, or an array
    `paths`.

    Args:
        model: A `SimCLRModel`, or any Keras model from images to
            representations.
        dataset: A `tf.data.Dataset` of batches.
        path: `pathlib.Path` to write, which ends in .csv, .npz or .parquet.
        names: Names of the images by their `places`, such as
            `ImageFolder.paths`, or in order where a dataset has no places; or
            None.
        progress: As in `extract_features`.

    Returns:
        Number of rows.

    Raises:
        FileExistsError: If `path` exists.
        ValueError: If the path has another ending, the encoder takes other
            images, there are none, or they are unusable, or weights or
            representations are not finite.

    Example:

    ```python
    folder = simclr.folders.ImageFolder("photos")
    dataset = simclr.dataset_from_directory(
        folder, shuffle=False, drop_remainder=False
    )
    path = pathlib.Path("photos.parquet")
    write_embeddings(model, dataset, path, folder.paths)
    ```
    """
    ending = _checks.choice("format", path.suffix[1:], _WRITERS)
    _files.check_is_new("path", path)
    check_fits(model, dataset)
    represent = representation(model)
    names = None if names is None else list(names)
    total = None if names is None else len(names)

    def batches():
        count = 0
        for element in fit_data.checked_elements(dataset, progress, total):
            rows = represent(*elements.images_and_sizes(element)).numpy()
            places = elements.places_of(element, count)
            count += len(rows)
            named = [] if names is None else [names[place] for place in places]
            named = _files.valid_names(named)
            _checks.finite_rows("Representations", rows, named)
            yield named, rows

    return _WRITERS[ending](path, batches())


def _csv(path, batches):
    count = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        for names, rows in batches:
            if count == 0:
                columns = [f"h{i}" for i in range(rows.shape[1])]
                table.writerow(["path"] * bool(names) + columns)
            for place, row in enumerate(rows):
                table.writerow(
                    [*map(path_cell, names[place : place + 1]), *row]
                )
            count += len(rows)
    return count


def _parquet(path, batches):
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = 0
    with contextlib.ExitStack() as stack:
        for names, rows in batches:
            lists = pa.FixedSizeListArray.from_arrays(
                pa.array(rows.ravel()), rows.shape[1]
            )
            columns = {"path": names} if names else {}
            columns["representation"] = lists
            table = pa.table(columns)
            if count == 0:
                writer = pq.ParquetWriter(path, table.schema)
                stack.enter_context(writer)
            writer.write_table(table)
            count += len(rows)
    return count


def _npz(path, batches):
    count, width, paths = 0, 0, []
    with tempfile.TemporaryFile(dir=path.parent) as raw:
        for names, rows in batches:
            raw.write(rows.tobytes())
            count, width = count + len(rows), rows.shape[1]
            paths += names
        raw.seek(0)
        with zipfile.ZipFile(path, "w") as archive:
            with archive.open(
                "representations.npy", "w", force_zip64=True
            ) as file:
                header = {
                    "descr": np.dtype("float32").str,
                    "fortran_order": False,
                    "shape": (count, width),
                }
                np.lib.format.write_array_header_1_0(file, header)
                shutil.copyfileobj(raw, file)
            if paths:
                with archive.open("paths.npy", "w", force_zip64=True) as file:
                    np.save(file, np.array(paths))
    return count


_WRITERS = {"csv": _csv, "npz": _npz, "parquet": _parquet}
