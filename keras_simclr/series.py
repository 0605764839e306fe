"""Windows of series, such as those of motion sensors: views, network, raw.

All layers take windows of shape `(batch, time, channels)`, and draw for each
window by seed and place, as `random_layers` says.
"""

import keras
import numpy as np
import tensorflow as tf

from keras_simclr import _checks, kinds
from keras_simclr.adapted import AdaptedLayer
from keras_simclr.moments import is_constant, moments
from keras_simclr.networks import ConvNet1D as ConvNet1D
from keras_simclr.programs import shape_of
from keras_simclr.random_layers import (
    RandomLayer,
    between,
    normals,
    rows_and_total,
    uniforms,
    uniforms_of_rows,
)
from keras_simclr.windows import (
    statistics as statistics,
    windows_of as windows_of,
)


class SeriesLayer(RandomLayer):
    """What all layers for windows share: `(batch, time, channels)`."""

    kind = kinds.SERIES
    _axes = ("time", "channels")


@keras.saving.register_keras_serializable(package="keras_simclr")
class Standardization(AdaptedLayer, SeriesLayer):
    """Brings each channel to mean 0 and standard deviation 1, at rest too.

    Both are those of the examples that `adapt` was shown, and are saved with
    the layer. A channel that was constant in these is only shifted to 0.
    Nothing is drawn.

    Args:
        **kwargs: `name` of the layer.

    Call arguments:
        windows: Floats.

    Input shape:
        `(batch, time, channels)` or `(time, channels)`.

    Output shape:
        Same as input, float32.

    Raises:
        ValueError: If it was not adapted, in training.

    Example:

    >>> standardization = Standardization()
    >>> windows = np.random.default_rng(0).normal(9.8, 0.5, (50, 16, 3))
    >>> standardization.adapt(windows)
    >>> views = standardization(windows)
    >>> print(f"{np.mean(views):.3f} {np.std(views):.3f}")
    0.000 1.000
    """

    def _build(self, width):
        self.mean = self._add_state("mean", (width,))
        self.stddev = self._add_state("stddev", (width,), "ones")

    def _adapt(self, batches):
        mean, stddev = moments(batches)
        self.mean.assign(mean)
        self.stddev.assign(np.where(is_constant(mean, stddev), 1.0, stddev))

    def _augment(self, examples, training, seed, part):
        if training:
            self._check_adapted()
        return super()._augment(examples, False, seed, part)

    def _at_rest(self, windows):
        return (tf.cast(windows, tf.float32) - self.mean) / self.stddev

    def plain_at_rest(self, windows):
        return (windows - self.mean.numpy()) / self.stddev.numpy()


