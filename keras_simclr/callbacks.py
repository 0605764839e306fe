"""What rides along in `fit`: probes, measures, the doctor, checkpoints."""

import itertools
import math
import time

import keras
import numpy as np
import tensorflow as tf

from keras_simclr import (
    _checks,
    collapse,
    copies,
    doctor,
    elements,
    fit_data,
    kinds,
    labelled,
    looks,
)
from keras_simclr.checkpoints import (
    Checkpoints as Checkpoints,
    restore as restore,
)
from keras_simclr.features import extract
from keras_simclr.model import SimCLRModel
from keras_simclr.probes import knn_probe, linear_probe

_MOST_TO_PROBE = 10_000
_MOST_TO_READ = 100_000  # Among which these are spread.
_MEASURES = ("rankme", "rankme_z", "spread", "alignment", "uniformity")


class _Periodic(keras.callbacks.Callback):
    """Adds what `measure` returns to the logs; some epochs repeat the last."""

    def __init__(self, every):
        super().__init__()
        self.every = _checks.integer("every", every, minimum=1)

    def on_train_begin(self, logs=None):
        if not isinstance(self.model, SimCLRModel):
            raise ValueError(
                f"`{type(self).__name__}` needs a SimCLRModel. Received: "
                f"a model of class {type(self.model).__name__}"
            )
        self._latest = None
        self._copies = looks.copies_of(self.model)

    def on_epoch_end(self, epoch, logs=None):
        # Loggers take their columns from the first epoch.
        is_due = self._latest is None or (epoch + 1) % self.every == 0
        if is_due or epoch + 1 == self.params["epochs"]:
            self.copy_weights()
            self._latest = self.measure()
            logs.update(self._latest)
        else:
            logs.update(self.repeated(self._latest))

    def copy_weights(self):
        copies.copy_weights(self.model.encoder, self._copies.encoder)

    def repeated(self, latest):
        return latest


class _Probe(_Periodic):
    """Trains a classifier on representations and tests it."""

    def __init__(self, train, test, *, every=1):
        super().__init__(every)
        self._sets = {"train": train, "test": test}
        self._places = {}  # Of the images that are used.
        self._names = {
            name: labelled.names_of_classes(name, images)
            for name, images in self._sets.items()
        }
        for name, images in self._sets.items():
            self._sets[name] = labelled.in_order_with_labels(name, images)
            fit_data.check_length(self._sets[name], steps=1)

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        # What cannot be probed is refused now, not after an epoch.
        for dataset in self._sets.values():
            for element in itertools.islice(_first(dataset, _MOST_TO_PROBE), 1):
                self._copies.at_rest(*elements.images_and_sizes(element))
        train, test = (self._labels(*x) for x in (("train", 2), ("test", 1)))
        labelled.warn_of_classes(train, test)

    def _labels(self, name, fewest):
        """Labels that are known; refuses fewer classes than these."""
        dataset, most = self._sets[name], _MOST_TO_READ
        if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
            most = _MOST_TO_PROBE
        elements = _first(dataset, most)
        labels = np.concatenate([element["labels"] for element in elements])
        self._places[name] = _spread(len(labels), _MOST_TO_PROBE)
        labels = labels[self._places[name]]
        labels, _ = self._known_labels(name, labels)
        if len(np.unique(labels)) >= fewest:
            return labels
        words = {1: "one class", 2: "two classes"}
        raise ValueError(
            f"The images of `{name}`, {_MOST_TO_PROBE:,} spread over the first "
            f"{_MOST_TO_READ:,}, must be of at least {words[fewest]}. "
            f"Received: {np.unique(labels).tolist()}. Shuffle what is sorted "
            "by class."
        )

    def _known_labels(self, name, labels):
        return labelled.known_labels(name, labels, self._names[name])

    def measure(self):
        start = time.perf_counter()
        (train, groups), (test, _) = map(self._features_and_labels, self._sets)
        accuracy = math.nan  # Of a model that has diverged.
        if np.isfinite(train[0]).all() and np.isfinite(test[0]).all():
            accuracy = self.probe(train, test, groups).accuracy
        seconds = time.perf_counter() - start
        return {
            f"{self.prefix}_accuracy": accuracy,
            f"{self.prefix}_seconds": seconds,
        }

    def repeated(self, latest):
        return {**latest, f"{self.prefix}_seconds": 0.0}

    def _features_and_labels(self, name):
        """Pair of features and labels, and the groups of duplicates."""
        elements = _at(self._sets[name], self._places[name])
        (features,), others = extract([self._copies.at_rest], elements)
        labels, rows = self._known_labels(name, others["labels"])
        groups = others.get("groups")
        groups = None if groups is None else groups[rows]
        return (features[rows], labels), groups


