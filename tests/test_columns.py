import csv
import datetime
import re

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from keras_simclr import columns
from keras_simclr.columns import CategoryColumn, NumberColumn, read_table

DAY = datetime.date(2020, 1, 1)
COLUMNS = {
    "age": [20.0, None, 40.0, 30.0],
    "km/h": [1, 2, 3, 4],
    "colour": ["red", "blue", None, "red"],
    "born": [DAY, None, DAY + datetime.timedelta(10), DAY],
    "married": [True, False, None, True],
    "kind": ["b", "a", "b", None],
}


def without(*names):
    return {k: v for k, v in COLUMNS.items() if k not in names}


def write_csv(path, table):
    with path.open("w", newline="") as file:
        rows = [
            ["" if x is None else x for x in row]
            for row in zip(*table.values(), strict=True)
        ]
        csv.writer(file).writerows([table, *rows])
    return path


def write_parquet(path, table):
    pq.write_table(pa.table(table), path)
    return path


class Frame:
    """A data frame of another library, which speaks Arrow's protocol."""

    def __init__(self, table):
        self._table = pa.table(table)

    def __arrow_c_stream__(self, requested_schema=None):
        return self._table.__arrow_c_stream__(requested_schema)


class Lazy:
    """One that makes a table of Arrow's of itself, as Polars does."""

    def __init__(self, table):
        self._table = table

    def to_arrow(self):
        return pa.table(self._table)


SOURCES = {
    "dictionary": lambda directory, table: table,
    "csv": lambda directory, table: write_csv(directory / "a.csv", table),
    "parquet": lambda directory, table: write_parquet(
        directory / "a.parquet", table
    ),
    "text": lambda directory, table: str(
        write_parquet(directory / "a.parquet", table)
    ),
    "arrow": lambda directory, table: pa.table(table),
    "frame": lambda directory, table: Frame(table),
    "polars": lambda directory, table: Lazy(table),
}
each_source = pytest.mark.parametrize("source", SOURCES)


@each_source
def test_table_of_any_source_becomes_the_same_rows(source, tmp_path):
    table = read_table(SOURCES[source](tmp_path, COLUMNS), "kind")
    stacked = {
        "age": standard([20, 30, 40, 30]),
        "age is missing": [0, 1, 0, 0],
        "km/h": standard([1, 2, 3, 4]),
        "colour is missing": [0, 0, 1, 0],
        "colour = blue": [0, 1, 0, 0],
        "colour = red": [1, 0, 0, 1],
        "colour is another": [0, 0, 0, 0],
        "born": standard([0, 0, 10, 0]),
        "born is missing": [0, 1, 0, 0],
        "married": standard([1, 0, 1, 1]),
        "married is missing": [0, 0, 1, 0],
    }
    assert table.names == tuple(stacked)
    expected = np.transpose(list(stacked.values()))
    np.testing.assert_allclose(table.rows, expected, atol=1e-6)
    assert table.rows.dtype == "float32"
    assert table.groups == (0, 0, 1, 2, 2, 2, 2, 3, 3, 4, 4)
    assert table.labels.tolist() == [1, 0, 1, -1]
    assert table.class_names == ("a", "b")
    assert table.left_out == ()


def standard(values):
    values = np.array(values, "float64")
    return (values - values.mean()) / values.std()


@each_source
def test_space_from_a_file_brings_other_tables_to_the_same(source, tmp_path):
    table = read_table(COLUMNS, "kind")
    path = tmp_path / "columns.keras"
    table.space.save(path)
    others = {name: values[::-1] for name, values in COLUMNS.items()}
    others = dict(reversed(others.items())) | {"unknown": [1, 2, 3, 4]}
    others = SOURCES[source](tmp_path, others)
    for space in (table.space, path, str(path)):
        other = read_table(
            others, "kind", space=space, class_names=table.class_names
        )
        np.testing.assert_array_equal(other.rows, table.rows[::-1])
        np.testing.assert_array_equal(other.labels, table.labels[::-1])
        assert other.names == table.names
        assert other.groups == table.groups


