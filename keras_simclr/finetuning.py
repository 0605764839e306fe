"""Training an encoder further, on labelled images."""

import dataclasses
import functools
import math
import os
import time

import keras
import numpy as np
import tensorflow as tf

from keras_simclr import (
    _checks,
    _files,
    copies,
    fit_data,
    kinds,
    labelled,
    pretrained,
)
from keras_simclr.augmentations import SimCLRAugmentation, as_list, at_rest
from keras_simclr.evaluation_views import plain_view, with_evaluation_view
from keras_simclr.features import (
    FEW_IMAGES,
    check_fits,
    kind_of_model,
    settle_batch_norm,
    view_of,
)
from keras_simclr.model import SimCLRModel
from keras_simclr.networks import ProjectionHead
from keras_simclr.probes import fit_logistic

_BATCH_SIZE = 64
_MOMENTUM = 0.9
_FEWEST_STEPS = 200  # Up to one batch of examples.
_TESTED_PER_STEP = 200  # Images that are classified in the time of a step.
# Chosen on Fashion-MNIST, 10 and 60 labels per class, 3,000 training images
# held out: 0.003 to 0.3 were tried, and up to 1 from scratch.
_LEARNING_RATES = {"finetune": 0.1, "scratch": 0.3}
_INVERSE_PENALTY = 0.1  # scikit-learn's C, where fine-tuning starts from.
_SETTINGS = (
    f"from a logistic regression with C={_INVERSE_PENALTY}, at least "
    f"{_FEWEST_STEPS} steps (growing with the root of the labels), batches of "
    f"{_BATCH_SIZE}, {{views}}SGD with Nesterov momentum {_MOMENTUM} and a "
    f"rate of {_LEARNING_RATES['finetune']} ({_LEARNING_RATES['scratch']} from "
    "scratch), cosine decay"
)


def tuning_in_words(kind):
    """What is fixed in fine-tuning, for examples of a `kinds.Kind`."""
    views = "crops and flips as in pretraining, " * (kind is kinds.IMAGES)
    return _SETTINGS.format(views=views)


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """Result of `fine_tune`.

    Attributes:
        accuracy: Share of test examples classified rightly, 0 to 1; None
            without a test set.
        classifier: Keras model from images, float32 in [0, 1], to class
            probabilities, of Keras's own layers.
        classes: Label of each probability.
        steps: Steps that it was trained for.
        kind: `kinds.Kind` of the examples.
        predictions: Label found for each test example.
    """

    accuracy: float | None
    classifier: keras.Model
    classes: tuple
    steps: int
    kind: kinds.Kind
    predictions: np.ndarray = dataclasses.field(repr=False, compare=False)

    def __str__(self):
        accuracy = "not tested"
        if self.accuracy is not None:
            accuracy = f"accuracy {self.accuracy:.2%}"
        settings = tuning_in_words(self.kind)
        return f"fine-tuned {accuracy} ({self.steps} steps, {settings})"


