"""Labels that are probably wrong, by what the other labels teach."""

import dataclasses

import numpy as np

from keras_simclr import _checks
from keras_simclr.labelled import check_classes
from keras_simclr.probes import fit_logistic

_FOLDS = 5
_INVERSE_PENALTY = 0.1  # scikit-learn's C, on standardised features.
_TOLERANCE = 1e-3
_MARGIN = 0.5  # A poor classifier is seldom so sure.


@dataclasses.dataclass(frozen=True)
class LabelErrors:
    """Result of `find_label_errors`.

    Attributes:
        places: Of the labels that are probably wrong, the worst first.
        classes: Array of all classes that were learnt, sorted.
        probabilities: float32 array of shape `(N, classes)`, of each example
            from a classifier that did not see it; NaN where there is none.
        predictions: The likeliest class of each example, or of an example that
            was left out its label.
        is_tested: Boolean array, whether there is a prediction: there is none
            for the only example of a class.
    """

    places: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray
    predictions: np.ndarray
    is_tested: np.ndarray


def find_label_errors(features, labels, *, groups=None, seed=0):
    """Finds labels that a classifier, taught by the others, is sure against.

    Each example gets probabilities from a logistic regression on standardised
    features that is trained on the other four fifths of the examples. A label
    is probably wrong if the probability of another class is larger by at least
    a half, and no less than the examples of that class have of it on average.

    Args:
        features: Array of shape `(N, D)`.
        labels: Array of shape `(N,)`, integers or texts.
        groups: Integers of shape `(N,)`, equal for examples that are
            duplicates, which are not divided; None: there are none.
        seed: Integer that the fifths depend on.

    Returns:
        `LabelErrors`.

    Raises:
        ValueError: If the arrays do not match or are not finite, or there are
            fewer than two classes of two examples that are no duplicates.

    Example:

    >>> features = np.random.default_rng(0).normal(size=(40, 2))
    >>> features[20:] += 5
    >>> labels = np.repeat(["cat", "dog"], 20)
    >>> labels[7] = "dog"
    >>> find_label_errors(features, labels).places
    array([7])

    References:
        - Northcutt et al. 2021, arXiv:1911.00068, section 3.1 (thresholds).

    Deviation: there is a margin, too; what a poor classifier says of labels
    tells little of these.
    """
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    _checks.seed("seed", seed)
    features, labels = np.asarray(features), np.asarray(labels)
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            "`features` must have the shape (N, D), with N labels. Received: "
            f"features of shape {features.shape}, labels of shape "
            f"{labels.shape}"
        )
    if not np.isfinite(features).all():
        raise ValueError("`features` must be finite. Received: NaN or infinity")
    check_classes("labels", labels)
    folds = _folds(labels, groups, seed)
    classes = np.unique(labels[folds >= 0])
    check_classes("labels", classes)
    probabilities = np.full((len(labels), len(classes)), np.nan, "float32")
    # Threads change the last bits, and cost more than they bring.
    with threadpool_limits(1):
        for fold in range(_FOLDS):
            test, train = folds == fold, (folds >= 0) & (folds != fold)
            if not test.any():
                continue
            scaler = StandardScaler().fit(features[train])
            solver = fit_logistic(
                scaler.transform(features[train]).astype("float32"),
                labels[train],
                _INVERSE_PENALTY,
                tolerance=_TOLERANCE,
            )
            found = np.zeros((int(test.sum()), len(classes)), "float32")
            columns = np.searchsorted(classes, solver.classes_)
            found[:, columns] = solver.predict_proba(
                scaler.transform(features[test]).astype("float32")
            )
            probabilities[test] = found
    tested = folds >= 0
    predictions = labels.copy()
    best = probabilities[tested].argmax(axis=1)
    predictions[tested] = classes[best]
    return LabelErrors(
        places=_worst(probabilities, labels, classes, tested),
        classes=classes,
        probabilities=probabilities,
        predictions=predictions,
        is_tested=tested,
    )


def _folds(labels, groups, seed):
    """The fifth of each example, stratified; -1 where nothing can be learnt."""
    size = len(labels)
    groups = np.arange(size) if groups is None else np.asarray(groups)
    _, firsts, inverse = np.unique(
        groups, return_index=True, return_inverse=True
    )
    order = np.random.default_rng(seed).permutation(len(firsts))
    of_groups = np.full(len(firsts), -1)
    shift = 0
    for each in np.unique(labels[firsts]):
        rows = order[labels[firsts[order]] == each]
        if len(rows) > 1:
            of_groups[rows] = (shift + np.arange(len(rows))) % _FOLDS
            shift += len(rows)
    return of_groups[inverse.reshape(-1)]


def _worst(probabilities, labels, classes, tested):
    """Places of the labels that are probably wrong, the worst first."""
    rows = np.flatnonzero(tested)
    known = np.isin(labels[rows], classes)
    rows = rows[known]
    found = probabilities[rows].astype("float64")
    given = np.searchsorted(classes, labels[rows])
    own = found[np.arange(len(rows)), given]
    thresholds = np.array(
        [found[given == x, x].mean() for x in range(len(classes))]
    )
    others = np.where(found >= thresholds, found, -1.0)
    others[np.arange(len(rows)), given] = -1.0
    margins = others.max(axis=1) - own
    order = np.argsort(-margins, kind="stable")
    return rows[order[margins[order] >= _MARGIN]]
