import numpy as np
import pytest
from helpers import standins
from scipy import stats

import keras_simclr as simclr
from keras_simclr import evaluation, finetuning, sampling
from keras_simclr.evaluation import Evaluation


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
    words = []
    result = simclr.evaluate(
        model,
        images,
        images,
        labels=(1, 4, "50%", "all"),
        draws=2,
        encoders={"other": model.encoder},
        report=words.append,
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
    assert len(words) == 1
    assert words[0].startswith("This will take about ")
    lines = str(result).splitlines()
    assert lines[0].split()[:3] == ["accuracy,", "%", "±"]
    assert lines[11] == "24 labelled images to learn from, 24 to test on."
    for line in ("linear: logistic regression, ", "finetune: from a logistic "):
        assert sum(x.startswith(line) for x in lines) == 1
    assert [gain["labels"] for gain in result.gains] == [1, 4, "50%", "all"]
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())


def test_time_is_told_before_it_is_spent(model, images, monkeypatch):
    monkeypatch.setattr(evaluation, "_FEW_IMAGES", 2)
    counts, told = [], []

    def extract(functions, elements):
        elements = list(elements)
        counts.extend(len(element["images"]) for element in elements)
        return evaluation_extract(functions, elements)

    evaluation_extract = evaluation.extract
    monkeypatch.setattr(evaluation, "extract", extract)
    simclr.evaluate(
        model,
        images,
        images,
        probes=["knn"],
        labels=["all"],
        report=lambda _: told.extend(counts),
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


def test_splits_are_stratified_and_keep_duplicates_together():
    labels = np.repeat([0, 1], [60, 20])
    groups = np.arange(80)
    groups[60:70] = 60
    pool = pool_of(labels, groups, draws=4)
    for train, test in pool.splits:
        assert not set(train) & set(test)
        assert len(train) + len(test) == 80
        assert not set(groups[train]) & set(groups[test])
        assert 8 <= np.sum(labels[test] == 0) <= 13
    assert len({tuple(test) for _, test in pool.splits}) == 4
    assert pool.correction == len(pool.splits[0][1]) / len(pool.splits[0][0])


def pool_of(labels, groups, draws):
    import tensorflow as tf

    examples = {
        "images": np.zeros((len(labels), 4, 4, 1), "uint8"),
        "labels": labels,
        "groups": groups,
    }
    dataset = tf.data.Dataset.from_tensor_slices(examples).batch(16)
    return evaluation._Pool(dataset, None, draws, seed=0, class_names=())


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


@pytest.mark.parametrize("amount", [3, "30%", "1%", "all"])
def test_labelled_sets_hold_as_many_of_each_class(amount):
    labels = np.repeat(np.arange(5), [10, 20, 10, 10, 50])
    first, second = (
        sampling.draw_labelled(labels, amount, np.random.default_rng(seed))
        for seed in (0, 1)
    )
    counts = {3: [3] * 5, "30%": [3, 6, 3, 3, 15], "1%": [1] * 5}
    expected = counts.get(amount, [10, 20, 10, 10, 50])
    for places in (first, second):
        _, found = np.unique(labels[places], return_counts=True)
        assert found.tolist() == expected
        assert len(set(places)) == sum(expected)
    assert (set(first) != set(second)) or amount == "all"


@pytest.mark.parametrize("correction", [0.0, 0.25])
def test_interval_of_several_draws_is_that_of_student(correction):
    values = np.array([0.7, 0.9, 0.85, 0.6])
    low, high = sampling.interval([np.array([x]) for x in values], correction)
    scale = values.std(ddof=1) * np.sqrt(1 / 4 + correction)
    expected = stats.t.interval(0.95, 3, loc=values.mean(), scale=scale)
    np.testing.assert_allclose((low, high), expected, rtol=1e-12)


def test_interval_of_one_draw_is_over_its_test_examples():
    right = np.arange(400) % 4 > 0
    low, high = sampling.interval([right])
    error = np.sqrt(0.75 * 0.25 / 399)
    np.testing.assert_allclose(
        (low, high), (0.75 - 1.959964 * error, 0.75 + 1.959964 * error), 1e-6
    )


def test_intervals_cover_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = [
        low <= 0.0 <= high
        for low, high in (
            sampling.interval(list(rng.normal(size=(5, 1))))
            for _ in range(2000)
        )
    ]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.015)


def test_intervals_cover_the_truth_where_draws_share_test_images():
    """Images have a difficulty of their own, which all draws meet."""
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(1000):
        chances = rng.choice([0.5, 1.0], size=300, p=[0.2, 0.8])
        low, high = sampling.interval(list(rng.random((5, 300)) < chances))
        hits.append(low <= 0.9 <= high)
    # A little wide: what the draws differ by is partly that of the images.
    assert 0.94 < np.mean(hits) < 0.99


def test_gain_is_the_paired_difference_of_the_best():
    right = {
        ("simclr", "knn", 1): [np.array([1, 1, 0, 1]), np.array([1, 1, 1, 1])],
        ("simclr", "linear", 1): [np.zeros(4), np.zeros(4)],
        ("untrained", "knn", 1): [np.zeros(4), np.zeros(4)],
        ("pixels", "knn", 1): [np.array([1, 0, 0, 1]), np.array([1, 0, 1, 1])],
        ("pixels", "knn", 2): [np.ones(4), np.ones(4)],
    }
    right = {key: [x.astype(bool) for x in y] for key, y in right.items()}
    gain = evaluation._gain(1, right, 0.0)
    # Both draws gain the same image of four.
    half = 1.959964 * np.sqrt(0.25 / 4)
    assert gain.pop("interval") == pytest.approx((0.25 - half, 0.25 + half))
    assert gain == {
        "labels": 1,
        "best": "knn",
        "baseline": "pixels, knn",
        "gain": 0.25,
    }


def test_verdict_says_what_was_worth_it():
    gain = {"best": "knn", "baseline": "pixels, linear"}
    result = Evaluation(
        rows=(),
        gains=(
            {**gain, "labels": 10, "gain": 0.074, "interval": (0.05, 0.098)},
            {
                **gain,
                "labels": "all",
                "gain": 0.001,
                "interval": (-0.01, 0.012),
            },
        ),
        left_out=(),
        settings={},
    )
    assert result.verdict == (
        "Worth it: +7.4 points (+5.0 to +9.8) with 10 labels per class, knn "
        "against pixels, linear. Not shown to be worth it: +0.1 points (-1.0 "
        "to +1.2) with all labels, knn against pixels, linear."
    )


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
        evaluation._joined(parts)


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


def test_canvases_of_different_sizes_are_joined():
    parts = [
        {
            "images": np.ones((2, side, side + 1, 1)),
            "sizes": np.full((2, 2), side),
        }
        for side in (4, 6)
    ]
    joined = evaluation._joined(parts)
    assert joined["images"].shape == (4, 6, 7, 1)
    assert joined["images"][:2].sum() == 2 * 4 * 5
