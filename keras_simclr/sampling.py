"""Splits, draws of labelled sets and intervals: the statistics, alone."""

import dataclasses

import numpy as np

_CONFIDENCE = 0.95
_PSEUDO_EXAMPLES = 0.5  # No variance is 0.
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
    # It takes no more bits.
    shuffle = StratifiedShuffleSplit(**sizes, random_state=seed % 2**32)
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
    """95 % interval of the accuracy that a method is expected to have.

    That is: learned from another labelled set of that size, tested on other
    images. Of one test set, what another draw of labels would change
    (Student's t) and what other test images would change (normal) are added
    as squares. Of random splits the draws vary in both, and are taken to vary
    by no less than the test images alone make them. Of a single draw nothing
    tells what other labels would change.

    The interval is Wilson's, which lies in [0, 1] and whose ends differ where
    the mean is near one, of as many images as would give this variance, with
    a continuity correction. By simulation (`tests/test_sampling.py`) it holds
    the truth in at least 93 of 100 cases, from 20 images to 2,000.

    Args:
        scores: One array of values in [0, 1] of test examples for each draw,
            of the same examples each time unless there is a correction.
        correction: Examples to test on by examples to learn from, where the
            draws are splits of one set; else 0.

    Returns:
        Pair of floats in [0, 1].

    Raises:
        ValueError: If a score is out of range.

    Example:

    >>> low, high = interval([np.ones(20)])
    >>> round(low, 2), round(high, 2)
    (0.8, 1.0)

    References:
        - Wilson 1927, doi:10.1080/01621459.1927.10502953; with a continuity
          correction, Newcombe 1998, PMID 9595616.
        - Korn and Graubard 1998, Survey Methodology 24 (effective number of
          images).
        - Nadeau and Bengio 2003, doi:10.1023/A:1024068626366 (correction).
    """
    values = [2.0 * np.asarray(each) - 1.0 for each in scores]
    if np.abs(np.concatenate(values)).max() > 1.0:
        raise ValueError(
            "`scores` must lie in [0, 1]. Received: scores between "
            f"{min(map(np.min, scores))} and {max(map(np.max, scores))}. Of "
            "differences, use `gain_interval`"
        )
    low, high = _interval(values, correction, (1, 1))
    return (1.0 + low) / 2.0, (1.0 + high) / 2.0


def gain_interval(scores, others, correction=0.0, choices=(1, 1)):
    """95 % interval of the difference of two accuracies, paired.

    As `interval`. Of a single draw it excludes 0 only where the exact sign
    test does, of the examples in which the two differ.

    Args:
        scores: As in `interval`.
        others: The same of another method, of the same examples.
        correction: As in `interval`.
        choices: How many methods the first is the best of, and the second.
            The lower end is corrected for the first number, the upper end for
            the second (Bonferroni).

    Returns:
        Pair of floats in [-1, 1].

    Example:

    >>> low, high = gain_interval([np.repeat([1, 0], [3, 7])], [np.zeros(10)])
    >>> round(low, 2), round(high, 2)
    (-0.15, 0.53)
    """
    values = [
        np.subtract(mine, theirs, dtype="float64")
        for mine, theirs in zip(scores, others, strict=True)
    ]
    return _interval(values, correction, choices)


def _interval(values, correction, choices):
    """Of values in [-1, 1]."""
    from scipy import special

    draws, examples = len(values), np.mean([len(each) for each in values])
    means = np.array([np.mean(each) for each in values])
    mean, share = means.mean(), 1 / draws + correction
    square = _smoothed(np.mean([np.mean(x**2) for x in values]), examples)
    centre = mean * examples / (examples + _PSEUDO_EXAMPLES)
    variance = square - centre**2  # Of one value.
    if correction:
        of_examples = share / examples
    else:
        ours = _smoothed(np.mean(np.mean(values, axis=0) ** 2), examples)
        of_examples = (ours - centre**2) / variance / examples
    ends = []
    for side, count in zip((-1, 1), choices, strict=True):
        tail = 1 - (1 - _CONFIDENCE) / 2 / count
        spread = special.ndtri(tail) ** 2 * of_examples
        if draws > 1:
            of_draws = np.var(means, ddof=1) / variance * share
            of_draws *= special.stdtrit(draws - 1, tail) ** 2
            if correction:
                spread = max(spread, of_draws)
            else:
                spread += of_draws
        near = np.clip(mean + side * of_examples, -1, 1)
        rest = max(0.0, spread * (square * (1 + spread) - near**2))
        end = (near + side * np.sqrt(rest)) / (1 + spread)
        ends.append(float(np.clip(end, -1, 1)))
    return min(ends[0], float(mean)), max(ends[1], float(mean))


def _smoothed(square, examples):
    """A mean of squares, with half an example that is 1 or -1 in all draws."""
    total = examples + _PSEUDO_EXAMPLES
    return (square * examples + _PSEUDO_EXAMPLES) / total
