"""Tables of numbers, texts and dates, as rows of numbers.

What a column becomes is told by a layer of a `keras.utils.FeatureSpace`; one
column may become several, which are one group.
"""

import dataclasses
import difflib
import json
import pathlib
import re

import keras
import numpy as np
import tensorflow as tf

from keras_simclr import _checks, archives, parquet_files

_MOST_COLUMNS = 1_000
_MOST_CATEGORIES = 100
_DAY = 86_400_000_000  # Microseconds.
_LARGEST = 1e150  # The square of a larger number is none.
_MISSING = ""  # Among categories.


@keras.saving.register_keras_serializable(package="keras_simclr")
class NumberColumn(keras.layers.Layer):
    """A column of numbers, standardized; what is missing is the median.

    Args:
        column: Name of the column in the table.
        median: Number in place of what is missing.
        mean: Mean of the column, so filled.
        stddev: Its standard deviation, not 0.
        has_missing: Whether another column tells by 1 what was missing.
        **kwargs: Standard `keras.layers.Layer` arguments.

    Input shape:
        `(batch, 1)`, float64; NaN where a number is missing.

    Output shape:
        `(batch, 1)` or, with `has_missing`, `(batch, 2)`, float32.

    Example:

    >>> column = NumberColumn("age", 40.0, 42.0, 10.0, True)
    >>> column(np.array([[52.0], [np.nan]])).numpy().tolist()
    [[1.0, 0.0], [-0.20000000298023224, 1.0]]
    """

    dtype_read = "float64"

    def __init__(self, column, median, mean, stddev, has_missing, **kwargs):
        # Times and large numbers differ in digits that float32 has not.
        super().__init__(**{**kwargs, "dtype": "float64"})
        self.column = column
        self.median, self.mean, self.stddev = median, mean, stddev
        self.has_missing = has_missing

    def call(self, numbers):
        numbers = tf.cast(numbers, tf.float64)
        is_missing = tf.math.is_nan(numbers)
        numbers = tf.where(
            is_missing, tf.cast(self.median, tf.float64), numbers
        )
        columns = [(numbers - self.mean) / self.stddev]
        if self.has_missing:
            columns.append(tf.cast(is_missing, tf.float64))
        return tf.cast(tf.concat(columns, axis=-1), tf.float32)

    @property
    def names(self):
        """Of the columns that come out."""
        missing = [f"{self.column} is missing"] * self.has_missing
        return [self.column, *missing]

    def compute_output_spec(self, numbers):
        shape = (*numbers.shape[:-1], len(self.names))
        return keras.KerasTensor(shape, "float32")

    def get_config(self):
        return {
            **super().get_config(),
            "column": self.column,
            "median": self.median,
            "mean": self.mean,
            "stddev": self.stddev,
            "has_missing": self.has_missing,
        }


