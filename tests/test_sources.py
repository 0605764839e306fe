import socket
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from helpers.pictures import PNG, tiff, write

import keras_simclr as simclr
from keras_simclr import (
    fingerprints,
    fit_data,
    folders,
    image_sets,
    recipe,
    sources,
    tfds_builders,
)


class TinyDigits(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    SPLITS = {"train": 10, "test": 5}  # noqa: RUF012 - a constant.
    FEATURES = {  # noqa: RUF012 - a constant.
        "image": tfds.features.Image(shape=(8, 8, 3)),
        "label": tfds.features.ClassLabel(num_classes=10),
    }

    def _info(self):
        features = tfds.features.FeaturesDict(self.FEATURES)
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {
            split: self._generate_examples(count)
            for split, count in self.SPLITS.items()
        }

    def _generate_examples(self, count):
        for number in range(count):
            image = np.full((8, 8, 3), number, "uint8")
            example = {"image": image, "label": number, "text": "a"}
            yield number, {name: example[name] for name in self.FEATURES}


class TinyUnlabeled(TinyDigits):
    VERSION = tfds.core.Version("1.0.0")
    FEATURES = {"image": tfds.features.Image(shape=(8, 8, 3))}  # noqa: RUF012


class TinyAnySize(TinyDigits):
    VERSION = tfds.core.Version("1.0.0")
    FEATURES = {"image": tfds.features.Image()}  # noqa: RUF012


class TinyText(TinyDigits):
    VERSION = tfds.core.Version("1.0.0")
    FEATURES = {"text": tfds.features.Text()}  # noqa: RUF012


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


def numbered_images(count=10):
    images = np.zeros((count, 8, 8, 1), "uint8")
    return images + np.arange(count, dtype="uint8")[:, None, None, None]


def order(dataset):
    """The numbers of the images of an epoch."""
    batches = [
        batch[0] if isinstance(batch, tuple) else batch for batch in dataset
    ]
    return [int(image[0, 0, 0]) for batch in batches for image in batch]


def test_arrays_give_another_order_in_every_epoch():
    dataset = simclr.dataset_from_arrays(numbered_images(), batch_size=5)
    first, second = order(dataset), order(dataset)
    assert first != second
    assert sorted(first) == sorted(second) == list(range(10))


@pytest.mark.fault(46)
def test_same_seed_gives_the_same_orders():
    first, same, other = (
        simclr.dataset_from_arrays(numbered_images(), batch_size=5, seed=seed)
        for seed in (1, 1, 2)
    )
    epochs = [order(first), order(first)]
    assert [order(same), order(same)] == epochs
    assert [order(other), order(other)] != epochs


def test_images_stay_in_place_without_shuffle():
    dataset = simclr.dataset_from_arrays(
        numbered_images(), batch_size=5, shuffle=False
    )
    assert order(dataset) == order(dataset) == list(range(10))


def test_remainder_waits_for_another_epoch():
    dataset = simclr.dataset_from_arrays(numbered_images(), batch_size=4)
    seen = [order(dataset) for _ in range(8)]
    assert len(dataset) == 2
    assert {len(set(epoch)) for epoch in seen} == {8}
    assert set().union(*seen) == set(range(10))


def test_remainder_can_be_kept():
    dataset = simclr.dataset_from_arrays(
        numbered_images(), batch_size=4, drop_remainder=False
    )
    assert [len(batch) for batch in dataset] == [4, 4, 2]
    assert sorted(order(dataset)) == list(range(10))


def test_labels_stay_with_their_images():
    dataset = simclr.dataset_from_arrays(
        numbered_images(), np.arange(10), batch_size=5
    )
    for images, labels in dataset:
        np.testing.assert_array_equal(images[:, 0, 0, 0], labels)


def test_dictionary_of_arrays_gives_dictionaries():
    views = {"view_1": numbered_images(), "view_2": numbered_images()}
    dataset = simclr.dataset_from_arrays(views, batch_size=5)
    for batch in dataset:
        assert set(batch) == {"view_1", "view_2"}
        np.testing.assert_array_equal(batch["view_1"], batch["view_2"])


def test_dtype_and_static_batch_are_kept():
    dataset = simclr.dataset_from_arrays(numbered_images(), batch_size=5)
    assert dataset.element_spec == tf.TensorSpec((5, 8, 8, 1), tf.uint8)


def test_arrays_of_unequal_length_are_refused():
    with pytest.raises(ValueError) as error:
        simclr.dataset_from_arrays(numbered_images(), np.arange(9))
    assert str(error.value) == (
        "All arrays must have the same length. "
        "Received: arrays of length 9 and 10"
    )


@pytest.mark.fault(9)
@pytest.mark.parametrize(
    ("count", "batch_size", "drop_remainder"), [(3, 4, True), (0, 4, False)]
)
def test_arrays_that_fill_no_batch_are_refused(
    count, batch_size, drop_remainder
):
    with pytest.raises(ValueError) as error:
        simclr.dataset_from_arrays(
            numbered_images(count),
            batch_size=batch_size,
            drop_remainder=drop_remainder,
        )
    assert str(error.value) == (
        "The images must fill at least one batch. Received: "
        f"{count} images, batch_size={batch_size}. Use a smaller batch."
    )


def test_batch_size_that_is_no_integer_is_refused():
    for make in (
        lambda: simclr.dataset_from_arrays(numbered_images(), batch_size=0),
        lambda: simclr.dataset_from_tfds("mnist", "train", batch_size=0),
    ):
        with pytest.raises(ValueError) as error:
            make()
        assert str(error.value) == (
            "`batch_size` must be an integer of at least 1. "
            "Received: batch_size=0"
        )


def test_tfds_gives_images_with_their_labels(data_dir):
    dataset = simclr.dataset_from_tfds(
        "tiny_digits", "train", data_dir=data_dir, batch_size=5
    )
    images_spec, _ = dataset.element_spec
    assert images_spec == tf.TensorSpec((5, 8, 8, 3), tf.uint8)
    for images, labels in dataset:
        np.testing.assert_array_equal(images[:, 0, 0, 0], labels)
    first, second = order(dataset), order(dataset)
    assert first != second
    assert sorted(first) == sorted(second) == list(range(10))


@pytest.mark.parametrize("name", ["tiny_digits", "tiny_any_size"])
def test_tfds_gives_images_that_can_be_seen_again(name, data_dir):
    data = recipe.Data(data=f"tfds:{name}", data_dir=str(data_dir))
    _, dataset = data.open_in_order(8)
    found = image_sets.ImageSet("images", dataset)
    encoder = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.GlobalAveragePooling2D()]
    )
    found.see(simclr.SimCLRModel(encoder), most=10)
    assert len(found.features) == len(found.compared) == 10
    for row, image in found.again(range(0, 10, 3)):
        assert image.shape == (8, 8, 3)
        np.testing.assert_allclose(
            found.features[row], image.mean(axis=(0, 1)) / 255, atol=1e-5
        )


