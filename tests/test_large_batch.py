import json
import os
import re
import socket
import subprocess
import sys

import cluster
import keras
import numpy as np
import pytest
import tensorflow as tf
from replicas import mirrored

import keras_simclr as simclr
from keras_simclr import copies, elements, micro_batches, replicas
from keras_simclr.networks import FusedBatchNormalization

IMAGES = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), "uint8")


@pytest.fixture(autouse=True)
def _policy():
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


def network(norm=FusedBatchNormalization, **kwargs):
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(8, 3, use_bias=False, **kwargs),
            norm(),
            keras.layers.ReLU(),
            keras.layers.Conv2D(16, 3, use_bias=False),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )


def groups():
    return keras.layers.GroupNormalization(4)


def flip():
    return simclr.RandomFlip()


def light():
    return [simclr.RandomFlip(), simclr.RandomGaussianNoise()]


def linear_head():
    return keras.layers.Dense(8, use_bias=False)


def sgd():
    return keras.optimizers.SGD(1.0)


def lars():
    return simclr.LARS(
        keras.optimizers.SGD(0.1, momentum=0.9), trust_coefficient=0.02
    )


def adamw():
    return keras.optimizers.AdamW(1e-3)


def dull_adamw():
    # With its usual epsilon, a first step is the sign even of rounding errors.
    return keras.optimizers.AdamW(1e-3, epsilon=0.1)


def train(
    replicas=1,
    *,
    encoder=network,
    head=None,
    augmentation=flip,
    optimizer=sgd,
    dtype="float32",
    micro_batch_size=None,
    batch_size=32,
    others=None,
):
    if dtype == "float64":
        keras.config.set_floatx("float64")
    keras.config.set_dtype_policy(dtype)
    keras.utils.set_random_seed(1)
    with mirrored(replicas).scope():
        model = simclr.SimCLRModel(
            encoder(),
            head and head(),
            augmentation=augmentation(),
            micro_batch_size=micro_batch_size,
            seed=3,
        )
        model.compile(optimizer())
    size = 4 * batch_size if dtype == "float64" else batch_size
    arrays = {"images": IMAGES, **(others or {})}
    history = model.fit(
        {name: array[:size] for name, array in arrays.items()},
        batch_size=batch_size,
        shuffle=False,
        verbose=0,
    )
    variables = [variable.numpy() for variable in model.variables]
    return history.history, variables


def assert_equal(actual, expected, tolerance):
    (history, variables), (right_history, right_variables) = actual, expected
    for name, values in right_history.items():
        np.testing.assert_allclose(history[name], values, rtol=tolerance)
    for value, right in zip(variables, right_variables, strict=True):
        scale = np.abs(right).max() or 1.0
        np.testing.assert_allclose(value, right, atol=tolerance * scale)


@pytest.mark.parametrize(
    ("dtype", "tolerance", "optimizer", "replicas"),
    [
        ("float32", 1e-5, sgd, 4),
        ("float32", 1e-5, lars, 2),
        ("float32", 1e-5, dull_adamw, 2),
        # Of a gradient in bfloat16, with its 8 bits, no more can be asked.
        ("mixed_bfloat16", 0.02, sgd, 2),
        ("mixed_bfloat16", 1e-3, lars, 2),
        ("mixed_bfloat16", 1e-3, dull_adamw, 2),
    ],
)
def test_replicas_equal_one_device(dtype, tolerance, optimizer, replicas):
    kwargs = {"dtype": dtype, "optimizer": optimizer}
    assert_equal(train(replicas, **kwargs), train(**kwargs), tolerance)


@pytest.mark.parametrize(
    ("optimizer", "augmentation", "head"),
    [(lars, light, None), (adamw, flip, linear_head)],
)
def test_replicas_equal_one_device_in_several_steps(
    optimizer, augmentation, head
):
    kwargs = {
        "dtype": "float64",
        "optimizer": optimizer,
        "augmentation": augmentation,
        "head": head,
        "batch_size": 8,
    }
    assert_equal(train(2, **kwargs), train(**kwargs), 1e-9)