@keras.saving.register_keras_serializable(package="keras_simclr")
class CategoryColumn(keras.layers.Layer):
    """A column of texts as one number for each category, 0 or 1.

    Args:
        column: Name of the column in the table.
        categories: List of texts. The empty one stands for what is missing.
        **kwargs: Standard `keras.layers.Layer` arguments.

    Input shape:
        `(batch, 1)`, string.

    Output shape:
        `(batch, categories + 1)`, float32: the last tells other texts.

    Example:

    >>> column = CategoryColumn("colour", ["blue", "red"])
    >>> column(np.array([["red"], ["pink"]])).numpy().tolist()
    [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """

    dtype_read = "string"

    def __init__(self, column, categories, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.column = column
        self.categories = list(categories)

    def call(self, texts):
        is_equal = tf.equal(texts, tf.constant(self.categories)[None])
        is_other = ~tf.reduce_any(is_equal, axis=-1, keepdims=True)
        return tf.cast(tf.concat([is_equal, is_other], axis=-1), tf.float32)

    @property
    def names(self):
        """Of the columns that come out."""
        texts = [
            f"{self.column} is missing"
            if text == _MISSING
            else f"{self.column} = {text}"
            for text in self.categories
        ]
        return [*texts, f"{self.column} is another"]

    def compute_output_spec(self, texts):
        shape = (*texts.shape[:-1], len(self.names))
        return keras.KerasTensor(shape, "float32")

    def get_config(self):
        return {
            **super().get_config(),
            "column": self.column,
            "categories": self.categories,
        }


@dataclasses.dataclass(frozen=True)
class Table:
    """A table as numbers.

    Attributes:
        rows: float32 array of shape `(N, columns)`: numbers standardized, a
            column for each category.
        groups: Tuple of an integer for each of these columns: which column of
            the table it comes from. As `MarginalCorruption` takes it.
        names: Tuple of the names of these columns.
        labels: Integer array of shape `(N,)`, places in `class_names`, -1 where
            there is none; or None.
        class_names: Tuple of the classes, as texts.
        space: The fitted `keras.utils.FeatureSpace`, which brings other tables
            to the same columns. `space.save("columns.keras")` saves it.
        left_out: Tuple of sentences: which columns are not used, and why.
    """

    rows: np.ndarray
    groups: tuple
    names: tuple
    labels: np.ndarray | None
    class_names: tuple
    space: keras.utils.FeatureSpace
    left_out: tuple


def read_table(source, label=None, *, space=None, class_names=()):
    """Reads a table of numbers, texts and dates as rows of numbers.

    Numbers are standardized. Truth values are 0 and 1, and dates and times
    become days since 1970. Where numbers are missing (or infinite) there is
    the median, and another column tells so. Texts are categories, of which a
    missing one is another. Left out, and told in `left_out`, are columns with
    one value or none, texts that differ in all rows or have more than 100
    values (names, ids), and lists, structures and bytes.

    Args:
        source: Path of a `.csv` or `.parquet` file; a data frame (of Pandas,
            Polars, PyArrow); or a dictionary of columns by name.
        label: Name of the column of labels, texts or whole numbers, which is no
            part of the rows; or None.
        space: What another table's columns are brought to: `Table.space`, or
            the path of the file it was saved to. None: fitted to this table.
        class_names: Names of the classes, in order, as `Table.class_names` of
            the other table; or empty for those that are found, sorted.

    Returns:
        A `Table`.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is no table, has no rows, more than 1,000 columns, no
            usable one, or not those that `space` needs; or if labels are no
            classes.

    Example:

    >>> columns = {
    ...     "age": [20.0, None, 40.0],
    ...     "colour": ["red", "blue", "red"],
    ...     "kind": ["a", "b", "a"],
    ... }
    >>> table = read_table(columns, "kind")
    >>> table.names[:4]
    ('age', 'age is missing', 'colour = blue', 'colour = red')
    >>> table.groups, table.labels.tolist(), table.class_names
    ((0, 0, 1, 1, 1), [0, 1, 0], ('a', 'b'))

    Another table, with its columns in another order and an unknown colour:

    >>> other = {"colour": ["pink"], "age": [30.0]}
    >>> read_table(other, space=table.space).rows.tolist()
    [[0.0, 0.0, 0.0, 0.0, 1.0]]
    """
    table = arrow_table(source)
    labels = None
    if label is not None:
        column = _column(table, "label", label)
        labels, class_names = _labels(column, label, class_names)
        table = table.drop_columns([label])
    left_out = ()
    if space is None:
        space, left_out = _fitted(table)
    elif not isinstance(space, keras.utils.FeatureSpace):
        space = _loaded(space)
    parts = _parts(space)
    inputs = {key: _values(table, part) for key, part in parts.items()}
    rows = np.asarray(space(inputs), "float32")
    names = [part.names for part in parts.values()]
    return Table(
        rows=rows,
        groups=tuple(
            np.repeat(range(len(names)), list(map(len, names))).tolist()
        ),
        names=tuple(name for several in names for name in several),
        labels=labels,
        class_names=tuple(class_names),
        space=space,
        left_out=left_out,
    )


def _parts(space):
    """The columns of a space by their keys, in the order of what comes out."""
    parts = {key: x.preprocessor for key, x in sorted(space.features.items())}
    for part in parts.values():
        if not isinstance(part, (NumberColumn, CategoryColumn)):
            raise ValueError(
                "`space` must be one that `read_table` fitted. Received: a "
                f"FeatureSpace with a {type(part).__name__}"
            )
    return parts


def _loaded(path):
    """A saved space; of any other file Keras has errors of many kinds."""
    try:
        space = keras.saving.load_model(path)
        found = type(space).__name__
    except Exception as error:
        if archives.is_of_system(error):
            raise
        space, found = None, "file of something else"
    if not isinstance(space, keras.utils.FeatureSpace):
        raise ValueError(
            "`space` must be the path of a saved FeatureSpace. Received: "
            f"space={str(path)!r}, which holds a {found}"
        )
    return space


def arrow_table(source):
    """A table of PyArrow's, of any source that `read_table` takes."""
    import pyarrow as pa

    if isinstance(source, (str, pathlib.Path)):
        table = _from_file(pathlib.Path(source))
        what = repr(str(source))
    else:
        what = f"a {type(source).__name__}"
        try:
            table = source.to_arrow() if hasattr(source, "to_arrow") else source
            table = table if isinstance(table, pa.Table) else pa.table(table)
        except (TypeError, ValueError, pa.ArrowException) as error:
            text = " ".join(str(error).split())
            raise ValueError(
                "`source` must be a path, a data frame or a dictionary of "
                "columns of equal length, each of one type. Received: "
                f"{what} ({text})"
            ) from None
    # Pandas's own column, of rows that were chosen.
    index = [x for x in table.column_names if x.startswith("__index_level_")]
    table = table.drop_columns(index)
    names = table.column_names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            "Columns must have different names. Received: twice "
            f"{_checks.listing(twice)} in {what}"
        )
    if not len(table):
        raise ValueError(f"A table must have rows. Received: none in {what}")
    return table


