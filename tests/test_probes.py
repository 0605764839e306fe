import json

import numpy as np
import pytest

import keras_simclr as simclr
from benchmarks.recipes import quick_probe
from keras_simclr import probes


@pytest.fixture(scope="module")
def blobs():
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    features = rng.normal(size=(90, 5)) + 2 * labels[:, None]
    return features, labels


def knn_oracle(train, train_labels, test, k, temperature):
    predictions = []
    for row in test:
        cosines = [
            float(row @ other / np.linalg.norm(row) / np.linalg.norm(other))
            for other in train
        ]
        votes = {}
        for place in sorted(range(len(train)), key=lambda i: -cosines[i])[:k]:
            label = train_labels[place]
            weight = np.exp(cosines[place] / temperature)
            votes[label] = votes.get(label, 0.0) + weight
        predictions.append(max(votes, key=votes.get))
    return np.array(predictions)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (7, 0.1), (20, 2.0)])
def test_knn_probe_equals_a_loop_over_neighbours(blobs, k, temperature):
    features, labels = blobs
    train, test = slice(0, 60), slice(60, 90)
    expected = knn_oracle(
        features[train], labels[train], features[test], k, temperature
    )
    result = simclr.knn_probe(
        features[train],
        labels[train],
        features[test],
        labels[test],
        k=k,
        temperature=temperature,
    )
    assert result.accuracy == np.mean(expected == labels[test])


@pytest.mark.parametrize("k", [3, 5_000])
def test_votes_of_many_examples_are_counted_block_by_block(k):
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(2_500, 3)), rng.integers(0, 4, 2_500)
    test = rng.normal(size=(5, 3))
    test = np.concatenate([test] * 300)  # Two blocks.
    found = simclr.knn_probe(features, labels, test, np.zeros(1_500, int), k=k)
    expected = knn_oracle(features, labels, test[:5], k, 0.1)
    assert found.predictions.tolist() == expected.tolist() * 300


def test_linear_probe_of_many_examples_standardises_all_of_them():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(2_500, 3)), np.arange(2_500) // 1_250
    features += 9 * labels[:, None]  # Each block has another mean.
    result = simclr.linear_probe(features, labels, features, labels)
    assert result.accuracy == 1.0
    means = result.classifier.predict(features.mean(axis=0)[None], verbose=0)
    np.testing.assert_allclose(means, [[0.5, 0.5]], atol=0.1)


@pytest.mark.parametrize("probe", [simclr.knn_probe, simclr.linear_probe])
@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (
            np.eye(4),
            "must hold one label per image. Received: labels of shape ",
        ),
        ({"label": np.arange(4)}, "must have the shape (N, D), with N labels."),
        ([0, 1, 0], "must have the shape (N, D), with N labels. Received: "),
        ([0, 1, 0, 0.5], "must hold the class of each image: an integer or a "),
    ],
)
def test_labels_of_other_forms_are_refused_in_words(probe, labels, text):
    features = np.eye(4)
    for given in ((labels, [0, 1, 0, 1]), ([0, 1, 0, 1], labels)):
        with pytest.raises(ValueError) as error:
            probe(features, given[0], features, given[1])
        assert text in str(error.value)


def test_knn_probe_uses_at_most_all_training_examples(blobs):
    features, labels = blobs
    result = simclr.knn_probe(features[:6], labels[:6], features, labels)
    assert result.k == 6


def test_knn_probe_survives_zero_features_and_small_temperatures():
    features, labels = np.zeros((4, 3)), np.array([0, 1, 0, 1])
    result = simclr.knn_probe(
        features, labels, features, labels, temperature=1e-4
    )
    assert result.accuracy == 0.5


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e19, 1e30, 1e200])
def test_knn_probe_does_not_depend_on_the_length_of_features(blobs, scale):
    features, labels = blobs
    expected = simclr.knn_probe(features, labels, features, labels, k=5)
    if scale < 1e38:
        features = features.astype("float32")
    result = simclr.knn_probe(scale * features, labels, features, labels, k=5)
    assert result.predictions.tolist() == expected.predictions.tolist()


