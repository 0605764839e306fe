"""Copies of networks: plain, untrained, and those that a file brings back."""

import contextlib
import hashlib
import random
import tempfile
import types
import warnings

import keras
import tensorflow as tf

from keras_simclr import trials
from keras_simclr.networks import FastConv2D, FusedBatchNormalization


def plain_copy(network):
    """Copies a network for use at rest and for export.

    Args:
        network: A built Keras layer or model that can be serialized.

    Returns:
        One with the same weights and other state (statistics, vocabularies)
        that computes in float32 and holds Keras's own layers where `network`
        has ours.

    Raises:
        ValueError: If, tried on a few examples, it returns other values.

    Example:

    >>> encoder = simclr.ResNet(10, stem="cifar", input_shape=(8, 8, 3))
    >>> plain = plain_copy(encoder)
    >>> any(isinstance(x, FusedBatchNormalization) for x in plain.layers)
    False
    """
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        copy = _rebuilt(
            network,
            lambda config: _plain_config(_with_policy(config, "float32")),
        )
    finally:
        keras.config.set_dtype_policy(policy)
    for theirs, ours in _pairs(network, copy):
        _copy_own_state(theirs, ours)
    check_copy(network, copy)
    return copy


def has_policy(network):
    """Whether all layers compute in the dtype policy that is set.

    Those that compute in no floats do anyway.
    """
    policy = keras.config.dtype_policy().name
    names = {layer.dtype_policy.name for layer in nested_layers(network)}
    return all(name == policy or "float" not in name for name in names)


def copy_for(network, input_shape=None, *, is_random=True):
    """Copies a network for images of another size, in the policy that is set.

    Args:
        network: A built functional or Sequential model of images; without
            `input_shape`, any built layer.
        input_shape: Height, width and channels; None: of the same.
        is_random: Whether what its layers do at random in training they do in
            the copy: dropout, noise, stochastic depth.

    Returns:
        One of the same layers, weights and other state (statistics,
        vocabularies).

    Raises:
        ValueError: If layers or weights depend on the size of the images; or
            if, tried on a few examples, a copy of the same size returns other
            values.

    Example:

    >>> encoder = simclr.ResNet(10, stem="cifar", input_shape=(8, 8, 3))
    >>> copy_for(encoder, (9, 9, 3)).input_shape
    (None, 9, 9, 3)
    """
    policy = keras.config.dtype_policy().name
    quiet = set() if is_random else _random_names(network)

    def change(config):
        config = _without_chance(_with_policy(config, policy), quiet)
        if input_shape is None:
            return config
        after = (None, *input_shape)
        return _with_shape(config, network.input_shape, after)

    copy = _rebuilt(network, change)
    pairs = _pairs(network, copy)
    if input_shape is not None and _sizes(network) != _sizes(copy):
        raise ValueError(
            f"The weights of {network.name!r} must not depend on the size of "
            f"images. Received: input_shape={tuple(input_shape)}"
        )
    for theirs, ours in pairs:
        _copy_own_state(theirs, ours)
    if input_shape is None or network.input_shape == copy.input_shape:
        check_copy(network, copy)
    return copy


def _sizes(network):
    weights = [tuple(weight.shape) for weight in network.weights]
    return weights, network.output_shape


def _with_changed(config, change):
    """A config of which each dictionary is changed, those inside it first."""
    if isinstance(config, (list, tuple)):
        return [_with_changed(part, change) for part in config]
    if not isinstance(config, dict):
        return config
    return change({k: _with_changed(x, change) for k, x in config.items()})


def _with_policy(config, name):
    """A config whose layers compute in that policy, but for whole numbers."""

    def change(part):
        if part.get("class_name") == "DTypePolicy":
            if "float" in part["config"]["name"]:  # Not int64, of a lookup.
                part["config"] = {"name": name}
        return part

    return _with_changed(config, change)


_SHAPES = ("batch_shape", "input_shape", "build_input_shape", "shape")


def _with_shape(config, before, after):
    """A config in which inputs of one shape have another."""

    def change(part):
        same = [x for x in _SHAPES if part.get(x) == list(before)]
        return part | {key: list(after) for key in same}

    return _with_changed(config, change)


def _random_names(network):
    """Names of layers that draw random numbers, or of which a part does."""
    return {
        layer.name
        for layer in nested_layers(network)
        if any(map(trials.generators_of, nested_layers(layer)))
    }


_CHANCES = ("rate", "drop", "stddev")  # In names of what makes layers random.


def _without_chance(config, names):
    """A config whose layers of these names do nothing at random."""

    def change(part):
        if part.get("name") not in names:
            return part
        return {
            key: 0.0
            if isinstance(value, float) and any(x in key for x in _CHANCES)
            else value
            for key, value in part.items()
        }

    return _with_changed(config, change)


