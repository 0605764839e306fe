"""What networks and layers do, tried on a few examples; nothing is assigned."""

import keras
import numpy as np
import tensorflow as tf

_SIDE = 64  # Where any size may come: enough for networks that shrink 32 times.
# Of a tensor's largest entry: what rounding may change from one call to the
# next, and from the precision of a network to float32.
_ROUNDING = {"float16": 0.002, "bfloat16": 0.01}
_PRECISION = {"float16": 0.05, "bfloat16": 0.2}
# What networks raise at values that they cannot take.
REFUSALS = (ValueError, tf.errors.OpError)
_SEED_STATE = "seed_generator_state"  # Keras's name of such variables.


def examples(shape, dtype="float32"):
    """Four examples to try a network on: two, and the same two again.

    Args:
        shape: Shape of one; None for any size.
        dtype: What the network takes.

    Returns:
        Tensor of shape `(4, *shape)`. Images, of rank 3, lie in [0, 1]; whole
        numbers are 0 or 1, which are places in any table.

    Example:

    >>> first, second, third, fourth = examples((8, 8, 3))
    >>> np.array_equal(first, third), np.array_equal(second, fourth)
    (True, True)
    """
    rng = np.random.default_rng(0)
    shape = [_SIDE if size is None else size for size in shape]
    two = rng.random((2, *shape))
    if not tf.as_dtype(dtype).is_floating:
        two = np.rint(two).astype("int32")
    elif len(shape) != 3:
        two[1] = 10 * rng.normal(size=shape)  # Not all data are in [0, 1].
    four = np.concatenate([two, two])
    if dtype == "string":
        return tf.strings.as_string(four)
    return tf.constant(four, dtype)


def ramps(shape):
    """Four images that rise from 0 to 1, or fall: up, down, right, left.

    Args:
        shape: Height, width and channels; None for any size.

    Returns:
        float32 tensor of shape `(4, height, width, channels)`. Interpolation
        hardly overshoots in them.

    Example:

    >>> ramps((1, 3, 1))[2, 0, :, 0].numpy()
    array([0. , 0.5, 1. ], dtype=float32)
    """
    height, width, channels = (_SIDE if x is None else x for x in shape)
    down, right = np.linspace(0, 1, height), np.linspace(0, 1, width)
    image = np.ones((height, width, channels))
    down, right = image * down[:, None, None], image * right[:, None]
    return tf.constant([1 - down, down, right, 1 - right], "float32")


def generators_of(layer):
    """Keras's generators of random numbers that a layer holds, in a list."""
    return [
        value
        for value in vars(layer).values()
        if isinstance(value, keras.random.SeedGenerator)
    ]


def is_random(function, inputs, *, runs=2, at_rest=False):
    """Whether a function of a batch draws random numbers.

    It does if equal examples get different outputs, if another call returns
    others, or if it takes a seed from one of Keras's generators. No Keras
    variable is assigned, not even a generator's state.

    Args:
        function: From a batch to a batch of as many outputs.
        inputs: As `examples` returns them.
        runs: How often it is called.
        at_rest: Whether nothing may depend on earlier calls either. To draw a
            seed and not to use it is then not random.

    Returns:
        Boolean; False if it refuses such inputs, which then tell nothing.

    Example:

    >>> dropout = keras.layers.Dropout(0.5)
    >>> [
    ...     is_random(lambda x: dropout(x, training=training), examples((9,)))
    ...     for training in (False, True)
    ... ]
    [False, True]
    """
    first, half = None, len(inputs) // 2
    with _Recorder(at_rest) as scope:
        for _ in range(runs):
            try:
                outputs = function(inputs)
            except REFUSALS:
                return False
            first = outputs if first is None else first
            if (
                (scope.drew and not at_rest)
                or differ(outputs[:half], outputs[half:])
                or differ(outputs, first)
            ):
                return True
    return False


class _Recorder(keras.StatelessScope):
    """Scope that knows whether Keras was asked for a seed in it."""

    drew = False

    def __init__(self, keeps_all):
        super().__init__()
        self._keeps_all = keeps_all

    def add_update(self, update):
        variable, _ = update
        is_seed = variable.name == _SEED_STATE
        self.drew = self.drew or is_seed
        # In training, averages that one call sets may change the next.
        if is_seed or self._keeps_all:
            super().add_update(update)


def differ(outputs, expected, *, dtypes=()):
    """Whether two tensors differ by more than rounding does.

    Args:
        outputs: Tensor.
        expected: Tensor. What is not finite in it is not compared.
        dtypes: Names of those that `expected` was computed in, and `outputs`
            perhaps not.

    Returns:
        Boolean.

    Example:

    >>> differ(tf.ones(3), tf.fill(3, 1.1)), differ(tf.ones(3), tf.ones(3))
    (True, False)
    """
    outputs, expected = map(keras.ops.convert_to_tensor, (outputs, expected))
    if outputs.shape != expected.shape:
        return True
    if np.array_equal(*map(keras.ops.convert_to_numpy, (outputs, expected))):
        return False
    tolerance = _ROUNDING.get(expected.dtype.name, 1e-4)
    if dtypes:
        tolerance = max(_PRECISION.get(dtype, 1e-3) for dtype in dtypes)
    outputs, expected = (
        keras.ops.convert_to_numpy(tf.cast(x, tf.float64))
        for x in (outputs, expected)
    )
    known = np.isfinite(expected)
    outputs, expected = outputs[known], expected[known]
    error = np.abs(outputs - expected).max(initial=0.0)
    return not error <= tolerance * np.abs(expected).max(initial=0.0)
