"""Splits, draws of labelled sets and intervals: the statistics, alone."""

import dataclasses

import numpy as np

_CONFIDENCE = 0.95
_TEST_SHARE = 0.2  # Of the examples, where there is no test set.


@dataclasses.dataclass(frozen=True)
class Split:
    """Places of examples to learn from, and of others to test on."""

    train: np.ndarray
    test: np.ndarray


@dataclasses.dataclass(frozen=True)
class Job:
    """What is learned from one number of labels.

    Attributes:
        amount: Number of labels, as in `draw_labelled`.
        splits: Tuple of a `Split` for each labelled set that is drawn.
        targets: Tuple of the labels of the test examples of each.
    """

    amount: int | str
    splits: tuple
    targets: tuple


def checked_amount(amount):
    """A number of labels: a positive integer, a share such as "1%", or all."""
    if isinstance(amount, str):
        share = amount.removesuffix("%")
        is_percent = share != amount and share.isdigit()
        if amount == "all" or (is_percent and 0 < int(share) < 100):
            return amount
    elif amount is not True and amount == int(amount) and amount >= 1:
        return int(amount)
    raise ValueError(
        "`labels` must be positive integers (per class), shares such as '1%' "
        f"and 'all'. Received: labels with {amount!r}"
    )


def amount_in_words(amount):
    """A number of labels as tables head it."""
    return f"{amount} per class" if isinstance(amount, int) else amount


def random_splits(labels, groups, draws, seed):
    """Splits examples at random, stratified, into four fifths and a fifth.

    `groups` tells the duplicates, which are not divided; None: there are none.
    """
    groups = np.arange(len(labels)) if groups is None else groups
    _, firsts = np.unique(groups, return_index=True)
    rarest, size = _rarest(labels[firsts])
    if size < 2:
        raise ValueError(
            "Without `test`, every class needs at least two images that "
            f"are no duplicates. Received: {size} of class {rarest}"
        )
    classes = len(np.unique(labels[firsts]))
    test_size = max(classes, round(_TEST_SHARE * len(firsts)))
    splits = split_groups(
        labels, groups, seed, n_splits=draws, test_size=test_size
    )
    return [Split(*map(np.sort, sides)) for sides in splits]


def split_groups(labels, groups, seed, **sizes):
    """Yields pairs of places, as `StratifiedShuffleSplit` of these sizes.

    What is split are groups of duplicates; each goes by its first example.
    """
    from sklearn.model_selection import StratifiedShuffleSplit

    _, firsts, counts = np.unique(groups, return_index=True, return_counts=True)
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.cumsum(counts)[:-1])
    shuffle = StratifiedShuffleSplit(**sizes, random_state=seed)
    for sides in shuffle.split(firsts, labels[firsts]):
        yield [np.concatenate([members[x] for x in side]) for side in sides]


def plan_jobs(labels, splits, amounts, draws, seed):
    """Draws labelled sets of each amount out of what splits learn from.

    Returns a list of `Job`, and a list of what is left out and why, in words;
    refuses amounts of which none can be drawn.
    """
    jobs, left_out = [], []
    for amount in amounts:
        lacks = (_lack(amount, labels[x.train]) for x in splits)
        lack = next(filter(None, lacks), None)
        if lack:
            left_out.append(f"{amount_in_words(amount)}, {lack}")
        else:
            jobs.append(_job(amount, labels, splits, draws, seed))
    if not jobs:
        raise ValueError(
            "`labels` must hold a number that `train` can fill. Received: "
            + "; ".join(left_out)
        )
    return jobs, left_out


def _lack(amount, labels):
    """Why there are too few labels for an amount; None if there are not."""
    rarest, size = _rarest(labels)
    if isinstance(amount, int) and size < amount:
        return f"class {rarest} has {size} to learn from"
    classes = len(np.unique(labels))
    if _is_share(amount) and _share_of(amount, len(labels)) < classes:
        return f"{len(labels)} labels, {classes} classes"
    return None


def _rarest(labels):
    """The smallest class and its size."""
    classes, counts = np.unique(labels, return_counts=True)
    return classes[counts.argmin()], counts.min()


def _job(amount, labels, splits, draws, seed):
    # All labels of a single split make one set, however often drawn.
    count = 1 if amount == "all" and len(splits) == 1 else draws
    drawn = []
    for draw in range(count):
        split = splits[draw % len(splits)]
        rng = np.random.default_rng([seed, draw])
        places = draw_labelled(labels[split.train], amount, rng)
        drawn.append(Split(split.train[places], split.test))
    return Job(amount, tuple(drawn), tuple(labels[x.test] for x in drawn))


def draw_labelled(labels, amount, rng):
    """Draws examples, stratified.

    Args:
        labels: Array of all labels.
        amount: Integer per class, a share such as `"1%"`, or `"all"`.
        rng: NumPy generator.

    Returns:
        Array of places in `labels`. Of a share every class has at least one.

    Example:

    >>> rng = np.random.default_rng(0)
    >>> draw_labelled(np.repeat([3, 7], 5), 2, rng).shape
    (4,)
    """
    if amount == "all":
        return np.arange(len(labels))
    chosen = []
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        count = amount
        if _is_share(amount):
            count = max(1, _share_of(amount, len(places)))
        chosen.append(rng.choice(places, count, replace=False))
    return np.concatenate(chosen)


def _is_share(amount):
    return isinstance(amount, str) and amount != "all"


def _share_of(share, count):
    return round(int(share.removesuffix("%")) / 100 * count)


def correction_of(splits):
    """What `interval` corrects for; 0 where the test set was given."""
    first, *others = splits
    return len(first.test) / len(first.train) if others else 0.0


def interval(scores, correction=0.0):
    """95 % interval of a mean.

    Of one test set, what another draw of labels would change (Student's t) and
    what other test examples would change (normal) are added as squares. Of
    random splits the draws vary in both.

    Args:
        scores: One array of values of test examples for each draw, of the same
            examples each time unless there is a correction.
        correction: Examples to test on by examples to learn from, where the
            draws are splits of one set; else 0.

    Returns:
        Pair of floats.

    Example:

    >>> low, high = interval([np.array([1.0]), np.array([0.5])])
    >>> round(low, 2), round(high, 2)
    (-2.43, 3.93)

    References:
        - Nadeau and Bengio 2003, doi:10.1023/A:1024068626366 (correction).
    """
    from scipy import stats

    tail = 0.5 + _CONFIDENCE / 2
    means = np.array([np.mean(each) for each in scores])
    square = 0.0
    if len(means) > 1:
        quantile = stats.t.ppf(tail, len(means) - 1)
        variance = np.var(means, ddof=1) * (1 / len(means) + correction)
        square += quantile**2 * variance
    examples = len(scores[0])
    if not correction and examples > 1:
        variance = np.var(np.mean(scores, axis=0), ddof=1) / examples
        square += stats.norm.ppf(tail) ** 2 * variance
    half = np.sqrt(square)
    return float(means.mean() - half), float(means.mean() + half)
