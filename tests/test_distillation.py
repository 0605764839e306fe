import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import standins
from helpers.replicas import mirrored
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import keras_simclr as simclr
import keras_simclr_cli as cli
from keras_simclr import (
    checkpoints,
    classification,
    copies,
    distillation,
    export,
    runs,
)

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


TINY = ["--epochs=1", "--batch_size=8", "--precision=float32", "--depth=10"]


@pytest.fixture
def _small(monkeypatch):
    standins.use(monkeypatch)


@pytest.fixture
def places(tmp_path):
    """Arrays, a run, and a classifier whose first class is dark."""
    images = (255 * np.repeat(IMAGES, 3, axis=-1)).astype("uint8")
    np.savez(tmp_path / "data.npz", images=images, labels=LABELS)
    encoder = standins.encoder(shape=(8, 8, 3))
    model = simclr.SimCLRModel(
        encoder, augmentation=simclr.SimCLRAugmentation(8)
    )
    model.compile()
    (tmp_path / "run").mkdir()
    model.save(tmp_path / "run" / "model.keras")
    network = keras.Sequential([encoder, keras.layers.Dense(2, "softmax")])
    network.build((None, 8, 8, 3))
    classification.write_classifier(
        model, network, tmp_path / "classifier", ["0", "1"]
    )
    return tmp_path


def command(places, teacher, *others, out="out"):
    has_start = any(x.startswith("--start_from") for x in others)
    return cli.main(
        [
            "distill",
            f"--teacher={places / teacher}",
            f"--data={places / 'data.npz'}",
            f"--output_dir={places / out}",
            *(x for x in TINY if not has_start or not x.startswith("--depth")),
            *others,
        ]
    )


@pytest.mark.usefixtures("_small", "eagerly")
class TestCommand:
    def test_a_classifier_makes_a_classifier(self, places, capsys):
        tests = f"--test_data={places / 'data.npz'}"
        assert command(places, "classifier", tests) == 0
        text = capsys.readouterr().out
        assert "To test on: 24 images of 2 classes" in text
        assert "On images to test on: accuracy " in text
        out = places / "out"
        summary = json.loads((out / "summary.json").read_text())
        assert summary["command"] == "distill"
        assert summary["teacher"]["name"] == str(places / "classifier")
        assert summary["test"].keys() == {"accuracy", "teacher_accuracy"}
        log = (out / "log.csv").read_text().splitlines()
        assert {"agreement", "loss"} < {*log[0].split(",")}
        assert classification.class_names(out / "classifier") == ("0", "1")
        model = runs.load_model(out)
        classifier = classification.load_classifier(out / "classifier")
        logits = model.projection_head(model(IMAGES.repeat(3, axis=-1)))
        np.testing.assert_allclose(
            classifier(IMAGES.repeat(3, axis=-1)),
            keras.ops.softmax(logits),
            atol=1e-5,
        )
        # Its flags are those of the command, and it is finished.
        flags = f"--flagfile={out / 'flags.txt'}"
        assert cli.main(["distill", flags]) == 1
        assert "whose run is finished" in capsys.readouterr().err
        again = places / "again"
        assert cli.main(["distill", flags, f"--output_dir={again}"]) == 0
        for ours, theirs in zip(
            runs.load_model(again).weights, model.weights, strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)

    def test_a_classifier_that_was_not_written_yet_is(
        self, places, monkeypatch
    ):
        def fail(*_):
            raise OSError("disk full")

        with monkeypatch.context() as patch:
            patch.setattr(classification, "write_classifier", fail)
            assert command(places, "classifier") == 1
        assert not (places / "out" / "classifier").exists()
        assert command(places, "classifier") == 0
        assert (places / "out/classifier/saved_model").is_dir()

    def test_a_run_goes_on_with_its_teacher_alone(self, places, monkeypatch):
        save, out = checkpoints.save_model, places / "out"

        def ctrl_c(*args):
            save(*args)
            raise KeyboardInterrupt

        longer = "--epochs=2"
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "save_model", ctrl_c)
            assert command(places, "classifier", longer) == 130
        assert not (out / "classifier").exists()
        shutil.copytree(places / "classifier", places / "kept")
        network = classification.load_classifier(places / "classifier")
        network.set_weights([x + 1 for x in network.get_weights()])
        network.save(places / "classifier" / "classifier.keras")
        assert command(places, "classifier", longer) == 1
        shutil.copytree(
            places / "kept", places / "classifier", dirs_exist_ok=True
        )
        assert command(places, "classifier", longer) == 0
        assert (out / "classifier").is_dir()

    def test_an_encoder_makes_an_encoder(self, places, capsys):
        assert command(places, "run") == 0
        out = places / "out"
        assert not (out / "classifier").exists()
        arguments = ["export", f"--run_dir={out}", "--formats=keras"]
        encoder = f"--output_dir={places / 'encoder'}"
        assert cli.main([*arguments, encoder]) == 0
        card = (places / "encoder" / "README.md").read_text()
        assert "keras-simclr distill --" in card
        digest = copies.weights_digest(runs.load_model(places / "run").encoder)
        assert f"An encoder taught by run, of the weights {digest}" in card
        start = f"--start_from={places / 'run'}"
        assert command(places, "run", start, out="gone_on") == 0
        assert (places / "gone_on" / "start.keras").is_file()
        tests = f"--test_data={places / 'data.npz'}"
        assert command(places, "run", tests, out="third") == 1
        assert "`test_data` is for a classifier" in capsys.readouterr().err

    def test_classifiers_are_exported(self, places, capsys):
        arguments = ["export", f"--model={places / 'classifier'}"]
        app = places / "app"
        formats = "--formats=keras,litert_int8"
        assert cli.main([*arguments, f"--output_dir={app}", formats]) == 0
        assert sorted(x.name for x in app.iterdir()) == [
            "class_names.json",
            "classifier.keras",
            "classifier_int8.tflite",
            "flags.txt",
        ]
        images = IMAGES.repeat(3, axis=-1)[:1]
        load = export.EXPORTS["litert_int8"].load
        found = load(app / "classifier_int8.tflite")(images)
        expected = classification.load_classifier(app)(images)
        np.testing.assert_allclose(found, expected, atol=0.02)
        hub = [f"--output_dir={places / 'hub'}", "--formats=hub"]
        assert cli.main([*arguments, *hub]) == 1
        assert "are all but hub" in capsys.readouterr().err
