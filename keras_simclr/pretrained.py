"""Encoders that exist already: runs, files, Keras's networks and KerasHub's."""

import inspect
import os
import pathlib
import re
import warnings

import keras
import numpy as np
import tensorflow as tf

from keras_simclr import _checks, copies, trials
from keras_simclr._files import NETWORKS
from keras_simclr.keras_files import load_network
from keras_simclr.model import SimCLRModel
from keras_simclr.networks import check_encoder

_WEIGHTS = "imagenet"  # Of Keras's networks.
_SIDE = 224  # Of the images that these were trained on, but for:
_SIDES = {
    **dict.fromkeys(("InceptionResNetV2", "InceptionV3", "Xception"), 299),
    "NASNetLarge": 331,
    **{
        f"EfficientNetB{number}": side
        for number, side in enumerate((224, 240, 260, 300, 380, 456, 528, 600))
    },
    "EfficientNetV2B1": 240,
    "EfficientNetV2B2": 260,
    "EfficientNetV2B3": 300,
    "EfficientNetV2S": 384,
    "EfficientNetV2M": 480,
    "EfficientNetV2L": 480,
}
# How last layers of classifiers are called that return logits.
_TOPS = ("logits", "predictions", "classifier")
# Attributes of layers that put a token for the whole image first.
_CLASS_TOKENS = ("class_token", "cls_token", "class_embedding")


def open_encoder(name, *, input_shape=None, beside=None, is_random=True):
    """Opens an encoder that exists already, by its name.

    Args:
        name: One of these:

            - a run directory of `pretrain` or `import-official`, or a directory
              that `export` wrote;
            - a `.keras` file of an encoder or of a `SimCLRModel`, whose
              encoder is taken;
            - `keras_applications:NAME`, a network of `keras.applications` with
              its ImageNet weights, which Keras keeps below `~/.keras/models`;
            - `keras_hub:PRESET`, an image backbone of KerasHub, which is
              another package; also the directory of a preset.

            What the last two want done to pixels is put in front of them.
        input_shape: Height, width and channels of the images; None: those
            that the encoder takes, or was trained on.
        beside: A model of images, or None. An encoder that takes images of any
            size is made for the size of this one's.
        is_random: Whether layers draw random numbers in training, as dropout
            and stochastic depth do. False: the same ones with rates of 0.

    Returns:
        A functional `keras.Model` from float images in [0, 1], all of that
        shape, to one vector per image. It computes in the dtype policy that is
        set. What `export` puts in front of an encoder, which cuts out the
        centre of images, is left out.

    Raises:
        FileNotFoundError: If there is nothing of that name.
        ImportError: If it needs KerasHub, which is not installed.
        OSError: If weights have to be downloaded and cannot be.
        ValueError: If it is a classifier; takes other channels; cannot be made
            for images of that shape, or so that it draws nothing; or is no
            network from images to vectors.

    Example:

    ```python
    encoder = open_encoder(
        "keras_applications:MobileNetV3Small", input_shape=(64, 64, 3)
    )
    model = simclr.SimCLRModel(encoder)
    ```
    """
    network = _network(name, input_shape)
    encoder = as_encoder(network, str(name), input_shape, beside)
    return encoder if is_random else _without_chance(encoder)


def _network(name, input_shape=None):
    """What a name stands for, as it is; perhaps for images of that shape."""
    kind, _, rest = str(name).partition(":")
    if kind in _KINDS:
        return _KINDS[kind](rest, input_shape)
    return encoder_of(_load(pathlib.Path(name)))


def _without_chance(encoder):
    """The encoder without dropout, stochastic depth and their kind."""
    if _is_random(encoder):
        encoder = copies.copy_for(encoder, is_random=False)
    if _is_random(encoder):
        raise ValueError(
            "Dropout can be turned off where a layer's config has its rate. "
            f"Received: {encoder.name!r}, which still draws random numbers. "
            "Leave out --without_dropout, and train on one device without "
            "micro-batches"
        )
    return encoder


