"""LARS, and the learning rates that go with large batches."""

import re
import warnings

import keras
import numpy as np
import tensorflow as tf

from keras_simclr import _checks


@keras.saving.register_keras_serializable(package="keras_simclr")
class LARS(keras.optimizers.Optimizer):
    """Layer-wise adaptive rate scaling around another optimizer.

    Every variable's gradient is given a length of its own before the inner
    optimizer sees it:

        gradient += weight_decay * variable
        gradient *= trust_coefficient * norm(variable) / norm(gradient)
        inner optimizer's step(gradient)

    The ratio is 1 where one of the norms is 0. Variables of rank 0 or 1
    (biases, batch norm) and those matched by `exclude` go to the inner
    optimizer as they are. Around `SGD(rate, momentum=0.9)` this is the
    official LARS with classic momentum.

    `learning_rate`, `iterations` and `variables` are the inner optimizer's.

    Args:
        optimizer: A Keras optimizer whose step is linear in the gradient:
            `keras.optimizers.SGD`, or one of your own.
        weight_decay: Number of at least 0, added to the gradient.
        trust_coefficient: Positive number: the length of a step, relative to
            the variable's, at a learning rate of 1 and without momentum. The
            official 0.001 is for 100,000 steps; bare `compile()` and
            `keras-simclr pretrain` take 0.02, for a few thousand.
        exclude: Regular expressions, searched in `variable.path`, for further
            variables without weight decay and trust ratio.
        warmup_steps: Steps in which the rate rises from 0 to the inner
            optimizer's. That can be a number, which callbacks may change.
        name: Name of the optimizer.

    Raises:
        TypeError: If `optimizer` is not a Keras optimizer.
        ValueError: If an argument is out of range, or the inner optimizer
            decays, clips, averages, scales or accumulates (LARS would skip
            that silently), or ignores the gradient's length.

    Example:

    >>> inner = keras.optimizers.SGD(0.3, momentum=0.9)
    >>> optimizer = LARS(inner, weight_decay=1e-6)
    >>> kernel = keras.Variable([[3.0, 4.0]])
    >>> optimizer.apply([tf.constant([[0.0, 2.0]])], [kernel])
    >>> kernel.numpy().round(4)
    array([[3.    , 3.9985]], dtype=float32)

    References:
        - You et al. 2017, arXiv:1708.03888, Algorithm 1.
        - google-research/simclr@383d414, tf2/lars_optimizer.py:83-157.

    Deviation: the official code excludes variables whose name contains
        "batch_normalization", "bias" or "head_supervised". The first two are
        the rank rule here; the last is an `exclude` pattern.
    """

    def __init__(
        self,
        optimizer,
        *,
        weight_decay=1e-6,
        trust_coefficient=0.001,
        exclude=(),
        warmup_steps=0,
        name="lars",
    ):
        _check_inner_optimizer(optimizer)
        # The base class would decay outside the trust ratio, and would count
        # and schedule for itself: it is given neither.
        super().__init__(learning_rate=0.0, name=name)
        self.optimizer = optimizer
        self.coupled_weight_decay = _checks.real_number(
            "weight_decay", weight_decay, low=0, rule="a number of at least 0"
        )
        self.trust_coefficient = _checks.positive_number(
            "trust_coefficient", trust_coefficient
        )
        self.exclude = (
            (exclude,) if isinstance(exclude, str) else tuple(exclude)
        )
        self.warmup_steps = _checks.integer(
            "warmup_steps", warmup_steps, minimum=0
        )

    def build(self, variables):
        super().build(variables)
        self.optimizer.build(variables)
        # `update_step` receives variables that have no path.
        self._is_adapted = [
            len(variable.shape) > 1
            and not any(re.search(p, variable.path) for p in self.exclude)
            for variable in variables
        ]

    def apply(self, grads, trainable_variables=None):
        super().apply(grads, trainable_variables)
        self.optimizer.iterations.assign_add(1)

    def update_step(self, gradient, variable, learning_rate):
        if self.warmup_steps:
            learning_rate = tf.convert_to_tensor(learning_rate)
            step = tf.cast(self.iterations, learning_rate.dtype)
            left = 1.0 - step / self.warmup_steps
            learning_rate *= 1.0 - tf.maximum(left, 0.0)
        if self._is_adapted[self._get_variable_index(variable)]:
            dtype = gradient.dtype
            decay = tf.cast(self.coupled_weight_decay, dtype)
            gradient += decay * tf.cast(variable, dtype)
            values, scale = _with_safe_squares(variable)
            length = _norm(values) / scale
            values, _ = _with_safe_squares(gradient)
            ratio = tf.math.divide_no_nan(length, _norm(values))
            adapted = values * (self.trust_coefficient * ratio)
            gradient = tf.where(ratio > 0.0, tf.cast(adapted, dtype), gradient)
        self.optimizer.update_step(gradient, variable, learning_rate)

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        """Refused: the exclusions of LARS are the argument `exclude`."""
        raise ValueError(
            "`LARS` does not support `exclude_from_weight_decay`, which is not "
            "saved with the optimizer. Name the variables when you make it: "
            "LARS(optimizer, exclude=[pattern, ...])"
        )

    @property
    def variables(self):
        return self.optimizer.variables

    @property
    def iterations(self):
        return self.optimizer.iterations

    @property
    def learning_rate(self):
        return self.optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate):
        self.optimizer.learning_rate = learning_rate

    def save_own_variables(self, store):
        """Stores what `exclude` matched: variables are renamed by loading.

        The inner optimizer stores its own variables.
        """
        if self.built:
            store["is_adapted"] = np.array(self._is_adapted, "uint8")

    def load_own_variables(self, store):
        """Loads what `save_own_variables` stored, if it is there."""
        if "is_adapted" in store:
            self._is_adapted = [bool(x) for x in store["is_adapted"]]

    def get_config(self):
        return {
            "optimizer": keras.saving.serialize_keras_object(self.optimizer),
            "weight_decay": self.coupled_weight_decay,
            "trust_coefficient": self.trust_coefficient,
            "exclude": self.exclude,
            "warmup_steps": self.warmup_steps,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        optimizer = keras.saving.deserialize_keras_object(
            config["optimizer"], custom_objects=custom_objects
        )
        return cls(**{**config, "optimizer": optimizer})


def _with_safe_squares(values):
    """Values times a power of two whose squares can be summed, and that."""
    values = tf.convert_to_tensor(values)
    if values.dtype in (tf.float16, tf.bfloat16):
        values = tf.cast(values, tf.float32)
    largest = tf.reduce_max(tf.abs(values))
    scale = tf.where(largest > 2.0**48, 2.0**-96, 1.0)
    scale = tf.where(largest < 2.0**-48, 2.0**96, scale)
    scale = tf.cast(scale, values.dtype)
    return values * scale, scale


def _norm(values):
    # One pass over memory, where `tf.norm` writes the squares first.
    return tf.sqrt(2.0 * tf.nn.l2_loss(values))


def _check_inner_optimizer(optimizer):
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            "`optimizer` must be a Keras optimizer, for example "
            "keras.optimizers.SGD(0.3, momentum=0.9). "
            f"Received: optimizer={optimizer!r}"
        )
    kind = type(optimizer)
    is_builtin = kind.__module__.split(".")[0] == "keras"
    if is_builtin and not isinstance(optimizer, keras.optimizers.SGD):
        raise ValueError(
            "`optimizer` must take steps that are linear in the gradient, such "
            "as those of keras.optimizers.SGD: elsewhere the trust ratio has "
            f"no effect. Received: optimizer={kind.__name__}"
        )
    for option in (
        "weight_decay",
        "clipnorm",
        "clipvalue",
        "global_clipnorm",
        "use_ema",
        "loss_scale_factor",
        "gradient_accumulation_steps",
    ):
        value = getattr(optimizer, option, None)
        if value:
            raise ValueError(
                f"`optimizer` must not use `{option}`, which LARS would skip "
                f"silently. Received: {option}={value!r}"
            )


