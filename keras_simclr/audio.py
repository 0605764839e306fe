"""Sounds: layers that make views of them, log-mel spectrograms, an encoder.

Sounds are waveforms, float in [-1, 1], of shape `(batch, samples)`;
spectrograms have the shape `(batch, time, mel)`. The order is: cut a window,
change the waveform, `LogMel`, change the spectrogram.

No layer may change what the sounds are told apart by. A shift of frequencies
suits words, and destroys the pitch of notes; a mask hides what is short.
"""

import keras
import tensorflow as tf

from keras_simclr import _checks
from keras_simclr.log_mels import LogMel, OfWaveforms
from keras_simclr.networks import FusedBatchNormalization
from keras_simclr.random_layers import (
    RandomLayer,
    StillLayer,
    between,
    rows_and_total,
    uniforms,
    uniforms_of_rows,
)

_LEVEL = 0.1  # Root of the mean square of speech that is recorded well.
_SILENCE = 1e-12  # The sum of the squares of what is left alone.
_GROUP = 8  # Places among which sounds are mixed: a power of 2.
# Of the default encoder: channels, size and stride of a convolution, and what
# is pooled after it.
_CONVOLUTIONS = (16, 5, 2, 1), (32, 3, 1, 2), (64, 3, 1, 2), (128, 3, 1, 1)


class _OfSpectrograms(RandomLayer):
    _axes = ("time", "mel")


