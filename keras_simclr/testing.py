"""Checks for encoders, augmentations and losses of your own."""

import contextlib
import pathlib
import tempfile

import keras
import numpy as np
import tensorflow as tf

from keras_simclr import augmentations, copies, elements

_TOLERANCE = 1e-9  # Of a tensor's largest entry, in float64.
# But at least of this part of all tensors': a bias before batch norm has no
# gradient except rounding errors.
_NEGLIGIBLE = 0.01
_CAUSES = {
    "penalty": "an `add_loss` that is no mean over the batch, or a layer in "
    "front of it that looks at a replica's own images only",
    "loss": "a layer that looks at a replica's own images only (a norm other "
    "than keras.layers.BatchNormalization), or an augmentation that ignores "
    "`part`",
    "gradient": "a loss that is not a function of all projections alone, or a "
    "custom gradient that divides by the size of a replica's batch",
    "batch norm": "a moving average that is not the mean over the replicas",
    "update": "an optimizer that looks at a replica's own gradients: override "
    "`update_step`, not `apply`",
}


def assert_copies_agree(encoder, inputs=None):
    """Asserts that copies of an encoder return at rest what it returns.

    These are the float32 copy that probes, fine-tuning and exports use, and one
    that was saved and loaded. What is lost in them is state that is neither a
    weight nor in `get_config` nor in `save_own_variables`.

    Args:
        encoder: Built `keras.Model`.
        inputs: Batch of what it takes, or None for random numbers: give one
            for an encoder that takes words, or only some numbers.

    Raises:
        AssertionError: If one returns other values, or the encoder is random
            at rest.

    Example:

    >>> normalization = keras.layers.Normalization()
    >>> normalization.adapt(np.random.default_rng(0).normal(5, 2, (100, 4)))
    >>> encoder = keras.Sequential(
    ...     [keras.Input((4,)), normalization, keras.layers.Dense(3)]
    ... )
    >>> assert_copies_agree(encoder)
    """
    try:
        copies.check_copy(encoder, copies.plain_copy(encoder), inputs)
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory) / "encoder.keras"
            encoder.save(path)
            loaded = keras.models.load_model(
                path, custom_objects=copies.own_objects(encoder)
            )
        copies.check_copy(encoder, loaded, inputs)
    except ValueError as error:
        raise AssertionError(str(error)) from error


def assert_at_rest(part, inputs):
    """Asserts that nothing is random at rest (`training=False`).

    Each layer is called several times, and sees each example twice.

    Args:
        part: An augmentation (a layer, or a list of layers), an encoder, a
            projection head or a `SimCLRModel`.
        inputs: Batch of examples that it takes.

    Raises:
        AssertionError: If a layer returns different outputs for equal inputs.

    Example:

    >>> images = np.random.default_rng(0).random((2, 8, 8, 3), "float32")
    >>> assert_at_rest([simclr.RandomFlip()], images)
    >>> assert_at_rest(keras.layers.RandomFlip(), images)
    """
    inputs = tf.convert_to_tensor(inputs)
    for layer in augmentations.as_list(part):
        twice = tf.concat([inputs, inputs], axis=0)
        if augmentations.is_random_at_rest(layer, twice):
            raise AssertionError(
                f"{layer.name!r} returns other outputs for equal inputs at "
                "rest. Let its `call` draw only if `training` is true."
            )
        inputs = augmentations.at_rest(layer, inputs)


