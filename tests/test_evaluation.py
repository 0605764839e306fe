import dataclasses
import itertools
import types

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from helpers import standins

import keras_simclr as simclr
from keras_simclr import (
    classification,
    copies,
    duplicates,
    evaluation,
    features,
    finetuning,
    labelled,
    probes,
    sampling,
)
from keras_simclr.evaluation import Evaluation

pytestmark = pytest.mark.usefixtures("eagerly")


@pytest.fixture(scope="module")
def model():
    return standins.model()


@pytest.fixture(scope="module")
def images():
    return standins.labelled_images()


@pytest.fixture
def _quick(monkeypatch):
    monkeypatch.setattr(finetuning, "_FEWEST_STEPS", 2)


@pytest.mark.usefixtures("_quick")
def test_evaluation_has_a_row_for_every_combination(model, images):
    before = [variable.numpy() for variable in model.variables]
    words, progress = [], []
    result = simclr.evaluate(
        model,
        images,
        images,
        labels=(1, 4, "50%", "all"),
        draws=2,
        thorough=True,
        encoders={"other": model.encoder},
        report=words.append,
        progress=lambda *numbers: progress.append(numbers),
    )
    rows = {(r["features"], r["probe"], r["labels"]): r for r in result.rows}
    kinds = [
        (features, probe)
        for features in ("pixels", "untrained", "other", "simclr")
        for probe in ("linear", "knn")
    ] + [("untrained", "scratch"), ("simclr", "finetune")]
    assert set(rows) == {
        (*kind, labels) for kind in kinds for labels in (1, 4, "50%", "all")
    }
    for row in rows.values():
        assert len(row["draws"]) == (1 if row["labels"] == "all" else 2)
        assert row["accuracy"] == pytest.approx(np.mean(row["draws"]))
        assert row["interval"][0] <= row["accuracy"] <= row["interval"][1]
    # The same network under another name.
    for probe in ("linear", "knn"):
        ours, other = (rows[x, probe, 4] for x in ("simclr", "other"))
        assert ours["draws"] == other["draws"]
    assert words[:2] == [
        "Reading the images of `train`.",
        "Reading the images of `test`.",
    ]
    assert words[2] == "Looking for duplicates among 48 images."
    (place,) = (i for i, x in enumerate(words) if x.startswith("This will "))
    assert len(words) - place == 2 + len(result.rows)
    for row, text in zip(result.rows, words[place + 2 :], strict=True):
        assert f": {row['features']}, {row['probe']}, " in text
        assert (" left: " in text) is (row is not result.rows[-1])
        assert text.endswith(f": {row['accuracy']:.1%}.")
    check_told(progress)
    lines = str(result).splitlines()
    assert lines[0].split()[:4] == ["accuracy,", "%", "(95", "%)"]
    assert lines[11] == "24 labelled images to learn from, 24 to test on."
    for line in ("linear: logistic regression, ", "finetune: from a logistic "):
        assert sum(x.startswith(line) for x in lines) == 1
    assert [gain["labels"] for gain in result.gains] == [1, 4, "50%", "all"]
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())


def check_told(progress):
    """Each piece of work is told in order, to its end."""
    for (done, total), after in itertools.pairwise([*progress, (0, 0)]):
        assert 0 <= done <= total
        assert after[1] == total or done == total
        assert after[0] >= done or done == total


def classifier(model, directory, names):
    network = keras.Sequential([model.encoder, keras.layers.Dense(2)])
    network = keras.Sequential([network, keras.layers.Softmax()])
    network.build((None, 8, 8, 1))
    classification.write_classifier(model, network, directory, names)
    return classification.load_classifier(directory)


