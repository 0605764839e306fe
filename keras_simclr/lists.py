"""Images that a CSV file lists, with labels if it has them."""

import csv
import os
import pathlib

import tensorflow as tf

from keras_simclr import csv_files
from keras_simclr._checks import listing
from keras_simclr.folders import EncodedImages, numbered_labels


class ImageList(EncodedImages):
    """The images that a CSV file lists.

    Its first line names the columns, which commas separate: `path`, relative to
    the file's folder or absolute, and perhaps `label`, a text; an empty one
    means none, and an apostrophe that keeps it from being a formula of a
    spreadsheet (`'=a`) is no part of it. Further columns are left alone. It is
    UTF-8. A path that stands there twice counts once.

    Args:
        path: Path of the CSV file.
        **kwargs: `manifest`, `split`, `unreadable_limit`: as `EncodedImages`.

    Attributes:
        paths: As in `EncodedImages`: sorted paths, without `./` and the like.
        labels: As in `EncodedImages`: places in `class_names`.
        class_names: Tuple of the labels that there are, sorted; or empty.

    Raises:
        OSError: If it cannot be read.
        ValueError: As `EncodedImages`; if it has no column `path` or no row,
            names files that are not there, or a file twice with two labels.

    Example:

    ```python
    images = simclr.lists.ImageList("flowers.csv")  # path,label
    dataset = simclr.dataset_from_directory(images)
    ```
    """

    def __init__(self, path, **kwargs):
        super().__init__(path, **kwargs)

    @property
    def files(self):
        return [self._list.name, *self.paths]

    def _find(self, wanted):
        self._list = pathlib.Path(self.source)
        self.directory = self._list.parent
        self._known, rows = {}, 0
        for line, path, label in self._rows():
            rows += 1
            path = os.path.normpath(path)
            if self._known.setdefault(path, label) != label:
                self._refuse(
                    "each path once, or with one label",
                    f"{path!r} as {self._known[path]!r}, and in line {line} as "
                    f"{label!r}",
                )
        if not rows:
            self._refuse("a row for each image", "no row below the first line")
        missing = [
            path
            for path in self._known
            if not os.path.isfile(os.path.join(self.directory, path))  # noqa: PTH113, PTH118
        ]
        if missing:
            self._refuse(
                "paths of files, relative to its own folder or absolute",
                f"{len(missing)} of {len(self._known)} that are not there: "
                f"{listing(missing)}",
            )
        if rows > len(self._known):
            self.not_read["named twice"] = rows - len(self._known)
        return sorted(self._known)

    def _rows(self):
        """Yields number of the line, path, and label or None."""
        try:
            with self._list.open(newline="", encoding="utf-8-sig") as file:
                table = csv.reader(file, strict=True)
                columns = [name.strip() for name in next(table, ())]
                if "path" not in columns:
                    self._refuse(
                        "the columns `path` and perhaps `label`, named in its "
                        "first line and separated by commas",
                        f"the columns {', '.join(columns) or 'none'}",
                    )
                for row in table:
                    if any(row):
                        yield self._parsed(table.line_num, row, columns)
        except (csv.Error, UnicodeDecodeError) as error:
            self._refuse("a table in UTF-8", str(error))

    def _parsed(self, line, row, columns):
        if len(row) > len(columns):
            self._refuse(
                "as many fields in each line as in the first: quote those with "
                "commas",
                f"{len(row)} in line {line}, {len(columns)} in the first",
            )
        values = dict(zip(columns, row, strict=False))
        if not values.get("path", "").strip():
            self._refuse("a path in each line", f"none in line {line}")
        label = csv_files.text(values.get("label", "").strip())
        return line, values["path"], label or None

    def _refuse(self, rule, received):
        raise ValueError(
            f"The list of images must have {rule}. Received: {self.source!r} "
            f"with {received}"
        ) from None

    def _labels(self):
        return numbered_labels([self._known[path] for path in self.paths])

    def _reader(self):
        directory = os.fsencode(self.directory)
        paths = [os.path.join(directory, os.fsencode(x)) for x in self.paths]  # noqa: PTH118
        paths = tf.constant(paths)
        return lambda place: tf.io.read_file(paths[place])