def _is_random(encoder):
    return trials.is_random(
        lambda images: encoder(images, training=True),
        copies.examples_for(encoder),
    )


def check_chance(encoder, *, is_cached):
    """Says what an encoder that draws random numbers in training can do.

    On one device it trains; there is one warning. On replicas, and if
    `is_cached` in micro-batches, it is refused with the cure.
    """
    if not _is_random(encoder):
        return
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if is_cached or replicas > 1:
        raise ValueError(
            "What draws random numbers in training, as dropout and stochastic "
            "depth do, trains on one device without micro-batches. Received: "
            f"{encoder.name!r} "
            + (f"on {replicas} devices" if replicas > 1 else "in micro-batches")
            + ". Turn it off: --without_dropout"
        )
    warnings.warn(
        f"{encoder.name!r} draws random numbers in training (dropout, "
        "stochastic depth): views differ by these, too. --without_dropout "
        "turns it off.",
        stacklevel=3,
    )


def open_model(name):
    """The `SimCLRModel` that a name of `open_encoder` holds, or None."""
    if str(name).partition(":")[0] in _KINDS:
        return None
    model = _load(pathlib.Path(name))
    return model if isinstance(model, SimCLRModel) else None


def open_head(name):
    """The projection head of what a name of `open_encoder` holds.

    Args:
        name: A run directory, or the file of a `SimCLRModel`.

    Returns:
        A copy in the dtype policy that is set.

    Raises:
        ValueError: If there is none.

    Example:

    ```python
    model = simclr.SimCLRModel(open_encoder("runs/a"), open_head("runs/a"))
    ```
    """
    model = open_model(name)
    if model is None:
        raise ValueError(
            "A projection head is kept of a run. Received: "
            f"{str(name)!r}, which has none. Leave out --keep_head"
        )
    return copies.copy_for(model.projection_head)


def own_side(name):
    """Side of the images that an encoder is made for; None if of any size.

    Args:
        name: As in `open_encoder`.

    Raises:
        ValueError: If it is a classifier.
    """
    kind, _, rest = str(name).partition(":")
    if kind == "keras_applications":
        _checks.choice(kind, rest, _applications())
        return None
    network = _network(name)
    check_is_no_classifier(network, str(name))
    sides = {*(network.input_shape or ())[1:3]}
    return sides.pop() if len(sides) == 1 else None


def without_compiling(model):
    """A `SimCLRModel` of the same parts, without optimizer."""
    with model.distribute_strategy.scope():
        return SimCLRModel(
            model.encoder,
            model.projection_head,
            augmentation=model.augmentation,
            micro_batch_size=model.micro_batch_size,
        )


def _load(path):
    """The Keras model in a file, or in a directory that a command wrote."""
    found = [path] if path.is_file() else []
    found += [path / file for file in NETWORKS if (path / file).is_file()]
    if not found:
        raise FileNotFoundError(
            "An encoder must be a run directory, a directory that `export` "
            "wrote, a .keras file, keras_applications:NAME or "
            f"keras_hub:PRESET. Received: {str(path)!r}"
        )
    return load_network(found[0], "An encoder")


def encoder_of(model):
    """The encoder of a `SimCLRModel`, or of an exported network; or itself."""
    if isinstance(model, SimCLRModel):
        return model.encoder
    *front, last = getattr(model, "layers", None) or [None]
    # As `with_evaluation_view` of `export` makes it.
    is_behind_view = (
        isinstance(last, keras.Model)
        and last.name == model.name
        and last.input_shape == model.input_shape
        and {type(x) for x in front}
        <= {keras.layers.InputLayer, keras.layers.Cropping2D}
    )
    return last if is_behind_view else model