def assert_replica_parity(build_model, dataset, *, replicas=2):
    """Asserts that several replicas train a model as one device does.

    One step of the first batch on one logical CPU device, and on several; in
    float64, so that rounding errors cannot be taken for others.

    Args:
        build_model: Function without arguments that makes and compiles a
            `SimCLRModel`; every part of it, the encoder too.
        dataset: A `tf.data.Dataset` as `fit` takes it, whose batches
            `replicas` divides.
        replicas: Number of replicas.

    Raises:
        AssertionError: If the results differ; says what does so first (what
            layers add to the loss, the loss, gradient, batch norm or update)
            and the usual cause.
        RuntimeError: If there are fewer logical devices than replicas.

    Example:

    >>> def build_model():
    ...     encoder = keras.Sequential([
    ...         keras.Input((8, 8, 1)),
    ...         keras.layers.Conv2D(4, 3),
    ...         keras.layers.BatchNormalization(),
    ...         keras.layers.GlobalAveragePooling2D(),
    ...     ])
    ...     flip = simclr.RandomFlip()
    ...     model = simclr.SimCLRModel(encoder, augmentation=flip)
    ...     model.compile()
    ...     return model
    >>> images = np.random.default_rng(0).random((8, 8, 8, 1))
    >>> dataset = simclr.dataset_from_arrays(images, batch_size=8)
    >>> assert_replica_parity(build_model, dataset)
    """
    devices = tf.config.list_logical_devices("CPU")
    if len(devices) < replicas:
        raise RuntimeError(
            f"{replicas} replicas need as many logical devices. Received: "
            f"{len(devices)}. Before TensorFlow starts, run: "
            "tf.config.set_logical_device_configuration("
            'tf.config.list_physical_devices("CPU")[0], '
            f"[tf.config.LogicalDeviceConfiguration()] * {replicas})"
        )
    strategies = (
        tf.distribute.get_strategy(),
        tf.distribute.MirroredStrategy(
            [device.name for device in devices[:replicas]],
            # Collectives of another size would be lost for this process.
            cross_device_ops=tf.distribute.ReductionToOneDevice(),
        ),
    )
    batch = dataset.take(1).cache()
    weights, results = None, []
    with _float64():
        for strategy in strategies:
            with strategy.scope():
                model = build_model()
            if weights is None:
                weights = model.get_weights()
            model.set_weights(weights)
            results.append(_one_step(model, batch))
    _compare(*results, replicas)


def _compare(one, several, replicas):
    for what, cause in _CAUSES.items():
        largest = max((np.abs(x).max() for _, x in one[what]), default=0.0)
        for (name, right), (_, value) in zip(
            one[what], several[what], strict=True
        ):
            scale = max(np.abs(right).max(), _NEGLIGIBLE * largest)
            error = np.abs(value - right).max() / (scale or 1.0)
            if not error <= _TOLERANCE:
                raise AssertionError(
                    f"{replicas} replicas differ from one device, first in "
                    f"the {what} ({name}, by {error:.1e} of its largest "
                    f"entry). Usual cause: {cause}."
                )


@contextlib.contextmanager
def _float64():
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


def _one_step(model, batch):
    """Named arrays: loss, gradient, batch norm and update of one step."""
    strategy = model.distribute_strategy
    trainable = model.trainable_variables

    @tf.function
    def step(element):
        def replica_step(element):
            gradients, loss, _, forward = model._propagate(
                elements.unpack(element)
            )
            forward.write()
            model.optimizer.apply(gradients, trainable)
            penalty = tf.add_n([tf.zeros_like(loss), *forward.penalties])
            return gradients, loss, penalty

        shares, *means = strategy.run(replica_step, args=(element,))
        gradients = [strategy.reduce("SUM", x, axis=None) for x in shares]
        return gradients, *(
            strategy.reduce("MEAN", x, axis=None) for x in means
        )

    def named(variables, values):
        return [
            (variable.path, np.asarray(value))
            for variable, value in zip(variables, values, strict=True)
        ]

    averages = model.encoder.non_trainable_variables
    averages = averages + model.projection_head.non_trainable_variables
    with strategy.scope():
        model.optimizer.build(trainable)
    (element,) = strategy.experimental_distribute_dataset(batch)
    gradients, loss, penalty = step(element)
    return {
        "penalty": [("penalty", np.asarray(penalty))],
        "loss": [("loss", np.asarray(loss))],
        "gradient": named(trainable, gradients),
        "batch norm": named(averages, [x.numpy() for x in averages]),
        "update": named(trainable, [x.numpy() for x in trainable]),
    }