@pytest.mark.parametrize("temperature", [1e-3, 1e-6, 5e-324])
def test_at_small_temperatures_the_nearest_decides(temperature):
    angles = np.radians([0, 40, 80, 120])
    train = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    test = np.array([[np.cos(1.1), np.sin(1.1)]])  # 63 degrees.
    result = simclr.knn_probe(
        train, np.arange(4), test, [2], k=4, temperature=temperature
    )
    assert result.predictions.tolist() == [2]


def test_linear_probe_returns_the_classifier_that_reached_its_accuracy(blobs):
    features, labels = blobs
    probe = simclr.linear_probe(
        features[:60], labels[:60], features[60:], labels[60:]
    )
    probabilities = probe.classifier.predict(features[60:], verbose=0)
    found = np.array(probe.classes)[probabilities.argmax(axis=1)]
    assert np.mean(found == labels[60:]) == probe.accuracy
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-5)


def test_linear_probe_equals_scikit_learn_at_its_penalty(blobs):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    features, labels = blobs
    probe = simclr.linear_probe(features, labels, features, labels)
    scaled = StandardScaler().fit_transform(features)
    oracle = LogisticRegression(
        C=probe.inverse_penalty, max_iter=5000, tol=1e-8
    ).fit(scaled, labels)
    found = probe.classifier.predict(features, verbose=0)
    np.testing.assert_allclose(found, oracle.predict_proba(scaled), atol=0.02)


def test_predictions_are_what_the_accuracy_counts(blobs):
    features, labels = blobs
    for probe in (simclr.knn_probe, simclr.linear_probe):
        result = probe(features[:60], labels[:60], features[60:], labels[60:])
        assert np.mean(result.predictions == labels[60:]) == result.accuracy


def test_labels_may_be_a_column(blobs):
    features, labels = blobs
    for probe in (simclr.knn_probe, simclr.linear_probe):
        flat = probe(features, labels, features, labels)
        column = probe(features, labels[:, None], features, labels[:, None])
        assert flat.accuracy == column.accuracy


def test_linear_probe_takes_one_label_of_a_class(blobs):
    features, labels = blobs
    result = simclr.linear_probe(features[:4], labels[:4], features, labels)
    assert result.inverse_penalty == 1.0
    assert result.accuracy > 0.5


def test_linear_probe_does_not_depend_on_the_scale_of_a_feature(blobs):
    features, labels = blobs
    scaled = features * np.array([1, 10, 100, 0.1, 0.01]) + 5
    first = simclr.linear_probe(features, labels, features, labels)
    second = simclr.linear_probe(scaled, labels, scaled, labels)
    assert first.inverse_penalty == second.inverse_penalty
    assert first.accuracy == pytest.approx(second.accuracy, abs=0.02)


@pytest.mark.parametrize(("signal", "expected"), [(0.0, 0.001), (4.0, 1.0)])
def test_penalty_is_what_validation_prefers(signal, expected):
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedShuffleSplit
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(120, 30)), np.arange(120) % 3
    features[:, 0] += signal * labels
    probe = simclr.linear_probe(features, labels, features, labels, seed=1)
    scaled = StandardScaler().fit_transform(features)
    penalties = (0.001, 0.01, 0.1, 1.0, 10.0)
    splits = StratifiedShuffleSplit(5, test_size=24, random_state=1)
    scores = [
        [
            LogisticRegression(C=c, max_iter=5000)
            .fit(scaled[kept], labels[kept])
            .score(scaled[held], labels[held])
            for c in penalties
        ]
        for kept, held in splits.split(scaled, labels)
    ]
    assert probe.inverse_penalty == penalties[np.mean(scores, 0).argmax()]
    assert probe.inverse_penalty == expected


def test_linear_probe_takes_a_class_too_rare_to_validate_on(monkeypatch):
    monkeypatch.setattr(probes, "_MOST_TO_CHOOSE_ON", 50)
    labels = np.array([0] * 998 + [1, 1])
    features = np.random.default_rng(0).normal(size=(1000, 2))
    features[-2:] += 20
    result = simclr.linear_probe(features, labels, features, labels)
    assert result.accuracy == 1.0


