"""Several replicas: what they exchange, and what they cannot train."""

import concurrent.futures
import hashlib

import keras
import numpy as np
import tensorflow as tf

from keras_simclr import _checks, trials

REPEATABLE = (
    "`micro_batch_size` needs a forward pass that can be repeated: no dropout, "
    "nothing else that draws random numbers."
)


def replica_and_number():
    """Which replica this is, and of how many; `(0, 1)` outside of replicas."""
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return 0, 1
    return replica.replica_id_in_sync_group, replica.num_replicas_in_sync


def has_workers(strategy):
    """Whether a strategy works in several processes."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def piece_and_number():
    """Which piece of the global batch this replica has, and of how many.

    On one machine that is the replica's number. With several, TensorFlow deals
    the pieces to the machines in turn.
    """
    replica, number = replica_and_number()
    strategy = tf.distribute.get_strategy()
    if has_workers(strategy):
        devices = len(strategy.extended.worker_devices)
        replica = _piece(replica, devices, number // devices)
    return replica, number


def _piece(replica, devices, workers):
    return replica % devices * workers + replica // devices


class ForwardPass(keras.StatelessScope):
    """Scope that keeps what layers add and set; nothing is written by it.

    Outside of it, layers add losses to lists that the threads of all replicas
    share, and set variables before it is known that a step can be made.

    Attributes:
        penalties: What layers added: `add_loss`, `activity_regularizer`.
        written: Pairs of variables and what they are set to, by their ids.
        fed_back: Variables that were set and then read again.
        escaped: Variables that were set where no value can be kept from: in a
            function or branch of a layer's own. They are set at once.
    """

    def __init__(self):
        super().__init__(collect_losses=True, initialize_variables=False)
        self.penalties, self.written = [], {}
        self.fed_back, self.escaped = [], []
        self._graph = _graph_of(tf.constant(0))

    def add_loss(self, loss):
        super().add_loss(loss)  # Layers may clear it there.
        self.penalties.append(loss)

    def add_update(self, update):
        variable, value = update
        if _graph_of(value) is self._graph:
            super().add_update(update)
            self.written[id(variable)] = update
            return
        self.escaped.append(variable)
        self.__exit__()
        variable.assign(value)
        self.__enter__()

    def get_current_value(self, variable):
        value = super().get_current_value(variable)
        if value is not None:
            self.fed_back.append(variable)
        return value

    def write(self):
        """Sets the variables that were set in this pass."""
        for variable, value in self.written.values():
            variable.assign(value)


def _graph_of(tensor):
    return getattr(tensor, "graph", None)  # Eager ones have none.


def on_one_device(function, *tensors):
    """Calls a function of tensors as if there were no replicas.

    Keras's losses divide means by the number of replicas, as is right of a
    replica's own images. A thread of its own, which traces the function, knows
    of no replicas.
    """
    specs = [tf.TensorSpec(x.shape, x.dtype) for x in tensors]
    function = tf.function(function, autograph=False)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        trace = thread.submit(function.get_concrete_function, *specs)
    return trace.result()(*tensors)


def agreed(flags):
    """Which of some booleans are true in any replica."""
    _, replicas = replica_and_number()
    if replicas == 1:
        return flags
    counts = tf.cast(flags, tf.float32)
    replica = tf.distribute.get_replica_context()
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, counts) > 0


def agreed_by_workers(strategy):
    """Function that says which of its flags are true in any worker.

    All workers must call it, in the same step.
    """
    if not has_workers(strategy):
        return lambda *flags: flags

    def share(counts):
        replica = tf.distribute.get_replica_context()
        counts = tf.identity(counts)  # Which is on the replica's device.
        return replica.all_reduce(tf.distribute.ReduceOp.SUM, counts)

    shared = tf.function(lambda counts: strategy.run(share, (counts,)))

    def agreed_flags(*flags):
        counts = shared(tf.constant(flags, tf.float32))
        local = strategy.experimental_local_results(counts)
        return tuple(local[0].numpy() > 0)

    return agreed_flags


@tf.custom_gradient
def from_all_replicas(rows):
    """The rows `(n, ...)` of all replicas, in the order of the replicas.

    For a loss that every replica computes from the same rows, the gradient with
    respect to the replica's own rows is right as it is: summed over the
    replicas, the gradients of the variables are those of one device.
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
        start = (place * size[0], *[0] * len(rest))
        return tf.slice(upstream, start, size)

    return everything, gradient


def penalized(model, loss, penalties):
    """The loss to differentiate in each replica, and the whole loss.

    Penalties are means over a replica's batch, as Keras has them: the mean over
    the replicas is that of the global batch. Those of regularized variables are
    added.
    """
    _, replicas = replica_and_number()
    penalties = penalties + [
        variable.regularizer(variable)
        for variable in model.trainable_variables
        if variable.regularizer is not None
    ]
    penalty = sum((tf.cast(x, loss.dtype) for x in penalties), 0.0)
    # The gradients of all replicas are summed; that of `loss` reaches this
    # replica's projections only, that of a penalty is whole in each.
    target = model.optimizer.scale_loss(loss + penalty / replicas)
    if penalties and replicas > 1:
        replica = tf.distribute.get_replica_context()
        penalty = replica.all_reduce(tf.distribute.ReduceOp.MEAN, penalty)
    return target, loss + penalty