def _from_file(path):
    suffix = path.suffix.lower()

    def refuse(text):
        raise ValueError(
            f"A table must be a whole {suffix} file. Received: {str(path)!r} "
            f"({text})"
        )

    if suffix == ".parquet":
        with parquet_files.open_table(path, refuse) as file:
            with parquet_files.explaining(refuse):
                return file.read()
    if suffix != ".csv":
        raise ValueError(
            "`source` must be the path of a .csv or .parquet file. Received: "
            f"source={str(path)!r}"
        )
    import pyarrow.csv

    options = pyarrow.csv.ConvertOptions(strings_can_be_null=True)
    with parquet_files.explaining(refuse):
        table = pyarrow.csv.read_csv(path, convert_options=options)
    if table.num_columns == 1 and re.search(r"[;\t|]", table.column_names[0]):
        refuse(f"one column, {table.column_names[0]!r}: write commas between")
    return table


def _column(table, argument, name):
    """A column by its name; refuses one that is not there."""
    if name not in table.column_names:
        near = difflib.get_close_matches(str(name), table.column_names, n=1)
        hint = f". Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"`{argument}` must be a column of the table. Received: "
            f"{argument}={name!r} for columns "
            f"{_checks.listing(table.column_names)}{hint}"
        )
    return table.column(name)


def _is_text(kind):
    from pyarrow import types

    return (
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_dictionary(kind)
    )


