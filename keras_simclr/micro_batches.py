"""Contrastive batches larger than memory."""

import sys

import keras
import tensorflow as tf

from keras_simclr import devices, elements, replicas
from keras_simclr.replicas import ForwardPass

# Of the largest entry of the embeddings: rounding changes less of them from the
# first pass to the second, in which TensorFlow may fuse other operations.
_ROUNDING = {2: 0.1, 4: 0.01, 8: 0.01}  # By bytes of a number.


def cached_gradients(
    embed,
    contrast,
    variables,
    averages,
    *,
    size,
    micro_batch_size,
    again=None,
):
    """Gradients of a contrastive loss over a batch, in micro-batches.

    These are embedded without gradients, the loss and its gradient with respect
    to the embeddings are computed once, and then each is embedded again and the
    gradient brought back through it. Only one's activations are ever held.

    Args:
        embed: Function `(start, stop) -> z`: embeddings of images start to
            stop, `(stop - start, ...)`, as in training. The same each time it
            is called.
        contrast: Function `z -> (loss, ...)` of all embeddings, `(size, ...)`.
        variables: Keras variables that `embed` depends on.
        averages: Keras variables that `embed` may assign.
        size: Number of images.
        micro_batch_size: Images in each; the last one may be smaller.
        again: As `embed`, for the second pass; or None for `embed` itself. It
            may leave out last entries that no variable has a part in.

    Returns:
        Gradients, one per variable, as from `dense_gradients`; what `contrast`
        returned; and, by place in `averages`, the means of what they would
        have assigned. Nothing is assigned.

    Raises:
        ValueError: If `embed` adds losses of its own, assigns others than
            `averages`, or reads what it assigned.
        tf.errors.InvalidArgumentError: If it does not return the same again.

    Example:

    >>> dense = keras.layers.Dense(2, use_bias=False)
    >>> dense.build((None, 3))
    >>> x = tf.eye(3)
    >>> gradients, _, _ = cached_gradients(
    ...     lambda start, stop: dense(x[start:stop]),
    ...     lambda z: (tf.reduce_sum(z * z),),
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
    z, means = _embeddings(embed, averages, batches)
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss, *rest = contrast(z)
    pull = tape.gradient(
        loss, z, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    again = again or embed
    has_gradient = set()  # Places in `variables`.

    def replay(number, *totals):
        start, stop = batches.bounds(number)
        with ForwardPass(), tf.GradientTape() as tape:
            repeated = again(start, stop)
            tolerance = _ROUNDING[repeated.dtype.size]
            repeated = tf.cast(repeated, pull.dtype)
            width = repeated.shape[-1]
            cached = z[start:stop, ..., :width]
            is_same = _assert_repeated(repeated, cached, tolerance)
            pulled = tf.reduce_sum(repeated * pull[start:stop, ..., :width])
        gradients = dense_gradients(tape, pulled, variables)
        has_gradient.update(i for i, x in enumerate(gradients) if x is not None)
        with tf.control_dependencies([is_same]):
            return [
                tf.identity(sum_of(total, gradient))
                for total, gradient in zip(totals, gradients, strict=True)
            ]

    zeros = [tf.zeros(variable.shape, variable.dtype) for variable in variables]
    gradients = [
        gradient if place in has_gradient else None
        for place, gradient in enumerate(batches.loop(replay, *zeros))
    ]
    return gradients, (loss, *rest), means


def dense_gradients(tape, target, variables):
    """Gradients with respect to Keras variables; None where there is none.

    Optimizers treat the sparse ones of embedding layers in another way, and
    some cannot be scaled or summed over replicas.
    """
    gradients = tape.gradient(target, [x.value for x in variables])
    return [x if x is None else tf.convert_to_tensor(x) for x in gradients]


def sum_of(gradient, other):
    """The sum of two gradients, either of which may be None."""
    if gradient is None or other is None:
        return other if gradient is None else gradient
    return gradient + other


def _assert_repeated(z, cached, tolerance):
    """Fails if the second pass embeds otherwise than the first; not for NaN."""
    largest = tf.reduce_max(tf.abs(cached))
    differ = tf.abs(z - cached) > tolerance * largest
    return elements.check(
        ~tf.reduce_any(differ),
        f"{replicas.REPEATABLE} Received: a second pass with other embeddings",
    )


def embeddings(embed, *, size, micro_batch_size):
    """Embeddings `(size, ...)` of a batch, in micro-batches.

    `embed` is as in `cached_gradients`; here it assigns nothing.
    """
    z, _ = _embeddings(embed, [], _MicroBatches(size, micro_batch_size))
    return z


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

    def collect(number, z, *sums):
        sums = list(sums)
        with ForwardPass() as forward:
            rows = embed(*batches.bounds(number))
        _check_can_be_cached(forward, averages)
        shape[1:] = rows.shape[1:]
        for place, average in enumerate(averages):
            if id(average) in forward.written:
                written.add(place)
                sums[place] += forward.written[id(average)][1]
        return z.write(number, tf.cast(rows, dtype)), *sums

    array = tf.TensorArray(dtype, batches.count, infer_shape=False)
    zeros = [tf.zeros(average.shape, average.dtype) for average in averages]
    z, *sums = batches.loop(collect, array, *zeros)
    z = tf.ensure_shape(z.concat(), shape)
    means = {
        place: sums[place] / tf.cast(batches.count, sums[place].dtype)
        for place in sorted(written)
    }
    return z, means


def _check_can_be_cached(forward, averages):
    """Refuses what would not be as in a pass over the whole batch."""
    if forward.penalties:
        raise ValueError(
            "Layers that add losses of their own (`activity_regularizer`, "
            "`add_loss`) do not work in micro-batches. Leave out "
            "`micro_batch_size`, or use weight regularizers."
        )
    known = set(map(id, averages))
    set_ones = [variable for variable, _ in forward.written.values()]
    strangers = [x for x in set_ones if id(x) not in known]
    names = {x.path for x in forward.fed_back + forward.escaped + strangers}
    if names:
        raise ValueError(
            "Layers may set averages in micro-batches, as batch norm does, and "
            "not go on with what they have set, as "
            "keras.layers.SpectralNormalization does. Leave out "
            f"`micro_batch_size`. Received: {', '.join(sorted(names))}, set in "
            "the forward pass"
        )


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


def largest_of_model(model, spec, batch_size):
    """As `largest_micro_batch`, of steps of a model.

    Args:
        model: Compiled `SimCLRModel` without micro-batches.
        spec: `tf.TensorSpec` of its images.
        batch_size: Images of one replica in a step.
    """
    model.build_optimizer()  # Its slots take memory, too.

    @tf.function
    def step(images):
        return model.replica_gradients({"images": images})[0]

    def train(size):
        return step(tf.zeros((size, *spec.shape[1:]), spec.dtype))

    return largest_micro_batch(train, batch_size)