def scaled_learning_rate(learning_rate, batch_size, *, rule="linear"):
    """Learning rate for a batch size.

    Args:
        learning_rate: Positive number: the rate at a batch of 256 images
            (`"linear"`) or of one image (`"sqrt"`).
        batch_size: Images in the global batch (not views).
        rule: `"linear"`: `learning_rate * batch_size / 256`. `"sqrt"`:
            `learning_rate * sqrt(batch_size)`, better for small batches.

    Returns:
        Float.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> scaled_learning_rate(0.3, 4096)
    4.8
    >>> round(scaled_learning_rate(0.075, 4096, rule="sqrt"), 6)
    4.8

    References:
        - Chen et al. 2020, arXiv:2002.05709, section 2.2 and appendix B.1.
        - google-research/simclr@383d414, tf2/model.py:87-94.
    """
    _checks.positive_number("learning_rate", learning_rate)
    _checks.integer("batch_size", batch_size, minimum=1)
    if _checks.choice("rule", rule, ("linear", "sqrt")) == "linear":
        return learning_rate * batch_size / 256
    return learning_rate * batch_size**0.5


def warmup_cosine(learning_rate, total_steps, *, warmup_steps=0):
    """Schedule that rises linearly from 0 and falls along a cosine to 0.

    Args:
        learning_rate: Positive number: the rate after the warm-up.
        total_steps: Steps until the rate is 0, warm-up included.
        warmup_steps: Steps of the warm-up, less than `total_steps`.

    Returns:
        A `keras.optimizers.schedules.CosineDecay`.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> schedule = warmup_cosine(2.0, 100, warmup_steps=10)
    >>> [round(float(schedule(step)), 6) for step in (0, 5, 10, 55, 100)]
    [0.0, 1.0, 2.0, 1.0, 0.0]

    References:
        - Loshchilov & Hutter 2016, arXiv:1608.03983.
        - google-research/simclr@383d414, tf2/model.py:78-110.
    """
    _checks.positive_number("learning_rate", learning_rate)
    _checks.integer("total_steps", total_steps, minimum=1)
    _checks.integer("warmup_steps", warmup_steps, minimum=0)
    if warmup_steps >= total_steps:
        raise ValueError(
            "`warmup_steps` must be less than `total_steps`. Received: "
            f"warmup_steps={warmup_steps}, total_steps={total_steps}"
        )
    if warmup_steps == 0:
        return keras.optimizers.schedules.CosineDecay(
            learning_rate, total_steps
        )
    return keras.optimizers.schedules.CosineDecay(
        0.0,
        total_steps - warmup_steps,
        warmup_target=learning_rate,
        warmup_steps=warmup_steps,
    )


