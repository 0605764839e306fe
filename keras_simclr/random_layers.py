"""What all layers that make views share: draws by seed and place, float32.

A layer is two pure functions. `_draw` makes the random numbers of a batch from
a seed; `_transform` applies them to examples. A draw is a pure function of the
seed and the example's place in the batch.
"""

import math
import random

import keras
import tensorflow as tf

from keras_simclr import _checks, kinds


def fold_seed(seed, number):
    """The sub-seed `number` of a seed, int64 of shape `(2,)`.

    Deviation: `tf.random.experimental.stateless_fold_in` chooses another random
        generator under XLA than outside; this always uses Philox.
    """
    bits = tf.random.stateless_uniform(
        [1], seed, None, None, tf.int64, alg="philox"
    )
    return tf.stack([bits[0], tf.cast(number, tf.int64)])


def uniforms(seed, shape):
    """Uniform draws in [0, 1): 24 random bits each, the same on any device."""
    bits = tf.random.stateless_uniform(
        shape, seed, None, None, tf.uint32, alg="philox"
    )
    bits = tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32))
    return tf.cast(bits, tf.float32) * 2.0**-24


def uniforms_of_rows(seed, rows, shape):
    """Uniform draws of that shape for each of some places in the batch.

    For numbers of which an example has many: none are made for other replicas.
    """
    shape = tf.convert_to_tensor(shape)
    draws = _uniforms_of_rows(seed, rows, shape)
    # The graph may be one for shapes of any number of axes.
    draws.set_shape([None] * (1 + shape.shape[0]))
    return draws


@tf.function(autograph=False, reduce_retracing=True)
def _uniforms_of_rows(seed, rows, shape):
    return tf.map_fn(
        lambda row: uniforms(fold_seed(seed, row), shape),
        rows,
        fn_output_signature=tf.float32,
    )


def between(draws, low, high):
    """Uniform draws in [0, 1), as draws between two numbers."""
    return low + draws * (high - low)


def normals(draws):
    """Normal draws from pairs of uniform ones along the last axis."""
    # Box-Muller; 1 - u is never 0.
    lengths = tf.sqrt(-2.0 * tf.math.log(1.0 - draws[..., 0]))
    return lengths * tf.cos(2.0 * math.pi * draws[..., 1])


def rows_and_total(examples, part):
    """Places of examples in the batch that they are part of; its size."""
    count = examples.shape[0] or tf.shape(examples)[0]
    first, total = (0, count) if part is None else part
    return first + tf.range(count), total


class RandomLayer(keras.layers.Layer):
    """Changes each example at random, as a function of seed and place.

    A subclass has `_transform(examples, draws)`, of plain operations that XLA
    compiles; `_draws_per_example`, or a `_draw` of its own; and what it does at
    rest, if that is anything.
    """

    kind = kinds.OTHER
    _axes = ()  # What the axes of an example are called.
    _draws_per_example = 0

    def __init__(self, *, seed=None, **kwargs):
        # The output is float32 whatever the dtype policy.
        super().__init__(**{**kwargs, "dtype": "float32"})
        if seed is not None:
            _checks.seed("seed", seed)
        self.seed = seed
        seed = random.randrange(2**31) if seed is None else seed
        self._seed = tf.constant(seed, tf.int64)
        self._calls = tf.Variable(0, trainable=False, dtype=tf.int64)
        self.built = True  # There are no weights.

    def __call__(self, *args, seed=None, part=None, **kwargs):
        # Keras refuses (0, tensor), the natural seed inside `dataset.map`.
        if seed is not None:
            seed = tf.convert_to_tensor(seed)
        if part is not None:
            part = [tf.cast(number, tf.int32) for number in part]
        return super().__call__(*args, seed=seed, part=part, **kwargs)

    def call(self, examples, training=True, seed=None, part=None):
        return self._augment(examples, training, seed, part)

    def _augment(self, examples, training, seed, part, *sizes):
        examples = tf.convert_to_tensor(examples)
        self._check_dtype(examples.dtype)
        if examples.shape.rank == len(self._axes):
            sizes = [size[None] for size in sizes]
            views = self._augment(examples[None], training, seed, part, *sizes)
            return views[0]
        self._check_shape(examples.shape)
        if not training:
            return self._at_rest(examples, *sizes)
        draws = self._draw(self._next_seed(seed), examples, part)
        views = self._transformed(examples, draws, *sizes)
        views.set_shape(self.compute_output_shape(examples.shape))
        return views

    def _check_dtype(self, dtype):
        if not dtype.is_floating:
            raise ValueError(
                f"{self.kind.plural.capitalize()} must be floats. Received: "
                f"dtype {dtype.name}. Convert them: tf.cast(x, 'float32')"
            )

    def _check_shape(self, shape):
        if shape.rank != len(self._axes) + 1:
            axes, what = ", ".join(self._axes), self.kind.plural
            raise ValueError(
                f"{what.capitalize()} must have the shape (batch, {axes}) or "
                f"({axes}{',' * (len(self._axes) == 1)}). "
                f"Received: {what} of shape {shape}"
            )

    def _next_seed(self, seed):
        if seed is None:
            seed = tf.stack([self._seed, self._calls.assign_add(1) - 1])
        if seed.shape != (2,) or not seed.dtype.is_integer:
            raise ValueError(
                "`seed` must be a pair of integers. Received: seed of shape "
                f"{seed.shape} and dtype {seed.dtype.name}"
            )
        return tf.cast(seed, tf.int64)

    def _draw(self, seed, examples, part=None):
        rows, total = rows_and_total(examples, part)
        return tf.gather(uniforms(seed, (total, self._draws_per_example)), rows)

    def _transformed(self, examples, draws, *sizes):
        return self._transform(tf.cast(examples, tf.float32), draws, *sizes)

    def _transform(self, examples, draws, sizes=None):
        raise NotImplementedError

    def _at_rest(self, examples, *sizes):
        return tf.cast(examples, tf.float32)

    def plain_at_rest(self, examples):
        """This layer at rest, made of Keras's own layers and operations.

        Args:
            examples: `keras.KerasTensor`, a batch of examples as floats; of
                images `(None, height, width, channels)`, in [0, 1].

        Returns:
            A `keras.KerasTensor`; `examples` where they are left as they are.
        """
        return examples

    def examples_shape(self, shape):
        """Shape of a batch that it makes views of `shape` of, at rest too."""
        return shape

    def compute_output_shape(self, input_shape, *args, **kwargs):
        return tuple(input_shape)

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}


class StillLayer(RandomLayer):
    """Does the same in training and at rest, and draws nothing."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)  # Without a seed.

    def call(self, examples, training=True, seed=None, part=None):
        return self._augment(examples, False, None, None)

    def get_config(self):
        config = super().get_config()
        del config["seed"]
        return config