@keras.saving.register_keras_serializable(package="keras_simclr")
class RandomRotation3D(SeriesLayer):
    """Turns the coordinates of each sensor: another way to wear it.

    Every triple of channels (x, y, z) of each window is turned by one
    rotation, which is uniform among all rotations, or by an axis that is
    uniform and a limited angle. It must see values as they were measured:
    a standardization belongs behind it.

    Args:
        triples: List of triples of channels, or None for 0 to 2, 3 to 5 and so
            on. Other channels stay as they are.
        angle: Largest angle, degrees; uniform in angles from 0. 180: uniform
            among all rotations.
        seed: Integer, or None for a random one.
        **kwargs: `name` of the layer.

    Call arguments:
        windows: Floats.
        training: Whether to rotate. If False the windows come back as float.
        seed: Pair of integers, or None to count the layer's own calls.
        part: As of `RandomResizedCrop`.

    Input shape:
        `(batch, time, channels)` or `(time, channels)`.

    Output shape:
        Same as input, float32.

    Raises:
        ValueError: If an argument is out of range, or windows have no such
            channels.

    Example:

    >>> rotation = RandomRotation3D()
    >>> windows = np.random.default_rng(0).normal(size=(2, 16, 6))
    >>> views = rotation(windows, seed=(0, 1))
    >>> lengths = [np.sum(x[..., :3] ** 2, axis=-1) for x in (windows, views)]
    >>> np.allclose(*lengths, atol=1e-4)
    True

    References:
        - Um et al. 2017, arXiv:1706.00527.
        - Tang et al. 2020, arXiv:2011.11542 (of eight, the best for motion).
        - Shoemake 1992, Graphics Gems III (uniform rotations).
    """

    def __init__(self, triples=None, *, angle=180.0, seed=None, **kwargs):
        super().__init__(seed=seed, **kwargs)
        self.triples = None if triples is None else _checked_triples(triples)
        rule = "an angle from 0 to 180 degrees"
        self.angle = _checks.real_number(
            "angle", angle, low=0, high=180, rule=rule
        )

    def _check_shape(self, shape):
        super()._check_shape(shape)
        channels = shape[-1]
        if self.triples is None:
            if channels is None or channels % 3:
                raise ValueError(
                    "Channels must be triples (x, y, z) of sensors, or "
                    "`triples` must tell which are. Received: "
                    f"triples=None for windows of shape {shape}"
                )
        elif channels is not None and channels <= np.max(self.triples):
            raise ValueError(
                "`triples` must be of channels that there are. Received: "
                f"triples={self.triples} for windows of shape {shape}"
            )

    def _triples(self, channels):
        if self.triples is not None:
            return self.triples
        return np.arange(channels).reshape(-1, 3).tolist()

    def _draw(self, seed, windows, part=None):
        rows, total = rows_and_total(windows, part)
        count = len(self._triples(windows.shape[-1]))
        return tf.gather(uniforms(seed, (total, count, 3)), rows)

    def _transform(self, windows, draws):
        channels = windows.shape[-1]
        triples = self._triples(channels)
        others = [x for x in range(channels) if x not in np.ravel(triples)]
        turned = tf.einsum(
            "btki,bkji->btkj",
            tf.gather(windows, triples, axis=2),
            self.matrices(draws),
        )
        batch, time, _ = shape_of(windows)
        turned = tf.reshape(turned, (batch, time, -1))
        if others:
            rest = tf.gather(windows, others, axis=2)
            turned = tf.concat([turned, rest], axis=2)
        places = np.argsort([*np.ravel(triples), *others])
        return tf.gather(turned, places, axis=2)

    def matrices(self, draws):
        """Rotation matrices `(..., 3, 3)` from uniform draws `(..., 3)`."""
        first, second, third = tf.unstack(draws, axis=-1)
        if self.angle == 180.0:
            second, third = 2.0 * np.pi * second, 2.0 * np.pi * third
            one, other = tf.sqrt(1.0 - first), tf.sqrt(first)
            x, y = one * tf.sin(second), one * tf.cos(second)
            z, w = other * tf.sin(third), other * tf.cos(third)
        else:
            half = np.radians(self.angle) / 2.0 * first
            height = between(second, -1.0, 1.0)
            radius = tf.sqrt(1.0 - height**2) * tf.sin(half)
            third = 2.0 * np.pi * third
            x, y = radius * tf.cos(third), radius * tf.sin(third)
            z, w = height * tf.sin(half), tf.cos(half)
        rows = [
            (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
            (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
            (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
        ]
        return tf.stack([tf.stack(row, axis=-1) for row in rows], axis=-2)

    def get_config(self):
        return {
            **super().get_config(),
            "triples": self.triples,
            "angle": self.angle,
        }


def _checked_triples(triples):
    rule = "a list of triples of different channels, none of them twice"
    found = np.asarray(triples)
    is_right = (
        found.ndim == 2
        and found.shape[1] == 3
        and found.dtype.kind in "iu"
        and found.min() >= 0
        and len(np.unique(found)) == found.size
    )
    if not is_right:
        raise ValueError(
            f"`triples` must be {rule}. Received: triples={triples!r}"
        )
    return found.tolist()


@keras.saving.register_keras_serializable(package="keras_simclr")
class RandomScaling(SeriesLayer):
    """Multiplies each channel of each window by a factor near 1.

    Args:
        stddev: Standard deviation of the factors, which are normal around 1.
        seed: Integer, or None for a random one.
        **kwargs: `name` of the layer.

    Call arguments:
        windows: Floats.
        training: Whether to scale. If False the windows come back as float.
        seed: Pair of integers, or None to count the layer's own calls.
        part: As of `RandomResizedCrop`.

    Input shape:
        `(batch, time, channels)` or `(time, channels)`.

    Output shape:
        Same as input, float32.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> RandomScaling(0.2)(np.ones((2, 16, 3)), seed=(0, 1)).shape
    TensorShape([2, 16, 3])

    References:
        - Um et al. 2017, arXiv:1706.00527.
    """

    def __init__(self, stddev=0.1, *, seed=None, **kwargs):
        super().__init__(seed=seed, **kwargs)
        self.stddev = _checks.positive_number("stddev", stddev)

    def _draw(self, seed, windows, part=None):
        rows, total = rows_and_total(windows, part)
        channels = shape_of(windows)[2]
        return tf.gather(uniforms(seed, (total, channels, 2)), rows)

    def _transform(self, windows, draws):
        return windows * (1.0 + self.stddev * normals(draws))[:, None]

    def get_config(self):
        return {**super().get_config(), "stddev": self.stddev}


@keras.saving.register_keras_serializable(package="keras_simclr")
class RandomJitter(SeriesLayer):
    """Adds noise to every value.

    Args:
        stddev: Standard deviation of the noise, which is normal: in units of
            the windows, so of their own deviation behind `Standardization`.
        seed: Integer, or None for a random one.
        **kwargs: `name` of the layer.

    Call arguments:
        windows: Floats.
        training: Whether to add noise. If False the windows come back as float.
        seed: Pair of integers, or None to count the layer's own calls.
        part: As of `RandomResizedCrop`.

    Input shape:
        `(batch, time, channels)` or `(time, channels)`.

    Output shape:
        Same as input, float32.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> RandomJitter(0.1)(np.zeros((2, 16, 3)), seed=(0, 1)).shape
    TensorShape([2, 16, 3])

    References:
        - Um et al. 2017, arXiv:1706.00527.
    """

    def __init__(self, stddev=0.05, *, seed=None, **kwargs):
        super().__init__(seed=seed, **kwargs)
        self.stddev = _checks.positive_number("stddev", stddev)

    def _draw(self, seed, windows, part=None):
        rows, _ = rows_and_total(windows, part)
        shape = tf.concat([tf.shape(windows)[1:], [2]], axis=0)
        return uniforms_of_rows(seed, rows, shape)

    def _transform(self, windows, draws):
        return windows + self.stddev * normals(draws)

    def get_config(self):
        return {**super().get_config(), "stddev": self.stddev}


@keras.saving.register_keras_serializable(package="keras_simclr")
class RandomPermutation(SeriesLayer):
    """Cuts each window into segments, and puts them in another order.

    All channels are cut at the same times. The number of segments is uniform
    from 1 to `segments`, where they are cut is uniform, and so is their order.

    Args:
        segments: Largest number of segments, at least 2.
        seed: Integer, or None for a random one.
        **kwargs: `name` of the layer.

    Call arguments:
        windows: Floats.
        training: Whether to permute. If False the windows come back as float.
        seed: Pair of integers, or None to count the layer's own calls.
        part: As of `RandomResizedCrop`.

    Input shape:
        `(batch, time, channels)` or `(time, channels)`.

    Output shape:
        Same as input, float32.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> views = RandomPermutation()(np.ones((2, 16, 3)), seed=(0, 1))
    >>> views.shape
    TensorShape([2, 16, 3])

    References:
        - Um et al. 2017, arXiv:1706.00527.
        - Eldele et al. 2021, arXiv:2106.14112 (TS-TCC), "strong" views.
    """

    def __init__(self, segments=5, *, seed=None, **kwargs):
        super().__init__(seed=seed, **kwargs)
        self.segments = _checks.integer("segments", segments, minimum=2)

    @property
    def _draws_per_example(self):
        return 2 * self.segments

    def _transform(self, windows, draws):
        time = shape_of(windows)[1]
        number, cuts, keys = tf.split(
            draws, [1, self.segments - 1, self.segments], axis=1
        )
        # Cuts beyond the number lie behind the end.
        number = tf.cast(number * self.segments, tf.int32)
        cuts = tf.cast(cuts * tf.cast(time, tf.float32), tf.int32)
        cuts = tf.where(tf.range(self.segments - 1) < number, cuts, time)
        is_behind = tf.range(time)[None, :, None] >= cuts[:, None]
        segments = tf.reduce_sum(tf.cast(is_behind, tf.int32), axis=2)
        keys = tf.gather(keys, segments, axis=1, batch_dims=1)
        order = tf.argsort(keys, axis=1, stable=True)  # Within one: as before.
        return tf.gather(windows, order, axis=1, batch_dims=1)

    def get_config(self):
        return {**super().get_config(), "segments": self.segments}


def _resampled(windows, places):
    """Windows at those places in time, float `(batch, time)`, interpolated."""
    last = shape_of(windows)[1] - 1
    low = tf.clip_by_value(tf.cast(places, tf.int32), 0, last)
    share = (places - tf.cast(low, tf.float32))[..., None]
    before, after = (
        tf.gather(windows, tf.minimum(x, last), axis=1, batch_dims=1)
        for x in (low, low + 1)
    )
    return before + share * (after - before)


@keras.saving.register_keras_serializable(package="keras_simclr")
class RandomTimeWarp(SeriesLayer):
    """Lets time pass faster and slower within each window.

    The speed is log-normal at knots in equal distances, and linear between
    them. Windows begin and end as before; time never runs back.

    Args:
        stddev: Standard deviation of the logarithm of the speed.
        knots: Number of knots, at least 2: those at both ends included.
        seed: Integer, or None for a random one.
        **kwargs: `name` of the layer.

    Call arguments:
        windows: Floats.
        training: Whether to warp. If False the windows come back as float.
        seed: Pair of integers, or None to count the layer's own calls.
        part: As of `RandomResizedCrop`.

    Input shape:
        `(batch, time, channels)` or `(time, channels)`.

    Output shape:
        Same as input, float32.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> views = RandomTimeWarp()(np.ones((2, 16, 3)), seed=(0, 1))
    >>> views.shape
    TensorShape([2, 16, 3])

    References:
        - Um et al. 2017, arXiv:1706.00527.

    Deviation: the speed is a cubic spline through normal numbers there, and
        may be negative.
    """

    def __init__(self, stddev=0.2, *, knots=6, seed=None, **kwargs):
        super().__init__(seed=seed, **kwargs)
        self.stddev = _checks.positive_number("stddev", stddev)
        self.knots = _checks.integer("knots", knots, minimum=2)

    @property
    def _draws_per_example(self):
        return 2 * self.knots

    def _transform(self, windows, draws):
        return _resampled(windows, self.places(draws, shape_of(windows)[1]))

    def places(self, draws, time):
        """Where in time the views are taken from, `(batch, time)`, in steps.

        `draws` are uniform, of shape `(batch, 2 * knots)`.
        """
        draws = tf.reshape(draws, (-1, self.knots, 2))
        speeds = tf.exp(self.stddev * normals(draws))
        # At the middle of each step, which lies between two of the knots.
        steps = tf.cast(time - 1, tf.float32)
        middles = (tf.cast(tf.range(time - 1), tf.float32) + 0.5) / steps
        distances = middles[:, None] * (self.knots - 1) - tf.range(
            self.knots, dtype=tf.float32
        )
        weights = tf.maximum(1.0 - tf.abs(distances), 0.0)  # (time - 1, knots)
        # No product of matrices, which would differ with the size of a batch.
        speeds = tf.reduce_sum(speeds[:, None] * weights, axis=2)
        passed = tf.cumsum(speeds, axis=1)
        passed = tf.pad(passed, [(0, 0), (1, 0)])
        return passed / passed[:, -1:] * steps

    def get_config(self):
        return {
            **super().get_config(),
            "stddev": self.stddev,
            "knots": self.knots,
        }


@keras.saving.register_keras_serializable(package="keras_simclr")
class RandomCrop1D(SeriesLayer):
    """Cuts a stretch out of each window, and brings it to one length.

    Where it lies is uniform. Movements are slower in it where `scale` is less
    than 1. Two stretches of a window that is longer than `length` show two
    moments of what was recorded.

    At rest (`training=False`) the views are the middle `length` steps.

    Args:
        length: Steps of the views; None: as many as the window has.
        scale: Pair `(low, high)`: steps of the stretch, as a share of those of
            the view, uniform, `0 < low <= high <= 1`.
        seed: Integer, or None for a random one.
        **kwargs: `name` of the layer.

    Call arguments:
        windows: Floats, of at least `length` steps.
        training: Whether to crop at random.
        seed: Pair of integers, or None to count the layer's own calls.
        part: As of `RandomResizedCrop`.

    Input shape:
        `(batch, time, channels)` or `(time, channels)`.

    Output shape:
        `(batch, length, channels)` or `(length, channels)`, float32.

    Raises:
        ValueError: If an argument is out of range, or windows are too short.

    Example:

    >>> RandomCrop1D(12)(np.ones((2, 16, 3)), seed=(0, 1)).shape
    TensorShape([2, 12, 3])
    """

    _draws_per_example = 2

    def __init__(self, length=None, *, scale=(0.5, 1.0), seed=None, **kwargs):
        super().__init__(seed=seed, **kwargs)
        if length is not None:
            _checks.integer("length", length, minimum=2)
        self.length = length
        self.scale = _checks.positive_range("scale", scale, high=1)

    def _check_shape(self, shape):
        super()._check_shape(shape)
        if self.length and shape[1] is not None and shape[1] < self.length:
            raise ValueError(
                "Windows must have as many steps as their views, or more. "
                f"Received: windows of shape {shape} for length={self.length}"
            )

    def _transform(self, windows, draws):
        time = shape_of(windows)[1]
        length = self.length or time
        share = between(draws[:, :1], *self.scale)
        spare = tf.cast(time - 1, tf.float32)
        spare -= share * tf.cast(length - 1, tf.float32)
        steps = tf.cast(tf.range(length), tf.float32)
        return _resampled(windows, draws[:, 1:] * spare + share * steps)

    def _at_rest(self, windows):
        return self.plain_at_rest(tf.cast(windows, tf.float32))

    def plain_at_rest(self, windows):
        if self.length is None:
            return windows
        # Of Keras: of what is symbolic, too.
        time = keras.ops.shape(windows)[1]
        start = (time - self.length) // 2
        return windows[:, start : start + self.length]

    def examples_shape(self, shape):
        return (shape[0], self.length or shape[1], shape[2])

    def compute_output_shape(self, input_shape, *args, **kwargs):
        *batch, time, channels = input_shape
        return (*batch, self.length or time, channels)

    def get_config(self):
        return {
            **super().get_config(),
            "length": self.length,
            "scale": self.scale,
        }


@keras.saving.register_keras_serializable(package="keras_simclr")
class RandomMask(SeriesLayer):
    """Sets a stretch of each window to 0, in all channels.

    0 is the mean behind `Standardization`.

    Args:
        share: Largest share of the window, in (0, 1]. What is masked is uniform
            between nothing and this, and so is where it lies.
        seed: Integer, or None for a random one.
        **kwargs: `name` of the layer.

    Call arguments:
        windows: Floats.
        training: Whether to mask. If False the windows come back as float.
        seed: Pair of integers, or None to count the layer's own calls.
        part: As of `RandomResizedCrop`.

    Input shape:
        `(batch, time, channels)` or `(time, channels)`.

    Output shape:
        Same as input, float32.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> views = RandomMask(0.5)(np.ones((2, 16, 3)), seed=(0, 1))
    >>> sorted(np.unique(views).tolist())
    [0.0, 1.0]
    """

    _draws_per_example = 2

    def __init__(self, share=0.3, *, seed=None, **kwargs):
        super().__init__(seed=seed, **kwargs)
        self.share = _checks.positive_range("share", (share, 1.0), high=1)[0]

    def _transform(self, windows, draws):
        time = shape_of(windows)[1]
        length = draws[:, :1] * self.share * tf.cast(time, tf.float32)
        start = draws[:, 1:] * (tf.cast(time, tf.float32) - length)
        steps = tf.cast(tf.range(time), tf.float32) + 0.5
        is_masked = (steps >= start) & (steps < start + length)
        return tf.where(is_masked[..., None], 0.0, windows)

    def get_config(self):
        return {**super().get_config(), "share": self.share}


def default_augmentation(shape, source=None):
    """The views of windows: no rotation, which hides where gravity pulls.

    Args:
        shape: Of a batch of windows.
        source: Ignored.

    Returns:
        Dictionary of arguments for `SimCLRModel`: `augmentation`, a list of
        layers, of which the first must be adapted.

    Example:

    >>> layers = default_augmentation((None, 128, 6))["augmentation"]
    >>> [layer.name for layer in layers][:2]
    ['standardization', 'crop']
    """
    return {
        "augmentation": [
            Standardization(name="standardization"),
            RandomCrop1D(name="crop"),
            RandomTimeWarp(name="warp"),
            RandomScaling(0.2, name="scaling"),
            RandomJitter(0.1, name="jitter"),
            RandomMask(name="mask"),
        ]
    }


def default_encoder(input_shape, width_multiplier=1.0):
    """The network for windows.

    Args:
        input_shape: `(time, channels)`.
        width_multiplier: Positive number; every layer has this many times the
            usual channels.

    Returns:
        A functional `keras.Model`, as `ConvNet1D` returns it.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> default_encoder((128, 6), 0.25).output_shape
    (None, 64)
    """
    _checks.positive_number("width_multiplier", width_multiplier)
    filters = [max(1, round(x * width_multiplier)) for x in (64, 128, 128)]
    return ConvNet1D(filters, input_shape=input_shape)
