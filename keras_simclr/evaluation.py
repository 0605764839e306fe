"""What an encoder is worth: probes and fine-tuning, beside baselines."""

import dataclasses
import functools
import hashlib
import logging
import time

import numpy as np

from keras_simclr import (
    _checks,
    _files,
    finetuning,
    kinds,
    sampling,
    shipping,
)
from keras_simclr.contenders import (
    START,
    Forecast,
    Trained,
    estimators_for,
    make_contenders,
    opened,
)
from keras_simclr.copies import untrained_copy, weights_digest
from keras_simclr.devices import duration
from keras_simclr.duplicates import group_images
from keras_simclr.feature_files import FeatureFiles
from keras_simclr.features import (
    PIXEL_SETTINGS,
    Features,
    check_all_fit,
    kind_of_model,
    raw_features,
    representation,
    resized_representation,
    settle_batch_norm,
)
from keras_simclr.folders import EncodedImages
from keras_simclr.labelled import (
    Labelled,
    check_classes,
    compare_classes,
    end_to_end,
    load_labelled,
)
from keras_simclr.pretrained import encoder_of
from keras_simclr.probes import KINDS, settings_in_words
from keras_simclr.vectors import VectorTable

_logger = logging.getLogger("keras_simclr")

PROBES = (*KINDS, "finetune")
LABELS = (1, 10, "1%", "all")
_THOROUGH_LABELS = (1, 5, 10, 50, "1%", "10%", "all")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`; `str()` is the table and the verdict.

    Attributes:
        rows: Dictionaries with `features` (`"pixels"`, or what else is raw in
            a `kinds.Kind`; `"untrained"`, `"simclr"`, or the name of another
            encoder), `probe` (`"linear"`, `"knn"`, `"finetune"`, `"scratch"`,
            `"classifier"` of one that is trained already, or the name of an
            estimator among `baselines`), `labels` (an integer per class, a
            share such as `"1%"`, `"all"`, or `"own"` of a trained classifier:
            those that it has learnt from), `accuracy`
            (mean, 0 to 1), `std` (over the draws of the labelled set, None for
            a single one), `interval` (95 %, as from `sampling.interval`) and
            `draws` (each accuracy).
        gains: Dictionaries with `labels`; `best` and `baseline`, the best of
            SimCLR and of the others; `gain`, the difference of their
            accuracies; and its 95 % `interval`, paired, which is corrected
            for their being the best (`sampling.gain_interval`).
        left_out: What the labels could not fill, in words.
        settings: What was fixed: the probes' settings, sizes and the seed; and
            what all this describes, by digests (SHA-256): `weights` of the
            model and of further `encoders`, as from `copies.weights_digest`
            (of tables, their vectors), and `data_digest`, of images and labels.
            With an encoder `"start"` also `over_start`: as `gains`, of which
            that is the baseline. Where there are other `encoders`, `costs`: as
            from `shipping.measured`.
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
        """Whether pretraining was worth it, and what to use, in sentences.

        Where it was not, the chance to be called so is at most 2.5 % for each
        number of labels of which several sets were drawn, and the same the
        other way round. All labels of a given training set are one: what
        another set would change is not in it.
        """
        found = {
            "Worth it": lambda low, high: low > 0,
            "Not worth it": lambda low, high: high < 0,
            "Not shown to be worth it": lambda low, high: low <= 0 <= high,
        }
        sentences = []
        for words, is_so in found.items():
            gains = [x for x in self.gains if is_so(*x["interval"])]
            if gains:
                gains = "; ".join(map(_gain_in_words, gains))
                sentences.append(f"{words}: {gains}.")
        if over_start := self.settings.get("over_start"):
            gains = "; ".join(map(_gain_over_start_in_words, over_start))
            sentences.append(f"Going on from the start adds {gains}.")
        return " ".join(sentences)

    def __str__(self):
        order = [*PROBES, "scratch", *(row["probe"] for row in self.rows)]
        columns = dict.fromkeys(row["labels"] for row in self.rows)
        columns.pop(shipping.OWN, None)
        cells = {}
        for row in sorted(self.rows, key=lambda row: order.index(row["probe"])):
            if row["labels"] == shipping.OWN:  # They are in the other table.
                continue
            name = f"{row['features']}, {row['probe']}"
            cells.setdefault(name, {})[row["labels"]] = (
                shipping.accuracy_in_words(row)
            )
        table = {"accuracy, % (95 %)": map(sampling.amount_in_words, columns)}
        for name, found in cells.items():
            table[name] = [found.get(amount, "") for amount in columns]
        width = max(24, *map(len, table))
        lines = [
            f"{name:{width}}" + "".join(f"{text:>20}" for text in texts)
            for name, texts in table.items()
        ]
        lines += [self.settings["examples"], *self.settings.get("remarks", ())]
        if costs := self.settings.get("costs"):
            lines += shipping.table(self.rows, costs)
        for name in (*PROBES, "baselines", "pixels"):
            if name in self.settings:
                lines.append(f"{name}: {self.settings[name]}.")
        lines += [f"Left out: {reason}." for reason in self.left_out]
        return "\n".join([*lines, self.verdict]).rstrip()


def _gain_in_words(gain):
    ours, theirs = f"simclr, {gain['best']}", gain["baseline"]
    best, to_what = ours, f"to {theirs}"
    if gain["gain"] <= 0:  # Of equals, what takes no pretraining.
        best, to_what = theirs, f"to it, by {ours}"
    return (
        f"use {best}, with {_amount_in_words(gain)}: own pretraining adds "
        f"{_points_in_words(gain)} {to_what}"
    )


def _gain_over_start_in_words(gain):
    return f"{_points_in_words(gain)} with {_amount_in_words(gain)}"


def _points_in_words(gain):
    low, high = (100 * x for x in gain["interval"])
    return f"{100 * gain['gain']:+.1f} points ({low:+.1f} to {high:+.1f})"


def _amount_in_words(gain):
    amount = gain["labels"]
    if isinstance(amount, int):
        return f"{amount} label{'s' * (amount > 1)} per class"
    return "all labels" if amount == "all" else f"{amount} of the labels"


def evaluate(
    model,
    train,
    test=None,
    *,
    probes=None,
    labels=None,
    draws=5,
    thorough=False,
    encoders=None,
    baselines=True,
    projection_layer=0,
    class_names=(),
    features_dir=None,
    seed=0,
    report=None,
    progress=None,
):
    """Compares what can be learned from few and many labels, and from what.

    Every probe is trained on the representations of the encoder, and beside it
    on raw features (pixels of images), on those of the same encoder untrained
    (whose batch norm is shown images to learn from), and of other encoders.
    Beside fine-tuning, the same encoder is trained from scratch. All are given
    the same labels and tested on the same images.

    Args:
        model: A `SimCLRModel`, or a Keras model from images to
            representations. It is left as it is.
        train: Labelled images: `(images, labels)` arrays, or a dataset of
            batches of them. Where a dataset has `class_names`, as those from
            folders do, labels are these; images with a negative label are left
            out.
        test: The same, to test on. Classes are compared by name; images of
            others than those in `train` count as wrong. None: a fifth of the
            images of `train`, another one for each draw, stratified; duplicates
            (`groups`, or found here) are not divided.
        probes: Some of `"linear"`, `"knn"` and `"finetune"`; by default the
            first two.
        labels: Labels to learn from: integers (per class), shares (`"1%"`) and
            `"all"`. What the classes are too small for is left out. By
            default 1, 10, `"1%"` and `"all"`.
        draws: Labelled sets drawn of each number.
        thorough: Whether to take all probes and, of labels, also 5, 50 and
            `"10%"` by default, and `linear_probe` as it is: otherwise, of many
            examples, with its argument `quick`.
        encoders: Dictionary from names to what else to compare with: Keras
            encoders, which take float images in [0, 1] of their own size; what
            `pretrained.open_encoder` opens; or paths of tables of vectors that
            any tool made, in Parquet or .npz files, as `vectors.VectorTable`
            reads them; or directories that `finetune` wrote, whose classifiers
            are tested as they are. The names of raw features, `"untrained"` and
            `"simclr"` are taken; `"start"` is what pretraining of the model
            began with.
        baselines: Whether to compare with anything else at all; or a dictionary
            from names to classifiers of scikit-learn, which learn from raw
            features beside the probes. By default these are extremely
            randomized trees, but for images.
        projection_layer: As `fine_tune`.
        class_names: Names, where labels without their own are places in them.
        features_dir: Directory to keep the features of encoders in, up to a
            gigabyte, or None. Of the same weights and images they are not made
            again; what this evaluation does not use is removed from it.
        seed: Integer that everything drawn is a function of.
        report: Function that is told, in words, what is being done, how long it
            will take, and each accuracy as it is found.
        progress: Function that is told, as work goes on, how many images are
            done, of what was reported last, and of how many; or None where that
            is not known.

    Returns:
        An `Evaluation`.

    Raises:
        ValueError: If an encoder takes other images, a table has no row for a
            labelled image or rows for unknown ones, a classifier does not know
            a class to test on or has no test set, or labels are missing or fill
            none of the numbers asked for, or an argument is not among what is
            listed here.

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
    _checks.seed("seed", seed)
    kind = kind_of_model(model)
    estimators = estimators_for(kind, baselines)
    probes, amounts = _chosen(probes, labels, draws, thorough, features_dir)
    encoders = opened(encoders or {}, model, probes, test)
    start = time.perf_counter()
    say = functools.partial(kind.tell, report)
    load = _loader(model, encoders, class_names, say, progress)
    tables = _tables(encoders, train, test)
    examples, splits = _load(train, test, draws, seed, load, say, tables)
    remarks = _remarks(examples, splits, kind)
    jobs, left_out = sampling.plan_jobs(
        examples["labels"], splits, amounts, draws, seed
    )
    trained, own_jobs = _trained(encoders, examples, splits)
    untrained = _untrained(model, examples, splits, seed) if baselines else None
    about = _described(model, encoders, examples, splits)
    keep = functools.partial(_files_for, features_dir, about, untrained, say)
    features = _features(model, untrained, encoders, examples, progress, keep)
    how = probes, baselines, projection_layer, not thorough, estimators
    contenders = make_contenders(model, features, *how)
    forecast = report and Forecast(contenders, jobs, features, start, say)
    if estimators or not {*KINDS}.isdisjoint(probes):
        features.make(say)
    results = _run(contenders, jobs, forecast, seed, say, progress)
    results += _run(trained, own_jobs, None, seed, say, None)
    correction = sampling.correction_of(splits)
    rows = [_row(result, correction) for result in results]
    gains = [_gain(job, results, correction) for job in jobs if baselines]
    settings = {
        **_in_words(probes, splits, thorough, kind, baselines, estimators),
        "remarks": remarks,
        "thorough": thorough,
        "projection_layer": projection_layer,
        "draws": draws,
        **about,
        **_over_start(jobs, results, correction),
        **_costs(model, encoders),
        "seed": seed,
        "seconds": round(time.perf_counter() - start),
    }
    return Evaluation(tuple(rows), tuple(gains), tuple(left_out), settings)


def _loader(model, encoders, class_names, report, progress):
    """Function that reads labelled examples, from their name and a source."""
    return functools.partial(
        load_labelled,
        class_names=class_names,
        kind=kind_of_model(model),
        check=functools.partial(check_all_fit, model, encoders),
        report=report,
        progress=progress,
    )


def _chosen(probes, labels, draws, thorough, features_dir):
    """Checked probes and amounts of labels, by default as `thorough` says."""
    if features_dir is not None:
        _files.check_can_write(features_dir)
    if probes is None:
        probes = PROBES if thorough else tuple(KINDS)
    if labels is None:
        labels = _THOROUGH_LABELS if thorough else LABELS
    for probe in probes or (probes,):
        _checks.choice("probes", probe, PROBES)
    _checks.integer("draws", draws, minimum=2)
    return probes, list(dict.fromkeys(map(sampling.checked_amount, labels)))


def _tables(encoders, train, test):
    """Those of the encoders that are tables, which know the images now."""
    tables = [x for x in encoders.values() if isinstance(x, VectorTable)]
    sets = [train] if test is None else [train, test]
    sources = [getattr(each, "source", None) for each in sets]
    sources = [x if isinstance(x, EncodedImages) else None for x in sources]
    for table in tables:
        table.find_images(sources)
    return tables


def _load(train, test, draws, seed, load, report, tables=()):
    """All examples in memory with their `groups`, and the splits of them.

    Tables of vectors follow them.
    """
    train = load("train", train)
    check_classes("train", train["labels"])
    if test is not None:
        test = load("test", test)
        compare_classes(train["labels"], test["labels"])  # Refuses others.
    for table in tables:
        sets = [train] if test is None else [train, test]
        table.follow([(each.all_images, each["places"]) for each in sets])
    if test is None:
        train = with_groups(train, report)
        splits = sampling.random_splits(
            train["labels"], train["groups"], draws, seed
        )
        return train, splits
    places = np.arange(len(train["labels"]) + len(test["labels"]))
    split = sampling.Split(*np.split(places, [len(train["labels"])]))
    return with_groups(end_to_end(train, test), report), [split]


def with_groups(examples, report):
    """The examples, with the `groups` of duplicates found if they have none."""
    if "groups" in examples:
        return examples
    count = len(examples["images"])
    report(f"Looking for duplicates among {count:,} images.")
    groups, is_complete = group_images(
        examples["images"], examples.get("sizes")
    )
    if not is_complete:
        _logger.warning(
            "Near duplicates unknown: only equal images were looked for "
            "among %d",
            len(groups),
        )
    return Labelled({**examples, "groups": groups})


def _remarks(examples, splits, kind):
    """Logs, and returns in sentences, what classes and duplicates tell."""
    remarks = [kind.said(x) for x in _remarks_on(examples, splits, kind)]
    for remark in remarks:
        _logger.warning(remark)
    return remarks


def _remarks_on(examples, splits, kind):
    labels, groups, split = examples["labels"], examples["groups"], splits[0]
    if len(splits) > 1:
        count = len(groups) - len(np.unique(groups))
        if kind is kinds.SERIES and count:
            recordings = len(np.unique(groups))
            return [f"They are of {recordings} recordings: none is divided."]
        words = (
            f"{count} of {len(groups)} images are duplicates of others, from "
            "which they are not divided."
        )
        return [words] * (count > 0)
    remarks = compare_classes(labels[split.train], labels[split.test])
    count = int(np.isin(groups[split.test], groups[split.train]).sum())
    if count:
        remarks.append(
            f"{count} of {len(split.test)} images to test on are duplicates of "
            "images to learn from: this raises the accuracy."
        )
    return remarks


def _described(model, encoders, examples, splits):
    """Names what was compared, learned from and tested on."""
    return {
        "train_examples": len(splits[0].train),
        "test_examples": len(splits[0].test),
        "weights": weights_digest(model),
        "encoders": {
            k: getattr(x, "digest", None) or weights_digest(encoder_of(x))
            for k, x in encoders.items()
        },
        "data_digest": _digest(examples),
    }


def _digest(examples):
    digest = hashlib.sha256()
    for image in examples["images"]:
        digest.update(np.ascontiguousarray(image))
    for name in ("sizes", "labels"):
        if name in examples:
            digest.update(np.ascontiguousarray(examples[name]).view("uint8"))
    return digest.hexdigest()


def _examples_in_words(splits):
    train, test = len(splits[0].train), len(splits[0].test)
    images = f"{train:,} labelled images"
    if len(splits) > 1:
        images = (
            f"No test set: {len(splits)} random splits of {train + test:,} "
            f"images, {train:,}"
        )
    return f"{images} to learn from, {test:,} to test on."


def _in_words(probes, splits, thorough, kind, baselines, estimators):
    """What all examples are, and what is fixed in each probe, by name."""
    words = {"examples": kind.said(_examples_in_words(splits))}
    for probe in probes:
        words[probe] = finetuning.tuning_in_words(kind)
        if probe in KINDS:
            train = len(splits[0].train)
            words[probe] = settings_in_words(probe, train, not thorough)
    if baselines and kind is kinds.IMAGES:
        words["pixels"] = PIXEL_SETTINGS
    if estimators:
        words["baselines"] = ", ".join(
            " ".join(f"{name} = {estimator}".split())
            for name, estimator in estimators.items()
        )
    return words


def _trained(encoders, examples, splits):
    """Classifiers that have learnt already, and the job that they have."""
    trained = [x for x in encoders.values() if isinstance(x, Trained)]
    if not trained:
        return [], []
    (split,) = splits
    for each in trained:
        each.prepare(examples, split.test)
    own = dataclasses.replace(split, train=split.train[:0])
    targets = examples["labels"][split.test]
    return trained, [sampling.Job(shipping.OWN, (own,), (targets,))]


def _costs(model, encoders):
    """What there is to ship costs, if it is more than the model."""
    networks, paths = {"simclr": model}, {}
    for name, encoder in encoders.items():
        if isinstance(encoder, Trained):
            networks[name], paths[name] = encoder.network, encoder.path
        elif name != START and not isinstance(encoder, VectorTable):
            networks[name] = encoder
    if len(networks) == 1:
        return {}
    return {"costs": shipping.measured(networks, paths)}


def _untrained(model, examples, splits, seed):
    """A copy of the model that knows no more than where images lie."""
    copy = untrained_copy(model, seed)
    settle_batch_norm(copy, examples, splits[0].train, seed)
    return copy


def _features(model, untrained, encoders, examples, progress, keep):
    """`Features` of the examples, by what the table of results calls them."""
    functions, ready = {"simclr": representation(model)}, {}
    if untrained is not None:
        others = {
            kind_of_model(model).raw: raw_features(model),
            "untrained": representation(untrained),
        }
        for name, encoder in encoders.items():
            if isinstance(encoder, VectorTable):
                ready[name] = encoder.vectors
            elif not isinstance(encoder, Trained):
                others[name] = resized_representation(encoder)
        functions = others | functions
    files = keep([*functions])
    return Features(functions, examples, progress, ready, files)


def _files_for(features_dir, about, untrained, report, names):
    """Where those of these features are kept that a network makes, or None."""
    if features_dir is None:
        return None
    digests = {"simclr": about["weights"], **about["encoders"]}
    if untrained is not None:
        digests["untrained"] = weights_digest(untrained)
    networks = {name: digests[name] for name in names if name in digests}
    return FeatureFiles(features_dir, about["data_digest"], networks, report)


@dataclasses.dataclass(frozen=True)
class Result:
    """What a contender predicted in a job.

    Attributes:
        features: What it learned from.
        probe: How.
        job: A `sampling.Job`.
        predictions: Tuple of the labels found, for each split of the job.
    """

    features: str
    probe: str
    job: sampling.Job
    predictions: tuple

    @property
    def scores(self):
        """Of each split, an array in [0, 1]; its mean measures success."""
        return [
            (found == target).astype(float)  # The measure is the accuracy.
            for found, target in zip(
                self.predictions, self.job.targets, strict=True
            )
        ]

    @property
    def in_words(self):
        """What was learned, from what, and how well."""
        amount = sampling.amount_in_words(self.job.amount)
        return f"{self.features}, {self.probe}, {amount}: {self.mean:.1%}."

    @property
    def means(self):
        """The measure of success in each split."""
        return [float(np.mean(scores)) for scores in self.scores]

    @property
    def mean(self):
        """The measure of success in all splits."""
        return float(np.mean(self.means))


def _run(contenders, jobs, forecast, seed, report, progress):
    """A `Result` for each contender in each job."""
    results, total = [], len(contenders) * len(jobs)
    start = time.perf_counter()
    for contender in contenders:
        for job in jobs:
            predictions = tuple(
                contender.predict(
                    split, seed + draw, _part(progress, job.splits, draw)
                )
                for draw, split in enumerate(job.splits)
            )
            result = Result(
                contender.features, contender.probe, job, predictions
            )
            results.append(result)
            number = f"{len(results)} of {total}"
            if forecast and len(results) < total:
                taken = time.perf_counter() - start
                left = forecast.seconds_left(len(results), taken)
                number += f", {duration(left)} left"
            report(f"{number}: {result.in_words}")
    return results


def _part(progress, splits, draw):
    """What is told how far a draw is, and tells it of all draws."""
    if progress is None:
        return None
    sizes = [len(split.train) for split in splits]
    before, total = sum(sizes[:draw]), sum(sizes)
    return lambda done, of: progress(before + done * sizes[draw] // of, total)


def _row(result, correction):
    means = result.means
    return {
        "features": result.features,
        "probe": result.probe,
        "labels": result.job.amount,
        "accuracy": result.mean,
        "std": float(np.std(means, ddof=1)) if len(means) > 1 else None,
        "interval": sampling.interval(result.scores, correction),
        "draws": means,
    }


def _over_start(jobs, results, correction):
    """What the model adds to what it started from, if that was tried."""
    if START not in {result.features for result in results}:
        return {}
    gains = [_gain(job, results, correction, START) for job in jobs]
    return {"over_start": gains}


def _gain(job, results, correction, features=None):
    """The best of SimCLR against the best of the others, or of one of them."""
    results = [result for result in results if result.job is job]
    ours = [result for result in results if result.features == "simclr"]
    others = [result for result in results if result.features != "simclr"]
    if features is not None:
        others = [result for result in others if result.features == features]
    best, baseline = (max(x, key=lambda y: y.mean) for x in (ours, others))
    return {
        "labels": job.amount,
        "best": best.probe,
        "baseline": f"{baseline.features}, {baseline.probe}",
        "gain": best.mean - baseline.mean,
        "interval": sampling.gain_interval(
            best.scores,
            baseline.scores,
            correction,
            choices=(len(ours), len(others)),
        ),
    }
