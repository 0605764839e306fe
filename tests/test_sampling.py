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


@pytest.mark.parametrize("right", [0, 1, 9, 19, 20])
def test_interval_of_one_draw_is_wilsons(right):
    low, high = sampling.interval([np.arange(20) < right])
    expected = stats.binomtest(right, 20).proportion_ci(method="wilsoncc")
    np.testing.assert_allclose((low, high), expected, atol=1e-12)


@pytest.mark.parametrize("draws", [1, 2, 5])
@pytest.mark.parametrize("correction", [0.0, 0.25])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0])
def test_intervals_are_shares_and_never_points(draws, correction, share):
    for examples in (1, 4, 20, 1000):
        right = np.arange(examples) < share * examples
        low, high = sampling.interval([right] * draws, correction)
        assert 0.0 <= low <= right.mean() <= high <= 1.0
        # As wide as what the test images alone leave open.
        assert high - low > min(0.3, 1.5 / examples)
        low, high = sampling.gain_interval(
            [right] * draws, [right] * draws, correction
        )
        assert -1.0 <= low < 0.0 < high <= 1.0


def test_several_draws_add_what_other_labels_change():
    right = np.arange(400) % 4 > 0
    alike = sampling.interval([right] * 3)
    np.testing.assert_allclose(alike, sampling.interval([right]), atol=5e-4)
    other = np.arange(400) % 8 > 0
    low, high = sampling.interval([right, right, other])
    half = stats.t.ppf(0.975, 2) * 0.125 / 3  # Student's, of the three means.
    assert (high - low) / 2 == pytest.approx(np.hypot(half, 0.04), rel=0.1)


def test_splits_of_unequal_sizes_have_an_interval():
    scores = [np.arange(size) > 0 for size in (4, 5, 4)]
    low, high = sampling.interval(scores, 0.25)
    assert 0.3 < low < np.mean([0.75, 0.8, 0.75]) < high < 1.0


def test_scores_are_shares():
    with pytest.raises(ValueError) as error:
        sampling.interval([np.array([0.0, 1.0]), np.array([-1.0, 1.0])])
    assert str(error.value) == (
        "`scores` must lie in [0, 1]. Received: scores between -1.0 and 1.0. "
        "Of differences, use `gain_interval`"
    )


def test_gain_of_few_images_is_as_sure_as_the_exact_sign_test():
    shown = set()
    for differing in range(1, 60):
        for better in range(differing // 2, differing + 1):
            mine, theirs = np.zeros((2, 100))
            mine[:better] = 1.0
            theirs[better:differing] = 1.0
            low, high = sampling.gain_interval([mine], [theirs])
            against = sampling.gain_interval([theirs], [mine])
            assert against == pytest.approx((-high, -low))
            if low > 0.0:
                shown.add((better, differing))
                test = stats.binomtest(better, differing, alternative="greater")
                assert test.pvalue <= 0.025
    assert min(shown) == (6, 6)
    assert (17, 22) in shown


def draw(rng, rates, draws, images, test, *, hardness, luck, others=0.0):
    """Whether test images are classified rightly, by methods of these rates.

    An image is hard for all methods (`hardness`), and for a method
    (`others`); a labelled set is a lucky one (`luck`): normal, before a
    threshold. `test` of the images are tested in each draw, or all.
    """
    scale = np.sqrt(1.0 + hardness**2 + others**2 + luck**2)
    common = hardness * rng.normal(size=images)
    places = [rng.permutation(images)[:test] for _ in range(draws)]
    if test == images:
        places = [np.arange(images)] * draws
    for rate in rates:
        level = stats.norm.ppf(rate) * scale + common
        level = level + others * rng.normal(size=images)
        yield [
            level[each] + luck * rng.normal() + rng.normal(size=test) > 0.0
            for each in places
        ]


SIZES, DRAWS, RATES = (20, 100, 500, 2000), (2, 5, 10), (0.5, 0.7, 0.9, 0.98)


def coverage(is_covered):
    """How often, over sizes, draws, rates and 30 repetitions of each."""
    rng = np.random.default_rng(0)
    return np.array(
        [
            [
                [
                    [is_covered(rng, size, draws, rate) for _ in range(30)]
                    for rate in RATES
                ]
                for draws in DRAWS
            ]
            for size in SIZES
        ]
    )


def check_coverage(covered):
    assert covered.shape[:3] == (len(SIZES), len(DRAWS), len(RATES))
    for axis in range(3):
        others = tuple({0, 1, 2, 3} - {axis})
        assert covered.mean(others).min() >= 0.93
    assert covered.mean(3).min() >= 0.8  # Of only 30.


@pytest.mark.parametrize("hardness", [0.0, 1.0, 30.0])
def test_intervals_cover_the_accuracy_on_one_test_set(hardness):
    """Whose images are alike, differ, or always go the same way."""
    luck = 0.15 if hardness == 1.0 else 0.0

    def is_covered(rng, size, draws, rate):
        (scores,) = draw(
            rng, [rate], draws, size, size, hardness=hardness, luck=luck
        )
        low, high = sampling.interval(scores)
        return low <= rate <= high

    check_coverage(coverage(is_covered))


@pytest.mark.parametrize("hardness", [0.0, 1.0, 30.0])
def test_intervals_cover_the_accuracy_over_random_splits(hardness):
    def is_covered(rng, size, draws, rate):
        (scores,) = draw(
            rng, [rate], draws, size, size // 5, hardness=hardness, luck=0.0
        )
        low, high = sampling.interval(scores, 0.25)
        return low <= rate <= high

    check_coverage(coverage(is_covered))


@pytest.mark.parametrize("test_share", [0.2, 1.0])
def test_intervals_cover_the_gain(test_share):
    correction = 0.25 if test_share < 1.0 else 0.0

    def is_covered(rng, size, draws, rate):
        better = rate + min(0.05, (1.0 - rate) / 2)
        mine, theirs = draw(
            rng,
            [better, rate],
            draws,
            size,
            round(test_share * size),
            hardness=2.0,
            others=1.0,
            luck=0.0 if correction else 0.1,
        )
        low, high = sampling.gain_interval(mine, theirs, correction)
        return low <= better - rate <= high

    check_coverage(coverage(is_covered))


def test_intervals_are_not_much_wider_than_they_must_be():
    rng = np.random.default_rng(0)
    ideal = 2 * 1.96 * np.sqrt(0.9 * 0.1 / 500)  # Each image tested once.
    for draws, test, correction, widest in (
        (5, 500, 0.0, 1.1),
        (5, 100, 0.25, 2.5),
        (10, 100, 0.25, 2.0),
    ):
        widths = []
        for _ in range(30):
            (scores,) = draw(
                rng, [0.9], draws, 500, test, hardness=1.0, luck=0.0
            )
            low, high = sampling.interval(scores, correction)
            widths.append(high - low)
        assert np.mean(widths) < widest * ideal


def test_splits_take_all_seeds():
    labels, groups = np.repeat([0, 1], 8), np.arange(16)
    for seed in (2**32, 2**63 - 1):
        assert len(sampling.random_splits(labels, groups, 2, seed)) == 2
