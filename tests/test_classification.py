import csv
import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import standins

import keras_simclr as simclr
from keras_simclr import classification, finetuning


@pytest.fixture(scope="module")
def model():
    return standins.model()


@pytest.fixture(scope="module")
def images():
    pixels, labels = standins.labelled_images()
    return (pixels * 255).astype("uint8"), labels


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(finetuning, "_FEWEST_STEPS", 2)


@pytest.mark.parametrize("best", ["linear", "finetune"])
def test_classifier_of_the_better_recipe_is_written(
    model, images, tmp_path, monkeypatch, best
):
    evaluate = classification.evaluate

    def rigged(*args, probes, **kwargs):
        assert set(probes) == {"linear", "finetune"}
        result = evaluate(*args, probes=[best], **kwargs)
        (other,) = set(probes) - {best}
        worse = {**result.rows[0], "probe": other, "accuracy": -1.0}
        return dataclasses.replace(result, rows=(worse, *result.rows, worse))

    monkeypatch.setattr(classification, "evaluate", rigged)
    out = tmp_path / "out"
    result = classification.train_classifier(
        model, images, out, class_names=("café", "dog")
    )
    assert result.recipe == best
    assert result.class_names == ("café", "dog")
    row = result.evaluation.rows[1]
    assert row["features"] == "simclr"
    assert len(row["draws"]) == 5
    assert str(result).endswith(
        f"Chosen: {best}, with a cross-validated accuracy of "
        f"{result.accuracy:.1%} ({100 * result.interval[0]:.1f} to "
        f"{100 * result.interval[1]:.1f})."
    )
    assert json.loads((out / "class_names.json").read_text()) == ["café", "dog"]
    classifier = keras.models.load_model(out / "classifier.keras")
    pixels = images[0].astype("float32") / 255
    expected = classifier.predict(pixels, verbose=0)
    module = tf.saved_model.load(out / "saved_model")
    np.testing.assert_allclose(module(pixels).numpy(), expected, atol=1e-5)
    canvas = np.pad(images[0], [(0, 0), (0, 4), (0, 6), (0, 0)])
    sizes = np.full((24, 2), 8, "int32")
    found = module.on_canvas(canvas, sizes).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    check_predictions(out, images, expected, tmp_path / "classes.csv")


def test_class_names_that_are_no_text_are_escaped(
    model, images, tmp_path, monkeypatch
):
    evaluate = classification.evaluate
    monkeypatch.setattr(
        classification,
        "evaluate",
        lambda *args, probes, **kwargs: evaluate(
            *args, probes=["linear"], **kwargs
        ),
    )
    out = tmp_path / "out"
    names = ("caf\udce9", "dog")
    classification.train_classifier(model, images, out, class_names=names)
    stored = json.loads((out / "class_names.json").read_text("utf-8"))
    assert stored == ["caf\\xe9", "dog"]


def test_features_of_a_shuffled_dataset_keep_their_labels(
    model, images, tmp_path, monkeypatch
):
    evaluate, probe = classification.evaluate, classification.linear_probe
    known = simclr.extract_features(model, images[0])

    def checked(features, labels, *args, **kwargs):
        distances = np.abs(features[:, None] - known).sum(axis=-1)
        expected = images[1][distances.argmin(axis=1)]
        np.testing.assert_array_equal(labels, expected)
        return probe(features, labels, *args, **kwargs)

    def rigged(*args, probes, **kwargs):
        return evaluate(*args, probes=["linear"], **kwargs)

    monkeypatch.setattr(classification, "evaluate", rigged)
    monkeypatch.setattr(classification, "linear_probe", checked)
    dataset = simclr.dataset_from_arrays(*images, batch_size=8)
    classification.train_classifier(model, dataset, tmp_path / "out")


def check_predictions(out, images, expected, path):
    dataset = tf.data.Dataset.from_tensor_slices(images[0]).batch(7)
    assert classification.write_predictions(out, dataset, path) == 24
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [str(n) for n in range(24)]
    names = np.array(["café", "dog"])[expected.argmax(axis=1)]
    assert [row["class"] for row in rows] == names.tolist()
    found = [float(row["probability"]) for row in rows]
    np.testing.assert_allclose(found, expected.max(axis=1), atol=1e-4)
    colored = tf.data.Dataset.from_tensors(np.zeros((2, 8, 8, 3), "uint8"))
    with pytest.raises(ValueError) as error:
        classification.write_predictions(out, colored, path.with_stem("b"))
    assert str(error.value) == (
        "The encoder takes images with 1 channels. Received: images of shape "
        "(2, 8, 8, 3). Convert them, for example images[..., :3] for RGBA or "
        "tf.image.grayscale_to_rgb(images)."
    )


