"""Layers that are shown examples first, and keep what they saw as weights."""

import keras
import numpy as np
import tensorflow as tf

from keras_simclr import fit_data
from keras_simclr.elements import failures_in_words
from keras_simclr.random_layers import RandomLayer


class AdaptedLayer(RandomLayer):
    """A layer that needs to have seen examples.

    A subclass has `_build(width)`, which adds weights for examples whose last
    axis is that wide, and `_adapt(batches)`, which sets them from an iterator
    of float64 arrays, of which there is at least one.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.built = False

    def build(self, input_shape):
        width = input_shape[-1]
        if width is None:
            raise ValueError(
                f"The last axis of {self.kind.plural} must be known. Received: "
                f"{self.kind.plural} of shape {tuple(input_shape)}"
            )
        self.is_adapted = self._add_state("is_adapted", ())
        self._build(width)
        self.built = True

    def _build(self, width):
        raise NotImplementedError

    def _add_state(self, name, shape, initializer="zeros"):
        return self.add_weight(
            shape=shape, initializer=initializer, trainable=False, name=name
        )

    def adapt(self, examples):
        """Looks at examples; what it has seen before is forgotten.

        Args:
            examples: Array of shape `(N, ...)`, or a dataset of batches as
                `fit` takes it, which ends. Labels are ignored.

        Raises:
            ValueError: If there are none, they have another shape, or are not
                finite.
        """
        dataset = fit_data.in_order(examples)
        with failures_in_words():
            self._adapt(self._batches(dataset))
        self.is_adapted.assign(1.0)

    def _batches(self, dataset):
        for element in fit_data.checked_elements(dataset, kind=self.kind):
            batch = element["images"]
            self._check_dtype(batch.dtype)
            self._check_shape(batch.shape)
            if not self.built:
                self.build(batch.shape)
            yield np.asarray(batch, "float64")

    def compute_output_spec(self, examples, *args, **kwargs):
        # A model is made, and loaded, before there is anything to be seen.
        self._check_dtype(tf.as_dtype(examples.dtype))
        shape = self.compute_output_shape(examples.shape)
        return keras.KerasTensor(shape, "float32")

    def _check_adapted(self):
        with tf.init_scope():
            is_adapted = bool(self.is_adapted.numpy())
        if not is_adapted:
            raise ValueError(
                f"{type(self).__name__} must see {self.kind.plural} before it "
                f"makes views: adapt(...). Received: none, for {self.name!r}"
            )
