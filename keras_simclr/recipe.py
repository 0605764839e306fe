"""Everything that `keras-simclr pretrain` can be told.

The command line reads the fields for its flags without importing the package,
which would have `--help` wait for Keras. So what a method needs is imported in
the method.
"""

import dataclasses
import math
import typing

AUTO = "auto"
_CHOSEN = ("precision", "micro_batch_size", "kind")  # Where it says `auto`.
# Fields that a start tells, or that need one.
_OF_ENCODER = {"depth", "width_multiplier", "stem"}
_OF_HEAD = {"projection_layers"}
_OF_START = {"keep_head", "without_dropout"}
# Fields of which `distill` has none, or its own.
OF_CONTRAST = {"keep_head", "projection_layers", "views", "decoupled"}
OF_CONTRAST |= {"temperature"}
_PRECISIONS = (
    *("float16", "bfloat16", "float32", "float64"),
    *("mixed_float16", "mixed_bfloat16"),
)
_IMAGE_SIZE = 64  # Of views of images that have no one size.
# Until there are examples.
_OPEN = {"epochs", "strength", "blur_rate", "rate", "seconds", "window"}
_OPEN |= {"stride", "label"}
_OF_READING = ("rate", "seconds", "window", "stride", "label", "columns")
# Of the default epochs. An encoder of 1,437 digits is better than raw pixels
# after 400 steps, not always after 200; photographs differ more.
FEWEST_STEPS, _FEWEST_EPOCHS = 800, 8


def _told(default, text, rule=None, place=None, **library):
    """A field, its flag's help, and how the library's own default differs.

    `rule` is the name of a check of `_checks` and its arguments, `place` the
    same of `_files`, for the command line; `library` maps names of the library
    to their defaults.
    """
    metadata = {"help": text, "rule": rule, "place": place, "library": library}
    return dataclasses.field(default=default, metadata=metadata)


def _one_of(*choices):
    return ("choice", {"choices": choices})


def _between(low, high, rule):
    return ("real_number", {"low": low, "high": high, "rule": rule})


# Share of the rate that a finished run goes on with. On digits, more is better
# for a linear probe and worse for k-NN; a tenth changes nothing.
_RESTART = 0.3
_COUNT = ("integer", {"minimum": 1})
_NUMBER = "a positive integer or auto"
_POSITIVE = ("positive_number", {})
_AT_LEAST_0 = _between(0, math.inf, "a number of at least 0")
_SHARE = ("probability", {})
REQUIRED = dataclasses.MISSING


class _Checked:
    """Checks of the fields, by their rules; None is left to those without."""

    def __post_init__(self):
        from keras_simclr import _checks

        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.metadata["rule"] and not _is_free(field, value):
                check, arguments = field.metadata["rule"]
                getattr(_checks, check)(field.name, value, **arguments)


