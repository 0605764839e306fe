import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from helpers import standins

import keras_simclr as simclr
from keras_simclr import embedding, folders
from keras_simclr.vectors import VectorTable

pytestmark = pytest.mark.usefixtures("eagerly")

ROWS = np.random.default_rng(0).normal(size=(6, 3))
NAMES = [f"{kind}/{number}.png" for kind in ("cat", "dog") for number in "123"]


def lists(kind=None, rows=ROWS):
    return pa.array(list(map(list, rows)), kind)


def parquet(**columns):
    pq.write_table(pa.table(columns), "table.parquet")
    return VectorTable("table.parquet")


def npz(**arrays):
    with pathlib.Path("table.npz").open("wb") as file:
        np.savez(file, **arrays)
    return VectorTable("table.npz")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def folder(path, names=NAMES, **kwargs):
    """Images that are listed, and never opened."""
    for name in names:
        place = pathlib.Path(path, name)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"")
    return folders.ImageFolder(path, **kwargs)


def message(function, *args, **kwargs):
    with pytest.raises(ValueError) as error:
        function(*args, **kwargs)
    text = str(error.value)
    start = "A table of embeddings must have "
    assert text.startswith(start)
    rule, received = text.removeprefix(start).split(". Received: ", 1)
    return rule, received


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float64()),
        pa.large_list(pa.float16()),
        pa.list_(pa.float32(), 3),
        pa.list_(pa.int8()),
    ],
    ids=str,
)
def test_lists_of_numbers_are_vectors(kind):
    rows = ROWS.astype("float16")
    rows = rows.astype("int8") if kind.value_type == pa.int8() else rows
    found = parquet(
        label=["a"] * 6,
        any_name=lists(kind, rows),
        path=pa.array(NAMES).dictionary_encode(),
    )
    assert found.vectors.dtype == "float32"
    np.testing.assert_array_equal(found.vectors, rows)
    assert (found.paths, found.places) == (NAMES, None)


def test_arrays_are_vectors():
    found = npz(logits=ROWS, embeddings=ROWS * 2, places=np.arange(6))
    np.testing.assert_array_equal(found.vectors, (ROWS * 2).astype("float32"))
    assert found.places.tolist() == [*range(6)]
    found = npz(z=ROWS, paths=np.array(NAMES), labels=np.zeros(6))
    assert found.paths == NAMES


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_what_embed_writes_is_such_a_table(ending):
    model, (images, _) = standins.model(), standins.labelled_images()
    names = ["g\udcff.png", *map(str, range(1, 24))]
    path = pathlib.Path(f"table.{ending}")
    dataset = simclr.dataset_from_arrays(
        images, batch_size=10, shuffle=False, drop_remainder=False
    )
    embedding.write_embeddings(model, dataset, path, names)
    found = VectorTable(path)
    np.testing.assert_array_equal(
        found.vectors, simclr.extract_features(model, images)
    )
    assert found.paths == ["g\\xff.png", *names[1:]]


def test_columns_that_are_no_vectors_are_refused_by_name():
    rule, received = message(parquet, path=NAMES, h0=ROWS[:, 0])
    assert rule == (
        "one column of vectors (lists of numbers, or an array of shape (N, D))"
        ", or one that is named `embedding`"
    )
    assert received == (
        "'table.parquet' with the columns path (string), h0 (double). Make one "
        "of them"
    )
    rule, received = message(npz, a=ROWS, b=ROWS, c=np.arange(6))
    assert "a (float64 of shape (6, 3)), b (float64 of shape" in received
    assert (
        "columns path (string), x (list<e"
        in message(parquet, path=NAMES, x=[NAMES[:1]] * 6)[1]
    )


@pytest.mark.parametrize("wrong", [[1.0], None, []])
@pytest.mark.parametrize("rows", [1, 1_001])
def test_vectors_of_different_lengths_are_refused(wrong, rows):
    vectors = [[1.0, 2.0]] * rows + [wrong, wrong]
    rule, received = message(parquet, vector=vectors)
    assert rule == "vectors of one length"
    assert received == (
        f"'table.parquet' with 2 numbers in row 0 and others in 2 of {rows + 2}"
        f" rows: {rows}, {rows + 1}"
    )


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e300])
def test_vectors_that_are_not_finite_are_refused(wrong):
    rows = np.repeat(ROWS, 200, axis=0)
    rows[[3, 1_100], 1] = wrong
    for table in (parquet, npz):
        columns = lists(rows=rows) if table is parquet else rows
        rule, received = message(table, embedding=columns)
        assert rule == "finite vectors"
        assert received.endswith(
            "with 2 of 1200 rows that hold NaN or infinity: 3, 1100"
        )
    with_null = pa.array([[1.0, None]])
    assert message(parquet, embedding=with_null)[0] == "finite vectors"