def train_without_batch_norm(replicas=1, micro_batch_size=None):
    def encoder():
        return network(groups, kernel_regularizer="l2")

    def head():
        return keras.Sequential(
            [
                keras.Input((16,)),
                keras.layers.Dense(8),
                keras.layers.LayerNormalization(),
            ]
        )

    return train(
        replicas,
        encoder=encoder,
        head=head,
        dtype="float64",
        batch_size=16,
        optimizer=lars,
        micro_batch_size=micro_batch_size,
    )


@pytest.fixture(scope="module")
def whole_batch():
    return train_without_batch_norm()


@pytest.mark.parametrize(
    ("replicas", "micro_batch_size"), [(1, 5), (2, 3), (1, 64)]
)
def test_micro_batches_equal_the_batch(whole_batch, replicas, micro_batch_size):
    actual = train_without_batch_norm(replicas, micro_batch_size)
    assert_equal(actual, whole_batch, 1e-9)


def test_sizes_and_groups_reach_replicas_and_micro_batches():
    rng = np.random.default_rng(1)
    others = {
        "sizes": rng.integers(4, 9, (64, 2)),
        "groups": rng.integers(0, 4, 64),
    }
    kwargs = {
        "encoder": lambda: network(groups),
        "head": lambda: simclr.ProjectionHead(0),
        "augmentation": lambda: simclr.RandomResizedCrop(8, 8),
        "dtype": "float64",
        "batch_size": 8,
    }
    actual = train(2, micro_batch_size=3, others=others, **kwargs)
    assert_equal(actual, train(others=others, **kwargs), 1e-9)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_micro_batches_and_replicas_in_low_precision(dtype):
    def encoder():
        return network(groups)

    kwargs = {"encoder": encoder, "head": linear_head, "dtype": dtype}
    actual = train(2, micro_batch_size=5, **kwargs)
    assert_equal(actual, train(**kwargs), 0.02)


def test_micro_batches_of_batches_of_any_size():
    labels = {"of": tf.zeros(9)}  # Any structure: they are not used.
    elements = {"images": IMAGES[:9], "labels": labels}
    dataset = tf.data.Dataset.from_tensor_slices(elements).batch(5)

    def results(micro_batch_size):
        keras.utils.set_random_seed(1)
        model = simclr.SimCLRModel(
            network(groups),
            linear_head(),
            augmentation=flip(),
            micro_batch_size=micro_batch_size,
        )
        model.compile(sgd())
        history = model.fit(dataset, validation_data=dataset, verbose=0).history
        return history, [variable.numpy() for variable in model.variables]

    # Validation passes in micro-batches, too.
    assert_equal(results(4), results(None), 1e-4)