def test_tfds_gives_the_same_orders_for_the_same_seed(data_dir):
    first, same = (
        simclr.dataset_from_tfds(
            "tiny_digits", "train", data_dir=data_dir, batch_size=5, seed=3
        )
        for _ in range(2)
    )
    assert [order(first), order(first)] == [order(same), order(same)]


def test_tfds_takes_a_slice_of_a_split(data_dir):
    dataset = simclr.dataset_from_tfds(
        "tiny_digits",
        "train[:60%]",
        data_dir=data_dir,
        batch_size=4,
        shuffle=False,
        drop_remainder=False,
    )
    assert [len(labels) for _, labels in dataset] == [4, 2]


def test_tfds_without_labels_gives_images(data_dir):
    dataset = simclr.dataset_from_tfds(
        "tiny_unlabeled", "test", data_dir=data_dir, batch_size=5
    )
    assert dataset.element_spec == tf.TensorSpec((5, 8, 8, 3), tf.uint8)
    assert sorted(order(dataset)) == list(range(5))


@pytest.mark.fault(45)
@pytest.mark.parametrize(
    ("name", "near"), [("tiny_digit", "tiny_digits"), ("zzz", "none")]
)
def test_unknown_tfds_name_is_refused_with_near_matches(
    monkeypatch, data_dir, name, near
):
    known = ["mnist", "tiny_digits"]
    monkeypatch.setattr(tfds, "list_builders", lambda: known)
    with pytest.raises(ValueError) as error:
        simclr.dataset_from_tfds(name, "train", data_dir=data_dir)
    assert str(error.value) == (
        "`name` must be a dataset of TensorFlow Datasets. Received: "
        f"name={name!r}. Near matches: {near}"
    )


def test_unknown_tfds_split_is_refused_with_a_near_match(data_dir):
    with pytest.raises(ValueError) as error:
        simclr.dataset_from_tfds(
            "tiny_digits", "tain", data_dir=data_dir, batch_size=2
        )
    assert str(error.value) == (
        "`split` must be one of 'test', 'train'. "
        "Received: split='tain'. Did you mean 'train'?"
    )