class KNNProbe(_Probe):
    """Adds the accuracy of `simclr.knn_probe` to the logs during `fit`.

    After the first epoch of a `fit`, every `every`-th and the last, `logs` gets
    `knn_accuracy`, and `knn_seconds`, the time it took. In the epochs between
    the accuracy is the last one and the seconds are 0. Callbacks that stand
    behind it, such as `CSVLogger`, `TensorBoard` and `EarlyStopping`, see both.
    (`EarlyStopping` counts every epoch: its `patience` must be at least
    `every`.) Training is not changed. A model whose representations are not
    finite has the accuracy NaN.

    Args:
        train: Labelled images for the probe: `(images, labels)` arrays, or a
            dataset of batches of them. Of more than 10,000 as many are used,
            spread evenly over the first 100,000, which a dataset decodes in
            each probe: `take` fewer of what is shuffled. Of datasets, not the
            one that `fit` trains on: every pass would move its shuffle.
            Where one has `class_names`, labels are these; images with a
            negative label are left out.
        test: The same, to test on; 10,000 here, too. Classes are compared by
            name.
        every: Epochs from one probe to the next.

    Raises:
        ValueError: If labels are missing, are not one per image, or `every` is
            no integer of at least 1; by `fit`, before it trains, if the model
            is no `SimCLRModel`, the images do not fit it, or `train` holds
            fewer than two classes.

    Example:

    >>> encoder = keras.Sequential(
    ...     [keras.Input((8, 8, 1)), keras.layers.Flatten()]
    ... )
    >>> flip = simclr.RandomFlip()
    >>> model = simclr.SimCLRModel(encoder, augmentation=flip)
    >>> model.compile()
    >>> labels = np.arange(20) % 2
    >>> images = np.zeros((20, 8, 8, 1)) + labels[:, None, None, None] / 2
    >>> both = (images, labels)
    >>> history = model.fit(
    ...     images, batch_size=10, verbose=0, callbacks=[KNNProbe(both, both)]
    ... )
    >>> history.history["knn_accuracy"]
    [1.0]

    References:
        - Wu et al. 2018, arXiv:1805.01978, section 3.4.
    """

    prefix = "knn"

    def probe(self, train, test, groups):
        return knn_probe(*train, *test)


class LinearProbe(_Probe):
    """Adds the accuracy of `simclr.linear_probe` to the logs during `fit`.

    As `KNNProbe`, with `linear_accuracy` and `linear_seconds`. It takes longer:
    of several penalties the best on held-out training examples is chosen.

    Args:
        train: As `KNNProbe`.
        test: As `KNNProbe`.
        every: As `KNNProbe`.

    Raises:
        ValueError: As `KNNProbe`.

    Example:

    >>> images = np.zeros((20, 8, 8, 1), "uint8")
    >>> both = (images, np.arange(20) % 2)
    >>> probe = LinearProbe(both, both, every=10)

    References:
        - Chen et al. 2020, arXiv:2002.05709, section 2.3.
    """

    prefix = "linear"

    def probe(self, train, test, groups):
        return linear_probe(*train, *test, groups=groups)


