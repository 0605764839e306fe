import numpy as np
import pytest

from keras_simclr import kinds, recipe, sources
from keras_simclr.number_files import NumberFile, kind_of_arrays

TABLE = """age,colour,label
20,red,b
,blue,a
40,red,b
30,blue,
"""


def series(recordings=3, steps=20):
    """Text of a table of recordings, one channel counting the steps."""
    lines = ["recording,x,y,label"]
    for recording in range(recordings):
        for step in range(steps):
            label = "walk" if recording % 2 else "run"
            lines.append(f"r{recording},{step},{recording},{label}")
    return "\n".join(lines) + "\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.csv").write_text(TABLE)
    (tmp_path / "series.csv").write_text(series())
    return tmp_path


def test_tables_have_labels_of_their_column_and_none_in_the_rows(here):
    table = NumberFile("table.csv", kinds.TABLES)
    assert (table.label, table.class_names) == ("label", ("a", "b"))
    assert table.labels.tolist() == [1, 0, 1, -1]
    assert table.images.shape == (4, len(table.groups))
    other = NumberFile("table.csv", kinds.TABLES, label="colour")
    assert other.class_names == ("blue", "red")
    with pytest.raises(ValueError, match="lable"):
        NumberFile("table.csv", kinds.TABLES, label="lable")


def test_columns_of_a_run_read_another_table_alike(here):
    table = NumberFile("table.csv", kinds.TABLES)
    table.write_beside(here)
    (here / "new.csv").write_text("colour,age\nred,20\npink,\n")
    path = here / "columns.keras"
    # The run's column of labels may be missing where there are none.
    new = NumberFile("new.csv", kinds.TABLES, label="label", columns=path)
    assert new.labels is None
    np.testing.assert_array_equal(new.images[0], table.images[0])
    assert new.images.shape[1] == table.images.shape[1]


def test_channels_of_a_run_are_found_by_name_in_any_order(here):
    run = NumberFile("series.csv", kinds.SERIES, window=8, label="label")
    run.write_beside(here)
    rows = [line.split(",") for line in series().splitlines()]
    lines = [f"{y},9,{recording},{x}" for recording, x, y, _ in rows]
    lines[0] = "y,z,recording,x"
    (here / "new.csv").write_text("\n".join(lines) + "\n")
    path, options = here / "columns.json", {"window": 8, "label": "label"}
    new = NumberFile("new.csv", kinds.SERIES, columns=path, **options)
    assert new.labels is None
    np.testing.assert_array_equal(new.images, run.images)
    (here / "new.csv").write_text("recording,x,z\na,1,2\n")
    with pytest.raises(ValueError, match="no 'y' beside its labels"):
        NumberFile("new.csv", kinds.SERIES, columns=path)
    for text in ("[]", "{", '["x", 3]', "\xff"):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match="a JSON file of a list of names"):
            NumberFile("series.csv", kinds.SERIES, columns=path)


@pytest.mark.parametrize("labels", ["", "0.5"])
def test_labels_that_are_no_classes_are_needed_where_asked_for(labels, here):
    lines = [*TABLE.replace("label", "answer").splitlines()]
    lines = [
        lines[0],
        *(x.rpartition(",")[0] + f",{labels}" for x in lines[1:]),
    ]
    for kind in (kinds.TABLES, kinds.SERIES):
        text = "\n".join(lines) + "\n"
        if kind is kinds.SERIES:
            text = "x,answer\n" + f"1,{labels}\n" * 9
        (here / "new.csv").write_text(text.replace("answer", "label"))
        found = NumberFile("new.csv", kind, window=2)
        assert found.labels is None
        assert "Labels must be" in found.notes[0]
        found.write_beside(here)
        (here / "new.csv").write_text(text)
        with pytest.raises(ValueError, match="Labels must be"):
            NumberFile("new.csv", kind, window=2, label="answer")
        # As of a run, whose labels were classes.
        name = {"tables": "columns.keras", "series": "columns.json"}[kind.name]
        known = {"columns": here / name, "label": "answer", "window": 2}
        again = NumberFile("new.csv", kind, **known)
        np.testing.assert_array_equal(again.images, found.images)


def test_what_a_run_began_with_stays(here):
    NumberFile("table.csv", kinds.TABLES).write_beside(here)
    before = (here / "columns.keras").read_bytes()
    (here / "table.csv").write_text(TABLE.replace("40", "4000"))
    NumberFile("table.csv", kinds.TABLES).write_beside(here)
    assert (here / "columns.keras").read_bytes() == before


def test_recordings_without_a_window_are_told(here):
    (here / "series.csv").write_text(series() + "r9,1,1,walk\n")
    found = NumberFile("series.csv", kinds.SERIES, window=8)
    assert "1 of 4 recordings, which have no window of 8" in found.notes[0]
    assert "1 of 4 recordings" in sources.in_words(found)


