"""Copies of networks: plain, untrained, and those that a file brings back."""

import hashlib
import random
import warnings

import keras
import tensorflow as tf

from keras_simclr.networks import FastConv2D, FusedBatchNormalization


def plain_copy(encoder):
    """Copies an encoder for use at rest and for export.

    Args:
        encoder: A `keras.Model` that can be serialized.

    Returns:
        A model with the same weights that computes in float32 and holds
        Keras's own layers where `encoder` has ours.

    Example:

    >>> encoder = simclr.ResNet(10, stem="cifar", input_shape=(8, 8, 3))
    >>> plain = plain_copy(encoder)
    >>> any(isinstance(x, FusedBatchNormalization) for x in plain.layers)
    False
    """
    config = _plain_config(keras.saving.serialize_keras_object(encoder))
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        copy = keras.saving.deserialize_keras_object(config)
    finally:
        keras.config.set_dtype_policy(policy)
    copy_weights(encoder, copy)
    return copy


def copy_weights(source, target):
    """Gives a network the weights of another one of the same layers."""
    for theirs, ours in zip(source.variables, target.variables, strict=True):
        ours.assign(theirs)


def _plain_config(config):
    if isinstance(config, (list, tuple)):
        return [_plain_config(part) for part in config]
    if not isinstance(config, dict):
        return config
    config = {name: _plain_config(part) for name, part in config.items()}
    if config.get("class_name") == "DTypePolicy":
        config["config"] = {"name": "float32"}
    plain_class = _PLAIN_CLASSES.get(config.get("registered_name"))
    if plain_class is not None:
        config.update(
            module="keras.layers",
            class_name=plain_class.__name__,
            registered_name=None,
        )
    return config


_PLAIN_CLASSES = {
    keras.saving.get_registered_name(layer): layer.__base__
    for layer in (FastConv2D, FusedBatchNormalization)
}


def untrained_copy(model, seed):
    """The model with its weights drawn anew; no global state is changed."""
    state = random.getstate()
    random.seed(seed)  # Keras takes the seeds of initializers from here.
    try:
        return type(model).from_config(model.get_config())
    finally:
        random.setstate(state)


def check_can_be_saved(model):
    """Refuses to save what no file brings back; warns of what needs help."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of lambdas; refused below.
        config = keras.saving.serialize_keras_object(model)
    strangers = set()
    parts = {**config["config"], **config.get("compile_config", {})}
    parts["model"] = {"registered_name": config["registered_name"]}
    for part, value in parts.items():
        names = set(_unregistered(value))
        if "<lambda>" in names:
            raise ValueError(
                "A model to be saved must hold no lambda: Keras would have to "
                "run code from the file to load it. Make it a function with a "
                f"name, and decorate that with {_REGISTER}. "
                f"Received: a lambda in `{part}`"
            )
        strangers |= names
    if strangers:
        names = sorted(strangers)
        objects = ", ".join(f"{name!r}: {name}" for name in names)
        warnings.warn(
            f"Keras does not know {', '.join(names)}: the file will load only "
            "with keras.models.load_model(path, custom_objects={"
            f"{objects}}}). Decorate each with {_REGISTER} before you save.",
            stacklevel=3,
        )


_REGISTER = "@keras.saving.register_keras_serializable(package='mine')"


def _unregistered(config):
    """Names in a config that mean nothing to Keras."""
    if isinstance(config, (list, tuple)):
        for value in config:
            yield from _unregistered(value)
    if not isinstance(config, dict):
        return
    name = config.get("registered_name")
    # Of an activation, Keras keeps nothing but the code.
    is_code = set(config) == {"value"} and not isinstance(config["value"], str)
    if config.get("class_name") == "__lambda__" or is_code:
        yield "<lambda>"
    elif name == "function":
        try:
            keras.saving.deserialize_keras_object(config)
        except TypeError:
            yield config["config"]
    elif name and not (config.get("module") or "").startswith("keras."):
        if keras.saving.get_registered_object(name) is None:
            yield name
    for value in config.values():
        yield from _unregistered(value)


def check_finite(network):
    """Refuses a network with a weight that is NaN or infinite."""
    for weight in network.weights:
        value = tf.convert_to_tensor(weight.value)
        if value.dtype.is_floating:
            if not tf.reduce_all(tf.math.is_finite(value)):
                is_nan = tf.reduce_any(tf.math.is_nan(value))
                raise ValueError(
                    "Weights must be finite. Received: "
                    f"{'NaN' if is_nan else 'infinity'} in `{weight.path}` of "
                    f"{network.name!r}, whose training has diverged. Train "
                    "anew, with a lower learning rate"
                )


def nested_layers(layer):
    """A layer and all layers inside it, at any depth.

    Args:
        layer: A Keras layer or model.

    Returns:
        List of layers, each once.

    Example:

    >>> inner = keras.Sequential([keras.layers.Dense(2), keras.layers.ReLU()])
    >>> [type(x).__name__ for x in nested_layers(keras.Sequential([inner]))]
    ['Sequential', 'Sequential', 'Dense', 'ReLU']
    """
    found = {}

    def visit(value):
        if isinstance(value, keras.layers.Layer):
            if id(value) not in found:
                found[id(value)] = value
                visit(list(vars(value).values()))
        elif isinstance(value, dict):
            visit(list(value.values()))
        elif isinstance(value, (list, tuple, set)):
            for each in value:
                visit(each)

    visit(layer)
    return list(found.values())


def weights_digest(model):
    """Names the weights of a model, so that a result can say what it is of.

    Args:
        model: A `keras.Model` that is built.

    Returns:
        String of 64 hexadecimal digits, the SHA-256 of all weights (batch
        norm's averages and an adapted layer's statistics among them, an
        optimizer's state not). It is the same after saving and loading, in
        other processes, and under other names of the layers.

    Example:

    >>> dense = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> before = weights_digest(dense)
    >>> dense.set_weights([x + 1.0 for x in dense.get_weights()])
    >>> len(before), weights_digest(dense) == before
    (64, False)
    """
    digest = hashlib.sha256()
    for weight in model.weights:
        array = keras.ops.convert_to_numpy(weight)
        digest.update(f"{weight.name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