@pytest.mark.parametrize("names", [None, ("dark", "bright")])
def test_trained_classifiers_are_tested_as_they_are(
    names, model, images, tmp_path
):
    path = tmp_path / "teacher"
    order = ["1", "0"] if names is None else ["elk", *names][1:]
    network = classifier(model, path, order)
    words = []
    result = simclr.evaluate(
        model,
        images,
        images,
        probes=["knn"],
        labels=[1, "all"],
        draws=2,
        encoders={"teacher": path},
        class_names=names or (),
        report=words.append,
    )
    (row,) = [x for x in result.rows if x["features"] == "teacher"]
    found = network.predict(images[0], verbose=0).argmax(axis=1)
    found = found if names else 1 - found
    assert row["accuracy"] == pytest.approx(np.mean(found == images[1]))
    assert (row["probe"], row["labels"]) == ("classifier", "own")
    assert row["std"] is None
    assert 0 <= row["interval"][0] <= row["accuracy"] <= row["interval"][1]
    assert [x["labels"] for x in result.gains] == [1, "all"]
    assert words[-1].startswith("1 of 1: teacher, classifier, own: ")
    costs = result.summary["evaluation"]["costs"]["networks"]
    assert [x["features"] for x in costs] == ["simclr", "teacher"]
    lines = str(result).splitlines()
    assert sum(x.startswith("teacher, classifier ") for x in lines) == 1
    assert "own" not in lines[0]
    (place,) = (i for i, x in enumerate(lines) if x.startswith("to ship "))
    assert [x.split("  ")[0] for x in lines[place + 1 :][:3]] == [
        "untrained, knn",
        "simclr, knn",
        "teacher, classifier",
    ]


def test_classifiers_of_others_are_refused(model, images, tmp_path):
    path = tmp_path / "teacher"
    classifier(model, path, ["0", "cat"])

    def message(test):
        with pytest.raises(ValueError) as error:
            simclr.evaluate(model, images, test, encoders={"teacher": path})
        return str(error.value)

    assert message(None) == (
        "Classifiers are tested on images that they have not learnt from. "
        "Received: teacher without images to test on. Give some: --test_data "
        "or --test_split (test=...)"
    )
    assert message(images) == (
        "A classifier must know all classes to test on. Received: 1 in `test`, "
        "0, cat of 'teacher'. Leave it out of `encoders`, or their images out "
        "of `test`"
    )


def test_defaults_are_in_proportion(model, images):
    result = simclr.evaluate(model, images, images, baselines=False)
    assert {row["probe"] for row in result.rows} == {"linear", "knn"}
    assert [row["labels"] for row in result.rows[:3]] == [1, 10, "all"]
    assert "thorough" not in str(result)


