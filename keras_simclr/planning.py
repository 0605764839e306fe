"""What this machine can do with these images, measured before training."""

import dataclasses
import itertools
import shlex
import tempfile
import time
import typing
import warnings

import keras
import numpy as np
import tensorflow as tf

from keras_simclr import _checks, devices, elements, replicas
from keras_simclr.architectures import resnet_layers
from keras_simclr.callbacks import Checkpoints
from keras_simclr.networks import stem_for
from keras_simclr.optimizers import scaled_learning_rate
from keras_simclr.recipe import Recipe, as_arguments, defaults

_DEPTHS = (10, 18, 50)
_WIDTHS = (0.25, 0.5, 1.0)
_SIZES = (32, 64, 96, 128, 224)

_TRIES = 3  # Encoders that are measured, at most.
_LONGEST = 75.0  # Seconds after which no further one is.
_READING = 2.0  # Seconds of reading,
_TRAINING = 8.0  # and of training, that are timed;
_WARM_UP = 2.0  # those before them are not: buffers were full.
_LONGEST_STEP = 3.0  # Seconds. Longer steps are timed on a part of the batch.
_SMALL_BATCH = 32  # Images in a batch, where its size does not matter.
_MEMORY = 0.75  # Share of the free memory that a step may take.


class Encoder(typing.NamedTuple):
    """A ResNet and the size of its views: flags of `pretrain`.

    Attributes:
        depth: Depth of the ResNet.
        width_multiplier: Every layer has this many times the usual channels.
        image_size: Side of the views, pixels.
    """

    depth: int
    width_multiplier: float
    image_size: int

    def cost(self):
        """Work and memory of one view.

        Returns:
            Array of two: multiply-adds of the convolutions, and numbers that
            they put out.

        Example:

        >>> work, numbers = Encoder(50, 1.0, 224).cost()
        >>> f"{work:.2e} {numbers:.2e}"
        '4.09e+09 1.11e+07'
        """
        layers = resnet_layers(
            self.depth, self.width_multiplier, stem_for(self.image_size)
        )
        costs = [layer.cost(self.image_size) for layer in layers.convolutions()]
        return np.sum(costs, axis=0, dtype="float64")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Result of `plan`; `str()` is the report.

    Attributes:
        flags: Dictionary of flags of `pretrain`: those that were given, and
            `depth`, `width_multiplier`, `image_size`, `micro_batch_size` (None:
            a batch fits into memory).
        images: Images in an epoch.
        side: Shorter side of the images, pixels (median).
        seconds: Dictionary of seconds per image: `reading`, `augmentation`,
            `encoder`, and `all`, which they add up to on a CPU; beside a GPU
            images are read while it trains.
        start_up: Seconds before the first step, once.
        saving: Seconds after each epoch.
        minutes_per_epoch: What was allowed.
    """

    flags: dict
    images: int
    side: int
    seconds: dict
    start_up: float
    saving: float
    minutes_per_epoch: float

    @property
    def seconds_per_epoch(self):
        return self.images * self.seconds["all"] + self.saving

    @property
    def bottleneck(self):
        parts = {k: v for k, v in self.seconds.items() if k != "all"}
        return max(parts, key=parts.get)

    @property
    def command(self):
        arguments = as_arguments({**self.flags, "output_dir": "runs/planned"})
        return shlex.join(["keras-simclr", "pretrain", *arguments])

    def __str__(self):
        flags, epoch = self.flags, self.seconds_per_epoch
        names = ("epochs", "batch_size", "learning_rate")
        recipe = Recipe(**{name: flags[name] for name in names})
        total = self.start_up + recipe.epochs * epoch
        rate = scaled_learning_rate(recipe.rate, recipe.batch_size)
        share = min(self.seconds[self.bottleneck] / self.seconds["all"], 1)
        limit = f"{self.minutes_per_epoch:g} minutes"
        is_fast = epoch <= 60 * self.minutes_per_epoch
        rows = {
            "images": f"{self.images:,} an epoch, {self.side} pixels a side",
            **{
                name: f"{1 / max(seconds, 1e-9):,.0f} images a second"
                for name, seconds in self.seconds.items()
            },
            "bottleneck": f"{self.bottleneck}, {share:.0%} of the time. Cure: "
            + _CURES[self.bottleneck],
            "choice": f"ResNet-{flags['depth']}, width "
            f"{flags['width_multiplier']:g}, views of {flags['image_size']} "
            "pixels: "
            + (
                f"the largest whose epoch takes at most {limit}"
                if is_fast
                else f"the fastest found, yet an epoch takes more than {limit}"
            ),
            "micro-batch": flags["micro_batch_size"] or "none: a batch fits",
            "learning rate": f"{rate:g} at a batch of {recipe.batch_size}",
            "an epoch": f"{devices.duration(epoch)}: "
            f"{3600 / epoch:,.1f} an hour",
            "steps": recipe.steps_in_words(self.images // recipe.batch_size),
            f"{recipe.epochs} epochs": f"{devices.duration(total)}, of which "
            f"{devices.duration(self.start_up)} to start",
        }
        lines = [f"{name:16}{text}" for name, text in rows.items()]
        return "\n".join([*lines, "", self.command])


_CURES = {
    "reading": "store smaller images, or use more CPU cores",
    "augmentation": "smaller views (--image_size), or a GPU",
    "encoder": "a GPU, or more of them; or a smaller encoder",
}


def choose(seconds, most):
    """The largest encoder that is fast enough.

    Args:
        seconds: Dictionary from encoders to seconds per epoch.
        most: Seconds that an epoch may take.

    Returns:
        The `Encoder` of the most multiply-adds among those; the fastest if
        there are none.

    Example:

    >>> small, large = Encoder(10, 0.25, 32), Encoder(18, 0.25, 32)
    >>> choose({small: 100.0, large: 200.0}, 150.0)
    Encoder(depth=10, width_multiplier=0.25, image_size=32)
    """
    fast = [encoder for encoder in seconds if seconds[encoder] <= most]
    if not fast:
        return min(seconds, key=seconds.get)
    return max(fast, key=lambda encoder: tuple(encoder.cost()))


def plan(recipe, data, *, minutes_per_epoch=30.0, report=print):
    """Measures this machine, and finds the largest encoder it has time for.

    For a minute or two it reads the images and trains: two small encoders,
    from which the seconds of all others are extrapolated, and then the one
    chosen, in the way that `runs.pretrain` does. If that takes other than
    expected, it chooses again.

    Args:
        recipe: `recipe.Recipe`, of which encoder and size of views are chosen.
        data: `recipe.Data`.
        minutes_per_epoch: The most that an epoch may take.
        report: Function that is told, in words, what devices there are, and
            what is being measured.

    Returns:
        A `Plan`.

    Raises:
        ValueError: If `minutes_per_epoch` is not positive, or the images do
            not fill a batch.

    Example:

    ```python
    data = simclr.recipe.Data(data="photos")
    print(plan(simclr.recipe.Recipe(), data, minutes_per_epoch=10))
    ```
    """
    _checks.positive_number("minutes_per_epoch", minutes_per_epoch)
    strategy = devices.make_strategy("auto")
    if replicas.has_workers(strategy):
        raise ValueError("A plan is for one machine. Unset TF_CONFIG.")
    report(f"Devices: {devices.describe_devices(strategy)}.")
    report("Reading the list of images.")
    recipe = recipe.with_choice(
        "precision", strategy, devices.fastest_precision, lambda text: None
    )
    keras.config.set_dtype_policy(recipe.precision)
    with strategy.scope():
        machine = _Machine(recipe, data, strategy, report)
        return _choose_on(machine, minutes_per_epoch, report)


def _choose_on(machine, minutes_per_epoch, report):
    """Measures what is chosen, and chooses again by what was measured."""
    report("Training two small encoders, from which others are guessed.")
    start, most = time.perf_counter(), 60 * minutes_per_epoch
    guesses = {
        encoder: machine.images * seconds
        for encoder, seconds in machine.extrapolate().items()
    }
    plans, found, seconds = {}, {}, guesses
    for _ in range(_TRIES):
        choice = choose(seconds, most)
        is_late = time.perf_counter() - start > _LONGEST
        is_done = any(each <= most for each in found.values())
        if choice in plans or (is_late and is_done):
            break
        report(
            f"Training a ResNet-{choice.depth} of width "
            f"{choice.width_multiplier:g}, views of {choice.image_size} pixels."
        )
        plans[choice] = machine.measure(
            choice, guesses[choice] / machine.images, minutes_per_epoch
        )
        found = {k: each.seconds_per_epoch for k, each in plans.items()}
        scale = found[choice] / guesses[choice]
        seconds = {k: scale * guess for k, guess in guesses.items()} | found
    return plans[choose(found, most)]


class _Machine:
    """What is measured on this machine with these images."""

    def __init__(self, recipe, data, strategy, report):
        self.recipe, self.data, self.strategy = recipe, data, strategy
        source, dataset = self._open(image_size=max(_SIZES))
        report(f"To train on: {data.in_words(source)}.")
        steps = int(dataset.cardinality())
        self.recipe = recipe.completed(steps)
        self.images = steps * recipe.batch_size
        self.has_canvas = "sizes" in elements.unpack(dataset.element_spec)
        self.side = _shorter_side(dataset)
        self.sizes = [x for x in _SIZES if x <= self.side] or [self.side]
        self._datasets = {}  # By size of views, if it matters, and of batches.
        self._reading = {}  # Seconds per image, by the shape of the images.

    def _open(self, **changes):
        """Source and dataset, as the recipe with these changes reads it."""
        recipe = dataclasses.replace(self.recipe, **changes)
        return recipe.open(self.data)

    def _build(self, dataset, **changes):
        """The model, as the recipe with these changes makes it."""
        keras.utils.set_random_seed(self.recipe.seed)
        recipe = dataclasses.replace(self.recipe, **changes)
        return recipe.build(dataset.element_spec, int(dataset.cardinality()))

    def extrapolate(self):
        """Seconds per image of all encoders, from those of two small ones."""
        size = self.sizes[0]
        samples = [Encoder(10, width, size) for width in (0.25, 1.0)]
        dataset = self._smaller(size, _SMALL_BATCH)
        batch = next(iter(dataset))
        same = tf.data.Dataset.from_tensors(batch).repeat()
        seconds, augmenting = [], None
        for encoder in samples:
            model = self._build(
                dataset, **encoder._asdict(), batch_size=_size(batch)
            )
            if augmenting is None:
                augmenting = _augmenting(model, batch)
            training, _ = _training(model, same, _TRAINING / 4)
            seconds.append(training - augmenting)
            devices.forget_models()
        costs = np.array([encoder.cost() for encoder in samples])
        rates = np.linalg.solve(costs, np.maximum(seconds, 0))
        rates = np.maximum(rates, 0)
        return {
            encoder: self._read_seconds(image_size)
            + augmenting * (image_size / size) ** 2
            + float(rates @ encoder.cost())
            for image_size in self.sizes
            for encoder in itertools.starmap(
                Encoder, itertools.product(_DEPTHS, _WIDTHS, [image_size])
            )
        }

    def measure(self, encoder, guess, minutes_per_epoch):
        """The plan with an encoder, measured as it would train."""
        start = time.perf_counter()
        dataset = self._smaller(encoder.image_size, _LONGEST_STEP / guess)
        micro_batch = self._micro_batch(encoder, dataset)
        size = _size(dataset.element_spec)
        model = self._build(
            dataset,
            **encoder._asdict(),
            batch_size=size,
            # At least two of them.
            micro_batch_size=micro_batch
            and min(micro_batch, max(size // 2, 1)),
        )
        seconds, first = _training(model, dataset, _TRAINING)
        start_up = first - start - seconds * size
        saving = _saving(model)
        reading = self._read_seconds(encoder.image_size)
        augmenting = _augmenting(model, next(iter(dataset)))
        devices.forget_models()
        beside = reading if devices.only_cpus() else 0
        return Plan(
            {
                **self._flags(),
                **encoder._asdict(),
                "micro_batch_size": micro_batch,
            },
            self.images,
            self.side,
            {
                "reading": reading,
                "augmentation": augmenting,
                "encoder": max(seconds - augmenting - beside, 0.0),
                "all": seconds,
            },
            start_up,
            saving,
            minutes_per_epoch,
        )

    def _flags(self):
        """Of the command: what is not as by default, and what is shown."""
        given, default = vars(self.data) | vars(self.recipe), defaults()
        shown = ("epochs", "batch_size", "learning_rate", "precision")
        changed = {
            name: value
            for name, value in given.items()
            if name not in shown and value != default.get(name)
        }
        return changed | {name: given[name] for name in shown}

    def _smaller(self, image_size, most):
        """The dataset, of smaller batches: halves that replicas can share."""
        size = self.recipe.batch_size
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        while size > max(most, 8 * replicas) and size % (2 * replicas) == 0:
            size //= 2
        key = image_size if self.has_canvas else None, size
        if key not in self._datasets:
            _, self._datasets[key] = self._open(
                image_size=image_size, batch_size=size
            )
        return self._datasets[key]

    def _read_seconds(self, image_size):
        """Seconds to read an image for views of a size, with nothing beside."""
        dataset = self._smaller(image_size, _SMALL_BATCH)
        shape = elements.unpack(dataset.element_spec)["images"].shape
        if shape not in self._reading:
            self._reading[shape] = _reading(dataset)
        return self._reading[shape]

    def _micro_batch(self, encoder, dataset):
        """Images in memory at a time, or None for a batch."""
        import psutil

        if not devices.only_cpus():
            recipe = dataclasses.replace(self.recipe, **encoder._asdict())
            found = recipe.largest_micro_batch(
                dataset.element_spec, int(dataset.cardinality()), self.strategy
            )
            return found and int(found)
        dtype = tf.as_dtype(keras.config.dtype_policy().compute_dtype)
        _, numbers = encoder.cost()
        # Two views; as they come, normalized and rectified, for the way back.
        per_image = 2 * 3 * numbers * dtype.size
        most = _MEMORY * psutil.virtual_memory().available / per_image
        if self.recipe.batch_size <= most:
            return None
        return 2 ** max(3, int(np.log2(most)))


def _size(element):
    return int(elements.unpack(element)["images"].shape[0])


def _shorter_side(dataset):
    """Median of the images of a batch, pixels."""
    images, sizes = elements.images_and_sizes(next(iter(dataset)))
    if sizes is None:
        return min(images.shape[1:3])
    return int(np.median(np.min(sizes, axis=1)))


def _reading(dataset):
    """Seconds to read an image."""
    batches = iter(dataset.repeat())
    start = time.perf_counter()
    while time.perf_counter() - start < _WARM_UP:
        next(batches)
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < _READING:
        next(batches)
        steps += 1
    return (time.perf_counter() - start) / (steps * _size(dataset.element_spec))


def _augmenting(model, batch):
    """Seconds to make the two views of an image."""
    images, sizes = elements.images_and_sizes(batch)
    seconds = []
    for step in range(4):
        start = time.perf_counter()
        views = model.views(images, sizes, step=step)
        tf.add_n([tf.reduce_sum(view) for view in views]).numpy()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:]) / _size(batch)


class _Clock(keras.callbacks.Callback):
    """Notes when steps ended, until there are enough of them."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds
        self.ends = []

    def on_train_batch_end(self, batch, logs=None):
        float(logs["loss"])  # Waits for the device.
        self.ends.append(time.perf_counter())
        timed = self.timed()
        if len(timed) > 2 and timed[-1] - timed[0] >= self.seconds:
            self.model.stop_training = True

    def timed(self):
        return [x for x in self.ends[2:] if x - self.ends[0] >= _WARM_UP]


def _training(model, dataset, seconds):
    """Seconds to train on an image, and when the first step ended."""
    clock = _Clock(seconds)
    with warnings.catch_warnings():
        # The clock ends it long before.
        warnings.filterwarnings("ignore", "The learning rate is 0 from")
        model.fit(
            dataset.repeat(),
            epochs=1,
            steps_per_epoch=1_000_000,
            verbose=0,
            callbacks=[clock],
        )
    timed = clock.timed()
    per_step = (timed[-1] - timed[0]) / (len(timed) - 1)
    return per_step / _size(dataset.element_spec), clock.ends[0]


def _saving(model):
    """Seconds to keep a model after an epoch."""
    with tempfile.TemporaryDirectory() as directory:
        keeper = Checkpoints(directory)
        keeper.set_model(model)
        keeper.on_train_begin()
        keeper.on_epoch_end(0)  # The first takes longer.
        start = time.perf_counter()
        keeper.on_epoch_end(1)
        seconds = time.perf_counter() - start
        keeper.on_train_end()
    return seconds