def _rebuilt(network, change=lambda config: config):
    """A network of the same layers, not compiled, with weights drawn anew."""
    with _named_lambdas(network):
        try:
            config = _config(network)
        except NotImplementedError as error:
            raise ValueError(
                f"A copy of {network.name!r} is made from the configs of its "
                f"layers. Received: {_first_words(error)}"
            ) from None
        config.pop("compile_config", None)
        return keras.saving.deserialize_keras_object(
            change(config), custom_objects=own_objects(network)
        )


@contextlib.contextmanager
def _named_lambdas(network):
    """Gives names to the lambdas of layers, by which a copy finds them."""
    lambdas = {
        id(value): value
        for layer in nested_layers(network)
        for value in vars(layer).values()
        if isinstance(value, types.FunctionType)
        and value.__name__ == "<lambda>"
    }
    for place, function in enumerate(lambdas.values()):
        function.__name__ = f"lambda_{place}"
    try:
        yield
    finally:
        for function in lambdas.values():
            function.__name__ = "<lambda>"


def _first_words(error):
    """The first paragraph of a message of Keras, in one line."""
    return " ".join(str(error).strip().split("\n\n")[0].split())


def own_objects(network):
    """Classes of layers, and their functions, that are not of Keras; by name.

    For `custom_objects`: what is at hand need not be registered.
    """
    layers = nested_layers(network)
    found = {keras.saving.get_registered_name(type(x)): type(x) for x in layers}
    for layer in layers:
        for value in vars(layer).values():
            if isinstance(value, types.FunctionType):
                found[value.__name__] = value
    return {
        name: value
        for name, value in found.items()
        if not value.__module__.startswith("keras.")
    }


def _config(network):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras's own, of lambdas.
        return keras.saving.serialize_keras_object(network)


def copy_weights(source, target):
    """Gives a network the weights of another one of the same layers.

    Layer by layer, as if one had been saved and the other loaded: what
    `save_own_variables` saves, and the states of generators of random numbers.
    What graphs of the target hold besides (vocabularies) stays as it is.
    """
    for theirs, ours in _pairs(source, target):
        _copy_own_weights(theirs, ours)


def _copy_own_weights(source, target):
    if isinstance(source, keras.random.SeedGenerator):
        target.state.assign(source.state)
        return
    state = {}
    source.save_own_variables(state)
    for name, value in state.items():
        if isinstance(value, keras.Variable):
            state[name] = keras.ops.convert_to_numpy(value)
    target.load_own_variables(state)


class KeepsGenerators(keras.Model):
    """A model whose files keep where its generators of random numbers are.

    Keras's do not: what is loaded would begin anew with its draws.
    """

    def save_own_variables(self, store):
        super().save_own_variables(store)
        for name, generator in self._generators().items():
            store[name] = keras.ops.convert_to_numpy(generator.state)

    def load_own_variables(self, store):
        kept = {name: store[name] for name in store.keys()}
        for name, generator in self._generators().items():
            if name in kept:  # Version 0.1 did not keep them.
                generator.state.assign(kept.pop(name))
        super().load_own_variables(kept)

    def _generators(self):
        found = {
            id(generator): generator
            for layer in nested_layers(self)
            for generator in trials.generators_of(layer)
        }
        return {f"seed_{place}": x for place, x in enumerate(found.values())}


def _copy_own_state(source, target):
    """Weights and, as vocabularies are, assets."""
    _copy_own_weights(source, target)
    if hasattr(source, "save_assets"):
        with tempfile.TemporaryDirectory() as directory:
            source.save_assets(directory)
            target.load_assets(directory)


def _pairs(source, target):
    """Layers and generators of one network, with those of another."""
    found, seen = [], set()

    def visit(theirs, ours):
        if isinstance(theirs, _STATEFUL) and isinstance(ours, _STATEFUL):
            if id(theirs) not in seen:
                seen.add(id(theirs))
                found.append((theirs, ours))
                visit(vars(theirs), vars(ours))
        elif isinstance(theirs, dict) and isinstance(ours, dict):
            for name in theirs:
                visit(theirs[name], ours.get(name))
        elif isinstance(theirs, (list, tuple)):
            if isinstance(ours, (list, tuple)) and len(theirs) == len(ours):
                list(map(visit, theirs, _in_order_of(theirs, ours)))

    visit(source, target)
    return found


_STATEFUL = (keras.layers.Layer, keras.random.SeedGenerator)


def _in_order_of(theirs, ours):
    """Layers in the order of others of the same names, if that is known."""
    places = {getattr(x, "name", None): x for x in ours}
    names = [getattr(x, "name", None) for x in theirs]
    if None in places or len(places) < len(ours) or {*names} != {*places}:
        return ours
    return [places[name] for name in names]


