import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from keras_simclr import labelled

IMAGES = np.zeros((6, 8, 8, 1), "uint8")
IMAGES += np.arange(6, dtype="uint8")[:, None, None, None]


def load(labels, class_names=()):
    return labelled.load_labelled("train", (IMAGES, labels), class_names)


@pytest.mark.parametrize(
    "labels",
    [
        np.array([1, -1, 0, -1, 2, -5]),
        np.array([1, -1, 0, -1, 2, -5], "float32"),
        np.array([[1], [-1], [0], [-1], [2], [-5]], "int8"),
    ],
)
def test_images_without_a_label_are_left_out(labels, said):
    examples = load(labels)
    assert examples["labels"].tolist() == [1, 0, 2]
    np.testing.assert_array_equal(examples["images"], IMAGES[[0, 2, 4]])
    (message,) = said.messages
    assert message == (
        "3 of 6 images of `train` are left out: their labels are negative, "
        "which means that there is none"
    )
    names = load(labels, ("a", "b", "c"))["labels"]
    assert names.tolist() == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("labels", "received"),
    [
        ([0.0, 1.0, 0.5, 1.0, 0.0, 1.0], "1 labels such as 0.5"),
        ([0.0, 1.0, np.nan, 1.0, np.nan, 1.0], "2 labels such as nan"),
        ([0.0, 1.0, np.inf, 1.0, -np.inf, 1.0], "2 labels such as inf"),
        (["a", None, "b"], "1 labels such as None"),
        (["a", np.nan, b"b"], "1 labels such as nan"),
        ([None, np.nan, None], "3 labels such as None"),
    ],
)
def test_numbers_that_are_no_classes_are_refused(labels, received):
    is_real = all(isinstance(x, float) for x in labels)
    labels = np.array(labels, "float64" if is_real else "O")
    with pytest.raises(ValueError) as error:
        labelled.known_labels("train", labels)
    assert str(error.value) == (
        "`train` must hold the class of each image: an integer or a text, and "
        f"-1 where it is not known. Received: {received}"
    )


@pytest.mark.parametrize("dtype", ["O", "S", np.dtypes.StringDType()])
def test_texts_of_all_types_are_classes(dtype):
    texts = ["a", "b"] if dtype != "S" else [b"a", b"caf\xe9"]
    labels, rows = labelled.known_labels("train", np.array(texts, dtype))
    assert labels.tolist() == ["a", "b" if dtype != "S" else r"caf\xe9"]
    assert rows.tolist() == [0, 1]


def test_lists_of_labels_are_as_good_as_arrays():
    for labels in ([2, 0, -1, 1, 0, 1], ["c", "a", "b", "b", "a", "b"]):
        expected = load(np.array(labels))["labels"].tolist()
        assert load(labels)["labels"].tolist() == expected
        both = [list(IMAGES), labels]
        found = labelled.load_labelled("train", both)
        assert found["labels"].tolist() == expected
        assert found["images"].dtype == np.uint8


def test_images_of_many_sizes_take_no_more_than_their_pixels():
    rng = np.random.default_rng(0)
    canvases = np.zeros((5, 16, 20, 3), "uint8")
    sizes = np.array([[9, 8], [8, 12], [16, 8], [10, 10], [8, 9]])
    for canvas, (height, width) in zip(canvases, sizes, strict=True):
        canvas[:height, :width] = rng.integers(1, 256, (height, width, 3))
    source = {"images": canvases, "sizes": sizes, "labels": [0, 1, -1, 1, 0]}
    source["labels"] = np.array(source["labels"])
    dataset = tf.data.Dataset.from_tensor_slices(source).batch(2)
    examples = labelled.load_labelled("train", dataset)
    kept = [0, 1, 3, 4]
    images = examples["images"]
    assert (len(images), images.shape) == (4, (4, 16, 12, 3))
    assert [x.shape[:2] for x in images] == [(9, 8), (8, 12), (10, 10), (8, 9)]
    assert all(image.base is None for image in images)
    np.testing.assert_array_equal(images, canvases[kept, :, :12])
    for rows in (slice(1, 3), np.array([3, 0]), np.array([True, False] * 2)):
        some = images[rows]
        np.testing.assert_array_equal(some, np.asarray(images)[rows])
    (batch,) = labelled.in_batches(examples)
    np.testing.assert_array_equal(batch["images"], images)
    np.testing.assert_array_equal(batch["sizes"], sizes[kept])


def test_arrays_are_joined_and_let_go():
    parts = [np.array(["a"]), np.array(["bcd", "e"])]
    joined = labelled.joined(parts)
    assert (joined.tolist(), parts) == (["a", "bcd", "e"], [])


def test_labels_in_an_array_of_objects_are_what_the_objects_are():
    def known(labels):
        found, rows = labelled.known_labels("x", np.array(labels, "O"))
        return found.tolist(), rows.tolist()

    assert known([3, -1, 4]) == ([3, 4], [0, 2])
    assert known([b"owl", b"cat"]) == (["owl", "cat"], [0, 1])
    assert known(["owl", "cat"]) == (["owl", "cat"], [0, 1])
    for wrong in ([None, None], [1, None], [1.5, 2]):
        with pytest.raises(ValueError, match="`x` must hold the class of each"):
            known(wrong)


def test_labels_need_to_be_there_and_have_their_name():
    with pytest.raises(ValueError) as error:
        load(np.full(6, -1))
    assert str(error.value) == (
        "`train` must hold labels of 0 and more. Received: 6 negative labels, "
        "which mean that there are none"
    )
    with pytest.raises(ValueError) as error:
        load(np.arange(6), ("a", "b"))
    assert str(error.value) == (
        "Labels of `train` must be places in its 2 class names. Received: the "
        "label 5"
    )
    with pytest.raises(ValueError, match="Of one-hot labels take"):
        load(np.eye(6))


@pytest.mark.parametrize("mode", ["int", "binary"])
def test_folders_of_keras_have_names_too(tmp_path, mode):
    for place, name in enumerate(("owl", "cat", "cat", "owl")):
        path = tmp_path / name / f"{place}.png"
        path.parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(IMAGES[0, ..., 0]).save(path)
    dataset = keras.utils.image_dataset_from_directory(
        tmp_path, label_mode=mode, image_size=(8, 8), shuffle=False, verbose=0
    )
    examples = labelled.load_labelled("train", dataset)
    assert examples["labels"].tolist() == ["cat", "cat", "owl", "owl"]


def test_classes_of_two_sets_are_compared():
    def compare(train, test):
        return labelled.compare_classes(np.array(train), np.array(test))

    assert compare(["a", "b"], ["b", "a"]) == []
    assert compare([3, 4, 4], [4, 3]) == []
    assert compare(["a", "b", "d", "e"], ["b", "a"]) == [
        "No image to test on is of d, e."
    ]
    (words,) = compare([0, 1], [1, 0, 2, 3, 3])
    assert words == (
        "3 of 5 images to test on are of classes without images to learn from, "
        "and count as wrong: 2, 3."
    )
    with pytest.raises(ValueError) as error:
        compare(["a", "b"], [0, 1])
    assert str(error.value) == (
        "`train` and `test` must both have names of classes, or both numbers. "
        "Received: a, b in `train` and 0, 1 in `test`. Set "
        "dataset.class_names, or pass the names themselves as labels"
    )
    with pytest.raises(ValueError) as error:
        compare([0, 1], [2] * 3)
    assert str(error.value) == (
        "`test` must hold classes of `train`. Received: 2 in `test` and 0, 1 "
        "in `train`"
    )
    assert "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ..." in compare(range(12), [11])[0]
