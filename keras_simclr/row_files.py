"""What `embed` and `predict` write: a table of images, and of what it is."""

import csv
import pathlib

from keras_simclr import _files, cards, copies, fingerprints, runs
from keras_simclr.csv_files import cell, path_cell
from keras_simclr.folders import EncodedImages

_SKIPPED = "skipped.csv"


def write_table(
    output_dir, name, what, write, *, data, source, model, report=print
):
    """Writes a row for each image; beside it, of what, and files without one.

    In CSV files nothing is a formula of a spreadsheet: a path that begins like
    one, with one of `=+-@`, is written as `./path`, which is the same file, and
    another text with an apostrophe in front.

    Args:
        output_dir: Directory to write, new or empty.
        name: Name of the table in it.
        what: What its rows are, in words.
        write: Function of a path and the names of the images, which writes the
            table and returns the number of rows.
        data: The `recipe.Data` whose `open` returned `source`.
        source: Where the images come from.
        model: Keras model that makes the rows.
        report: Function that is told, in words, what was written.

    Returns:
        Number of rows.

    Raises:
        FileExistsError: If `output_dir` is neither new nor empty.
        ValueError: If there would be no row.

    Example:

    ```python
    data = simclr.recipe.Data(data="photos")
    source, images = data.open_in_order(64)
    write_table(
        "my_table",
        "embeddings.csv",
        "representations",
        lambda path, names: write_embeddings(model, images, path, names),
        data=data,
        source=source,
        model=model,
    )
    ```
    """
    is_folder = isinstance(source, EncodedImages)
    output_dir = pathlib.Path(output_dir)
    found = fingerprints.fingerprint(source, data_dir=data.data_dir)
    about = {
        "weights": copies.weights_digest(model),
        "data": {**found, "split": data.split},
        **cards.versions(),
    }
    with _files.staging(output_dir) as staged:
        try:
            count = write(staged / name, source.paths if is_folder else None)
        except ValueError:
            if is_folder and len(source.skipped) == len(source.paths):
                raise _unreadable(data, source) from None
            raise
        runs.update_summary(staged, about)
        if is_folder:
            reasons = {**source.left_out, **source.skipped}
            rows = zip(
                map(path_cell, _files.valid_names(reasons)),
                map(cell, reasons.values()),
                strict=True,
            )
            with (staged / _SKIPPED).open(
                "w", newline="", encoding="utf-8", errors="backslashreplace"
            ) as file:
                csv.writer(file).writerows([("path", "reason"), *rows])
    report(f"{output_dir / name} holds {count} {what}.")
    if is_folder:
        report(f"{output_dir / _SKIPPED} lists {len(reasons)} without a row.")
    return count


def _unreadable(data, source):
    shown = "".join(f", {p} ({why})" for p, why in source.skipped.items())
    what = source.kind.said("an image")
    return ValueError(
        f"`data` must hold {what} that can be read. Received: "
        f"data={data.data!r}, of which none can{shown[:500]}"
    )