@pytest.mark.parametrize("between", [";", "\t", "|"])
def test_columns_stand_between_commas(between, here):
    (here / "table.csv").write_text(TABLE.replace(",", between))
    with pytest.raises(ValueError, match="write commas between"):
        NumberFile("table.csv", kinds.TABLES)


def test_windows_are_cut_within_recordings_and_recordings_split(here):
    found = NumberFile("series.csv", kinds.SERIES, window=8, stride=4)
    assert found.images.shape == (3 * 4, 8, 2)
    assert (found.images[..., 1] == found.images[:, :1, 1]).all()
    assert found.images[1, 0].tolist() == [4, 0]
    names = np.array(found.class_names)[found.labels].tolist()
    assert names == ["run"] * 4 + ["walk"] * 4 + ["run"] * 4
    part = NumberFile(
        "series.csv", kinds.SERIES, split="train[1:]", window=8, stride=4
    )
    np.testing.assert_array_equal(part.images, found.images[4:])
    assert np.unique(part.recordings).tolist() == [1, 2]


def test_recordings_are_groups_where_examples_come_in_order(here):
    data = recipe.Data(data="series.csv", kind="series", window=8)
    source, dataset = data.open_in_order(8)
    assert dataset.element_spec.keys() == {"images", "labels", "groups"}
    _, shuffled = data.open(8, batch_size=4)
    assert "groups" not in shuffled.element_spec
    assert data.completed(source).stride == 4


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("rows", (5, 3), kinds.TABLES),
        ("windows", (5, 9, 2), kinds.SERIES),
        ("sounds", (5, 400), kinds.AUDIO),
    ],
)
def test_names_of_arrays_tell_what_they_are(name, shape, kind, here):
    array = np.random.default_rng(0).normal(size=shape)
    np.savez("a.npz", **{name: array}, labels=np.arange(5))
    assert kind_of_arrays("a.npz") is kind
    source = sources.find_source("a.npz", "train[1:]", rate=8000)
    assert source.kind is kind
    assert sources.in_words(source).startswith(f"4 {kind.plural} of 4 classes")
    np.testing.assert_array_equal(source.images, array[1:].astype("float32"))
    assert source.labels.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arrays", "word"),
    [
        ({"rows": np.zeros((5, 3, 2))}, "2 axes"),
        ({"rows": np.full((5, 3), np.nan)}, "5 of 5"),
        ({"rows": np.array([["a"]])}, "numbers"),
        ({"rows": np.zeros((0, 3))}, "must hold rows"),
        ({"rows": np.zeros((5, 3)), "labels": np.zeros(4)}, r"\(4,\) for 5"),
        ({"rows": np.zeros((5, 3)), "labels": np.int64(4)}, r"\(\) for 5"),
        ({"rows": np.full((5, 3), 1e60)}, "NaN or infinity"),
        ({"rows": np.zeros((5, 3)), "more": np.zeros(4)}, "more"),
    ],
)
def test_other_arrays_are_refused(arrays, word, here):
    np.savez("a.npz", **arrays)
    with pytest.raises(ValueError, match=word):
        sources.find_source("a.npz")


def test_arrays_of_another_kind_than_asked_for_are_refused(here):
    np.savez("a.npz", rows=np.zeros((5, 3)))
    with pytest.raises(ValueError, match="as windows"):
        sources.find_source("a.npz", kind="series")


def test_sounds_in_arrays_need_a_rate_and_are_in_unit_range(here):
    sounds = np.array([[-32768, 0, 16384]] * 2, "int16")
    np.savez("sounds.npz", sounds=sounds)
    with pytest.raises(ValueError, match="`rate`, how many samples make a"):
        NumberFile("sounds.npz")
    found = NumberFile("sounds.npz", rate=8000)
    np.testing.assert_array_equal(found.images, [[-1.0, 0.0, 0.5]] * 2)


def test_too_few_are_told_as_what_they_are(here):
    for kind, what in ("tables", "rows"), ("series", "windows"):
        name = {"tables": "table.csv", "series": "series.csv"}[kind]
        data = recipe.Data(data=name, kind=kind, window=8)
        message = f"The {what} must fill at least one batch. Received: [0-9]+ "
        with pytest.raises(ValueError, match=message + what):
            data.open(8, batch_size=100)
        with pytest.raises(ValueError, match="must be files: " + what):
            sources.scan_source(name, "manifest.parquet", kind=kind)
        with pytest.raises(ValueError, match=f"of {what} must be one file"):
            sources.find_source(".", kind=kind)


def test_series_need_columns_of_numbers(here):
    with pytest.raises(ValueError, match=r"columns of numbers.*colour"):
        NumberFile("table.csv", kinds.SERIES)
    (here / "short.csv").write_text("x\n1\n2\n")
    with pytest.raises(ValueError, match="must have a window"):
        NumberFile("short.csv", kinds.SERIES)
