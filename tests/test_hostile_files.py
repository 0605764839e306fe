"""Files from a stranger: a result or one sentence, and no code is run.

`benchmarks/reliability/hostile.py` does the same with many more.
"""

import contextlib
import csv
import io
import json
import pathlib
import resource
import zipfile

import h5py
import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import mutations
from helpers.kinds_of_data import FILES
from helpers.pictures import write

import keras_simclr as simclr
import keras_simclr_cli as cli
from keras_simclr import (
    _terminal,
    array_files,
    cards,
    classification,
    csv_files,
    curves,
    lists,
    logs,
    manifests,
    pretrained,
    run_accounts,
    runs,
    shards,
    vectors,
)

FEW = 6  # Mutations of each kind.
MOST = 2 << 30  # Bytes.


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """Commands in a file would run here, and leave something."""
    monkeypatch.chdir(tmp_path)
    yield
    found = [x for x in (tmp_path, *tmp_path.parents) if (x / CANARY).exists()]
    assert not found


CANARY = mutations.CANARY


def given(files, name="given"):
    directory = pathlib.Path(name).absolute()
    directory.mkdir(exist_ok=True)
    return write(directory, files)


def test_code_in_these_files_would_leave_something_if_it_ran():
    np.load(io.BytesIO(mutations.pickled()), allow_pickle=True)
    pathlib.Path(CANARY).unlink()
    lambda_layer = mutations.hostile_layers()[0]
    layer = keras.saving.deserialize_keras_object(lambda_layer, safe_mode=False)
    layer(np.ones(1))
    pathlib.Path(CANARY).unlink()


@pytest.mark.parametrize("kind", mutations.KINDS)
def test_mutations_are_the_same_each_time_and_differ(kind):
    sound = mutations.sound(kind)
    first = [mutations.mutant(kind, n) for n in range(4)]
    assert first == [mutations.mutant(kind, n) for n in range(4)]
    assert sum(x != sound for x in first) >= 3


@pytest.mark.parametrize("kind", mutations.KINDS)
def test_files_end_in_a_result_or_a_sentence(kind):
    found = mutations.outcomes(kind, given(mutations.sound(kind), "sound"))
    assert found.count("result") >= len(found) - 1  # A run that is finished.
    for number in range(2 if kind == "SavedModel" else FEW):
        files = mutations.mutant(kind, number)
        with limited_memory():
            found = mutations.outcomes(kind, given(files, f"given{number}"))
        assert {*found} <= {"result", "sentence"}, (number, found)
        names = {f"given{x}" for x in range(number + 1)} | {"sound"}
        assert {x.name for x in pathlib.Path().iterdir()} == names