def test_tfds_split_in_another_notation_is_refused(data_dir):
    with pytest.raises(ValueError) as error:
        simclr.dataset_from_tfds(
            "tiny_digits", "train[abc]", data_dir=data_dir, batch_size=2
        )
    assert str(error.value) == (
        "`split` must be a split in TFDS's notation, such as 'train[:90%]'. "
        "Received: split='train[abc]'"
    )


def test_tfds_split_that_fills_no_batch_is_refused(data_dir):
    with pytest.raises(ValueError) as error:
        simclr.dataset_from_tfds("tiny_digits", "test", data_dir=data_dir)
    assert str(error.value) == (
        "The images must fill at least one batch. Received: 5 images in "
        "split='test', batch_size=256. Use a smaller batch."
    )


def test_tfds_images_of_many_sizes_come_on_a_canvas(data_dir):
    dataset = simclr.dataset_from_tfds(
        "tiny_any_size", "train", data_dir=data_dir, canvas_size=9, batch_size=4
    )
    for element in dataset:
        np.testing.assert_array_equal(element["sizes"], np.full((4, 2), 8))
        images = element["images"].numpy()
        assert images.shape == (4, 9, 9, 3)
        assert (images[:, :8, :8] == images[:, :1, :1]).all()
        assert not images[:, 8].any()
        assert not images[:, :, 8].any()


@pytest.mark.parametrize("name", ["tiny_unlabeled", "tiny_any_size"])
def test_tfds_comes_in_the_channels_and_bits_asked_for(data_dir, name):
    options = {"data_dir": data_dir, "batch_size": 5, "canvas_size": 8}
    dataset = simclr.sources.open_dataset(
        f"tfds:{name}", "test", channels=1, bits=16, **options
    )
    images = simclr.elements.unpack(dataset.element_spec)["images"]
    assert images == tf.TensorSpec((5, 8, 8, 1), tf.float32)
    with pytest.raises(ValueError, match="channels=4, and images with 3"):
        simclr.sources.open_dataset(
            f"tfds:{name}", "test", channels=4, **options
        )


def test_arrays_and_folders_come_in_the_channels_and_bits_asked_for(tmp_path):
    images = numbered_images()
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(10))
    options = {"batch_size": 5, "shuffle": False}
    source = str(tmp_path / "a.npz")
    dataset = simclr.sources.open_dataset(
        source, channels=3, bits=16, **options
    )
    assert dataset.element_spec[0] == tf.TensorSpec((5, 8, 8, 3), tf.float32)
    found, _ = next(iter(dataset))
    np.testing.assert_allclose(found, np.tile(images[:5] / 255, 3))
    with pytest.raises(ValueError, match="channels=4, and images with 1"):
        simclr.sources.open_dataset(source, channels=4, **options)
    bands = np.arange(9 * 8 * 4).reshape(9, 8, 4).astype("uint16")
    for number in range(4):
        (tmp_path / f"{number}.tif").write_bytes(tiff(bands, extra=2))
    (tmp_path / "0.png").write_bytes(PNG)
    folder = simclr.folders.ImageFolder(tmp_path, unreadable_limit=0.2)
    options = {"canvas_size": 9, "batch_size": 4, "shuffle": False}
    dataset = simclr.sources.open_dataset(
        folder, channels=4, bits=16, **options
    )
    element = next(iter(dataset))
    expected = np.pad(bands / 1023, [(0, 0), (0, 1), (0, 0)])
    np.testing.assert_allclose(element["images"][0], expected, atol=1e-7)
    assert folder.skipped == {
        "0.png": "other channels: 3, where 4 are asked for"
    }
    for wrong in ({"channels": 0}, {"bits": 12}):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be"):
            simclr.dataset_from_directory(folder, **wrong)


def test_tfds_without_images_is_refused(data_dir):
    with pytest.raises(ValueError) as error:
        simclr.dataset_from_tfds("tiny_text", "train", data_dir=data_dir)
    assert str(error.value) == (
        "The dataset needs a feature `image`. Received: "
        "name='tiny_text' with features ['text']"
    )


