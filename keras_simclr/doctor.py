"""What is wrong with a training: rules, and what they say in words.

Each rule has one threshold and the source of that. Clean runs that were
measured are of digits, Fashion-MNIST, CIFAR-10 and clip art, with three seeds
each, two views and (digits) four. None had a finding.
"""

import collections.abc
import dataclasses
import math

import numpy as np

from keras_simclr import collapse

_NEAR = 0.1  # Of the usual distance of two images: near-duplicates.
_FIRST_STEPS = 20  # In which views need not agree,
_WARM_UP = 100  # and in which the loss need not fall.
_MOST_GUESSED = 0.04  # Share: with more, guessing and finding look alike.
_DEAD = 0.05  # Spread of a column that is not used.


@dataclasses.dataclass(frozen=True)
class Rule:
    """A fault that can be seen.

    Attributes:
        name: Of the rule.
        threshold: What `symptom` compares with.
        source: Of the threshold.
        text: What it says: symptom; likely cause; what to try.
        symptom: Function of the cases so far, the latest last, and the
            threshold. True if there is the fault.
        values: Names of what `text` and the finding show.
        explains: Whether it is why nothing is learnt.
        is_general: Whether it says nothing where such a rule does.
    """

    name: str
    threshold: float
    source: str
    text: str
    symptom: collections.abc.Callable
    values: tuple
    explains: bool = True
    is_general: bool = False


def findings_in(cases):
    """What the rules find.

    Args:
        cases: Dictionaries of values, one for each look at the model: before
            the first epoch, and after each. What is not known is left out or
            NaN.

    Returns:
        List of `(rule, text, values)`, one for each rule that finds something.

    Example:

    >>> ((rule, text, values),) = findings_in([{"negatives": 6}])
    >>> rule, values
    ('small_batch', {'negatives': 6})
    """
    found, is_explained = [], False
    for rule in RULES:
        if rule.is_general and is_explained:
            continue
        with_all = [x for x in cases if not _missing(rule, x)]
        # What it shows must be of the latest case.
        if not with_all or with_all[-1] is not cases[-1]:
            continue
        if rule.symptom(with_all, rule.threshold):
            values = {name: cases[-1][name] for name in rule.values}
            found.append((rule.name, rule.text.format(**values), values))
            is_explained |= rule.explains
    return found


def _missing(rule, case):
    """Whether a case lacks what a rule looks at."""
    return any(
        name not in case or not np.isfinite(case[name]) for name in rule.values
    )


def of_images(images, views):
    """What images and their views are like.

    Args:
        images: Array of shape `(N, ...)`: the images at rest.
        views: Pair of arrays of views of them.

    Returns:
        Dictionary of values: `variety`, how far images are from their mean,
        `change`, how far views are from images, and `difference`, how far two
        views are from each other, all in units of the images' standard
        deviation; `duplicates`, the share of images that have a near-duplicate
        among the others. Of images, not tables, also `largest`, the largest
        value; `bright`, that of 99 % of the values; and `clipped`, the share of
        the values that are 0 or 1 in views and not in images.

    Example:

    >>> images = np.random.default_rng(0).random((4, 8, 8, 1))
    >>> values = of_images(images, (images, images))
    >>> values["change"], values["difference"], values["duplicates"]
    (0.0, 0.0, 0.0)
    """
    images, *views = (np.asarray(x, "float64") for x in (images, *views))
    unit = float(images.std()) or 1.0
    values = {
        "variety": float((images - images.mean(axis=0)).std() / unit),
        "difference": _rms(views[0] - views[1]) / unit,
        "duplicates": _share_of_duplicates(images.reshape(len(images), -1)),
    }
    if views[0].shape == images.shape:
        values["change"] = max(_rms(view - images) / unit for view in views)
    if images.ndim == 4:
        clipped = [np.mean((x <= 0) | (x >= 1)) for x in (images, *views)]
        values["largest"] = float(images.max())
        values["bright"] = float(np.quantile(images, 0.99))
        values["clipped"] = float(np.mean(clipped[1:]) - clipped[0])
    return values


