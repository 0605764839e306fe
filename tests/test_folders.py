import itertools
import logging
import os
import pathlib
import re
import shutil

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from helpers.pictures import JPEG, PNG, picture, refuse, write

import keras_simclr as simclr
from keras_simclr import fit_data, folders, manifests, scanning


@pytest.mark.fault(45, 75)
def test_find_images_lists_by_extension_and_skips_hidden(tmp_path):
    files = ["b.JPG", "a/c.webp", "a/d.jpeg", "e.gif", "f.bmp", "ü.png"]
    others = [".g.jpg", ".h/i.jpg", "j.txt", "jpg", "k.jpg.part"]
    write(tmp_path, dict.fromkeys(files + others, b""))
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "broken.jpg").symlink_to("nowhere")
    assert folders.find_images(tmp_path) == sorted(files)


def test_find_images_looks_into_files_without_extension(tmp_path):
    files = ["a", "b.2/c", "d.jpeg_large", "e.jfif", "f.tif"]
    write(tmp_path, dict.fromkeys([*files, "g.part", "h.nef"], JPEG))
    write(tmp_path, {"words": b"words", "none": b"", "j.jpe": b""})
    assert folders.find_images(tmp_path) == sorted([*files, "j.jpe"])
    manifest = tmp_path / "manifest.parquet"
    scanning.scan(tmp_path, manifest)
    found = manifests.read_manifest(manifest)
    assert sorted([*found.paths, *found.problems]) == sorted([*files, "j.jpe"])


@pytest.mark.fault(45)
def test_find_images_follows_links_but_visits_a_directory_once(tmp_path):
    write(tmp_path, {"data/a/1.jpg": b"", "other/2.jpg": b""})
    data = tmp_path / "data"
    (data / "a" / "loop").symlink_to(data)
    (data / "0_link").symlink_to(data / "a")
    (data / "itself").symlink_to("itself")
    (data / "linked").symlink_to(tmp_path / "other")
    (data / "linked_again").symlink_to(tmp_path / "other")
    (data / "3.jpg").symlink_to(data / "a" / "1.jpg")
    assert folders.find_images(data) == ["3.jpg", "a/1.jpg", "linked/2.jpg"]


@pytest.mark.fault(45)
def test_undecodable_names_survive_the_manifest(tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    write(tmp_path, {name: JPEG, "日本.png": PNG})
    manifest = tmp_path / "manifest.parquet"
    assert folders.find_images(tmp_path) == [name, "日本.png"]
    scanning.scan(os.fsencode(tmp_path), manifest)
    paths = manifests.read_manifest(manifest).paths
    assert paths == [name, "日本.png"]
    assert (tmp_path / paths[0]).read_bytes() == JPEG


@pytest.mark.fault(75)
@pytest.mark.parametrize("function", [folders.find_images, scanning.scan])
@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        (
            "absent",
            FileNotFoundError,
            (
                "`directory` must exist. Received: directory={!r}. Check its "
                "spelling, and that its disk is mounted"
            ),
        ),
        (
            "file.jpg",
            NotADirectoryError,
            (
                "`directory` must be a directory, not a file. Received: "
                "directory={!r}. Name the directory that holds the images"
            ),
        ),
        (
            "secret",
            PermissionError,
            (
                "`directory` must be readable. Received: directory={!r}. Make "
                "it so, with chmod +rx, or ask its owner"
            ),
        ),
    ],
)
def test_directory_that_cannot_be_listed_is_refused(
    function, path, error, message, tmp_path, monkeypatch
):
    write(tmp_path, {"file.jpg": JPEG, "secret/a.jpg": JPEG})
    refuse(monkeypatch, (os, "scandir"), "secret")
    path, out = str(tmp_path / path), tmp_path / "out" / "manifest.parquet"
    with pytest.raises(error) as raised:
        function(path, *[out] * (function is scanning.scan))
    assert str(raised.value) == message.format(path)
    assert not out.parent.exists()


def test_find_images_refuses_a_directory_without_images(tmp_path):
    write(tmp_path, {"notes.txt": b""})
    with pytest.raises(ValueError) as raised:
        folders.find_images(tmp_path)
    assert str(raised.value) == (
        "`directory` must hold images (JPEG, PNG, BMP, GIF, WEBP, TIFF, AVIF, "
        "JPEG2000, HEIF). "
        f"Received: directory={str(tmp_path)!r} with 1 other files"
    )


