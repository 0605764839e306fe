import gzip
import io
import os
import re
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from helpers.kinds_of_data import (
    CLASSES,
    FILES,
    SOURCES,
    class_of,
    key,
    numbers_of,
    table_of,
    write_tar,
    write_tars,
)
from helpers.pictures import JPEG, PNG, picture, write

import keras_simclr as simclr
from keras_simclr import (
    fingerprints,
    folders,
    manifests,
    recipe,
    scanning,
    shards,
    sources,
)


@pytest.fixture(params=SOURCES)
def write_source(request, tmp_path):
    return lambda files: SOURCES[request.param](tmp_path, files)


@pytest.fixture(autouse=True)
def _decode_quickly(monkeypatch):
    """All that `decode` can do takes seconds to trace."""
    monkeypatch.setattr(
        folders, "decode", lambda x, *_: tf.io.decode_png(x, channels=3)
    )


def passes_of(source, count=1, **kwargs):
    """The places of the images of each pass; images and labels are checked."""
    dataset = simclr.dataset_from_directory(
        source, canvas_size=20, batch_size=4, drop_remainder=False, **kwargs
    )
    passes = []
    for _ in range(count):
        elements = list(dataset.unbatch())
        passes.append([int(element["places"]) for element in elements])
        for element in elements:
            (name,) = (
                name
                for name in FILES
                if key(name) == key(source.paths[element["places"]])
            )
            pixels = np.asarray(picture(*numbers_of(name)))
            np.testing.assert_array_equal(
                element["images"][:12, : pixels.shape[1]], pixels
            )
            assert element["sizes"].numpy().tolist() == [*pixels.shape[:2]]
            assert element["labels"] == class_of(name)
    return passes


@pytest.mark.fault(45)
def test_all_sources_give_the_same_images_labels_and_names(write_source):
    source = sources.find_source(write_source(FILES))
    assert source.class_names == CLASSES
    assert source.paths == sorted(source.paths)
    assert sorted(map(key, source.paths)) == sorted(map(key, FILES))
    first, second = passes_of(source, 2)
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second
    words = "12 images of 3 classes: cat (4), dog (4), owl (4)"
    assert sources.in_words(source) == words


def test_splits_are_a_function_of_the_name(write_source):
    data = write_source(FILES)
    train, test = (
        sources.find_source(data, f"train[{part}]") for part in (":50%", "50%:")
    )
    whole = sources.find_source(data)
    assert sorted(train.paths + test.paths) == whole.paths
    assert train.paths
    assert test.paths
    for part in (train, test):
        places = [whole.paths.index(path) for path in part.paths]
        np.testing.assert_array_equal(part.labels, whole.labels[places])
        for place, path in enumerate(part.paths):
            with part.open_image(place) as file:
                contents = file.read()
            (name,) = (x for x in FILES if key(x) == key(path))
            assert contents == FILES[name]


@pytest.mark.fault(40)
def test_broken_images_are_skipped_by_name(write_source, caplog):
    broken = {"cat/03.png": b"", "dog/04.png": FILES["dog/04.png"][:90]}
    source = sources.find_source(
        write_source({**FILES, **broken}), unreadable_limit=0.2
    )
    for places in passes_of(source, 2, shuffle=False):
        left = {key(source.paths[place]) for place in places}
        assert left == set(map(key, FILES)) - {"03.png", "04.png"}
    skipped = {key(path): why for path, why in source.skipped.items()}
    assert skipped.keys() == {"03.png", "04.png"}
    assert skipped["03.png"] == "empty"
    assert len(caplog.messages) == 2


def test_manifests_are_of_any_source(write_source, tmp_path):
    files = {**FILES, "cat/12.png": b"", "owl/13.png": FILES["owl/02.png"]}
    data, manifest = write_source(files), tmp_path / "manifest.parquet"
    report = sources.scan_source(data, manifest)
    assert (report.images, report.duplicate_images) == (13, 2)
    source = sources.find_source(data, manifest=manifest)
    assert len(source.paths) == 13
    assert [key(x) for x in source.left_out] == ["12.png"]
    pair = [key(x) in ("02.png", "13.png") for x in source.paths]
    assert len(set(source.groups[pair])) == 1
    assert source.largest == 18
    np.testing.assert_array_equal(
        source.labels,
        [class_of(x) for p in source.paths for x in files if key(x) == key(p)],
    )


def test_fingerprint_changes_with_an_image(write_source):
    def fingerprint():
        return fingerprints.fingerprint(sources.find_source(data))

    data = write_source(FILES)
    before = fingerprint()
    assert before["source"] == data
    assert fingerprint() == before
    write_source({**FILES, "cat/03.png": FILES["dog/04.png"]})
    after = fingerprint()
    assert after["content"] != before["content"]


