"""Draws of labels, splits and intervals."""

import numpy as np

_CONFIDENCE = 0.95


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
        if is_share(amount):
            count = max(1, share_of(amount, len(places)))
        chosen.append(rng.choice(places, count, replace=False))
    return np.concatenate(chosen)


def is_share(amount):
    """Whether an amount of labels is a share such as `"1%"`."""
    return isinstance(amount, str) and amount != "all"


def share_of(share, count):
    """What a share such as `"1%"` of a count is."""
    return round(int(share.removesuffix("%")) / 100 * count)


def interval(draws, correction=0.0):
    """95 % interval of a mean.

    Of one test set, what another draw of labels would change (Student's t) and
    what other test examples would change (normal) are added as squares. Of
    random splits the draws vary in both.

    Args:
        draws: One array of values of test examples for each draw, of the same
            examples each time unless there is a correction.
        correction: Examples to test on by examples to learn from, where the
            draws are splits of one set; else 0.

    Returns:
        Pair of floats.

    Example:

    >>> low, high = interval([np.array([1.0]), np.array([0.5])])
    >>> round(low, 2), round(high, 2)
    (-2.43, 3.93)
    """
    from scipy import stats

    tail = 0.5 + _CONFIDENCE / 2
    values = np.array([np.mean(each) for each in draws])
    square = 0.0
    if len(values) > 1:
        quantile = stats.t.ppf(tail, len(values) - 1)
        variance = np.var(values, ddof=1) * (1 / len(values) + correction)
        square += quantile**2 * variance
    examples = len(draws[0])
    if not correction and examples > 1:
        variance = np.var(np.mean(draws, axis=0), ddof=1) / examples
        square += stats.norm.ppf(tail) ** 2 * variance
    half = np.sqrt(square)
    return float(values.mean() - half), float(values.mean() + half)
