"""Representations of many examples, and raw features beside them."""

import collections
import functools
import pathlib
import time

import keras
import numpy as np
import tensorflow as tf

from keras_simclr import fit_data, kinds, programs, windows
from keras_simclr._checks import finite_rows
from keras_simclr.augmentations import (
    RandomResizedCrop,
    as_list,
    call_layer,
    to_float,
)
from keras_simclr.copies import check_finite, nested_layers, plain_copy
from keras_simclr.decoding import canvas_for, decode
from keras_simclr.elements import (
    Rules,
    failures_in_words,
    images_and_sizes,
    unpack,
)
from keras_simclr.labelled import in_batches, joined
from keras_simclr.model import SimCLRModel
from keras_simclr.scanning import examine
from keras_simclr.vectors import VectorTable

_PIXELS = 32  # Larger images are averaged to this size for the baseline.
FEW_IMAGES = 256  # To measure on how long all of them will take.
_SETTLED_ON = 1_024  # Images that batch norm is shown before it is trained.
_SETTLED_AT_ONCE = 256  # Of these in a pass.
# Examples that layers adapt to, and bytes of them, which are held some times.
_ADAPTED_ON, _ADAPTED_BYTES = 10_000, 1 << 28
PIXEL_SETTINGS = f"at most {_PIXELS} x {_PIXELS}"


def extract_features(
    model, images, *, batch_size=256, return_places=False, progress=None
):
    """Representations of images, from an encoder at rest.

    Args:
        model: A `SimCLRModel`, or any Keras model from images to
            representations.
        images: Array of shape `(N, height, width, channels)`, uint8 or float
            in [0, 1]; or a dataset of batches of them, where labels are
            ignored.
        batch_size: Images in a batch, for arrays.
        return_places: Whether to return the place of each image, too. Of a
            folder, from which any pass may skip files, that is its place in
            `ImageFolder.paths`.
        progress: Function that is told, as work goes on, how many images are
            done, and of how many, or None where that is not known.

    Returns:
        float32 array of shape `(N, features)`: before the projection head, and
        from the float32 encoder that `export_encoder` writes. With
        `return_places` also an integer array of shape `(N,)`.

    Raises:
        ValueError: If the encoder takes other images, there are none, or they
            are not finite, or floats not in [0, 1]; if the weights, or
            representations, are not finite; or if a copy of the encoder does
            not return what it returns.

    Example:

    >>> encoder = simclr.ResNet(10, stem="cifar", input_shape=(8, 8, 1))
    >>> model = simclr.SimCLRModel(encoder)
    >>> extract_features(model, np.zeros((4, 8, 8, 1), "uint8")).shape
    (4, 512)
    """
    dataset = fit_data.in_order(images, batch_size=batch_size)
    fit_data.check_length(dataset, name=None)
    check_fits(model, dataset)
    elements = fit_data.checked_elements(
        dataset, progress, kind=kind_of_model(model)
    )
    (features,), others = extract([representation(model)], elements)
    finite_rows("Representations", features)
    if not return_places:
        return features
    return features, others.get("places", np.arange(len(features)))


def represent_file(model, path, *, bits=8):
    """Representation of one image file, as of a file of a folder.

    Args:
        model: A `SimCLRModel`.
        path: Path of the file.
        bits: As of `dataset_from_directory`.

    Returns:
        float32 array of shape `(1, features)`.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no image that the encoder can take.

    Example:

    ```python
    represent_file(model, "query.jpg")
    ```
    """
    path = pathlib.Path(path)
    height, width, channels = model.encoder.input_shape[1:]
    row = examine(path.name, lambda: path.open("rb"), channels)
    if not row.usable:
        raise ValueError(
            "`query` must be an image file that can be read. Received: "
            f"query={str(path)!r} ({row.problem})"
        )
    side = canvas_for(max(height, width))
    image = decode(tf.constant(path.read_bytes()), side, channels, bits)
    return extract_features(model, image.numpy()[None])


def check_fits(model, dataset):
    """Refuses, before long work, images that an encoder cannot take."""
    images, sizes = images_and_sizes(unpack(dataset.element_spec))
    if isinstance(model, SimCLRModel):
        rules = Rules.of(
            model.encoder.input_shape,
            model.augmentation,
            model.second_augmentation,
        )
        rules.check_at_rest({"images": images})
        return
    if sizes is not None:
        raise ValueError(
            "Images with `sizes` need a SimCLRModel, which knows how to "
            f"bring them to its encoder. Received: model={model.name!r}"
        )
    # Of a subclass of `keras.Model` it is not known.
    shape = getattr(model, "input_shape", None)
    if not images.shape.is_compatible_with(shape):
        raise ValueError(
            f"The encoder takes images of shape {shape}. Received: images of "
            f"shape {images.shape}. Convert them, or use a SimCLRModel, which "
            "brings images to the size of its encoder."
        )


