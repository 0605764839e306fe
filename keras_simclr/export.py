"""Writing an encoder for use without this package."""

import pathlib
import shutil
import tempfile

import keras
import numpy as np
import tensorflow as tf

from keras_simclr.augmentations import Augmentation
from keras_simclr.model import SimCLRModel, as_list
from keras_simclr.networks import plain_copy


def export_encoder(model, directory):
    """Writes the encoder of a model as `.keras` and as a SavedModel.

    Both take float32 images in [0, 1], bring them to the evaluation view,
    return float32 representations and can be fine-tuned; neither needs this
    package to load.

    - `encoder.keras`: plain Keras layers, for images of the encoder's size.
    - `saved_model/`: a reusable SavedModel (TF Hub), for images of any size.
      `__call__(images, training=False)` and the signature `serving_default`
      (output `default`) return representations.

    Args:
        model: A `SimCLRModel`.
        directory: Directory to write, new or empty. It is complete or absent.

    Returns:
        `pathlib.Path` of the directory.

    Raises:
        TypeError: If `model` is not a `SimCLRModel`.
        FileExistsError: If `directory` holds anything.
        ValueError: If the augmentation changes images at rest in a way that
            plain Keras layers cannot repeat.

    Example:

    ```python
    export_encoder(model, "my_encoder")
    encoder = keras.models.load_model("my_encoder/encoder.keras")
    module = tf.saved_model.load("my_encoder/saved_model")
    ```

    References:
        - tensorflow/hub, docs/reusable_saved_models.md and
          docs/common_saved_model_apis/images.md.
    """
    if not isinstance(model, SimCLRModel):
        raise TypeError(
            f"`model` must be a SimCLRModel. Received: model={model!r}"
        )
    directory = pathlib.Path(directory)
    check_is_free(directory)
    encoder = plain_copy(model.encoder)
    directory.parent.mkdir(parents=True, exist_ok=True)
    staged = pathlib.Path(
        tempfile.mkdtemp(prefix=".export-", dir=directory.parent)
    )
    try:
        _with_evaluation_view(model, encoder).save(staged / "encoder.keras")
        _save_module(model, encoder, staged / "saved_model")
        staged.chmod(0o755)  # mkdtemp makes it private.
        staged.replace(directory)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return directory


def check_is_free(directory):
    """Refuses a directory that holds anything.

    Args:
        directory: Path; it need not exist.

    Raises:
        FileExistsError: If it is a file, or a directory with content.

    Example:

    >>> check_is_free("a/new/directory")
    """
    directory = pathlib.Path(directory)
    if directory.is_dir() and not any(directory.iterdir()):
        return
    if directory.exists():
        raise FileExistsError(
            "The output directory must be new or empty: nothing is "
            f"overwritten. Received: {str(directory)!r}"
        )


def _with_evaluation_view(model, encoder):
    """The encoder behind plain layers that do what the model does at rest."""
    shape = encoder.input_shape[1:]
    inputs = outputs = keras.Input(shape, name="inputs")
    for layer in as_list(model.augmentation):
        # Other layers are taken to leave images alone; checked below.
        if isinstance(layer, Augmentation):
            outputs = layer.plain_at_rest(outputs)
    views = keras.Model(inputs, outputs)
    images = np.random.default_rng(0).random((2, *shape), dtype="float32")
    expected = model.evaluation_view(images)
    if not np.allclose(views(images), expected, atol=1e-5):
        raise ValueError(
            "`augmentation` must leave images of the encoder's size as they "
            "are at rest (training=False). Put what is done to every image, "
            "such as a Rescaling layer, in front of the encoder instead."
        )
    if outputs is inputs:
        return encoder
    return keras.Model(inputs, encoder(outputs), name=encoder.name)


def _save_module(model, encoder, path):
    module = tf.train.Checkpoint()
    module.variables = [v.value for v in encoder.variables]
    module.trainable_variables = [v.value for v in encoder.trainable_variables]
    module.regularization_losses = [
        _penalty(v) for v in encoder.trainable_variables if v.regularizer
    ]
    shape = encoder.input_shape[1:]
    if len(shape) == 3:
        shape = (None, None, shape[2])
    images = tf.TensorSpec((None, *shape), tf.float32, name="inputs")

    def represent(inputs, training=False):
        return encoder(model.evaluation_view(inputs), training=training)

    module.__call__ = tf.function(represent, autograph=False)
    for training in (False, True):
        module.__call__.get_concrete_function(images, training=training)
    module.__call__.get_concrete_function(images)
    serve = tf.function(
        lambda inputs: {"default": represent(inputs)}, autograph=False
    )
    tf.saved_model.save(
        module,
        path,
        signatures={"serving_default": serve.get_concrete_function(images)},
    )


def _penalty(variable):
    return tf.function(
        lambda: variable.regularizer(variable), input_signature=[]
    )
