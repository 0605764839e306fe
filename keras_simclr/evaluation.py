"""What an encoder is worth: probes on its representations, with baselines."""

import dataclasses
import random
import warnings

import keras
import numpy as np
import tensorflow as tf

from keras_simclr import _checks, data
from keras_simclr.augmentations import to_float
from keras_simclr.model import SimCLRModel
from keras_simclr.networks import plain_copy

# scikit-learn's C: the inverse of the L2 penalty. Strongest penalty first.
_INVERSE_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
_VALIDATION_SHARE = 0.2
# Below this many labels one validation split says little; take the mean of 5.
_FEW_LABELS = 1_000
_MOST_TO_CHOOSE_ON = 10_000
_ROWS_AT_ONCE = 1_000
_SMALL_ARRAY = 1_000_000  # Numbers.


@dataclasses.dataclass(frozen=True)
class KNNProbe:
    """Result of `knn_probe`.

    Attributes:
        accuracy: Share of test examples classified rightly, 0 to 1.
        k: Neighbours that voted.
        temperature: Temperature of their weights.
    """

    accuracy: float
    k: int
    temperature: float

    def __str__(self):
        return (
            f"k-NN accuracy {self.accuracy:.2%} (cosine, k={self.k}, "
            f"temperature={self.temperature})"
        )


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """Result of `linear_probe`.

    Attributes:
        accuracy: Share of test examples classified rightly, 0 to 1.
        inverse_penalty: scikit-learn's C that validation chose.
        classifier: Keras model from features to class probabilities; behind
            the encoder it classifies images.
        classes: Label of each probability.
    """

    accuracy: float
    inverse_penalty: float
    classifier: keras.Model
    classes: tuple

    def __str__(self):
        return (
            f"linear accuracy {self.accuracy:.2%} (logistic regression on "
            f"standardised features, C={self.inverse_penalty:g})"
        )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`; `str()` is the table.

    Attributes:
        rows: Dictionaries with `features` (`"pixels"`, `"untrained"`,
            `"simclr"`), `probe` (`"linear"`, `"knn"`), `labels` (per class, or
            `"all"`), `accuracy` (mean, 0 to 1), `std` (over the draws of the
            labelled set, None for a single one) and `draws` (each accuracy).
        settings: What was fixed: the probes' settings and the seed.
    """

    rows: tuple
    settings: dict

    def __str__(self):
        columns = list(dict.fromkeys(row["labels"] for row in self.rows))
        heads = ["all" if x == "all" else f"{x} per class" for x in columns]
        lines = ["test accuracy, %    " + "".join(f"{h:>16}" for h in heads)]
        for probe in dict.fromkeys(row["probe"] for row in self.rows):
            for features in dict.fromkeys(row["features"] for row in self.rows):
                cells = [
                    _cell(row)
                    for label in columns
                    for row in self.rows
                    if (row["features"], row["probe"], row["labels"])
                    == (features, probe, label)
                ]
                name = f"{features}, {probe}"
                lines.append(f"{name:20}" + "".join(f"{c:>16}" for c in cells))
        return "\n".join(lines)


def _cell(row):
    mean = f"{100 * row['accuracy']:.1f}"
    return mean if row["std"] is None else f"{mean} ± {100 * row['std']:.1f}"


def extract_features(model, images, *, batch_size=256):
    """Representations of images, from an encoder at rest.

    Args:
        model: A `SimCLRModel`, or any Keras model from images to
            representations.
        images: Array of shape `(N, height, width, channels)`, uint8 or float
            in [0, 1]; or a dataset of batches of them, where labels are
            ignored.
        batch_size: Images in a batch, for arrays.

    Returns:
        float32 array of shape `(N, features)`: before the projection head, and
        from the float32 encoder that `export_encoder` writes.

    Raises:
        ValueError: If images are not finite, or floats not in [0, 1].

    Example:

    >>> encoder = simclr.ResNet(10, stem="cifar", input_shape=(8, 8, 1))
    >>> model = simclr.SimCLRModel(encoder)
    >>> extract_features(model, np.zeros((4, 8, 8, 1), "uint8")).shape
    (4, 512)
    """
    (features,), _ = _extract([representation(model)], images, batch_size)
    return features


def representation(model):
    """Function from a batch of images to representations, frozen and at rest.

    Args:
        model: A `SimCLRModel`, or any Keras model.

    Returns:
        Function from a tensor of images to a float32 tensor
        `(batch, features)`.

    Example:

    >>> encoder = simclr.ResNet(10, stem="cifar", input_shape=(8, 8, 1))
    >>> model = simclr.SimCLRModel(encoder)
    >>> representation(model)(tf.zeros((2, 8, 8, 1))).shape
    TensorShape([2, 512])
    """
    if isinstance(model, SimCLRModel):
        encoder, prepare = plain_copy(model.encoder), model.evaluation_view
    else:
        encoder, prepare = model, to_float
    return tf.function(
        lambda images: tf.cast(
            encoder(prepare(images), training=False), tf.float32
        ),
        reduce_retracing=True,
    )


def _extract(functions, images, batch_size=256):
    """Outputs of several functions of the images, and the labels if any."""
    if not isinstance(images, tf.data.Dataset):
        parts = images if isinstance(images, tuple) else (images,)
        images = data.dataset_from_arrays(
            *parts, batch_size=batch_size, shuffle=False, drop_remainder=False
        )
    data.check_length(images)
    outputs, labels = [[] for _ in functions], []
    for element in data.prepared(images):
        element = data.unpack(element)
        batch = data.images_of(element)
        is_image = batch.shape.rank == 4
        try:
            data.value_checks(batch, "images", in_unit_range=is_image)
        except tf.errors.InvalidArgumentError as error:
            raise ValueError(data.failed_check(error)) from None
        for output, function in zip(outputs, functions, strict=True):
            output.append(function(batch).numpy())
        if "labels" in element:
            labels.append(element["labels"].numpy())
    outputs = [np.concatenate(output) for output in outputs]
    return outputs, np.concatenate(labels) if labels else None


def knn_probe(
    train_features,
    train_labels,
    test_features,
    test_labels,
    *,
    k=20,
    temperature=0.1,
):
    """Classifies by the votes of the most similar training examples.

    The k neighbours with the largest cosine similarity s vote with the weight
    `exp(s / temperature)`.

    Args:
        train_features: Array of shape `(N, D)`.
        train_labels: Array of shape `(N,)`, any labels.
        test_features: Array of shape `(M, D)`.
        test_labels: Array of shape `(M,)`.
        k: Neighbours that vote, at most N.
        temperature: Positive number.

    Returns:
        A `KNNProbe`.

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
    _check_probe(train_features, train_labels, test_features, test_labels)
    _checks.positive_number("temperature", temperature)
    k = min(_checks.integer("k", k, minimum=1), len(train_labels))
    classes, places = np.unique(train_labels, return_inverse=True)
    train = _normalize(train_features)
    predictions = []
    for start in range(0, len(test_features), _ROWS_AT_ONCE):
        test = _normalize(test_features[start : start + _ROWS_AT_ONCE])
        similarities = test @ train.T  # (rows, N)
        nearest = np.argpartition(-similarities, k - 1, axis=1)[:, :k]
        nearby = np.take_along_axis(similarities, nearest, axis=1)
        # The largest similarity is at most 1: the weights cannot overflow.
        weights = np.exp((nearby.astype("float64") - 1.0) / temperature)
        votes = np.zeros((len(test), len(classes)))
        rows = np.arange(len(test))[:, None]
        np.add.at(votes, (rows, places[nearest]), weights)
        predictions.append(classes[votes.argmax(axis=1)])
    accuracy = np.mean(np.concatenate(predictions) == np.asarray(test_labels))
    return KNNProbe(float(accuracy), k, temperature)


def linear_probe(
    train_features, train_labels, test_features, test_labels, *, seed=0
):
    """Trains a logistic regression on features and tests it.

    The features are standardised. C, the inverse of the L2 penalty, is the best
    of 0.001, 0.01, 0.1, 1 and 10 on a stratified validation split of 20 % (the
    mean over five splits below 1,000 labels; 10,000 examples at most to train
    and to validate on); then all training examples are used.

    Args:
        train_features: Array of shape `(N, D)`.
        train_labels: Array of shape `(N,)`, any labels, at least two of each.
        test_features: Array of shape `(M, D)`.
        test_labels: Array of shape `(M,)`.
        seed: Integer that draws the validation split.

    Returns:
        A `LinearProbe`: the accuracy, and the classifier that reached it.

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

    _check_probe(train_features, train_labels, test_features, test_labels)
    labels = np.asarray(train_labels)
    scaler = StandardScaler().fit(train_features)
    features = scaler.transform(train_features).astype("float32")
    # Threads cost more than they bring on small arrays.
    is_small = features.size < _SMALL_ARRAY
    with threadpool_limits(1 if is_small else None):
        inverse_penalty = _choose_inverse_penalty(features, labels, seed)
        solver = _fit_logistic(features, labels, inverse_penalty)
    test = scaler.transform(test_features).astype("float32")
    return LinearProbe(
        accuracy=float(solver.score(test, np.asarray(test_labels))),
        inverse_penalty=inverse_penalty,
        classifier=_as_keras(solver, scaler),
        classes=tuple(solver.classes_.tolist()),
    )


def _choose_inverse_penalty(features, labels, seed):
    from sklearn.model_selection import StratifiedShuffleSplit

    classes = len(np.unique(labels))
    held_out = max(classes, int(_VALIDATION_SHARE * len(labels)))
    splits = StratifiedShuffleSplit(
        n_splits=5 if len(labels) < _FEW_LABELS else 1,
        train_size=min(len(labels) - held_out, _MOST_TO_CHOOSE_ON),
        test_size=min(held_out, _MOST_TO_CHOOSE_ON),
        random_state=seed,
    )
    scores = np.zeros(len(_INVERSE_PENALTIES))
    for kept, held in splits.split(features, labels):
        solver = None
        for place, inverse_penalty in enumerate(_INVERSE_PENALTIES):
            solver = _fit_logistic(
                features[kept], labels[kept], inverse_penalty, solver
            )
            scores[place] += solver.score(features[held], labels[held])
    # The first of equals is the strongest penalty.
    return _INVERSE_PENALTIES[int(scores.argmax())]


def _fit_logistic(features, labels, inverse_penalty, start=None):
    """Fits one penalty, from the weights of `start` if given."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    solver = start or LogisticRegression(max_iter=200, warm_start=True)
    solver.set_params(C=inverse_penalty)
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


def _check_probe(train_features, train_labels, test_features, test_labels):
    for name, features, labels in (
        ("train", train_features, train_labels),
        ("test", test_features, test_labels),
    ):
        if np.ndim(features) != 2 or len(features) != len(labels):
            raise ValueError(
                f"`{name}_features` must have the shape (N, D), with N labels. "
                f"Received: {name}_features of shape {np.shape(features)}, "
                f"{name}_labels of shape {np.shape(labels)}"
            )
        if not np.isfinite(features).all():
            raise ValueError(
                f"`{name}_features` must be finite. Received: NaN or infinity"
            )
    if len(np.unique(train_labels)) < 2:
        raise ValueError(
            "`train_labels` must hold at least two classes. Received: "
            f"{np.unique(train_labels).tolist()}"
        )


def _normalize(features):
    features = np.asarray(features, "float32")
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(norms, np.finfo("float32").tiny)


def evaluate(model, train, test, *, labels=(10, "all"), draws=5, seed=0):
    """Probes an encoder beside raw pixels and the same encoder untrained.

    Args:
        model: A `SimCLRModel`, or a Keras model from images to
            representations.
        train: Labelled images for the probes: `(images, labels)` arrays, or a
            dataset of batches of them.
        test: The same, to test on.
        labels: Labels per class the probes may use: integers, or `"all"`.
        draws: Labelled sets drawn for each integer. All features see the same.
        seed: Integer that draws the labelled sets, the validation splits and
            the untrained encoder.

    Returns:
        An `Evaluation`.

    Raises:
        ValueError: If labels are missing, or a class has too few.

    Example:

    >>> encoder = keras.Sequential(
    ...     [keras.Input((8, 8, 1)), keras.layers.Flatten()]
    ... )
    >>> model = simclr.SimCLRModel(encoder)
    >>> rng = np.random.default_rng(0)
    >>> images, labels = rng.random((20, 8, 8, 1)), np.repeat([0, 1], 10)
    >>> both = (images, labels)
    >>> result = evaluate(model, both, both, labels=(5,), draws=2)
    >>> len(result.rows)
    6
    """
    functions = {
        "pixels": lambda images: tf.reshape(
            to_float(images), (tf.shape(images)[0], -1)
        ),
        "untrained": representation(_untrained_copy(model, seed)),
        "simclr": representation(model),
    }
    train_features, train_labels = _extract(functions.values(), train)
    test_features, test_labels = _extract(functions.values(), test)
    for name, found in (("train", train_labels), ("test", test_labels)):
        if found is None:
            raise ValueError(
                f"`{name}` must hold labels: elements (images, labels). "
                "Received: images only"
            )
    rows = []
    for amount in labels:
        chosen = _draw_labelled(train_labels, amount, draws, seed)
        for features, x, x_test in zip(
            functions, train_features, test_features, strict=True
        ):
            for name, probe in (("linear", linear_probe), ("knn", knn_probe)):
                accuracies = [
                    probe(
                        x[places], train_labels[places], x_test, test_labels
                    ).accuracy
                    for places in chosen
                ]
                rows.append(
                    {
                        "features": features,
                        "probe": name,
                        "labels": amount,
                        "accuracy": float(np.mean(accuracies)),
                        "std": float(np.std(accuracies, ddof=1))
                        if len(accuracies) > 1
                        else None,
                        "draws": accuracies,
                    }
                )
    settings = {
        "knn": "cosine, k=20, temperature=0.1",
        "linear": "logistic regression, standardised, C chosen of "
        f"{', '.join(f'{c:g}' for c in _INVERSE_PENALTIES)}",
        "train_examples": len(train_labels),
        "test_examples": len(test_labels),
        "seed": seed,
    }
    return Evaluation(tuple(rows), settings)


def _untrained_copy(model, seed):
    """The model with its weights drawn anew; no global state is changed."""
    state = random.getstate()
    random.seed(seed)  # Keras takes the seeds of initializers from here.
    try:
        return type(model).from_config(model.get_config())
    finally:
        random.setstate(state)


def _draw_labelled(labels, amount, draws, seed):
    if amount == "all":
        return [np.arange(len(labels))]
    _checks.integer("labels", amount, minimum=2)
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < amount:
        raise ValueError(
            f"`labels` must not exceed the smallest class. Received: {amount} "
            f"labels per class, but class {classes[counts.argmin()]} has "
            f"{counts.min()}"
        )
    rng = np.random.default_rng(seed)
    return [
        np.concatenate(
            [
                rng.choice(np.flatnonzero(labels == c), amount, replace=False)
                for c in classes
            ]
        )
        for _ in range(_checks.integer("draws", draws, minimum=1))
    ]
