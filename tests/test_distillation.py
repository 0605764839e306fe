import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import standins
from helpers.replicas import mirrored
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import keras_simclr as simclr
from keras_simclr import distillation

QUICK = simclr.recipe.Recipe(epochs=1, batch_size=8)
IMAGES, LABELS = standins.labelled_images()


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).reshape(-1, 8, 8, 1).astype("float32")
    order = np.random.default_rng(0).permutation(len(images))
    return images[order], labels[order]


def flat(*layers, shape=(8, 8, 1)):
    return keras.Sequential(
        [keras.Input(shape), keras.layers.Flatten(), *layers]
    )


def test_a_linear_teacher_is_matched_on_digits(digits):
    """By a student that never sees a label."""
    (train, test), (labels, truth) = (
        np.split(x, [1400]) for x in (digits[0], digits[1])
    )
    known = LogisticRegression(max_iter=200).fit(
        train[:300].reshape(300, -1), labels[:300]
    )
    teacher = flat(keras.layers.Dense(10, "softmax"))
    teacher.layers[-1].set_weights([known.coef_.T, known.intercept_])
    keras.utils.set_random_seed(0)
    result = distillation.distill(
        teacher,
        train,
        (test, truth),
        student=flat(),
        recipe=simclr.recipe.Recipe(
            epochs=40, batch_size=70, smallest_crop=1.0, flip_rate=0.0
        ),
    )
    theirs = known.score(test.reshape(len(test), -1), truth)
    assert result.teacher_accuracy == pytest.approx(theirs)
    assert 0.85 < theirs < 0.97
    assert result.accuracy >= theirs - 0.01
    assert result.steps == 800
    found = result.classifier.predict(test, verbose=0).argmax(axis=1)
    np.testing.assert_array_equal(found, result.predictions)
    assert str(result) == (
        f"distilled: accuracy {result.accuracy:.2%}, of the teacher "
        f"{theirs:.2%} (800 steps)"
    )


def test_an_encoder_learns_what_is_alike_to_its_teacher(digits):
    """Its representations tell digits apart as the teacher's, not as its own.

    The teacher sees the left half of images alone, blind to the rest.
    """
    images, labels = digits[0][:600], digits[1][:600]
    shown = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Cropping2D(((0, 0), (0, 4))),
            keras.layers.Flatten(),
        ]
    )
    keras.utils.set_random_seed(0)
    student = flat(keras.layers.Dense(16))
    recipe = simclr.recipe.Recipe(
        epochs=20,
        batch_size=60,
        smallest_crop=1.0,
        flip_rate=0.0,
        color_rate=0.0,
        grayscale_rate=0.0,
        blur_rate=0.0,
    )
    told = []
    model = distillation.distill_encoder(
        shown,
        images,
        student=student,
        recipe=recipe,
        progress=lambda *x: told.append(x),
    )
    assert told == [(60 * (x + 1), 60 * 200) for x in range(200)]
    assert type(model) is simclr.SimCLRModel
    assert model.encoder is student
    kernel = student.layers[-1].kernel.numpy().reshape(8, 8, 16)
    left, right = (np.abs(x).mean() for x in np.split(kernel, 2, axis=1))
    assert left > 1.5 * right
    probe = simclr.knn_probe(
        *((simclr.extract_features(model, images), labels) * 2)
    )
    assert probe.accuracy > 0.8


@pytest.fixture
def teacher():
    keras.utils.set_random_seed(0)
    return flat(keras.layers.Dense(2, "softmax"))


def distill(teacher, student=None, images=IMAGES, **kwargs):
    kwargs = {"recipe": QUICK, **kwargs}
    student = flat() if student is None else student
    return distillation.distill(teacher, images, student=student, **kwargs)


