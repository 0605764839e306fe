"""Contrastive batches larger than one device: replicas and micro-batches."""

import sys

import keras
import tensorflow as tf

from keras_simclr import _checks


def replica_and_number():
    """Which replica this is, and how many there are.

    Returns:
        Two integers, the first possibly a tensor; `(0, 1)` outside of replicas.

    Example:

    >>> replica_and_number()
    (0, 1)
    """
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return 0, 1
    return replica.replica_id_in_sync_group, replica.num_replicas_in_sync


def has_workers(strategy):
    """Whether a strategy works in several processes.

    Args:
        strategy: A `tf.distribute.Strategy`.

    Returns:
        Boolean.

    Example:

    >>> has_workers(tf.distribute.get_strategy())
    False
    """
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def piece_and_number():
    """Which piece of the global batch this replica has, and of how many.

    On one machine that is the replica's number. With several, TensorFlow deals
    the pieces to the machines in turn.

    Returns:
        Two integers, as `replica_and_number`.

    Example:

    >>> piece_and_number()
    (0, 1)
    """
    replica, number = replica_and_number()
    strategy = tf.distribute.get_strategy()
    if has_workers(strategy):
        devices = len(strategy.extended.worker_devices)
        replica = _piece(replica, devices, number // devices)
    return replica, number


def _piece(replica, devices, workers):
    return replica % devices * workers + replica // devices


@tf.custom_gradient
def from_all_replicas(rows):
    """The rows of all replicas, in the order of the replicas.

    For a loss that every replica computes from the same rows, the gradient
    with respect to the replica's own rows is right as it is: summed over the
    replicas, the gradients of the variables are those of one device.

    Args:
        rows: Tensor of shape `(n, ...)`, of the same shape in each replica.

    Returns:
        Tensor of shape `(replicas * n, ...)`.

    Example:

    >>> from_all_replicas(tf.zeros((4, 2))).shape
    TensorShape([4, 2])
    """
    place, number = replica_and_number()
    if number == 1:
        return tf.identity(rows), lambda upstream: upstream
    replica = tf.distribute.get_replica_context()
    everything = replica.all_gather(rows, axis=0)
    own, *rest = rows.shape
    everything = tf.ensure_shape(everything, (own and number * own, *rest))

    def gradient(upstream):
        size = tf.shape(rows)
        return tf.slice(upstream, (place * size[0], 0), size)

    return everything, gradient


def share_failure(gradients):
    """Makes gradients non-finite in all replicas if they are so in one.

    `keras.optimizers.LossScaleOptimizer` looks at the first replica only, and
    would let the others' NaN into the weights.

    Args:
        gradients: List of tensors, or None among them.

    Returns:
        The gradients; in the first one, 0 or NaN was added.

    Example:

    >>> share_failure([tf.constant(1.0), None])[0].numpy()
    np.float32(1.0)
    """
    tensors = [gradient for gradient in gradients if gradient is not None]
    failure = tf.add_n([tf.reduce_sum(0 * tensor) for tensor in tensors])
    replica = tf.distribute.get_replica_context()
    failure = replica.all_reduce(tf.distribute.ReduceOp.SUM, failure)
    first = next(i for i, x in enumerate(gradients) if x is not None)
    gradients = list(gradients)
    gradients[first] += failure
    return gradients


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
    has_limit = _checks.only_cpus()
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


def prepare(layers, *, replicas, micro_batch_size):
    """Makes layers fit for replicas or micro-batches, or refuses them.

    Batch norm is synchronized among replicas, but not in micro-batches: no
    collective may stand inside their loop.

    Args:
        layers: List of Keras layers.
        replicas: Number of replicas.
        micro_batch_size: Images in a micro-batch, or None.

    Raises:
        ValueError: If a layer's forward pass cannot be repeated.

    Example:

    >>> norm = keras.layers.BatchNormalization()
    >>> prepare([norm], replicas=2, micro_batch_size=None)
    >>> norm.synchronized
    True
    """
    is_cached = micro_batch_size is not None
    for layer in layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = replicas > 1 and not is_cached
    random = [
        layer.name
        for layer in layers
        if any(
            isinstance(value, keras.random.SeedGenerator)
            for value in vars(layer).values()
        )
    ]
    if random and is_cached:
        raise ValueError(
            "`micro_batch_size` needs a forward pass that can be repeated: no "
            "dropout, nothing else that draws random numbers. Received: "
            f"layers {', '.join(random)}. Leave them out, or leave out "
            "`micro_batch_size`."
        )
    if random and replicas > 1:
        raise ValueError(
            "Several replicas need layers that draw no random numbers: Keras "
            "gives all replicas the same ones. Received: layers "
            f"{', '.join(random)}. Leave them out."
        )


def check_strategy(strategy, variables, micro_batch_size=None):
    """Refuses a way of distribution that does not train as one device would.

    Args:
        strategy: The `tf.distribute.Strategy` of the model.
        variables: Keras variables that were made for it.
        micro_batch_size: Images in a micro-batch, or None.

    Raises:
        ValueError: If replicas are not synchronous, or the variables belong
            to no strategy or another, or `keras.distribution` is in use, or
            a TPU is to work in micro-batches.

    Example:

    >>> check_strategy(tf.distribute.get_strategy(), [])
    """
    if keras.distribution.distribution() is not None:
        raise ValueError(
            "`keras.distribution` does nothing on TensorFlow. Use a "
            "tf.distribute strategy, and make the model in its scope. "
            f"Received: {keras.distribution.distribution()}"
        )
    if isinstance(strategy, tf.distribute.ParameterServerStrategy):
        raise ValueError(
            "Negatives come from all replicas, which must work in step. Use "
            "MirroredStrategy or MultiWorkerMirroredStrategy. Received: "
            "ParameterServerStrategy"
        )
    is_tpu = isinstance(strategy, tf.distribute.TPUStrategy)
    if is_tpu and micro_batch_size is not None:
        raise ValueError(
            "`micro_batch_size` needs a CPU or GPUs: its loops do not compile "
            "for a TPU. Leave it out, and take a smaller batch or more cores. "
            f"Received: micro_batch_size={micro_batch_size} on a TPU"
        )
    with strategy.scope():
        strangers = [
            variable.path
            for variable in variables
            if not strategy.extended.variable_created_in_scope(variable.value)
        ]
    if strangers:
        raise ValueError(
            "Encoder, model and optimizer must be made in the strategy's "
            "scope: with strategy.scope(): model = SimCLRModel(ResNet(18)); "
            "model.compile(...). Received: "
            f"{strangers[0]!r} from outside"
        )


def check_optimizer(optimizer, *, replicas):
    """Refuses options that Keras 3 gets wrong in contrastive training.

    Args:
        optimizer: A Keras optimizer.
        replicas: Number of replicas.

    Raises:
        ValueError: If it accumulates gradients; or, on several replicas, clips
            them or overwrites weights by their average.

    Example:

    >>> check_optimizer(keras.optimizers.SGD(clipnorm=1.0), replicas=1)
    """
    refused = {
        "gradient_accumulation_steps": "accumulating gradients adds no "
        "negatives. Use SimCLRModel(..., micro_batch_size=...)"
    }
    if replicas > 1:
        clipping = "Keras clips the gradients of each replica by themselves"
        refused.update(
            dict.fromkeys(
                ("clipnorm", "global_clipnorm", "clipvalue"), clipping
            )
        )
        refused["ema_overwrite_frequency"] = (
            "Keras 3 fails with it on several replicas"
        )
    while optimizer is not None:
        for name, reason in refused.items():
            value = getattr(optimizer, name, None)
            if value is not None:
                raise ValueError(
                    f"`{name}` cannot be used here: {reason}. "
                    f"Received: {name}={value!r}"
                )
        optimizer = getattr(optimizer, "inner_optimizer", None)
