"""Probes: small classifiers on the representations of an encoder at rest."""

import copy
import dataclasses
import warnings
from collections.abc import Callable

import keras
import numpy as np

from keras_simclr import _checks
from keras_simclr.labelled import (
    check_classes,
    compare_classes,
    known_labels,
    one_per_row,
)
from keras_simclr.neighbours import unit_rows
from keras_simclr.sampling import split_groups

_K = 20
_TEMPERATURE = 0.1
# scikit-learn's C: the inverse of the L2 penalty. Strongest penalty first.
_INVERSE_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
_UNTUNED = 1.0  # Where a class is too rare to validate on.
_VALIDATION_SHARE = 0.2
_FEW_LABELS = 1_000  # One validation split of fewer says little: take 5.
_MOST_TO_CHOOSE_ON = 10_000
# Where scikit-learn's solver stops: the largest gradient. Its own default; and
# of many examples, quickly: while C is chosen, and with the C that was.
_TOLERANCE, _QUICK_TOLERANCES = 1e-4, (1e-3, 3e-4)
_ROWS_AT_ONCE, _NUMBERS_AT_ONCE = 1_000, 4_000_000
_SMALL_ARRAY = 1_000_000  # Numbers.


@dataclasses.dataclass(frozen=True)
class KNNResult:
    """Result of `knn_probe`.

    Attributes:
        accuracy: Share of test examples classified rightly, 0 to 1.
        k: Neighbours that voted.
        temperature: Temperature of their weights.
        predictions: Label found for each test example.
    """

    accuracy: float
    k: int
    temperature: float
    predictions: np.ndarray = dataclasses.field(repr=False, compare=False)

    def __str__(self):
        settings = _knn_settings(self.k, self.temperature)
        return f"k-NN accuracy {self.accuracy:.2%} ({settings})"


@dataclasses.dataclass(frozen=True)
class LinearResult:
    """Result of `linear_probe`.

    Attributes:
        accuracy: Share of test examples classified rightly, 0 to 1.
        inverse_penalty: scikit-learn's C that validation chose.
        classifier: Keras model from features to class probabilities; behind
            the encoder it classifies images.
        classes: Label of each probability.
        predictions: Label found for each test example.
    """

    accuracy: float
    inverse_penalty: float
    classifier: keras.Model
    classes: tuple
    predictions: np.ndarray = dataclasses.field(repr=False, compare=False)

    def __str__(self):
        return (
            f"linear accuracy {self.accuracy:.2%} (logistic regression on "
            f"standardised features, C={self.inverse_penalty:g})"
        )