@pytest.mark.fault(45)
def test_names_that_are_no_ascii_are_kept(write_source):
    files = {"cat/ä b,\n.png": PNG, "dog/日本.png": JPEG, "owl/x.png": PNG}
    source = sources.find_source(write_source(files))
    assert sorted(map(key, source.paths)) == sorted(map(key, files))
    for place, path in enumerate(source.paths):
        with source.open_image(place) as file:
            (name,) = (name for name in files if key(name) == key(path))
            assert file.read() == files[name]


def test_what_means_nothing_for_files_is_refused(write_source):
    data = recipe.Data(data=write_source(FILES), data_dir="x")
    with pytest.raises(ValueError, match=r"^`data_dir` is where datasets of"):
        data.open_in_order(8)


@pytest.mark.fault(73)
def test_members_of_a_tar_that_are_no_images_are_told(tmp_path, caplog):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:

        def add(name, contents=PNG, kind=tarfile.REGTYPE):
            member = tarfile.TarInfo(name)
            member.size, member.type = len(contents), kind
            member.linkname = "0.png"
            archive.addfile(member, io.BytesIO(contents))

        add("./0.png")
        add("folder", b"", tarfile.DIRTYPE)
        add("folder/._0.png")
        add(".hidden/0.png")
        add("../../up.png")
        add("/abs.jpg", JPEG)
        add("x" * 150 + "ü.png")  # Needs PAX headers.
        add("link.png", b"", tarfile.SYMTYPE)
        add("hard.png", b"", tarfile.LNKTYPE)
        add("fifo.png", b"", tarfile.FIFOTYPE)
        add("twice.png", JPEG)
        add("twice.png", PNG)
        add("0.json", b"{}")
        add("note")
    source = shards.TarShards(path)
    assert sorted(source.paths) == sorted(
        [
            "a.tar/../../up.png",
            "a.tar//abs.jpg",
            "a.tar/0.png",
            "a.tar/twice.png",
            f"a.tar/{'x' * 150}ü.png",
        ]
    )
    assert source.left_out == {
        f"a.tar/{name}.png": "not a regular file"
        for name in ("link", "hard", "fifo")
    }
    assert source.not_read == {".json": 1, "without extension": 1}
    (message,) = caplog.messages
    assert message.startswith("1 members of tar:")
    with source.open_image(source.paths.index("a.tar/twice.png")) as file:
        assert file.read() == PNG
    assert source.labels is None


def test_classes_of_a_tar_are_integers_or_texts(tmp_path):
    members = {"0.png": PNG, "0.cls": b"10\n", "1.png": PNG, "2.png": PNG}
    path = write_tar(tmp_path / "a.tar", {**members, "2.cls": b"2"})
    source = shards.TarShards(path)
    assert source.labels.tolist() == [10, -1, 2]
    assert source.class_names == ()
    write_tar(path, {**members, "2.cls": "ß".encode()})
    source = shards.TarShards(path)
    assert source.labels.tolist() == [0, -1, 1]
    assert source.class_names == ("10", "ß")


@pytest.mark.fault(73)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x[:700], "is broken (unexpected end of data). Copy it"),
        (lambda x: x[:1100], "is broken (unexpected end of data). Copy it"),
        (lambda x: b"", "is broken (empty file). Copy it again"),
        (lambda x: b"no tar" * 200, "is broken ("),
        (gzip.compress, "Unpack it: gunzip "),
        (lambda x: x + x, "goes on behind its end at byte "),
        (
            lambda x: x[:1536] + b"x" * 512 + x[2048:],
            "is broken at byte 1,536. Copy it again",
        ),
    ],
)
def test_broken_tars_are_refused(tmp_path, spoil, message):
    path = write_tar(tmp_path / "a.tar", {"0.jpg": JPEG[:900], "1.jpg": JPEG})
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=re.escape(message)) as info:
        shards.TarShards(path)
    assert str(info.value).startswith(
        "A shard must be a whole, readable file. Received: "
    )


def test_a_shard_that_is_cut_afterwards_is_skipped(tmp_path):
    data = write_tars(tmp_path, FILES)
    source = sources.find_source(data, unreadable_limit=0.9)
    path = tmp_path / "shards/train-001.tar"
    path.write_bytes(path.read_bytes()[:3000])
    (left,) = passes_of(source, shuffle=False)
    assert set(range(5)) <= set(left)
    assert len(left) + len(source.skipped) == 12
    assert "truncated: its shard has been truncated" in source.skipped.values()


def replaced(path):
    """By one of as many bytes, in which other images begin there."""
    reverse = dict(reversed(FILES.items()))
    size = path.stat().st_size
    write_tar(path, reverse)
    path.write_bytes(path.read_bytes()[:size].ljust(size, b"\0"))