def _rms(values):
    return float(np.sqrt(np.mean(values**2)))


def _share_of_duplicates(rows):
    """Share of rows that have another one much nearer than is usual."""
    squares = np.sum(rows**2, axis=1)
    distances = squares[:, None] + squares - 2 * rows @ rows.T
    distances = np.sqrt(np.maximum(distances, 0))
    usual = np.median(distances[np.triu_indices(len(rows), 1)])
    np.fill_diagonal(distances, math.inf)
    return float(np.mean(distances.min(axis=1) < _NEAR * usual))


def of_projections(z, temperature=None):
    """What projections are like, as the loss sees them.

    Args:
        z: Array of shape `(V, N, D)`, projections of the views.
        temperature: Of the loss, or None where it has none.

    Returns:
        Dictionary of values: `length`, the mean length of a projection; and, if
        all are finite, `z_spread`, the mean of their `collapse.spread`; `dead`,
        the share of columns that spread less than 0.05; and with a temperature
        `sharpness`, the standard deviation of the similarities of different
        images, divided by it.

    Example:

    >>> values = of_projections(np.stack([np.eye(4), np.eye(4)]))
    >>> values["length"], values["dead"]
    (1.0, 0.0)
    """
    rows = np.asarray(z, "float64").reshape(-1, z.shape[-1])
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    values = {"length": float(lengths.mean())}
    if not np.isfinite(rows).all():
        return values
    spread = collapse.spread(rows)
    values["z_spread"] = float(spread.mean())
    values["dead"] = float(np.mean(spread < _DEAD))
    if temperature is not None:
        directions = (rows / np.maximum(lengths, 1e-12)).reshape(z.shape)
        similarities = directions[0] @ directions[1].T
        others = ~np.eye(len(similarities), dtype=bool)
        values["sharpness"] = float(similarities[others].std() / temperature)
    return values


def of_settings(batch_size, views, loss, steps):
    """What follows from settings alone.

    Args:
        batch_size: Images in a batch, or None.
        views: Views of each.
        loss: `losses.ContrastiveLoss`.
        steps: Steps of the whole training, or None.

    Returns:
        Dictionary of values: `negatives` of an anchor; `steps`; and `range`,
        the most that the loss can fall, from `chance` to what orthogonal
        negatives and equal views have, divided by chance.

    Example:

    >>> of_settings(256, 2, simclr.NTXent(0.2), 1_000)["negatives"]
    510
    """
    values = {} if steps is None else {"steps": steps}
    if batch_size is None:
        return values
    values["negatives"] = views * (batch_size - 1)
    chance = loss.chance(batch_size, views)
    temperature = getattr(loss, "temperature", None)
    if chance and temperature is not None:
        values["temperature"] = temperature
        values["range"] = 1 / temperature / chance
    return values


def _above(name):
    return lambda cases, threshold: cases[-1][name] > threshold


def _below(name):
    return lambda cases, threshold: cases[-1][name] < threshold


def _is_at_chance(cases, threshold):
    """Two epochs in a row, after the first steps of a warm-up."""
    is_likely = cases[-1]["guessing"] > _MOST_GUESSED
    return (
        _has_begun(cases)
        and not is_likely
        and all(
            case["contrastive_accuracy"] < threshold * case["guessing"]
            for case in cases[-2:]
        )
    )


def _stays_at_chance(cases, threshold):
    """Two epochs in a row, without falling."""
    if not _has_begun(cases, _WARM_UP):
        return False
    before, last = (case["loss_over_chance"] for case in cases[-2:])
    return last > threshold * max(before, 1.0)


def _has_begun(cases, steps=_FIRST_STEPS):
    return len(cases) > 1 and cases[-1].get("made", 0) >= steps