def fine_tune(
    model,
    train,
    test=None,
    *,
    projection_layer=0,
    from_scratch=False,
    seed=0,
    progress=None,
):
    """Trains a copy of the encoder and a classifier on labelled images.

    The classifier starts as a logistic regression on what it stands on; then
    all weights are trained, also those of an encoder that is frozen, on crops
    and flips of the images as in pretraining.

    Args:
        model: A `SimCLRModel`, which is left as it is; a Keras model from
            images to representations; or the name of an encoder, as
            `named_model` takes it.
        train: Labelled images: `(images, labels)` arrays, or a dataset of
            batches of them. They are kept in memory. Where a dataset has
            `class_names`, as those from folders do, labels are these; images
            with a negative label are left out.
        test: The same, to test on, or None. Classes are compared by name;
            images of others than those in `train` count as wrong.
        projection_layer: Layers of the projection head that are kept between
            the encoder and the classifier.
        from_scratch: Whether to forget what pretraining learned, for
            comparison: all weights are drawn anew, and the learning rate is
            one that suits them.
        seed: Integer.
        progress: Function that is told, as training goes on, how many images
            were seen, again and again, and how many will be.

    Returns:
        A `FineTuning`.

    Raises:
        OSError: As `named_model`.
        ValueError: As `named_model`; if the encoder takes other images, or
            labels are missing, or there are fewer than two classes, or no such
            projection layer, or no plain layers do what the augmentation does
            at rest, or weights are not finite.

    Example:

    >>> encoder = keras.Sequential(
    ...     [keras.Input((8, 8, 1)), keras.layers.Flatten()]
    ... )
    >>> model = simclr.SimCLRModel(encoder)
    >>> rng = np.random.default_rng(0)
    >>> images = rng.random((20, 8, 8, 1), "float32")
    >>> labels = np.repeat(["cat", "dog"], 10)
    >>> images[10:] /= 4.0
    >>> result = fine_tune(model, (images, labels), (images, labels))
    >>> result.accuracy, result.classes
    (1.0, ('cat', 'dog'))
    >>> result.classifier.predict(images[:1], verbose=0).round()
    array([[1., 0.]], dtype=float32)

    References:
        - Chen et al. 2020, arXiv:2002.05709, appendix B.5.
        - Chen et al. 2020, arXiv:2006.10029, section 2 (projection layer).
        - Kumar et al. 2022, arXiv:2202.10054 (start from a linear probe).

    Deviation: batches of 64 and SGD, not of 4,096 and LARS: there are few
    labels. The classifier does not start from zeros, nor from `linear_probe`:
    that standardises every feature, and the weights of one that hardly varies
    are so large that they spoil the encoder as soon as it does.
    """
    if isinstance(model, (str, os.PathLike)):
        model = named_model(model)
    copies.check_finite(model)
    if isinstance(model, SimCLRModel):
        plain_view(model)  # Refuses now what has no plain layers.
    load = functools.partial(
        labelled.load_labelled,
        kind=kind_of_model(model),
        check=functools.partial(check_fits, model),
    )
    examples = load("train", train)
    if test is not None:
        tests = load("test", test)
        labelled.warn_of_classes(examples["labels"], tests["labels"])
    tuner = Tuner(
        model,
        np.unique(examples["labels"]),
        projection_layer=projection_layer,
        from_scratch=from_scratch,
    )
    tuner.fit(examples, seed, progress=progress)
    accuracy, predictions = None, np.array([])
    if test is not None:
        predictions = tuner.predict(tests)
        accuracy = float(np.mean(predictions == tests["labels"]))
    classifier = tuner.network()
    if isinstance(model, SimCLRModel):
        classifier = with_evaluation_view(model, classifier)
    return FineTuning(
        accuracy=accuracy,
        classifier=classifier,
        classes=tuple(tuner.classes.tolist()),
        steps=steps_for(len(examples["labels"])),
        kind=kind_of_model(model),
        predictions=predictions,
    )


def named_model(name):
    """The `SimCLRModel` of an encoder that exists already.

    Args:
        name: As of `pretrained.open_encoder`.

    Returns:
        That of a run; else one around the encoder, with the paper's
        augmentation at its size and no projection head.

    Raises:
        OSError: As `pretrained.open_encoder`.
        ValueError: As `pretrained.open_encoder`; or if it is a table.

    Example:

    ```python
    model = named_model("keras_applications:MobileNetV3Small")
    ```
    """
    if _files.is_table(name):
        _files.refuse_table("model", name)
    model = pretrained.open_model(name)
    if model is None:
        encoder = pretrained.open_encoder(name)
        model = SimCLRModel(encoder, ProjectionHead(0))
    return model