@contextlib.contextmanager
def limited_memory():
    """Context in which this process may take 2 GiB more, not all there is."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + MOST
    resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def refusal(read, *words):
    """What is said of the file in `given`, which must be one sentence."""
    with pytest.raises(ValueError) as info, limited_memory():
        read(pathlib.Path("given"))
    text = str(info.value)
    assert _terminal.is_refusal(info.value)
    assert "\n" not in text
    assert "given" in text
    for word in words:
        assert word in text
    return text


# Keras's files.


def config_of(kind, name):
    with zipfile.ZipFile(io.BytesIO(mutations.sound(kind)[name])) as archive:
        return json.loads(archive.read("config.json"))


def with_config(change, kind="encoder", name="encoder.keras"):
    """The sound file of a kind, with its config changed."""
    config = config_of(kind, name)
    config = change(config) or config
    with zipfile.ZipFile(io.BytesIO(mutations.sound(kind)[name])) as archive:
        members = [(x, archive.read(x)) for x in archive.namelist()]
    members = dict(members) | {"config.json": json.dumps(config).encode()}
    given({name: mutations.joined(members.items())})


def open_encoder(directory):
    return pretrained.open_encoder(directory / "encoder.keras")


@pytest.mark.parametrize("layer", mutations.hostile_layers())
def test_layers_that_would_run_code_or_read_files_are_refused(layer):
    def change(config):
        config["config"]["layers"][1] = layer

    with_config(change)
    refusal(open_encoder, "that Keras can load")


def test_networks_far_larger_than_their_files_are_refused():
    dense = {
        "module": "keras.layers",
        "class_name": "Dense",
        "config": {"name": "dense", "units": 10**9},
        "registered_name": None,
    }

    def larger(config):
        config["config"]["layers"].append(dense)

    with_config(larger)
    refusal(open_encoder, "weights would be far more than it holds")

    def wide(config):
        shape = [None, 100_000, 100_000, 3]
        config["config"]["layers"][0]["config"]["batch_shape"] = shape

    with_config(wide)
    refusal(open_encoder, "its inputs would be of shape")


def test_a_network_with_new_slots_is_no_larger_than_its_file():
    """What an optimizer adds is not in the file of a model never trained."""
    encoder = simclr.ResNet(18, input_shape=(32, 32, 3))
    model = simclr.SimCLRModel(encoder)
    model.compile(keras.optimizers.Adam())
    given({})
    model.save("given/model.keras")
    assert runs.load_model("given").count_params() == model.count_params()


@pytest.mark.parametrize(
    ("depth", "brackets"), [(100_000, "[]"), (50_000, "{}")]
)
def test_configs_that_are_nested_too_deeply_are_refused(depth, brackets):
    first, last = brackets
    first += '"a":' * (first == "{")
    text = f"{first * depth}1{last * depth}".encode()
    members = {"config.json": text, "model.weights.h5": b""}
    given({"encoder.keras": mutations.joined(members.items())})
    refusal(open_encoder, "recursion")
    given({"summary.json": text, "class_names.json": text})
    refusal(runs.read_summary, "recursion")
    refusal(classification.class_names, "recursion")


@pytest.mark.parametrize("name", ["config.json", "model.weights.h5"])
def test_archives_that_unpack_to_gigabytes_are_refused(name):
    members = {"config.json": b"{}", "model.weights.h5": b""}
    given({"encoder.keras": mutations.joined(members.items(), bomb=name)})
    refusal(open_encoder, "unpack to 3.2 GB")


def test_archives_of_arrays_that_unpack_to_gigabytes_are_refused():
    bomb = mutations.joined([("images.npy", b"")], bomb="images.npy")
    given({"a.npz": bomb})
    for read in (array_files.load_arrays, vectors.VectorTable):
        refusal(lambda x, read=read: read(x / "a.npz"), "unpack to 3.2 GB")


@pytest.mark.parametrize("name", [f"../../{CANARY}", f"/{CANARY}", "a/../../x"])
def test_archives_whose_parts_lie_elsewhere_are_refused(name):
    with zipfile.ZipFile("sound.zip", "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr(name, "x")
    data = pathlib.Path("sound.zip").read_bytes()
    given({"encoder.keras": data, "a.npz": data})
    refusal(open_encoder, "would lie elsewhere")
    refusal(lambda x: array_files.load_members(x / "a.npz"), "lie elsewhere")


@pytest.mark.parametrize("change", ["link", "storage", "virtual", "huge"])
def test_weights_that_are_elsewhere_or_nowhere_are_refused(change):
    name = "encoder.keras"
    with zipfile.ZipFile(io.BytesIO(mutations.sound("encoder")[name])) as old:
        members = {x: old.read(x) for x in old.namelist()}
    file = io.BytesIO(members["model.weights.h5"])
    with h5py.File(file, "a") as h5:
        place = "layers/conv2d/vars/0"
        shape = h5[place].shape
        del h5[place]
        if change == "link":
            h5[place] = h5py.ExternalLink("/etc/passwd", "/x")
        elif change == "storage":
            storage = [("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
            h5.create_dataset(place, shape, "f4", external=storage)
        elif change == "virtual":
            layout = h5py.VirtualLayout(shape, "f4")
            layout[:] = h5py.VirtualSource("/etc/passwd", "x", shape)
            h5.create_virtual_dataset(place, layout)
        else:
            h5.create_dataset(place, (2**18, 2**17), "f4", chunks=(64, 64))
    members["model.weights.h5"] = file.getvalue()
    given({name: mutations.joined(members.items())})
    refusal(open_encoder, "that Keras can load")


def test_a_file_of_something_else_is_refused():
    layer = keras.saving.serialize_keras_object(keras.layers.ReLU())
    with_config(lambda config: layer)
    refusal(open_encoder, "it holds no Model, but <ReLU")
    given({"model.keras": mutations.sound("encoder")["encoder.keras"]})
    refusal(runs.load_model, "it holds no SimCLRModel")


# Tables, shards and arrays.


@pytest.mark.parametrize("kind", ["arrays, NPZ", "arrays, NPY", "table, NPZ"])
def test_pickles_are_never_read(kind):
    (name,) = mutations.sound(kind)
    data = mutations.pickled()
    if name.endswith(".npz"):
        names = ("images", "paths", "representations")
        names = names[:1] if "arrays" in kind else names[1:]
        data = mutations.joined([(f"{x}.npy", data) for x in names])
    (read,) = mutations.KINDS[kind].reads
    given({name: data})
    refusal(read, "objects, which may run code")


def test_packed_arrays_that_promise_more_than_they_hold_are_refused():
    file = io.BytesIO()
    np.savez_compressed(file, images=np.zeros((4, 8, 8, 3), "uint8"))
    with zipfile.ZipFile(file) as archive:
        data = archive.read("images.npy").replace(b"(4, 8,", b"(4**9, 8,")
        data = data.replace(b"4**9", b"99999999999")[:-8]
    archive = mutations.joined([("images.npy", data)], zipfile.ZIP_DEFLATED)
    given({"a.npz": archive})
    refusal(lambda x: array_files.load_arrays(x / "a.npz"), "whole")


def long(schema):
    """A million equal rows, which take no room."""
    file = io.BytesIO()
    column = {
        name: pa.array([None], kind) if name == "problem" else ROWS[str(kind)]
        for name, kind in zip(schema.names, schema.types, strict=True)
    }
    row = pa.table(column, schema)
    rows = pa.concat_tables([row] * 1_000).combine_chunks()
    rows = pa.concat_tables([rows] * 1_000)
    pq.write_table(rows.combine_chunks(), file)
    return file.getvalue()


ROWS = {
    "binary": [b"a.png"],
    "string": ["PNG"],
    "int32": [9],
    "int64": [0],
    "bool": [True],
    "list<item: float>": [[1.0, 2.0]],
}


def test_tables_of_rows_that_take_no_room_are_refused():
    embeddings = pa.schema({"path": pa.string(), "e": pa.list_(pa.float32())})
    images = pa.schema({"image": pa.binary()})
    given(
        {
            "manifest": long(manifests.schema()),
            "table.parquet": long(embeddings),
            "shard.parquet": long(images),
        }
    )
    refusal(lambda x: manifests.read_manifest(x / "manifest"), "rows in")
    refusal(lambda x: vectors.VectorTable(x / "table.parquet"), "rows in")
    refusal(lambda x: shards.ParquetShards(str(x / "shard.parquet")), "rows in")


def test_vectors_and_images_that_take_no_room_are_refused(monkeypatch):
    zeros = pa.ListArray.from_arrays(
        pa.array(np.arange(0, 18_000_001, 1_000_000), pa.int32()),
        pa.array(np.zeros(18_000_000, "float32")),
    )
    pq.write_table(pa.table({"e": zeros}), "table.parquet")
    assert pathlib.Path("table.parquet").stat().st_size < 100_000
    given({"table.parquet": pathlib.Path("table.parquet").read_bytes()})
    refusal(
        lambda x: vectors.VectorTable(x / "table.parquet"),
        "vectors that fill it",
        "18 of 1,000,000 numbers",
    )
    monkeypatch.setattr(shards, "_ROOM", 1 << 20)  # Of a gibibyte.
    table = pa.table({"image": [bytes(1 << 16)] * 1_000})
    pq.write_table(table, "shard.parquet")
    given({"shard.parquet": pathlib.Path("shard.parquet").read_bytes()})
    refusal(
        lambda x: shards.ParquetShards(str(x / "shard.parquet")),
        "unpacks to far more than it holds",
    )


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("path", None, "a row without path"),
        ("width", None, "a row without width"),
        ("group", [[1]] * len(FILES), "cast"),
        ("usable", ["\n"] * len(FILES), "Failed to parse"),
        ("format", "left out", "without a column format"),
    ],
)
def test_manifests_of_other_columns_are_refused(column, values, words):
    table = pq.read_table(
        io.BytesIO(mutations.sound("manifest")["manifest.parquet"])
    )
    place = table.column_names.index(column)
    if values == "left out":
        table = table.drop_columns([column])
    else:
        values = [None] * len(FILES) if values is None else values
        table = table.set_column(place, column, pa.array(values))
    given({})
    pq.write_table(table, "given/a.parquet")
    refusal(lambda x: manifests.read_manifest(x / "a.parquet"), words)


# The texts of a run.


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("data", "photos"),
        ("earlier_data", [1]),
        ("epochs_trained", "2"),
        ("epochs_trained", True),
        ("epochs_trained", 10**400),
        ("finished", 1),
        ("flags", {"given": 1}),
        ("more_epochs", 1),
        ("rows", [{}]),
        ("rows", [{**mutations.ROW, "accuracy": "x"}]),
        ("rows", [{**mutations.ROW, "accuracy": float("nan")}]),
        ("start", {}),
        ("weights", 1),
    ],
)
def test_summaries_of_other_entries_are_refused(entry, value):
    given({"summary.json": json.dumps({entry: value}).encode()})
    refusal(runs.read_summary, f"the entry {entry}", "Mend it")


def test_flags_that_are_none_are_refused():
    given({"flags.txt": b"--bits=many\n--split=train\n--channels=x\n"})
    data = simclr.recipe.Data(data="photos")
    refusal(lambda x: runs.as_seen(data, x, 3), "--bits='many'")
    with pytest.raises(ValueError) as info:
        run_accounts.own_data("given")
    assert str(info.value) == (
        "`channels` must be int, as flags.txt has it. Received: channels='x'"
    )


@pytest.mark.parametrize("names", ["{}", "[]", "[1]", '"ab"', "[", "null"])
def test_names_of_classes_that_are_none_are_refused(names):
    given({"class_names.json": names.encode()})
    refusal(classification.class_names, "a JSON list of texts")


def test_logs_with_odd_lines_are_read_and_go_on():
    given({"log.csv": b"epoch,loss\n0,5,6,7\n\xff,=1+1\n"})
    assert curves.read_log("given/log.csv").columns["loss"][0] == 5
    log = logs.Log(pathlib.Path("given/log.csv"), 2)
    log.on_train_begin()
    log.on_epoch_end(2, {"loss": -0.5})
    lines = pathlib.Path("given/log.csv").read_text("utf-8").splitlines()
    assert lines == ["epoch,loss", "0,5", "\ufffd,'=1+1", "2,-0.5"]
    given({"log.csv": b'epoch,loss\n0,"' + b"x" * 200_000})
    refusal(lambda x: curves.read_log(x / "log.csv"), "field limit")


# The command line.


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("run's model", ["embed", "--run_dir=given", "--data=images"]),
        ("run's model", ["export", "--run_dir=given"]),
        ("classifier", ["predict", "--model=given", "--data=images"]),
        ("encoder", ["report", "--encoder=given", "--data=images"]),
        ("SavedModel", ["import-official", "--path=given/saved_model"]),
        ("arrays, NPZ", ["scan", "--data=given/images.npz"]),
        ("manifest", ["pretrain", "--data=images", "--epochs=1"]),
        ("list, CSV", ["scan", "--data=given/list.csv"]),
        ("shard, tar", ["scan", "--data=tar:given/train.tar"]),
    ],
)
def test_commands_say_one_sentence_and_write_nothing(kind, arguments, capsys):
    write(pathlib.Path("images"), FILES)
    files = mutations.sound(kind)
    name = min(files, key=lambda x: ("model" not in x, x))
    if kind == "SavedModel":
        name = "saved_model/variables/variables.index"
    if kind == "manifest":
        arguments = [*arguments, "--manifest=given/manifest.parquet"]
    cut = files[name][: len(files[name]) // 3]
    given({**files, name: cut if len(cut) > 60 else b"\x00"})
    assert cli.main([*arguments, "--output_dir=out", "--quiet"]) == 1
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert said.err.startswith(f"keras-simclr: {arguments[0]}: ")
    assert "should not happen" not in said.err
    assert "given" in said.err
    assert not pathlib.Path("out").exists()


# What we write.

FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1"]
FORMULAS += ["\uff1d1+1", "'=1+1", "''@x"]


@pytest.mark.parametrize("text", [*FORMULAS, "a=b", "-0.5", "'a'", "", "1e-3"])
def test_cells_stay_texts_and_come_back(text):
    cell = csv_files.cell(text)
    assert csv_files.text(cell) == text
    assert not cell.startswith(("=", "+", "@", "\t", "\r", "\uff1d"))
    if cell.startswith("-"):
        float(cell)
    assert csv_files.cell(-0.5) == -0.5


def test_tables_are_no_formulas_and_lists_read_them_back():
    texts = [x for x in FORMULAS if "/" not in x]
    names = [f"{x}.png" for x in texts]
    data = next(iter(FILES.values()))
    write(pathlib.Path("images"), {name: data for name in names})
    with pathlib.Path("images/list.csv").open("w", newline="") as file:
        rows = [
            (csv_files.path_cell(name), csv_files.cell(label))
            for name, label in zip(names, texts, strict=True)
        ]
        csv.writer(file).writerows([("path", "label"), *rows])
    with pathlib.Path("images/list.csv").open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [x for x in cells if x[0] in "=+-@\t\r\uff1d"]
    found = lists.ImageList("images/list.csv")
    assert found.paths == sorted(names)
    labels = [found.class_names[x] for x in found.labels]
    expected = {f"{x}.png": x for x in texts}
    assert dict(zip(found.paths, labels, strict=True)) == expected


MARKUP = "<script>alert(1)</script>|`{x}` [a](b)\n# b"


def test_cards_hold_no_markup_from_a_run():
    """Whatever stands in a run's texts: keys, names, values."""

    def marked(value):
        if isinstance(value, dict):
            return {k: marked(x) for k, x in value.items()}
        if isinstance(value, list):
            return [marked(x) for x in value]
        return MARKUP if isinstance(value, str) else value

    about = {
        **marked(mutations.SUMMARY),
        "data": {MARKUP: MARKUP},
        "official": {"architecture": MARKUP},
        "recipe": {"data": MARKUP, MARKUP: "1"},
        "teacher": {"name": MARKUP, "weights": MARKUP},
    }
    card = {
        "name": MARKUP,
        "inputs": {"contract": "Images.", "shape": [None, 8, 8, 3]},
        "outputs": {"shape": [None, 4]},
        "round_trip": {"images": 8, "largest_value": 1, "max_difference": {}},
        "license": "None.",
    }
    for left_out in ("official", "teacher"):
        parts = {k: x for k, x in about.items() if k != left_out}
        text = cards.readme({**card, **parts}, [])
        (fenced,) = [x for x in text.splitlines() if "keras-simclr " in x]
        rest = text.replace(fenced, "")
        assert "<script" not in rest
        assert "# b" not in [x[:3] for x in text.splitlines()]
        assert "[a](b)" not in rest
        table = [x for x in rest.splitlines() if x.startswith("| ")]
        for row in table:
            assert row.replace(r"\|", "").count("|") in (3, 6)