class Measures(_Periodic):
    """Adds measures of representations and projections to the logs.

    No labels are needed. After the first epoch of a `fit`, every `every`-th and
    the last, measured in float32 and at rest; in the epochs between the values
    are the last ones. Those of a model that has diverged are NaN. Training is
    not changed.

    | entry | `simclr.collapse` | of |
    |---|---|---|
    | `rankme` | `rankme` | the representations h of the images |
    | `rankme_z` | `rankme` | their projections z |
    | `spread` | mean of `spread` | z |
    | `alignment` | `alignment` | z of two views of each image |
    | `uniformity` | mean of `uniformity` | z of either view |
    | `loss_over_chance` | `chance` of the loss | `loss`, of every epoch |

    Of a collapsed encoder `rankme` is near 1, `spread` and `uniformity` are
    near 0, and `loss_over_chance` near 1. The views are the same each time,
    unless a layer of the augmentation takes no `seed`. `loss_over_chance` is
    there if the loss knows its `chance`, as `NTXent` does; with `groups` chance
    is lower than it assumes, and penalties count as loss.

    Args:
        images: Array of shape `(N, height, width, channels)`, or a dataset of
            batches, where labels are ignored. 1,024 of an array, spread over
            it, or the first of a dataset, are kept. The ranks are at most
            their number. Of datasets, not the one that `fit` trains on: it
            would move its shuffle.
        every: Epochs from one measurement to the next.

    Raises:
        ValueError: If there are fewer than two images, their values are
            unusable, or `every` is no integer of at least 1; by `fit`, before
            it trains, if the model is no `SimCLRModel` or the images do not fit
            it.

    Example:

    >>> encoder = keras.Sequential(
    ...     [keras.Input((8, 8, 1)), keras.layers.Flatten()]
    ... )
    >>> flip = simclr.RandomFlip()
    >>> model = simclr.SimCLRModel(encoder, augmentation=flip)
    >>> model.compile()
    >>> images = np.random.default_rng(0).random((20, 8, 8, 1))
    >>> history = model.fit(
    ...     images, batch_size=10, verbose=0, callbacks=[Measures(images)]
    ... )
    >>> 10 < history.history["rankme"][0] < 20
    True

    References:
        - Garrido et al. 2023, arXiv:2210.02885.
        - Wang and Isola 2020, arXiv:2005.10242.
    """

    most = 1_024  # Images that are looked at.

    def __init__(self, images, *, every=1):
        super().__init__(every)
        if isinstance(images, np.ndarray):
            images = images[_spread(len(images), self.most)]
        dataset = fit_data.in_order(images)
        fit_data.check_length(dataset, steps=1)  # We take the first.
        self._elements = [
            {name: batch.numpy() for name, batch in element.items()}
            for element in _first(dataset, self.most)
        ]
        size = sum(len(element["images"]) for element in self._elements)
        if size < 2:
            raise ValueError(
                "`images` must be at least two. Received: images of shape "
                f"{self._elements[0]['images'].shape}"
            )
        self._batches = 0  # Of this epoch.
        self._chance = None

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        if self.model.number_of_views < 2:
            raise ValueError(
                "`Measures` compares two views of each image. Received: a "
                f"{type(self.model).__name__}, which makes one. Leave it out, "
                "or put a KNNProbe in its place"
            )
        self._chance = None
        self.copy_weights()  # Copies cannot be made in a graph.
        # What does not fit is refused.
        self._measured(self._elements[0], 0)
        self.model.contrastive_loss.chance(2, self.model.number_of_views)

    def copy_weights(self):
        super().copy_weights()
        copies.copy_weights(self.model.projection_head, self._copies.head)

    def on_epoch_begin(self, epoch, logs=None):
        self._batches = 0

    def on_train_batch_end(self, batch, logs=None):
        # Keras counts the last execution of an epoch as full.
        self._batches = min(batch + 1, self.params["steps"] or batch + 1)

    def on_test_begin(self, logs=None):
        self._learn_chance()  # Validation is about to reset the metrics.

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        self._learn_chance()
        if self._chance is not None:
            logs["loss_over_chance"] = logs["loss"] / self._chance

    def _learn_chance(self):
        """Learns the batch size from the first epoch: anchors by batches."""
        if self._chance is None and self._batches:
            # Each replica counts the anchors of all, for each positive.
            replicas = self.model.distribute_strategy.num_replicas_in_sync
            count = float(self.model.loss_metric.count.numpy()) / replicas
            views = self.model.number_of_views
            self._batch_size = round(
                count / self._batches / views / (views - 1)
            )
            loss = self.model.contrastive_loss
            self._chance = loss.chance(self._batch_size, views)

    def measure(self):
        measured = [
            self._measured(element, step)  # Other draws for each batch.
            for step, element in enumerate(self._elements)
        ]
        h, z, z_1, z_2 = (
            np.concatenate(each) for each in zip(*measured, strict=True)
        )
        if not all(np.isfinite(each).all() for each in (h, z, z_1, z_2)):
            return dict.fromkeys(_MEASURES, math.nan)
        values = (
            collapse.rankme(h),
            collapse.rankme(z),
            float(collapse.spread(z).mean()),
            collapse.alignment(z_1, z_2),
            (collapse.uniformity(z_1) + collapse.uniformity(z_2)) / 2,
        )
        return dict(zip(_MEASURES, values, strict=True))

    def _measured(self, element, step):
        return self._copies.with_views(
            *elements.images_and_sizes(element), tf.constant(step)
        )