@keras.saving.register_keras_serializable(package="keras_simclr")
class RandomTimeCrop(OfWaveforms):
    """Cuts a random window out of each sound.

    A sound that is shorter than the window comes whole, at a random place
    between zeros. At rest (`training=False`) the window is in the middle.

    Args:
        samples: Length of the window.
        seed: Integer, or None for a random one.
        **kwargs: `name` of the layer.

    Call arguments:
        sounds: Floats.
        training: Whether to cut at random.
        seed: Pair of integers, or None to count the layer's own calls.
        sizes: Integers of shape `(batch, 1)`: samples of each sound before
            zeros that pad it. None: all of it.
        part: Pair `(first, total)` if the sounds are a part of a batch.

    Input shape:
        `(batch, any)` or `(any,)`.

    Output shape:
        `(batch, samples)` or `(samples,)`, float32.

    Raises:
        ValueError: If `samples` is no positive integer.

    Example:

    >>> crop = RandomTimeCrop(4)
    >>> crop(np.ones((1, 2), "float32"), training=False).numpy()
    array([[0., 1., 1., 0.]], dtype=float32)
    """

    _draws_per_example = 1

    def __init__(self, samples, *, seed=None, **kwargs):
        super().__init__(seed=seed, **kwargs)
        self.samples = _checks.integer("samples", samples, minimum=1)

    def call(self, sounds, training=True, seed=None, sizes=None, part=None):
        sizes = [] if sizes is None else [tf.cast(sizes, tf.int32)]
        return self._augment(sounds, training, seed, part, *sizes)

    def _transform(self, sounds, draws, sizes=None):
        lengths = _lengths(sounds, sizes)
        room = lengths - self.samples
        most = tf.abs(room)
        steps = tf.cast(draws[:, 0] * tf.cast(most + 1, tf.float32), tf.int32)
        starts = tf.sign(room) * tf.minimum(steps, most)
        return self._cut(sounds, starts, lengths)

    def _at_rest(self, sounds, sizes=None):
        lengths = _lengths(sounds, sizes)
        room = lengths - self.samples
        starts = tf.sign(room) * (tf.abs(room) // 2)
        return self._cut(tf.cast(sounds, tf.float32), starts, lengths)

    def _cut(self, sounds, starts, lengths):
        """Windows from `starts` on, which are negative before a sound."""
        places = starts[:, None] + tf.range(self.samples)
        is_sound = (places >= 0) & (places < lengths[:, None])
        places = tf.where(is_sound, places, 0)
        windows = tf.gather(sounds, places, axis=1, batch_dims=1)
        windows = tf.where(is_sound, windows, 0.0)
        windows.set_shape(self.compute_output_shape(sounds.shape))
        return windows

    def examples_shape(self, shape):
        return (shape[0], self.samples)

    def compute_output_shape(self, input_shape, *args, **kwargs):
        return (*input_shape[:-1], self.samples)

    def get_config(self):
        return {**super().get_config(), "samples": self.samples}


def _lengths(sounds, sizes):
    """Samples of each sound, int32 of shape (batch,)."""
    if sizes is not None:
        return sizes[:, 0]
    batch, samples = tf.unstack(tf.shape(sounds))
    return tf.fill([batch], samples)


@keras.saving.register_keras_serializable(package="keras_simclr")
class LevelNormalization(StillLayer, OfWaveforms):
    """Makes all sounds equally loud, the same in training and at rest.

    The root of the mean square of what is not 0, such as what pads a sound,
    becomes 0.1. A silent sound stays silent.

    Args:
        **kwargs: `name` of the layer.

    Call arguments:
        sounds: Floats.

    Input shape:
        `(batch, samples)` or `(samples,)`.

    Output shape:
        Same as input, float32.

    Example:

    >>> LevelNormalization()(np.float32([[0.0, 0.5, -0.5]])).numpy()
    array([[ 0. ,  0.1, -0.1]], dtype=float32)
    """

    def _at_rest(self, sounds):
        return self.plain_at_rest(tf.cast(sounds, tf.float32))

    def plain_at_rest(self, examples):
        is_sound = keras.ops.cast(keras.ops.not_equal(examples, 0.0), "float32")
        count = keras.ops.sum(is_sound, axis=1, keepdims=True)
        square = keras.ops.square(examples)
        square = keras.ops.sum(square, axis=1, keepdims=True)
        power = keras.ops.maximum(square, _SILENCE) / keras.ops.maximum(
            count, 1.0
        )
        return examples * (_LEVEL / keras.ops.sqrt(power))


@keras.saving.register_keras_serializable(package="keras_simclr")
class RandomGain(OfWaveforms):
    """Makes each sound louder or softer.

    Args:
        decibels: Positive number: the gain is uniform between this and its
            negative, in decibels.
        seed: Integer, or None for a random one.
        **kwargs: `name` of the layer.

    Call arguments:
        sounds: Floats.
        training: Whether to change them.
        seed: Pair of integers, or None to count the layer's own calls.
        part: Pair `(first, total)` if the sounds are a part of a batch.

    Input shape:
        `(batch, samples)` or `(samples,)`.

    Output shape:
        Same as input, float32. Values may leave [-1, 1]: nothing is clipped.

    Raises:
        ValueError: If `decibels` is not positive.

    Example:

    >>> RandomGain(6)(np.ones((2, 5), "float32"), seed=(0, 1)).shape
    TensorShape([2, 5])
    """

    _draws_per_example = 1

    def __init__(self, decibels=12.0, *, seed=None, **kwargs):
        super().__init__(seed=seed, **kwargs)
        self.decibels = _checks.positive_number("decibels", decibels)

    def _transform(self, sounds, draws):
        return sounds * _factor(between(draws, -self.decibels, self.decibels))

    def get_config(self):
        return {**super().get_config(), "decibels": self.decibels}


def _factor(decibels):
    """What amplitudes are multiplied by for a change of their level."""
    return tf.pow(10.0, decibels / 20.0)


def _powers(sounds):
    return tf.reduce_mean(tf.square(sounds), axis=1, keepdims=True)


def _added(sounds, others, decibels):
    """Sounds, and others so many decibels softer: (batch, 1)."""
    share = tf.math.divide_no_nan(_powers(sounds), _powers(others))
    return sounds + others * tf.sqrt(share) * _factor(-decibels)


@keras.saving.register_keras_serializable(package="keras_simclr")
class RandomNoise(OfWaveforms):
    """Adds white noise to each sound, as loud as a random share of it.

    Args:
        decibels: Pair `(low, high)`, `0 < low <= high`: how much softer than
            the sound the noise is, uniform between them. A silent sound stays
            silent.
        seed: Integer, or None for a random one.
        **kwargs: `name` of the layer.

    Call arguments:
        sounds: Floats.
        training: Whether to add noise.
        seed: Pair of integers, or None to count the layer's own calls.
        part: Pair `(first, total)` if the sounds are a part of a batch.

    Input shape:
        `(batch, samples)` or `(samples,)`.

    Output shape:
        Same as input, float32.

    Raises:
        ValueError: If `decibels` is no such pair.

    Example:

    >>> RandomNoise()(np.ones((2, 5), "float32"), seed=(0, 1)).shape
    TensorShape([2, 5])
    """

    def __init__(self, decibels=(10.0, 40.0), *, seed=None, **kwargs):
        super().__init__(seed=seed, **kwargs)
        self.decibels = _checks.positive_range("decibels", decibels)

    def _draw(self, seed, examples, part=None):
        rows, _ = rows_and_total(examples, part)
        samples = examples.shape[1] or tf.shape(examples)[1]
        return uniforms_of_rows(seed, rows, [samples + 1])

    def _transform(self, sounds, draws):
        # Uniform: what is white in a spectrum need not be normal.
        noise = between(draws[:, 1:], -1.0, 1.0)
        decibels = between(draws[:, :1], *self.decibels)
        return _added(sounds, noise, decibels)

    def get_config(self):
        return {**super().get_config(), "decibels": self.decibels}


@keras.saving.register_keras_serializable(package="keras_simclr")
class MixBackground(OfWaveforms):
    """Adds another sound of the batch, softer, to each.

    The other one is drawn from the same 8 places of the batch, 0 to 7, 8 to 15
    and so on, such that replicas and micro-batches have it at hand: if they
    hold multiples of 8 sounds, the result is that of one device. Where it is
    not among the sounds, nothing is added.

    Args:
        rate: Probability in [0, 1] that something is added.
        decibels: Pair `(low, high)`, `0 < low <= high`: how much softer than
            the sound the other one is, uniform between them.
        seed: Integer, or None for a random one.
        **kwargs: `name` of the layer.

    Call arguments:
        sounds: Floats.
        training: Whether to add others.
        seed: Pair of integers, or None to count the layer's own calls.
        part: Pair `(first, total)` if the sounds are a part of a batch.

    Input shape:
        `(batch, samples)`; or `(samples,)`, to which nothing is added.

    Output shape:
        Same as input, float32.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> MixBackground()(np.ones((8, 5), "float32"), seed=(0, 1)).shape
    TensorShape([8, 5])

    References:
        - Niizumi et al. 2021, arXiv:2103.06695 (mixing of log-mels).

    Deviation: there, spectrograms are mixed, with those of earlier batches.
        Here waveforms are, as in a room, and the result is a function of seed
        and batch alone.
    """

    _draws_per_example = 3

    def __init__(self, rate=0.5, decibels=(5.0, 30.0), *, seed=None, **kwargs):
        super().__init__(seed=seed, **kwargs)
        self.rate = _checks.probability("rate", rate)
        self.decibels = _checks.positive_range("decibels", decibels)

    def _draw(self, seed, examples, part=None):
        rows, total = rows_and_total(examples, part)
        draws = tf.gather(uniforms(seed, (total, 3)), rows)
        steps = 1 + tf.cast(draws[:, 0] * (_GROUP - 1), tf.int32)
        # Another place of the group, whichever step is taken.
        others = tf.bitwise.bitwise_xor(rows, steps) - rows[0]
        count = tf.shape(rows)[0]
        is_there = (others >= 0) & (others < count)
        is_mixed = is_there & (draws[:, 1] < self.rate)
        others = tf.where(is_mixed, others, tf.range(count))
        return others, is_mixed, between(draws[:, 2:], *self.decibels)

    def _transform(self, sounds, draws):
        others, is_mixed, decibels = draws
        mixed = _added(sounds, tf.gather(sounds, others), decibels)
        return tf.where(is_mixed[:, None], mixed, sounds)

    def get_config(self):
        return {
            **super().get_config(),
            "rate": self.rate,
            "decibels": self.decibels,
        }


@keras.saving.register_keras_serializable(package="keras_simclr")
class RandomFrequencyShift(_OfSpectrograms):
    """Moves each spectrogram up or down by some mel bands.

    As another voice would sound. The outermost band stands in for those that
    come in from outside.

    Args:
        bands: Positive integer: the most bands it is moved, up or down.
        seed: Integer, or None for a random one.
        **kwargs: `name` of the layer.

    Call arguments:
        spectrograms: Floats.
        training: Whether to move them.
        seed: Pair of integers, or None to count the layer's own calls.
        part: Pair `(first, total)` if they are a part of a batch.

    Input shape:
        `(batch, time, mel)` or `(time, mel)`.

    Output shape:
        Same as input, float32.

    Raises:
        ValueError: If `bands` is no positive integer.

    Example:

    >>> shift = RandomFrequencyShift(2)
    >>> shift(np.ones((2, 9, 5), "float32"), seed=(0, 1)).shape
    TensorShape([2, 9, 5])
    """

    _draws_per_example = 1

    def __init__(self, bands=3, *, seed=None, **kwargs):
        super().__init__(seed=seed, **kwargs)
        self.bands = _checks.integer("bands", bands, minimum=1)

    def _transform(self, spectrograms, draws):
        steps = tf.cast(draws * (2 * self.bands + 1), tf.int32) - self.bands
        last = tf.shape(spectrograms)[2] - 1
        places = tf.clip_by_value(tf.range(last + 1) - steps, 0, last)
        return tf.gather(spectrograms, places, axis=2, batch_dims=1)

    def get_config(self):
        return {**super().get_config(), "bands": self.bands}


@keras.saving.register_keras_serializable(package="keras_simclr")
class RandomTimeFrequencyMask(_OfSpectrograms):
    """Hides a stretch of time, and one of frequencies, of each spectrogram.

    The widths are uniform from none to the share that is given, the places
    uniform among those where they fit. What is hidden is 0, the mean after
    `LogMel.adapt`.

    Args:
        time: Number from 0 to 1: the largest share of the time.
        frequency: The same of the bands.
        seed: Integer, or None for a random one.
        **kwargs: `name` of the layer.

    Call arguments:
        spectrograms: Floats.
        training: Whether to hide anything.
        seed: Pair of integers, or None to count the layer's own calls.
        part: Pair `(first, total)` if they are a part of a batch.

    Input shape:
        `(batch, time, mel)` or `(time, mel)`.

    Output shape:
        Same as input, float32.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> mask = RandomTimeFrequencyMask()
    >>> mask(np.ones((2, 9, 5), "float32"), seed=(0, 1)).shape
    TensorShape([2, 9, 5])

    References:
        - Park et al. 2019, arXiv:1904.08779 (SpecAugment).
    """

    _draws_per_example = 4

    def __init__(self, time=0.25, frequency=0.25, *, seed=None, **kwargs):
        super().__init__(seed=seed, **kwargs)
        self.time, self.frequency = (
            _checks.real_number(name, x, low=0, high=1, rule="from 0 to 1")
            for name, x in (("time", time), ("frequency", frequency))
        )

    def _transform(self, spectrograms, draws):
        _, times, bands = tf.unstack(tf.shape(spectrograms))
        hidden = _stretch(times, self.time, draws[:, :2])[:, :, None]
        hidden |= _stretch(bands, self.frequency, draws[:, 2:])[:, None]
        return tf.where(hidden, 0.0, spectrograms)

    def get_config(self):
        return {
            **super().get_config(),
            "time": self.time,
            "frequency": self.frequency,
        }


def _stretch(extent, share, draws):
    """Places in a stretch of at most that share: booleans (batch, extent)."""
    most = tf.floor(share * tf.cast(extent, tf.float32))
    widths = tf.floor(draws[:, :1] * (most + 1.0))
    rest = tf.cast(extent, tf.float32) - widths
    starts = tf.floor(draws[:, 1:] * (rest + 1.0))
    places = tf.range(tf.cast(extent, tf.float32))
    return (places >= starts) & (places < starts + widths)


def default_augmentation(samples, rate):
    """Layers that make views of sounds, in order.

    Args:
        samples: Length of the window that views are made of.
        rate: Samples in a second.

    Returns:
        List of layers. Its `LogMel` wants to be adapted.

    Raises:
        ValueError: If an argument is out of range, or the window is shorter
            than those of `LogMel`.

    Example:

    >>> layers = default_augmentation(8000, 8000)
    >>> layers[5].adapt(np.random.default_rng(0).normal(0, 0.1, (9, 8000)))
    >>> simclr.SimCLRModel(
    ...     default_encoder((98, 40)), augmentation=layers
    ... ).kind.name
    'audio'
    """
    crop, mel = RandomTimeCrop(samples), LogMel(rate)
    least = mel.examples_shape((1, 1))[1]
    if samples < least:
        raise ValueError(
            f"The longest sound must have at least {least} samples, which are "
            f"25 ms. Received: samples={samples}, rate={rate}"
        )
    return [
        crop,
        LevelNormalization(),
        RandomGain(),
        MixBackground(),
        RandomNoise(),
        mel,
        RandomFrequencyShift(),
        RandomTimeFrequencyMask(),
    ]


def default_encoder(input_shape, width_multiplier=1.0):
    """A small convolutional network for log-mel spectrograms.

    Four convolutions; then mean and largest value of each channel.

    Args:
        input_shape: `(time, mel)`.
        width_multiplier: Positive number; every layer has this many times the
            usual channels.

    Returns:
        A functional `keras.Model` from spectrograms `(batch, time, mel)` to
        representations `(batch, features)`.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> default_encoder((98, 40)).output_shape
    (None, 256)
    """
    _checks.positive_number("width_multiplier", width_multiplier)
    inputs = keras.Input(input_shape, name="spectrograms")
    x = keras.layers.Reshape((-1, input_shape[1], 1))(inputs)
    for filters, size, strides, pool in _CONVOLUTIONS:
        filters = max(1, round(filters * width_multiplier))
        x = keras.layers.Conv2D(
            filters, size, strides=strides, padding="same", use_bias=False
        )(x)
        x = FusedBatchNormalization()(x)
        x = keras.layers.ReLU()(x)
        if pool > 1:
            x = keras.layers.MaxPooling2D(pool, padding="same")(x)
    mean = keras.layers.GlobalAveragePooling2D()(x)
    largest = keras.layers.GlobalMaxPooling2D()(x)
    outputs = keras.layers.Concatenate()([mean, largest])
    return keras.Model(inputs, outputs, name="sound_encoder")