def as_encoder(network, name, input_shape=None, beside=None):
    """A network as a functional encoder for images of one shape.

    Args:
        network: A built Keras model.
        name: What it is called in errors.
        input_shape: As in `open_encoder`.
        beside: As in `open_encoder`.

    Returns:
        As `open_encoder`: the network itself if it is such an encoder.

    Raises:
        ValueError: As `open_encoder`.

    Example:

    >>> encoder = simclr.ResNet(10, stem="cifar", input_shape=(8, 8, 3))
    >>> as_encoder(encoder, "mine", (16, 16, 3)).input_shape
    (None, 16, 16, 3)
    """
    check_is_no_classifier(network, name)
    check_encoder(network)
    own = network.input_shape[1:]
    if len(own) != 3:
        raise ValueError(
            "An encoder must take images of shape (height, width, channels). "
            f"Received: {name!r} with inputs of shape {network.input_shape}"
        )
    shape = own if input_shape is None else tuple(input_shape)
    if None in shape and len(theirs := _images_of(beside)) == 3:
        shape = tuple(x or y for x, y in zip(shape, theirs, strict=True))
    if None in shape:
        raise ValueError(
            f"{name!r} takes images of any size: `input_shape` must say which. "
            f"Received: input_shape={input_shape}. Make it for one: "
            f"simclr.pretrained.open_encoder({name!r}, "
            'input_shape=(224, 224, 3)).save("encoder.keras")'
        )
    if own[-1] not in (shape[-1], None):
        raise ValueError(
            f"The encoder must take the images' channels. Received: {name!r} "
            f"for {own[-1]} channels, and images with {shape[-1]}. Take "
            f"--channels={own[-1]}, or another encoder"
        )
    if own != shape or not copies.has_policy(network):
        network = _copy_for(network, name, shape)
    if isinstance(network, keras.Sequential) or not network.inputs:
        images = keras.Input(shape, name="images")
        network = keras.Model(images, network(images), name=network.name)
    return network


def _images_of(model):
    """Shape of the images that a model takes; empty if not known."""
    network = model.encoder if isinstance(model, SimCLRModel) else model
    return (getattr(network, "input_shape", None) or (None,))[1:]


def _copy_for(network, name, shape):
    try:
        return copies.copy_for(network, shape)
    except (ValueError, TypeError) as error:
        if network.input_shape[1:] == shape:
            raise
        _refuse_size(name, shape, error)


def _refuse_size(name, shape, error):
    height, width, _ = shape
    raise ValueError(
        f"The encoder {name!r} can only be made for images of the size that it "
        f"was trained on. Received: images of {height} x {width} pixels. Leave "
        "out the size"
    ) from error


def check_is_no_classifier(network, name):
    """Refuses a network that ends in classes; says which layer to take."""
    top = network
    while isinstance(top, keras.Model) and not isinstance(top, SimCLRModel):
        top = (getattr(top, "layers", None) or [None])[-1]
    kind = _kind_of_top(top)
    if kind is None:
        return
    raise ValueError(
        "An encoder must end in a representation, not in classes. Received: "
        f"{name!r}, whose top is {top.name!r}, {kind} of "
        f"{network.output_shape[-1]:,}"
        + _way_to_encoder(network, "keras.models.load_model(...)")
    )


def _way_to_encoder(network, place):
    """How to take the encoder out of a classifier, in words; or nothing.

    `place` is Python for the classifier.
    """
    layers = [x for x in network.layers if not _is_kind(x, "InputLayer")]
    rest, has_dense = _without(layers, "Softmax", "Activation"), False
    if rest and isinstance(rest[-1], keras.Model):
        top = rest.pop()
        way = _way_to_encoder(top, f"{place}.get_layer({top.name!r})")
        if way:
            return way
        has_dense = any(_is_kind(x, "Dense") for x in copies.nested_layers(top))
    if rest and not has_dense and _is_kind(rest[-1], "Dense"):
        rest.pop()
    rest = _without(rest, "Activation", "Dropout")
    if not rest or len(rest) == len(layers):
        return ""
    last, first = rest[-1], layers[len(rest)]
    if len(rest) == 1 and isinstance(last, keras.Model):
        return (
            f". Take its layer {last.name!r}: "
            f'{place}.get_layer({last.name!r}).save("encoder.keras")'
        )
    if isinstance(first, keras.Model):  # Its `input` is its own.
        return ""
    return (
        f". Take what its layer {last.name!r} returns: network = {place}; "
        "keras.Model(network.inputs[0], "
        f'network.get_layer({first.name!r}).input).save("encoder.keras")'
    )


