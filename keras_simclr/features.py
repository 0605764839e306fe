"""Representations of many examples, and raw features beside them."""

import numpy as np
import tensorflow as tf

from keras_simclr import fit_data
from keras_simclr.augmentations import to_float
from keras_simclr.copies import plain_copy
from keras_simclr.elements import images_and_sizes
from keras_simclr.model import SimCLRModel

PIXELS = 32  # Larger images are averaged to this size for the baseline.


def extract_features(model, images, *, batch_size=256):
    """Representations of images, from an encoder at rest.

    Args:
        model: A `SimCLRModel`, or any Keras model from images to
            representations.
        images: Array of shape `(N, height, width, channels)`, uint8 or float
            in [0, 1]; or a dataset of batches of them, where labels are
            ignored.
        batch_size: Images in a batch, for arrays.

    Returns:
        float32 array of shape `(N, features)`: before the projection head, and
        from the float32 encoder that `export_encoder` writes.

    Raises:
        ValueError: If images are not finite, or floats not in [0, 1].

    Example:

    >>> encoder = simclr.ResNet(10, stem="cifar", input_shape=(8, 8, 1))
    >>> model = simclr.SimCLRModel(encoder)
    >>> extract_features(model, np.zeros((4, 8, 8, 1), "uint8")).shape
    (4, 512)
    """
    dataset = fit_data.in_order(images, batch_size=batch_size)
    fit_data.check_length(dataset)
    elements = fit_data.checked_elements(dataset)
    (features,), _ = extract([representation(model)], elements)
    return features


def representation(model):
    """Function from a batch of images to representations, frozen and at rest.

    Args:
        model: A `SimCLRModel`, or any Keras model.

    Returns:
        Function of a tensor of images, and their `sizes` or None, to a
        float32 tensor `(batch, features)`.

    Example:

    >>> encoder = simclr.ResNet(10, stem="cifar", input_shape=(8, 8, 1))
    >>> model = simclr.SimCLRModel(encoder)
    >>> representation(model)(tf.zeros((2, 8, 8, 1)), None).shape
    TensorShape([2, 512])
    """
    encoder, prepare = model, view_of(model)
    if isinstance(model, SimCLRModel):
        encoder = plain_copy(model.encoder)
    return tf.function(
        lambda images, sizes: tf.cast(
            encoder(prepare(images, sizes), training=False), tf.float32
        ),
        reduce_retracing=True,
    )


def view_of(model):
    """Function from images and sizes to what the encoder sees."""
    if isinstance(model, SimCLRModel):
        return model.evaluation_view

    def whole(images, sizes):
        if sizes is not None:
            raise ValueError(
                "Images with `sizes` need a SimCLRModel, which knows how to "
                f"bring them to its encoder. Received: model={model.name!r}"
            )
        return to_float(images)

    return whole


def pixels_of(model):
    """Function from images and sizes to pixels that a probe can digest."""
    prepare = view_of(model)

    def pixels(images, sizes):
        view = prepare(images, sizes)
        if view.shape.rank == 4:
            size = [min(side, PIXELS) for side in view.shape[1:3]]
            if size != view.shape[1:3]:
                view = tf.image.resize(view, size, method="area")
        return tf.reshape(view, (tf.shape(view)[0], -1))

    return tf.function(pixels, reduce_retracing=True)


def extract(functions, elements):
    """Outputs of several functions of images, and the labels if any.

    Args:
        functions: Functions of a tensor of images and their sizes or None.
        elements: Iterable of dictionaries, as `fit_data.checked_elements`.

    Returns:
        List of an array for each function, and array of shape `(N,)` or None.

    Example:

    >>> elements = [{"images": tf.ones((2, 3)), "labels": tf.zeros((2, 1))}]
    >>> (doubles,), labels = extract([lambda x, _: 2 * x], elements)
    >>> doubles.shape, labels.shape
    ((2, 3), (2,))
    """
    outputs, labels = [[] for _ in functions], []
    for element in elements:
        batch, sizes = images_and_sizes(element)
        for output, function in zip(outputs, functions, strict=True):
            output.append(function(batch, sizes).numpy())
        if "labels" in element:
            labels.append(fit_data.one_per_row(element["labels"]))
    outputs = [np.concatenate(output) for output in outputs]
    return outputs, np.concatenate(labels) if labels else None
