import numpy as np
import pytest
from scipy import stats

from keras_simclr import sampling


def test_splits_are_stratified_and_keep_duplicates_together():
    labels = np.repeat([0, 1], [60, 20])
    groups = np.arange(80)
    groups[60:70] = 60
    splits = sampling.random_splits(labels, groups, draws=4, seed=0)
    for split in splits:
        train, test = split.train, split.test
        assert not set(train) & set(test)
        assert len(train) + len(test) == 80
        assert not set(groups[train]) & set(groups[test])
        assert 8 <= np.sum(labels[test] == 0) <= 13
    assert len({tuple(split.test) for split in splits}) == 4
    assert sampling.correction_of(splits) == (
        len(splits[0].test) / len(splits[0].train)
    )


def test_a_given_test_set_needs_no_correction():
    split = sampling.Split(np.arange(4), np.arange(4, 6))
    assert sampling.correction_of([split]) == 0.0


def test_jobs_learn_and_test_where_their_splits_do():
    labels = np.arange(40) % 2
    splits = sampling.random_splits(labels, None, draws=3, seed=0)
    jobs, left_out = sampling.plan_jobs(labels, splits, [2, 50, "all"], 3, 0)
    assert [job.amount for job in jobs] == [2, "all"]
    assert left_out == ["50 per class, class 0 has 16 to learn from"]
    for job in jobs:
        assert len(job.splits) == 3
        for whole, drawn, targets in zip(
            splits, job.splits, job.targets, strict=True
        ):
            assert set(drawn.train) <= set(whole.train)
            np.testing.assert_array_equal(drawn.test, whole.test)
            np.testing.assert_array_equal(targets, labels[whole.test])


def test_all_labels_beside_a_test_set_are_drawn_once():
    labels = np.arange(12) % 2
    split = sampling.Split(np.arange(8), np.arange(8, 12))
    jobs, _ = sampling.plan_jobs(labels, [split], ["all", "50%"], 3, 0)
    assert [len(job.splits) for job in jobs] == [1, 3]


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
