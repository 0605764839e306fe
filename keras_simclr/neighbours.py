"""What is near what: search by example, and images that stand for others."""

import dataclasses

import numpy as np

from keras_simclr import _checks

_ROWS_AT_ONCE = 4_096


def unit_rows(features):
    """Rows of length 1, float32, whatever their size was; zeros stay zeros.

    Args:
        features: Array of shape `(N, D)`, of real numbers.

    Returns:
        float32 array of shape `(N, D)`.

    Example:

    >>> unit_rows(np.array([[3e30, 4e30], [0.0, 0.0]])).round(2)
    array([[0.6, 0.8], [0. , 0. ]], dtype=float32)
    """
    # A power of two for each row brings its squares into range, exactly.
    features = np.asarray(features)
    if features.dtype.kind != "f" or features.dtype.itemsize < 4:
        features = features.astype("float32")
    _, exponents = np.frexp(np.abs(features).max(axis=1, keepdims=True))
    features = np.ldexp(features, -exponents).astype("float32", copy=False)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(norms, np.finfo("float32").tiny)


class NearestNeighbours:
    """Finds the rows that are most similar to others, by cosine.

    Args:
        features: Array of shape `(N, D)`, of finite real numbers, such as
            `simclr.extract_features` returns.

    Raises:
        ValueError: If it has another shape, no rows, or is not finite.

    Example:

    >>> neighbours = NearestNeighbours([[1.0, 0.0], [0.0, 1.0], [3.0, 3.0]])
    >>> places, similarities = neighbours.find([[0.0, 2.0]], count=2)
    >>> places, similarities.round(2)
    (array([[1, 2]]), array([[1.  , 0.71]], dtype=float32))
    """

    def __init__(self, features):
        from sklearn import neighbors

        self._rows = unit_rows(_checked("features", features))
        # Of rows of length 1 the order is that of the cosine, and
        # scikit-learn is faster at it.
        self._index = neighbors.NearestNeighbors(
            algorithm="brute", metric="sqeuclidean"
        ).fit(self._rows)

    def __len__(self):
        return len(self._rows)

    def find(self, features, count):
        """The most similar rows of each row.

        Args:
            features: Array of shape `(M, D)`.
            count: How many to find, at most N.

        Returns:
            `(places, similarities)`, arrays of shape `(M, count)`: of rows, the
            most similar first; and their cosines, -1 to 1.

        Raises:
            ValueError: If there are not so many, or the rows are others.

        Example:

        >>> neighbours = NearestNeighbours(np.eye(3))
        >>> neighbours.find(np.eye(3)[1:2], count=1)[0]
        array([[1]])
        """
        features = _checked("features", features)
        width = self._rows.shape[1]
        if features.shape[1] != width:
            raise ValueError(
                f"`features` must be as wide as those to search: {width}. "
                f"Received: features of shape {features.shape}"
            )
        return self._found(unit_rows(features), count, len(self))

    def others(self, count):
        """The most similar other rows of each of its own rows.

        Args:
            count: How many to find, below N.

        Returns:
            As `find`, without the row itself.

        Raises:
            ValueError: If there are not so many.

        Example:

        >>> NearestNeighbours([[0.0, 1.0], [0.1, 1.0], [1.0, 0.0]]).others(1)[0]
        array([[1], [0], [1]])
        """
        return self._found(None, count, len(self) - 1)

    def _found(self, rows, count, most):
        _checks.integer("count", count, minimum=1)
        if count > most:
            raise ValueError(
                f"`count` must be at most {most}: there are {len(self)} rows. "
                f"Received: count={count}"
            )
        places = self._index.kneighbors(rows, count, return_distance=False)
        ours = self._rows if rows is None else rows
        similarities = np.concatenate(
            [
                np.einsum("md,mkd->mk", ours[part], self._rows[places[part]])
                for part in _parts(len(ours), 256)
            ]
        )
        similarities = np.clip(similarities, -1, 1)
        # Of equals the first comes first, whatever the threads did.
        order = np.lexsort((places, -similarities), axis=1)
        return (
            np.take_along_axis(places, order, axis=1),
            np.take_along_axis(similarities, order, axis=1),
        )


