import numpy as np
import pytest
import tensorflow as tf
from helpers import pictures

import keras_simclr as simclr
from keras_simclr import duplicates
from keras_simclr.folders import ImageFolder
from keras_simclr.image_sets import ImageSet

pytestmark = pytest.mark.usefixtures("eagerly")

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), "uint8")


@pytest.fixture(scope="module")
def model():
    encoder = simclr.ResNet(
        10, width_multiplier=0.25, stem="cifar", input_shape=(8, 8, 3)
    )
    return simclr.SimCLRModel(encoder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten pictures in sub-folders, a copy of one, and one that is broken."""
    files = {
        f"{'ab'[n % 2]}/{n}.png": pictures.encoded(
            pictures.picture(n, 20 + n, 16), "PNG"
        )
        for n in range(10)
    }
    files["b/copy.png"] = files["a/0.png"]
    files["b/broken.png"] = files["b/1.png"][:100]
    return pictures.write(tmp_path_factory.mktemp("folder"), files)


def dataset_of(folder):
    return simclr.dataset_from_directory(
        ImageFolder(folder, unreadable_limit=0.5),
        batch_size=4,
        canvas_size=32,
        shuffle=False,
        drop_remainder=False,
    )


@pytest.mark.parametrize("kind", ["array", "pair", "dataset"])
def test_images_are_seen_once_and_again(model, kind):
    labels = np.arange(30) % 3
    images = {
        "array": IMAGES,
        "pair": (IMAGES, labels),
        "dataset": tf.data.Dataset.from_tensor_slices(IMAGES).batch(7),
    }[kind]
    found = ImageSet("images", images)
    found.see(model, most=100)
    expected = simclr.extract_features(model, IMAGES)
    np.testing.assert_allclose(found.features, expected, atol=1e-5)
    assert found.names == [str(x) for x in range(30)]
    assert found.compared.tolist() == [*range(30)]
    if kind == "pair":
        assert found.labels.tolist() == labels.tolist()
    else:
        assert found.labels is None
    again = dict(found.again([29, 3, 3]))
    assert sorted(again) == [3, 29]
    for row, image in again.items():
        np.testing.assert_array_equal(image, IMAGES[row])


def test_files_have_names_classes_and_no_canvas(model, folder):
    found = ImageSet("images", dataset_of(folder))
    found.see(model, most=100)
    assert len(found.names) == len(found.features) == 11
    assert "b/broken.png" not in found.names
    assert found.labels.tolist() == [name[0] for name in found.names]
    for row, image in found.again(range(11)):
        name = found.names[row]
        number = 0 if "copy" in name else int(name[2:-4])
        picture = pictures.picture(number, 20 + number, 16)
        np.testing.assert_array_equal(image, np.asarray(picture))
    groups = duplicates.group(found.keys, found.is_varied)
    same = [found.names.index(x) for x in ("a/0.png", "b/copy.png")]
    assert groups[same[0]] == groups[same[1]]
    assert len(np.unique(groups)) == 10


def test_of_many_some_are_compared(model):
    found = ImageSet("images", IMAGES)
    found.see(model, most=9, seed=3)
    assert len(found.features) == 30
    assert len(found.compared) == len(found.keys) == 9
    assert found.compared.tolist() == sorted(set(found.compared.tolist()))
    other = ImageSet("images", IMAGES)
    other.see(model, most=9, seed=4)
    assert other.compared.tolist() != found.compared.tolist()


@pytest.mark.parametrize("most", [29, 30, 31])
def test_as_many_are_compared_as_there_are(model, most):
    batches = tf.data.Dataset.from_tensor_slices(IMAGES).batch(7)  # 35 or less.
    found = ImageSet("images", batches)
    found.see(model, most=most)
    assert len(np.unique(found.compared)) == min(most, 30)
    rows = {row: image for row, image in found.again(found.compared)}
    assert all(np.array_equal(rows[x], IMAGES[x]) for x in rows)


def test_first_are_compared_where_nobody_knows_how_many_there_are(model):
    dataset = tf.data.Dataset.from_tensor_slices(IMAGES).batch(7)
    found = ImageSet("images", dataset.filter(lambda x: True))
    found.see(model, most=9)
    assert found.compared.tolist() == [*range(9)]


def test_images_that_change_between_two_looks_are_noticed(model):
    dataset = tf.data.Dataset.from_tensor_slices(IMAGES)
    found = ImageSet("images", dataset.shuffle(30, seed=1).batch(7))
    found.see(model, most=30)
    with pytest.raises(ValueError) as error:
        list(found.again(range(30)))
    assert "`images` must be the same images in the same order" in str(
        error.value
    )


def test_file_that_changes_between_two_looks_is_noticed(model, tmp_path):
    files = {
        f"{n}.png": pictures.encoded(pictures.picture(n), "PNG")
        for n in range(4)
    }
    pictures.write(tmp_path, files)
    found = ImageSet("images", dataset_of(tmp_path))
    found.see(model, most=30)
    (tmp_path / "2.png").write_bytes(files["1.png"])
    with pytest.raises(ValueError) as error:
        list(found.again([0, 2]))
    assert "another '2.png' than before" in str(error.value)


def test_labels_that_are_missing_or_many(model):
    labels = np.array([0, -1, 2] * 10)
    found = ImageSet("images", (IMAGES, labels))
    found.see(model, most=30)
    assert found.labels[:3].tolist() == [0, None, 2]
    found = ImageSet("images", (IMAGES, np.zeros((30, 5))))
    found.see(model, most=30)  # Whatever they say, it can be done without.
    assert found.labels is None


@pytest.mark.parametrize("labels", [None, np.zeros((30, 5))])
def test_labels_that_are_needed_must_be_there(labels):
    images = IMAGES if labels is None else (IMAGES, labels)
    with pytest.raises(ValueError) as error:
        ImageSet("labelled", images, needs_labels=True)
    assert "`labelled` must hold" in str(error.value)


def test_tables_are_no_images():
    with pytest.raises(ValueError) as error:
        ImageSet("images", np.zeros((5, 3)))
    assert "`images` must be images of shape" in str(error.value)
