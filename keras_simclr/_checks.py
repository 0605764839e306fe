"""What several modules share: argument checks, and one look at the machine."""

import difflib
import math
import numbers
import warnings

import keras
import tensorflow as tf


def only_cpus():
    """Whether TensorFlow has neither a GPU nor a TPU."""
    devices = tf.config.list_logical_devices()
    return all(device.device_type == "CPU" for device in devices)


def real_number(name, value, *, low=-math.inf, high=math.inf, rule):
    """Returns `value` if it is a number in [low, high]; raises if not."""
    if (
        isinstance(value, bool)
        or not isinstance(value, numbers.Real)
        or not math.isfinite(value)
        or not low <= value <= high
    ):
        raise ValueError(f"`{name}` must be {rule}. Received: {name}={value!r}")
    return value


def positive_number(name, value):
    """Returns `value` if it is a finite number above 0; raises if not."""
    smallest = math.ulp(0.0)
    return real_number(name, value, low=smallest, rule="a positive number")


def probability(name, value):
    """Returns `value` if it lies in [0, 1]; raises if not."""
    rule = "a probability between 0 and 1"
    return real_number(name, value, low=0, high=1, rule=rule)


def positive_range(name, value, *, high=math.inf):
    """Returns `value` as a tuple `0 < low <= high`; raises if it is none."""
    try:
        first, last = value
        if 0 < first <= last <= high and math.isfinite(last):
            return (float(first), float(last))
    except (TypeError, ValueError):
        pass
    limit = "" if high == math.inf else f" <= {high}"
    raise ValueError(
        f"`{name}` must be a pair (low, high) with 0 < low <= high{limit}. "
        f"Received: {name}={value!r}"
    )


def integer(name, value, *, minimum):
    """Returns `value` if it is an integer of at least `minimum`; or raises."""
    if (
        isinstance(value, bool)
        or not isinstance(value, numbers.Integral)
        or value < minimum
    ):
        raise ValueError(
            f"`{name}` must be an integer of at least {minimum}. "
            f"Received: {name}={value!r}"
        )
    return int(value)


def choice(name, value, choices):
    """Returns `value` if it is one of `choices`; or raises and lists them."""
    for item in choices:
        if type(value) is type(item) and value == item:
            return value
    near = []
    if isinstance(value, str):
        near = difflib.get_close_matches(value, choices, n=1)
    hint = f". Did you mean {near[0]!r}?" if near else ""
    listing = ", ".join(repr(item) for item in sorted(choices))
    raise ValueError(
        f"`{name}` must be one of {listing}. Received: {name}={value!r}{hint}"
    )


def can_be_loaded(model):
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