def kind_of_model(model):
    """The `kinds.Kind` of what a `SimCLRModel` or an encoder takes."""
    if isinstance(model, SimCLRModel):
        return model.kind
    return kinds.kind_of([], getattr(model, "input_shape", None) or ())


def check_encoders(encoders):
    """Refuses what is neither a `VectorTable` nor an encoder of a fixed size.

    `encoders`: dictionary by names.
    """
    for name, encoder in encoders.items():
        shape = getattr(encoder, "input_shape", None)
        if isinstance(encoder, (SimCLRModel, VectorTable)):
            continue
        if not isinstance(shape, tuple) or len(shape) != 4 or None in shape[1:]:
            raise ValueError(
                "`encoders` must take images of a size of their own: inputs of "
                "shape (None, height, width, channels). Received: "
                f"{name!r} with inputs of shape {shape}"
            )


def check_all_fit(model, encoders, dataset):
    """Refuses images that the encoders cannot take, all channels beside 1."""
    check_fits(model, dataset)
    images, _ = images_and_sizes(unpack(dataset.element_spec))
    for name, encoder in encoders.items():
        if isinstance(encoder, VectorTable):
            encoder.check(dataset)
            continue
        if isinstance(encoder, SimCLRModel):
            check_fits(encoder, dataset)
            continue
        channels, found = encoder.input_shape[-1], images.shape[-1]
        # Grey images are made colourful.
        if found not in (channels, None) and (found, channels) != (1, 3):
            raise ValueError(
                f"The encoder {name!r} takes images with {channels} channels. "
                f"Received: images of shape {images.shape}. Leave it out of "
                "`encoders`, or evaluate it alone on images that it takes."
            )


def representation(model):
    """Function from images and sizes to float32 representations, at rest."""
    check_finite(model)
    encoder, prepare = model, view_of(model)
    if isinstance(model, SimCLRModel):
        encoder = plain_copy(model.encoder)
    return programs.TracedOnce(
        lambda images, sizes: tf.cast(
            encoder(prepare(images, sizes), training=False), tf.float32
        )
    )


def resized_representation(encoder):
    """As `representation`, of images brought to the size of an encoder."""
    represent = representation(encoder)
    if isinstance(encoder, SimCLRModel):
        return represent
    height, width, channels = encoder.input_shape[1:]
    crop = RandomResizedCrop(height, width)

    def resized(images, sizes):
        with programs.running_here():
            views = crop(images, training=False, sizes=sizes)
        if channels == 3 and views.shape[-1] == 1:
            views = tf.repeat(views, 3, axis=-1)
        return represent(views, None)

    return programs.TracedOnce(resized)


def view_of(model):
    """Function from images and sizes to what the encoder sees."""
    if isinstance(model, SimCLRModel):
        return model.evaluation_view

    return lambda images, sizes: to_float(images)


def raw_features(model):
    """Function from images and sizes to what is known without an encoder.

    Of images that is pixels, averaged to few; of others what they look like at
    rest, or what their kind says.
    """
    prepare, kind = view_of(model), kind_of_model(model)
    if kind is kinds.SERIES:
        return lambda images, _: tf.constant(windows.statistics(images))

    def features(images, sizes):
        view = prepare(images, sizes)
        if kind is kinds.IMAGES:
            size = [min(side, _PIXELS) for side in view.shape[1:3]]
            if size != view.shape[1:3]:
                view = tf.image.resize(view, size, method="area")
        return tf.reshape(view, (tf.shape(view)[0], -1))

    return programs.TracedOnce(features)


def settle_batch_norm(model, examples, places, seed):
    """Shows images to the batch norm of a model with weights drawn anew.

    Its averages become those of batches of the examples at these places, as
    training would make them; at rest it would else divide by 1 what may be of
    any size. Of many places, some are drawn.
    """
    places = np.random.default_rng(seed).permutation(places)[:_SETTLED_ON]
    drawn = {key: array[places] for key, array in examples.items()}
    _settle(model, in_batches(drawn))


def settle_on(model, dataset):
    """As `settle_batch_norm`, with the first images of a dataset.

    Of a model with weights that saw other images: its averages are theirs.
    """
    size = model.micro_batch_size or _SETTLED_AT_ONCE

    def pieces():
        seen = 0
        for element in fit_data.checked_elements(dataset):
            count = len(element["images"])
            for start in range(0, count, size):
                yield {k: x[start : start + size] for k, x in element.items()}
            seen += count
            if seen >= _SETTLED_ON:
                return

    _settle(model, pieces())