def _without(layers, *kinds):
    """The layers but for those of these kinds at the end."""
    rest = list(layers)
    while rest and _is_kind(rest[-1], *kinds):
        rest.pop()
    return rest


def _is_kind(layer, *kinds):
    return isinstance(layer, tuple(getattr(keras.layers, x) for x in kinds))


def _kind_of_top(layer):
    activation = getattr(getattr(layer, "activation", None), "__name__", "")
    if isinstance(layer, keras.layers.Softmax):
        return "softmax"
    if activation in ("softmax", "sigmoid"):
        return activation
    is_dense = isinstance(layer, keras.layers.Dense)
    return "logits" if is_dense and layer.name.startswith(_TOPS) else None


def _application(name, input_shape):
    """A network of `keras.applications` for pixels in [0, 1]."""
    _checks.choice("keras_applications", name, _applications())
    shape = input_shape or [_SIDES.get(name, _SIDE)] * 2 + [3]
    if shape[-1] != 3:
        raise ValueError(
            "A network of keras.applications takes images with 3 channels. "
            f"Received: {name!r} for images with {shape[-1]}"
        )
    network = _fetched(getattr(keras.applications, name), shape)
    images = keras.Input(shape, name="images")
    pixels = _prepared(images, *_affine(_home_of(name).preprocess_input))
    return keras.Model(images, network(pixels), name=name.lower())


def _applications():
    return [
        name
        for name, value in vars(keras.applications).items()
        if inspect.isfunction(value) and name[0].isupper()
    ]


def _home_of(name):
    """The module that has the preprocessing of a network."""
    modules = [x for x in vars(keras.applications).values() if _is_home(x)]
    for module in modules:
        if hasattr(module, name):
            return module
    near = [x for x in modules if name.lower().startswith(_plain_name(x))]
    return max(near, key=lambda module: len(_plain_name(module)))


def _is_home(value):
    return inspect.ismodule(value) and hasattr(value, "preprocess_input")


def _plain_name(module):
    return module.__name__.rpartition(".")[2].replace("_", "")


def _fetched(make, shape):
    """A network with its weights, from Keras's cache or the network."""
    try:
        with warnings.catch_warnings():
            # Of sizes that have no weights of their own.
            warnings.filterwarnings("ignore", "`input_shape` is undefined")
            return make(
                include_top=False,
                weights=_WEIGHTS,
                input_shape=tuple(shape),
                pooling="avg",
            )
    except ValueError as error:
        raise ValueError(
            f"{make.__name__} must be one that Keras can make. Received: "
            f"images of shape {tuple(shape)} ({error})"
        ) from error
    except Exception as error:  # Of no other kind, if there is no network.
        found = re.match(
            r"URL fetch failure on (\S+): (?:None -- )?(.*)", str(error)
        )
        if not found:
            raise
        home = os.environ.get("KERAS_HOME", pathlib.Path("~/.keras"))
        place = pathlib.Path(home).expanduser() / "models"
        raise ConnectionError(
            f"The weights of {make.__name__} could not be downloaded "
            f"({found[2]}). Fetch {found[1]} on a machine with a network, and "
            f"put it into {str(place)!r}"
        ) from error