LOGITS = flat(keras.layers.Dense(2, kernel_initializer="ones"))
REFUSED = {
    "logits": (
        lambda teacher: distill(LOGITS),
        (
            "`teacher` must return probabilities of two classes or more, which "
            "sum to 1. Received: 2 numbers from "
        ),
    ),
    "a cure for logits": (
        lambda teacher: distill(LOGITS),
        "keras.Sequential([teacher, keras.layers.Softmax()])",
    ),
    "one output": (
        lambda teacher: distill(flat(keras.layers.Dense(1, "sigmoid"))),
        "two classes or more, which sum to 1. Received: 1 numbers",
    ),
    "other channels": (
        lambda teacher: distill(teacher, flat(shape=(8, 8, 3))),
        "a teacher of inputs of shape (None, 8, 8, 1), a student of (None, 8",
    ),
    "a student that ends in classes": (
        lambda teacher: distill(teacher, flat(keras.layers.Softmax())),
        "An encoder must end in a representation, not in classes. Received: ",
    ),
    "no temperature": (
        lambda teacher: distill(teacher, temperature=0.0),
        "`temperature` must be a positive number. Received: temperature=0.0",
    ),
    "a weight of no labels": (
        lambda teacher: distill(teacher, label_weight=0.5),
        (
            "`label_weight` must be left out without `labelled`. Received: "
            "label_weight=0.5"
        ),
    ),
    "a weight that is none": (
        lambda teacher: distill(
            teacher, labelled=(IMAGES, LABELS), label_weight=1.5
        ),
        "`label_weight` must be a probability between 0 and 1. Received: ",
    ),
    "labels of others": (
        lambda teacher: distill(teacher, labelled=(IMAGES, LABELS + 1)),
        (
            "`labelled` must hold classes of the teacher alone. Received: 2 in "
            "`labelled`, 0, 1 of the teacher."
        ),
    ),
    "labelled images of other channels": (
        lambda teacher: distill(
            teacher, labelled=(IMAGES.repeat(3, axis=-1), LABELS)
        ),
        "The encoder takes images with 1 channels. Received: ",
    ),
    "labelled images without labels": (
        lambda teacher: distill(teacher, labelled=IMAGES),
        "`labelled` must hold labels: elements (images, labels). Received: ",
    ),
    "names of others": (
        lambda teacher: distill(teacher, classes=("cat", "dog", "elk")),
        (
            "`classes` must name each output of the teacher. Received: 3 "
            "classes for 2 outputs"
        ),
    ),
    "tests without names": (
        lambda teacher: distill(
            teacher, test=(IMAGES, LABELS), classes=("cat", "dog")
        ),
        (
            "`test` must hold classes of the teacher. Received: 0, 1 in "
            "`test`, cat, dog of the teacher. `classes` says which these are"
        ),
    ),
    "tests of others": (
        lambda teacher: distill(teacher, test=(IMAGES, LABELS + 7)),
        (
            "`test` must hold classes of the teacher. Received: 7, 8 in "
            "`test`, 0, 1 of the teacher."
        ),
    ),
    "a dataset without end": (
        lambda teacher: distill(
            teacher, images=tf.data.Dataset.from_tensors(IMAGES).repeat()
        ),
        "The dataset must end. Received: an infinite one.",
    ),
    "a dataset of any length": (
        lambda teacher: distill(
            teacher,
            images=tf.data.Dataset.from_tensors(IMAGES).filter(lambda _: True),
        ),
        "`unlabelled` must tell how many batches an epoch has",
    ),
    "an encoder that is none": (
        lambda teacher: distillation.distill_encoder(
            teacher, IMAGES, student=flat()
        ),
        "An encoder must end in a representation, not in classes. Received: ",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_bad_input_is_refused_before_training(kind, teacher):
    call, message = REFUSED[kind]
    with pytest.raises(ValueError) as error:
        call(teacher)
    assert message in str(error.value)


@pytest.mark.parametrize("wrong", ["keras.Layer", 5, None])
def test_teachers_are_keras_models(wrong):
    wrong = keras.layers.Dense(2) if wrong == "keras.Layer" else wrong
    with pytest.raises(TypeError, match="`teacher` must be a Keras model that"):
        distill(wrong)


@pytest.mark.usefixtures("eagerly")
class TestEagerly:
    """What need not be traced."""

    def test_images_to_test_on_are_looked_for(self, teacher, said):
        others = np.random.default_rng(9).random((8, 8, 8, 1), "float32")
        tests = np.concatenate([others, IMAGES[:3]]), np.zeros(11, int)
        distill(teacher, test=tests)
        assert said.messages == [
            (
                "3 of 11 images to test on are among those to learn from, too: "
                "their accuracy is no measure of what is new."
            )
        ]
        said.clear()
        distill(teacher, test=tests, labelled=(others[:2], np.array([0, 1])))
        assert said.messages[0].startswith("5 of 11 images to test on are amo")

    def test_classes_without_a_teacher_are_wrong(self, teacher, said):
        others = np.random.default_rng(9).random((4, 8, 8, 1), "float32")
        result = distill(teacher, test=(others, np.array([0, 5, 5, 5])))
        assert result.accuracy <= 0.25
        assert said.messages == [
            (
                "3 of 4 images to test on are of classes that the teacher does "
                "not know, and count as wrong: 5."
            )
        ]

    @pytest.mark.parametrize(
        ("student", "expected"), [((), 0.1), ((keras.layers.Dense(3),), 1.0)]
    )
    def test_self_training_has_a_low_temperature(
        self, teacher, student, expected, monkeypatch
    ):
        found = []
        monkeypatch.setattr(
            distillation, "_train", lambda model, *_: found.append(model.loss)
        )
        monkeypatch.setattr(distillation, "Distillation", lambda **_: None)
        model = flat(*student)
        distill(teacher, model)
        distill(teacher, flat(), temperature=0.7)
        assert [x.temperature for x in found] == [expected, 0.7]

    def test_a_classifier_sees_no_changes_of_colour(self, teacher, monkeypatch):
        shown = []
        monkeypatch.setattr(
            distillation, "_train", lambda *x: shown.append(x[0].augmentation)
        )
        distill(teacher)
        model = simclr.SimCLRModel(flat())
        distill(teacher, model)
        distillation.distill_encoder(
            flat(), IMAGES, student=flat(), recipe=QUICK
        )
        rates = [(x.color.rate, x.blur.rate, x.crop.scale[0]) for x in shown]
        assert rates == [(0, 0, 0.2), (0, 0, 0.08), (0.8, 0, 0.2)]


class _Batches:
    """What a model was trained on, of which training is left out."""

    def __init__(self, monkeypatch):
        monkeypatch.setattr(
            distillation, "_train", lambda _, x, *__: setattr(self, "data", x)
        )
        monkeypatch.setattr(distillation, "Distillation", lambda **_: None)


def test_labelled_images_ride_along_with_each_batch(teacher, monkeypatch):
    """All of them equally often, behind the others."""
    seen = _Batches(monkeypatch)
    recipe = simclr.recipe.Recipe(epochs=1, batch_size=12)
    labelled = IMAGES[:3], np.array(["b", "a", "b"])
    others = np.zeros((48, 8, 8, 1), "float32")
    distill(
        teacher, None, others, labelled=labelled, recipe=recipe, classes="ab"
    )
    batches = [*seen.data.as_numpy_iterator()]
    assert [x.keys() for x in batches] == [{"images", "groups"}] * 4
    groups = np.array([x["groups"] for x in batches])
    assert groups.shape == (4, 14)  # An eighth of 12, and no half image.
    assert (groups[:, :12] == -1).all()
    shown = {0: [], 1: []}
    for batch in batches:
        assert not batch["images"][:12].any()
        for image, place in zip(
            batch["images"][12:], batch["groups"][12:], strict=True
        ):
            (found,) = np.flatnonzero((IMAGES[:3] == image).all((1, 2, 3)))
            shown[place].append(found)
    assert {*shown[0]} == {1}
    assert {*shown[1]} == {0, 2}
    counts = np.bincount(shown[0] + shown[1])
    assert max(counts) - min(counts) <= 1


def test_images_of_other_sizes_share_a_canvas(teacher, monkeypatch):
    seen = _Batches(monkeypatch)
    student = simclr.SimCLRModel(
        flat(), augmentation=simclr.SimCLRAugmentation(8)
    )
    images = np.full((16, 16, 10, 1), 255, "uint8")
    sizes = np.tile([[12, 9]], (16, 1))
    unlabelled = tf.data.Dataset.from_tensors(
        {"images": images, "sizes": sizes}
    )
    distill(
        teacher, student, unlabelled, labelled=(IMAGES.repeat(2, 2), LABELS)
    )
    (spec,) = [seen.data.element_spec["images"]]
    assert spec.shape == (17, 16, 16, 1)
    assert spec.dtype == tf.float32
    (batch,) = seen.data.as_numpy_iterator()
    assert batch["sizes"].tolist() == [[12, 9]] * 16 + [[8, 16]]
    assert batch["images"][:16, :, :10].min() == 1.0
    np.testing.assert_array_equal(batch["images"][:, :, 10:][:16], 0)
    assert not batch["images"][16, 8:].any()
    image = batch["images"][16:, :8]
    assert (image == IMAGES.repeat(2, 2)).all((1, 2, 3)).sum() == 1


def test_a_label_is_right_where_the_teacher_is_wrong():
    """A teacher that takes bright for dark, and half of the labels."""
    wrong = flat(keras.layers.Dense(2, "softmax"))
    bright = IMAGES.mean((1, 2, 3)).mean()
    kernel = np.full((64, 1), 20 / 64) * [[1.0, -1.0]]
    wrong.layers[-1].set_weights([kernel, 20 * bright * np.array([-1.0, 1.0])])
    keras.utils.set_random_seed(1)
    result = distill(
        wrong,
        test=(IMAGES[12:], LABELS[12:]),
        labelled=(IMAGES[:12], LABELS[:12]),
        label_weight=0.9,
        temperature=1.0,
        recipe=simclr.recipe.Recipe(
            epochs=60, batch_size=24, smallest_crop=1.0, flip_rate=0.0
        ),
    )
    assert result.teacher_accuracy < 0.2
    assert result.accuracy > 0.6


def test_devices_share_the_work(teacher, said):
    """A teacher from outside of the strategy, with dropout, and a test."""
    quiet = [*teacher.layers, keras.layers.Dropout(0.5)]
    teacher = keras.Sequential([keras.Input((8, 8, 1)), *quiet])

    def taught(replicas):
        keras.utils.set_random_seed(1)
        with mirrored(replicas).scope():
            student = simclr.SimCLRModel(
                flat(), augmentation=simclr.RandomFlip()
            )
            return distill(
                teacher,
                student,
                test=(IMAGES, LABELS),
                labelled=(IMAGES[:5], LABELS[:5]),
                recipe=simclr.recipe.Recipe(epochs=2, batch_size=12),
            )

    one, two = map(taught, (1, 2))
    assert one.accuracy == two.accuracy
    assert one.teacher_accuracy == two.teacher_accuracy
    for ours, theirs in zip(
        one.classifier.weights, two.classifier.weights, strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
