"""Files as a stranger may send them: sound ones of each kind, then mutated.

All is made of a kind and a number: the same ones give the same bytes. What code
in them would do, if it ran, is to make the file `CANARY` where the process is.
"""

import contextlib
import copy
import dataclasses
import functools
import io
import json
import pathlib
import random
import struct
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable

import h5py
import keras
import numpy as np
import pillow_heif
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

import keras_simclr as simclr
from helpers import official_files as official_writers
from helpers.kinds_of_data import FILES, table_of, write_tar
from helpers.pictures import encoded, picture, write
from keras_simclr import (
    _terminal,
    array_files,
    callbacks,
    cards,
    classification,
    copies,
    curves,
    decoding,
    folders,
    lists,
    logs,
    manifests,
    official,
    official_files,
    pretrained,
    recipe,
    run_accounts,
    runs,
    scanning,
    shards,
    vectors,
)

CANARY = "canary"
_RUN = f"touch {CANARY}"
_BIG = (0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)


class _Pickled:
    """What runs a command where it is unpickled."""

    def __reduce__(self):
        import os

        return os.system, (_RUN,)


# Bytes of any file.


def _some(size, count, rng):
    return [rng.randrange(size) for _ in range(count)]


def _flipped(data, rng):
    data = bytearray(data)
    for place in _some(len(data), rng.choice([1, 1, 8, 64]), rng):
        data[place] ^= 1 << rng.randrange(8)
    return bytes(data)


def _cut(data, rng):
    return data[: rng.randrange(len(data))]


def _spliced(data, rng):
    """A part of the file in the place of another one, or between two."""
    start, end, place, last = sorted(_some(len(data) + 1, 4, rng))
    first = data[:start] if rng.randrange(2) else data[:place]
    return first + data[end:last] + data[place:]


def _grown(data, rng):
    """Large numbers, or none, where lengths may stand."""
    data = bytearray(data)
    for place in _some(len(data), rng.choice([1, 4]), rng):
        size = rng.choice([1, 2, 4, 8])
        number = rng.choice(_BIG) % 256**size
        order = rng.choice(["little", "big"])
        data[place : place + size] = number.to_bytes(size, order)
    return bytes(data)


def _noise(data, rng):
    """Noise in place of a part, or of all."""
    start, end = sorted(_some(len(data) + 1, 2, rng))
    return data[:start] + rng.randbytes(end - start) + data[end:]


def _padded(data, rng):
    more = [b"\0" * 4096, rng.randbytes(64), data, b"\n" * 99][rng.randrange(4)]
    return more + data if rng.randrange(2) else data + more


_OF_BYTES = (_flipped, _flipped, _cut, _spliced, _grown, _noise, _padded)


def _of_bytes(data, rng):
    change = rng.choice(_OF_BYTES)
    return change(data, rng) if data else rng.randbytes(16)


# JSON.


def hostile_layers():
    """What Keras was once made to run code, or to read files, with."""

    def layer(name, config, module="keras.layers", registered=None):
        return {
            "module": module,
            "class_name": name,
            "config": config,
            "registered_name": registered,
        }

    def function(module, name, kind="function"):
        return layer(kind, name, module, kind)

    code = keras.saving.serialize_keras_object(
        keras.layers.Lambda(
            lambda x: [__import__("os").system("touch canary"), x][1]
        )
    )
    dense = {"name": "dense", "units": 4}
    return [
        code,
        layer("system", _RUN, "os"),
        layer("run", {"args": _RUN, "shell": True}, "subprocess"),
        layer("eval", f"__import__('os').system('{_RUN}')", "builtins"),
        function("os", "system"),
        function("builtins", "eval"),
        function("builtins", "exec", "exec"),
        function("keras.utils", "get_file"),
        layer("Dense", {**dense, "activation": function("os", "system")}),
        layer("Dense", {**dense, "kernel_initializer": code}),
        layer("TFSMLayer", {"name": "x", "filepath": "/etc/passwd"}),
        layer("StringLookup", {"vocabulary": "/etc/passwd"}),
        layer("Dense", {**dense, "units": 10**9}),
        layer("Dense", {**dense, "name": f"../../{CANARY}"}),
        {"class_name": "__lambda__", "config": {"value": "AAAA"}},
        {"class_name": "__tensor__", "config": {"value": 1, "dtype": "x"}},
        {"class_name": "__numpy__", "config": {"value": [], "dtype": "O"}},
    ]


