"""Files of numbers that are no images: tables, series, arrays of examples."""

import json
import pathlib
import warnings

import numpy as np

from keras_simclr import array_files, columns, kinds, windows
from keras_simclr.records import COLUMNS
from keras_simclr.splits import rows_of_split

_LABEL, _RECORDING = "label", "recording"  # Columns that mean something.
_WINDOW = 128  # Rows, where nobody says how many.
_OF_ARRAYS = {x.plural: x for x in (kinds.AUDIO, kinds.SERIES, kinds.TABLES)}


class NumberFile:
    """Examples in memory, from one file.

    Args:
        path: Of a table, `.csv` or `.parquet`; or of an `.npz` file with an
            array `rows`, `windows` or `sounds`, and perhaps `labels`.
        kind: `kinds.TABLES` or, for a table of the steps of recordings,
            `kinds.SERIES`; None for that of arrays.
        split: As of `find_source`. Recordings are not divided.
        label: Column of labels; None for `label`, if there is one.
        columns: Path of what another file's `write_beside` wrote, whose columns
            these become; or None.
        window: Rows in a window of a series, or None for 128.
        stride: Rows from one window to the next, or None for half of one.
        rate: Samples a second of sounds, which must be given. Those in integers
            are divided by the largest there is.

    Attributes:
        source: As given, as text.
        kind: `kinds.Kind`.
        images: float32 array of the examples, `(N, ...)`.
        labels: Array of shape `(N,)`, or None.
        class_names: Tuple of the names of classes, or empty.
        recordings: Array of shape `(N,)`: equal for windows of one recording,
            which overlap; or None.
        groups: Tuple, as `columns.Table.groups`; or None.
        notes: Tuple of sentences, on what is left out.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is broken, or holds something else.

    Example:

    ```python
    rows = NumberFile("customers.csv", simclr.kinds.TABLES, label="churn")
    ```
    """

    def __init__(
        self,
        path,
        kind=None,
        *,
        split="train",
        label=None,
        columns=None,
        window=None,
        stride=None,
        rate=None,
    ):
        self.source, self.kind = str(path), kind
        self.labels, self.class_names, self.notes = None, (), ()
        self.recordings = self.groups = self.space = self.channels = None
        self.rate, self.seconds = rate, None
        self.label, self.window, self.stride = label, window, stride
        if array_files.is_array_file(path):
            self._read_arrays()
        elif kind is kinds.SERIES:
            self._read_series(columns)
        else:
            self._read_table(columns)
        self._keep(split)

    def _read_table(self, path_of_columns):
        table = columns.arrow_table(self.source)
        table, self.labels = self._without_labels(table, path_of_columns)
        found = columns.read_table(table, space=path_of_columns)
        self.images, self.groups = found.rows, found.groups
        self.notes += found.left_out
        self.space = found.space

    def _without_labels(self, table, path_of_columns):
        """A table without its column of labels; and these, or None.

        Where nobody asked for them, or a run did, there need be none.
        """
        name = self.label or _LABEL
        is_wanted = self.label is not None and path_of_columns is None
        if name not in table.column_names and not is_wanted:
            self.label = None
            return table, None
        self.label, labels = name, None
        try:
            labels, self.class_names = columns.labels_of(table, name)
        except ValueError as error:
            if is_wanted:
                raise
            self.notes = (f"{name}: {error}",)
        return table.drop_columns([name]), labels

    def _read_series(self, path_of_columns):
        table = columns.arrow_table(self.source)
        self.window = self.window or _WINDOW
        self.stride = self.stride or max(1, self.window // 2)
        table, labels = self._without_labels(table, path_of_columns)
        places = np.zeros(len(table), int)
        if _RECORDING in table.column_names:
            texts = np.array(table[_RECORDING].to_pylist(), object).astype(str)
            _, places = np.unique(texts, return_inverse=True)
            table = table.drop_columns([_RECORDING])
        if path_of_columns is not None:
            table = columns.as_named(table, path_of_columns)
        channels, self.channels = columns.channels_of(table)
        rows_of = [np.flatnonzero(places == x) for x in np.unique(places)]
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            self.images, self.labels, self.recordings = windows.windows_of_all(
                [channels[rows] for rows in rows_of],
                None if labels is None else [labels[rows] for rows in rows_of],
                self.window,
                self.stride,
            )
        self.notes += tuple(str(x.message).rstrip(".") for x in told)

    def _read_arrays(self):
        arrays = array_files.load_members(self.source)
        name = next((x for x in _OF_ARRAYS if x in arrays), None)
        kind = _OF_ARRAYS.get(name)
        wrong = sorted({*arrays} - {name, "labels"})
        if kind is None or wrong or self.kind not in (None, kind):
            raise ValueError(
                "A file of arrays must hold `images`, `sounds`, `windows` or "
                "`rows`, and may hold `labels`. Received: "
                f"{self.source!r} with {', '.join(sorted(arrays)) or 'nothing'}"
                + f", as {self.kind.plural}"
                * (self.kind is not None)
            )
        self.kind = kind
        self.images = self._checked(name, arrays[name])
        if kind is kinds.AUDIO and self.rate is None:
            raise ValueError(
                "`rate`, how many samples make a second, must be given for "
                f"sounds in arrays. Received: rate=None for {self.source!r}"
            )
        if "labels" in arrays:
            self.labels = np.array(arrays["labels"])
            if self.labels.shape[:1] != self.images.shape[:1]:
                raise ValueError(
                    f"`labels` must be as many as `{name}`. Received: labels "
                    f"of shape {self.labels.shape} for {len(self.images)}, in "
                    f"{self.source!r}"
                )

    def _checked(self, name, array):
        """float32 examples; refuses arrays of another form."""
        if array.ndim != self.kind.rank or array.dtype.kind not in "buif":
            raise ValueError(
                f"`{name}` must be an array of numbers with {self.kind.rank} "
                f"axes. Received: `{name}` of shape {array.shape} and dtype "
                f"{array.dtype}, in {self.source!r}"
            )
        if not array.size:
            raise ValueError(
                f"`{name}` must hold {self.kind.plural}. Received: shape "
                f"{array.shape}, in {self.source!r}"
            )
        if self.kind is kinds.AUDIO and array.dtype.kind == "i":
            # As files of integers are read.
            array = array / np.float32(-float(np.iinfo(array.dtype).min))
        with np.errstate(over="ignore"):  # It is infinite then, and refused.
            array = np.asarray(array, "float32")
        is_finite = np.isfinite(array.reshape(len(array), -1)).all(axis=1)
        wrong = np.flatnonzero(~is_finite)
        if len(wrong):
            raise ValueError(
                f"`{name}` must be finite. Received: NaN or infinity in "
                f"{len(wrong)} of {len(array)}, the first at {wrong[0]}, in "
                f"{self.source!r}"
            )
        return array

    def _keep(self, split):
        """Keeps a part: of rows or, where there are some, of recordings."""
        units = self.recordings
        if units is None:
            rows = rows_of_split(split, len(self.images))
        else:
            kept = np.arange(units.max() + 1)[
                rows_of_split(split, int(units.max()) + 1)
            ]
            rows = np.isin(units, kept)
            self.recordings = units[rows]
        self.images = self.images[rows]
        if self.labels is not None:
            self.labels = self.labels[rows]

    def __len__(self):
        return len(self.images)

    def write_beside(self, directory):
        """Writes what else a run must keep, to read other files alike."""
        path = pathlib.Path(directory, COLUMNS.get(self.kind.name, ""))
        if path.exists():  # What a run began with stays.
            return
        if self.space is not None:
            self.space.save(path)
        if self.channels is not None:
            names = json.dumps(self.channels, ensure_ascii=False, indent=2)
            path.write_text(names, encoding="utf-8")


def kind_of_arrays(path):
    """The kind that the names of arrays in an .npz file tell, or None."""
    names = array_files.names_in(path)
    return next((_OF_ARRAYS[x] for x in names if x in _OF_ARRAYS), None)
