"""Images that the claims are tried on."""

import dataclasses
import functools
import pathlib
import tempfile

import numpy as np

import keras_simclr as simclr
from benchmarks.datasets import fashion_mnist
from keras_simclr import folders, scanning

_HELD_OUT = 5_000  # Training images to choose on.
_CIFAR10 = slice(50_000), slice(50_000, None)


@dataclasses.dataclass(frozen=True)
class Data:
    """Pairs of images and labels."""

    train: tuple
    held_out: tuple
    test: tuple


def load_data(config, arguments):
    """The data of a configuration, with as many images to train on.

    Args:
        config: Dictionary with `data` and `images`.
        arguments: Flags of `trials.main`.

    Returns:
        `Data`.
    """
    if config["data"] == "fashion_mnist":
        data = _fashion_mnist(arguments.data_dir)
    elif config["data"] == "cifar10":
        data = _cifar10(arguments.cifar10)
    else:
        data = _clip_art(arguments.data, arguments.manifest)
    train = tuple(array[: config["images"]] for array in data.train)
    return dataclasses.replace(data, train=train)


@functools.cache
def _fashion_mnist(data_dir):
    """The training images in a fixed order, the last of them held out."""
    train, test = fashion_mnist("train", "test", data_dir=data_dir)
    return _some_held_out(train, test)


@functools.cache
def _cifar10(path):
    """The same of CIFAR-10, whose first 50,000 images are for training."""
    with np.load(path) as arrays:
        pair = arrays["images"], arrays["labels"]
    return _some_held_out(*([x[part] for x in pair] for part in _CIFAR10))


def _some_held_out(train, test):
    order = np.random.default_rng(0).permutation(len(train[0]))
    kept, held = order[:-_HELD_OUT], order[-_HELD_OUT:]
    return Data(
        train=tuple(array[kept] for array in train),
        held_out=tuple(array[held] for array in train),
        test=tuple(test),
    )


@functools.cache
def _clip_art(directory, manifest):
    """Two thirds to train on, the others to test."""
    images, labels = _squeezed(directory, manifest)
    test, train = np.split(
        np.random.default_rng(0).permutation(len(labels)), [len(labels) // 3]
    )
    train, test = ((images[x], labels[x]) for x in (train, test))
    return Data(train=train, held_out=test, test=test)


def _squeezed(directory, manifest, size=32, smallest_class=100):
    """One image of each group of duplicates, squeezed to a square."""
    with tempfile.TemporaryDirectory() as temporary:
        if manifest is None:
            manifest = pathlib.Path(temporary, "manifest.parquet")
            scanning.scan(directory, manifest)
        folder = folders.ImageFolder(directory, manifest=manifest)
    places = np.arange(len(folder.paths))
    if folder.groups is not None:
        places = np.unique(folder.groups, return_index=True)[1]
    # Labels are the top-level folders: those with enough images.
    counts = np.bincount(folder.labels[places])
    places = places[counts[folder.labels[places]] >= smallest_class]
    folder.paths = [folder.paths[place] for place in places]
    folder.labels, folder.groups = folder.labels[places], None
    dataset = simclr.dataset_from_directory(
        folder, canvas_size=4 * size, shuffle=False, drop_remainder=False
    )
    squeeze = simclr.RandomResizedCrop(size, size)
    images, labels = [], []
    for batch in dataset:
        squeezed = squeeze(
            batch["images"], training=False, sizes=batch["sizes"]
        )
        images.append(np.round(255 * squeezed).astype("uint8"))
        labels.append(batch["labels"])
    return np.concatenate(images), np.concatenate(labels)
