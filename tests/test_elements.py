import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.training import Same

import keras_simclr as simclr
from keras_simclr import elements

IMAGES, LABELS = tf.zeros((4, 8, 8, 3)), tf.zeros(4)


@pytest.mark.fault(43)
@pytest.mark.parametrize(
    ("element", "names"),
    [
        (IMAGES, ["images"]),
        ((IMAGES,), ["images"]),
        ((IMAGES, None), ["images"]),
        ((IMAGES, LABELS), ["images", "labels"]),
        ([IMAGES, LABELS], ["images", "labels"]),
        ({"images": IMAGES}, ["images"]),
        ({"labels": LABELS, "images": IMAGES}, ["images", "labels"]),
        ({"view_1": IMAGES, "view_2": IMAGES}, ["view_1", "view_2"]),
        (tf.TensorSpec((None, 8, 8, 3)), ["images"]),
        ((tf.TensorSpec((4, 9)), tf.TensorSpec((4, 2))), ["images", "labels"]),
    ],
)
def test_parts_of_an_element_get_their_names(element, names):
    assert sorted(elements.unpack(element)) == names


def test_parts_of_an_element_are_not_confused():
    parts = elements.unpack((IMAGES, LABELS))
    assert parts["images"] is IMAGES
    assert parts["labels"] is LABELS


def test_bare_pair_of_views_is_refused():
    with pytest.raises(ValueError) as error:
        elements.unpack((IMAGES, IMAGES))
    assert str(error.value) == (
        "A dataset element of two parts is (images, labels). "
        "Received: two parts of shape (4, 8, 8, 3). If they are two views, "
        "name them: dataset = dataset.map(lambda a, b: "
        "{'view_1': a, 'view_2': b})"
    )


@pytest.mark.fault(43)
@pytest.mark.parametrize("parts", [(), (IMAGES, LABELS, LABELS)])
def test_element_of_another_length_is_refused(parts):
    with pytest.raises(ValueError) as error:
        elements.unpack(parts)
    assert str(error.value) == (
        "A dataset element must be `images`, `(images, labels)` or a "
        f"dictionary. Received: a tuple of {len(parts)} parts"
    )


@pytest.mark.fault(43)
def test_unknown_keys_are_refused():
    with pytest.raises(ValueError) as error:
        elements.unpack({"image": IMAGES, "label": LABELS})
    assert str(error.value) == (
        "The keys of a dataset element are images, labels, view_1, view_2, "
        "sizes, groups, places. Received: unknown 'image', 'label'"
    )


@pytest.mark.parametrize(
    ("keys", "received"),
    [
        (["view_1"], "view_1"),
        (["labels", "view_2"], "labels, view_2"),
        (["images", "view_1", "view_2"], "images, view_1, view_2"),
        (["images", "view_1"], "images, view_1"),
        (["labels"], "labels"),
        ([], "nothing"),
    ],
)
def test_element_needs_images_or_both_views(keys, received):
    with pytest.raises(ValueError) as error:
        elements.unpack(dict.fromkeys(keys, IMAGES))
    assert str(error.value) == (
        "A dataset element needs either `images`, or `view_1` and `view_2`. "
        f"Received: {received}"
    )


@pytest.mark.fault(37, 43)
@pytest.mark.parametrize("name", ["images", "view_2"])
@pytest.mark.parametrize(
    "kind", [tf.RaggedTensor.from_tensor, tf.sparse.from_dense]
)
def test_images_that_are_not_dense_are_refused(kind, name):
    """Labels may be of any kind."""
    images, labels = (kind(tf.ones(shape)) for shape in ((4, 8, 8, 3), (4, 2)))
    right = {"images": IMAGES, "view_1": IMAGES, "view_2": IMAGES}
    names = ["images"] if name == "images" else ["view_1", "view_2"]
    right = {"labels": labels, **{x: right[x] for x in names}}
    assert elements.unpack(right)["labels"] is labels
    wrong = {**right, name: images}
    for part in (wrong, tf.data.Dataset.from_tensors(wrong).element_spec):
        with pytest.raises(ValueError) as error:
            elements.unpack(part)
        assert str(error.value) == (
            f"`{name}` must be a dense tensor. Received: "
            f"{type(images).__name__}. Resize images of many sizes to one, or "
            "lay them on canvases of one size, and tell their `sizes`"
        )


def failure(batch, in_unit_range=True):
    """Message of the failing check, compiled as in a training step."""

    @tf.function(input_signature=[tf.TensorSpec(None, batch.dtype)])
    def checked(batch):
        checks = elements.value_checks(
            batch, "images", in_unit_range=in_unit_range
        )
        with tf.control_dependencies(checks):
            return tf.constant(0)

    try:
        checked(batch)
    except tf.errors.InvalidArgumentError as error:
        return error.message.split("assertion failed: ")[1].split("\n")[0]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8"])
def test_values_in_range_pass(dtype):
    assert failure(np.ones((4, 3), dtype)) is None


def test_rounding_errors_of_interpolation_pass():
    assert failure(np.array([[-4e-4], [1 + 4e-4]], "float32")) is None