@pytest.mark.parametrize("probe", [simclr.knn_probe, simclr.linear_probe])
@pytest.mark.parametrize(
    ("features", "others", "text"),
    [
        (np.ones((4, 3)), np.ones((4, 2)), "2 features to test on, 3 to learn"),
        (np.ones((4, 0)), np.ones((4, 0)), "of shape (4, 0)"),
        (np.full((4, 2), "x"), np.ones((4, 2)), "of dtype <U1"),
        (np.ones((4, 2)), np.full((4, 2), 1j), "of dtype complex128"),
    ],
)
def test_features_that_are_none_are_refused(probe, features, others, text):
    with pytest.raises(ValueError) as error:
        probe(features, [0, 1, 0, 1], others, [0, 1, 0, 1])
    assert text in str(error.value)


@pytest.mark.parametrize("probe", [simclr.knn_probe, simclr.linear_probe])
def test_probes_refuse_what_does_not_match(probe, blobs):
    features, labels = blobs
    with pytest.raises(ValueError) as error:
        probe(features, labels[:-1], features, labels)
    assert str(error.value) == (
        "`train_features` must have the shape (N, D), with N labels. Received: "
        "train_features of shape (90, 5), train_labels of shape (89,)"
    )
    with pytest.raises(ValueError) as error:
        probe(features, labels, features * np.nan, labels)
    assert str(error.value) == (
        "`test_features` must be finite. Received: NaN or infinity"
    )
    with pytest.raises(ValueError) as error:
        probe(features, labels * 0, features, labels)
    assert str(error.value) == (
        "`train_labels` must hold at least two classes. Received: [0]"
    )


def test_settings_are_those_of_the_defaults(blobs):
    features, labels = blobs
    kinds = probes.KINDS
    assert kinds["linear"].settings == (
        "logistic regression, standardised, C chosen of 0.001, 0.01, 0.1, 1, 10"
    )
    assert kinds["knn"].settings == "cosine, k=20, temperature=0.1"
    result = simclr.knn_probe(features, labels, features, labels)
    assert f"({kinds['knn'].settings})" in str(result)


STORED = json.loads((quick_probe.RESULTS / "quick_probe.json").read_text())


def test_quick_probe_costs_no_accuracy_that_counts():
    found = {(x["data"], x["features"], x["quick"]): x for x in STORED}
    assert len(found) == 18
    for (data, features, quick), result in found.items():
        if quick:
            other = found[data, features, False]
            assert result["accuracy"] > other["accuracy"] - 0.002
            assert result["cpu_seconds"] <= 1.1 * other["cpu_seconds"]


@pytest.mark.parametrize("quick", [False, True])
def test_costs_are_guessed_within_a_factor(quick):
    seconds = probes.KINDS["linear"].seconds
    counts = {"fashion_mnist": (60_000, 784), "cifar10": (50_000, 3_072)}
    for result in STORED:
        if result["quick"] is quick and result["data"] in counts:
            train, width = counts[result["data"]]
            width = width if result["features"] == "pixels" else 128
            guess = seconds(train, 10_000, width, 10, quick)
            assert 1 / 3 < guess / result["cpu_seconds"] < 3


def test_quick_probe_of_many_columns_is_the_same_regression():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = rng.normal(size=(60, 90)) + 2 * np.eye(3, 90)[labels]
    arrays = features[:40], labels[:40], features[40:], labels[40:]
    plain, quick = (
        simclr.linear_probe(*arrays, quick=quick) for quick in (False, True)
    )
    assert plain.inverse_penalty == quick.inverse_penalty
    expected, found = (
        probe.classifier.predict(features, verbose=0)
        for probe in (plain, quick)
    )
    np.testing.assert_allclose(found, expected, atol=0.01)


@pytest.mark.parametrize("quick", [False, True])
def test_quick_probe_of_many_examples_stops_where_it_gets_worse(
    monkeypatch, quick
):
    """Of random labels the strongest penalty is best, or nearly so."""
    monkeypatch.setattr(probes, "_MOST_TO_CHOOSE_ON", 200)
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(1_000, 60)), rng.integers(0, 2, 1_000)
    features[:, 0] += labels
    calls, fit = [], probes.fit_logistic

    def noting(features, labels, inverse_penalty, start, tolerance):
        found = fit(features, labels, inverse_penalty, start, tolerance)
        calls.append((len(features), inverse_penalty, start is None, tolerance))
        return found

    monkeypatch.setattr(probes, "fit_logistic", noting)
    probe = simclr.linear_probe(features, labels, features, labels, quick=quick)
    *tried, last = calls
    assert last[:3] == (1_000, probe.inverse_penalty, not quick)
    if quick:
        assert len(tried) < 5
        assert (tried[0][3], last[3]) == (1e-3, 3e-4)
    else:
        assert len(tried) == 5
        assert {call[3] for call in calls} == {1e-4}