def share_failure(gradients):
    """Makes gradients non-finite in all replicas if they are so in one.

    `keras.optimizers.LossScaleOptimizer` looks at the first replica only, and
    would let the others' NaN into the weights. 0 or NaN is added to the first
    gradient.
    """
    tensors = [gradient for gradient in gradients if gradient is not None]
    failure = tf.add_n([tf.reduce_sum(0 * tensor) for tensor in tensors])
    replica = tf.distribute.get_replica_context()
    failure = replica.all_reduce(tf.distribute.ReduceOp.SUM, failure)
    first = next(i for i, x in enumerate(gradients) if x is not None)
    gradients = list(gradients)
    gradients[first] += failure
    return gradients


def prepare(layers, embed, inputs, *, replicas, micro_batch_size):
    """Makes layers fit for replicas or micro-batches, or refuses them.

    Batch norm is synchronized among replicas, but not in micro-batches: no
    collective may stand inside their loop. A forward pass that cannot be
    repeated is refused: `embed` is that of all layers, in training, tried on
    `inputs` (`trials.examples`).
    """
    is_cached = micro_batch_size is not None
    if (is_cached or replicas > 1) and trials.is_random(embed, inputs):
        _refuse_randomness(layers, is_cached)
    for layer in layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = replicas > 1 and not is_cached


def _refuse_randomness(layers, is_cached):
    names = [layer.name for layer in layers if trials.generators_of(layer)]
    words = f"layers {', '.join(names)}. Leave them out"
    if not names:
        words = (
            "other outputs for equal inputs. Leave out what draws in its "
            "`call`, for example from keras.random or tf.random"
        )
    if is_cached:
        raise ValueError(
            f"{REPEATABLE} Received: {words}, or leave out `micro_batch_size`."
        )
    raise ValueError(
        "Several replicas need layers that draw no random numbers: Keras "
        f"gives all replicas the same ones. Received: {words}."
    )


def check_strategy(strategy, variables, micro_batch_size=None):
    """Refuses a way of distribution that does not train as one device would.

    Replicas must be synchronous, the variables belong to the strategy, and a
    TPU not work in micro-batches.
    """
    if keras.distribution.distribution() is not None:
        raise ValueError(
            "`keras.distribution` does nothing on TensorFlow. Use a "
            "tf.distribute strategy, and make the model in its scope. "
            f"Received: {keras.distribution.distribution()}"
        )
    if isinstance(
        strategy,
        (
            tf.distribute.ParameterServerStrategy,
            tf.distribute.experimental.CentralStorageStrategy,
        ),
    ):
        raise ValueError(
            "Negatives come from all replicas, which must work in step. Use "
            "MirroredStrategy or MultiWorkerMirroredStrategy. Received: "
            f"{type(strategy).__name__}"
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
    """Refuses options that Keras 3 gets wrong in contrastive training."""
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


def check_on_nan(on_nan, replicas):
    """What is done where a gradient is not finite; refuses what cannot be."""
    _checks.choice("on_nan", on_nan, ("stop", "skip"))
    if on_nan == "skip" and replicas > 1:
        raise ValueError(
            "`on_nan='skip'` works on one device: replicas would each decide. "
            f"Received: on_nan={on_nan!r} on {replicas} replicas"
        )
    return on_nan


def check_execution(
    replicas, micro_batch_size, *, jit_compile, steps_per_execution=1, **_
):
    """Refuses ways to run the step that do not work with what is trained."""
    if jit_compile and (replicas > 1 or micro_batch_size):
        raise ValueError(
            "`jit_compile=True` works on one device without micro-batches. "
            "Leave it out: what gains from XLA is compiled anyway."
        )
    if steps_per_execution != 1 and replicas > 1:
        raise ValueError(
            "`steps_per_execution` must be 1 on several replicas, where "
            "Keras 3 fails with more. Received: "
            f"steps_per_execution={steps_per_execution}"
        )


def check_agreement(strategy, step, words=""):
    """Refuses, in all workers, that they go on from different steps.

    Or with others of the `words`, which tell flags, seed and data.
    """
    if not has_workers(strategy):
        return
    digest = hashlib.sha256(words.encode(errors="surrogateescape")).digest()
    # Of three bytes: their squares are still exact.
    numbers = np.array([step, int.from_bytes(digest[:3])], "float64")

    def share():
        replica = tf.distribute.get_replica_context()
        powers = tf.constant(np.stack([numbers, numbers**2]))
        return replica.all_reduce("MEAN", powers)

    means = tf.function(lambda: strategy.run(share))()
    means = strategy.experimental_local_results(means)[0].numpy()
    (mean, _), _ = means
    is_other = means[1] > means[0] ** 2
    if is_other[1]:
        raise ValueError(
            "All workers must train by the same flags and seed, on the same "
            f"data. Received: what others do not have, in {words!r}"
        )
    if is_other[0]:
        raise ValueError(
            "All workers must see one run directory, on a disk that they "
            f"share. Received: a checkpoint of step {step} here, and on "
            f"average of step {mean:g}"
        )