@pytest.mark.fault(75)
def test_find_images_refuses_an_unreadable_folder(tmp_path, monkeypatch):
    write(tmp_path, {"a.jpg": b"", "b/secret/c.jpg": b""})
    refuse(monkeypatch, (os, "scandir"), "secret")
    with pytest.raises(PermissionError) as raised:
        folders.find_images(tmp_path)
    assert str(raised.value) == (
        "Every sub-directory must be readable, or its images would silently "
        "be missing. Received: 'b/secret' (Permission denied). Make it so, "
        "with chmod +rx, or move it elsewhere"
    )


def test_class_labels_number_the_top_level_folders():
    labels, names = scanning.class_labels(["b/1.jpg", "a/x/2.jpg", "b/3.jpg"])
    assert labels.dtype == "int64"
    assert labels.tolist() == [1, 0, 1]
    assert names == ("a", "b")


@pytest.mark.parametrize(
    "paths",
    [[], ["1.jpg", "2.jpg"], ["train/1.jpg"], ["1.jpg", "a/2", "b/3"]],
)
def test_without_folders_of_classes_there_are_none(paths):
    assert scanning.class_labels(paths) == (None, ())


def test_one_folder_is_a_class():
    labels, names = scanning.class_labels(["a/1.jpg", "a/b/2.jpg"])
    assert labels.tolist() == [0, 0]
    assert names == ("a",)


