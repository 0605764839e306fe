"""Directories that hold a classifier: the network, and names of classes."""

import json
import pathlib

from keras_simclr.keras_files import load_network

CLASS_NAMES = "class_names.json"


def load_classifier(directory):
    """The Keras model of a directory that `train_classifier` wrote."""
    return load_network(file_of(directory), "A classifier")


def file_of(directory):
    """Path of the Keras model of such a directory."""
    return checked_directory(directory) / "classifier.keras"


def class_names(directory):
    """Tuple of the names of a classifier's probabilities."""
    path = checked_directory(directory) / CLASS_NAMES
    try:
        names = json.loads(path.read_text("utf-8"))
        if not isinstance(names, list) or {*map(type, names)} != {str}:
            raise TypeError("something else")
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{CLASS_NAMES} must be a JSON list of texts. Received: "
            f"{str(path)!r} ({error}). Copy it again, or mend it"
        ) from None
    return tuple(names)


def is_classifier(directory):
    """Whether `train_classifier` wrote a directory, by the names in it."""
    return pathlib.Path(directory, CLASS_NAMES).is_file()


def checked_directory(directory):
    """The path of a directory that `train_classifier` wrote, or an error."""
    directory = pathlib.Path(directory)
    if not is_classifier(directory):
        raise FileNotFoundError(
            f"`model` must be a directory with {CLASS_NAMES}, written by "
            f"`finetune`. Received: {str(directory)!r}"
        )
    return directory
