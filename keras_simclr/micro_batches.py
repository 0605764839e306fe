"""Contrastive batches larger than memory."""

import sys

import keras
import tensorflow as tf

from keras_simclr import devices, elements, replicas

# Of the largest entry of the embeddings: rounding changes less of them from the
# first pass to the second, in which TensorFlow may fuse other operations.
_ROUNDING = {2: 0.1, 4: 0.01, 8: 0.01}  # By bytes of a number.


def cached_gradients(
    embed, contrast, variables, averages, *, size, micro_batch_size
):
    """Gradients of a contrastive loss over a batch, in micro-batches.

    These are embedded without gradients, the loss and its gradient with respect
    to the embeddings are computed once, and then each is embedded again and the
    gradient brought back through it. Only one's activations are ever held.

    Args:
        embed: Function `(start, stop) -> (z_1, z_2)`: embeddings of images
            start to stop, `(stop - start, D)` each, as in training. The same
            each time it is called.
        contrast: Function `(z_1, z_2) -> (loss, ...)` of all embeddings,
            `(size, D)` each.
        variables: Keras variables that `embed` depends on.
        averages: Keras variables that `embed` may assign.
        size: Number of images.
        micro_batch_size: Images in each; the last one may be smaller.

    Returns:
        Gradients, one per variable; what `contrast` returned; and, by place
        in `averages`, the means of what they would have assigned.
        Nothing is assigned.

    Raises:
        ValueError: If `embed` adds losses of its own.
        tf.errors.InvalidArgumentError: If it does not return the same again.

    Example:

    >>> dense = keras.layers.Dense(2, use_bias=False)
    >>> dense.build((None, 3))
    >>> x = tf.eye(3)
    >>> gradients, _, _ = cached_gradients(
    ...     lambda start, stop: (dense(x[start:stop]),) * 2,
    ...     lambda z_1, z_2: (tf.reduce_sum(z_1 * z_2),),
    ...     dense.trainable_variables,
    ...     [],
    ...     size=3,
    ...     micro_batch_size=2,
    ... )
    >>> bool(np.allclose(gradients[0], 2 * dense.kernel))
    True

    References:
        - Gao et al. 2021, arXiv:2101.06983.
    """
    batches = _MicroBatches(size, micro_batch_size)
    z_1, z_2, means = _embeddings(embed, averages, batches)
    with tf.GradientTape() as tape:
        tape.watch((z_1, z_2))
        loss, *rest = contrast(z_1, z_2)
    pull_1, pull_2 = tape.gradient(loss, (z_1, z_2))

    def replay(number, *totals):
        start, stop = batches.bounds(number)
        with keras.StatelessScope(), tf.GradientTape() as tape:
            first, second = embed(start, stop)
            tolerance = _ROUNDING[first.dtype.size]
            first, second = (tf.cast(z, pull_1.dtype) for z in (first, second))
            repeated = _assert_repeated(
                tf.stack([first, second]),
                tf.stack([z_1[start:stop], z_2[start:stop]]),
                tolerance,
            )
            pulled = tf.reduce_sum(first * pull_1[start:stop])
            pulled += tf.reduce_sum(second * pull_2[start:stop])
        gradients = tape.gradient(
            pulled,
            [variable.value for variable in variables],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        with tf.control_dependencies([repeated]):
            return [x + y for x, y in zip(totals, gradients, strict=True)]

    zeros = [tf.zeros(variable.shape, variable.dtype) for variable in variables]
    return batches.loop(replay, *zeros), (loss, *rest), means


def _assert_repeated(z, cached, tolerance):
    """Fails if the second pass embeds otherwise than the first; not for NaN."""
    largest = tf.reduce_max(tf.abs(cached))
    differ = tf.abs(z - cached) > tolerance * largest
    return elements.check(
        ~tf.reduce_any(differ),
        f"{replicas.REPEATABLE} Received: a second pass with other embeddings",
    )


def embeddings(embed, *, size, micro_batch_size):
    """Embeddings `(size, D)` of both views of a batch, in micro-batches.

    `embed` is as in `cached_gradients`; here it assigns nothing.
    """
    z_1, z_2, _ = _embeddings(embed, [], _MicroBatches(size, micro_batch_size))
    return z_1, z_2


class _MicroBatches:
    """The micro-batches of a batch, one after another."""

    def __init__(self, size, micro_batch_size):
        self.size = size
        self.micro_batch_size = micro_batch_size
        self.count = -(-size // micro_batch_size)

    def bounds(self, number):
        start = number * self.micro_batch_size
        return start, tf.minimum(start + self.micro_batch_size, self.size)

    def loop(self, body, *values):
        """Has `body(number, *values)` change the values in each."""
        _, *values = tf.while_loop(
            lambda number, *_: number < self.count,
            lambda number, *values: (number + 1, *body(number, *values)),
            (tf.constant(0), *values),
            parallel_iterations=1,
        )
        return values


def _embeddings(embed, averages, batches):
    dtype = keras.config.floatx()
    shape = [tf.get_static_value(batches.size)]
    written = set()  # Places in `averages`.

    def collect(number, z_1, z_2, *sums):
        sums = list(sums)
        with keras.StatelessScope(collect_losses=True) as scope:
            first, second = embed(*batches.bounds(number))
        if scope.losses:
            raise ValueError(
                "Layers that add losses of their own (`activity_regularizer`, "
                "`add_loss`) do not work in micro-batches. Leave out "
                "`micro_batch_size`, or use weight regularizers."
            )
        shape[1:] = first.shape[1:]
        for place, average in enumerate(averages):
            value = scope.get_current_value(average)
            if value is not None:
                written.add(place)
                sums[place] += value
        return (
            z_1.write(number, tf.cast(first, dtype)),
            z_2.write(number, tf.cast(second, dtype)),
            *sums,
        )

    def array():
        return tf.TensorArray(dtype, batches.count, infer_shape=False)

    zeros = [tf.zeros(average.shape, average.dtype) for average in averages]
    z_1, z_2, *sums = batches.loop(collect, array(), array(), *zeros)
    z_1, z_2 = (tf.ensure_shape(z.concat(), shape) for z in (z_1, z_2))
    means = {
        place: sums[place] / tf.cast(batches.count, sums[place].dtype)
        for place in sorted(written)
    }
    return z_1, z_2, means


def largest_micro_batch(step, batch_size):
    """The most images, 8 times a power of two, whose step fits into memory.

    Tries twice as many each time: on a GPU until memory is exhausted, on a CPU
    until as many again would leave less than a quarter of what is free now.
    None if `batch_size` images fit; a `MemoryError` if not even 8 do.
    """
    has_limit = devices.only_cpus()
    free, before = _free_memory(), _memory()
    size, largest = min(8, batch_size), None
    while True:
        try:
            step(size)
        except tf.errors.ResourceExhaustedError:
            break
        if size == batch_size:
            return None
        largest, size = size, min(2 * size, batch_size)
        if has_limit and 2 * (_peak_memory() - before) > 0.75 * free:
            break
    if largest is None:
        raise MemoryError(
            "A micro-batch must hold at least 8 images, and memory is too "
            "small for them. Take a smaller encoder or smaller images."
        )
    return largest


def _free_memory():
    import psutil

    return psutil.virtual_memory().available


def _memory():
    import psutil

    return psutil.Process().memory_info().rss


def _peak_memory():
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
