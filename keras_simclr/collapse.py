"""What features look like, without labels: their rank, spread and likeness."""

import math

import numpy as np

_RANKME_EPSILON = 1e-7
_ROWS_AT_ONCE = 1_000


def rankme(features):
    """Effective rank of features: how many directions they make use of.

    With p the singular values divided by their sum, plus 1e-7, it is the
    exponential of their entropy, exp(-sum of p log p).

    Args:
        features: Array of shape `(N, D)`, representations or projections. The
            paper takes N = 25,600; below D it is N that limits the rank.

    Returns:
        Float: 1 if all rows are multiples of one, `min(N, D)` at most, up to
        the 1e-7.

    Raises:
        ValueError: If `features` are not a finite matrix of at least two rows.

    Example:

    >>> round(rankme(np.eye(4)), 3)
    4.0
    >>> round(rankme(np.ones((4, 4))), 3)
    1.0

    References:
        - Garrido et al. 2023, arXiv:2210.02885, equations 1 and 2.
    """
    features = _matrix("features", features)
    features = features / (np.abs(features).max() or 1.0)
    values = np.linalg.svd(features, compute_uv=False)
    shares = values / (values.sum() or 1.0) + _RANKME_EPSILON
    return math.exp(-np.sum(shares * np.log(shares)))


def alignment(z_1, z_2):
    """Mean squared distance of two views of an image, on the unit sphere.

    Args:
        z_1: Array of shape `(N, D)`, projections of the first views.
        z_2: Array of shape `(N, D)`, of the second ones in the same order.

    Returns:
        Float: 0 where both views fall on one point, 2 on average where they
        have nothing in common, at most 4.

    Raises:
        ValueError: If `z_1` and `z_2` are not finite matrices of one shape and
            at least two rows.

    Example:

    >>> alignment([[1, 0], [0, 2]], [[3, 0], [1, 0]])
    1.0

    References:
        - Wang and Isola 2020, arXiv:2005.10242, section 4.1 (alpha = 2).
    """
    z_1, z_2 = _directions("z_1", z_1), _directions("z_2", z_2)
    if z_1.shape != z_2.shape:
        raise ValueError(
            "Both views need projections of the same shape (N, D). "
            f"Received: z_1 of shape {z_1.shape}, z_2 of shape {z_2.shape}"
        )
    return float(np.mean(np.sum((z_1 - z_2) ** 2, axis=1)))


def uniformity(z):
    """Log of the mean of exp(-2 d^2), d the distance of two rows on the sphere.

    The mean is over all pairs of distinct rows, tile by tile: memory grows
    with N, not with its square.

    Args:
        z: Array of shape `(N, D)`, projections of one view of each image.

    Returns:
        Float: 0 where all rows fall on one point. The more evenly they cover
        the sphere, the lower: -4 for rows at right angles, -8 at the least.

    Raises:
        ValueError: If `z` is not a finite matrix of at least two rows.

    Example:

    >>> uniformity(np.eye(4))
    -4.0

    References:
        - Wang and Isola 2020, arXiv:2005.10242, section 4.1 (t = 2).
    """
    z = _directions("z", z)
    starts = range(0, len(z), _ROWS_AT_ONCE)
    total = 0.0
    for i in starts:
        for j in range(i, len(z), _ROWS_AT_ONCE):
            potentials = _potentials(
                z[i : i + _ROWS_AT_ONCE], z[j : j + _ROWS_AT_ONCE]
            )
            if i == j:  # Each pair once, and no row with itself.
                potentials = np.triu(potentials, 1)
            total += potentials.sum()
    # Between exp(-8) and 1: there is no underflow.
    return math.log(total / math.comb(len(z), 2))


def _potentials(rows, others):
    """exp(-2 d^2) of each row and each other one."""
    squares = np.sum(rows**2, axis=1)[:, None] + np.sum(others**2, axis=1)
    return np.exp(-2 * np.maximum(squares - 2 * rows @ others.T, 0))


def spread(features):
    """How far features spread along each axis, in units of an even spread.

    That is the standard deviation (over the rows, with divisor N) of each
    column of the rows scaled to length 1, times the square root of D.

    Args:
        features: Array of shape `(N, D)`, best projections: representations
            behind a ReLU are never negative and spread less.

    Returns:
        float64 array of shape `(D,)`: all near 1 if the directions are
        isotropic around 0, all 0 if they have collapsed to one, and single
        ones 0 where an axis is not used. The mean square is at most 1.

    Raises:
        ValueError: If `features` are not a finite matrix of at least two rows.

    Example:

    >>> spread([[1, 0], [-1, 0], [0, 1], [0, -1]]).round(6)
    array([1., 1.])

    References:
        - Chen and He 2021, arXiv:2011.10566, section 4.1.
    """
    directions = _directions("features", features)
    return directions.std(axis=0) * math.sqrt(directions.shape[1])


def _matrix(name, rows):
    """The rows as float64; raises if they are none, or not finite."""
    rows = np.asarray(rows, "float64")
    if rows.ndim != 2 or len(rows) < 2 or rows.shape[1] == 0:
        raise ValueError(
            f"`{name}` must have the shape (N, D), with at least two rows. "
            f"Received: {name} of shape {rows.shape}"
        )
    if not np.isfinite(rows).all():
        raise ValueError(f"`{name}` must be finite. Received: NaN or infinity")
    return rows


def _directions(name, rows):
    """The rows scaled to length 1, in float64; zeros stay zeros."""
    rows = _matrix(name, rows)
    # Dividing by the largest entry first keeps the squares in range.
    largest = np.abs(rows).max(axis=1, keepdims=True)
    rows = rows / np.where(largest, largest, 1.0)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1.0)