def test_predictions_are_no_formulas_and_damage_is_said(
    model, images, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    monkeypatch.setattr(classification, "_RECIPES", ("linear",))
    names = ("=1+1", "@dog")
    classification.train_classifier(model, images, out, class_names=names)
    dataset = tf.data.Dataset.from_tensor_slices(images[0][:2]).batch(2)

    def predict(name):
        path = tmp_path / name
        classification.write_predictions(out, dataset, path, ["=a", "b"])
        return path.read_text("utf-8").splitlines()

    first, *rows = predict("a.csv")
    assert first == "path,class,probability"
    assert [row.split(",")[0] for row in rows] == ["./=a", "b"]
    assert {row.split(",")[1] for row in rows} <= {"'=1+1", "'@dog"}
    (out / "class_names.json").write_text('["dog"]')
    with pytest.raises(ValueError, match="Received: 1 names for 2 in '"):
        predict("b.csv")
    (out / "class_names.json").write_text('["a", "b"]')
    damaged = out / "saved_model" / "saved_model.pb"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    with pytest.raises(ValueError, match="must hold its whole saved_model"):
        predict("c.csv")


def test_predictions_are_named_by_the_places_of_their_images(
    model, images, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    monkeypatch.setattr(classification, "_RECIPES", ("linear",))
    classification.train_classifier(model, images, out)
    element = {"images": images[0][:6], "places": np.array([5, 0, 3, 1, 4, 9])}
    dataset = tf.data.Dataset.from_tensor_slices(element).batch(4)
    names = [f"{letter}.png" for letter in "abcdefghij"]
    for number, given in enumerate((names, iter(names), None)):
        path = tmp_path / f"classes{number}.csv"
        classification.write_predictions(out, dataset, path, given)
        with path.open(encoding="utf-8") as file:
            found = [row["path"] for row in csv.DictReader(file)]
        places = element["places"].tolist()
        assert found == [names[x] if given else str(x) for x in places]


def test_classes_have_the_names_of_the_dataset(
    model, images, tmp_path, monkeypatch
):
    monkeypatch.setattr(classification, "_RECIPES", ("linear",))
    dataset = tf.data.Dataset.from_tensor_slices(images).batch(6)
    dataset.class_names = ["dog", "cat"]
    result = classification.train_classifier(model, dataset, tmp_path / "out")
    assert result.class_names == ("cat", "dog")
    plain = classification.train_classifier(model, images, tmp_path / "plain")
    ours, theirs = (
        keras.models.load_model(tmp_path / name / "classifier.keras")
        for name in ("out", "plain")
    )
    pixels = images[0].astype("float32") / 255
    np.testing.assert_allclose(
        ours.predict(pixels, verbose=0)[:, ::-1],
        theirs.predict(pixels, verbose=0),
        atol=1e-2,
    )
    assert plain.class_names == ("0", "1")
    with pytest.raises(ValueError) as error:
        classification.train_classifier(
            model, dataset, tmp_path / "no", class_names=("kitten", "dog")
        )
    assert str(error.value) == (
        "`class_names` must name all classes of `train`. Received: class_names="
        "['kitten', 'dog'] for classes ['dog', 'cat']. Leave them out, or "
        "rename the classes: dataset.class_names = [...]"
    )


def test_what_is_no_classifier_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        classification.write_predictions(tmp_path, None, tmp_path / "x.csv")
    assert str(error.value) == (
        "`model` must be a directory with class_names.json, written by "
        f"`finetune`. Received: {str(tmp_path)!r}"
    )


@pytest.fixture
def tiny(model):
    """A classifier that is not trained."""
    return keras.Sequential(
        [
            keras.Input(model.encoder.input_shape[1:]),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(2),
            keras.layers.Rescaling(1e30),
        ]
    )


@pytest.fixture
def dataset(images):
    return simclr.dataset_from_arrays(
        images[0], batch_size=8, shuffle=False, drop_remainder=False
    )


def test_weights_that_are_not_finite_are_refused(
    model, tiny, dataset, tmp_path
):
    path, other = tmp_path / "classifier", tmp_path / "other"
    classification.write_classifier(model, tiny, path, ["cat", "dog"])
    tiny.weights[1].assign([np.nan, 0.0])
    tiny.save(path / "classifier.keras")
    with pytest.raises(ValueError, match="Weights must be finite"):
        classification.write_predictions(path, dataset, tmp_path / "x.csv")
    with pytest.raises(ValueError, match="Weights must be finite"):
        classification.write_classifier(model, tiny, other, ["cat", "dog"])
    assert not other.exists()


def test_predictions_that_are_not_finite_are_refused(
    model, tiny, dataset, tmp_path
):
    tiny.weights[1].assign([1e30, 1e30])  # Finite, and yet too much.
    classification.write_classifier(model, tiny, tmp_path / "c", ["cat", "dog"])
    names = iter(f"{number}.png" for number in range(24))
    with pytest.raises(ValueError) as error:
        classification.write_predictions(
            tmp_path / "c", dataset, tmp_path / "x.csv", names
        )
    assert str(error.value).startswith(
        "Probabilities must be finite. Received: NaN or infinity for 8 of 8 "
        "images, such as '0.png'. "
    )


def test_predictions_overwrite_nothing(model, tiny, dataset, tmp_path):
    classification.write_classifier(model, tiny, tmp_path / "c", ["cat", "dog"])
    table = tmp_path / "table.csv"
    table.write_text("mine")
    with pytest.raises(FileExistsError, match="`path` must be a new file"):
        classification.write_predictions(tmp_path / "c", dataset, table)
    assert table.read_text() == "mine"