class Doctor(Measures):
    """Says in words what is wrong with a training, and what to try.

    Before the first epoch of a `fit` and after each it looks at 128 images,
    their views, and what the model makes of them, at the loss's gradient for 32
    of them, at how far the weights have moved, and at the logs: some seconds at
    the start, and each epoch what training on about 150 images takes. Each rule
    of `doctor.RULES` then says at most one sentence: symptom; likely cause;
    what to try. It says it again only after an epoch without its symptom.
    Training is not changed.

    The logs get what `Measures` gives, of these images. A probe in the logs,
    such as that of a `KNNProbe` before it in the list, is looked at, too.

    Args:
        images: As `Measures`, of which 128 are kept.
        report: Function that is told each sentence; of several workers only
            that of the chief.
        findings: What a `Doctor` has found before, of a run that goes on.
        silent: Names of rules whose findings are kept and not told: who trains
            has said them.

    Attributes:
        findings: List of dictionaries: `rule`, its name; `epoch`, the epochs
            trained when it was found; `text`, the sentence; and `values`, the
            numbers in it.

    Raises:
        ValueError: As `Measures`.

    Example:

    >>> encoder = keras.Sequential(
    ...     [keras.Input((8, 8, 1)), keras.layers.Flatten()]
    ... )
    >>> flip = simclr.RandomFlip(rate=0.0)
    >>> model = simclr.SimCLRModel(encoder, augmentation=flip)
    >>> model.compile()
    >>> images = np.random.default_rng(0).random((40, 8, 8, 1))
    >>> doctor = Doctor(images, report=lambda text: None)
    >>> history = model.fit(
    ...     images, batch_size=20, verbose=0, callbacks=[doctor]
    ... )
    >>> [finding["rule"] for finding in doctor.findings]
    ['idle_augmentation', 'too_few_steps']
    """

    most, times_reading = 128, True

    def __init__(self, images, *, report=print, findings=(), silent=()):
        super().__init__(images)
        self.findings = [*findings]
        self._report, self._silent = report, silent
        self._cases, self._is_chief = [], True

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._cases = []
        self._speaking = {finding["rule"] for finding in self.findings}
        self._look = looks.Look(self.model, self._elements, self.params)
        strategy = self.model.distribute_strategy
        self._is_chief = strategy.extended.should_checkpoint

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        if not self._cases:
            self.copy_weights()
            values = self.measure()
            self._examine(epoch, self._look.before_training() | values)
        self._look.begin_epoch()

    def on_train_batch_begin(self, batch, logs=None):
        self._look.begin_batch(batch)

    def on_epoch_end(self, epoch, logs=None):
        after = self._look.after_epoch()
        super().on_epoch_end(epoch, logs)
        after |= self._look.after_batches_of(self._batch_size)
        self._examine(epoch + 1, {**self._cases[0], **logs, **after})

    def measure(self):
        self._seen = self._look.in_training(self._copies)
        return super().measure()

    def _examine(self, epoch, case):
        self._cases.append(case | self._seen)
        found = doctor.findings_in(self._cases)
        kind = getattr(self.model, "kind", kinds.IMAGES)
        for rule, text, values in found:
            text = kind.said(text)
            if rule not in self._speaking:
                self.findings.append(
                    {
                        "rule": rule,
                        "epoch": epoch,
                        "text": text,
                        "values": values,
                    }
                )
                if self._is_chief and rule not in self._silent:
                    self._report(text)
        self._speaking = {rule for rule, _, _ in found}


def _spread(size, most):
    """At most so many places of `size`, evenly spread."""
    if size <= most:
        return np.arange(size)
    return np.arange(most) * size // most


def _at(dataset, places):
    """Elements of a dataset with the examples at these places, in order."""
    begin = 0
    for element in _first(dataset, places[-1] + 1):
        end = begin + element["images"].shape[0]
        rows = places[slice(*np.searchsorted(places, (begin, end)))] - begin
        if len(rows):
            yield {k: tf.gather(x, rows) for k, x in element.items()}
        begin = end


def _first(dataset, most):
    """Elements of a dataset until they hold `most` images, or all."""
    for element in fit_data.checked_elements(dataset):
        element = {name: batch[:most] for name, batch in element.items()}
        yield element
        most -= element["images"].shape[0]
        if most == 0:
            return