def test_micro_batches_take_no_losses_of_layers():
    def encoder():
        penalty = keras.layers.ActivityRegularization(1.0)
        return keras.Sequential([network(), penalty])

    message = (
        "Layers that add losses of their own (`activity_regularizer`, "
        "`add_loss`) do not work in micro-batches. Leave out "
        "`micro_batch_size`, or use weight regularizers."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        train(encoder=encoder, micro_batch_size=8)


def in_chunks(model, images, size):
    """One step of SGD(1.0): the same forward pass, all chunks on one tape."""
    views = model.views(images)
    averages = model.non_trainable_variables
    before = [average.numpy() for average in averages]
    sums = [0.0 for _ in averages]
    with tf.GradientTape() as tape:
        parts = []
        for start in range(0, len(images), size):
            chunk = [view[start : start + size] for view in views]
            h = model.encoder(tf.concat(chunk, 0), training=True)
            z = model.projection_head(h, training=True)
            parts.append(tf.split(z, 2))
            for place, average in enumerate(averages):
                sums[place] += average.numpy()
                average.assign(before[place])
        z_1, z_2 = (tf.concat(part, 0) for part in zip(*parts, strict=True))
        loss = simclr.nt_xent(z_1, z_2)
    gradients = tape.gradient(loss, model.trainable_variables)
    for variable, gradient in zip(
        model.trainable_variables, gradients, strict=True
    ):
        variable.assign_sub(gradient)
    for average, total in zip(averages, sums, strict=True):
        average.assign(total / len(parts))
    return float(loss)


@pytest.mark.parametrize("replicas", [1, 2])
def test_batch_norm_in_micro_batches_sees_each_by_itself(replicas):
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")

    def build_model(**kwargs):
        keras.utils.set_random_seed(1)
        head = simclr.ProjectionHead(1, units=4)
        return simclr.SimCLRModel(
            network(), head, augmentation=flip(), seed=3, **kwargs
        )

    model = build_model()
    images = np.float32(IMAGES[:12] / 255)
    loss = in_chunks(model, images, 3)
    with mirrored(replicas).scope():
        other = build_model(micro_batch_size=3)
        other.compile(sgd())
    history = other.fit(images, batch_size=12, shuffle=False, verbose=0)
    assert history.history["loss"] == [pytest.approx(loss, rel=1e-9)]
    for mine, right in zip(
        other.encoder.variables + other.projection_head.variables,
        model.encoder.variables + model.projection_head.variables,
        strict=True,
    ):
        np.testing.assert_allclose(mine.numpy(), right.numpy(), atol=1e-9)


class Failing(keras.layers.Layer):
    """The identity, whose gradient is NaN for white images."""

    def call(self, images):
        @tf.custom_gradient
        def identity(images):
            white = tf.reduce_min(images, axis=(1, 2, 3), keepdims=True) > 0.99
            factor = tf.where(white, np.nan, 1.0)
            return tf.identity(
                images
            ), lambda upstream: upstream * tf.cast(factor, upstream.dtype)

        return identity(images)


def test_nan_in_one_replica_is_seen_by_all():
    keras.config.set_dtype_policy("mixed_float16")
    with mirrored(2).scope():
        first = keras.layers.Conv2D(4, 1)
        encoder = keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                keras.layers.Conv2D(3, 1, kernel_initializer="ones"),
                Failing(),
                first,
                keras.layers.GlobalAveragePooling2D(),
            ]
        )
        model = simclr.SimCLRModel(
            encoder, linear_head(), augmentation=simclr.RandomFlip(rate=0.0)
        )
        model.compile(sgd())
    before = [variable.numpy() for variable in model.trainable_variables]
    for place, scale in ((0, 2.0**14), (31, 2.0**13)):
        images = IMAGES[:32].copy() // 2
        images[place] = 255
        model.fit(images, batch_size=32, shuffle=False, verbose=0)
        after = [variable.numpy() for variable in model.trainable_variables]
        for old, new in zip(before, after, strict=True):
            np.testing.assert_array_equal(old, new)
        assert model.optimizer.dynamic_scale.numpy() == scale


