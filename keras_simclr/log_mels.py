"""Log-mel spectrograms of sounds, as a layer that any runtime can express."""

import math

import keras
import numpy as np
import tensorflow as tf

from keras_simclr import _checks, kinds
from keras_simclr.moments import moments
from keras_simclr.random_layers import RandomLayer, StillLayer

_WINDOW, _HOP = 0.025, 0.01  # Seconds.
_LOWEST = 60.0  # Hz: below is hum.
# 80 dB below a sine as loud as can be: above the noise of 16 bits.
_FLOOR = 1e-8
_ADAPTED_AT_ONCE = 64  # Sounds.


class OfWaveforms(RandomLayer):
    """What all layers for waveforms share."""

    kind = kinds.AUDIO
    _axes = ("samples",)


@keras.saving.register_keras_serializable(package="keras_simclr")
class LogMel(StillLayer, OfWaveforms):
    """Makes log-mel spectrograms, the same in training and at rest.

    The power spectra of windows of 25 ms (Hann), one every 10 ms, are summed
    in triangles that are equally wide on the mel scale, from 60 Hz to half the
    rate. Their natural logarithms have a floor, 80 dB below the power of a
    sine as loud as can be. Each is a function of its sound alone. After `adapt`
    every band has mean 0 and standard deviation 1.

    The Fourier transform, of windows padded to twice their length (more, if
    bands are very narrow), is a convolution: all runtimes have that.

    Args:
        rate: Samples in a second, at least 1,000.
        bands: Number of mel bands.
        **kwargs: `name` of the layer.

    Call arguments:
        sounds: Floats in [-1, 1].

    Input shape:
        `(batch, samples)` or `(samples,)`, of at least a window.

    Output shape:
        `(batch, time, bands)` or `(time, bands)`, float32.

    Raises:
        ValueError: If an argument is out of range, or sounds are too short.

    Example:

    >>> mel = LogMel(8000)
    >>> sounds = np.random.default_rng(0).uniform(-1, 1, (5, 8000))
    >>> mel.adapt(sounds)
    >>> mel(sounds).shape
    TensorShape([5, 98, 40])

    Deviation: `keras.layers.MelSpectrogram` cuts off at 80 dB below the
        loudest of the batch: a sound's values depend on its neighbours there.
    """

    def __init__(self, rate, bands=40, **kwargs):
        super().__init__(**kwargs)
        self.rate = _checks.integer("rate", rate, minimum=1000)
        self.bands = _checks.integer("bands", bands, minimum=1)
        self._window = round(_WINDOW * rate)
        self._hop = round(_HOP * rate)
        waves, triangles = _filters(rate, self._window, bands)
        self._waves = tf.constant(waves[:, None])
        self._triangles = tf.constant(triangles)
        self.mean, self.stddev = (
            self.add_weight(
                shape=(bands,),
                initializer=initializer,
                trainable=False,
                name=name,
            )
            for name, initializer in (("mean", "zeros"), ("stddev", "ones"))
        )

    def _check_shape(self, shape):
        super()._check_shape(shape)
        if shape[1] is not None and shape[1] < self._window:
            raise ValueError(
                f"`LogMel` needs sounds of at least {self._window} samples, a "
                f"window of 25 ms. Received: sounds of shape {shape}"
            )

    def adapt(self, sounds):
        """Finds mean and standard deviation of each band.

        Args:
            sounds: Array of shape `(N, samples)`, as the layer takes it.

        Raises:
            ValueError: If they have another shape, are none, or not finite.

        Example:

        >>> mel = LogMel(8000, bands=2)
        >>> mel.adapt(np.zeros((1, 400)))
        >>> mel.mean.numpy().round(1), mel.stddev.numpy()
        (array([-18.4, -18.4], dtype=float32), array([1., 1.], dtype=float32))
        """
        sounds = np.asarray(sounds)
        if sounds.ndim != 2 or not sounds.size:
            raise ValueError(
                "`sounds` must be an array of shape (N, samples). Received: "
                f"sounds of shape {sounds.shape}"
            )
        mean, stddev = moments(self._logarithms_of(sounds))
        self.mean.assign(mean)
        # A band in which nothing ever sounds is left alone.
        self.stddev.assign(np.where(stddev < 1e-3, 1.0, stddev))

    def _logarithms_of(self, sounds):
        """Yields what the bands of some sounds are; refuses unusable ones."""
        for start in range(0, len(sounds), _ADAPTED_AT_ONCE):
            batch = sounds[start : start + _ADAPTED_AT_ONCE]
            if not np.isfinite(batch).all():
                raise ValueError(
                    "`sounds` must be finite. Received: NaN or infinity in "
                    f"one of the rows {start} to {start + len(batch) - 1}"
                )
            batch = tf.cast(batch, tf.float32)
            self._check_shape(batch.shape)
            yield self._logarithms(batch).numpy().astype("float64")

    def _logarithms(self, sounds):
        waves = tf.nn.conv1d(sounds[..., None], self._waves, self._hop, "VALID")
        bands = tf.tensordot(tf.square(waves), self._triangles, 1)
        return tf.math.log(tf.maximum(bands, _FLOOR))

    def _at_rest(self, sounds):
        values = self._logarithms(tf.cast(sounds, tf.float32))
        return (values - self.mean) / self.stddev

    def plain_at_rest(self, examples):
        convolution = keras.layers.Conv1D(
            self._waves.shape[-1],
            self._window,
            strides=self._hop,
            use_bias=False,
            trainable=False,
        )
        dense = keras.layers.Dense(self.bands, use_bias=False, trainable=False)
        x = keras.ops.expand_dims(examples, -1)
        x = dense(keras.ops.square(convolution(x)))
        convolution.set_weights([self._waves.numpy()])
        dense.set_weights([self._triangles.numpy()])
        x = keras.ops.log(keras.ops.maximum(x, _FLOOR))
        mean, stddev = self.mean.numpy(), self.stddev.numpy()
        return keras.layers.Rescaling(
            (1 / stddev).tolist(), (-mean / stddev).tolist()
        )(x)

    def examples_shape(self, shape):
        time = shape[1]
        if time is not None:
            time = self._window + (time - 1) * self._hop
        return (shape[0], time)

    def compute_output_shape(self, input_shape, *args, **kwargs):
        *batch, samples = input_shape
        if samples is not None:
            samples = 1 + (samples - self._window) // self._hop
        return (*batch, samples, self.bands)

    def get_config(self):
        return {
            **super().get_config(),
            "rate": self.rate,
            "bands": self.bands,
        }


def _filters(rate, window, bands):
    """Waves that a window is multiplied by, and what bands they count for.

    Of shapes (window, 2 * frequencies), cosines and sines, and (2 *
    frequencies, bands).
    """
    edges = np.linspace(_mels(_LOWEST), _mels(rate / 2), bands + 2)
    edges = 700.0 * np.expm1(edges / 1127.0)
    # So close that no band is without a frequency.
    points = max(2 * window, math.ceil(rate / np.diff(edges).min()))
    frequencies = np.arange(points // 2 + 1) * rate / points
    rising = (frequencies[:, None] - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - frequencies[:, None]) / np.diff(edges)[1:]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    is_used = triangles.any(axis=1)
    times = np.arange(window)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * times / window)
    # The square of a wave's amplitude is its power.
    hann *= 2 / hann.sum()
    phases = 2 * np.pi * np.outer(times, frequencies[is_used]) / rate
    waves = np.concatenate([np.cos(phases), np.sin(phases)], axis=1)
    triangles = np.concatenate([triangles[is_used]] * 2)
    return (hann[:, None] * waves).astype("float32"), np.float32(triangles)


def _mels(hertz):
    return 1127.0 * np.log1p(hertz / 700.0)
