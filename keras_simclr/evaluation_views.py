"""What a model does to examples at rest: plain layers, and a graph."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from keras_simclr import kinds, trials
from keras_simclr.augmentations import (
    as_list,
    examples_shape,
    seen_at_rest,
    shapes_taken,
)
from keras_simclr.random_layers import RandomLayer


def with_evaluation_view(model, network):
    """Puts plain layers in front that do what the model does at rest.

    Args:
        model: A `SimCLRModel`.
        network: Plain `keras.Model` that takes its evaluation view.

    Returns:
        A `keras.Model` that takes images of the same size.

    Raises:
        ValueError: If no plain layers do what the augmentation does at rest.

    Example:

    >>> encoder = simclr.ResNet(10, stem="cifar", input_shape=(8, 8, 3))
    >>> model = simclr.SimCLRModel(encoder)
    >>> with_evaluation_view(model, encoder).input_shape
    (None, 8, 8, 3)
    """
    views = plain_view(model)
    if views.output is views.input:
        return network
    return keras.Model(views.input, network(views.output), name=network.name)


def plain_view(model):
    """Plain layers that do what the model does at rest.

    Args:
        model: A `SimCLRModel`.

    Returns:
        A `keras.Model` from images of the encoder's size to what it sees.

    Raises:
        ValueError: If no plain layers do what the augmentation does at rest.

    Example:

    >>> encoder = simclr.ResNet(10, stem="cifar", input_shape=(8, 8, 3))
    >>> plain_view(simclr.SimCLRModel(encoder)).output_shape
    (None, 8, 8, 3)
    """
    shape = examples_shape(model.augmentation, model.encoder.input_shape)[1:]
    if None in shape:
        shape = view_of_model(model).plain
    inputs = outputs = keras.Input(shape, name="inputs")
    for layer in as_list(model.augmentation):
        # Other layers are taken to leave images alone; checked below.
        if isinstance(layer, RandomLayer):
            outputs = layer.plain_at_rest(outputs)
    views = keras.Model(inputs, outputs)
    images = noise(shape, 2)
    expected = model.evaluation_view(images)
    if trials.differ(views(images), expected):
        raise ValueError(
            "`augmentation` must leave images of the encoder's size as they "
            "are at rest (training=False). Put what is done to every image, "
            "such as a Rescaling layer, in front of the encoder instead."
        )
    return views


@dataclasses.dataclass(frozen=True)
class View:
    """What a model does to images at rest, traced once."""

    bring: tf.types.experimental.GenericFunction  # From images to views.
    images: tuple  # Shape of an image; None for any size.
    plain: tuple  # Shape of an image of the encoder's size.
    shape: tuple  # Shape of what the encoder sees.
    crops: bool  # Whether the edges of images are not seen.


def brought_to_rest(model, images, sizes=None):
    """The evaluation view of images whose values are not checked.

    Not every format knows assertions.
    """
    shape = model.encoder.input_shape
    return seen_at_rest(model.augmentation, images, shape, sizes)


def view_of_model(model):
    """The `View` of a `SimCLRModel`."""
    encoder = model.encoder.input_shape
    images, plain = shapes_taken(model.augmentation, encoder)
    if model.kind is kinds.IMAGES:  # Some take any size and no canvas.
        images = (None, None, None, encoder[3])
    images, encoder = images[1:], encoder[1:]
    bring = tf.function(
        lambda images: brought_to_rest(model, images),
        input_signature=[tf.TensorSpec((None, *images), tf.float32)],
        autograph=False,
    )
    found = bring.get_concrete_function().structured_outputs.shape[1:]
    shape = tuple(found.merge_with(encoder))
    plain = shape if model.kind is kinds.IMAGES else plain[1:]
    # What is not brought to the encoder's size must have it.
    images = images if found == shape else plain
    return View(bring, images, plain, shape, _crops(bring, plain))


def _crops(bring, shape):
    """Whether a view is the same whatever stands at the edges of an image."""
    if len(shape) != 3 or None in shape:
        return False
    images = noise(shape, 1)
    margins = [max(1, size // 32) for size in shape[:2]]
    other = np.full_like(images, 0.5)
    inside = tuple(slice(margin, -margin) for margin in margins)
    other[:, *inside] = images[:, *inside]
    return np.allclose(bring(images), bring(other), atol=1e-6)


def noise(shape, count, network=None):
    """So many examples of that shape in [0, 1), always the same.

    For a network that takes integers, such as tokens, they hold 0 and 1.
    """
    shape = [16 if x is None else x for x in shape]
    rng = np.random.default_rng(0)
    examples = rng.random((count, *shape), dtype="float32")
    inputs = getattr(network, "inputs", None)
    if inputs and tf.as_dtype(inputs[0].dtype).is_integer:
        examples = np.rint(examples)
        # A mask leaves nothing of an example that is 0 throughout.
        examples.reshape(count, -1)[:, 0] = 1
    return examples
