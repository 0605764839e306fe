"""Mean and standard deviation of columns, of more rows than memory holds."""

import numpy as np

# Of a channel's mean: float32 does not tell smaller deviations from none.
_CONSTANT = 1e-6


def moments(batches):
    """Mean and standard deviation of each column of all of some arrays.

    Args:
        batches: Iterator of float64 arrays of shape `(..., columns)`, of which
            there is at least one.

    Returns:
        Two float64 arrays of shape `(columns,)`.

    Example:

    >>> mean, stddev = moments([np.array([[1.0], [2.0]]), np.array([[6.0]])])
    >>> mean, stddev.round(3)
    (array([3.]), array([2.16]))

    References:
        - Chan, Golub and LeVeque 1983, doi:10.1080/00031305.1983.10483115.
    """
    count, mean, squares = 0, 0.0, 0.0
    for batch in batches:
        values = batch.reshape(-1, batch.shape[-1])
        own = values.mean(axis=0)
        total = count + len(values)
        shift = own - mean
        mean = mean + shift * len(values) / total
        squares = (
            squares
            + ((values - own) ** 2).sum(axis=0)
            + shift**2 * count * len(values) / total
        )
        count = total
    return mean, np.sqrt(squares / count)


def is_constant(mean, stddev):
    """Whether channels are constant, but for rounding, by these of them."""
    return stddev <= _CONSTANT * np.abs(mean)