def removed(path):
    path.unlink()


def a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.fault(40)
@pytest.mark.parametrize("change", [replaced, removed, a_folder])
def test_a_shard_that_changes_is_counted(change, tmp_path):
    """Its images are not taken for those that it held."""
    data = write_tars(tmp_path, FILES)
    source = sources.find_source(data, unreadable_limit=0.9)
    of_other = [
        place
        for place, path in enumerate(source.paths)
        if not path.startswith("train-001")
    ]
    assert 0 < len(of_other) < 12
    change(tmp_path / "shards/train-001.tar")
    first, second = passes_of(source, 2, shuffle=False)
    assert sorted(first) == sorted(second) == of_other
    assert len(source.skipped) == 12 - len(of_other)
    if change is replaced:
        assert {*source.skipped.values()} == {
            "corrupt: its shard has changed since it was listed"
        }


def test_patterns_name_files(tmp_path):
    names = ["a-0.tar", "a-1.tar", "b-10.tar", "c[1].tar", "d/a-0.tar"]
    write(tmp_path, dict.fromkeys(names, b""))

    def found(pattern):
        paths = shards.matching_files(f"{tmp_path}/{pattern}")
        return [os.path.relpath(path, tmp_path) for path in paths]

    assert found("a-{0..1}.tar") == ["a-0.tar", "a-1.tar"]
    assert found("a-{1..0}.tar") == ["a-0.tar", "a-1.tar"]
    assert found("{a-0,b-{10..10}}.tar") == [
        "a-0.tar",
        "b-10.tar",
    ]
    assert found("[ab]-*.tar") == ["a-0.tar", "a-1.tar", "b-10.tar"]
    assert found("c[1].tar") == ["c[1].tar"]
    assert found("**/a-0.tar") == ["d/a-0.tar"]
    for pattern, missing in (
        ("a-{0..3}.tar", "a-2.tar, {}/a-3.tar"),
        ("a-{0..999999999}.tar", "a-11.tar, ..."),
        ("z*.tar", "z*.tar"),
        ("d", "d"),
    ):
        with pytest.raises(FileNotFoundError) as info:
            found(pattern)
        assert str(info.value).endswith(missing.format(tmp_path))


def test_shards_of_one_name_in_two_folders_are_told_apart(tmp_path):
    for name in ("a/0.tar", "b/0.tar"):
        write_tar(tmp_path / name, {"0.png": PNG})
    source = shards.TarShards(f"{tmp_path}/*/0.tar")
    assert source.paths == ["a/0.tar/0.png", "b/0.tar/0.png"]


def parquet(tmp_path, table):
    pq.write_table(table, tmp_path / "a.parquet")
    return shards.ParquetShards(tmp_path / "a.parquet")


@pytest.mark.parametrize("kind", ["binary", "large_binary"])
def test_parquet_may_hold_bytes_alone(tmp_path, kind):
    images = pa.array(list(FILES.values()), getattr(pa, kind)())
    source = parquet(tmp_path, pa.table({"img": images}))
    assert source.paths == [f"a.parquet/{row:08}" for row in range(12)]
    assert source.labels is None
    for place, contents in enumerate(FILES.values()):
        assert source.contents(place) == contents


@pytest.mark.parametrize(
    ("labels", "expected", "names"),
    [
        ([None, *[2] * 11], [-1, *[2] * 11], CLASSES),
        ([-1, *[0] * 11], [-1, *[0] * 11], CLASSES),
        ([1.0, None, *[2.0] * 10], [1, -1, *[2] * 10], CLASSES),
        ([1.0, float("nan"), *[2.0] * 10], [1, -1, *[2] * 10], CLASSES),
        (["b", None, *"a" * 10], [1, -1, *[0] * 10], ("a", "b")),
        (None, None, ()),
    ],
)
def test_labels_of_parquet(tmp_path, labels, expected, names):
    source = parquet(tmp_path, table_of(FILES, label=labels))
    found = source.labels if expected is None else source.labels.tolist()
    assert (found, source.class_names) == (expected, names)


@pytest.mark.parametrize("path", [[None] * 12, ["a.png"] * 12])
def test_rows_name_images_that_paths_do_not_tell_apart(tmp_path, path):
    images = [
        {"bytes": contents, "path": name}
        for contents, name in zip(FILES.values(), path, strict=True)
    ]
    source = parquet(tmp_path, pa.table({"image": images}))
    assert source.paths[:2] == ["a.parquet/00000000", "a.parquet/00000001"]