@pytest.mark.usefixtures("_quick")
def test_thorough_is_all_of_it(model, images):
    run, seen = probes.KINDS["linear"].run, []
    kind = dataclasses.replace(
        probes.KINDS["linear"],
        run=lambda *arrays, quick, **options: [
            seen.append(quick),
            run(*arrays, quick=quick, **options),
        ][1],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(probes.KINDS, "linear", kind)
        for thorough in (False, True):
            result = simclr.evaluate(
                model,
                images,
                images,
                labels=["all"] if not thorough else None,
                draws=2,
                thorough=thorough,
                baselines=False,
            )
            assert {*seen} == {not thorough}
            seen.clear()
    assert {row["probe"] for row in result.rows} == {
        "linear",
        "knn",
        "finetune",
    }
    amounts = dict.fromkeys(row["labels"] for row in result.rows)
    assert [*amounts] == [1, 5, 10, "10%", "all"]
    assert result.settings["thorough"] is True


def test_time_is_told_before_it_is_spent(model, images, monkeypatch):
    monkeypatch.setattr(features, "FEW_IMAGES", 2)
    counts, told = [], []

    def extract(functions, elements):
        elements = list(elements)
        counts.extend(len(element["images"]) for element in elements)
        return features_extract(functions, elements)

    features_extract = features.extract
    monkeypatch.setattr(features, "extract", extract)
    simclr.evaluate(
        model,
        images,
        images,
        probes=["knn"],
        labels=["all"],
        report=lambda text: "about" in text and told.extend(counts),
    )
    assert set(told) == {2}
    assert counts == [*told, 48]


@pytest.mark.usefixtures("_quick")
def test_evaluation_repeats_exactly(model, images):
    first, second = (
        simclr.evaluate(model, images, images, labels=(4,), draws=2, seed=3)
        for _ in range(2)
    )
    assert (first.rows, first.gains) == (second.rows, second.gains)


def test_duplicates_in_a_dataset_are_not_divided():
    groups = np.arange(40) // 4
    examples = {
        "images": np.zeros((40, 8, 8, 1), "uint8"),
        "labels": groups % 2,
        "groups": groups,
    }
    dataset = tf.data.Dataset.from_tensor_slices(examples).batch(16)
    load = labelled.load_labelled
    _, splits = evaluation._load(dataset, None, 2, 0, load, print)
    for split in splits:
        assert not set(groups[split.train]) & set(groups[split.test])


def test_what_labels_cannot_fill_is_left_out_by_name(model, images):
    result = simclr.evaluate(
        model,
        images,
        probes=["knn"],
        labels=(5, 50, "1%", "all"),
        draws=3,
        class_names=("lace", "linen"),
    )
    assert {row["labels"] for row in result.rows} == {5, "all"}
    assert result.left_out == (
        "50 per class, class lace has 9 to learn from",
        "1%, 19 labels, 2 classes",
    )
    text = str(result)
    assert "Left out: 1%, 19 labels, 2 classes.\n" in text
    assert (
        "No test set: 3 random splits of 24 images, 19 to learn from, 5 to "
        "test on.\n"
    ) in text


def test_gain_is_the_paired_difference_of_the_best():
    targets = (np.ones(4), np.ones(4))
    one, two = (sampling.Job(amount, (), targets) for amount in (1, 2))
    nothing = (np.zeros(4), np.zeros(4))
    found = (np.array([1, 1, 0, 1]), np.array([1, 1, 1, 1]))
    of_pixels = (np.array([1, 0, 0, 1]), np.array([1, 0, 1, 1]))
    results = [
        evaluation.Result("simclr", "knn", one, found),
        evaluation.Result("simclr", "linear", one, nothing),
        evaluation.Result("untrained", "knn", one, nothing),
        evaluation.Result("pixels", "knn", one, of_pixels),
        evaluation.Result("pixels", "knn", two, targets),
    ]
    gain = evaluation._gain(one, results, 0.0)
    # Both draws gain the same image of four; chosen of two probes, and two.
    image = [np.array([0.0, 0.0, 0.0, 1.0])] * 2
    expected = sampling.gain_interval(image, [np.zeros(4)] * 2, choices=(2, 2))
    assert gain.pop("interval") == expected
    assert gain == {
        "labels": 1,
        "best": "knn",
        "baseline": "pixels, knn",
        "gain": 0.25,
    }


def verdict_of(found, baselines, targets):
    """Of what was found by probes on SimCLR's representation, and others."""
    job = sampling.Job("all", (), targets)
    results = [
        evaluation.Result(name, str(probe), job, predictions)
        for name, each in (("simclr", found), ("pixels", baselines))
        for probe, predictions in enumerate(each)
    ]
    gain = evaluation._gain(job, results, 0.0)
    return Evaluation((), (gain,), (), {}).verdict.startswith("Worth it")


@pytest.mark.parametrize(
    ("more", "is_worth"), [(3, False), (5, False), (6, True)]
)
@pytest.mark.parametrize("draws", [1, 3])
def test_few_images_are_worth_what_an_exact_test_says(more, is_worth, draws):
    targets = np.ones(10)
    found = np.ones(10)
    others = np.arange(10) >= more
    verdict = verdict_of(
        [[found] * draws], [[others] * draws], [targets] * draws
    )
    assert verdict is is_worth


@pytest.mark.parametrize(("draws", "images"), [(1, 100), (1, 400), (5, 100)])
def test_the_best_of_equals_is_seldom_called_worth_it(draws, images):
    rng = np.random.default_rng(0)
    targets = [np.ones(images)] * draws
    count, worth = 300, 0
    for _ in range(count):
        rates = rng.beta(3.0, 1.0, images)  # Some images are hard for all.
        contenders = rng.random((4, draws, images)) < rates
        worth += verdict_of(contenders[:3], contenders[3:], targets)
    # Without the correction for the choice of three it is up to 6.6 %.
    assert worth / count <= 0.03


def test_what_is_better_is_called_worth_it():
    rng = np.random.default_rng(0)
    targets = [np.ones(400)] * 5
    worth = [
        verdict_of(
            rng.random((3, 5, 400)) < 0.9,
            rng.random((2, 5, 400)) < 0.85,
            targets,
        )
        for _ in range(40)
    ]
    assert np.mean(worth) > 0.6


def test_verdict_says_what_was_worth_it():
    gains = [
        {
            "labels": labels,
            "best": "knn",
            "baseline": "a.npz, linear",
            "gain": gain,
            "interval": (gain - 0.02, gain + 0.03),
        }
        for labels, gain in (
            (1, 0.0),
            (10, 0.074),
            ("5%", -0.05),
            ("all", 0.01),
        )
    ]
    assert Evaluation((), tuple(gains), (), {}).verdict == (
        "Worth it: use simclr, knn, with 10 labels per class: own pretraining "
        "adds +7.4 points (+5.4 to +10.4) to a.npz, linear. Not worth it: use "
        "a.npz, linear, with 5% of the labels: own pretraining adds -5.0 points"
        " (-7.0 to -2.0) to it, by simclr, knn. Not shown to be worth it: use "
        "a.npz, linear, with 1 label per class: own pretraining adds +0.0 "
        "points (-2.0 to +3.0) to it, by simclr, knn; use simclr, knn, with all"
        " labels: own pretraining adds +1.0 points (-1.0 to +4.0) to a.npz, "
        "linear."
    )


def test_verdict_says_whether_going_on_was_worth_it(model, images):
    start = model.encoder
    result = simclr.evaluate(
        model,
        images,
        probes=["knn", "linear"],
        labels=[5],
        draws=2,
        encoders={"start": start, "again": start},
    )
    (gain,) = result.summary["evaluation"]["over_start"]
    assert gain["baseline"].startswith("start, ")
    assert (gain["gain"], gain["labels"]) == (0.0, 5)  # It is the same one.
    low, high = (100 * x for x in gain["interval"])
    assert result.verdict.endswith(
        f" Going on from the start adds +0.0 points ({low:+.1f} to {high:+.1f}"
        ") with 5 labels per class."
    )


def test_start_without_a_row_is_not_in_the_verdict(model, images, monkeypatch):
    """Fine-tuning is of the model alone."""
    tuner = types.SimpleNamespace(
        fit=lambda *_, **__: None,
        predict=lambda test: test["labels"],
    )
    monkeypatch.setattr(finetuning, "Tuner", lambda *_, **__: tuner)
    result = simclr.evaluate(
        model,
        images,
        probes=["finetune"],
        labels=[5],
        draws=2,
        encoders={"start": model.encoder},
    )
    assert "over_start" not in result.settings
    assert "the start" not in result.verdict


def test_encoders_that_would_have_no_row_are_refused(model):
    """At once: nothing is read."""
    with pytest.raises(ValueError) as error:
        simclr.evaluate(
            model, None, probes=["finetune"], encoders={"other": "absent.keras"}
        )
    assert str(error.value) == (
        "`encoders` are compared by the probes linear and knn. Received: "
        "probes=['finetune']. Add one, or leave out `encoders`"
    )


def test_encoders_of_any_size_see_images_in_that_of_the_model(tmp_path):
    """And one encoder has one digest, whatever it comes in."""
    norm = keras.layers.BatchNormalization()
    encoder = standins.encoder(norm, shape=(None, None, 1))
    model = standins.model()
    encoder.set_weights(model.encoder.get_weights())
    encoder.save(tmp_path / "any.keras")
    result = simclr.evaluate(
        model,
        standins.labelled_images(),
        probes=["knn"],
        labels=[2],
        draws=2,
        encoders={"any": tmp_path / "any.keras", "start": model},
    )
    draws = {row["features"]: row["draws"] for row in result.rows}
    assert draws["any"] == draws["start"] == draws["simclr"]
    digest = copies.weights_digest(model.encoder)
    assert result.settings["encoders"] == {"any": digest, "start": digest}


@pytest.mark.parametrize("wrong", [0, "some", "0%", "100%", 2.5, True])
def test_unknown_amounts_are_refused(model, images, wrong):
    with pytest.raises(ValueError) as error:
        simclr.evaluate(model, images, images, labels=(wrong,))
    assert str(error.value) == (
        "`labels` must be positive integers (per class), shares such as '1%' "
        f"and 'all'. Received: labels with {wrong!r}"
    )


def test_numbers_of_labels_count_once(model, images):
    options = {"probes": ["knn"], "baselines": False, "draws": 2}
    once, twice = (
        simclr.evaluate(model, images, images, labels=labels, **options)
        for labels in ((3,), (3, 3.0))
    )
    assert once.rows == twice.rows


def test_pixels_and_floats_are_the_same_images(model, images):
    pixels = np.round(images[0] * 255).astype("uint8")
    sets = [(x, images[1]) for x in (pixels, pixels / np.float32(255))]
    options = {"probes": ["linear"], "labels": ("all",), "baselines": False}
    alike, mixed = (
        simclr.evaluate(model, sets[1], test, **options) for test in sets
    )
    assert alike.rows == mixed.rows


def test_wrong_probes_names_and_numbers_are_refused(model, images):
    def message(**options):
        with pytest.raises(ValueError) as error:
            simclr.evaluate(model, images, images, **options)
        return str(error.value)

    assert message(probes=[]) == (
        "`probes` must be one of 'finetune', 'knn', 'linear'. Received: "
        "probes=[]"
    )
    assert message(seed=-1) == (
        "`seed` must be an integer of at least 0. Received: seed=-1"
    )
    assert message(encoders={"pixels": model.encoder}) == (
        "`encoders` must have names other than 'pixels', 'untrained' and "
        "'simclr', which the table has already. Received: {'pixels'}"
    )
    assert message(labels=(99,)) == (
        "`labels` must hold a number that `train` can fill. Received: 99 per "
        "class, class 0 has 12 to learn from"
    )


def test_canvases_and_whole_images_are_not_joined():
    parts = [
        {"images": np.zeros((2, 4, 4, 1))},
        {"images": np.zeros((2, 4, 4, 1)), "sizes": np.full((2, 2), 4)},
    ]
    with pytest.raises(ValueError, match="must both lie on canvases"):
        labelled.end_to_end(*parts)


def test_images_of_two_shapes_are_not_joined():
    train, test = (np.zeros((4, side, side, 1), "uint8") for side in (8, 9))
    with pytest.raises(ValueError) as error:
        labelled.end_to_end({"images": train}, {"images": test})
    assert str(error.value) == (
        "`train` and `test` must hold images of one shape, or of `sizes` on "
        "canvases. Received: images of shape (8, 8, 1) in `train` and "
        "(9, 9, 1) in `test`. Resize one of them"
    )


def test_class_names_that_are_no_text_are_escaped(model, images):
    result = simclr.evaluate(
        model,
        images,
        probes=["knn"],
        labels=(5, 50),
        draws=2,
        class_names=("caf\udce9", "linen"),
    )
    assert result.left_out == (
        "50 per class, class caf\\xe9 has 9 to learn from",
    )


def with_names(images, labels, names):
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(10)
    dataset.class_names = names
    return dataset


def grey_folder(directory, names, shift=0):
    """A folder with pictures of a shade for each class."""
    shades = {"cat": 30, "dog": 90, "fox": 150, "owl": 210}
    rng = np.random.default_rng(shift)
    for name in names:
        (directory / name).mkdir(parents=True)
        for number in range(6):
            noise = rng.integers(0, 20, (10, 12, 1))
            pixels = (shades[name] + noise).repeat(3, -1).astype("uint8")
            PIL.Image.fromarray(pixels).save(directory / name / f"{number}.png")
    return simclr.dataset_from_directory(
        directory, batch_size=5, shuffle=False, drop_remainder=False
    )


@pytest.mark.parametrize(
    ("others", "accuracy", "remarks"),
    [
        ("cat dog fox owl", 1.0, []),
        ("cat fox owl", 1.0, ["No image to test on is of dog."]),
        ("owl fox", 1.0, ["No image to test on is of cat, dog."]),
    ],
)
def test_classes_of_folders_are_compared_by_name(
    tmp_path, others, accuracy, remarks, said
):
    encoder = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.GlobalAveragePooling2D()]
    )
    crop = simclr.RandomResizedCrop(8, 8)
    model = simclr.SimCLRModel(encoder, augmentation=crop)
    train = grey_folder(tmp_path / "train", ["cat", "dog", "fox", "owl"])
    test = grey_folder(tmp_path / "test", others.split(), shift=1)
    options = {"probes": ["linear"], "labels": ["all"], "baselines": False}
    result = simclr.evaluate(model, train, test, **options)
    assert result.rows[0]["accuracy"] == accuracy
    assert said.messages == result.settings["remarks"] == remarks
    assert all(remark in str(result) for remark in remarks)
    # The other way round, images of unknown classes cannot be right.
    result = simclr.evaluate(model, test, train, **options)
    share = len(others.split()) / 4
    assert result.rows[0]["accuracy"] == share
    if share < 1:
        assert "count as wrong: " in str(result)