def _is_free(field, value):
    return value is None and field.default is None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data(_Checked):
    """Where images come from; `keras-simclr COMMAND --help` explains it."""

    data: str = _told(
        REQUIRED,
        "A folder; a list, PATH.csv (columns path, perhaps label), or another "
        "table, PATH.csv or PATH.parquet; shards, tar:PATTERN or "
        "parquet:PATTERN; arrays, PATH.npz (images, sounds, windows or rows, "
        "perhaps labels) or PATH.npy (images); or tfds:NAME[/CONFIG].",
        place=("check_data", {}),
    )
    data_dir: str | None = _told(
        None,
        "Directory of prepared TFDS datasets; by default TFDS's own.",
        place=(
            "check_exists",
            {"rule": "an existing directory", "is_directory": True},
        ),
    )
    split: str = _told(
        "train",
        "Images to use, as TFDS writes it: train[:90%]. Files have only train; "
        "those of a folder, a list or shards are divided by their names.",
    )
    kind: str = _told(
        AUTO,
        "images, audio, series, tables, or auto: what the data look like.",
        _one_of(AUTO, "images", "audio", "series", "tables"),
    )
    manifest: str | None = _told(
        None,
        "What `scan` found in the data: problem files are left out.",
        place=(
            "check_exists",
            {"rule": "a file that `scan` wrote", "is_directory": False},
        ),
    )
    unreadable_limit: float = _told(
        0.01, "Share of the image files that may be unreadable.", _SHARE
    )
    channels: int | None = _told(
        None,
        "Of the images: 1 for grey, 3 for RGB, more of TIFF files that have "
        "them; by default those of a run, or of arrays, or 3.",
        _COUNT,
    )
    bits: int | None = _told(
        None,
        "8, or 16 to keep all of files that have them, in four times the "
        "memory; by default those of a run, or 8.",
        ("choice", {"choices": (8, 16)}),
    )
    rate: int | None = _told(
        None,
        "Samples a second of sounds; others are resampled. By default those of "
        "a run, or 16,000.",
        ("integer", {"minimum": 1_000}),
    )
    seconds: float | None = _told(
        None,
        "Of a sound, from its middle, at most; by default as a run, or 5.",
        _POSITIVE,
    )
    window: int | None = _told(
        None,
        "Rows in a window of a series. By default those of a run, or 128.",
        ("integer", {"minimum": 2}),
    )
    stride: int | None = _told(
        None,
        "Rows from one window to the next. By default half a window.",
        _COUNT,
    )
    label: str | None = _told(
        None,
        "Column of the labels in a table or series. By default label, if there "
        "is one.",
    )
    columns: str | None = _told(
        None,
        "What columns become: columns.keras or, of a series, columns.json of "
        "a run; by default that of the run, or what the data suggest.",
        place=("check_exists", {"rule": "a file", "is_directory": False}),
    )

    def open(self, canvas_size, **kwargs):
        """The examples as a dataset.

        Args:
            canvas_size: As in `dataset_from_directory`, of images.
            **kwargs: As in `sources.open_dataset`.

        Returns:
            What `sources.find_source` returns, and the `tf.data.Dataset`.
        """
        from keras_simclr import sources

        source = sources.find_source(
            self.data,
            self.split,
            kind=self.kind,
            manifest=self.manifest,
            data_dir=self.data_dir,
            unreadable_limit=self.unreadable_limit,
            **{name: getattr(self, name) for name in _OF_READING},
        )
        dataset = sources.open_dataset(
            source,
            self.split,
            data_dir=self.data_dir,
            canvas_size=canvas_size,
            channels=self.channels,
            bits=self.bits or 8,
            **kwargs,
        )
        return source, dataset

    def open_in_order(self, side):
        """As `open`, all examples once; of images, for that side at rest."""
        from keras_simclr import decoding

        canvas_size = decoding.canvas_for(side)
        return self.open(canvas_size, shuffle=False, drop_remainder=False)

    def completed(self, source):
        """These options with what they leave open, for an opened source."""
        from keras_simclr import data_kinds

        names = [x for x in _OF_READING if hasattr(source, x)]
        found = {name: getattr(source, name) for name in names}
        kind = data_kinds.kind_of_source(source)
        return dataclasses.replace(self, kind=kind.name, **found)

    def and_test(self, test_data, test_split):
        """These options, and those for images to test on, or None for none.

        Without a split that is the one that the data has of itself, or all of
        other data. A manifest is of the files in one place, `data_dir` of
        TFDS's datasets.
        """
        from keras_simclr import sources

        pair = [self, self]
        if test_data is not None:
            pair[1] = dataclasses.replace(self, data=test_data, manifest=None)
            are_tfds = [part.data.startswith("tfds:") for part in pair]
            pair = [
                part
                if is_tfds or not any(are_tfds)
                else dataclasses.replace(part, data_dir=None)
                for part, is_tfds in zip(pair, are_tfds, strict=True)
            ]
        data, held_out = pair
        split = (
            test_split
            or sources.own_test_split(held_out.data, data_dir=held_out.data_dir)
            or ("train" if test_data else None)
        )
        if split is None:
            return data, None
        return data, dataclasses.replace(held_out, split=split)

    def in_words(self, source):
        """Images and classes of a source that `open` returned, in words."""
        from keras_simclr import sources

        return sources.in_words(source, self.split, data_dir=self.data_dir)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(_Checked):
    """How to train; `keras-simclr pretrain --help` explains each field.

    The defaults are for small images and short runs on two cores, chosen on
    held-out images (benchmarks/README.md). Where those of the library differ,
    they are the paper's or the official code's, for long runs on ImageNet.

    Example:

    >>> recipe = Recipe(width_multiplier=0.25, epochs=2)
    >>> spec = tf.TensorSpec((64, 8, 8, 1))
    >>> recipe.build(spec, steps=10).encoder.output_shape
    (None, 128)
    """

    command: typing.ClassVar = "pretrain"  # Whose flags the fields are.

    # As large as half an hour on two cores is enough for.
    depth: int = _told(
        10,
        "Depth of the ResNet: 10, 18, 34, 50, 101, 152 or 200.",
        _one_of(10, 18, 34, 50, 101, 152, 200),
        ResNet=50,
    )
    width_multiplier: float = _told(
        0.5,
        "Every layer has this many times the usual channels, at most 100.",
        _between(math.ulp(0.0), 100, "a positive number of at most 100"),
        ResNet=1,
    )
    image_size: int | None = _told(
        None,
        "Side of the views, pixels; by default the images', or 64.",
        _COUNT,
    )
    stem: str = _told(
        AUTO,
        "Stem: imagenet, cifar, or auto: cifar up to 32 pixels.",
        _one_of(AUTO, "imagenet", "cifar"),
    )
    start_from: str | None = _told(
        None,
        "Goes on from an encoder that exists: a run, an export, a .keras file, "
        "keras_applications:NAME, keras_hub:PRESET. In place of depth, "
        "width_multiplier and stem; image_size is its own, if it has one.",
        place=("check_network", {}),
    )
    keep_head: bool = _told(
        False, "Keeps the projection head of the run that it starts from."
    )
    without_dropout: bool = _told(
        False, "Turns off dropout and stochastic depth of what it starts from."
    )
    projection_layers: int = _told(
        2, "Layers of the projection head, 0 to 3.", _one_of(0, 1, 2, 3)
    )
    views: int = _told(
        4,
        "Views of each image; as many fewer images take the same time.",
        ("integer", {"minimum": 2}),
        SimCLRModel=2,
    )
    epochs: int | None = _told(
        None,
        "Passes over the images; by default 8, or as many as "
        f"{FEWEST_STEPS} steps take.",
        _COUNT,
    )
    batch_size: int = _told(
        64,
        "Images in a batch (not views), at least 2.",
        ("integer", {"minimum": 2}),
    )
    micro_batch_size: str | None = _told(
        None,
        "Images in memory at a time; auto: as many as fit.",
        ("matching", {"pattern": "0*[1-9][0-9]*|auto", "rule": _NUMBER}),
    )
    # Also where weights exist: 0.3 is worse (benchmarks/README.md).
    learning_rate: float = _told(
        1.0,
        "Learning rate of LARS at batch 256, scaled linearly; of Adam, as it "
        "is, for what is no image.",
        _POSITIVE,
    )
    warmup_epochs: float | None = _told(
        None,
        "Epochs of rising rate; by default a tenth, at most 10.",
        _AT_LEAST_0,
    )
    weight_decay: float = _told(1e-6, "Weight decay of LARS.", _AT_LEAST_0)
    # The official 0.001 is made for 100,000 steps: 1,000 of them lead nowhere.
    trust_coefficient: float = _told(
        0.02,
        "Length of a step of LARS relative to the weights.",
        _POSITIVE,
        LARS=0.001,
    )
    # Better than 0.1 and 0.5 by one point and more, on Fashion-MNIST.
    temperature: float = _told(
        0.2, "Temperature of NT-Xent.", _POSITIVE, NTXent=0.1
    )
    decoupled: bool = _told(
        False, "Leaves the positive out of NT-Xent's sums (decoupled, DCL)."
    )
    # As good as the paper's 0.08, which of 28 pixels a side leaves 8.
    smallest_crop: float = _told(
        0.2,
        "Smallest share of an image's area that a view shows.",
        _between(math.ulp(0.0), 1, "above 0 and at most 1"),
        SimCLRAugmentation=0.08,
    )
    flip_rate: float = _told(0.5, "Probability of a horizontal flip.", _SHARE)
    strength: float | None = _told(
        None,
        "Strength of the colour distortion, 0 to 2.5. By default 0.5 for RGB "
        "of up to 32 pixels, else 1.",
        _between(0, 2.5, "between 0 and 2.5"),
    )
    color_rate: float = _told(0.8, "Probability of the colour jitter.", _SHARE)
    grayscale_rate: float = _told(
        0.2, "Probability of dropping the colours.", _SHARE
    )
    blur_rate: float | None = _told(
        None,
        "Probability of the blur. By default 0 up to 32 pixels, else 0.5.",
        _SHARE,
    )
    strategy: str = _told(
        AUTO,
        "one, mirrored, multi_worker, tpu, or auto: what there is.",
        _one_of(AUTO, "one", "mirrored", "multi_worker", "tpu"),
    )
    precision: str = _told(
        AUTO,
        "Keras dtype policy, or auto: the fastest on this machine.",
        _one_of(AUTO, *_PRECISIONS),
    )
    on_nan: str = _told(
        "stop",
        "What a step whose gradient is not finite does: stop, or skip, up to "
        "10 times an epoch.",
        _one_of("stop", "skip"),
    )
    seed: int = _told(
        0,
        "All randomness is a function of it.",
        ("integer", {"minimum": 0, "maximum": 2**32 - 1}),  # NumPy's limit.
    )

    def __post_init__(self):
        super().__post_init__()
        if None not in (self.epochs, self.warmup_epochs) and (
            self.warmup_epochs >= self.epochs
        ):
            raise ValueError(
                "`warmup_epochs` must be below `epochs`. Received: "
                f"warmup_epochs={self.warmup_epochs}, epochs={self.epochs}"
            )
        own = {field.name: field.default for field in dataclasses.fields(self)}
        self.check_start(x for x in own if getattr(self, x) != own[x])

    def check_start(self, given):
        """Refuses fields that do not go with `start_from`, or not without it.

        Args:
            given: Names of the fields that somebody chose.

        Raises:
            ValueError: If some of them contradict each other.
        """
        rule = "must be left out: what `start_from` names has its own"
        wrong = self._idle & {*given}
        if self.start_from is None:
            rule = "must be left out without `start_from`"
            wrong = {name for name in self._idle if getattr(self, name)}
        if wrong:
            raise ValueError(
                f"`{'`, `'.join(sorted(wrong))}` {rule}. Received: "
                + ", ".join(f"{x}={getattr(self, x)!r}" for x in sorted(wrong))
            )

    @property
    def _idle(self):
        """Names of the fields that say nothing with a start, or without."""
        if self.start_from is None:
            return _OF_START
        return _OF_ENCODER | (_OF_HEAD if self.keep_head else set())

    @property
    def values(self):
        """The fields that mean something, with a start or without, by name."""
        idle = self._idle
        return {k: value for k, value in vars(self).items() if k not in idle}

    def completed(self, element_spec, steps, source=None):
        """This recipe with what it leaves open, for such data and epochs."""
        from keras_simclr import data_kinds, kinds

        found = {"epochs": self.epochs_for(steps)}
        if data_kinds.kind_of_source(source) is kinds.IMAGES:
            found |= self.for_shape(self.input_shape(element_spec))
        return dataclasses.replace(self, **found)

    def for_shape(self, input_shape):
        """What of the augmentation depends on the views, by name.

        Small ones have the paper's for CIFAR-10 (B.9), others for ImageNet.
        """
        is_small, is_rgb = max(input_shape[:2]) <= 32, input_shape[2] == 3
        found = {
            "strength": 0.5 if is_small and is_rgb else 1.0,
            "blur_rate": 0.0 if is_small else 0.5,
        }
        given = {x: getattr(self, x) for x in found}
        return found | {x: v for x, v in given.items() if v is not None}

    def epochs_for(self, steps):
        """Passes over the images, for epochs of so many steps."""
        if self.epochs is not None:
            return self.epochs
        return max(_FEWEST_EPOCHS, math.ceil(FEWEST_STEPS / steps))

    def steps_in_words(self, steps):
        """How long it trains, in epochs of so many steps; if too short, a cure.

        Example:

        >>> Recipe().steps_in_words(200)
        '200 an epoch, 1,600 in all'
        """
        total = steps * self.epochs_for(steps)
        text = f"{steps:,} an epoch, {total:,} in all"
        if total >= FEWEST_STEPS:
            return text
        return (
            f"{text}: too few. After fewer than {FEWEST_STEPS} an encoder may "
            "be worth less than raw pixels. Cure: "
            f"--epochs={math.ceil(FEWEST_STEPS / steps)}, or no --epochs"
        )

    def open(self, data, **kwargs):
        """The images of `Data` to train on, as `Data.open` has them."""
        from keras_simclr import decoding

        side = self.image_size or _IMAGE_SIZE
        canvas_size = decoding.canvas_for(side, self.smallest_crop)
        own = {"batch_size": self.batch_size, "seed": self.seed}
        return data.open(canvas_size, **own, **kwargs)

    def build(self, element_spec, steps, more_epochs=(), source=None):
        """The compiled model.

        Args:
            element_spec: Of the dataset that it will train on.
            steps: Steps of an epoch.
            more_epochs: As in `optimizer`.
            source: Where the examples come from, as `Data.open` returns it;
                None of images.

        Returns:
            A `SimCLRModel`.
        """
        import keras

        import keras_simclr as simclr
        from keras_simclr import data_kinds, kind_recipes, pretrained

        parts = kind_recipes.parts_of(self, element_spec, source)
        encoder, head = parts.pop("encoder"), self.projection_head()
        size = self.micro_batch_size
        if self.start_from is not None:
            pretrained.check_chance(encoder, is_cached=size is not None)
            # A new head is the same, however much was drawn to open this.
            keras.utils.set_random_seed(self.seed)
        model = simclr.SimCLRModel(
            encoder,
            head,
            **parts,
            views=self.views,
            micro_batch_size=None if size is None else int(size),
            on_nan=self.on_nan,
            seed=self.seed,
        )
        kind = data_kinds.kind_of_source(source)
        optimizer = self.optimizer(steps, more_epochs, kind)
        model.compile(optimizer, self.loss())
        return model

    def input_shape(self, element_spec):
        """Shape of the views: height, width, channels."""
        from keras_simclr import elements, kinds

        element = elements.unpack(element_spec)
        # In words of images: those of the first layer would not help.
        elements.Rules(kinds.IMAGES).check(element)
        *sides, channels = element["images"].shape[1:]
        if self.image_size or "sizes" in element:
            sides = [self.image_size or _IMAGE_SIZE] * 2
        return (*sides, channels)

    def encoder(self, input_shape):
        """The encoder, for views of that shape."""
        import keras_simclr as simclr
        from keras_simclr import copies, networks, pretrained

        if self.start_from is not None:
            encoder = pretrained.open_encoder(
                self.start_from,
                input_shape=input_shape,
                is_random=not self.without_dropout,
            )
            copies.unfreeze(encoder)
            return encoder
        stem = self.stem
        if stem == AUTO:
            stem = networks.stem_for(max(input_shape[:2]))
        return simclr.ResNet(
            self.depth,
            width_multiplier=self.width_multiplier,
            stem=stem,
            input_shape=input_shape,
        )

    def projection_head(self):
        """The projection head."""
        import keras_simclr as simclr
        from keras_simclr import pretrained

        if self.keep_head:
            return pretrained.open_head(self.start_from)
        return simclr.ProjectionHead(self.projection_layers)

    def augmentation(self, input_shape):
        """The augmentation that makes views of that shape."""
        import keras_simclr as simclr

        return simclr.SimCLRAugmentation(
            tuple(input_shape[:2]),
            **self.for_shape(input_shape),
            scale=(self.smallest_crop, 1.0),
            flip_rate=self.flip_rate,
            color_rate=self.color_rate,
            grayscale_rate=self.grayscale_rate,
        )

    def loss(self):
        """The loss."""
        import keras_simclr as simclr

        return simclr.NTXent(self.temperature, decoupled=self.decoupled)

    def optimizer(self, steps, more_epochs=(), kind=None):
        """The optimizer, for epochs of so many steps; for images LARS.

        `more_epochs` are numbers of epochs that follow, each with a cosine of
        its own from a share of the rate; `kind` is a `kinds.Kind`.
        """
        import keras

        import keras_simclr as simclr
        from keras_simclr import kinds, optimizers

        epochs, warmup_epochs = self.epochs_for(steps), self.warmup_epochs
        if warmup_epochs is None:
            warmup_epochs = min(10.0, epochs / 10)
        rate, is_adam = self.learning_rate, kind not in (None, kinds.IMAGES)
        if not is_adam:
            rate = simclr.scaled_learning_rate(rate, self.batch_size)
        schedule = simclr.warmup_cosine(
            rate, epochs * steps, warmup_steps=round(warmup_epochs * steps)
        )
        for more in more_epochs:
            schedule = optimizers.Restarted(
                schedule, epochs * steps, _RESTART * rate, more * steps
            )
            epochs += more
        if is_adam:
            return keras.optimizers.Adam(schedule)
        return simclr.LARS(
            keras.optimizers.SGD(schedule, momentum=0.9),
            weight_decay=self.weight_decay,
            trust_coefficient=self.trust_coefficient,
        )

    def with_choice(self, name, strategy, choose, report):
        """This recipe, or one in which `auto` is replaced by a choice.

        Args:
            name: Name of the field.
            strategy: `tf.distribute.Strategy` to train with.
            choose: Function without arguments that measures and chooses.
            report: Function that is told, in words.

        Returns:
            A `Recipe`.

        Raises:
            ValueError: If several workers would have to choose.
        """
        from keras_simclr import replicas

        if getattr(self, name) != AUTO:
            return self
        if replicas.has_workers(strategy):
            raise ValueError(
                f"`{name}` must be the same for all workers. Received: "
                f"{name}='auto'. Run one worker alone to see what it chooses"
            )
        choice = choose()
        flag = f"--{name}={choice}" if choice else f"no --{name}"
        report(f"Chosen for this machine: {flag}.")
        return dataclasses.replace(self, **{name: choice})

    def largest_micro_batch(self, element_spec, steps, strategy, source=None):
        """The largest micro-batch that fits, as text; or None for the batch."""
        import keras

        from keras_simclr import devices, elements, micro_batches

        whole = dataclasses.replace(self, micro_batch_size=None)
        size = micro_batches.largest_of_model(
            whole.build(element_spec, steps, source=source),
            elements.unpack(element_spec)["images"],
            self.batch_size // strategy.num_replicas_in_sync,
        )
        devices.forget_models()
        keras.utils.set_random_seed(self.seed)  # As if nothing had been tried.
        return size and str(size)


def is_open(name, value):
    """Whether a field's value is one that is chosen when the run begins."""
    if name in _OPEN:
        return value is None
    return name in _CHOSEN and value == AUTO


def defaults():
    """What the absence of a flag means: dictionary of names and values."""
    return {
        field.name: field.default
        for kind in (Data, Recipe)
        for field in dataclasses.fields(kind)
        if field.default is not REQUIRED
    }
