"""Keras's files of networks, as strangers may have made them."""

import contextlib
import json
import math
import pathlib
import zipfile

import keras
import tensorflow as tf

from keras_simclr import archives, copies
from keras_simclr._files import in_one_line

_CONFIG, _WEIGHTS = "config.json", "model.weights"
_LONGEST_CONFIG = 1 << 25  # Bytes: those of a ResNet-152 are 500 kB.
_LARGEST_INPUT = 1 << 26  # Numbers: what layers are tried on is as large.
_SHAPES = ("batch_shape", "batch_input_shape", "input_shape")
# Variables may take that much, and so many times what the file has of them: an
# optimizer's may be missing there.
_ROOM, _TIMES = 1 << 28, 8
_LONGEST_REASON = 300  # Characters.


def load_network(path, what="A network", kind=keras.Model):
    """Loads a Keras model from a file that may be anybody's.

    No code of the file runs: Keras's safe mode refuses layers that hold some.
    What it says of the network is compared with what it holds first, so that
    nothing is made that is far larger.

    Args:
        path: Path of a `.keras` file.
        what: What it must be, for errors.
        kind: Class that the model must be of.

    Returns:
        The model.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is broken, refused by Keras, of another kind, or false
            in what it says; or if its weights are not finite.

    Example:

    ```python
    model = load_network("encoder.keras")
    ```
    """
    path = pathlib.Path(path)
    try:
        room = math.inf
        if path.suffix == ".keras":  # Others Keras refuses, or are HDF5.
            room = _ROOM + _TIMES * _checked(path)
        with _limited(room):
            model = keras.models.load_model(path)
        if not isinstance(model, kind):
            raise TypeError(f"it holds no {kind.__name__}, but {model!r}")
    except Exception as error:  # Of any kind, from anywhere.
        if archives.is_of_system(error):
            raise
        raise ValueError(
            f"{what} must be a file that Keras can load. Received: "
            f"{str(path)!r} ({_reason(error)}). Copy it again, or save it "
            "anew where it was made"
        ) from error
    try:
        copies.check_finite(model)
    except ValueError as error:
        raise ValueError(f"{error}. It is that in {str(path)!r}") from None
    return model


def _reason(error):
    """What an error says, in one line."""
    text = str(error).rpartition("Exception encountered: ")[2]
    text = " ".join(text.split()) or type(error).__name__
    if len(text) > _LONGEST_REASON:
        text = text[:_LONGEST_REASON] + "..."
    return in_one_line(text.rstrip("."))


def _checked(path):
    """Bytes of weights in a file that looks as Keras writes it."""
    with zipfile.ZipFile(path) as archive:
        archives.check_members(path, archive)
        sizes = {x.filename: x.file_size for x in archive.infolist()}
        if sizes.get(_CONFIG, math.inf) > _LONGEST_CONFIG:
            raise ValueError(f"it has no {_CONFIG} of usual size")
        _check_shapes(json.loads(archive.read(_CONFIG)))
    return sum(x for name, x in sizes.items() if name.startswith(_WEIGHTS))


def _check_shapes(config):
    """Refuses inputs that are far larger than images are."""
    rest = [config]
    while rest:
        part = rest.pop()
        if isinstance(part, list):
            rest += part
        if not isinstance(part, dict):
            continue
        rest += part.values()
        for shape in map(part.get, _SHAPES):
            sides = shape if isinstance(shape, list) else []
            sides = [x for x in sides if isinstance(x, int | float)]
            if math.prod(sides) > _LARGEST_INPUT:
                raise ValueError(f"its inputs would be of shape {shape}")


@contextlib.contextmanager
def _limited(room):
    """Context in which new variables take so many bytes at most."""
    taken = 0

    def create(make, **kwargs):
        nonlocal taken
        taken += _size_of(kwargs.get("initial_value"))
        if taken > room:
            raise ValueError("its weights would be far more than it holds")
        return make(**kwargs)

    with tf.variable_creator_scope(create):
        yield


def _size_of(initial):
    """Bytes of an initial value, without making it; 0 if not known."""
    try:
        with tf.Graph().as_default():
            value = tf.convert_to_tensor(initial())
        return value.shape.num_elements() * value.dtype.size
    except Exception:  # What is no function, or only for eager mode.
        return 0