def test_names_and_numbers_of_classes_are_not_compared(model, images):
    named = with_names(*images, ["lace", "linen"])
    for train, test in ((named, images), (images, named)):
        with pytest.raises(ValueError, match="must both have names of classes"):
            simclr.evaluate(model, train, test)
    result = simclr.evaluate(
        model, named, images, class_names=["lace", "linen"], **QUICK
    )
    assert result.settings["test_examples"] == 24


def test_images_without_a_label_are_no_class(model, images):
    labels = np.where(np.arange(24) < 8, -1, images[1])
    few = images[0][8:], images[1][8:]
    expected = simclr.evaluate(model, few, images, **QUICK)
    found = simclr.evaluate(model, (images[0], labels), images, **QUICK)
    assert found.rows == expected.rows
    with pytest.raises(ValueError, match="`train` must hold at least two cl"):
        simclr.evaluate(model, (images[0], images[1] - 1), images)


QUICK = {"probes": ["knn"], "labels": ["all"], "draws": 2, "baselines": False}


def test_random_pictures_that_are_there_twice_teach_nothing(said):
    """Random labels: the truth is 50 %, and with leaks 90 % and more."""
    rng = np.random.default_rng(0)
    order = rng.permutation(np.tile(np.arange(60), 2))
    images = rng.integers(0, 256, (60, 8, 8, 1), "uint8")[order]
    labels = rng.permutation(np.arange(60) % 2)[order]
    network = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
    options = {**QUICK, "probes": ["linear", "knn"], "draws": 8}
    result = simclr.evaluate(network, (images, labels), **options)
    for row in result.rows:
        assert abs(row["accuracy"] - 0.5) < 0.2
    (remark,) = result.settings["remarks"]
    assert remark == (
        "60 of 120 images are duplicates of others, from which they are not "
        "divided."
    )
    assert said.messages == [remark]
    parts = [
        (images[rows], labels[rows]) for rows in (slice(80), slice(80, 120))
    ]
    result = simclr.evaluate(network, *parts, **options)
    (remark,) = result.settings["remarks"]
    shared = np.isin(order[80:], order[:80]).sum()
    assert remark == (
        f"{shared} of 40 images to test on are duplicates of images to learn "
        "from: this raises the accuracy."
    )


