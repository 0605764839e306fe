import numpy as np
import pytest

from keras_simclr.label_errors import find_label_errors


def planted(classes=4, size=60, wrong=9, seed=0):
    """Features in clear classes, labels of which some are wrong, and which."""
    rng = np.random.default_rng(seed)
    truth = np.arange(classes * size) % classes
    features = 5 * np.eye(classes)[truth] + rng.normal(
        size=(len(truth), classes)
    )
    places = rng.choice(len(truth), wrong, replace=False)
    labels = truth.copy()
    labels[places] = (truth[places] + 1) % classes
    return features, labels, truth, np.sort(places)


def test_planted_errors_are_found():
    features, labels, truth, places = planted()
    found = find_label_errors(features, labels)
    assert np.isin(places, found.places).mean() >= 0.6
    assert np.isin(found.places, places).mean() >= 0.7
    np.testing.assert_array_equal(
        found.predictions[found.places], truth[found.places]
    )
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, atol=1e-5)
    assert found.classes.tolist() == [0, 1, 2, 3]


def test_clear_labels_are_left_alone():
    features, _, truth, _ = planted()
    names = np.array(["ant", "bee", "cow", "dog"])[truth]
    assert len(find_label_errors(3 * features, names).places) <= 1


def test_noise_accuses_nobody():
    features = np.random.default_rng(0).normal(size=(300, 5))
    labels = np.arange(300) % 3
    assert len(find_label_errors(features, labels).places) <= 3


def test_no_example_is_learnt_by_heart():
    """A feature of its own would tell the label of each, if it were seen."""
    labels = np.random.default_rng(0).integers(0, 2, 50)
    found = find_label_errors(np.eye(50), labels)
    assert np.abs(found.probabilities - 0.5).max() < 0.25


def test_duplicates_are_not_divided():
    """Each label stands twice; alone, one would give the other away."""
    labels = np.repeat(np.random.default_rng(0).integers(0, 2, 40), 2)
    features = np.repeat(np.eye(40), 2, axis=0)
    groups = np.repeat(np.arange(40), 2)
    apart = find_label_errors(features, labels, groups=groups)
    assert np.abs(apart.probabilities - 0.5).max() < 0.25
    together = find_label_errors(features, labels)
    assert np.abs(together.probabilities - 0.5).max() > 0.3


def test_only_one_of_a_class_is_left_out():
    features, labels, _, _ = planted(wrong=0)
    labels[5] = 9
    found = find_label_errors(features, labels)
    assert np.flatnonzero(~found.is_tested).tolist() == [5]
    assert found.classes.tolist() == [0, 1, 2, 3]
    assert np.isnan(found.probabilities[5]).all()
    assert found.predictions[5] == 9
    assert 5 not in found.places


def test_result_is_a_function_of_the_seed():
    features, labels, _, _ = planted()
    one, same, other = (
        find_label_errors(features, labels, seed=seed).probabilities
        for seed in (0, 0, 1)
    )
    assert one.tobytes() == same.tobytes() != other.tobytes()


@pytest.mark.parametrize("labels", [[1] * 6, [1, 1, 1, 1, 1, 2]])
def test_fewer_than_two_classes_are_refused(labels):
    with pytest.raises(ValueError) as error:
        find_label_errors(np.eye(6), np.array(labels))
    assert "must hold at least two classes" in str(error.value)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((5, 2)), "(N, D), with N labels"),
        (np.zeros(6), "(N, D), with N labels"),
        (np.full((6, 2), np.nan), "must be finite"),
    ],
)
def test_other_features_are_refused(features, message):
    with pytest.raises(ValueError) as error:
        find_label_errors(features, np.arange(6) % 2)
    assert message in str(error.value)