_ODD = (None, True, 0, -1, 1.5, 10**9, 2**63, 1e300, float("nan"), "", "\0")
_ODD += ("x\ny", "=1+1", [], {}, [[]], {"a": 1}, ["a", 1], "9" * 400, 10**400)


def _places(tree, found=()):
    """All dictionaries and lists of a tree, with their keys."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found = []
    for key, value in items:
        found.append((tree, key))
        if isinstance(value, dict | list):
            found += _places(value)
    return found


def _of_json(data, rng):
    choice = rng.randrange(12)
    if choice == 0:
        depth = rng.choice([500, 2_000, 200_000])
        return b'{"config": ' + b"[" * depth + b"]" * depth + b"}"
    if choice == 1:
        return b'{"a":' * 50_000 + b"1" + b"}" * 50_000
    if choice == 2:
        return _of_bytes(data, rng)
    tree = [json.loads(data)]
    hostile = choice in (3, 4, 5) and b"class_name" in data
    for _ in range(1 if hostile else rng.choice([1, 1, 3])):
        places = _places(tree)
        if hostile:
            places = [
                (x, key)
                for x, key in places
                if isinstance(x[key], dict) and "class_name" in x[key]
            ]
            values = hostile_layers()
        else:
            values = _ODD
        place, key = rng.choice(places)
        if isinstance(place, dict) and rng.randrange(6) == 0:
            del place[key]
        else:
            place[key] = copy.deepcopy(rng.choice(values))
    return json.dumps(tree[0]).encode() if tree else b""


# Text.


def _of_text(data, rng):
    """Lines, cells and signs of a text changed."""
    choice = rng.randrange(4)
    if choice == 0:
        return _of_bytes(data, rng)
    lines = data.split(b"\n")
    place = rng.randrange(len(lines))
    cells = [b"", b"=1+1", b'"', b"\xff\xfe", b"\0", b"x" * 200_000, b"-1"]
    cells += [b"nan", b"9" * 5000, b"/etc/passwd", b"../../../etc/passwd"]
    cells += [b"/dev/zero", "\u202e".encode(), b"1e999", b"a\rb", b",,,,,,"]
    cell = rng.choice(cells)
    if choice == 1:
        lines[place] = cell
    elif choice == 2:
        sign = b"=" if b"=" in data else b","
        parts = lines[place].split(sign)
        parts[rng.randrange(len(parts))] = cell
        lines[place] = sign.join(parts)
    else:
        lines = [*lines[:place], *lines[place:][::-1]]
    return b"\n".join(lines)


# Archives.


def joined(members, packing=zipfile.ZIP_STORED, bomb=None):
    """A zip file of pairs of names and bytes; one may be called a bomb."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members:
            data = _packed_zeros() if name == bomb else data
            packed_as = zipfile.ZIP_STORED if name == bomb else packing
            archive.writestr(zipfile.ZipInfo(name), data, packed_as)
        infos, start = archive.infolist(), archive.start_dir
    data = bytearray(file.getvalue())
    for info in infos:
        place = data.index(info.filename.encode(), start) - 46
        start = place + 46
        if info.filename == bomb:  # It is packed already, and says so.
            for x in (info.header_offset + 8, place + 10):
                struct.pack_into("<H", data, x, zipfile.ZIP_DEFLATED)
            for x in (info.header_offset + 22, place + 24):
                struct.pack_into("<I", data, x, _ZEROS)
    return bytes(data)