def test_unknown_duplicates_are_said_to_be(model, images, monkeypatch, said):
    monkeypatch.setattr(duplicates, "_MOST_IN_MEMORY", 23)
    simclr.evaluate(model, images, **QUICK)
    (message,) = said.messages
    assert message == (
        "Near duplicates unknown: only equal images were looked for among 24"
    )


def test_groups_of_two_sources_are_not_taken_for_each_other():
    sets = [
        {
            "images": np.random.default_rng(seed).random((6, 8, 8, 1)),
            "labels": np.arange(6) % 2,
            "groups": np.arange(6) // 2,
            "places": np.arange(6),
        }
        for seed in (0, 1)
    ]
    datasets = [tf.data.Dataset.from_tensors(each) for each in sets]
    load = labelled.load_labelled
    examples, _ = evaluation._load(*datasets, 2, 0, load, print)
    assert len(np.unique(examples["groups"])) == 12
    assert "places" not in examples


def test_missing_labels_are_refused(model, images):
    with pytest.raises(ValueError) as error:
        simclr.evaluate(model, images[0], images)
    assert str(error.value) == (
        "`train` must hold labels: elements (images, labels). Received: "
        "images only"
    )


def test_single_images_of_a_class_cannot_be_split(model, images):
    labels = np.array([7] + [8] * 23)
    with pytest.raises(ValueError) as error:
        simclr.evaluate(model, (images[0], labels))
    assert str(error.value) == (
        "Without `test`, every class needs at least two images that are no "
        "duplicates. Received: 1 of class 7"
    )


