"""What an encoder is worth: probes and fine-tuning, beside baselines."""

import dataclasses
import functools
import time

import numpy as np
import tensorflow as tf

from keras_simclr import _checks, fit_data
from keras_simclr._files import valid_names
from keras_simclr.augmentations import RandomResizedCrop, to_float
from keras_simclr.copies import untrained_copy
from keras_simclr.devices import duration
from keras_simclr.elements import unpack
from keras_simclr.features import PIXELS, extract, pixels_of, representation
from keras_simclr.finetuning import SETTINGS, Tuner
from keras_simclr.fit_data import load_labelled
from keras_simclr.model import SimCLRModel
from keras_simclr.probes import INVERSE_PENALTIES, knn_probe, linear_probe
from keras_simclr.sampling import draw_labelled, interval, is_share, share_of

PROBES = ("linear", "knn", "finetune")
LABELS = (1, 5, 10, 50, "1%", "10%", "all")
_TEST_SHARE = 0.2  # Of the examples, where there is no test set.
_FEW_IMAGES = 256  # To measure how fast training is.
_SETTINGS = {
    "linear": "logistic regression, standardised, C chosen of "
    f"{', '.join(f'{c:g}' for c in INVERSE_PENALTIES)}",
    "knn": "cosine, k=20, temperature=0.1",
    "finetune": SETTINGS,
    "pixels": f"at most {PIXELS} x {PIXELS}",
}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`; `str()` is the table and the verdict.

    Attributes:
        rows: Dictionaries with `features` (`"pixels"`, `"untrained"`,
            `"simclr"`, or the name of another encoder), `probe` (`"linear"`,
            `"knn"`, `"finetune"`, `"scratch"`), `labels` (an integer per
            class, a share such as `"1%"`, or `"all"`), `accuracy` (mean, 0 to
            1), `std` (over the draws of the labelled set, None for a single
            one), `interval` (95 %, as from `interval`) and `draws` (each
            accuracy).
        gains: Dictionaries with `labels`; `best` and `baseline`, the best of
            SimCLR and of the others; `gain`, the difference of their
            accuracies; and its 95 % `interval`, paired.
        left_out: What the labels could not fill, in words.
        settings: What was fixed: the probes' settings, sizes and the seed.
    """

    rows: tuple
    gains: tuple
    left_out: tuple
    settings: dict

    @property
    def summary(self):
        """What `summary.json` keeps of it: a dictionary."""
        return {
            "rows": list(self.rows),
            "gains": list(self.gains),
            "evaluation": {
                **self.settings,
                "left_out": list(self.left_out),
                "verdict": self.verdict,
            },
        }

    @property
    def verdict(self):
        """Whether pretraining was worth it, in a sentence."""
        worth = [gain for gain in self.gains if gain["interval"][0] > 0]
        others = [gain for gain in self.gains if gain["interval"][0] <= 0]
        parts = []
        if worth:
            parts.append(f"Worth it: {'; '.join(map(_gain_in_words, worth))}.")
        if others:
            start = "Not shown to be worth it"
            parts.append(f"{start}: {'; '.join(map(_gain_in_words, others))}.")
        return " ".join(parts)

    def __str__(self):
        cells = {
            (row["probe"], row["features"], row["labels"]): _cell(row)
            for row in self.rows
        }
        columns = list(dict.fromkeys(labels for *_, labels in cells))
        kinds = dict.fromkeys(key[:2] for key in cells)
        table = [("accuracy, % ± 95 %", map(_head, columns))]
        order = ("linear", "knn", "finetune", "scratch")
        for probe, features in sorted(kinds, key=lambda x: order.index(x[0])):
            texts = [cells.get((probe, features, x), "") for x in columns]
            table.append((f"{features}, {probe}", texts))
        width = max(24, *(len(name) for name, _ in table))
        lines = [
            f"{name:{width}}" + "".join(f"{text:>15}" for text in texts)
            for name, texts in table
        ]
        lines.append(self.settings["examples"])
        for name in (*PROBES, "pixels"):
            if name in self.settings:
                lines.append(f"{name}: {self.settings[name]}.")
        lines += [f"Left out: {reason}." for reason in self.left_out]
        return "\n".join([*lines, self.verdict]).rstrip()


def _head(labels):
    return f"{labels} per class" if isinstance(labels, int) else labels


def _cell(row):
    low, high = row["interval"]
    return f"{100 * row['accuracy']:.1f} ± {50 * (high - low):.1f}"


def _gain_in_words(gain):
    low, high = (100 * x for x in gain["interval"])
    amount = gain["labels"]
    if isinstance(amount, int):
        amount = f"{amount} label{'s' * (amount > 1)} per class"
    else:
        amount = "all labels" if amount == "all" else f"{amount} of the labels"
    return (
        f"{100 * gain['gain']:+.1f} points ({low:+.1f} to {high:+.1f}) with "
        f"{amount}, {gain['best']} against {gain['baseline']}"
    )


def evaluate(
    model,
    train,
    test=None,
    *,
    probes=PROBES,
    labels=LABELS,
    draws=5,
    encoders=None,
    baselines=True,
    projection_layer=0,
    class_names=(),
    seed=0,
    report=None,
):
    """Compares what can be learned from few and many labels, and from what.

    Every probe is trained on the representations of the encoder, and beside it
    on raw pixels, on those of the same encoder untrained, and of other
    encoders. Beside fine-tuning, the same encoder is trained from scratch.
    All are given the same labels and tested on the same images.

    Args:
        model: A `SimCLRModel`, or a Keras model from images to
            representations. It is left as it is.
        train: Labelled images: `(images, labels)` arrays, or a dataset of
            batches of them.
        test: The same, to test on. None: a fifth of the images of `train`,
            another one for each draw, stratified; duplicates (`groups`) are
            not divided.
        probes: Some of `"linear"`, `"knn"` and `"finetune"`.
        labels: Labels to learn from: integers (per class), shares (`"1%"`) and
            `"all"`. What the classes are too small for is left out.
        draws: Labelled sets drawn of each number.
        encoders: Dictionary from names to further Keras encoders to compare
            with, which take float images in [0, 1] of their own size. The
            names `"pixels"`, `"untrained"` and `"simclr"` are taken.
        baselines: Whether to compare with anything else at all.
        projection_layer: As `fine_tune`.
        class_names: Names, where the labels are places in them.
        seed: Integer that everything drawn is a function of.
        report: Function that is told, in words, how long it will take.

    Returns:
        An `Evaluation`.

    Raises:
        ValueError: If labels are missing or fill none of the numbers asked
            for, or an argument is not among what is listed here.

    Example:

    >>> encoder = keras.Sequential(
    ...     [keras.Input((8, 8, 1)), keras.layers.Flatten()]
    ... )
    >>> model = simclr.SimCLRModel(encoder)
    >>> rng = np.random.default_rng(0)
    >>> images, labels = rng.random((20, 8, 8, 1)), np.repeat([0, 1], 10)
    >>> result = evaluate(
    ...     model, (images, labels), probes=["knn"], labels=[5], draws=2
    ... )
    >>> len(result.rows)
    3

    References:
        - Chen et al. 2020, arXiv:2002.05709, sections 2.3, 4.3, appendix B.
        - Nadeau and Bengio 2003, doi:10.1023/A:1024068626366 (intervals over
          splits of one set).
    """
    for probe in probes or (probes,):
        _checks.choice("probes", probe, PROBES)
    _checks.integer("draws", draws, minimum=2)
    labels = list(dict.fromkeys(map(_checked_amount, labels)))
    taken_names = {"pixels", "untrained", "simclr"} & {*(encoders or ())}
    if taken_names:
        raise ValueError(
            "`encoders` must have names other than 'pixels', 'untrained' and "
            f"'simclr', which the table has already. Received: {taken_names}"
        )
    start = time.perf_counter()
    pool = _Pool(train, test, draws, seed, class_names)
    jobs, left_out = pool.jobs(labels)
    if not jobs:
        raise ValueError(
            "`labels` must hold a number that `train` can fill. Received: "
            + "; ".join(left_out)
        )
    functions = {"simclr": representation(model)}
    if baselines:
        functions = {
            "pixels": pixels_of(model),
            "untrained": representation(untrained_copy(model, seed)),
            **{k: _representation_of(x) for k, x in (encoders or {}).items()},
            **functions,
        }
    tunings = [
        _Tuning(model, pool, projection_layer, from_scratch)
        for from_scratch in ((True, False) if baselines else (False,))
        if "finetune" in probes
    ]
    features = _Features(functions, pool.examples)
    probings = [
        _Probe(name, probe, features, pool)
        for probe in probes
        if probe != "finetune"
        for name in functions
    ]
    contenders = [*probings, *tunings]
    if report:
        seconds = features.seconds() if probings else 0.0
        seconds += sum(
            contender.seconds(len(chosen))
            for contender in contenders
            for _, _, chosen, _ in jobs
        )
        taken = time.perf_counter() - start
        report(f"This will take about {duration(taken + seconds)}.")
    results = {}  # Whether each test image was classified rightly.
    for contender in contenders:
        for amount, draw, chosen, tests in jobs:
            found = contender.predict(chosen, tests, seed + draw)
            key = (contender.features, contender.probe, amount)
            is_right = found == pool.labels[tests]
            results.setdefault(key, []).append(is_right)
    rows = [
        _row(key, is_right, pool.correction)
        for key, is_right in results.items()
    ]
    amounts = dict.fromkeys(amount for amount, *_ in jobs)
    gains = [
        _gain(amount, results, pool.correction)
        for amount in (amounts if baselines else ())
    ]
    settings = {
        "examples": pool.in_words(),
        **{name: _SETTINGS[name] for name in probes},
        **({"pixels": _SETTINGS["pixels"]} if baselines else {}),
        "projection_layer": projection_layer,
        "train_examples": pool.train_size,
        "test_examples": pool.test_size,
        "draws": draws,
        "seed": seed,
        "seconds": round(time.perf_counter() - start),
    }
    return Evaluation(tuple(rows), tuple(gains), tuple(left_out), settings)


def _checked_amount(amount):
    if isinstance(amount, str):
        share = amount.removesuffix("%")
        is_share = share != amount and share.isdigit() and 0 < int(share) < 100
        if amount == "all" or is_share:
            return amount
    elif amount is not True and amount == int(amount) and amount >= 1:
        return int(amount)
    raise ValueError(
        "`labels` must be positive integers (per class), shares such as '1%' "
        f"and 'all'. Received: labels with {amount!r}"
    )


class _Pool:
    """All labelled images, and which of them are for learning."""

    def __init__(self, train, test, draws, seed, class_names):
        parts = [load_labelled("train", train)]
        if test is not None:
            parts.append(load_labelled("test", test))
        self.examples = _joined(parts)
        self.labels = self.examples["labels"]
        self.draws, self.seed = draws, seed
        self.class_names = valid_names(class_names)
        sizes = [len(part["labels"]) for part in parts]
        if test is not None:
            places = np.arange(sum(sizes))
            self.splits = [(places[: sizes[0]], places[sizes[0] :])]
        else:
            self.splits = self._random_splits()
        self.train_size, self.test_size = map(len, self.splits[0])
        overlap = self.test_size / self.train_size
        self.correction = 0.0 if test is not None else overlap

    def _random_splits(self):
        from sklearn.model_selection import StratifiedShuffleSplit

        # What is split are groups of duplicates; each goes by its first image.
        everyone = np.arange(len(self.labels))
        groups = self.examples.get("groups", everyone)
        names, firsts = np.unique(groups, return_index=True)
        classes, counts = np.unique(self.labels[firsts], return_counts=True)
        if counts.min() < 2:
            raise ValueError(
                "Without `test`, every class needs at least two images that "
                "are no duplicates. Received: "
                f"{counts.min()} of class {self._rarest(classes, counts)}"
            )
        test_size = max(len(classes), round(_TEST_SHARE * len(firsts)))
        splits = StratifiedShuffleSplit(
            self.draws, test_size=test_size, random_state=self.seed
        ).split(firsts, self.labels[firsts])
        return [
            tuple(
                np.flatnonzero(np.isin(groups, names[part])) for part in split
            )
            for split in splits
        ]

    def jobs(self, amounts):
        """Which labels each draw learns from, and what it is tested on.

        Returns:
            List of `(amount, draw, places to learn from, places to test)`, and
            list of what is left out and why.
        """
        jobs, left_out = [], []
        for amount in amounts:
            reason = self._why_not(amount)
            if reason:
                left_out.append(f"{_head(amount)}, {reason}")
                continue
            # One set of all labels is like another.
            is_one = amount == "all" and len(self.splits) == 1
            for draw in range(1 if is_one else self.draws):
                places, tests = self.splits[draw % len(self.splits)]
                rng = np.random.default_rng([self.seed, draw])
                chosen = draw_labelled(self.labels[places], amount, rng)
                jobs.append((amount, draw, places[chosen], tests))
        return jobs, left_out

    def _why_not(self, amount):
        for places, _ in self.splits:
            classes, counts = np.unique(self.labels[places], return_counts=True)
            smallest = self._rarest(classes, counts)
            if isinstance(amount, int) and counts.min() < amount:
                return f"class {smallest} has {counts.min()} to learn from"
            if is_share(amount) and share_of(amount, len(places)) < len(
                classes
            ):
                return f"{len(places)} labels, {len(classes)} classes"
        return None

    def _rarest(self, classes, counts):
        label = classes[counts.argmin()]
        return self.class_names[label] if self.class_names else label

    def in_words(self):
        if len(self.splits) == 1:
            return (
                f"{self.train_size:,} labelled images to learn from, "
                f"{self.test_size:,} to test on."
            )
        return (
            f"No test set: {self.draws} random splits of "
            f"{len(self.labels):,} images, {self.train_size:,} to learn from, "
            f"{self.test_size:,} to test on."
        )


def _joined(parts):
    """Arrays of examples end to end, canvases and values made equal."""
    if len(parts) == 1:
        return parts[0]
    if len({"sizes" in part for part in parts}) > 1:
        raise ValueError(
            "`train` and `test` must both lie on canvases, or neither. "
            "Received: `sizes` in one of them"
        )
    if len({part["images"].dtype for part in parts}) > 1:
        parts = [
            {
                **part,
                "images": to_float(tf.constant(part["images"])).numpy(),
            }
            for part in parts
        ]
    shared = set.intersection(*map(set, parts))
    if "sizes" in shared:
        largest = np.max([part["images"].shape[1:3] for part in parts], axis=0)
        parts = [
            {**part, "images": _on_canvas(part["images"], *largest)}
            for part in parts
        ]
    return {
        key: np.concatenate([part[key] for part in parts]) for key in shared
    }


def _on_canvas(images, height, width):
    missing = (height - images.shape[1], width - images.shape[2])
    margins = [(0, 0), (0, missing[0]), (0, missing[1]), (0, 0)]
    return np.pad(images, margins)


class _Features:
    """What each function makes of the images, once it is needed."""

    def __init__(self, functions, examples):
        self._functions, self._examples = functions, examples
        self._few = {k: array[:_FEW_IMAGES] for k, array in examples.items()}

    @functools.cached_property
    def of_all(self):
        return self._of(self._examples)

    @functools.cached_property
    def _of_few(self):
        return self._of(self._few)

    def _of(self, examples):
        elements = map(unpack, fit_data.in_order(examples))
        features, _ = extract(self._functions.values(), elements)
        return dict(zip(self._functions, features, strict=True))

    def size(self, name):
        """How many features of that name an image has."""
        return self._of_few[name].shape[1]

    def seconds(self):
        times = []
        for _ in range(2):  # The first traces.
            start = time.perf_counter()
            self._of(self._few)
            times.append(time.perf_counter() - start)
        share = len(self._examples["images"]) / len(self._few["images"])
        return times[-1] * share


def _representation_of(encoder):
    """As `representation`, of images brought to an encoder's size."""
    if isinstance(encoder, SimCLRModel):
        return representation(encoder)
    height, width, channels = encoder.input_shape[1:]
    crop = RandomResizedCrop(height, width)
    represent = representation(encoder)

    def resized(images, sizes):
        views = crop(images, training=False, sizes=sizes)
        if channels == 3 and views.shape[-1] == 1:
            views = tf.repeat(views, 3, axis=-1)
        return represent(views, None)

    return resized


class _Probe:
    """A probe on one of the features."""

    def __init__(self, name, probe, features, pool):
        self.features, self.probe = name, probe
        self._all, self._pool = features, pool
        self._probe = {"linear": linear_probe, "knn": knn_probe}[probe]

    def predict(self, chosen, tests, seed):
        options = {"seed": seed} if self.probe == "linear" else {}
        x, labels = self._all.of_all[self.features], self._pool.labels
        return self._probe(
            x[chosen], labels[chosen], x[tests], labels[tests], **options
        ).predictions

    def seconds(self, examples):
        # Of one core: 10 GFLOP/s; a fit of 10,000 numbers, 1 ms a step.
        size = examples * self._all.size(self.features)
        if self.probe == "knn":
            return 2e-10 * size * self._pool.test_size
        classes = len(np.unique(self._pool.labels))
        fits = 26 if examples < 1000 else 6
        return fits * (0.01 + 1e-8 * size * classes * 10)


class _Tuning:
    """Fine-tuning, or training from scratch."""

    def __init__(self, model, pool, projection_layer, from_scratch):
        self.features = "untrained" if from_scratch else "simclr"
        self.probe = "scratch" if from_scratch else "finetune"
        self._pool = pool
        self._tuner = Tuner(
            model,
            np.unique(pool.labels),
            projection_layer=projection_layer,
            from_scratch=from_scratch,
        )
        self._seconds = None

    def _of(self, places):
        return {k: array[places] for k, array in self._pool.examples.items()}

    def predict(self, chosen, tests, seed):
        self._tuner.fit(self._of(chosen), seed)
        return self._tuner.predict(self._of(tests))

    def seconds(self, examples):
        if self._seconds is None:
            self._seconds = self._measured()
        fixed, per_step = self._seconds
        return fixed + per_step * (
            self._tuner.steps_for(examples) + self._pool.test_size / 200
        )

    def _measured(self):
        """Seconds that every training takes, and each of its steps."""
        _, firsts = np.unique(self._pool.labels, return_index=True)
        step = max(1, len(self._pool.labels) // _FEW_IMAGES)
        some = np.arange(0, len(self._pool.labels), step)
        part = self._of(np.union1d(firsts, some))
        few, many = 2, 12
        times = []
        for steps in (few, few, many):  # The first traces.
            start = time.perf_counter()
            self._tuner.fit(part, 0, steps=steps)
            times.append(time.perf_counter() - start)
        per_step = max(times[2] - times[1], 0.0) / (many - few)
        return max(times[1] - few * per_step, 0.0), per_step


def _row(key, is_right, correction):
    features, probe, amount = key
    draws = [float(np.mean(each)) for each in is_right]
    return {
        "features": features,
        "probe": probe,
        "labels": amount,
        "accuracy": float(np.mean(draws)),
        "std": float(np.std(draws, ddof=1)) if len(draws) > 1 else None,
        "interval": interval(is_right, correction),
        "draws": draws,
    }


def _gain(amount, results, correction):
    """The best of SimCLR against the best of the others."""
    means = {
        key: np.mean([np.mean(each) for each in is_right])
        for key, is_right in results.items()
        if key[2] == amount
    }
    best = max((x for x in means if x[0] == "simclr"), key=means.get)
    baseline = max((x for x in means if x[0] != "simclr"), key=means.get)
    differences = [
        ours.astype(float) - theirs
        for ours, theirs in zip(results[best], results[baseline], strict=True)
    ]
    return {
        "labels": amount,
        "best": best[1],
        "baseline": ", ".join(baseline[:2]),
        "gain": float(means[best] - means[baseline]),
        "interval": interval(differences, correction),
    }
