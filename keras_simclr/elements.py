"""What a batch may look like: its parts, their shapes and values."""

import contextlib
import dataclasses
import re

import numpy as np
import tensorflow as tf

from keras_simclr import _checks, kinds
from keras_simclr.augmentations import (
    Augmentation,
    accepts,
    as_list,
    check_dtype,
)
from keras_simclr.replicas import agreed, replica_and_number

_SMALLEST_IMAGE = 8  # Pixels a side.
_SHOWN = 10  # Rows that an error message lists.
_MOST_SKIPPED = 10  # Steps of an epoch.
_OUT_OF_MEMORY = r"\boom\b|out of memory|memoryerror|(unable|failed) to alloc"
_LESS = "Take a smaller `batch_size`, or a dataset of smaller batches"
_NOT_DENSE = (
    tf.RaggedTensor,
    tf.RaggedTensorSpec,
    tf.SparseTensor,
    tf.SparseTensorSpec,
)
_KEYS = ("images", "labels", "view_1", "view_2", "sizes", "groups", "places")


def unpack(element):
    """Names the parts of a dataset element, of tensors or of their specs.

    Args:
        element: `images`, `(images, labels)`, or a dictionary with `images` (or
            `view_1` and `view_2`) and optionally `labels`, `sizes` (of `images`
            on a canvas), `groups` (of duplicates) and `places` (integers by
            which images are told apart, such as those in `ImageFolder.paths`;
            they only ride along).

    Returns:
        Such a dictionary.

    Raises:
        ValueError: If the element has another form. Two tensors of the same
            shape are refused too: labels never have the shape of images.

    Example:

    >>> sorted(unpack((tf.zeros((4, 8, 8, 3)), tf.zeros(4))))
    ['images', 'labels']
    """
    element = tf.nest.map_structure(_as_tensor, element)
    parts = _named(element)
    for name, part in parts.items():
        _check_is_dense(name, part)
    return parts


def _named(element):
    if isinstance(element, dict):
        return _unpack_dictionary(element)
    if not isinstance(element, (tuple, list)):
        return {"images": element}
    parts = [part for part in element if part is not None]
    if len(parts) == 1 and isinstance(parts[0], dict):
        return _unpack_dictionary(parts[0])  # So Keras passes it on.
    if len(parts) not in (1, 2) or any(
        not hasattr(part, "shape") for part in parts
    ):
        cure = ""
        if any(isinstance(part, dict) for part in parts):
            cure = (
                ". Put all parts into one dictionary: dataset.map(lambda "
                "images, others: {'images': images, 'labels': others['label']})"
            )
        raise ValueError(
            "A dataset element must be `images`, `(images, labels)` or a "
            f"dictionary. Received: a tuple of {len(parts)} parts{cure}"
        )
    if len(parts) == 2:
        first, second = parts[0].shape, parts[1].shape
        if first.rank == second.rank and first.is_compatible_with(second):
            raise ValueError(
                "A dataset element of two parts is (images, labels). "
                f"Received: two parts of shape {first}. If they are two views, "
                "name them: dataset = dataset.map(lambda a, b: "
                "{'view_1': a, 'view_2': b})"
            )
    return dict(zip(("images", "labels"), parts, strict=False))


def _as_tensor(part):
    return tf.convert_to_tensor(part) if hasattr(part, "__array__") else part


def _check_is_dense(name, part):
    """Labels may be of any kind: they only ride along."""
    if name != "labels" and isinstance(part, _NOT_DENSE):
        raise ValueError(
            f"`{name}` must be a dense tensor. Received: "
            f"{type(part).__name__.removesuffix('Spec')}. Resize images of "
            "many sizes to one, or lay them on canvases of one size, and tell "
            "their `sizes`"
        )