@pytest.mark.parametrize("other", [np.uint8(51), np.float32(0.2)])
def test_images_of_many_sizes_are_joined_without_their_canvases(other):
    labels = np.arange(2)
    parts = [
        {
            "images": np.full((2, side, side + 1, 1), value, value.dtype),
            "sizes": np.full((2, 2), side),
        }
        for side, value in ((4, np.uint8(51)), (6, other))
    ]
    train, test = (
        labelled.load_labelled("x", {**part, "labels": labels})
        for part in parts
    )
    joined = labelled.end_to_end(train, test)
    images = joined["images"]
    assert (images.shape, images.dtype) == ((4, 6, 6, 1), other.dtype)
    assert [image.shape for image in images] == [(4, 4, 1)] * 2 + [
        (6, 6, 1)
    ] * 2
    np.testing.assert_allclose(images[0], other, rtol=1e-6)
    np.testing.assert_array_equal(joined["labels"], [0, 1, 0, 1])


def test_untrained_encoder_has_seen_images_to_learn_from_only(monkeypatch):
    """It is the baseline, and batch norm alone may not make it worse."""
    keras.utils.set_random_seed(0)
    norm = keras.layers.BatchNormalization()
    model = simclr.SimCLRModel(standins.encoder(norm))
    images, labels = standins.labelled_images()
    copies_made = []
    copy_of = evaluation.untrained_copy

    def watched(*args):
        copies_made.append(copy_of(*args))
        return copies_made[-1]

    monkeypatch.setattr(evaluation, "untrained_copy", watched)
    results = [
        simclr.evaluate(
            model,
            (images, labels),
            (test_images, labels),
            probes=["knn"],
            labels=["all"],
        )
        for test_images in (images, images / 2)
    ]
    first, second = (copy.encoder.layers[1] for copy in copies_made)
    assert not np.allclose(first.moving_variance, 1.0)
    np.testing.assert_array_equal(first.moving_mean, second.moving_mean)
    np.testing.assert_array_equal(norm.moving_mean, np.zeros(6))
    assert {row["features"] for row in results[0].rows} >= {"untrained"}