@keras.saving.register_keras_serializable(package="keras_simclr")
class Restarted(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that is followed by another cosine to 0.

    Args:
        schedule: Schedule of the first steps.
        first_steps: How many these are.
        learning_rate: Positive number: the rate after them.
        steps: Steps until the rate is 0 again.

    Example:

    >>> schedule = Restarted(warmup_cosine(1.0, 10), 10, 0.25, 4)
    >>> [round(float(schedule(step)), 3) for step in (0, 5, 9, 10, 12, 14)]
    [1.0, 0.5, 0.024, 0.25, 0.125, 0.0]

    References:
        - Loshchilov & Hutter 2016, arXiv:1608.03983, section 3.
    """

    def __init__(self, schedule, first_steps, learning_rate, steps):
        self.schedule = schedule
        self.first_steps = _checks.integer(
            "first_steps", first_steps, minimum=1
        )
        self.learning_rate = _checks.positive_number(
            "learning_rate", learning_rate
        )
        self.steps = _checks.integer("steps", steps, minimum=1)
        self._cosine = keras.optimizers.schedules.CosineDecay(
            learning_rate, steps
        )

    def __call__(self, step):
        step = tf.convert_to_tensor(step)
        later = self._cosine(tf.maximum(step - self.first_steps, 0))
        return tf.where(step < self.first_steps, self.schedule(step), later)

    def get_config(self):
        return {
            "schedule": keras.saving.serialize_keras_object(self.schedule),
            "first_steps": self.first_steps,
            "learning_rate": self.learning_rate,
            "steps": self.steps,
        }

    @classmethod
    def from_config(cls, config):
        schedule = keras.saving.deserialize_keras_object(config["schedule"])
        return cls(**{**config, "schedule": schedule})


def default_optimizer():
    """LARS with a constant rate after a warm-up, for runs of any length.

    The official constants are made for 100,000 steps. These were chosen on
    Fashion-MNIST, 3 epochs, on held-out training images: the rate is high
    enough for batches of 1,024 and low enough for batches of 64.
    """
    inner = keras.optimizers.SGD(0.25, momentum=0.9)
    return LARS(inner, trust_coefficient=0.02, warmup_steps=50)


def make_or_skip(make, optimizer, is_finite):
    """Calls a function that applies gradients; or has the step pass without.

    Draws and rates go on as if it had been made. Returns 1.0 if it was not,
    else 0.0.
    """

    def made():
        make()
        return 0.0

    def skipped():
        optimizer.iterations.assign_add(1)
        return 1.0

    return tf.cond(is_finite, made, skipped)


def built(optimizer, variables):
    """The optimizer with its variables for these, made unless they are there.

    Keras builds that of a file of Keras 2's format (.h5) for no variables: it
    cannot be built again, and a new one takes its place.
    """
    if optimizer.built and variables and not optimizer._trainable_variables:
        optimizer = type(optimizer).from_config(optimizer.get_config())
    if not optimizer.built:
        optimizer.build(variables)
    return optimizer


_SETTERS = (
    keras.callbacks.LearningRateScheduler,
    keras.callbacks.ReduceLROnPlateau,
)
_TRIED = 11  # Steps whose rates are looked at.


def check_rates(optimizer, callbacks, steps):
    """Says before training what would be wrong with its learning rates.

    Warns if they are 0 to the end, where a schedule has come to its own.

    Args:
        optimizer: That of a compiled model.
        callbacks: List of those of `fit`.
        steps: How many `fit` will take; 0 if that is not known.

    Raises:
        ValueError: If a callback sets the rate, and a schedule does, too.

    Example:

    >>> optimizer = keras.optimizers.SGD(warmup_cosine(0.1, 100))
    >>> check_rates(optimizer, [], 100)
    """
    setters = [x for x in callbacks if isinstance(x, _SETTERS)]
    for each in getattr(optimizer, "optimizers", [optimizer]):
        is_number = isinstance(each.learning_rate, keras.Variable)
        if setters and not is_number:
            raise ValueError(
                f"`{type(setters[0]).__name__}` needs a learning rate that is "
                "a number. Received: an optimizer whose rate follows a "
                "schedule. Leave the callback out, or compile with a number, "
                "as in keras.optimizers.SGD(0.25, momentum=0.9) inside LARS; "
                "bare `model.compile()` does"
            )
        if not setters:
            _warn_of_no_rate(each, steps or _TRIED)


def _warn_of_no_rate(optimizer, steps):
    first = int(optimizer.iterations.numpy())
    places = np.unique(
        np.linspace(first, first + steps - 1, _TRIED).astype(int)
    )
    rates = [rate_at(optimizer, place) for place in places]
    idle = len(rates) - np.max(np.flatnonzero(rates), initial=-1) - 1
    is_over = rate_at(optimizer, first + steps) == 0  # It may yet begin.
    # The last step may be the first without a rate.
    if is_over and (idle == len(rates) or idle > 1):
        begin = places[-idle]
        warnings.warn(
            f"The learning rate is 0 from about step {begin} to the end, step "
            f"{places[-1]}: weights will not change. A schedule that has "
            "ended does not begin again: compile with one for the steps that "
            "are to come, or a number, as bare `model.compile()` has. A run "
            "of `keras-simclr pretrain` goes on with --more_epochs.",
            stacklevel=4,
        )


def rate_at(optimizer, step):
    """The learning rate that an optimizer, built or not, has at a step."""
    step = tf.cast(step, optimizer.iterations.dtype)
    with keras.StatelessScope([(optimizer.iterations, step)]):
        # Of replicas, the rate is a variable that is no number by itself.
        return float(tf.convert_to_tensor(optimizer.learning_rate))
