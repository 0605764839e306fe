"""What `evaluate` compares: what learns, from what, and how long it takes."""

import functools
import os
import time

import numpy as np

from keras_simclr import _checks, _files, classifiers, finetuning, kinds
from keras_simclr.copies import weights_digest
from keras_simclr.devices import duration
from keras_simclr.features import (
    FEW_IMAGES,
    check_encoders,
    extract,
    kind_of_model,
    resized_representation,
)
from keras_simclr.labelled import in_batches
from keras_simclr.pretrained import encoder_of, open_encoder
from keras_simclr.probes import KINDS
from keras_simclr.vectors import VectorTable

# Of extremely randomized trees: with few labels, the best that needs no encoder
# for most tables, and as good as any for spectra and statistics of signals.
_TREES = 300
START = "start"  # Among `encoders`: what the model was before.
_DOUBT = 10.0  # Seconds of work after which guesses are corrected by half.


def estimators_for(kind, baselines):
    """The scikit-learn estimators that learn from raw features, by names.

    `kind` is a `kinds.Kind`; `baselines` as in `evaluate`.
    """
    if isinstance(baselines, dict):
        for name, estimator in baselines.items():
            _check_estimator(name, estimator)
        return baselines
    if not baselines or kind in (kinds.IMAGES, kinds.OTHER):
        return {}
    from sklearn.ensemble import ExtraTreesClassifier

    return {"extra_trees": ExtraTreesClassifier(_TREES, n_jobs=-1)}


def _check_estimator(name, estimator):
    if not all(hasattr(estimator, x) for x in ("fit", "predict")):
        raise TypeError(
            "`baselines` must be estimators of scikit-learn by names. "
            f"Received: {name!r}, a {type(estimator).__name__}"
        )
    if name in (*KINDS, "finetune", "scratch"):
        raise ValueError(
            f"`baselines` must have names that no probe has. Received: {name!r}"
        )


def opened(encoders, model, probes, test):
    """What to compare a model with, opened if given by name."""
    own = kind_of_model(model).raw, "untrained", "simclr"
    if taken := {*own} & {*encoders}:
        raise ValueError(
            f"`encoders` must have names other than {own[0]!r}, 'untrained' "
            f"and 'simclr', which the table has already. Received: {taken}"
        )
    named = {
        name: path
        for name, path in encoders.items()
        if isinstance(path, (str, os.PathLike))
    }
    trained = {k for k, x in named.items() if classifiers.is_classifier(x)}
    if trained and test is None:
        raise ValueError(
            "Classifiers are tested on images that they have not learnt from. "
            f"Received: {_checks.listing(sorted(trained))} without images to "
            "test on. Give some: --test_data or --test_split (test=...)"
        )
    if {*encoders} - {START} - trained and {*KINDS}.isdisjoint(probes):
        raise ValueError(
            f"`encoders` are compared by the probes {' and '.join(KINDS)}. "
            f"Received: probes={list(probes)}. Add one, or leave out `encoders`"
        )
    found = dict(encoders)
    for name, path in named.items():
        if name in trained:
            found[name] = Trained(name, path)
        elif _files.is_table(path):
            found[name] = VectorTable(path)
        else:
            found[name] = open_encoder(path, beside=model)
    check_encoders(found)
    return found


def make_contenders(
    model,
    features,
    probes,
    baselines,
    projection_layer,
    quick,
    estimators=None,
):
    """List of all that learns; each predicts, and knows its cost.

    `features` are `features.Features`; the rest is as in `evaluate`,
    `linear_probe`, and from `estimators_for`.
    """
    raw = kind_of_model(model).raw
    estimatings = [
        Estimating(name, raw, features, estimator)
        for name, estimator in (estimators or {}).items()
    ]
    tunings = [
        Tuning(model, features.examples, projection_layer, from_scratch)
        for from_scratch in ((True, False) if baselines else (False,))
        if "finetune" in probes
    ]
    probings = [
        Probing(probe, name, features, quick)
        for probe in probes
        if probe in KINDS
        for name in features.names
    ]
    return [*estimatings, *probings, *tunings]


class Probing:
    """A probe on the features of one name."""

    def __init__(self, probe, name, features, quick):
        self.probe, self.features = probe, name
        self._kind, self._all_features = KINDS[probe], features
        self._labels = features.examples["labels"]
        self._groups = features.examples["groups"]
        self._classes = len(np.unique(self._labels))
        self._quick = quick

    def predict(self, split, seed, progress):
        """Labels found for the test examples of a split."""
        x, y = self._all_features.arrays[self.features], self._labels
        train, test = split.train, split.test
        result = self._kind.run(
            _rows_at(x, train),
            y[train],
            _rows_at(x, test),
            y[test],
            groups=self._groups[train],
            seed=seed,
            quick=self._quick,
        )
        if progress:
            progress(1, 1)
        return result.predictions

    def seconds(self, split):
        """How long a split will take, by a rule."""
        width = self._all_features.widths[self.features]
        counts = len(split.train), len(split.test)
        return self._kind.seconds(*counts, width, self._classes, self._quick)