def test_result_names_the_weights_and_the_data_it_describes(model, images):
    options = {"probes": ["knn"], "labels": [4], "draws": 2}
    other = standins.encoder()
    first = simclr.evaluate(model, images, encoders={"other": other}, **options)
    found = first.summary["evaluation"]
    assert found["weights"] == copies.weights_digest(model)
    assert found["encoders"] == {"other": copies.weights_digest(other)}
    again = simclr.evaluate(model, images, **options)
    assert again.settings["data_digest"] == found["data_digest"]
    changed = images[0].copy()
    changed[3, 0, 0, 0] += 0.01
    for data in ((changed, images[1]), (images[0], images[1][::-1])):
        result = simclr.evaluate(model, data, **options)
        assert result.settings["data_digest"] != found["data_digest"]
        assert result.settings["weights"] == found["weights"]


@pytest.mark.parametrize("shape", [(8,), (None, 8, 1), (8, 8, 3)])
def test_encoders_that_cannot_be_compared_are_refused_unread(
    monkeypatch, shape
):
    monkeypatch.delattr(labelled, "checked_elements")
    model = simclr.SimCLRModel(
        standins.encoder(shape=(8, 8, 2)), augmentation=simclr.RandomFlip()
    )
    other = keras.Sequential([keras.Input(shape), keras.layers.ReLU()])
    images = np.zeros((4, 8, 8, 2)), np.arange(4) % 2
    with pytest.raises(ValueError) as error:
        simclr.evaluate(model, images, encoders={"other": other})
    text = str(error.value)
    if shape == (8, 8, 3):
        assert text.startswith(
            "The encoder 'other' takes images with 3 channels. Received: "
            "images of shape (None, 8, 8, 2)."
        )
    else:
        assert text.startswith("`encoders` must take images of a size of their")
        assert text.endswith(f"'other' with inputs of shape {(None, *shape)}")