def knn_probe(
    train_features,
    train_labels,
    test_features,
    test_labels,
    *,
    k=_K,
    temperature=_TEMPERATURE,
):
    """Classifies by the votes of the most similar training examples.

    The k neighbours with the largest cosine similarity s vote with the weight
    `exp(s / temperature)`.

    Args:
        train_features: Array of shape `(N, D)`.
        train_labels: Array of shape `(N,)`, integers of 0 and more, or texts.
        test_features: Array of shape `(M, D)`.
        test_labels: Array of shape `(M,)`.
        k: Neighbours that vote, at most N.
        temperature: Positive number.

    Returns:
        A `KNNResult`.

    Raises:
        ValueError: If an argument is out of range or the arrays do not match.

    Example:

    >>> features = np.repeat(np.eye(2), 5, axis=0)
    >>> labels = np.repeat([3, 7], 5)
    >>> print(knn_probe(features, labels, features, labels, k=3))
    k-NN accuracy 100.00% (cosine, k=3, temperature=0.1)

    References:
        - Wu et al. 2018, arXiv:1805.01978, section 3.4.
    """
    train_labels, test_labels = _checked_labels(
        train_features, train_labels, test_features, test_labels
    )
    _checks.positive_number("temperature", temperature)
    k = min(_checks.integer("k", k, minimum=1), len(train_labels))
    classes, places = np.unique(train_labels, return_inverse=True)
    predictions = []
    for block in _blocks(test_features, _NUMBERS_AT_ONCE // k):
        test = unit_rows(block)
        nearby, nearest = _nearest(test, train_features, k)
        # Relative to the nearest one's: the weights neither overflow nor all
        # become 0.
        nearby = nearby.astype("float64")
        nearby -= nearby.max(axis=1, keepdims=True)
        with np.errstate(over="ignore"):  # Of small temperatures: to 0.
            weights = np.exp(nearby / temperature)
        votes = np.zeros((len(test), len(classes)))
        rows = np.arange(len(test))[:, None]
        np.add.at(votes, (rows, places[nearest]), weights)
        predictions.append(classes[votes.argmax(axis=1)])
    predictions = np.concatenate(predictions)
    accuracy = np.mean(predictions == test_labels)
    return KNNResult(float(accuracy), k, temperature, predictions)


def _nearest(test, train_features, k):
    """Similarities and places of the k nearest of each row, block by block."""
    nearby = np.empty((len(test), 0), "float32")
    nearest = np.empty((len(test), 0), "int64")
    start = 0
    for block in _blocks(train_features):
        similarities = test @ unit_rows(block).T
        numbers = np.arange(start, start + len(block))
        numbers = np.broadcast_to(numbers, similarities.shape)
        start += len(block)
        nearby = np.concatenate([nearby, similarities], axis=1)
        nearest = np.concatenate([nearest, numbers], axis=1)
        if nearby.shape[1] >= k:
            kept = np.argpartition(-nearby, k - 1, axis=1)[:, :k]
            nearby = np.take_along_axis(nearby, kept, axis=1)
            nearest = np.take_along_axis(nearest, kept, axis=1)
    return nearby, nearest


def linear_probe(
    train_features,
    train_labels,
    test_features,
    test_labels,
    *,
    groups=None,
    seed=0,
    quick=False,
):
    """Trains a logistic regression on features and tests it.

    The features are standardised. C, the inverse of the L2 penalty, is the best
    of 0.001, 0.01, 0.1, 1 and 10 on a stratified validation split of 20 % (the
    mean over five splits below 1,000 labels; 10,000 examples at most to train
    and to validate on; duplicates are not divided); then all training examples
    are used.

    Args:
        train_features: Array of shape `(N, D)`.
        train_labels: Array of shape `(N,)`, integers of 0 and more, or texts.
            C is 1 if a class is too rare to validate on.
        test_features: Array of shape `(M, D)`.
        test_labels: Array of shape `(M,)`.
        groups: Integers of shape `(N,)`, equal for training examples that are
            duplicates; None if there are none.
        seed: Integer that draws the validation split.
        quick: Whether to be done in a fraction of the time. Of fewer examples
            than features, these are turned so that few remain: it is the same
            regression. Of more than 10,000 examples, the solver stops earlier,
            weaker penalties are not tried once they are worse, and the last
            regression starts from the one that was best: by
            `benchmarks/recipes/quick_probe.py` that costs at most 0.2 points.

    Returns:
        A `LinearResult`: the accuracy, and the classifier that reached it.

    Raises:
        ValueError: If the arrays do not match or hold fewer than two classes.

    Example:

    >>> rng = np.random.default_rng(0)
    >>> features = rng.normal(size=(40, 2)) + np.repeat([[-3], [3]], 20, axis=0)
    >>> labels = np.repeat(["cat", "dog"], 20)
    >>> probe = linear_probe(features, labels, features, labels)
    >>> probe.accuracy, probe.classes
    (1.0, ('cat', 'dog'))
    >>> probe.classifier.predict(features[:1], verbose=0).round()
    array([[1., 0.]], dtype=float32)

    In front of it, the encoder makes an image classifier:
    `keras.Sequential([encoder, probe.classifier])`.

    References:
        - Chen et al. 2020, arXiv:2002.05709, section 2.3 and appendix B.8.
    """
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    _checks.seed("seed", seed)
    labels, test_labels = _checked_labels(
        train_features, train_labels, test_features, test_labels
    )
    scaler = StandardScaler()
    for block in _blocks(train_features):
        scaler.partial_fit(block)
    features = np.empty(np.shape(train_features), "float32")
    for rows, block in zip(
        _blocks(features), _blocks(train_features), strict=True
    ):
        rows[:] = scaler.transform(block)
    basis = None
    if quick and len(features) < features.shape[1]:
        basis, rows = np.linalg.qr(features.T)
        features = np.ascontiguousarray(rows.T)
    tolerances = (_TOLERANCE, _TOLERANCE)
    if is_quick := quick and len(features) > _MOST_TO_CHOOSE_ON:
        tolerances = _QUICK_TOLERANCES
    # Threads cost more than they bring on small arrays; and on all, many times
    # as much, where other work has the cores.
    is_alone = quick or features.size < _SMALL_ARRAY
    with threadpool_limits(1 if is_alone else None):
        inverse_penalty, start = _choose_inverse_penalty(
            features, labels, groups, seed, tolerances[0], is_quick
        )
        solver = fit_logistic(
            features, labels, inverse_penalty, start, tolerances[1]
        )
    if basis is not None:
        solver.coef_ = solver.coef_ @ basis.T
        solver.n_features_in_ = len(basis)
    predictions = np.concatenate(
        [
            solver.predict(scaler.transform(block).astype("float32"))
            for block in _blocks(test_features)
        ]
    )
    return LinearResult(
        accuracy=float(np.mean(predictions == test_labels)),
        inverse_penalty=inverse_penalty,
        classifier=_as_keras(solver, scaler),
        classes=tuple(solver.classes_.tolist()),
        predictions=predictions,
    )


def _choose_inverse_penalty(
    features, labels, groups, seed, tolerance, is_quick
):
    """The best C; if it is quick, also the regression to go on from, or None.

    Quickly is for one split: the search ends where a weaker penalty is worse.
    """
    groups = np.arange(len(labels)) if groups is None else np.asarray(groups)
    _, firsts = np.unique(groups, return_index=True)
    _, counts = np.unique(labels[firsts], return_counts=True)
    classes = len(np.unique(labels))
    if counts.min() < 2 or len(counts) < classes:
        return _UNTUNED, None
    size = len(firsts)
    held_out = max(classes, int(_VALIDATION_SHARE * size))
    splits = split_groups(
        labels,
        groups,
        seed,
        n_splits=_validation_splits(len(labels)),
        train_size=min(size - held_out, _MOST_TO_CHOOSE_ON),
        test_size=min(held_out, _MOST_TO_CHOOSE_ON),
    )
    scores, best = np.zeros(len(_INVERSE_PENALTIES)), None
    for kept, held in splits:
        if len(np.unique(labels[kept])) < classes:
            return _UNTUNED, None
        solver = None
        for place, inverse_penalty in enumerate(_INVERSE_PENALTIES):
            solver = fit_logistic(
                features[kept], labels[kept], inverse_penalty, solver, tolerance
            )
            scores[place] += solver.score(features[held], labels[held])
            if is_quick:
                if scores[place] < scores.max():
                    break
                if scores.argmax() == place:
                    best = copy.copy(solver)  # It has new arrays then.
    # The first of equals is the strongest penalty.
    return _INVERSE_PENALTIES[int(scores.argmax())], best


def _validation_splits(labels):
    return 5 if labels < _FEW_LABELS else 1


def fit_logistic(
    features, labels, inverse_penalty, start=None, tolerance=_TOLERANCE
):
    """Fits scikit-learn's classifier, or goes on fitting `start`."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    solver = start or LogisticRegression(max_iter=200, warm_start=True)
    solver.set_params(C=inverse_penalty, tol=tolerance)
    with warnings.catch_warnings():
        # Weak penalties converge slowly; 200 iterations are the setting.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return solver.fit(features, labels)


def _as_keras(solver, scaler):
    """The same classifier as a Keras model, standardisation folded in."""
    kernel, bias = solver.coef_.T, solver.intercept_
    if len(bias) == 1:  # Two classes: one logit, against 0.
        kernel = np.concatenate([np.zeros_like(kernel), kernel], axis=1)
        bias = np.concatenate([np.zeros_like(bias), bias])
    kernel = kernel / scaler.scale_[:, None]
    bias = bias - scaler.mean_ @ kernel
    dense = keras.layers.Dense(
        len(bias), activation="softmax", dtype="float32", name="probabilities"
    )
    inputs = keras.Input((len(kernel),), name="features", dtype="float32")
    model = keras.Model(inputs, dense(inputs), name="linear_probe")
    dense.set_weights([kernel, bias])
    return model


def _checked_labels(train_features, train_labels, test_features, test_labels):
    """Labels to learn from and to test on; refuses what does not fit them."""
    checked, widths = [], []
    for name, features, given in (
        ("train", train_features, train_labels),
        ("test", test_features, test_labels),
    ):
        labels = one_per_row(given)
        size, *width = shape = np.shape(features) or (0,)
        widths.append(width)
        if len(width) != 1 or not width[0] or labels.shape[:1] != (size,):
            raise ValueError(
                f"`{name}_features` must have the shape (N, D), with N labels. "
                f"Received: {name}_features of shape {shape}, "
                f"{name}_labels of shape {np.shape(labels)}"
            )
        dtype = np.asarray(features[:1]).dtype
        if dtype.kind in "OSUTcMm":
            raise ValueError(
                f"`{name}_features` must be real numbers. Received: "
                f"{name}_features of dtype {dtype}"
            )
        if not all(np.isfinite(block).all() for block in _blocks(features)):
            raise ValueError(
                f"`{name}_features` must be finite. Received: NaN or infinity"
            )
        known, rows = known_labels(f"{name}_labels", labels)
        if len(rows) < len(labels):
            raise ValueError(
                f"`{name}_labels` must be 0 or more: negative ones mean that "
                f"there is none. Received: {len(labels) - len(rows)} negative "
                f"labels. Leave these out: is_known = {name}_labels >= 0, "
                f"{name}_features[is_known], {name}_labels[is_known]"
            )
        checked.append(known)
    if widths[0] != widths[1]:
        raise ValueError(
            "`test_features` must be as wide as `train_features`. Received: "
            f"{widths[1][0]} features to test on, {widths[0][0]} to learn from"
        )
    check_classes("train_labels", checked[0])
    compare_classes(*checked)  # Refuses others.
    return checked


def _blocks(rows, most=_ROWS_AT_ONCE):
    """Parts of some rows each: what is made of them is never held at once."""
    most = min(most, _ROWS_AT_ONCE, _NUMBERS_AT_ONCE // np.shape(rows)[1])
    most = max(1, most)
    return [rows[x : x + most] for x in range(0, len(rows), most)]


@dataclasses.dataclass(frozen=True)
class ProbeKind:
    """A probe as `evaluate` uses it.

    Attributes:
        run: The probe, which also takes `groups`, a `seed` and whether to be
            `quick`.
        settings: What is fixed in it, in words.
        seconds: Function that estimates how long it takes, from the numbers of
            training examples, of test examples, of features and of classes,
            and whether it is quick.
    """

    run: Callable
    settings: str
    seconds: Callable


def _knn_settings(k, temperature):
    return f"cosine, k={k}, temperature={temperature}"


# Measured on one core of an AMD EPYC.


def _knn_seconds(train, test, width, classes, is_quick):
    return train * test * (1.3e-8 + 2.5e-11 * width)


def _linear_seconds(train, test, width, classes, is_quick):
    splits, steps = _validation_splits(train), 200
    if is_quick:
        width = min(width, train)
        steps = 100 if train > _MOST_TO_CHOOSE_ON else steps
    fits = splits * len(_INVERSE_PENALTIES)
    rows = train + fits * min(train, _MOST_TO_CHOOSE_ON)
    return 0.01 * (fits + 1) + 3e-10 * steps * rows * width * classes


def settings_in_words(probe, train, is_quick):
    """What is fixed in a probe of so many training examples."""
    words = KINDS[probe].settings
    if probe == "linear" and is_quick and train > _MOST_TO_CHOOSE_ON:
        words += " on 10,000 examples, quickly"
    return words


KINDS = {
    "linear": ProbeKind(
        run=linear_probe,
        settings="logistic regression, standardised, C chosen of "
        + ", ".join(f"{c:g}" for c in _INVERSE_PENALTIES),
        seconds=_linear_seconds,
    ),
    "knn": ProbeKind(
        run=lambda *arrays, groups, seed, quick: knn_probe(*arrays),
        settings=_knn_settings(_K, _TEMPERATURE),
        seconds=_knn_seconds,
    ),
}