def test_layers_are_found_at_any_depth():
    inner = keras.Sequential([keras.layers.BatchNormalization()])

    class Outer(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.parts = {"a": [inner], "b": (keras.layers.Dropout(0.5),)}

    outer = Outer()
    found = copies.nested_layers(keras.Sequential([outer]))
    assert {outer, inner, *inner.layers, *outer.parts["b"]} <= set(found)


def dropout():
    return keras.Sequential([network(), keras.layers.Dropout(0.5, name="drop")])


def unseeded():
    return keras.Sequential([keras.Input((8, 8, 3)), keras.layers.ReLU()])


def clipped():
    return keras.optimizers.SGD(1.0, clipnorm=1.0)


def averaged():
    return keras.optimizers.SGD(1.0, use_ema=True, ema_overwrite_frequency=2)


def accumulating():
    return keras.optimizers.SGD(1.0, gradient_accumulation_steps=2)


@pytest.mark.parametrize(
    ("replicas", "kwargs", "message"),
    [
        (
            2,
            {"encoder": dropout},
            (
                "Several replicas need layers that draw no random numbers: "
                "Keras gives all replicas the same ones. Received: layers "
                "drop. Leave them out."
            ),
        ),
        (
            1,
            {"encoder": dropout, "micro_batch_size": 8},
            (
                "`micro_batch_size` needs a forward pass that can be repeated: "
                "no dropout, nothing else that draws random numbers. Received: "
                "layers drop. Leave them out, or leave out `micro_batch_size`."
            ),
        ),
        (
            2,
            {"optimizer": clipped},
            (
                "`clipnorm` cannot be used here: Keras clips the gradients of "
                "each replica by themselves. Received: clipnorm=1.0"
            ),
        ),
        (
            2,
            {"optimizer": averaged},
            (
                "`ema_overwrite_frequency` cannot be used here: Keras 3 fails "
                "with it on several replicas. Received: "
                "ema_overwrite_frequency=2"
            ),
        ),
        (
            1,
            {"optimizer": accumulating},
            (
                "`gradient_accumulation_steps` cannot be used here: "
                "accumulating gradients adds no negatives. Use "
                "SimCLRModel(..., micro_batch_size=...). Received: "
                "gradient_accumulation_steps=2"
            ),
        ),
        (
            2,
            {"batch_size": 31},
            (
                "Several replicas need batches of one size that their number "
                "divides: build them with batch(..., drop_remainder=True). "
                "Received: `images` of shape (31, 8, 8, 3) for 2 replicas"
            ),
        ),
    ],
)
def test_what_would_go_wrong_is_refused(replicas, kwargs, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        train(replicas, **kwargs)


@pytest.mark.parametrize("micro_batch_size", [None, 8])
def test_augmentation_without_seed_is_refused(micro_batch_size):
    replicas = 2 if micro_batch_size is None else 1
    message = (
        "Several replicas, and micro-batches, need augmentations that take a "
        "`seed`. Received: flip in `augmentation`. If this is a `Sequential` "
        "or a `Pipeline`, pass its layers as a list."
    )
    with (
        mirrored(replicas).scope(),
        pytest.raises(ValueError, match=re.escape(message)),
    ):
        simclr.SimCLRModel(
            network(),
            augmentation=[
                simclr.RandomFlip(),
                keras.layers.RandomFlip(name="flip"),
            ],
            micro_batch_size=micro_batch_size,
        )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"jit_compile": True},
            (
                "`jit_compile=True` works on one device without micro-batches. "
                "Leave it out: what gains from XLA is compiled anyway."
            ),
        ),
        (
            {"steps_per_execution": 2},
            (
                "`steps_per_execution` must be 1 on several replicas, where "
                "Keras 3 fails with more. Received: steps_per_execution=2"
            ),
        ),
    ],
)
def test_execution_that_fails_on_replicas_is_refused(kwargs, message):
    with mirrored(2).scope():
        model = simclr.SimCLRModel(network(), augmentation=light())
        with pytest.raises(ValueError, match=re.escape(message)):
            model.compile(**kwargs)


def outside(name):
    return (
        "Encoder, model and optimizer must be made in the strategy's scope: "
        "with strategy.scope(): model = SimCLRModel(ResNet(18)); "
        f"model.compile(...). Received: {name!r} from outside"
    )


def test_encoder_from_outside_the_scope_is_refused():
    encoder = network()
    message = outside(encoder.variables[0].path)
    with (
        mirrored(2).scope(),
        pytest.raises(ValueError, match=re.escape(message)),
    ):
        simclr.SimCLRModel(encoder, augmentation=light())


def test_model_from_outside_the_scope_is_refused():
    model = simclr.SimCLRModel(network(), augmentation=light())
    message = outside(model.variables[0].path)
    with (
        mirrored(2).scope(),
        pytest.raises(ValueError, match=re.escape(message)),
    ):
        model.compile()