def _are_two_views(cases, threshold):
    case = cases[-1]
    return case["difference"] < threshold <= case["change"]


def _are_near_duplicates(cases, threshold):
    case = cases[-1]
    return case["duplicates"] > threshold and case["variety"] > 0.01


def _are_dark(cases, threshold):
    case = cases[-1]
    return case["bright"] < threshold and case["largest"] > _SCALED


def _is_only_encoder(cases, threshold):
    case = cases[-1]
    return case["encoder_update"] <= threshold < case["head_update"]


def _is_still(cases, threshold):
    case = cases[-1]
    return max(case["encoder_update"], case["head_update"]) <= threshold


def _grows(name):
    """Above so many times the median of what was before."""

    def symptom(cases, threshold):
        before = [case[name] for case in cases[:-1]]
        usual = np.median(before) if len(before) > 2 else math.inf
        return cases[-1][name] > threshold * usual

    return symptom


def _rank_falls(cases, threshold):
    best = max(cases[:-1], key=lambda case: case["rankme"], default=cases[-1])
    last = cases[-1]
    is_better = last["loss"] < best["loss"]
    return is_better and last["rankme"] < threshold * best["rankme"]


def _probe_falls(cases, threshold):
    """Three probes in a row are worse, together by the threshold."""
    probed = [case for case in cases if case.get("knn_seconds", 1)][-4:]
    accuracies = [case["knn_accuracy"] for case in probed]
    return (
        len(probed) == 4
        and probed[-1] is cases[-1]
        and bool(np.all(np.diff(accuracies) < 0))
        and accuracies[0] - accuracies[-1] > threshold
        and probed[-1]["loss"] < probed[0]["loss"]
    )


def _is_easy(cases, threshold):
    # Among few images every pair is easy.
    return cases[-1]["contrastive_accuracy"] > threshold and (
        cases[-1]["negatives"] >= 100
    )


_SCALED = 1.5 / 255  # Largest value of what was divided by 255 twice.