def test_files_that_are_no_tables_are_refused():
    for name in ("a.parquet", "a.npz"):
        with pytest.raises(FileNotFoundError):
            VectorTable(name)
        pathlib.Path(name).write_bytes(b"nothing")
        with pytest.raises(ValueError, match=name):
            VectorTable(name)
    parquet(embedding=lists())
    file = pathlib.Path("table.parquet")
    whole = file.read_bytes()
    file.write_bytes(whole[:4] + bytes(40) + whole[44:])
    assert message(VectorTable, "table.parquet")[0] == "whole columns"
    assert message(npz, embedding=ROWS[:0])[0] == "vectors"
    assert message(parquet, embedding=lists(pa.list_(pa.float64()), []))[0] == (
        "vectors"
    )
    with pytest.raises(ValueError, match=r"paths = np\.array"):
        npz(embedding=ROWS, paths=np.array(NAMES, object))


@pytest.mark.parametrize("wrong", [[*NAMES[:5], None], [1] * 6])
def test_paths_and_places_belong_to_vectors(wrong):
    rule, _ = message(parquet, embedding=lists(), path=wrong)
    assert rule == "a text as the path of each vector"
    rule, _ = message(npz, embedding=ROWS, places=np.arange(5))
    assert rule == "an integer as the place of each vector"
    for places in ([*range(5), None], np.arange(6.0)):
        rule, _ = message(parquet, embedding=lists(), place=places)
        assert rule == "an integer as the place of each vector"


@pytest.mark.parametrize(
    "front", ["", "./", "train/", "data/train/", "{here}/data/train/"]
)
def test_rows_are_of_images_by_paths_with_folders_in_front(tmp_path, front):
    images, front = folder("data/train"), front.format(here=tmp_path)
    order = np.random.default_rng(0).permutation(6)
    table = npz(z=ROWS[order], path=[front + NAMES[x] for x in order])
    table.find_images([images])
    places = np.array([4, 0, 1])
    table.follow([(None, places)])
    np.testing.assert_array_equal(table.vectors, ROWS[places].astype("float32"))


def test_one_table_is_of_images_to_learn_from_and_to_test_on():
    images = [folder("data/train"), folder("data/val", NAMES[:2])]
    paths = [f"val/{x}" for x in NAMES[:2]] + [f"train/{x}" for x in NAMES]
    rows = np.vstack([ROWS[:2] + 9, ROWS])
    table = npz(z=rows, paths=paths)
    table.find_images(images)
    table.follow([(None, np.arange(6)), (None, np.array([1]))])
    expected = np.vstack([ROWS, ROWS[1:2] + 9]).astype("float32")
    np.testing.assert_array_equal(table.vectors, expected)
    rule, received = message(npz(z=ROWS, paths=NAMES).find_images, images)
    assert rule == (
        "paths that tell images to learn from and to test on apart, by the "
        "folders above in front"
    )
    assert received == (
        "'table.npz' with 2 of 6 rows that are of both: cat/1.png, cat/2.png"
    )


def test_rows_of_images_that_are_not_evaluated_are_left_alone():
    """Those of other parts of the same data, but not of other data."""
    parts = [
        folder("data", split=split) for split in ("train[:50%]", "train[50%:]")
    ]
    assert len(parts[0].paths) < 6
    table = npz(z=ROWS, paths=NAMES)
    for sets in (parts, parts[:1]):
        table.find_images(sets)
    table.follow([(None, np.arange(len(parts[0].paths)))])
    expected = [NAMES.index(path) for path in parts[0].paths]
    np.testing.assert_array_equal(
        table.vectors, ROWS[expected].astype("float32")
    )