def test_source_is_told_in_words(data_dir, tmp_path):
    def words(source, *split):
        text = sources.in_words(source, *split, data_dir=data_dir)
        size = sources.count_images(source, *split, data_dir=data_dir)
        assert text.startswith(f"{size:,} ")
        return text

    names = ", ".join(map(str, range(10)))
    sources.open_dataset("tfds:tiny_digits", data_dir=data_dir, batch_size=2)
    assert words("tfds:tiny_digits") == f"10 images of 10 classes: {names}"
    assert words("tfds:tiny_digits", "train[:40%]").startswith("4 images of")
    sources.open_dataset("tfds:tiny_unlabeled", data_dir=data_dir, batch_size=2)
    assert words("tfds:tiny_unlabeled", "test") == "5 images, no classes"
    path = str(tmp_path / "a.npz")
    images = np.zeros((1200, 8, 8, 3), "uint8")
    np.savez(path, images=images[..., 0])
    assert words(path) == "1,200 grey images, no classes"
    for labels in (
        np.repeat([-1, 0, 7], [100, 1050, 50]),
        np.repeat([-1.0, 0, 7], [100, 1050, 50])[:, None],
    ):
        np.savez(path, images=images, labels=labels)
        found = words(path).replace(".0", "")
        assert found == "1,200 images of 2 classes: 0 (1,050), 7 (50)"
    assert words(path, "train[1150:]").startswith("50 images of 1 class: 7")
    np.savez(path, images=images[:12], labels=np.array([*"abcdefghijkl"]))
    assert words(path).endswith(
        "of 12 classes: "
        + ", ".join(f"{x} (1)" for x in "abcdefghij")
        + ", ..."
    )
    np.savez(path, images=images[:12], labels=np.eye(12))
    assert words(path) == "12 images"


def test_folder_is_told_in_words(tmp_path):
    def words(*paths, split="train"):
        for path in tmp_path.rglob("*.png"):
            path.unlink()
        write(tmp_path, dict.fromkeys(paths, PNG))
        source = folders.ImageFolder(tmp_path, split=split)
        assert sources.count_images(source) == len(paths)
        return sources.in_words(source)

    assert words("a.png", "b/c.png") == "2 images, no classes"
    assert words("b/c.png") == "1 image of 1 class: b (1)"
    assert words("dog/a.png", "cat/b.png", "cat/d/c.png") == (
        "3 images of 2 classes: cat (2), dog (1)"
    )
    assert words("bus/1.png", "train/2.png") == (
        "2 images of 2 classes: bus (1), train (1)"
    )
    for parts in (("train", "val"), ("TRAIN", "Test", "valid"), ("training",)):
        paths = [f"{part}/{x}/1.png" for part in parts for x in ("cat", "dog")]
        assert words(*paths) == (
            f"{len(paths)} images in {', '.join(parts)}: parts of a data set, "
            "no classes. All are taken; for the images and classes of one, "
            f"name it: {tmp_path / parts[0]}"
        )
        folder = folders.ImageFolder(tmp_path)
        assert (folder.labels, folder.class_names) == (None, ())


def test_fingerprint_is_that_of_the_source(data_dir, tmp_path):
    found = fingerprints.fingerprint("tfds:tiny_digits", data_dir=data_dir)
    assert found["source"] == "tfds:tiny_digits/1.0.0"
    again = fingerprints.fingerprint("tfds:tiny_digits", data_dir=data_dir)
    assert again == found
    path = tmp_path / "a.npz"
    path.write_bytes(b"abc")  # The example of FIPS 180-4.
    assert fingerprints.fingerprint(str(path)) == {
        "source": str(path),
        "sha256": "ba7816bf8f01cfea414140de5dae2223"
        "b00361a396177a9cb410ff61f20015ad",
    }


@pytest.mark.fault(56)
def test_fingerprint_of_a_folder_changes_with_any_file(tmp_path):
    def fingerprint():
        return fingerprints.fingerprint(folders.ImageFolder(tmp_path))["sha256"]

    (tmp_path / "a.png").write_bytes(b"one")
    (tmp_path / "b.png").write_bytes(b"two")
    before = fingerprint()
    assert fingerprint() == before
    (tmp_path / "b.png").write_bytes(b"three")
    grown = fingerprint()
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    assert len({before, grown, fingerprint()}) == 3


def test_fingerprint_of_a_small_folder_is_of_its_content_too(
    tmp_path, monkeypatch
):
    def fingerprint():
        return fingerprints.fingerprint(folders.ImageFolder(tmp_path))

    (tmp_path / "a.png").write_bytes(b"one")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    before = fingerprint()
    assert before["files"] == 1
    assert before["source"] == str(tmp_path)
    assert folders.ImageFolder(f"{tmp_path}/").source == str(tmp_path)
    (tmp_path / "a.png").write_bytes(b"eno")
    after = fingerprint()
    assert before["sha256"] == after["sha256"]
    assert before["content"] != after["content"]
    monkeypatch.setattr(fingerprints, "_MOST_READ", 2)
    assert "content" not in fingerprint()