@pytest.mark.fault(1, 2)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("in_unit_range", [False, True])
def test_rows_with_values_that_are_not_finite_are_named(value, in_unit_range):
    batch = np.zeros((6, 2, 2, 1), "float32")
    batch[[1, 4], 0, 1] = value
    assert failure(batch, in_unit_range).startswith(
        "[Values of `images` must be finite. Received: NaN or infinity] "
        "[in rows] [1 4] [of the batch]"
    )


@pytest.mark.fault(28, 29)
def test_rows_with_values_out_of_range_are_named():
    batch = np.zeros((6, 2), "float32")
    batch[3] = [-1.0, 255.0]
    assert failure(batch).startswith(
        "[Float values of `images` must lie in [0, 1]. If they are 0 to 255, "
        "add: dataset = dataset.map(lambda images, *labels: (images / 255.0, "
        "*labels)). If they are no pixels, as in spectrograms, scale all by "
        "one range: (images - low) / (high - low). Received: values from] "
        "[-1] [to] [255] [in rows] [3] [of the batch]"
    )


def test_checks_run_at_once_in_eager_mode():
    batch = tf.constant([[2.0]])
    with pytest.raises(tf.errors.InvalidArgumentError):
        elements.value_checks(batch, "images", in_unit_range=True)
    assert elements.value_checks(batch, "images", in_unit_range=False) == [None]


def test_range_does_not_matter_where_it_is_not_asked_for():
    batch = np.array([[-7.0], [300.0]], "float32")
    assert failure(batch, in_unit_range=False) is None


def tiny_model(shape=(8, 8, 3), augmentation=None, **kwargs):
    encoder = keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Flatten(),
            keras.layers.Dense(6, activation="tanh"),
        ]
    )
    if augmentation is None:
        augmentation = Same()
    model = simclr.SimCLRModel(encoder, augmentation=augmentation, **kwargs)
    model.compile("sgd")
    return model


def random_images(*shape):
    return np.random.default_rng(0).random(shape, "float32")


DOORS = {
    "predict": lambda model, x: model.predict(x, batch_size=2, verbose=0),
    "predict_on_batch": lambda model, x: model.predict_on_batch(x),
    "model": lambda model, x: model(x),
    "evaluation_view": lambda model, x: model.evaluation_view(x),
    "views": lambda model, x: model.views(x),
    "evaluate": lambda model, x: model.evaluate(x, batch_size=2, verbose=0),
    "train_on_batch": lambda model, x: model.train_on_batch(x),
    "test_on_batch": lambda model, x: model.test_on_batch(x),
    "extract_features": simclr.extract_features,
}


@pytest.fixture(scope="module")
def graph_model():
    return tiny_model()


@pytest.mark.fault(1, 28, 30)
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (200, "float32", "Float values of `images` must lie in [0, 1]"),
        (np.nan, "float32", "Values of `images` must be finite"),
        (200, "int32", "Images must be uint8, or float with values in [0, 1]"),
        (True, "bool", "Images must be uint8, or float with values in [0, 1]"),
    ],
)
def test_values_are_checked_wherever_images_come_in(
    graph_model, door, value, dtype, message
):
    images = np.full((4, 8, 8, 3), value, dtype)
    with pytest.raises(ValueError, match=re.escape(message)):
        DOORS[door](graph_model, images)
    assert np.isfinite(graph_model.predict(np.ones_like(images, "uint8"))).all()


def test_values_are_checked_in_graphs_of_the_user(graph_model):
    images = tf.fill((2, 8, 8, 3), 200.0)
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"must lie in \[0, 1\]"
    ):
        tf.function(graph_model)(images)
    usable = images / 255.0
    np.testing.assert_allclose(
        tf.function(graph_model, jit_compile=True)(usable),
        graph_model(usable),
        atol=1e-5,
    )


def test_rows_of_a_table_need_only_be_finite():
    model = tiny_model((5,))
    rows = np.full((4, 5), -300, "float32")
    assert model.predict(rows, verbose=0).shape == (4, 6)
    assert model(rows.astype("int32")).shape == (4, 6)
    rows[2, 1] = np.inf
    with pytest.raises(ValueError, match=r"must be finite.*in rows 2"):
        model(rows)


def test_sizes_are_checked_without_training():
    crop = simclr.RandomResizedCrop(8, 8)
    model = tiny_model(augmentation=crop)
    images = random_images(2, 16, 16, 3)
    with pytest.raises(ValueError, match="`sizes` must lie between 1 and"):
        model(images, sizes=np.array([[16, 17], [4, 4]]))


def test_representations_have_gradients_with_respect_to_images(graph_model):
    images = tf.constant(random_images(2, 8, 8, 3))
    along = tf.constant(random_images(2, 8, 8, 3)[::-1]) - 0.5

    def total(images):
        return tf.reduce_sum(graph_model(images))

    images = tf.clip_by_value(images, 0.1, 0.9)
    with tf.GradientTape() as tape:
        tape.watch(images)
        value = total(images)
    found = tf.reduce_sum(tape.gradient(value, images) * along)
    difference = total(images + 1e-2 * along) - total(images - 1e-2 * along)
    np.testing.assert_allclose(found, difference / 2e-2, rtol=0.02)
