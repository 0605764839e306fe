"""Writing an encoder for use without this package."""

import pathlib
import shutil
import tempfile

import keras
import numpy as np
import tensorflow as tf

from keras_simclr.augmentations import Augmentation
from keras_simclr.model import SimCLRModel, as_list, takes_sizes
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
    return write_network(model, plain_copy(model.encoder), directory, "encoder")


def write_network(model, network, directory, name, texts=None):
    """Writes a network behind a model's evaluation view, whole or not at all.

    Args:
        model: The `SimCLRModel` that knows the evaluation view.
        network: Plain `keras.Model` that takes it.
        directory: Directory to write, new or empty.
        name: Name of the Keras file without `.keras`; beside it is
            `saved_model/`.
        texts: Dictionary from the names of further files to their contents.

    Returns:
        `pathlib.Path` of the directory.

    Example:

    ```python
    write_network(model, plain_copy(model.encoder), "my_encoder", "encoder")
    ```
    """
    directory = pathlib.Path(directory)
    check_is_free(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    staged = pathlib.Path(
        tempfile.mkdtemp(prefix=".export-", dir=directory.parent)
    )
    try:
        whole = with_evaluation_view(model, network)
        whole.save(staged / f"{name}.keras")
        _save_module(model, network, staged / "saved_model")
        for file, text in (texts or {}).items():
            (staged / file).write_text(text)
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
    shape = network.input_shape[1:]
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
        return network
    return keras.Model(inputs, network(outputs), name=network.name)


def _save_module(model, network, path):
    module = tf.train.Checkpoint()
    module.variables = [v.value for v in network.variables]
    module.trainable_variables = [v.value for v in network.trainable_variables]
    module.regularization_losses = [
        _penalty(v) for v in network.trainable_variables if v.regularizer
    ]
    shape = network.input_shape[1:]
    if len(shape) == 3:
        shape = (None, None, shape[2])
    images = tf.TensorSpec((None, *shape), tf.float32, name="inputs")

    def represent(inputs, training=False, sizes=None):
        view = model.evaluation_view(inputs, sizes)
        return network(view, training=training)

    module.__call__ = tf.function(represent, autograph=False)
    for training in (False, True):
        module.__call__.get_concrete_function(images, training=training)
    module.__call__.get_concrete_function(images)
    if takes_sizes(model):
        module.on_canvas = tf.function(
            lambda images, sizes: represent(images, sizes=sizes),
            input_signature=[
                tf.TensorSpec(images.shape, tf.uint8),
                tf.TensorSpec((None, 2), tf.int32),
            ],
            autograph=False,
        )
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