def test_what_was_not_seen_gets_numbers_too():
    table = read_table(without("kind", "born"))
    other = read_table(
        {
            "age": [float("inf"), 50.0],
            "km/h": [None, 5],  # None was missing there.
            "colour": ["pink", ""],
            "married": [None, None],
        },
        space=table.space,
    )
    rows = [dict(zip(other.names, row, strict=True)) for row in other.rows]
    assert [row["age is missing"] for row in rows] == [1.0, 0.0]
    assert rows[0]["age"] == 0.0  # The median, which is the mean.
    assert rows[0]["km/h"] == 0.0
    assert rows[0]["colour is another"] == 1.0
    assert rows[1]["colour is missing"] == 1.0
    assert sum(rows[1][x] for x in rows[1] if "colour" in x) == 1.0
    assert np.isfinite(other.rows).all()


def test_columns_of_no_use_are_left_out_and_named():
    rng = np.random.default_rng(0)
    table = read_table(
        {
            "good": rng.normal(size=202),
            "constant": [3.0] * 202,
            "one text": ["a"] * 202,
            "nothing": pa.nulls(202),
            "no number": [float("nan")] * 202,
            "no text": [None, ""] * 101,
            "id": [f"user {i}" for i in range(202)],
            "city": [f"city {i // 2}" for i in range(202)],
            "tags": [["a", "b"]] * 202,
            "bytes": [b"a", b"b"] * 101,
            "sometimes": [1.0, None] * 101,
        }
    )
    assert table.names == ("good", "sometimes", "sometimes is missing")
    assert dict(x.split(": ", 1) for x in table.left_out) == {
        "constant": "one value",
        "one text": "one value",
        "nothing": "no value",
        "no number": "no value",
        "no text": "no value",
        "id": "202 different texts",
        "city": "101 different texts",
        "tags": "neither numbers nor texts (list<item: string>)",
        "bytes": "neither numbers nor texts (binary)",
    }
    np.testing.assert_array_equal(table.rows[:, 1], 0.0)


def test_names_are_left_out_of_a_small_table():
    table = read_table({"name": ["Ann", "Bob", "Cy"], "age": [1, 2, 4]})
    assert table.left_out == ("name: a different text in each row",)


@pytest.mark.parametrize(
    ("values", "days"),
    [
        ([DAY, DAY + datetime.timedelta(3)], [18262, 18265]),
        (
            [
                datetime.datetime(2020, 1, 1, 12),
                datetime.datetime(2020, 1, 2, 18),
            ],
            [18262.5, 18263.75],
        ),
        ([datetime.time(6), datetime.time(18)], [0.25, 0.75]),
        (
            [datetime.timedelta(hours=36), datetime.timedelta(-1)],
            [1.5, -1.0],
        ),
    ],
)
def test_times_are_days(values, days):
    part = columns._part("when", pa.table({"when": values}).column("when"))
    assert isinstance(part, NumberColumn)
    assert part.mean == pytest.approx(np.mean(days))
    assert part.stddev == pytest.approx(np.std(days))


def test_large_numbers_keep_their_small_differences():
    stamps = 1_700_000_000_000 + np.arange(4)
    rows = read_table({"stamp": stamps}).rows
    np.testing.assert_allclose(rows[:, 0], standard(range(4)), atol=1e-4)


@pytest.mark.parametrize(
    "numbers",
    [[1e308, 1.0, 2.0], [-1e308, 1e308, 0.0, 1.0], [0.0, 5e-324, 0.0, 1.0]],
)
def test_extreme_numbers_become_finite_rows(numbers):
    assert np.isfinite(read_table({"a": numbers}).rows).all()