def _affine(preprocess):
    """What Keras does to pixels from 0 to 255: order, scale and offset.

    Of each channel that comes out: which one it was, times what, plus what.
    """
    pixels = np.zeros((1, 1, 4, 3), "float32")
    pixels[0, 0, 1:] = 255 * np.eye(3)
    found = np.asarray(preprocess(pixels), "float64")[0, 0]
    offset, slopes = found[0], (found[1:] - found[0]) / 255
    order = slopes.argmax(axis=0).tolist()
    return order, slopes.max(axis=0).tolist(), offset.tolist()


def _prepared(images, order, scale, offset):
    """Pixels in [0, 1] as a network wants them that was made for 0 to 255."""
    if order is not None and order != sorted(order):
        images = keras.ops.take(images, order, axis=-1)
    scale = (255 * np.asarray(1.0 if scale is None else scale)).tolist()
    offset = np.asarray(0.0 if offset is None else offset).tolist()
    return keras.layers.Rescaling(scale, offset=offset)(images)


def _preset(name, input_shape):
    """An image backbone of KerasHub, from pixels in [0, 1] to a vector."""
    hub = _keras_hub(name)
    with _readable(name, input_shape):
        converter = hub.layers.ImageConverter.from_preset(name)
        kwargs = {"image_shape": tuple(input_shape)} if input_shape else {}
        backbone = hub.models.Backbone.from_preset(name, **kwargs)
    # Those that see and read have one for images.
    network = getattr(backbone, "vision_encoder", backbone)
    own = network.input
    names = list(own) if isinstance(own, dict) else [None]
    tensor = own[names[0]] if isinstance(own, dict) else own
    if len(names) > 1 or isinstance(tensor, list) or len(tensor.shape) != 4:
        raise ValueError(
            "A backbone of KerasHub must take images alone. Received: "
            f"{name!r}, which takes {', '.join(map(str, names))}"
        )
    shape = tuple(input_shape or tensor.shape[1:])
    if None in shape[:2]:
        shape = (*(converter.image_size or (_SIDE, _SIDE)), shape[-1])
    images = keras.Input(shape, name="images")
    pixels = _prepared(images, None, converter.scale, converter.offset)
    outputs = network(pixels if names == [None] else {names[0]: pixels})
    vectors = _pooled(outputs, network)
    return keras.Model(images, vectors, name=backbone.name)


def _keras_hub(name):
    try:
        import keras_hub
    except ImportError as error:
        raise ImportError(
            f"keras_hub:{name} needs the package keras-hub: pip install "
            f"'keras_simclr[keras_hub]'. Received: {error}"
        ) from error
    return keras_hub


class _readable:
    """Context of KerasHub, whose errors become one sentence."""

    def __init__(self, name, input_shape):
        self._name, self._shape = name, input_shape

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if error is None or not isinstance(error, Exception):
            return
        reason = " ".join(str(error).strip().split("\n\n")[0].split())
        if self._shape and "could not be loaded" in reason:
            _refuse_size(f"keras_hub:{self._name}", self._shape, error)
        cure = "Check its name, or give the directory of a preset"
        if "image_converter" in reason:
            cure = "Save its keras_hub.layers.ImageConverter there, too"
        raise ValueError(
            "An encoder of KerasHub must be the preset of an image backbone "
            f"that can be loaded. Received: {self._name!r} ({reason}). {cure}"
        ) from error


def _pooled(outputs, network):
    """One vector per image, of tokens, of a feature map or of a pyramid."""
    if isinstance(outputs, dict):
        outputs = outputs[max(outputs)]  # P5 of P2 to P5, the last.
    if len(outputs.shape) == 4:
        return keras.layers.GlobalAveragePooling2D()(outputs)
    if len(outputs.shape) == 3:
        layers = copies.nested_layers(network)
        names = {name for layer in layers for name in vars(layer)}
        if names.intersection(_CLASS_TOKENS):
            return outputs[:, 0]
        return keras.layers.GlobalAveragePooling1D()(outputs)
    return outputs


_KINDS = {"keras_applications": _application, "keras_hub": _preset}
