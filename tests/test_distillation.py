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
                "3 of 11 images to test on are among the unlabelled ones, too: "
                "their accuracy is no measure of what is new."
            )
        ]

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
            return distill(teacher, student, test=(IMAGES, LABELS))

    one, two = map(taught, (1, 2))
    assert one.accuracy == two.accuracy
    assert one.teacher_accuracy == two.teacher_accuracy
    for ours, theirs in zip(
        one.classifier.weights, two.classifier.weights, strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
