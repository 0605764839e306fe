"""What a user wrote and registered."""

import keras
import tensorflow as tf

import keras_simclr as simclr


@keras.saving.register_keras_serializable(package="own")
class Scale(keras.layers.Layer):
    """An augmentation, and with a seed of its own choice a layer."""

    def __init__(self, low=0.5, **kwargs):
        super().__init__(**kwargs)
        self.low = low

    def call(self, images, training=True, seed=None):
        if not training:
            return images
        factors = tf.random.stateless_uniform(
            [tf.shape(images)[0], 1, 1, 1], seed, self.low, 1.0
        )
        return factors * images

    def get_config(self):
        return {**super().get_config(), "low": self.low}


@keras.saving.register_keras_serializable(package="own")
def distance(z_1, z_2):
    """A loss."""
    return tf.reduce_mean((z_1 - z_2) ** 2)


@keras.saving.register_keras_serializable(package="own")
class Weighted(simclr.SimCLRModel):
    """A model with an argument of its own."""

    def __init__(self, *args, weight=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.weight = weight

    def replica_gradients(self, element):
        gradients, loss, found = super().replica_gradients(element)
        return [self.weight * x for x in gradients], loss, found

    def get_config(self):
        return {**super().get_config(), "weight": self.weight}