RULES = (
    Rule(
        "idle_augmentation",
        0.01,
        "0 by definition; clean views are at 0.85 and more",
        "The views are the images themselves (they differ by {change:.1%} of "
        "the images' standard deviation); the augmentation does nothing; give "
        "it crops and colours that change them.",
        _below("change"),
        ("change",),
    ),
    Rule(
        "identical_views",
        0.01,
        "0 by definition; clean views are at 0.85 and more",
        "The two views of an image are the same (they differ by "
        "{difference:.1%} of the images' standard deviation); both are drawn "
        "with one seed, or by a layer that draws nothing; have each view drawn "
        "with the seed that the layer is given.",
        _are_two_views,
        ("difference", "change"),
    ),
    Rule(
        "equal_images",
        0.01,
        "0 by definition",
        "All images are the same (they vary by {variety:.1%} of their standard "
        "deviation); one file was read again and again, or the images are "
        "blank; look at a few of them, or run `keras-simclr scan`.",
        _below("variety"),
        ("variety",),
    ),
    Rule(
        "near_duplicates",
        0.25,
        "measured: clip art, which has some, is at 0.18",
        "{duplicates:.0%} of the images have a near-duplicate among those "
        "looked at; frames of one film, or one picture saved many times, which "
        "are negatives of each other; thin them out: `keras-simclr scan` lists "
        "groups, and `groups` keeps them from being negatives.",
        _are_near_duplicates,
        ("duplicates", "variety"),
        explains=False,
    ),
    Rule(
        "scaled_twice",
        _SCALED,
        "1/255 by definition",
        "The largest value of the images is {largest:.2g}; they were divided "
        "by 255 twice; give uint8 images, or floats from 0 to 1.",
        _below("largest"),
        ("largest",),
    ),
    Rule(
        "dark_images",
        0.1,
        "measured: digits, clothes, clip art and photographs are at 0.9",
        "The images are nearly black (99 % of their values are below "
        "{bright:.2g} of white); they hold more bits than were used, or were "
        "scaled wrongly; stretch them to the range from 0 to 1.",
        _are_dark,
        ("bright", "largest"),
    ),
    Rule(
        "clipped_views",
        0.3,
        "measured: clean runs are below 0.05",
        "{clipped:.0%} more of the values are black or white in views than in "
        "images; the colour distortion is too strong; lower `strength`.",
        _above("clipped"),
        ("clipped",),
        explains=False,
    ),
    Rule(
        "small_batch",
        30,
        "ours: half of the smallest batch of the claims, 32 images",
        "An image is told apart from {negatives} other views only; the batch "
        "is too small; take a larger `batch_size`, in memory with "
        "`micro_batch_size`.",
        _below("negatives"),
        ("negatives",),
        explains=False,
    ),
    Rule(
        "too_few_steps",
        800,
        "recipe.FEWEST_STEPS: digits are better than raw pixels after 400",
        "The training has {steps:,} steps in all; too few epochs for so few "
        "batches; train for 800 or more, or an encoder may be worth less than "
        "raw pixels.",
        _below("steps"),
        ("steps",),
        explains=False,
    ),
    Rule(
        "high_temperature",
        0.1,
        "similarities go from 0 to 1: the loss can fall by 1 / temperature",
        "At a temperature of {temperature:g} the loss can fall by no more than "
        "{range:.1%} of what guessing costs; the temperature is too high; take "
        "one of 0.1 to 0.5.",
        _below("range"),
        ("range", "temperature"),
    ),
    Rule(
        "low_temperature",
        20,
        "measured: clean runs are at 0.8 to 2.7, a temperature of 0.001 at 260",
        "Similarities of different images differ by {sharpness:.0f} "
        "temperatures, so that each anchor sees its nearest negative only; the "
        "temperature is too low; take one of 0.1 to 0.5.",
        _above("sharpness"),
        ("sharpness",),
    ),
    Rule(
        "missing_negatives",
        0.99,
        "1 by definition",
        "The loss compares only {gathered:.0%} of the images of a batch; each "
        "replica takes its own images for negatives; gather the projections of "
        "all replicas before the loss.",
        _below("gathered"),
        ("gathered",),
    ),
    Rule(
        "zero_projections",
        1e-6,
        "0 by definition",
        "The projections are zero (their mean length is {length:.1g}); the "
        "projection head ends in zeros: weights of zero, a dead ReLU or a "
        "wrong mask; look at its last layer.",
        _below("length"),
        ("length",),
    ),
    Rule(
        "collapse",
        0.05,
        "arXiv:2011.10566, section 4.1: 0 if collapsed, 1 if not; clean at 0.9",
        "All images have nearly one projection (spread {z_spread:.2g}, of 1); "
        "the encoder has collapsed; lower the learning rate, or see whether "
        "negatives reach the loss.",
        lambda cases, threshold: (
            cases[-1]["z_spread"] < threshold and "loss" in cases[-1]
        ),
        ("z_spread",),
        is_general=True,
    ),
    Rule(
        "dead_columns",
        0.25,
        "ours: a quarter; clean runs have none",
        "{dead:.0%} of the projection's columns are the same for all images; "
        "units of the head have died; lower the learning rate, or put batch "
        "norm into the head.",
        lambda cases, threshold: (
            cases[-1]["dead"] > threshold and "loss" in cases[-1]
        ),
        ("dead",),
        is_general=True,
    ),
    Rule(
        "no_updates",
        0.0,
        "0 by definition",
        "No weight has moved in this epoch; the learning rate is 0, or every "
        "step was skipped; look at the schedule of the learning rate.",
        _is_still,
        ("encoder_update", "head_update"),
    ),
    Rule(
        "frozen_encoder",
        0.0,
        "0 by definition",
        "Only the projection head learns: no weight of the encoder has moved; "
        "it was frozen; set `encoder.trainable = True` before the model is "
        "made.",
        _is_only_encoder,
        ("encoder_update", "head_update"),
    ),
    Rule(
        "frozen_batch_norm",
        0.5,
        "0 by definition; half of them, since some freeze a few on purpose",
        "{standing_norms:.0%} of the encoder's layers of batch norm stand "
        "still; they were frozen, and see averages that are not those of these "
        "images; set their `trainable = True`.",
        _above("standing_norms"),
        ("standing_norms",),
    ),
    Rule(
        "large_steps",
        0.5,
        "measured: clean runs are below 0.02, of 1,000 times the rate above 1",
        "A step moves a kernel by {step_update:.2g} times its own length; the "
        "learning rate is too high; divide it by ten.",
        _above("step_update"),
        ("step_update",),
    ),
    Rule(
        "no_gradient",
        1e-12,
        "0 by definition",
        "The loss has no gradient in the encoder (length "
        "{encoder_gradient:.1g}); something between encoder and loss stops it; "
        "look for layers that stop gradients, or outputs that do not change.",
        _below("encoder_gradient"),
        ("encoder_gradient",),
        is_general=True,
    ),
    Rule(
        "exploding_gradient",
        100.0,
        "100 times the running median, as others watch it",
        "The gradient in the encoder has length {encoder_gradient:.2g}, 100 "
        "times the usual; training is about to diverge; lower the learning "
        "rate, or lengthen the warm-up.",
        _grows("encoder_gradient"),
        ("encoder_gradient",),
    ),
    Rule(
        "slow_reading",
        0.3,
        "ours, for planning: 30 % of the time",
        "Training waits for images {waiting:.0%} of the time; they are read "
        "more slowly than trained on; store them smaller, or use more CPU "
        "cores.",
        _above("waiting"),
        ("waiting",),
        explains=False,
    ),
    Rule(
        "falling_probe",
        0.05,
        "ours: five points, beyond what chance does to a probe",
        "The k-NN probe has fallen to {knn_accuracy:.1%} in three probes, "
        "while the loss fell, too; the views can be matched by something other "
        "than what the images show; change the augmentation.",
        _probe_falls,
        ("knn_accuracy", "loss"),
    ),
    Rule(
        "falling_rank",
        0.5,
        "arXiv:2110.09348; half of the highest",
        "The rank of the representations has fallen to {rankme:.1f}, less than "
        "half of its best, while the loss fell; they use fewer and fewer "
        "directions; try stronger views or a larger head.",
        _rank_falls,
        ("rankme", "loss"),
    ),
    Rule(
        "no_agreement",
        2.0,
        "twice chance: clean runs begin at three times, and rise",
        "Views of an image are no more alike than those of others (contrastive "
        "accuracy {contrastive_accuracy:.2%}, where guessing has {guessing:.2%}"
        "); the views are too strong, or not of one image; weaken the "
        "augmentation, and look at a few views.",
        _is_at_chance,
        ("contrastive_accuracy", "guessing"),
        is_general=True,
    ),
    Rule(
        "nothing_learnt",
        0.99,
        "within 1 % of chance for two epochs",
        "The loss is {loss_over_chance:.1%} of what guessing costs, for two "
        "epochs; nothing is learnt; raise the learning rate, or weaken the "
        "views.",
        _stays_at_chance,
        ("loss_over_chance",),
        is_general=True,
    ),
    Rule(
        "easy_views",
        0.99,
        "docs/claims.md: blur alone has 99.6 %, and poor encoders",
        "Nearly every view finds its pair (contrastive accuracy "
        "{contrastive_accuracy:.1%}); the views are too alike to learn from; "
        "make them differ more: smaller crops, stronger colours.",
        _is_easy,
        ("contrastive_accuracy", "negatives"),
        is_general=True,
    ),
)