def _is_number(kind):
    from pyarrow import types

    return (
        types.is_boolean(kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_decimal(kind)
        or types.is_temporal(kind)
        or types.is_null(kind)
    )


def _numbers(column):
    """A column as float64, NaN where there is no number to compute with."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind, scale = column.type, 1.0
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    elif pa.types.is_temporal(kind):
        is_moment = pa.types.is_date(kind) or pa.types.is_timestamp(kind)
        is_time = pa.types.is_time(kind)
        unit = pa.timestamp("us", getattr(kind, "tz", None))
        unit = unit if is_moment else pa.time64("us")
        unit = unit if is_moment or is_time else pa.duration("us")
        column = column.cast(unit, safe=False).cast(pa.int64())
        scale = 1.0 / _DAY
    numbers = pc.fill_null(column.cast(pa.float64(), safe=False), np.nan)
    numbers = numbers.to_numpy() * scale
    return np.where(np.abs(numbers) <= _LARGEST, numbers, np.nan)


def _texts(column):
    """A column as an array of texts, empty where there is none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = pc.fill_null(column.cast(pa.string()), _MISSING)
    return texts.to_numpy(zero_copy_only=False).astype(object)


def _fitted(table):
    """A space fitted to a table, and what it leaves out, in sentences."""
    if table.num_columns > _MOST_COLUMNS:
        raise ValueError(
            f"A table must have at most {_MOST_COLUMNS:,} columns. Received: "
            f"{table.num_columns:,}. If all are numbers, take them as rows: a "
            "float32 array, standardized"
        )
    features, left_out = {}, []
    for place, name in enumerate(table.column_names):
        part = _part(name, table.column(name))
        if isinstance(part, str):
            left_out.append(f"{name}: {part}")
            continue
        features[f"column_{place:04}"] = keras.utils.FeatureSpace.feature(
            part.dtype_read, part, "float"
        )
    if not features:
        raise ValueError(
            "A table must have a column to learn from. Received: "
            + ("; ".join(left_out[:10]) or "no other column than the label")
        )
    space = keras.utils.FeatureSpace(features)
    # Its layers know all that they need; this has it know that.
    space.adapt(tf.data.Dataset.from_tensors(0))
    return space, tuple(left_out)


def _part(name, column):
    """The layer for a column; or why it is left out."""
    if column.null_count == len(column):
        return "no value"
    if _is_number(column.type):
        numbers = _numbers(column)
        is_missing = np.isnan(numbers)
        if is_missing.all():
            return "no value"
        median = float(np.median(numbers[~is_missing]))
        filled = np.where(is_missing, median, numbers)
        mean, stddev = float(filled.mean()), float(filled.std())
        if filled.min() == filled.max() or not stddev:
            if not is_missing.any():
                return "one value"
            stddev = 1.0
        return NumberColumn(name, median, mean, stddev, bool(is_missing.any()))
    if not _is_text(column.type):
        return f"neither numbers nor texts ({column.type})"
    texts, counts = np.unique(_texts(column), return_counts=True)
    is_known = texts != _MISSING
    if len(texts) == 1:
        return "one value" if is_known.all() else "no value"
    if is_known.sum() > _MOST_CATEGORIES:
        return f"{is_known.sum():,} different texts"
    if is_known.sum() > 2 and (counts[is_known] == 1).all():
        return "a different text in each row"
    return CategoryColumn(name, texts.tolist())


def _values(table, part):
    """The column of a table that a layer takes."""
    column = _known_column(table, part.column)
    if isinstance(part, CategoryColumn):
        is_right = _is_text(column.type) or _is_number(column.type)
        convert, rule = _texts, "texts"
    else:
        is_right, convert, rule = _is_number(column.type), _numbers, "numbers"
    if not is_right:
        raise ValueError(
            f"Column {part.column!r} must hold {rule}, as in the table that "
            f"`space` was fitted to. Received: {column.type}"
        )
    return convert(column)


def _known_column(table, name):
    """A column that another table had; refuses tables without it."""
    if name not in table.column_names:
        raise ValueError(
            "A table must have the columns that an earlier one had, in any "
            f"order. Received: no {name!r} beside its labels, but "
            f"{_checks.listing(table.column_names) or 'none'}"
        )
    return table.column(name)


def labels_of(table, label):
    """Labels of a column of such a table, and the classes, as `Table` has."""
    return _labels(_column(table, "label", label), label, ())


def as_named(table, path):
    """The columns of such a table that a file names, in its order.

    Args:
        table: As `arrow_table` returns it.
        path: Path of a JSON file of a list of names.

    Returns:
        A table of PyArrow's.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it holds no such list, or a column is missing.
    """
    try:
        names = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except ValueError:  # Of JSON or of UTF-8.
        names = None
    is_list = isinstance(names, list) and names
    if not is_list or not all(isinstance(x, str) for x in names):
        raise ValueError(
            "`columns` must be a JSON file of a list of names. Received: "
            f"columns={str(path)!r}"
        )
    for name in names:
        _known_column(table, name)
    return table.select(names)


def channels_of(table):
    """The columns of such a table, which must be numbers.

    Args:
        table: As `arrow_table` returns it, less what is no channel.

    Returns:
        float32 array of shape `(N, channels)`, NaN where nothing is; and the
        list of their names.

    Raises:
        ValueError: If a column is none of numbers, or there is none.
    """
    names = table.column_names
    wrong = [x for x in names if not _is_number(table.column(x).type)]
    if wrong or not names:
        raise ValueError(
            "A series must have columns of numbers, one for each channel, and "
            "perhaps labels and `recording`. Received: "
            f"{_checks.listing(wrong) if wrong else 'no other column'}"
        )
    channels = [_numbers(table.column(name)) for name in names]
    return np.stack(channels, axis=1).astype("float32"), names


def _labels(column, label, class_names):
    """Places of a column's values among the classes, and the classes."""
    if _is_text(column.type):
        texts = _texts(column)
    else:
        texts = _texts_of_whole_numbers(column, label)
    found = set(texts[texts != _MISSING])
    if not found:
        raise ValueError(
            f"Labels must be known of some rows. Received: label={label!r}, "
            "a column without values"
        )
    if not class_names:
        is_number = not _is_text(column.type)
        class_names = sorted(found, key=int if is_number else None)
    unknown = sorted(found - set(class_names))
    if unknown:
        raise ValueError(
            "`class_names` must hold all labels. Received: unknown "
            f"{_checks.listing(unknown)} in column {label!r}"
        )
    places = {name: place for place, name in enumerate(class_names)}
    labels = np.array([places.get(text, -1) for text in texts])
    return labels, tuple(class_names)


def _texts_of_whole_numbers(column, label):
    import pyarrow as pa

    is_temporal = pa.types.is_temporal(column.type)
    numbers = None
    if _is_number(column.type) and not is_temporal:
        numbers = _numbers(column)
        known = numbers[~np.isnan(numbers)]
    if numbers is None or (known != np.rint(known)).any():
        raise ValueError(
            "Labels must be classes: texts or whole numbers. Received: "
            f"label={label!r}, a column of {column.type}"
        )
    return np.array(
        [_MISSING if np.isnan(x) else str(int(x)) for x in numbers], object
    )