@pytest.mark.parametrize(
    ("labels", "class_names", "places"),
    [
        ([10, 9, 2, None], ("2", "9", "10"), [2, 1, 0, -1]),
        ([1.0, float("nan"), 0.0, 1.0], ("0", "1"), [1, -1, 0, 1]),
        ([True, False, True, None], ("0", "1"), [1, 0, 1, -1]),
        (
            pa.array(["x", "y", "x", None]).dictionary_encode(),
            ("x", "y"),
            [0, 1, 0, -1],
        ),
    ],
)
def test_labels_are_texts_or_whole_numbers(labels, class_names, places):
    table = read_table({"age": [1, 2, 3, 4], "y": labels}, "y")
    assert table.class_names == class_names
    assert table.labels.tolist() == places


@pytest.mark.parametrize(
    ("source", "arguments", "words"),
    [
        (COLUMNS, {"label": "kinds"}, "Did you mean 'kind'?"),
        (COLUMNS, {"label": "born"}, "Labels must be classes"),
        ({"a": [1, 2], "y": [0.5, 1.0]}, {"label": "y"}, "must be classes"),
        ({"a": [1, 2], "y": [None, ""]}, {"label": "y"}, "must be known"),
        (
            COLUMNS,
            {"label": "kind", "class_names": ("a", "c")},
            "unknown b in column 'kind'",
        ),
        ({"a": [], "b": []}, {}, "must have rows"),
        ({"a": [1, 2], "b": [1]}, {}, "columns of equal length"),
        ({"a": [1, "x"]}, {}, "each of one type"),
        ({"y": [1, 2]}, {"label": "y"}, "no other column than the label"),
        ({"a": [1, 1], "b": ["x", "x"]}, {}, "a: one value; b: one value"),
        (3, {}, "Received: a int"),
        ("a.xlsx", {}, "source='a.xlsx'"),
        (
            {f"c{i}": [i, i + 1] for i in range(10_000)},
            {},
            "at most 1,000 columns. Received: 10,000",
        ),
        (
            pa.table([pa.array([1]), pa.array([2])], ["a", "a"]),
            {},
            "Received: twice a",
        ),
    ],
)
def test_table_of_no_use_is_refused(source, arguments, words):
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        read_table(source, **arguments)
    assert re.search("must .*Received: ", str(error.value))


def test_tables_that_do_not_fit_a_space_are_refused(tmp_path):
    space = read_table(without("kind")).space
    with pytest.raises(ValueError, match="no 'age' beside its labels, but km"):
        read_table(without("kind", "age"), space=space)
    wrong = {**COLUMNS, "age": ["old", "new", "old", "new"]}
    with pytest.raises(ValueError, match=r"'age' must hold numbers.*: string"):
        read_table(wrong, space=space)
    foreign = keras.utils.FeatureSpace({"a": "float"})
    with pytest.raises(ValueError, match="must be one that `read_table` fit"):
        read_table(COLUMNS, space=foreign)
    path = tmp_path / "model.keras"
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]).save(path)
    with pytest.raises(ValueError, match="which holds a Sequential"):
        read_table(COLUMNS, space=path)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_broken_file_is_refused_in_words(suffix, tmp_path):
    path = tmp_path / f"broken.{suffix}"
    path.write_bytes(b"a,b\n1,2,3\n\xff\xfe")
    with pytest.raises(ValueError, match=f"must be a whole .{suffix} file"):
        read_table(path)
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / f"missing.{suffix}")


@pytest.mark.parametrize(
    "layer",
    [
        NumberColumn("a", 2.0, 1.0, 4.0, True, name="number"),
        CategoryColumn("b", ["", "x"], name="category"),
    ],
)
def test_layer_of_a_column_comes_back_from_its_config(layer):
    config = keras.saving.serialize_keras_object(layer)
    copy = keras.saving.deserialize_keras_object(config)
    assert copy.get_config() == layer.get_config()
    texts = np.array([["x"], ["y"], [""]])
    numbers = np.array([[6.0], [np.nan], [2.0]])
    inputs = texts if isinstance(layer, CategoryColumn) else numbers
    np.testing.assert_array_equal(copy(inputs), layer(inputs))
    assert copy(inputs).shape[1] == len(copy.names)