def check_copy(network, copy, inputs=None):
    """Refuses a copy that does not return what a network returns at rest.

    Both are tried on a few examples, in their own precision.

    Args:
        network: A built Keras layer or model.
        copy: The same.
        inputs: Batch to try instead, or None.

    Raises:
        ValueError: If they differ, or `network` is random at rest.

    Example:

    >>> dense = keras.layers.Dense(2)
    >>> dense.build((None, 3))
    >>> check_copy(dense, dense)
    """
    if inputs is None:
        inputs = examples_for(network)
        if inputs is None:
            return
        inputs = inputs[:2]  # Others are the same.
    try:
        with keras.StatelessScope():
            expected = network(inputs, training=False)
    except trials.REFUSALS:
        return  # These tell nothing.
    with keras.StatelessScope():
        found = copy(inputs, training=False)
    dtypes = {layer.compute_dtype for layer in nested_layers(network)}
    if not trials.differ(found, expected, dtypes=dtypes):
        return
    _check_at_rest(network, tf.concat([inputs, inputs], axis=0))
    raise ValueError(
        f"A copy of {network.name!r} must return what it returns. Received: "
        "other outputs. A layer holds what Keras does not save with it: make "
        "it a weight (`add_weight`), an entry of `get_config`, or override "
        "`save_own_variables` and `load_own_variables`."
    )


def _check_at_rest(network, inputs):
    if inputs is not None and trials.is_random(
        lambda batch: network(batch, training=False), inputs, at_rest=True
    ):
        raise ValueError(
            f"{network.name!r} must draw nothing at rest (training=False). "
            "Received: other outputs for equal inputs. Let its layers draw "
            "random numbers only if `training` is true."
        )


def examples_for(network):
    """`trials.examples` of what a layer or model takes; None if not known."""
    shape = getattr(network, "input_shape", None)
    shape = shape or (network.get_build_config() or {}).get("input_shape")
    if shape is None or isinstance(shape[-1], (tuple, list, dict)):
        return None
    inputs = getattr(network, "inputs", None)
    dtype = inputs[0].dtype if inputs else "float32"
    return trials.examples(shape[1:], dtype)


def _plain_config(config):
    def change(part):
        plain_class = _PLAIN_CLASSES.get(part.get("registered_name"))
        if plain_class is not None:
            part.update(
                module="keras.layers",
                class_name=plain_class.__name__,
                registered_name=None,
            )
        return part

    return _with_changed(config, change)


_PLAIN_CLASSES = {
    keras.saving.get_registered_name(layer): layer.__base__
    for layer in (FastConv2D, FusedBatchNormalization)
}


def untrained_copy(model, seed):
    """The model with its weights drawn anew; no global state is changed.

    Layers that training leaves alone, such as `Normalization`, keep theirs.
    """
    state = random.getstate()
    random.seed(seed)  # Keras takes the seeds of initializers from here.
    try:
        copy = _rebuilt(model)
    finally:
        random.setstate(state)
    for theirs, ours in _pairs(model, copy):
        if _is_never_trained(ours):
            _copy_own_state(theirs, ours)
    return copy


def _is_never_trained(part):
    """Whether all state of a layer comes from elsewhere, as from `adapt`."""
    if isinstance(
        part, (keras.random.SeedGenerator, keras.layers.BatchNormalization)
    ):
        return False
    if len(nested_layers(part)) > 1:
        return False
    trainable = part.trainable
    part.trainable = True  # Also of a frozen layer.
    is_never = not part.trainable_variables
    part.trainable = trainable
    return is_never


def check_can_be_saved(model, *, with_compile=True):
    """Refuses to save what no file brings back; warns of what needs help.

    `with_compile`: also loss and optimizer, which can still be changed after
    training.
    """
    config = _config(model)
    strangers = set()
    parts = dict(config["config"])
    if with_compile:
        parts.update(config.get("compile_config", {}))
    parts["model"] = {k: config.get(k) for k in ("registered_name", "module")}
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


def check_for_later(model):
    """Says before training what would be refused after it.

    Args:
        model: A `SimCLRModel`.

    Raises:
        ValueError: If encoder or projection head are random at rest.
    """
    for network in (model.encoder, model.projection_head):
        _check_at_rest(network, examples_for(network))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of what can be helped later.
            check_can_be_saved(model, with_compile=False)
    except Exception as error:  # What `get_config` of users' layers raises.
        warnings.warn(
            f"This model can be trained, but not saved: {_first_words(error)}",
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


def unfreeze(network):
    """Has a layer, and all layers inside it, trained."""
    # Of a `Sequential` from a config, Keras 3.15 leaves the layers frozen.
    for layer in nested_layers(network):
        layer.trainable = True


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