def test_optimizer_from_outside_the_scope_is_refused():
    with mirrored(2).scope():
        model = simclr.SimCLRModel(network(), augmentation=light())
    model.compile()  # Makes its own, in the scope.
    optimizer = sgd()
    message = outside(optimizer.variables[0].path)
    with pytest.raises(ValueError, match=re.escape(message)):
        model.compile(optimizer)


def test_data_that_replicas_cannot_share_is_refused():
    with mirrored(2).scope():
        model = simclr.SimCLRModel(network(), augmentation=light())
        model.compile(sgd())
    batches = (IMAGES[:8] for _ in range(2))
    message = "Several replicas need arrays or a tf.data.Dataset. Received: x="
    with pytest.raises(ValueError, match=re.escape(message)):
        model.fit(batches)
    with pytest.raises(ValueError, match="batches of one size"):
        model.fit(IMAGES[:16], batch_size=8, validation_data=IMAGES[:3])
    for name in ("train_on_batch", "test_on_batch"):
        message = (
            f"`{name}` gives the whole batch to every replica. Use `fit` or "
            "`evaluate`. Received: 2 replicas"
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            getattr(model, name)(IMAGES[:8])


@pytest.mark.parametrize(
    ("workers", "devices"), [(1, 4), (2, 1), (2, 2), (4, 2)]
)
def test_replicas_know_which_piece_of_the_batch_they_have(workers, devices):
    number = workers * devices
    # How tf.distribute shares a batch: in pieces, dealt to workers in turn.
    pieces = tf.data.Dataset.range(number).batch(number).rebatch(1)
    for worker in range(workers):
        dealt = pieces.shard(workers, worker).as_numpy_iterator()
        for device, piece in enumerate(dealt):
            replica = worker * devices + device
            assert replicas._piece(replica, devices, workers) == piece


def test_unknown_batch_size_is_refused_on_replicas():
    dataset = tf.data.Dataset.from_tensor_slices(IMAGES).batch(8)
    with mirrored(2).scope():
        model = simclr.SimCLRModel(network(), augmentation=light())
        model.compile()
    message = (
        "Several replicas need batches of one size that their number divides: "
        "build them with batch(..., drop_remainder=True). Received: `images` "
        "of shape (None, 8, 8, 3) for 2 replicas"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        model.fit(dataset)


def test_asynchronous_replicas_are_refused():
    strategy = object.__new__(tf.distribute.ParameterServerStrategy)
    message = (
        "Negatives come from all replicas, which must work in step. Use "
        "MirroredStrategy or MultiWorkerMirroredStrategy. Received: "
        "ParameterServerStrategy"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        replicas.check_strategy(strategy, [])


def test_micro_batches_on_a_tpu_are_refused(monkeypatch):
    two = mirrored(2)
    monkeypatch.setattr(tf.distribute, "TPUStrategy", type(two))
    with two.scope():
        simclr.SimCLRModel(network(), augmentation=light())
        with pytest.raises(ValueError) as error:
            simclr.SimCLRModel(
                network(), augmentation=light(), micro_batch_size=4
            )
    assert str(error.value) == (
        "`micro_batch_size` needs a CPU or GPUs: its loops do not compile for "
        "a TPU. Leave it out, and take a smaller batch or more cores. "
        "Received: micro_batch_size=4 on a TPU"
    )


def test_distribution_of_keras_is_refused(monkeypatch):
    monkeypatch.setattr(keras.distribution, "distribution", lambda: "a mesh")
    message = (
        "`keras.distribution` does nothing on TensorFlow. Use a tf.distribute "
        "strategy, and make the model in its scope. Received: a mesh"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        simclr.SimCLRModel(network(), augmentation=light())


@pytest.mark.parametrize(
    ("fits", "batch_size", "expected"),
    [(100, 1024, 64), (64, 1024, 64), (5000, 1000, None), (40, 41, 32)],
)
def test_largest_micro_batch_is_the_last_that_fits(fits, batch_size, expected):
    def step(size):
        if size > fits:
            raise tf.errors.ResourceExhaustedError(None, None, "out of memory")

    assert micro_batches.largest_micro_batch(step, batch_size) == expected


def test_largest_micro_batch_leaves_a_quarter_of_memory(monkeypatch):
    taken = [0]
    monkeypatch.setattr(micro_batches, "_free_memory", lambda: 1000)
    monkeypatch.setattr(micro_batches, "_memory", lambda: 500)
    monkeypatch.setattr(micro_batches, "_peak_memory", lambda: 500 + taken[0])

    def step(size):
        taken[0] = 100 + 4 * size

    # 128 images take 612 of 1000; twice that would not leave a quarter.
    assert micro_batches.largest_micro_batch(step, 1024) == 128
    assert micro_batches.largest_micro_batch(step, 48) is None


def test_nothing_fits():
    def step(size):
        raise tf.errors.ResourceExhaustedError(None, None, "out of memory")

    message = (
        "A micro-batch must hold at least 8 images, and memory is too small "
        "for them. Take a smaller encoder or smaller images."
    )
    with pytest.raises(MemoryError, match=re.escape(message)):
        micro_batches.largest_micro_batch(step, 64)


def test_foreign_augmentation_draws_anew_in_each_part():
    seen = []

    class Foreign(keras.layers.Layer):
        def call(self, images, seed=None):
            seen.append(seed)
            return images

    model = simclr.SimCLRModel(
        network(), augmentation=[simclr.RandomFlip(), Foreign()]
    )
    seen.clear()
    model._views(IMAGES[:2], None, 0)
    model._views(IMAGES[:2], None, 0, start=4, size=8)
    whole, _, part, _ = (tuple(seed.numpy()) for seed in seen)
    assert whole != part


class Replica:
    """Replica 1 of 2 as a TPU presents it: its number is a tensor."""

    num_replicas_in_sync = 2

    def __init__(self):
        self.replica_id_in_sync_group = tf.constant(1)

    def all_gather(self, rows, axis):
        return tf.concat([rows, rows], axis)

    def all_reduce(self, how, value):
        return value if how == tf.distribute.ReduceOp.MEAN else 2 * value


def test_whole_step_of_a_replica_compiles_with_static_shapes(monkeypatch):
    model = simclr.SimCLRModel(
        network(), augmentation=simclr.SimCLRAugmentation(8)
    )
    model.compile(lars())
    model.optimizer.build(model.trainable_variables)
    for layer in copies.nested_layers(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True

    def step(images):
        replica = Replica()
        monkeypatch.setattr(
            tf.distribute, "get_replica_context", lambda: replica
        )
        element = elements.unpack(images)
        with model._checked(element):
            gradients, loss, _ = model.replica_gradients(element)
        monkeypatch.undo()
        model.optimizer.apply(gradients, model.trainable_variables)
        return loss

    compiled = tf.function(step, jit_compile=True)
    assert np.isfinite(compiled(tf.constant(IMAGES[:8])))
    graphs = [compiled.get_concrete_function(tf.constant(IMAGES[:8])).graph]
    names = set()
    for graph in graphs:
        names |= {operation.type for operation in graph.get_operations()}
        graphs += [
            f.graph for f in graph._functions.values() if hasattr(f, "graph")
        ]
    assert not {name for name in names if "PyFunc" in name}


@pytest.mark.parametrize(
    ("what", "cause"),
    [
        (
            "gradient",
            (
                "a loss that is not a function of all projections alone, or a "
                "custom gradient that divides by the size of a replica's batch"
            ),
        ),
        (
            "batch norm",
            "a moving average that is not the mean over the replicas",
        ),
        (
            "update",
            (
                "an optimizer that looks at a replica's own gradients: "
                "override `update_step`, not `apply`"
            ),
        ),
    ],
)
def test_parity_names_what_differs_first(what, cause):
    order = ["loss", "gradient", "batch norm", "update"]
    one = {name: [("w", np.ones(2)), ("b", np.ones(1))] for name in order}
    several = {name: list(values) for name, values in one.items()}
    for name in order[order.index(what) :]:
        several[name][1] = ("b", np.full(1, 1.5))
    message = (
        f"2 replicas differ from one device, first in the {what} (b, by "
        f"5.0e-01 of its largest entry). Usual cause: {cause}."
    )
    with pytest.raises(AssertionError, match=re.escape(message)):
        simclr.testing._compare(one, several, 2)


def test_parity_overlooks_rounding_errors_only():
    def results(bias):
        values = [("w", np.ones(2)), ("b", np.float64([bias]))]
        return {
            **dict.fromkeys(("loss", "gradient", "update"), values),
            "batch norm": [],
        }

    simclr.testing._compare(results(1e-14), results(-1e-14), 2)
    with pytest.raises(AssertionError):
        simclr.testing._compare(results(1e-6), results(-1e-6), 2)


@pytest.mark.parametrize("is_exact", [True, False])
def test_parity_of_a_users_own_encoder(is_exact):
    class Norm(keras.layers.Layer):
        """Batch norm that forgets about the other replicas."""

        def call(self, images):
            return images - tf.reduce_mean(images, axis=(0, 1, 2))

    def build_model():
        norm = FusedBatchNormalization if is_exact else Norm
        model = simclr.SimCLRModel(
            network(norm), linear_head(), augmentation=flip()
        )
        model.compile()
        return model

    dataset = simclr.dataset_from_arrays(IMAGES, batch_size=16)
    if is_exact:
        simclr.testing.assert_replica_parity(build_model, dataset)
        return
    message = "2 replicas differ from one device, first in the loss"
    with pytest.raises(AssertionError, match=message):
        simclr.testing.assert_replica_parity(build_model, dataset)


def test_parity_says_how_to_make_devices():
    message = (
        "5 replicas need as many logical devices. Received: 4. Before "
        "TensorFlow starts, run: tf.config.set_logical_device_configuration("
        'tf.config.list_physical_devices("CPU")[0], '
        "[tf.config.LogicalDeviceConfiguration()] * 5)"
    )
    with pytest.raises(RuntimeError, match=re.escape(message)):
        simclr.testing.assert_replica_parity(None, None, replicas=5)


def test_two_workers_equal_one_device(tmp_path):
    sockets = [socket.socket() for _ in range(2)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{x.getsockname()[1]}" for x in sockets]
    for each in sockets:
        each.close()

    def start(name, index):
        config = {
            "cluster": {"worker": addresses},
            "task": {"type": "worker", "index": index},
        }
        return subprocess.Popen(
            [
                sys.executable,
                cluster.__file__,
                tmp_path / "cluster",
                tmp_path / f"{name}.npz",
            ],
            env=dict(
                os.environ,
                TF_CPP_MIN_LOG_LEVEL="3",
                TF_CONFIG=json.dumps(config),
            ),
            stderr=subprocess.PIPE,
            text=True,
        )

    processes = [start("first", 0), start("second", 1)]
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    model = cluster.build_model(tf.distribute.get_strategy())
    cluster.train(model, tmp_path / "alone", tmp_path / "alone.npz")
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    alone, first, second = (
        np.load(tmp_path / f"{name}.npz")
        for name in ("alone", "first", "second")
    )
    for name in alone.files:
        np.testing.assert_allclose(first[name], alone[name], atol=1e-9)
        np.testing.assert_allclose(second[name], alone[name], atol=1e-9)
    logs, names = [], []
    for run_dir in ("alone", "cluster"):
        path = tmp_path / run_dir
        names.append(sorted(each.name for each in path.iterdir()))
        logs.append(np.genfromtxt(path / "log.csv", delimiter=",")[1:])
    np.testing.assert_allclose(*logs, rtol=1e-9)
    assert names[0] == names[1]