def test_unknown_repeated_and_missing_paths_are_listed():
    images = [folder("data")]
    table = npz(z=ROWS, path=["x", *NAMES[:4], "y"])
    rule, received = message(table.find_images, images)
    assert rule == (
        "paths of images of the data, such as 'cat/1.png', perhaps with the "
        "folders above in front"
    )
    assert received.endswith(" 2 of 6 rows that are of no image: x, y")
    table = npz(z=ROWS, path=[*NAMES[:4], NAMES[0], f"./{NAMES[1]}"])
    rule, received = message(table.find_images, images)
    assert rule == "one row for each image"
    assert received.endswith(" are of the same: cat/1.png, ./cat/2.png")
    table = npz(z=ROWS[:3], path=NAMES[:3])
    table.find_images(images)
    assert message(table.follow, [(None, np.arange(2, 6))]) == (
        "a row for each labelled image",
        "'table.npz' with none for 3 of 4: dog/1.png, dog/2.png, dog/3.png",
    )
    rule, received = message(npz(z=ROWS).find_images, images)
    assert rule == "the `path` of each image, such as 'cat/1.png'"
    assert received.endswith("the columns z (float64 of shape (6, 3))")
    rule, _ = message(npz(z=ROWS, path=NAMES).find_images, [*images, None])
    assert rule.endswith("that all have paths, or none of them")


def test_places_count_on_from_images_to_learn_from():
    learned, tested = np.array([3, 0]), np.array([1])
    sets = [(4, learned), (2, tested)]
    order = np.array([5, 3, 1, 0, 2, 4])
    for table in (
        npz(z=ROWS),
        npz(z=ROWS[order], place=order),
        parquet(z=lists(rows=ROWS[order]), place=order),
    ):
        table.find_images([None, None])
        table.follow(sets)
        expected = ROWS[[3, 0, 5]].astype("float32")
        np.testing.assert_array_equal(table.vectors, expected)
    assert message(npz(z=ROWS).follow, [(4, learned), (1, tested)]) == (
        "a row for each image, or a `place` in each row",
        "'table.npz' with 6 rows for 4 and 1 images",
    )
    places = np.array([0, 1, 2, 2, 6, -1])
    assert message(npz(z=ROWS, place=places).follow, sets) == (
        "places from 0 to 5",
        "'table.npz' with 2 of 6 rows that are of no image: 6, -1",
    )
    places = np.array([0, 1, 2, 2, 1, 5])
    assert message(npz(z=ROWS, place=places).follow, sets)[1] == (
        "'table.npz' with 2 of 6 rows that are of the same: 2, 1"
    )
    places = np.array([0, 1, 2])
    assert message(npz(z=ROWS[:3], place=places).follow, sets)[1] == (
        "'table.npz' with none for 2 of 3: 3, 5"
    )
    rule, received = message(npz(z=ROWS, path=NAMES).find_images, [None])
    assert rule.startswith("`place` and no `path` for images without paths")
    assert "have lost the paths: dataset.source = simclr.folders" in received


def test_rows_follow_no_order_that_changes():
    images = np.zeros((6, 8, 8, 1), "uint8"), np.arange(6)
    table = npz(z=ROWS)
    options = {"batch_size": 2, "drop_remainder": False}
    ordered = simclr.dataset_from_arrays(*images, shuffle=False, **options)
    table.check(ordered)
    shuffled = simclr.dataset_from_arrays(*images, **options)
    for wrong in (shuffled, ordered.shuffle(4)):
        rule, received = message(table.check, wrong)
        assert rule.endswith("or images in one order: shuffle=False")
        assert received == "'table.npz' with a dataset that is shuffled"
    placed = tf.data.Dataset.from_tensors(
        {"images": images[0], "places": images[1]}
    )
    assert message(table.check, placed)[0] == ("images whose paths are known")


def rows_of(result, name):
    return [
        (row["labels"], row["draws"])
        for row in result.rows
        if row["features"] == name
    ]


@pytest.mark.parametrize("is_tested", [True, False])
def test_a_table_is_worth_what_the_encoder_is_that_made_it(is_tested):
    model, (images, labels) = standins.model(), standins.labelled_images()
    labels = np.where(np.arange(24) % 7 == 0, -1, labels)  # Four have none.
    sets = [(images, labels)]
    if is_tested:
        sets = [(images[:14], labels[:14]), (images[14:], labels[14:])]
    vectors = simclr.extract_features(model, images)
    npz(embeddings=vectors)
    result = simclr.evaluate(
        model,
        *sets,
        probes=["knn"],
        labels=(2, "all"),
        draws=2,
        encoders={"mine": "table.npz"},
    )
    assert rows_of(result, "mine") == rows_of(result, "simclr")
    assert len(rows_of(result, "mine")) == 2
    digest = result.settings["encoders"]["mine"]
    assert len(digest) == 64
    assert npz(embeddings=vectors + 1).digest != digest