def test_results_print_their_settings(blobs):
    features, labels = blobs
    assert str(simclr.knn_probe(features, labels, features, labels)).endswith(
        "(cosine, k=20, temperature=0.1)"
    )
    assert ", C=" in str(
        simclr.linear_probe(features, labels, features, labels)
    )


@pytest.mark.parametrize("probe", [simclr.knn_probe, simclr.linear_probe])
@pytest.mark.parametrize("name", ["train", "test"])
def test_probes_refuse_what_is_no_label(probe, name, blobs):
    features, labels = blobs
    arrays = {
        f"{side}_{what}": array
        for side in ("train", "test")
        for what, array in (("features", features), ("labels", labels))
    }
    with pytest.raises(ValueError) as error:
        probe(**{**arrays, f"{name}_labels": labels - 1})
    assert str(error.value).startswith(
        f"`{name}_labels` must be 0 or more: negative ones mean that there is "
        "none. Received: 30 negative labels. Leave these out: "
    )
    for wrong in (labels + 0.5, np.where(labels, labels, np.nan)):
        with pytest.raises(ValueError) as error:
            probe(**{**arrays, f"{name}_labels": wrong})
        assert str(error.value).startswith(
            f"`{name}_labels` must hold the class of each image: an integer or "
            "a text, and -1 where it is not known. Received: "
        )


def test_penalty_is_not_chosen_on_duplicates():
    """Noise that is there twice would ask for no penalty at all."""
    rng = np.random.default_rng(0)
    features = np.repeat(rng.normal(size=(60, 30)), 2, axis=0)
    labels = np.repeat(rng.permutation(np.arange(60) % 2), 2)
    groups = np.repeat(rng.permutation(60), 2)
    arrays = features, labels, features, labels
    divided = simclr.linear_probe(*arrays)
    whole = simclr.linear_probe(*arrays, groups=groups)
    assert divided.inverse_penalty >= 1.0
    assert whole.inverse_penalty <= 0.1
    single = simclr.linear_probe(*arrays, groups=np.arange(120))
    assert single.inverse_penalty == divided.inverse_penalty


def test_penalty_is_not_chosen_where_a_class_is_of_one_group():
    features, labels = np.eye(12), np.repeat([0, 1], 6)
    for groups in ([0] * 6 + [*range(1, 7)], [0, 1, 2, 3, 4, 5] * 2):
        result = simclr.linear_probe(
            features, labels, features, labels, groups=np.array(groups)
        )
        assert result.inverse_penalty == 1.0


@pytest.mark.parametrize("probe", [simclr.knn_probe, simclr.linear_probe])
def test_classes_that_cannot_be_compared_are_refused(probe):
    features, labels = np.eye(12), np.repeat([0, 1], 6)
    names = np.array(["owl", "cat"])[labels]
    for others, rule in (
        (names, "must both have names of classes, or both numbers"),
        (labels + 2, "`test` must hold classes of `train`"),
    ):
        with pytest.raises(ValueError, match=rule):
            probe(features, labels, features, others)


def test_memory_of_many_columns_is_bounded(monkeypatch):
    """What is made of rows is made of so many numbers at a time."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = rng.normal(size=(60, 40)) + 3 * np.eye(3, 40)[labels]
    arrays = features[:40], labels[:40], features[40:], labels[40:]
    run = [simclr.knn_probe, simclr.linear_probe]
    expected = [probe(*arrays).predictions for probe in run]
    sizes, normalize = [], probes.unit_rows

    def noting(rows):
        sizes.append(np.size(rows))
        return normalize(rows)

    monkeypatch.setattr(probes, "unit_rows", noting)
    monkeypatch.setattr(probes, "_NUMBERS_AT_ONCE", 130)
    for probe, predictions in zip(run, expected, strict=True):
        np.testing.assert_array_equal(probe(*arrays).predictions, predictions)
    assert set(sizes) == {120, 80, 40}