def _unpack_dictionary(element):
    unknown = sorted(set(element) - set(_KEYS))
    if unknown:
        raise ValueError(
            f"The keys of a dataset element are {', '.join(_KEYS)}. "
            f"Received: unknown {', '.join(map(repr, unknown))}"
        )
    views = [name for name in ("view_1", "view_2") if name in element]
    if len(views) == 1 or ("images" in element) == bool(views):
        raise ValueError(
            "A dataset element needs either `images`, or `view_1` and "
            f"`view_2`. Received: {', '.join(sorted(element)) or 'nothing'}"
        )
    if views and "sizes" in element:
        raise ValueError(
            "`sizes` belong to `images`; views fill their canvas. Received: "
            f"{', '.join(sorted(element))}"
        )
    return dict(element)


def images_and_sizes(element):
    """Images of an element, and their sizes or None; refuses ready views."""
    element = unpack(element)
    if "images" not in element:
        raise ValueError(
            "Without training, a dataset element needs `images`. Received: "
            f"{', '.join(sorted(element))}"
        )
    return element["images"], element.get("sizes")


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a model asks of the elements that it trains on.

    Attributes:
        kind: What `images` are: images or, say, rows of a table.
        channels: Of its images; None for any number.
        without_sizes: `(argument, layer)`, names of an augmentation whose first
            layer takes no `sizes`; or None.
        without_groups: The loss that takes no `groups`, in words; or None.
        views: Views that it makes of each of its images.
        may_be_nan: Whether steps that NaN comes of are skipped.
    """

    kind: kinds.Kind
    channels: int | None = None
    without_sizes: tuple | None = None
    without_groups: str | None = None
    views: int = 2
    may_be_nan: bool = False

    @classmethod
    def of(
        cls,
        shape,
        augmentation,
        second_augmentation,
        **others,
    ):
        """The rules of a model.

        Args:
            shape: Input shape of its encoder.
            augmentation: As of `SimCLRModel`.
            second_augmentation: As of `SimCLRModel`.
            **others: Attributes of `Rules`.

        Returns:
            `Rules`.
        """
        channels, layers = None, as_list(augmentation)
        kind = kinds.kind_of(layers, shape)
        if kind is kinds.IMAGES and all(
            isinstance(x, Augmentation) for x in layers
        ):
            channels = shape[3]  # None of ours changes their number.
        first = [
            ("augmentation", layers[:1]),
            ("second_augmentation", as_list(second_augmentation)[:1]),
        ]
        without_sizes = [
            (name, layer.name)
            for name, layers in first
            for layer in layers
            if not accepts(layer, "sizes")
        ]
        return cls(
            kind=kind,
            channels=channels,
            without_sizes=without_sizes[0] if without_sizes else None,
            **others,
        )

    def check(self, element):
        """Refuses what structure, dtype and static shape show.

        Args:
            element: Dictionary, as `unpack` returns it.

        Raises:
            ValueError: If the element does not fit the model.
        """
        _, replicas = replica_and_number()
        for name, batch in _pictures(element):
            if batch.shape.rank and batch.shape[0] == 1 and replicas == 1:
                raise ValueError(
                    "A contrastive batch needs at least two images: every "
                    "other image is a negative. Received: "
                    f"`{name}` of shape {batch.shape}"
                )
        if "view_1" in element and self.views != 2:
            raise ValueError(
                "`view_1` and `view_2` are two views of each image. Received: "
                f"them for a model with views={self.views}. Give it `images`, "
                "or make it with views=2"
            )
        self.check_at_rest(element)
        if "groups" in element:
            self._check_groups(element["groups"])

    def check_at_rest(self, element):
        """As `check`, of what matters without training, too."""
        if "images" in element:
            images = element["images"]
            if self.kind is kinds.IMAGES:
                _check_images(images)
                self._check_channels(images.shape)
            elif self.kind.rank not in (images.shape.rank, None):
                self._refuse_rank(images.shape)
        if "sizes" in element:
            self._check_sizes(element["sizes"])

    def value_checks(self, element):
        """Operations that fail unless the values of an element are usable.

        Args:
            element: As `check`, of tensors.

        Returns:
            List of operations, as `value_checks` returns it.
        """
        checks = []
        for name, batch in _pictures(element):
            checks.append(_assert_negatives(batch))
            is_image = name == "images" and self.kind is kinds.IMAGES
            checks += value_checks(
                batch,
                name,
                in_unit_range=is_image,
                may_be_nan=self.may_be_nan,
            )
        if "sizes" in element:
            checks.append(_assert_sizes(element["sizes"], element["images"]))
        return checks

    def usable(self, images, sizes):
        """The images, which are there only if these values are usable.

        Without training: of any number of images.
        """
        images = tf.convert_to_tensor(images)
        with failures_in_words():
            checks = value_checks(
                images, "images", in_unit_range=self.kind is kinds.IMAGES
            )
            if sizes is not None:
                sizes = tf.convert_to_tensor(sizes)
                checks.append(_assert_sizes(sizes, images))
        with tf.control_dependencies(checks):
            return tf.identity(images)

    def _refuse_rank(self, shape):
        raise ValueError(
            f"{self.kind.plural.capitalize()} must come in batches of "
            f"{self.kind.rank} axes. Received: `images` of shape {shape}"
        )

    def _check_channels(self, shape):
        if self.channels is not None and shape[3] not in (self.channels, None):
            raise ValueError(
                f"The encoder takes images with {self.channels} channels. "
                f"Received: images of shape {shape}. Convert them, for example "
                "images[..., :3] for RGBA or tf.image.grayscale_to_rgb(images)."
            )

    def _check_sizes(self, sizes):
        _check_integers("sizes", sizes, (None, self.kind.sized))
        if self.without_sizes is not None:
            argument, layer = self.without_sizes
            raise ValueError(
                "`sizes` need an augmentation whose first layer takes "
                "them: SimCLRAugmentation or RandomResizedCrop. "
                f"Received: {layer} as the first of `{argument}`"
            )

    def _check_groups(self, groups):
        _check_integers("groups", groups, (None,))
        if self.without_groups is not None:
            raise ValueError(
                "`groups` need the loss NTXent, which leaves them out of the "
                f"negatives. Received: loss={self.without_groups}"
            )


def places_of(element, first=0):
    """Places of the images of an element; without any they count from `first`.

    Takes a dictionary, as `unpack` returns it; returns an integer array.
    """
    if "places" in element:
        return np.asarray(element["places"])
    return first + np.arange(len(element["images"]))


def check_shared_evenly(element, replicas):
    """Refuses global batches that replicas cannot share evenly."""
    for name, batch in element.items():
        if name == "labels":
            continue
        size = batch.shape[0] if batch.shape.rank else None
        if replicas > 1 and (size is None or size % replicas):
            raise ValueError(
                "Several replicas need batches of one size that their "
                "number divides: build them with batch(..., "
                "drop_remainder=True), or those of a generator with "
                "tf.data.Dataset.from_generator(..., output_signature=...). "
                f"Received: `{name}` of shape {batch.shape} for {replicas} "
                "replicas"
            )


def _pictures(element):
    """Names and batches of what the views are made of, or of the views."""
    names = ("images", "view_1", "view_2")
    return [(name, element[name]) for name in names if name in element]


def size_of(element):
    """Examples in a batch: an integer, or a tensor where it is not known."""
    batch = element["images" if "images" in element else "view_1"]
    return batch.shape[0] or tf.shape(batch)[0]


def _check_integers(name, batch, shape):
    if not batch.dtype.is_integer or not batch.shape.is_compatible_with(shape):
        expected = ", ".join("batch" if x is None else str(x) for x in shape)
        comma = "," * (len(shape) == 1)
        raise ValueError(
            f"`{name}` must be integers of shape ({expected}{comma}). "
            f"Received: {name} of shape {batch.shape} and dtype "
            f"{batch.dtype.name}"
        )


def _check_images(images):
    shape = images.shape
    if shape.rank != 4:
        cure = " Add the channels: images[..., None]." * (shape.rank == 3)
        if cure and shape[2] in (1, 3, 4):
            cure = " Make batches: dataset.batch(256)."
        raise ValueError(
            "Images must have the shape (batch, height, width, channels). "
            f"Received: images of shape {shape}.{cure}"
        )
    check_dtype(images.dtype)
    smallest = min((x for x in shape[1:3] if x is not None), default=None)
    if smallest is not None and smallest < _SMALLEST_IMAGE:
        cure = ". If their channels come first: np.moveaxis(images, 1, -1)"
        raise ValueError(
            f"Images must have at least {_SMALLEST_IMAGE} pixels a side. "
            f"Received: images of shape {shape}{cure * (shape[1] in (1, 3, 4))}"
        )


def _assert_negatives(batch):
    _, replicas = replica_and_number()
    size = tf.shape(batch)[0] * replicas
    text = (
        "A contrastive batch needs at least two images. Build it with "
        "batch(..., drop_remainder=True). Received: a batch of"
    )
    return check(size >= 2, text, size)


def _assert_sizes(sizes, images):
    canvas = tf.shape(images)[1 : 1 + sizes.shape[1]]
    canvas = tf.cast(canvas, sizes.dtype)
    return check(
        tf.reduce_all((sizes >= 1) & (sizes <= canvas)),
        "`sizes` must lie between 1 and the size of the canvas. Received: from",
        tf.reduce_min(sizes),
        "to",
        tf.reduce_max(sizes),
        "on a canvas of",
        canvas,
    )


def value_checks(batch, name, *, in_unit_range, may_be_nan=False):
    """Operations that fail unless the values of a batch are usable.

    They are for `tf.control_dependencies`; in eager mode they have run. Floats
    must be finite, unless they `may_be_nan`, and those that are lie in [0, 1]
    if `in_unit_range`.
    """
    if not batch.dtype.is_floating:
        return []
    values = tf.reshape(batch, (tf.shape(batch)[0], -1))
    unusable = tf.reduce_any(~tf.math.is_finite(values), axis=1)
    checks = []
    if not may_be_nan:
        text = f"Values of `{name}` must be finite. Received: NaN or infinity"
        checks.append(_assert_no_row(unusable, text))
    if in_unit_range:
        # Interpolation may overshoot by a rounding error.
        outside = tf.abs(values - 0.5) > 0.501
        outside = tf.reduce_any(outside & tf.math.is_finite(values), axis=1)
        checks.append(
            _assert_no_row(
                outside,
                f"Float values of `{name}` must lie in [0, 1]. If they are 0 "
                "to 255, add: dataset = dataset.map(lambda images, *labels: "
                "(images / 255.0, *labels)). If they are no pixels, as in "
                "spectrograms, scale all by one range: (images - low) / (high "
                "- low). Received: values from",
                tf.reduce_min(values),
                "to",
                tf.reduce_max(values),
            )
        )
    return checks


def _assert_no_row(is_bad, *text):
    rows = tf.where(is_bad)[:, 0]
    return check(~tf.reduce_any(is_bad), *text, "in rows", rows, "of the batch")


def finite_step(loss, gradients, scale=0.0):
    """Operation that fails, in all replicas, unless a step can be made.

    Gradients of a loss that was scaled by 1 or more may overflow.
    """
    flags = _failures_of_step(loss, gradients, scale)
    return check(
        ~tf.reduce_any(flags),
        "The loss and its gradients must be finite: try a lower learning rate "
        "or a longer warm-up, a higher temperature, and look at the images of "
        "this step. Received: loss",
        loss,
        "and NaN or infinity in the gradients of",
        tf.reduce_sum(tf.cast(flags[1:], tf.int32)),
        f"of {len(gradients)} variables",
    )


def is_finite_step(loss, gradients, scale=0.0):
    """Whether `finite_step` would not fail."""
    return ~tf.reduce_any(_failures_of_step(loss, gradients, scale))


def _failures_of_step(loss, gradients, scale):
    is_to_blame = tf.convert_to_tensor(scale) < 1.0
    flags = [~tf.math.is_finite(loss)]
    flags += [
        is_to_blame & ~tf.reduce_all(tf.math.is_finite(gradient))
        for gradient in gradients
        if gradient is not None
    ]
    return agreed(tf.stack(flags))


def few_skipped(count):
    """Operation that fails if too many steps of an epoch were skipped."""
    return check(
        count <= _MOST_SKIPPED,
        f"At most {_MOST_SKIPPED} steps of an epoch may be skipped for a loss "
        "or gradients that are not finite: try a lower learning rate or a "
        "longer warm-up, a higher temperature. Skipped:",
        count,
    )


def check(condition, *text):
    """`tf.debugging.Assert` with one form of message in eager and graph mode.

    `text` is strings and tensors. Raises at once in eager mode; in a graph the
    operation that it returns does.
    """
    if not tf.executing_eagerly():
        return tf.debugging.Assert(condition, text, summarize=_SHOWN)
    if not condition:
        words = []
        for each in text:
            numbers = [] if isinstance(each, str) else np.ravel(each.numpy())
            more = "..." * (len(numbers) > _SHOWN)
            listing = " ".join(map(str, numbers[:_SHOWN])) + more
            words.append(each if isinstance(each, str) else listing)
        message = f"assertion failed: [{'] ['.join(words)}]"
        raise tf.errors.InvalidArgumentError(None, None, message)
    return None


class BatchError(ValueError):
    """A step of training that cannot be made with its batch."""


@contextlib.contextmanager
def failures_in_words(where=str, less=_LESS, kind=ValueError):
    """Context in which a failed `check` is an error of that kind.

    What `_checks.fail` was told is a ValueError. `where()` is added to the
    message. Memory that is too small is a MemoryError, with `less` as the
    cure, and data that are gone an OSError.
    """
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        text = failed_check(error)
        if text is None:
            raise
        kind = ValueError if _checks.failure_in(text) else kind
        raise kind(f"{text}{where()}") from None
    except (tf.errors.ResourceExhaustedError, MemoryError) as error:
        # A disk that is full, or too many files, are such errors, too.
        text = _line_with(_OUT_OF_MEMORY, error)
        if text is None and not isinstance(error, MemoryError):
            raise
        raise MemoryError(
            f"What is computed at once must fit into memory. {less}. "
            f"Received: {text or 'not enough memory'}"
        ) from None
    except (tf.errors.NotFoundError, tf.errors.DataLossError) as error:
        text = _line_with("no such file|truncated|corrupt", error)
        if text is None:
            raise
        raise OSError(
            "Data must stay what and where they are while they are read. Put "
            f"them back, and begin or go on. Received: {text}"
        ) from None


def _line_with(pattern, error):
    """The line of an error that a pattern is in, without where in a graph."""
    text = getattr(error, "message", str(error))
    for line in re.sub(r"\{\{.*?\}\}\s*|\x1b\[\d+m", "", text).splitlines():
        if re.search(pattern, line, re.I):
            return line.split(" on /job:")[0][:300]
    return None


def failed_check(error):
    """The message of a failed `check` or of `_checks.fail`, as a sentence.

    Args:
        error: A `tf.errors.InvalidArgumentError`.

    Returns:
        String, or None if the error is another.

    Example:

    >>> try:
    ...     check(tf.constant(False), "At least two. Received:", tf.constant(1))
    ... except tf.errors.InvalidArgumentError as error:
    ...     failed_check(error)
    'At least two. Received: 1'
    """
    text = _checks.failure_in(error.message)
    if text is not None:
        return text
    message = re.search(r"assertion failed: \[(.*)\]", str(error))
    if message is None:
        return None
    text = message[1].replace("] [", " ")
    # TensorFlow escapes quotes as C does.
    text = text.encode().decode("unicode_escape").encode("latin-1", "replace")
    return text.decode(errors="replace")