def _rows_at(array, places):
    """Rows of an array: no copy of them where they follow one another."""
    first, last = places[0], places[-1] + 1
    is_span = np.array_equal(places, np.arange(first, last))
    return array[first:last] if is_span else array[places]


class Estimating:
    """An estimator of scikit-learn on raw features."""

    def __init__(self, name, raw, features, estimator):
        self.probe, self.features = name, raw
        self._all_features, self._estimator = features, estimator
        self._labels = features.examples["labels"]

    def predict(self, split, seed, progress):
        """Labels found for the test examples of a split."""
        x, y = self._all_features.arrays[self.features], self._labels
        found = self._fitted(_rows_at(x, split.train), y[split.train], seed)
        if progress:
            progress(1, 1)
        return found.predict(_rows_at(x, split.test))

    def _fitted(self, features, labels, seed):
        from sklearn import base

        estimator = base.clone(self._estimator)
        if "random_state" in estimator.get_params():
            estimator.set_params(random_state=seed)
        return estimator.fit(features, labels)

    def seconds(self, split):
        """How long a split will take: in proportion to few examples."""
        return self._cost * (len(split.train) + len(split.test))

    @functools.cached_property
    def _cost(self):
        step = -(-len(self._labels) // FEW_IMAGES)
        labels = self._labels[::step]
        width = self._all_features.widths[self.features]
        features = np.random.default_rng(0).random((len(labels), width))
        start = time.perf_counter()
        self._fitted(features, labels, 0).predict(features)
        return (time.perf_counter() - start) / len(labels)


class Trained:
    """A classifier that has learnt already, of a directory of one.

    `network` is the whole of it, of the file `path`.
    """

    probe = "classifier"

    def __init__(self, name, directory):
        self.features = name
        self.network = classifiers.load_classifier(directory)
        self.path = classifiers.file_of(directory)
        self.input_shape = self.network.input_shape
        self.digest = weights_digest(encoder_of(self.network))
        self._classes = classifiers.class_names(directory)

    def prepare(self, examples, places):
        """Refuses examples to test on of classes that it does not know."""
        labels, self._examples = examples["labels"], examples
        known = {str(x): x for x in np.unique(labels[places])}
        if strangers := known.keys() - {*self._classes}:
            raise ValueError(
                "A classifier must know all classes to test on. Received: "
                f"{_checks.listing(sorted(strangers))} in `test`, "
                f"{_checks.listing(self._classes)} of {self.features!r}. Leave "
                "it out of `encoders`, or their images out of `test`"
            )
        unknown = "" if labels.dtype.kind == "U" else -1
        self._found = np.array([known.get(x, unknown) for x in self._classes])

    def predict(self, split, seed, progress):
        """Labels found for the test examples of a split, by a quick pass."""
        examples = {k: x[split.test] for k, x in self._examples.items()}
        function = resized_representation(encoder_of(self.network))
        rows, _ = extract([function], in_batches(examples))
        return self._found[rows[0].argmax(axis=1)]


class Tuning:
    """Fine-tuning, or training from scratch."""

    def __init__(self, model, examples, projection_layer, from_scratch):
        self.probe = "scratch" if from_scratch else "finetune"
        self.features = "untrained" if from_scratch else "simclr"
        self._examples = examples
        self._tuner = finetuning.Tuner(
            model,
            np.unique(examples["labels"]),
            projection_layer=projection_layer,
            from_scratch=from_scratch,
        )

    def predict(self, split, seed, progress):
        """Labels found for the test examples of a split."""
        self._tuner.fit(self._at(split.train), seed, progress=progress)
        return self._tuner.predict(self._at(split.test))

    def seconds(self, split):
        """How long a split will take, measured on few images."""
        return self._cost.seconds(len(split.train), len(split.test))

    @functools.cached_property
    def _cost(self):
        return self._tuner.cost(self._examples)

    def _at(self, places):
        return {key: array[places] for key, array in self._examples.items()}


class Forecast:
    """How long contenders will take, told at once, and what is left then.

    `start` is the time at which the work began, and `report` is told.
    """

    def __init__(self, contenders, jobs, features, start, report):
        seconds = 0.0
        if any(contender.probe in KINDS for contender in contenders):
            report("Measuring how long features take.")
            seconds += features.seconds()
        self._guesses = []
        for contender in contenders:
            if isinstance(contender, Tuning):
                report(f"Measuring how long {contender.probe} takes.")
            self._guesses += [
                sum(map(contender.seconds, job.splits)) for job in jobs
            ]
        seconds += sum(self._guesses) + time.perf_counter() - start
        report(f"This will take about {duration(seconds)}.")

    def seconds_left(self, done, taken):
        """After so many jobs, which took so many seconds."""
        guess, left = sum(self._guesses[:done]), sum(self._guesses[done:])
        return left * (taken + _DOUBT) / (guess + _DOUBT)