def write_image(path, number, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((*size, 3), number, "uint8")
    PIL.Image.fromarray(pixels).save(path)


@pytest.fixture
def directory(tmp_path):
    """20 images in 2 sub-folders; each is filled with its place."""
    for number in range(20):
        name = f"{'cats' if number < 10 else 'dogs'}/{number:02}.png"
        write_image(tmp_path / name, number)
    return tmp_path


def numbers(dataset):
    return [int(x) for batch in dataset for x in batch["images"][:, 0, 0, 0]]


def in_order(source, **kwargs):
    return simclr.dataset_from_directory(
        source,
        canvas_size=16,
        batch_size=8,
        shuffle=False,
        drop_remainder=False,
        **kwargs,
    )


def shuffled(source, **kwargs):
    return simclr.dataset_from_directory(
        source, **{"canvas_size": 16, "batch_size": 5, **kwargs}
    )


def test_elements_are_images_with_their_sizes_and_labels(directory):
    write_image(directory / "cats" / "00.png", 0, size=(32, 8))
    first = next(iter(in_order(directory)))
    assert sorted(first) == ["images", "labels", "places", "sizes"]
    assert first["images"].shape == (8, 16, 16, 3)
    np.testing.assert_array_equal(first["sizes"][:2], [[16, 4], [12, 10]])
    canvas = first["images"][1].numpy()
    assert (canvas[:12, :10] == 1).all()
    assert canvas.sum() == 12 * 10 * 3
    labels = np.concatenate([b["labels"] for b in in_order(directory)])
    np.testing.assert_array_equal(labels, np.repeat([0, 1], 10))


def test_order_without_shuffling_is_that_of_the_paths(directory):
    assert numbers(in_order(directory)) == list(range(20))


def test_every_epoch_has_another_order_of_all_images(directory):
    dataset = shuffled(directory)
    first, second = numbers(dataset), numbers(dataset)
    assert first != second
    assert sorted(first) == sorted(second) == list(range(20))
    assert len(dataset) == 4


@pytest.mark.fault(46)
def test_orders_are_a_function_of_seed_and_epoch(directory):
    dataset = shuffled(directory, seed=1)
    epochs = [numbers(dataset) for _ in range(3)]
    repeated = shuffled(directory, seed=1).repeat(3)
    assert numbers(repeated) == list(itertools.chain(*epochs))
    again = shuffled(directory, seed=1)
    next(iter(again))
    assert numbers(again) == epochs[1]
    assert numbers(shuffled(directory, seed=2)) != epochs[0]


def test_files_beside_sub_folders_mean_no_labels(directory):
    write_image(directory / "00.png", 0)
    assert folders.ImageFolder(directory).labels is None
    first = next(iter(in_order(directory)))
    assert sorted(first) == ["images", "places", "sizes"]


@pytest.mark.parametrize("bound", ["70%", "12"])
def test_splits_share_nothing_and_keep_their_labels(directory, bound):
    train = folders.ImageFolder(directory, split=f"train[:{bound}]")
    test = folders.ImageFolder(directory, split=f"train[{bound}:]")
    whole = folders.ImageFolder(directory)
    assert sorted(train.paths + test.paths) == whole.paths
    if bound == "12":
        assert len(train.paths) == 12
    assert train.class_names == test.class_names == ("cats", "dogs")
    for folder in (train, test):
        assert folder.paths == sorted(folder.paths)
        expected = [["cats", "dogs"].index(p[:4]) for p in folder.paths]
        np.testing.assert_array_equal(folder.labels, expected)


def test_splits_hold_about_their_share():
    paths = [f"{number}.jpg" for number in range(10_000)]
    pairs = np.arange(10_000) // 2
    for groups in (None, pairs):
        for split, share in (("[:80%]", 0.8), ("[80%:90%]", 0.1)):
            places = folders.places_of_split(f"train{split}", paths, groups)
            assert len(places) / 10_000 == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize(
    "split", ["train[:80%]", "train[80%:]", "train[-50%:]"]
)
def test_files_keep_their_side_whatever_comes_and_goes(directory, split):
    before = set(folders.ImageFolder(directory, split=split).paths)
    for number in range(20, 60):
        write_image(directory / "cats" / f"{number:02}.png", number)
    after = set(folders.ImageFolder(directory, split=split).paths)
    old = {path for path in after if int(path[5:7]) < 20}
    assert old == before
    for number in range(0, 20, 3):
        for path in directory.glob(f"*/{number:02}.png"):
            path.unlink()
    left = set(folders.ImageFolder(directory, split=split).paths)
    assert left == {path for path in after if (directory / path).exists()}


def write_copies(directory):
    """Thirty pictures, each of them in two or three files."""
    for number in range(30):
        pixels = picture(number)
        for copy in ("cats/{}.png", "dogs/b{}.bmp", "dogs/c{}.png"):
            path = directory / copy.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            if "c{}" not in copy or number % 2:
                pixels.save(path)


@pytest.mark.parametrize("scanned", [True, False])
@pytest.mark.parametrize("bound", ["50%", "31"])
def test_splits_do_not_divide_duplicates(tmp_path, scanned, bound):
    write_copies(tmp_path / "images")
    manifest = tmp_path / "manifest.parquet" if scanned else None
    if scanned:
        scanning.scan(tmp_path / "images", manifest)
    train, test = (
        folders.ImageFolder(
            tmp_path / "images", split=f"train[{part}]", manifest=manifest
        )
        for part in (f":{bound}", f"{bound}:")
    )
    pictures = [
        {re.search(r"\d+", path)[0] for path in folder.paths}
        for folder in (train, test)
    ]
    assert not pictures[0] & pictures[1]
    assert len(train.paths) + len(test.paths) == 75
    assert min(map(len, pictures)) >= 5


def test_duplicates_among_many_files_are_said_to_be_unknown(
    directory, monkeypatch, caplog
):
    monkeypatch.setattr(folders, "_MOST_TO_COMPARE", 19)
    folders.ImageFolder(directory)
    assert not caplog.messages
    folder = folders.ImageFolder(directory, split="train[:50%]")
    assert folder.paths
    (message,) = caplog.messages
    assert message == (
        "Duplicates unknown: 20 files are too many to compare now. Scan "
        "the folder and use its manifest, or a split may divide them"
    )


def test_files_that_changed_are_compared_again(directory):
    parts = "train[:50%]", "train[50%:]"
    for part in parts:
        assert 0 < len(folders.ImageFolder(directory, split=part).paths) < 20
    for path in directory.glob("*/*.png"):
        picture(1).save(path)
    # All are alike now, and where the first of them is.
    (side,) = (x for x in parts if is_in(directory, "cats/00.png", x))
    assert len(folders.ImageFolder(directory, split=side).paths) == 20


def is_in(directory, path, split):
    paths = folders.find_images(directory)
    return paths.index(path) in folders.places_of_split(split, paths)


def test_empty_splits_are_refused(directory):
    for split in ("train[:0]", "train[:0%]", "train[20:]"):
        with pytest.raises(ValueError) as info:
            folders.ImageFolder(directory, split=split)
        assert str(info.value) == (
            "`split` must hold at least one of 20 images. Received: "
            f"split={split!r}, into which none falls by its name"
        )


@pytest.mark.fault(40)
def test_unreadable_files_are_skipped_and_reported_once(directory, caplog):
    (directory / "cats" / "03.png").write_bytes(b"")
    (directory / "dogs" / "19.png").write_bytes(b"<html>")
    folder = folders.ImageFolder(directory, unreadable_limit=0.1)
    dataset = in_order(folder)
    with caplog.at_level(logging.WARNING, logger="keras_simclr"):
        for _ in range(2):
            expected = [x for x in range(20) if x not in (3, 19)]
            assert numbers(dataset) == expected
    assert folder.skipped == {
        "cats/03.png": "empty",
        "dogs/19.png": "not an image: HTML",
    }
    assert len(caplog.messages) == 2


def test_an_epoch_has_its_length_whatever_is_unreadable(directory):
    (directory / "cats" / "03.png").write_bytes(b"")
    folder = folders.ImageFolder(directory, unreadable_limit=0.1)
    dataset = shuffled(folder)
    for _ in range(3):
        found = numbers(dataset)
        assert len(found) == 20
        assert set(found) == set(range(20)) - {3}


def test_a_file_that_vanishes_is_skipped(directory):
    folder = folders.ImageFolder(directory, unreadable_limit=0.1)
    dataset = in_order(folder)
    (directory / "cats" / "03.png").unlink()
    assert 3 not in numbers(dataset)
    assert list(folder.skipped.values()) == [
        "unreadable: No such file or directory"
    ]


def spoil(path):
    path.write_bytes(path.read_bytes()[:20])


@pytest.mark.parametrize(
    ("first", "second", "vanish"),
    [
        ([3], [], False),
        ([0], [5], True),
        ([19], [0, 18, 19], False),
        ([7, 8], [8, 9], True),
        (list(range(8)), [19], False),
    ],
)
def test_images_keep_their_places_in_every_pass(
    directory, first, second, vanish
):
    """Files spoil, vanish and are repaired between the passes."""
    folder = folders.ImageFolder(directory, unreadable_limit=0.9)
    contents = [(directory / path).read_bytes() for path in folder.paths]
    dataset = in_order(folder)
    for broken in (first, second, first):
        for place, content in enumerate(contents):
            path = directory / folder.paths[place]
            path.write_bytes(content)
            if place in broken and vanish:
                path.unlink()
            elif place in broken:
                spoil(path)
        batches = list(dataset)
        places = np.concatenate([batch["places"] for batch in batches])
        np.testing.assert_array_equal(numbers(batches), places)
        assert set(places) == set(range(20)) - set(broken)
        labels = np.concatenate([batch["labels"] for batch in batches])
        np.testing.assert_array_equal(labels, folder.labels[places])
    named = {folder.paths[place] for place in {*first, *second}}
    assert folder.skipped.keys() == named


def emptied(path):
    path.write_bytes(b"")


def a_folder(path):
    path.unlink()
    path.mkdir()


def a_link_to_nothing(path):
    path.unlink()
    path.symlink_to("nowhere")


def a_link_to_itself(path):
    path.unlink()
    path.symlink_to(path)


def another_picture(path):
    PIL.Image.fromarray(np.full((12, 20), 99, "uint8")).save(path, "JPEG")


CHANGES = {
    emptied: "empty",
    spoil: "truncated",
    pathlib.Path.unlink: "unreadable: No such file",
    a_folder: "unreadable: Is a directory",
    a_link_to_nothing: "unreadable: No such file",
    a_link_to_itself: "unreadable: Too many levels",
    another_picture: None,
}


@pytest.mark.fault(40, 75)
@pytest.mark.parametrize("change", CHANGES, ids=lambda x: x.__name__)
@pytest.mark.parametrize("shuffle", [False, True])
def test_files_that_change_between_epochs_are_counted(
    change, shuffle, directory, caplog
):
    folder = folders.ImageFolder(directory, unreadable_limit=0.1)
    dataset = in_order(folder) if not shuffle else shuffled(folder)
    assert sorted(numbers(dataset)) == list(range(20))
    write_image(directory / "cats" / "new.png", 77)  # Not of this list.
    change(directory / "cats" / "03.png")
    for _ in range(2):
        found = numbers(dataset)
        if CHANGES[change] is None:
            assert sorted(set(found) - {99}) == [*range(3), *range(4, 20)]
        else:
            assert set(found) == set(range(20)) - {3}
    reasons = [] if CHANGES[change] is None else [CHANGES[change]]
    assert len(folder.skipped) == len(reasons) == len(caplog.messages)
    for (path, why), reason in zip(
        folder.skipped.items(), reasons, strict=True
    ):
        assert path == "cats/03.png"
        assert why.startswith(reason)


@pytest.mark.fault(40)
@pytest.mark.parametrize("limit", [0.0, 0.3, 1.0])
def test_folder_that_vanishes_is_named(limit, directory):
    folder = folders.ImageFolder(directory, unreadable_limit=limit)
    dataset = shuffled(folder)
    numbers(dataset)
    shutil.rmtree(directory)
    most = "Not all" if limit == 1 else f"At most {limit:.2%} of the"
    with pytest.raises(ValueError) as error:
        list(fit_data.checked_elements(dataset))
    assert str(error.value).startswith(f"{most} files may be unreadable. ")
    assert str(error.value).endswith(
        f". {str(directory)!r} is gone: see that it is mounted"
    )


def test_places_are_those_of_a_part_in_that_part(directory):
    folder = folders.ImageFolder(
        directory, split="train[30%:]", unreadable_limit=0.5
    )
    spoil(directory / folder.paths[1])
    for dataset in (in_order(folder), shuffled(folder)):
        for batch in dataset:
            for place, image in zip(
                batch["places"], batch["images"], strict=True
            ):
                name = folder.paths[place].split("/")[1]
                assert name == f"{int(image[0, 0, 0]):02}.png"


def test_orders_of_several_epochs_can_be_read_as_one(directory):
    folder = folders.ImageFolder(directory, unreadable_limit=0.5)
    spoil(directory / folder.paths[0])
    orders = tf.data.Dataset.from_tensors(tf.constant([0, 1, 2], tf.int64))
    read = folder.read(orders.repeat(2), 16)
    assert [int(place) for place, _ in read] == [1, 2, 1, 2]
    assert list(folder.skipped) == ["cats/00.png"]
    folder.skipped.clear()


def test_datasets_of_folders_name_their_classes(directory):
    assert in_order(directory).class_names == ["cats", "dogs"]
    assert shuffled(directory).class_names == ["cats", "dogs"]
    write_image(directory / "00.png", 0)
    assert in_order(directory).class_names == []


@pytest.mark.fault(40)
def test_too_many_unreadable_files_end_training_with_a_list(directory):
    names = ["cats/it's é.png", "dogs/a.png"]
    for name in names:
        (directory / name).write_bytes(b"")
    encoder = simclr.ResNet(
        10, width_multiplier=0.25, stem="cifar", input_shape=(8, 8, 3)
    )
    model = simclr.SimCLRModel(encoder)
    model.compile(run_eagerly=True)
    folder = folders.ImageFolder(directory, unreadable_limit=0.05)
    message = (
        "At most 5.00% of the files may be unreadable. Received: 2 of 22 so "
        "far: cats/it's é.png (empty), dogs/a.png (empty). Scan the folder and "
        "use its manifest, or raise `unreadable_limit`"
    )
    with pytest.raises(ValueError) as info:
        simclr.extract_features(model, in_order(folder))
    assert str(info.value) == message
    weights = model.get_weights()
    folder = folders.ImageFolder(directory, unreadable_limit=0)
    with pytest.raises(ValueError, match=r"At most 0.00% .* \(epoch 1, step"):
        model.fit(shuffled(folder, batch_size=22), epochs=2, verbose=0)
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_names_that_are_no_text_can_be_complained_of(directory):
    (directory / os.fsdecode(b"\xe9.png")).write_bytes(b"")
    folder = folders.ImageFolder(directory, unreadable_limit=0)
    with pytest.raises(ValueError, match=r" so far: \\xe9.png \(empty\). Scan"):
        list(fit_data.checked_elements(in_order(folder)))


def test_an_earlier_complaint_is_not_taken_for_another_error(directory):
    (directory / "cats" / "03.png").write_bytes(b"")
    folder = folders.ImageFolder(directory, unreadable_limit=0)
    with pytest.raises(tf.errors.InvalidArgumentError):
        numbers(in_order(folder))
    other = tf.data.Dataset.from_tensors(tf.fill((2, 8, 8, 3), np.nan))
    with pytest.raises(ValueError, match="must be finite"):
        list(fit_data.checked_elements(other))


def test_only_unreadable_files_are_an_error(directory):
    for path in directory.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(tf.errors.InvalidArgumentError, match="may be unread"):
        numbers(in_order(directory))


def test_manifest_leaves_out_problems_and_names_duplicates(directory):
    (directory / "cats" / "03.png").write_bytes(b"")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (14, 9, 3), "uint8")
    for name in ("cats/a.png", "dogs/b.png"):
        PIL.Image.fromarray(pixels).save(directory / name)
    manifest = directory / "manifest.parquet"
    scanning.scan(directory, manifest)
    folder = folders.ImageFolder(directory, manifest=manifest)
    assert folder.left_out == {"cats/03.png": "empty"}
    assert len(folder.paths) == 21
    groups = np.concatenate([b["groups"] for b in in_order(folder)])
    pair = [folder.paths.index(name) for name in ("cats/a.png", "dogs/b.png")]
    equal = groups[:, None] == groups
    expected = np.eye(21, dtype=bool)
    expected[np.ix_(pair, pair)] = True
    np.testing.assert_array_equal(equal, expected)
    assert next(iter(in_order(folder)))["images"].shape[1] == 14
    # Without the pair there are no groups.
    half = folders.ImageFolder(directory, manifest=manifest, split="train[:2]")
    assert half.groups is None