def _parts(size, most=_ROWS_AT_ONCE):
    """Slices of so many rows, some at a time."""
    return [slice(x, x + most) for x in range(0, size, most)]


def _checked(name, features):
    features = np.asarray(features)
    is_number = features.dtype.kind in "biuf"
    if features.ndim != 2 or not features.size or not is_number:
        raise ValueError(
            f"`{name}` must be numbers of shape (N, D), at least one row. "
            f"Received: {name} of shape {features.shape} and dtype "
            f"{features.dtype}"
        )
    if not np.isfinite(features).all():
        raise ValueError(f"`{name}` must be finite. Received: NaN or infinity")
    return features


@dataclasses.dataclass(frozen=True)
class Centres:
    """Result of `k_centres`.

    Attributes:
        places: Of the rows that were chosen, in order.
        similarities: Cosine of each to the nearest row of all that were there
            before it; NaN for a first one that had none before it.
        nearest: Place of that row, or -1.
        counts: How many rows, itself included, each is the nearest centre of
            in the end.
    """

    places: np.ndarray
    similarities: np.ndarray
    nearest: np.ndarray
    counts: np.ndarray


def k_centres(features, count, known=None):
    """Chooses rows such that no row is far from all that were chosen.

    Greedily: the next is always the one that is least like all before it. The
    largest distance is then at most twice what the best choice would reach.

    Args:
        features: Array of shape `(N, D)`.
        count: How many to choose; of fewer rows, all.
        known: Boolean array of shape `(N,)`: rows that are chosen already, as
            labelled ones are. Without any, the first is the one nearest to
            the mean.

    Returns:
        `Centres`.

    Raises:
        ValueError: If the arrays have other shapes, or are not finite.

    Example:

    >>> found = k_centres([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]], count=2)
    >>> found.places, found.counts
    (array([1, 2]), array([2, 1]))

    References:
        - Gonzalez 1985, doi:10.1016/0304-3975(85)90224-5.
        - Sener and Savarese 2018, arXiv:1708.00489 (for labelling).
    """
    _checks.integer("count", count, minimum=1)
    rows = unit_rows(_checked("features", features))
    size = len(rows)
    is_open = np.ones(size, bool)
    if known is not None:
        is_open = ~np.asarray(known, bool)
    if is_open.shape != (size,):
        raise ValueError(
            f"`known` must be booleans of shape ({size},), one a row. "
            f"Received: known of shape {is_open.shape}"
        )
    best = np.full(size, -np.inf, "float32")
    centre = np.full(size, -1)
    for part in _parts(size):
        places = np.arange(size)[part][~is_open[part]]
        if len(places):
            _draw_near(rows, places, best, centre)
    chosen, similarities, nearest = [], [], []
    while len(chosen) < count and is_open.any():
        open_places = np.flatnonzero(is_open)
        if centre[0] < 0:
            mean = rows.mean(axis=0)
            place = open_places[np.argmax(rows[open_places] @ mean)]
            similarities.append(np.nan)
        else:
            place = open_places[np.argmin(best[open_places])]
            similarities.append(min(best[place], 1.0))
        chosen.append(place)
        nearest.append(centre[place])
        is_open[place] = False
        _draw_near(rows, np.array([place]), best, centre)
    counts = np.bincount(centre, minlength=size) if chosen else np.zeros(size)
    return Centres(
        places=np.array(chosen, "int64"),
        similarities=np.array(similarities, "float32"),
        nearest=np.array(nearest, "int64"),
        counts=counts[chosen].astype("int64"),
    )


def _draw_near(rows, places, best, centre):
    """Notes of each row which centre is its nearest, with these new ones."""
    centres = rows[places]
    for part in _parts(len(rows)):
        similarities = rows[part] @ centres.T
        nearest = similarities.argmax(axis=1)
        found = np.take_along_axis(similarities, nearest[:, None], axis=1)[:, 0]
        closer = found > best[part]
        best[part][closer] = found[closer]
        centre[part][closer] = places[nearest[closer]]
    # Of a row of zeros nothing else would be the nearest.
    best[places], centre[places] = np.inf, places