_ZEROS = 3 << 30


@functools.cache
def _packed_zeros():
    """What unpacks to 3 GiB; the sum behind it is wrong."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * (_ZEROS >> 20) + b"\3\0"


def _of_zip(data, rng, inner):
    """A zip file changed as a whole, or in its members by `inner`."""
    choice = rng.randrange(8)
    if choice == 0:
        return _of_bytes(data, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(x, archive.read(x)) for x in archive.namelist()]
    place = rng.randrange(len(members))
    name, contents = members[place]
    packing = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[rng.randrange(2)]
    if choice == 1:
        return joined(members, bomb=name)
    if choice == 2:
        others = ("../" * 9 + CANARY, f"/{CANARY}", f"a/../../{CANARY}", "x")
        members[place] = others[rng.randrange(4)], contents
    elif choice == 3 and rng.randrange(2):
        del members[place]
    elif choice == 3:
        members.append((f"assets/../../{CANARY}", b"x"))
    else:
        members[place] = name, inner(name, contents, rng)
    return joined(members, packing)


# HDF5.


def _of_h5(data, rng):
    """An HDF5 file with links elsewhere, false shapes, other types."""
    choice = rng.randrange(9)
    if choice < 3:
        return _of_bytes(data, rng)
    file = io.BytesIO(data)
    with h5py.File(file, "a") as h5:
        found = []
        h5.visititems(
            lambda name, x: found.append(name) if hasattr(x, "shape") else None
        )
        name = rng.choice(found)
        shape = h5[name].shape
        del h5[name]
        if choice == 3:
            h5[name] = h5py.ExternalLink("/etc/passwd", "/x")
        elif choice == 4:
            h5.create_dataset(
                name,
                shape,
                "f4",
                external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)],
            )
        elif choice == 5:
            h5.create_dataset(name, (2**18, 2**17), "f4", chunks=(64, 64))
        elif choice == 6:
            h5.create_dataset(name, (2,), h5py.string_dtype(), data=[_RUN] * 2)
        elif choice == 7:
            h5[name] = h5py.SoftLink(f"/{name}")
        else:
            odd = (np.nan, np.inf, 1e30)[rng.randrange(3)]
            h5[name] = np.full(shape, odd, "f8")
    return file.getvalue()


# Arrays.


def _npy(array, allow=False):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=allow)
    return file.getvalue()


def pickled():
    array = np.empty(2, object)
    array[:] = _Pickled()
    return _npy(array, True)


def _of_npy(data, rng):
    choice = rng.randrange(5)
    if choice == 0:
        return pickled()
    if choice > 1:
        return _of_bytes(data, rng)
    shapes = ("(99999999999,)", "(-1, 8, 8, 3)", "(2**40,)", "(8,) * 40", "()")
    shapes += (f"__import__('os').system('{_RUN}')", "(" * 500, "(0, 8, 8, 3)")
    kinds = ("'|u1'", "'|O'", "'<U9999999'", "[('a', '<f8')]", "'<f2'", "'|V0'")
    head = (
        f"{{'descr': {rng.choice(kinds)}, 'fortran_order': "
        f"{('True', 'False')[rng.randrange(2)]}, 'shape': "
        f"{rng.choice(shapes)}, }}\n"
    ).encode()
    version = rng.randrange(1, 4)
    size = struct.pack("<H" if version == 1 else "<I", len(head))
    return b"\x93NUMPY" + bytes([version, 0]) + size + head + data[128:]


# Parquet.


def _of_parquet(data, rng):
    """A table with columns of other types, or without some, or with more."""
    choice = rng.randrange(7)
    if choice < 3:
        return _of_bytes(data, rng)
    table = pq.read_table(io.BytesIO(data))
    rows, place = len(table), rng.randrange(table.num_columns)
    name = table.column_names[place]
    if choice == 3:
        table = table.drop_columns([name])
    elif choice == 4:
        return _long_table(table)
    else:
        odd = [
            pa.array([None] * rows),
            pa.array([b"\0\xff/../../etc/passwd"] * rows),
            pa.array(["\n\u202e"] * rows),
            pa.array([-(2**62)] * rows),
            pa.array([2**64 - 1] * rows, pa.uint64()),
            pa.array([float("nan")] * rows),
            pa.array([[]] * rows),
            pa.array([[1, None]] * rows),
            pa.array([{"bytes": b"", "path": None}] * rows),
            pa.array([{"bytes": b"x", "path": "../../x"}] * rows),
            pa.array([{"bytes": 1}] * rows),
            pa.array([True] * rows).dictionary_encode(),
            pa.array([10**9] * rows, pa.timestamp("ns")),
        ]
        kind = rng.choice(odd)
        table = table.set_column(place, name, kind)
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def _long_table(table):
    """A million times the first row, 30 times: runs of it take no room."""
    file = io.BytesIO()
    long = pa.concat_tables([table.slice(0, 1)] * 1000).combine_chunks()
    long = pa.concat_tables([long] * 100).combine_chunks()
    with pq.ParquetWriter(file, table.schema) as writer:
        for _ in range(30):
            writer.write_table(long)
    return file.getvalue()


# Tar.


def _of_tar(data, rng):
    choice = rng.randrange(5)
    if choice < 3:
        return _of_bytes(data, rng)
    file = io.BytesIO()
    formats = (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    with tarfile.open(
        fileobj=file, mode="w", format=formats[rng.randrange(2)]
    ) as archive:
        for _ in range(4):
            names = ("a.png", "../../a.png", "/etc/a.png", "a\n\u202e.png")
            names += ("x" * 9000 + ".png", ".png", "a.cls", "a.jpg")
            member = tarfile.TarInfo(rng.choice(names))
            kinds = (tarfile.REGTYPE,) * 4 + (tarfile.SYMTYPE, tarfile.LNKTYPE)
            kinds += (tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
            member.type = rng.choice(kinds)
            member.linkname = "/etc/passwd"
            sizes = (0, 100, 2**33, 2**62)
            member.size = rng.choice(sizes)
            archive.addfile(
                member,
                io.BytesIO(data[512:612]) if member.size == 100 else None,
            )
    return file.getvalue()


# What kinds there are.


def _saved(model, name):
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, name)
        save = model.save if name.endswith(".keras") else model.save_weights
        save(path)
        return path.read_bytes()


def _encoder():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, name="convolution"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.GlobalAveragePooling2D(name="pooling"),
        ],
        name="encoder",
    )


@functools.cache
def _model():
    model = simclr.SimCLRModel(
        _encoder(), keras.layers.Dense(4), augmentation=simclr.RandomFlip()
    )
    model.compile(keras.optimizers.SGD(0.1))
    model.build_optimizer()
    return model


ROW = {
    "features": "h",
    "probe": "linear",
    "labels": "all",
    "accuracy": 0.5,
    "interval": [0.4, 0.6],
}
SUMMARY = {
    "command": "pretrain",
    "data": {"source": "photos", "sha256": "0" * 64, "files": 24},
    "earlier_data": [{"sha256": "1" * 64, "epochs_trained": 1}],
    "start": {"name": "runs/a", "weights": "2" * 64},
    "flags": {"given": ["data"], "values": {"epochs": 2}},
    "more_epochs": [1],
    "resumed": [1],
    "epochs_trained": 2,
    "steps_trained": 6,
    "findings": [{"epoch": 1, "name": "slow", "text": "It is slow."}],
    "finished": True,
    "weights": "0" * 64,
    "rows": [ROW],
    "evaluation": {"weights": "0" * 64, "verdict": "It is good."},
    "earlier_evaluations": [{"evaluation": {"weights": "1" * 64}}],
}


def _run():
    """What `pretrain` writes beside the weights."""
    weights = copies.weights_digest(_model())
    summary = {**SUMMARY, "weights": weights}
    summary["evaluation"] = {**SUMMARY["evaluation"], "weights": weights}
    flags = "--batch_size=8\n--bits=8\n--data=.\n--epochs=2\n--seed=0\n"
    return {
        "summary.json": json.dumps(summary).encode(),
        "flags.txt": flags.encode(),
        "log.csv": b"epoch,loss,seconds\n0,5.1,1.0\n1,4.2,1.0\n",
        "checkpoints.json": b'{"files": ["epoch-000001.weights.h5"]}',
    }


def _checkpoint():
    name = "epoch-000001.weights.h5"
    return {
        name: _saved(_model(), name),
        "checkpoints.json": json.dumps({"files": [name]}).encode(),
        "flags.txt": b"",
    }


def _classifier():
    network = keras.Sequential(
        [_encoder(), keras.layers.Dense(2, activation="softmax")]
    )
    return {
        "classifier.keras": _saved(network, "classifier.keras"),
        "class_names.json": b'["cat", "dog"]',
        "flags.txt": b"--bits=8\n",
    }


@functools.cache
def _official():
    """A checkpoint of the official code, of an eighth of a network."""
    with tempfile.TemporaryDirectory() as directory:
        network = official_writers.Network(
            18, np.zeros((1, 8, 8, 3)), stem="cifar", classes=2
        )
        path = pathlib.Path(directory, "saved_model")
        official_writers.write_saved_model(network, path)
        return {
            str(path.relative_to(directory)): path.read_bytes()
            for path in sorted(pathlib.Path(directory).rglob("*"))
            if path.is_file()
        }


def _manifest():
    rows = [
        {
            "path": name.encode(),
            "format": "PNG",
            "width": 16,
            "height": 12,
            "channels": 3,
            "orientation": 1,
            "group": row,
            "problem": "broken" if row == 3 else None,
            "usable": row != 3,
        }
        for row, name in enumerate(FILES)
    ]
    table = pa.Table.from_pylist(rows, manifests.schema())
    return _written(table)


def _written(table):
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def _vectors():
    vectors = np.random.default_rng(0).normal(size=(len(FILES), 8))
    return list(FILES), vectors.astype("float32")


def _table():
    paths, vectors = _vectors()
    return _written(pa.table({"path": paths, "embedding": [*vectors]}))


def _table_npz():
    paths, vectors = _vectors()
    return _zipped(paths=np.array(paths), representations=vectors)


def _zipped(**arrays):
    return joined([(f"{k}.npy", _npy(x)) for k, x in arrays.items()])


def _images_npz():
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), "uint8")
    return _zipped(images=images, labels=np.arange(12) % 3)


def _shard():
    file = io.BytesIO()
    pq.write_table(table_of(FILES), file, row_group_size=5)
    return file.getvalue()


def _tar():
    with tempfile.TemporaryDirectory() as directory:
        members = {x.replace("/", "-"): y for x, y in FILES.items()}
        members["cat-00.cls"] = b"cat"
        path = pathlib.Path(directory, "a.tar")
        return write_tar(path, members).read_bytes()


def _list():
    rows = "".join(f"images/{x},{x.split('/')[0]}\n" for x in FILES)
    return f"path,label\n{rows}".encode()


# How they are read.


def _page(directory):
    card = {
        "name": "encoder",
        "inputs": {"contract": "Images.", "shape": [None, 8, 8, 3]},
        "outputs": {"shape": [None, 4]},
        "round_trip": {"images": 8, "largest_value": 1, "max_difference": {}},
        "license": "None.",
        **runs.about(directory, _model()),
    }
    return cards.readme(card, [])


def _evaluation(directory):
    """What `evaluate` does beside its work."""
    runs.update_summary(directory, {"rows": [], "evaluation": {"weights": "x"}})
    model = _model()
    return runs.as_seen(recipe.Data(data="."), directory, 3), model


def _resumed(directory):
    log = logs.Log(directory / "log.csv", 1)
    log.on_train_begin()
    log.on_epoch_end(1, {"loss": 4.0})


_OF_RUNS = (
    lambda x: run_accounts.of_run(x, _model()),
    run_accounts.own_data,
    _page,
    _evaluation,
    _resumed,
    lambda x: runs.check_can_run(x, "--epochs=2\n", more_epochs=None),
    lambda x: curves.drawn(curves.read_log(x / "log.csv", 5.0, ())),
)


def _restored(directory):
    return callbacks.restore(_model(), directory)


def _only(directory):
    """The one file that is mutated, or the first of them."""
    (path,) = [x for x in directory.iterdir() if x.is_file()]
    return path


def _listed(directory):
    if not (directory / "images").exists():
        write(directory / "images", FILES)
    return _all_of(lists.ImageList(_only(directory)))


def _all_of(source):
    contents = []
    for place in range(len(source.paths)):
        with source.open_image(place) as file:
            contents.append(file.read())
    return contents


def _table_read(directory):
    path = _only(directory)
    pictures = directory / "pictures"
    if not pictures.exists():
        write(pictures, FILES)
    table = vectors.VectorTable(path)
    folder = folders.ImageFolder(pictures)
    table.find_images([folder])
    table.follow([(len(folder.paths), np.arange(len(folder.paths)))])
    return table.digest


def _arrays_read(directory):
    arrays = array_files.load_arrays(_only(directory))
    return {k: np.asarray(x).sum() for k, x in arrays.items() if k == "images"}


@functools.cache
def _decoder(channels, bits):
    signature = [tf.TensorSpec([], tf.string)]

    @tf.function(input_signature=signature, autograph=False)
    def decode(contents):
        return decoding.decode(contents, 64, channels, bits)

    return decode


def _picture(directory):
    """As `scan` and as training read a file; broken ones are counted there."""
    path = _only(directory)
    row = scanning.examine(path.name, lambda: path.open("rb"))
    for channels, bits in ((3, 8), (5, 16)):
        with contextlib.suppress(tf.errors.OpError):
            _decoder(channels, bits)(path.read_bytes())
    return row


def _official_read(directory):
    path = directory / "saved_model"
    file = official_files.open_file(path)
    official_files.told_layers(file, 3)
    for name in file.shapes:
        file.read(name)
    return official.load_official(path, projection_layer=0)


@dataclasses.dataclass(frozen=True)
class Kind:
    """Files that belong together.

    Attributes:
        make: Function that returns names and bytes of sound ones.
        change: Function of a name, bytes and a generator: the mutation.
        reads: Functions of a directory with the files in it.
        spared: Names of files that stay as they are.
    """

    make: Callable
    change: Callable
    reads: tuple
    spared: tuple = ()


def _of_keras(_, data, rng):
    def inner(name, contents, rng):
        by_name = {".h5": _of_h5, ".json": _of_json}
        return by_name[pathlib.Path(name).suffix](contents, rng)

    return _of_zip(data, rng, inner)


def _of_npz(_, data, rng):
    return _of_zip(data, rng, lambda name, x, rng: _of_npy(x, rng))


def _of_named(name, data, rng):
    change = {
        ".keras": _of_keras,
        ".json": lambda _, x, rng: _of_json(x, rng),
        ".h5": lambda _, x, rng: _of_h5(x, rng),
        ".parquet": lambda _, x, rng: _of_parquet(x, rng),
        ".npz": _of_npz,
        ".npy": lambda _, x, rng: _of_npy(x, rng),
        ".tar": lambda _, x, rng: _of_tar(x, rng),
        ".csv": lambda _, x, rng: _of_text(x, rng),
        ".txt": lambda _, x, rng: _of_text(x, rng),
    }.get(pathlib.Path(name).suffix, lambda _, x, rng: _of_bytes(x, rng))
    return change(name, data, rng)


def _one(name, make, read):
    return Kind(lambda: {name: make()}, _of_named, (read,))


def _pictures(kind):
    """A picture of a format, in the ways that have readers of their own."""

    def make():
        pillow_heif.register_heif_opener()
        return {f"a.{kind.lower()}": encoded(picture(0), kind)}

    return Kind(make, _of_named, (_picture,))


KINDS = {
    "encoder": _one(
        "encoder.keras",
        lambda: _saved(_encoder(), "encoder.keras"),
        lambda x: pretrained.open_encoder(_only(x)),
    ),
    "run's model": _one(
        "model.keras",
        lambda: _saved(_model(), "model.keras"),
        runs.load_model,
    ),
    "classifier": Kind(
        _classifier,
        _of_named,
        (
            classification.load_classifier,
            classification.class_names,
            lambda x: runs.as_seen(recipe.Data(data="."), x, 3),
        ),
    ),
    "checkpoint": Kind(
        _checkpoint, _of_named, (_restored,), ("flags.txt", "checkpoints.json")
    ),
    "files of a run": Kind(_run, _of_named, _OF_RUNS),
    "SavedModel": Kind(_official, _of_named, (_official_read,)),
    "manifest": _one(
        "manifest.parquet",
        _manifest,
        lambda x: manifests.read_manifest(_only(x)),
    ),
    "table, Parquet": _one("table.parquet", _table, _table_read),
    "table, NPZ": _one("table.npz", _table_npz, _table_read),
    "arrays, NPZ": _one("images.npz", _images_npz, _arrays_read),
    "arrays, NPY": _one(
        "images.npy",
        lambda: _npy(np.zeros((12, 8, 8, 3), "uint8")),
        _arrays_read,
    ),
    "shard, Parquet": _one(
        "train.parquet",
        _shard,
        lambda x: _all_of(shards.ParquetShards(str(_only(x)))),
    ),
    "shard, tar": _one(
        "train.tar",
        _tar,
        lambda x: _all_of(shards.TarShards(str(_only(x)))),
    ),
    "list, CSV": _one("list.csv", _list, _listed),
    **{
        name: _pictures(name)
        for name in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF")
    },
    "JPEG2000": _pictures("JPEG2000"),
    "HEIF": _pictures("HEIF"),
}


def sound(kind):
    """Names and bytes of the files of a kind, as they should be."""
    return _sound(kind)


@functools.cache
def _sound(kind):
    return KINDS[kind].make()


def mutant(kind, number):
    """Names and bytes of the files of a kind, one of them mutated."""
    rng = random.Random(f"{kind} {number}")
    files = dict(_sound(kind))
    names = [x for x in files if x not in KINDS[kind].spared]
    name = rng.choice(names)
    return {**files, name: KINDS[kind].change(name, files[name], rng)}


def outcomes(kind, directory):
    """What becomes of files in a directory: of each way to read them.

    `"result"`, `"sentence"`, or else what is wrong with how it ended.
    """
    found = []
    for read in KINDS[kind].reads:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(directory)
        except Exception as error:
            found.append(_of_error(error, directory))
        else:
            found.append("result")
    return found


def _of_error(error, directory):
    text = str(error)
    if not isinstance(error, ValueError | OSError):
        wrong = "of another kind"
    elif not _terminal.is_refusal(error):
        wrong = "not on purpose"
    elif "\n" in text.strip() or len(text) > _LONGEST:
        wrong = "not one sentence"
    elif any(isinstance(x, MemoryError) for x in _chain(error)):
        wrong = "without memory"
    elif not (
        isinstance(error, FileNotFoundError)  # Of what a file names.
        or any(x.name in text for x in (directory, *directory.iterdir()))
    ):
        wrong = "without the file's name"
    else:
        return "sentence"
    return f"{wrong}: {type(error).__name__}: {text}"


_LONGEST = 2000


def _chain(error):
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