@pytest.mark.fault(65)
def test_nothing_but_tfds_needs_tfds(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    write(tmp_path, {f"{x}/{n}.png": PNG for x in "ab" for n in range(9)})
    np.savez(tmp_path / "a.npz", images=np.zeros((9, 8, 8, 3), "uint8"))
    for name in (".", "a.npz"):
        data = recipe.Data(data=str(tmp_path / name), split="train[:90%]")
        source, _ = data.open_in_order(8)
        assert "image" in data.in_words(source)
        assert sources.own_test_split(data.data) is None
        assert fingerprints.fingerprint(source)["sha256"]


@pytest.mark.fault(64)
def test_downloads_out_of_reach_are_refused_at_once(tmp_path, monkeypatch):
    def refuse(address, patience):
        raise socket.gaierror(-2, f"{address[0]} is not known")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(tfds_builders.urllib.request, "getproxies", dict)
    builder = types.SimpleNamespace(
        data_dir=tmp_path / "mnist/3.0.1",
        data_dir_root=tmp_path,
        url_infos={"https://example.org/a.gz": None},
    )
    with pytest.raises(OSError) as info:
        tfds_builders.check_can_prepare(builder, "mnist")
    assert str(info.value) == (
        "A dataset of TFDS must be prepared already, or there must be a "
        "network to download it. Received: 'mnist', which is not in "
        f"'{tmp_path}/mnist/3.0.1', and example.org does not answer ([Errno "
        "-2] example.org is not known). Where there is a network, do: python "
        '-c "import tensorflow_datasets as tfds; '
        "tfds.builder('mnist').download_and_prepare()\", and copy the "
        "directory that it tells here, or name it in --data_dir"
    )
    write(tmp_path, {"mnist/3.0.1/dataset_info.json": b""})
    tfds_builders.check_can_prepare(builder, "mnist")


@pytest.mark.parametrize("name", ["tiny_digits/zzz", "tiny_digits:9.9.9", ""])
def test_what_tfds_cannot_open_is_refused(data_dir, name):
    with pytest.raises(ValueError, match=r"^`name` must be a dataset of Tens"):
        sources.in_words(f"tfds:{name}", data_dir=data_dir)


@pytest.mark.fault(45)
@pytest.mark.parametrize(
    ("data", "hint"),
    [("a.tar", ". Write tar:a.tar"), ("a.jpg", ""), ("zip:a", "")],
)
def test_data_of_no_known_kind_are_refused(data, hint):
    with pytest.raises(ValueError) as info:
        sources.find_source(data)
    assert str(info.value) == (
        "`data` must be an existing folder of files, PATH.npz, PATH.npy, "
        "PATH.csv, PATH.parquet, tar:PATTERN, parquet:PATTERN or "
        "tfds:NAME[/CONFIG]. "
        f"Received: data={data!r}{hint}"
    )


def test_data_to_test_on_have_options_of_their_own():
    def options(data, test_data):
        given = recipe.Data(data=data, data_dir="d", manifest="m")
        return [
            (part.data, part.data_dir, part.manifest)
            for part in given.and_test(test_data, "train[:9]")
        ]

    assert options("a", None) == [("a", "d", "m")] * 2
    assert options("a", "b") == [("a", "d", "m"), ("b", "d", None)]
    assert options("a", "tfds:b") == [("a", None, "m"), ("tfds:b", "d", None)]
    assert options("tfds:a", "b") == [("tfds:a", "d", "m"), ("b", None, None)]
    data = recipe.Data(data="a")
    assert data.and_test(None, None) == (data, None)
    assert data.and_test(None, "train[:9]")[1].split == "train[:9]"
    assert data.and_test("b", None)[1].split == "train"


def test_labels_may_be_a_list():
    images = numbered_images(4)
    (batch,) = fit_data.in_order((images, [3, 1, 0, 2]))
    np.testing.assert_array_equal(batch[1], [3, 1, 0, 2])
    with pytest.raises(ValueError, match="arrays of length 3 and 4"):
        fit_data.in_order((images, [3, 1, 0]))


def test_arrays_of_other_channels_are_refused_in_one_sentence(tmp_path):
    path = str(tmp_path / "four.npy")
    np.save(path, np.zeros((2, 8, 8, 4), "uint8"))
    with pytest.raises(ValueError) as error:
        sources.open_dataset(
            path, "train", channels=3, canvas_size=8, batch_size=2
        )
    assert str(error.value) == (
        "`channels` must be those of the images, or 1 or 3, where they have 3 "
        "or 1. Received: channels=3, and images with 4"
    )