def adapt(model, dataset):
    """Shows examples to those layers of an augmentation that `adapt` to them.

    Takes the first ones of a dataset, up to 10,000 or 256 MB; each layer is
    shown what those before it make of them at rest.
    """
    chains = [model.augmentation, model.second_augmentation]
    chains = [
        chain for chain in map(as_list, chains) if any(map(_adapts, chain))
    ]
    if not chains:
        return
    seen, held, first = 0, 0, []
    for element in fit_data.checked_elements(dataset, kind=model.kind):
        first.append(images_and_sizes(element))
        batch = first[-1][0]
        seen += len(batch)
        held += batch.shape.num_elements() * batch.dtype.size
        if seen >= _ADAPTED_ON or held >= _ADAPTED_BYTES:
            break
    images, sizes = zip(*first, strict=True)
    images = tf.concat(images, axis=0)
    sizes = None if sizes[0] is None else tf.concat(sizes, axis=0)
    for chain in chains:
        views, sizes_left = images, sizes
        for layer in chain:
            if _adapts(layer):
                layer.adapt(np.asarray(views))
            views = call_layer(layer, views, training=False, sizes=sizes_left)
            sizes_left = None  # Views fill their canvas.


def _adapts(layer):
    return callable(getattr(layer, "adapt", None))


def _settle(model, elements):
    encoder = model.encoder if isinstance(model, SimCLRModel) else model
    norms = [
        layer
        for layer in nested_layers(encoder)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    if not norms:
        return
    names = ("trainable", "momentum", "synchronized")
    before = [[getattr(norm, name) for name in names] for norm in norms]
    for norm in norms:
        norm.trainable = True  # Else it would stay at rest.
        norm.synchronized = False  # There are no replicas here.
    prepare, seen = view_of(model), 0
    for element in elements:
        images, sizes = images_and_sizes(element)
        count = images.shape[0]
        for norm in norms:
            norm.momentum = seen / (seen + count)  # Makes it a plain mean.
        encoder(prepare(images, sizes), training=True)
        seen += count
    for norm, values in zip(norms, before, strict=True):
        for name, value in zip(names, values, strict=True):
            setattr(norm, name, value)


def extract(functions, elements):
    """An array of outputs for each function of images, all from one pass.

    And a dictionary of the labels, groups and places that come with them.
    """
    outputs = [[] for _ in functions]
    others = collections.defaultdict(list)
    for element in elements:
        batch, sizes = images_and_sizes(element)
        with failures_in_words():
            for output, function in zip(outputs, functions, strict=True):
                output.append(function(batch, sizes).numpy())
        for name in {"labels", "groups", "places"} & element.keys():
            others[name].append(np.asarray(element[name]))
    return [*map(joined, outputs)], {k: joined(x) for k, x in others.items()}


class Features:
    """Features of examples in memory, by name; made when they are needed.

    `functions` is a dictionary of functions of images and sizes; `examples` one
    of arrays; `progress` as in `extract_features`. `ready` are features that
    need not be made: a dictionary of arrays. `files` are a
    `feature_files.FeatureFiles`, which keep some for another time.
    """

    def __init__(
        self, functions, examples, progress=None, ready=None, files=None
    ):
        self.functions, self.examples = functions, examples
        self._ready, self._files = ready or {}, files
        self._progress = progress
        self._few = {k: array[:FEW_IMAGES] for k, array in examples.items()}

    @property
    def names(self):
        """List of what all features are called."""
        return [*self.functions, *self._ready]

    @functools.cached_property
    def arrays(self):
        """Dictionary of arrays of shape `(N, width)`."""
        made = self._of(self._missing, self.examples, self._progress)
        found = self._kept | made | self._ready
        if self._files:
            self._files.write(found)
        return found

    def make(self, report):
        """Makes `arrays` now, not when they are first needed."""
        report("Making the features of all images.")
        return self.arrays

    @functools.cached_property
    def widths(self):
        """Dictionary of numbers of features, from a few images."""
        arrays = self._of_few | self._ready
        return {name: array.shape[1] for name, array in arrays.items()}

    def seconds(self):
        """How long `arrays` will take, measured on a few images."""
        if not self._missing:
            return 0.0
        times = []
        for _ in range(2):  # The first traces.
            start = time.perf_counter()
            self._of(self._missing, self._few)
            times.append(time.perf_counter() - start)
        share = len(self.examples["images"]) / len(self._few["images"])
        return times[-1] * share

    @functools.cached_property
    def _of_few(self):
        return self._of(self.functions, self._few)

    @functools.cached_property
    def _kept(self):
        return self._files.read(self._of_few) if self._files else {}

    @property
    def _missing(self):
        return {k: x for k, x in self.functions.items() if k not in self._kept}

    def _of(self, functions, examples, progress=None):
        if not functions:
            return {}
        elements = in_batches(examples, progress)
        arrays, _ = extract(functions.values(), elements)
        for name, array in zip(functions, arrays, strict=True):
            finite_rows(f"Features of {name!r}", array)
        return dict(zip(functions, arrays, strict=True))