def steps_for(examples):
    """Steps of training, which grow with the root of the number of examples."""
    batches = max(1.0, examples / _BATCH_SIZE)
    return math.ceil(_FEWEST_STEPS * math.sqrt(batches))


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds that every training takes, and each of its steps."""

    fixed: float
    per_step: float

    def seconds(self, train, test):
        """For numbers of examples to train on and to test on."""
        return self.fixed + self.per_step * (
            steps_for(train) + test / _TESTED_PER_STEP
        )


class Tuner:
    """Fine-tunes copies of one encoder again and again, traced only once.

    `classes` are all labels that there are; the rest is as in `fine_tune`.
    """

    def __init__(
        self, model, classes, *, projection_layer=0, from_scratch=False
    ):
        labelled.check_classes("train", classes)
        self.model = model
        self.classes = classes
        self.from_scratch = from_scratch
        self.projection_layer = projection_layer
        self._is_proven = False  # That copies return what was copied.
        layers = _layers(copies.untrained_copy(model, 0), projection_layer)
        for layer in layers:
            copies.unfreeze(layer)
        self._network = _Network(model, layers, len(classes))
        start = "scratch" if from_scratch else "finetune"
        self._schedule = _Cosine(_LEARNING_RATES[start])
        self._network.compile(
            keras.optimizers.SGD(
                self._schedule, momentum=_MOMENTUM, nesterov=True
            ),
            "sparse_categorical_crossentropy",
            jit_compile=False,
        )
        optimizer = self._network.optimizer
        optimizer.build(self._network.core.trainable_variables)
        self._fresh = [variable.numpy() for variable in optimizer.variables]

    def fit(self, examples, seed, steps=None, progress=None):
        """Trains a new copy on what `load_labelled` returned."""
        images = _without_labels(examples)
        places = np.searchsorted(self.classes, examples["labels"])
        source = self.model
        if self.from_scratch:
            source = copies.untrained_copy(source, seed)
            settle_batch_norm(source, images, np.arange(len(places)), seed)
        for copy, layer in zip(
            self._network.layers_below,
            _layers(source, self.projection_layer),
            strict=True,
        ):
            copies.copy_weights(layer, copy)
            if not self._is_proven:
                copies.check_copy(layer, copy)
        self._is_proven = True
        _assign(self._network.dense.weights, self._start(images, places))
        _assign(self._network.optimizer.variables, self._fresh)
        steps = steps or steps_for(len(places))
        self._schedule.steps.assign(steps)
        self._network.seed.assign(seed)
        told = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda step, logs: progress(
                (step + 1) * _BATCH_SIZE, steps * _BATCH_SIZE
            )
        )
        self._network.fit(
            _batches(images, places, seed, steps),
            shuffle=False,
            verbose=0,
            callbacks=[told] if progress else None,
        )

    def _start(self, images, places):
        """Kernel and bias that the classifier starts from."""
        kernel, bias = map(np.zeros_like, self._network.dense.get_weights())
        if not self.from_scratch:
            features = self._network.predict_in_batches(images, features=True)
            mean = features.mean(axis=0)
            scale = np.std(features - mean) or 1.0
            features = (features - mean) / scale
            solver = fit_logistic(features, places, _INVERSE_PENALTY)
            # Of two classes only the second has weights.
            found = solver.classes_[-len(solver.intercept_) :]
            kernel[:, found] = solver.coef_.T / scale
            bias[found] = solver.intercept_
            bias -= mean @ kernel
        return kernel, bias

    def predict(self, examples):
        """Array of the labels found for images, by the copy trained last."""
        images = _without_labels(examples)
        probabilities = self._network.predict_in_batches(images)
        return self.classes[probabilities.argmax(axis=1)]

    def network(self):
        """A plain copy of the copy trained last, from the evaluation view."""
        return copies.plain_copy(self._network.core)

    def cost(self, examples):
        """Measures the `Cost`, on a few examples with all of their labels."""
        labels = examples["labels"]
        _, firsts = np.unique(labels, return_index=True)
        step = max(1, len(labels) // FEW_IMAGES)
        places = np.union1d(firsts, np.arange(0, len(labels), step))
        few = {key: array[places] for key, array in examples.items()}
        short, long = 2, 12
        times = []
        for steps in (short, short, long):  # The first traces.
            start = time.perf_counter()
            self.fit(few, 0, steps=steps)
            times.append(time.perf_counter() - start)
        per_step = max(times[2] - times[1], 0.0) / (long - short)
        return Cost(max(times[1] - short * per_step, 0.0), per_step)


class _Cosine(keras.optimizers.schedules.LearningRateSchedule):
    """Cosine decay to 0 in a number of steps that may change."""

    def __init__(self, learning_rate):
        self.learning_rate = learning_rate
        self.steps = tf.Variable(1, trainable=False, dtype=tf.int64)

    def __call__(self, step):
        share = tf.cast(step, tf.float32) / tf.cast(self.steps, tf.float32)
        return self.learning_rate * 0.5 * (1.0 + tf.cos(math.pi * share))

    def get_config(self):
        return {"learning_rate": self.learning_rate}


class _Network(keras.Model):
    """Augmentation, copies of layers, and a classifier."""

    def __init__(self, model, layers_below, classes):
        super().__init__(name="fine_tuning")
        self._view = view_of(model)
        self._crops_and_flips = _crops_and_flips(model)
        self._others = (
            lambda views: at_rest(  # Those behind the first.
                as_list(model.augmentation)[1:], views
            )
        )
        inputs = outputs = keras.Input(layers_below[0].input_shape[1:])
        for layer in layers_below:
            outputs = layer(outputs)
        self.layers_below = layers_below
        self.trunk = keras.Model(inputs, outputs)
        self.dense = keras.layers.Dense(
            classes, activation="softmax", dtype="float32", name="probabilities"
        )
        self.core = keras.Model(inputs, self.dense(outputs), name="classifier")
        self.seed = tf.Variable(0, trainable=False, dtype=tf.int64)
        self._at_rest = tf.function(
            lambda images, features: tf.cast(
                (self.trunk if features else self.core)(
                    self._view(images["images"], images.get("sizes")),
                    training=False,
                ),
                tf.float32,
            ),
            reduce_retracing=True,
        )

    def call(self, images, training=False):
        if training and self._crops_and_flips is not None:
            step = tf.cast(self.optimizer.iterations, tf.int64)
            views = self._crops_and_flips(
                images["images"],
                sizes=images.get("sizes"),
                seed=tf.stack([self.seed, step]),
            )
            views = self._others(views)
        else:
            views = self._view(images["images"], images.get("sizes"))
        return self.core(views, training=training)

    def predict_in_batches(self, images, features=False):
        batches = labelled.in_batches(images)
        outputs = [self._at_rest(batch, features).numpy() for batch in batches]
        return labelled.joined(outputs)


def _without_labels(examples):
    return {k: examples[k] for k in ("images", "sizes") if k in examples}


def _batches(images, places, seed, steps):
    """Full batches, also of fewer examples than a batch; epoch upon epoch."""
    rng = np.random.default_rng(seed)
    epochs = math.ceil(steps * _BATCH_SIZE / len(places))
    rows = np.concatenate([rng.permutation(len(places)) for _ in range(epochs)])
    rows = rows[: steps * _BATCH_SIZE].reshape(steps, _BATCH_SIZE)

    arrays = [*images.values(), places]

    def batch(rows):
        found = tf.numpy_function(
            lambda rows: [np.asarray(array[rows]) for array in arrays],
            [rows],
            [array.dtype for array in arrays],
        )
        *pixels, labels = (
            tf.ensure_shape(each, (_BATCH_SIZE, *array.shape[1:]))
            for each, array in zip(found, arrays, strict=True)
        )
        return dict(zip(images, pixels, strict=True)), labels

    batches = tf.data.Dataset.from_tensor_slices(rows).map(batch)
    return fit_data.prepared(batches.prefetch(1))


def _assign(variables, values):
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _crops_and_flips(model):
    """What pretraining did to shapes; None if that is not known."""
    if not isinstance(model, SimCLRModel):
        return None
    first = as_list(model.augmentation)[0]
    if not isinstance(first, SimCLRAugmentation):
        return None
    return first.without_colors()


def _layers(model, projection_layer):
    """Encoder, and the first layers of the projection head."""
    _checks.integer("projection_layer", projection_layer, minimum=0)
    if not isinstance(model, SimCLRModel):
        stages, encoder = [], model
    else:
        head, encoder = model.projection_head, model.encoder
        # Of other heads, those of Keras have layers.
        stages = getattr(head, "stages", getattr(head, "layers", [head]))
    if projection_layer > len(stages):
        raise ValueError(
            "`projection_layer` must be a layer of the projection head. "
            f"Received: projection_layer={projection_layer}, a head of "
            f"{len(stages)} layers"
        )
    return [encoder, *stages[:projection_layer]]
