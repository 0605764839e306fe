"""Contrastive batches larger than memory."""

import sys

import keras
import tensorflow as tf

from keras_simclr import devices


def cached_gradients(
    embed, contrast, variables, averages, *, size, micro_batch_size
):
    """Gradients of a contrastive loss over a batch that passes in parts.

    The parts are embedded without gradients, the loss and its gradient with
    respect to the embeddings are computed once, and then every part is
    embedded again and the gradient brought back through it. Only one part's
    activations are ever held.

    Args:
        embed: Function `(start, stop) -> (z_1, z_2)`: embeddings of images
            start to stop, `(stop - start, D)` each, as in training. The same
            each time it is called.
        contrast: Function `(z_1, z_2) -> (loss, ...)` of all embeddings,
            `(size, D)` each.
        variables: Keras variables that `embed` depends on.
        averages: Keras variables that `embed` may assign.
        size: Number of images.
        micro_batch_size: Images in a part; the last one may be smaller.

    Returns:
        Gradients, one per variable; what `contrast` returned; and, by place
        in `averages`, the means of what the parts would have assigned.
        Nothing is assigned.

    Raises:
        ValueError: If `embed` adds losses of its own.

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
    parts = _Parts(size, micro_batch_size)
    z_1, z_2, means = _embeddings(embed, averages, parts)
    with tf.GradientTape() as tape:
        tape.watch((z_1, z_2))
        loss, *rest = contrast(z_1, z_2)
    pull_1, pull_2 = tape.gradient(loss, (z_1, z_2))

    def replay(part, *totals):
        start, stop = parts.bounds(part)
        with keras.StatelessScope(), tf.GradientTape() as tape:
            first, second = embed(start, stop)
            first, second = (tf.cast(z, pull_1.dtype) for z in (first, second))
            pulled = tf.reduce_sum(first * pull_1[start:stop])
            pulled += tf.reduce_sum(second * pull_2[start:stop])
        gradients = tape.gradient(
            pulled,
            [variable.value for variable in variables],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return [x + y for x, y in zip(totals, gradients, strict=True)]

    zeros = [tf.zeros(variable.shape, variable.dtype) for variable in variables]
    return parts.loop(replay, *zeros), (loss, *rest), means


def embeddings(embed, *, size, micro_batch_size):
    """Embeddings of a batch that passes in parts.

    Args:
        embed: As in `cached_gradients`; it assigns nothing.
        size: Number of images.
        micro_batch_size: Images in a part; the last one may be smaller.

    Returns:
        Two tensors of shape `(size, D)`.

    Example:

    >>> z_1, z_2 = embeddings(
    ...     lambda start, stop: (tf.eye(3)[start:stop],) * 2,
    ...     size=3,
    ...     micro_batch_size=2,
    ... )
    >>> bool(np.array_equal(z_2, np.eye(3)))
    True
    """
    z_1, z_2, _ = _embeddings(embed, [], _Parts(size, micro_batch_size))
    return z_1, z_2


class _Parts:
    """The parts of a batch, one after another."""

    def __init__(self, size, micro_batch_size):
        self.size = size
        self.micro_batch_size = micro_batch_size
        self.number = -(-size // micro_batch_size)

    def bounds(self, part):
        start = part * self.micro_batch_size
        return start, tf.minimum(start + self.micro_batch_size, self.size)

    def loop(self, body, *values):
        """Has `body(part, *values)` change the values in each part."""
        _, *values = tf.while_loop(
            lambda part, *_: part < self.number,
            lambda part, *values: (part + 1, *body(part, *values)),
            (tf.constant(0), *values),
            parallel_iterations=1,
        )
        return values


def _embeddings(embed, averages, parts):
    dtype = keras.config.floatx()
    shape = [tf.get_static_value(parts.size)]
    written = set()  # Places in `averages`.

    def collect(part, z_1, z_2, *sums):
        sums = list(sums)
        with keras.StatelessScope(collect_losses=True) as scope:
            first, second = embed(*parts.bounds(part))
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
            z_1.write(part, tf.cast(first, dtype)),
            z_2.write(part, tf.cast(second, dtype)),
            *sums,
        )

    def array():
        return tf.TensorArray(dtype, parts.number, infer_shape=False)

    zeros = [tf.zeros(average.shape, average.dtype) for average in averages]
    z_1, z_2, *sums = parts.loop(collect, array(), array(), *zeros)
    z_1, z_2 = (tf.ensure_shape(z.concat(), shape) for z in (z_1, z_2))
    means = {
        place: sums[place] / tf.cast(parts.number, sums[place].dtype)
        for place in sorted(written)
    }
    return z_1, z_2, means


def largest_micro_batch(step, batch_size):
    """The most images, 8 times a power of two, whose step fits into memory.

    Tries twice as many each time: on a GPU until memory is exhausted, on a CPU
    until as many again would leave less than a quarter of what is free now.

    Args:
        step: Function of a number of images that goes forward and back.
        batch_size: The most that are wanted.

    Returns:
        The number of images, or None if `batch_size` images fit.

    Raises:
        MemoryError: If not even 8 images fit.

    Example:

    >>> largest_micro_batch(lambda size: None, 64) is None
    True
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