def test_manifest_of_nothing_usable_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    manifest = tmp_path / "manifest.parquet"
    scanning.scan(tmp_path, manifest)
    with pytest.raises(ValueError) as info:
        folders.ImageFolder(tmp_path, manifest=manifest)
    assert str(info.value) == (
        "`manifest` must list usable images. Received: "
        f"manifest={str(manifest)!r}, which finds fault with all 1 files"
    )


def test_fewer_images_than_a_batch_are_refused(directory):
    with pytest.raises(ValueError) as info:
        simclr.dataset_from_directory(directory, batch_size=21)
    assert str(info.value) == (
        "The images must fill at least one batch. Received: 20 images, "
        "batch_size=21. Use a smaller batch."
    )


@pytest.mark.fault(37)
def test_images_of_a_folder_become_the_views_of_images_alone(directory):
    """A canvas with sizes is as good as each image by itself."""
    rng = np.random.default_rng(0)
    pixels = [
        rng.integers(0, 256, s, "uint8") for s in ((9, 16, 3), (14, 8, 3))
    ]
    for number, image in enumerate(pixels):
        PIL.Image.fromarray(image).save(directory / f"{number}.png")
    for sub_folder in ("cats", "dogs"):
        for path in (directory / sub_folder).iterdir():
            path.unlink()
    (element,) = in_order(directory)
    encoder = simclr.ResNet(
        10, width_multiplier=0.25, stem="cifar", input_shape=(8, 8, 3)
    )
    model = simclr.SimCLRModel(encoder)
    view = model.evaluation_view(element["images"], element["sizes"])
    for place, image in enumerate(pixels):
        alone = model.evaluation_view(image[None])
        np.testing.assert_allclose(view[place], alone[0], atol=1e-6)
    features = simclr.extract_features(model, in_order(directory))
    whole = shuffled(directory, shuffle=False, batch_size=2)
    predicted = model.predict(whole, verbose=0)
    np.testing.assert_allclose(features, predicted, rtol=1e-4, atol=1e-5)