def test_rows_without_an_image_are_known_as_such(tmp_path):
    """Where names have no extension, and a split compares the images."""
    images = [None, b"text", *FILES.values()]
    source = parquet(tmp_path, pa.table({"image": images}))
    report = scanning.scan_images(source, tmp_path / "manifest.parquet")
    assert (report.images, report.others) == (12, 0)
    assert {kind: x[0] for kind, x in report.problems.items()} == {
        "empty": 1,
        "not an image": 1,
    }
    first, second = (
        shards.ParquetShards(tmp_path / "a.parquet", split=split).paths
        for split in ("train[:50%]", "train[50%:]")
    )
    assert sorted(first + second) == source.paths


def test_parquet_without_images_names_its_columns(tmp_path):
    with pytest.raises(ValueError, match=r"but x \(int64\), y \(string\)\. Re"):
        parquet(tmp_path, pa.table({"x": [1], "y": ["a"]}))
    with pytest.raises(ValueError, match=r"but a \(binary\), b \(binary\)\. R"):
        parquet(tmp_path, pa.table({"a": [b"1"], "b": [b"2"]}))
    with pytest.raises(ValueError, match="places in the 3 names of classes"):
        parquet(tmp_path, table_of(FILES, label=[3] * 12))
    for label in ([1], 0.5, np.uint64(2**63)):
        with pytest.raises(ValueError, match="Labels must be integers of 64 b"):
            parquet(tmp_path, table_of(FILES, label=[label] * 12))
    images = pa.array(
        [{"bytes": None, "path": "/a.png"}],
        pa.struct({"bytes": pa.binary(), "path": pa.string()}),
    )
    with pytest.raises(ValueError, match="names images, but holds none of the"):
        parquet(tmp_path, pa.table({"image": images}))


@pytest.mark.parametrize("name", ["a.b", "a.bytes"])
def test_names_of_columns_may_have_dots(tmp_path, name):
    pairs = [{"bytes": x, "path": key(path)} for path, x in FILES.items()]
    for images in (pairs, list(FILES.values())):
        source = parquet(tmp_path, pa.table({name: images}))
        assert source.contents(3) == FILES["cat/03.png"]


def test_broken_parquet_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(table_of(FILES), path)
    contents = path.read_bytes()
    for wrong in (b"", contents[:-30], b"text" * 9):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match="is no Parquet file or broken"):
            shards.ParquetShards(path)
    footer = int.from_bytes(contents[-8:-4], "little") + 8
    path.write_bytes(b"PAR1".ljust(len(contents) - footer) + contents[-footer:])
    with pytest.raises(ValueError, match=r"which is broken \(.*Copy it again"):
        shards.ParquetShards(path)


def test_parquet_is_unpacked_little_by_little(tmp_path, monkeypatch):
    """One group of rows larger than what is read at a time."""
    taken = []
    original = pq.ParquetFile.iter_batches

    def iter_batches(self, rows, **kwargs):
        for batch in original(self, rows, **kwargs):
            taken.append(batch.nbytes)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    monkeypatch.setattr(shards, "_AT_A_TIME", 2000)
    rng = np.random.default_rng(0)
    images = {f"cat/{n}.png": rng.bytes(500) for n in range(60)}
    source = parquet(tmp_path, table_of(images))
    assert max(taken) < 4000
    for place, path in enumerate(source.paths):
        assert source.contents(place) == images[f"cat/{key(path)}"]


def test_parquet_needs_room_to_be_unpacked(tmp_path, monkeypatch):
    usage = type(shards.shutil.disk_usage(tmp_path))(10, 9, 1)
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="Set the environment variable TMPDIR to"):
        parquet(tmp_path, table_of(FILES))


def test_shards_without_images_are_refused(tmp_path):
    write_tar(tmp_path / "a.tar", {"0.txt": b""})
    with pytest.raises(ValueError) as info:
        shards.TarShards(tmp_path / "a.tar")
    assert str(info.value) == (
        "The shards must hold images. Received: "
        f"'tar:{tmp_path}/a.tar' with 1 other files in 1 shards"
    )


def test_examined_names_are_those_of_the_manifest(tmp_path):
    write_tars(tmp_path, FILES)
    source = shards.TarShards(f"{tmp_path}/shards/*.tar")
    scanning.scan_images(source, tmp_path / "m.parquet")
    listed = manifests.read_manifest(tmp_path / "m.parquet")
    assert listed.paths == source.paths


@pytest.mark.parametrize(
    "look", [sources.find_source, lambda x: sources.scan_source(x, "m.parquet")]
)
def test_shards_without_their_prefix_are_told_it(tmp_path, look):
    path = write_tar(tmp_path / "a.tar", {"0.png": PNG})
    with pytest.raises(ValueError, match=rf"^`data` must .* Write tar:{path}$"):
        look(str(path))
