import json
import os
import re
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import cluster, run_logs
from helpers.processors import needs_bfloat16
from helpers.replicas import mirrored
from helpers.training import (
    IMAGES,
    Same,
    assert_equal,
    flip,
    lars,
    light,
    linear_head,
    network,
    of_rows,
    sgd,
    train,
    train_rows,
)

import keras_simclr as simclr
from keras_simclr import copies, elements, replicas


def adamw():
    return keras.optimizers.AdamW(1e-3)


@pytest.mark.fault(18, 21)
@pytest.mark.parametrize(
    ("dtype", "tolerance", "optimizer", "replicas"),
    [
        # Optimizers have float32 in all three; their steps, in float64, below.
        ("float32", 1e-5, sgd, 4),
        # Of a gradient in bfloat16, with its 8 bits, no more can be asked.
        pytest.param("mixed_bfloat16", 0.02, sgd, 2, marks=needs_bfloat16),
        ("mixed_bfloat16", 1e-3, lars, 2),
    ],
)
def test_replicas_equal_one_device(dtype, tolerance, optimizer, replicas):
    kwargs = {"dtype": dtype, "optimizer": optimizer}
    assert_equal(train(replicas, **kwargs), train(**kwargs), tolerance)


@pytest.mark.fault(21)
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


@pytest.mark.fault(3)
def test_nan_in_one_replica_is_seen_by_all():
    keras.config.set_dtype_policy("mixed_float16")
    strategy = mirrored(2)
    with strategy.scope():
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
        for old, variable in zip(
            before, model.trainable_variables, strict=True
        ):
            of_all = strategy.experimental_local_results(variable.value)
            assert len(of_all) == 2
            for new in of_all:
                np.testing.assert_array_equal(old, new)
        assert model.optimizer.dynamic_scale.numpy() == scale


class Adds(keras.layers.Layer):
    def call(self, rows):
        self.add_loss(tf.reduce_mean(rows**2))
        return rows


def penalized(**kwargs):
    return keras.layers.Dense(5, activation="tanh", **kwargs)


L2 = keras.regularizers.L2(1.0)


@pytest.mark.fault(67)
def test_penalties_on_replicas_are_those_of_one_device():
    """Before batch norm, behind it and in the head, of all kinds."""

    def encoder():
        return of_rows(
            penalized(kernel_regularizer=L2, activity_regularizer=L2),
            keras.layers.BatchNormalization(),
            Adds(),
            penalized(activity_regularizer=L2),
        )

    def head():
        return keras.layers.Dense(3, activity_regularizer="l1")

    kwargs = {"encoder": encoder, "head": head, "has_validation": True}
    actual = train_rows(replicas=4, **kwargs)
    assert_equal(actual, train_rows(**kwargs), 1e-9)


class Distance(keras.losses.Loss):
    """A value for each sample."""

    def call(self, z_1, z_2):
        return tf.reduce_mean((z_1 - z_2) ** 2, axis=-1)


@pytest.mark.parametrize(
    "loss",
    [
        keras.losses.CosineSimilarity(),
        lambda z_1, z_2: (
            Distance()(z_1, z_2) + Distance(reduction="sum")(z_1, z_2)
        ),
    ],
    ids=["of Keras", "within a function"],
)
def test_keras_losses_are_not_divided_by_the_replicas(loss):
    def encoder():
        return of_rows(penalized())

    kwargs = {"encoder": encoder, "loss": loss}
    assert_equal(train_rows(replicas=2, **kwargs), train_rows(**kwargs), 1e-9)


class Bins(keras.layers.Layer):
    def call(self, rows):
        return tf.cast(tf.abs(rows) * 3, tf.int32) % 7


def embedding():
    return of_rows(Bins(), keras.layers.Embedding(9, 4), keras.layers.Flatten())


def small_scale():
    inner = keras.optimizers.Adam(0.01, epsilon=0.1)
    return keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0)


def test_embedding_layers_in_float16_on_replicas():
    kwargs = {
        "encoder": embedding,
        "dtype": "mixed_float16",
        "optimizer": small_scale,
    }
    before, after = train_rows(**kwargs), train_rows(replicas=2, **kwargs)
    assert_equal(after, before, 0.02)


def test_spectral_normalization_is_that_of_one_device():
    def encoder():
        dense = keras.layers.Dense(5)
        return of_rows(keras.layers.SpectralNormalization(dense), penalized())

    actual = train_rows(encoder, replicas=2)
    assert_equal(actual, train_rows(encoder), 1e-9)


class FailsInPart(keras.layers.Layer):
    """The identity, whose gradient is NaN where a row is large."""

    def call(self, rows):
        @tf.custom_gradient
        def identity(rows):
            large = tf.reduce_max(rows, axis=1, keepdims=True) > 99.0
            factor = tf.cast(tf.where(large, np.nan, 1.0), rows.dtype)
            return tf.identity(rows), lambda upstream: upstream * factor

        return identity(rows)


@pytest.mark.fault(3, "26b")
def test_gradient_of_one_replica_that_is_not_finite_stops_all():
    with mirrored(2).scope():
        model = simclr.SimCLRModel(
            of_rows(
                keras.layers.Dense(5, kernel_initializer="ones"),
                FailsInPart(),
                keras.layers.BatchNormalization(),
            ),
            linear_head(),
            augmentation=Same(),
        )
        model.compile(lars())
    model.build_optimizer()
    variables = [*model.variables, *model.optimizer.variables]
    before = [variable.numpy() for variable in variables]
    rows = np.random.default_rng(0).random((8, 6), "float32")
    rows[7] = 100.0  # Of the second replica.
    with pytest.raises(ValueError, match="NaN or infinity in the gradients"):
        model.fit(rows, batch_size=8, shuffle=False, verbose=0)
    for variable, value in zip(variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def dropout():
    return keras.Sequential([network(), keras.layers.Dropout(0.5, name="drop")])


def clipped():
    return keras.optimizers.SGD(1.0, clipnorm=1.0)


def averaged():
    return keras.optimizers.SGD(1.0, use_ema=True, ema_overwrite_frequency=2)


def accumulating():
    return keras.optimizers.SGD(1.0, gradient_accumulation_steps=2)


@pytest.mark.fault(10, 11, 63, 67)
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
                "divides: build them with batch(..., drop_remainder=True), or "
                "those of a generator with tf.data.Dataset.from_generator(..., "
                "output_signature=...). "
                "Received: `images` of shape (31, 8, 8, 3) for 2 replicas"
            ),
        ),
    ],
)
def test_what_would_go_wrong_is_refused(replicas, kwargs, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        train(replicas, **kwargs)


@pytest.mark.fault(63)
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


@pytest.mark.fault(63)
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


@pytest.mark.fault(62)
def test_encoder_from_outside_the_scope_is_refused():
    encoder = network()
    message = outside(encoder.variables[0].path)
    with (
        mirrored(2).scope(),
        pytest.raises(ValueError, match=re.escape(message)),
    ):
        simclr.SimCLRModel(encoder, augmentation=light())


@pytest.mark.fault(62)
def test_model_from_outside_the_scope_is_refused():
    model = simclr.SimCLRModel(network(), augmentation=light())
    message = outside(model.variables[0].path)
    with (
        mirrored(2).scope(),
        pytest.raises(ValueError, match=re.escape(message)),
    ):
        model.compile()


@pytest.mark.fault(62)
def test_optimizer_from_outside_the_scope_is_refused():
    with mirrored(2).scope():
        model = simclr.SimCLRModel(network(), augmentation=light())
    model.compile()  # Makes its own, in the scope.
    optimizer = sgd()
    message = outside(optimizer.variables[0].path)
    with pytest.raises(ValueError, match=re.escape(message)):
        model.compile(optimizer)


@pytest.mark.fault(10)
def test_data_that_replicas_cannot_share_is_refused():
    with mirrored(2).scope():
        model = simclr.SimCLRModel(network(), augmentation=light())
        model.compile(sgd())
    with pytest.raises(ValueError, match="batches of one size"):
        model.fit(IMAGES[:8] for _ in range(2))
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


@pytest.mark.fault(10, 44)
def test_unknown_batch_size_is_refused_on_replicas():
    dataset = tf.data.Dataset.from_tensor_slices(IMAGES).batch(8)
    with mirrored(2).scope():
        model = simclr.SimCLRModel(network(), augmentation=light())
        model.compile()
    message = (
        "Several replicas need batches of one size that their number divides: "
        "build them with batch(..., drop_remainder=True), or those of a "
        "generator with tf.data.Dataset.from_generator(..., "
        "output_signature=...). Received: `images` of shape (None, 8, 8, 3) "
        "for 2 replicas"
    )
    for data in (dataset, iter(dataset)):
        with pytest.raises(ValueError, match=re.escape(message)):
            model.fit(data)


@pytest.mark.fault(63)
@pytest.mark.parametrize(
    "kind",
    [
        tf.distribute.ParameterServerStrategy,
        tf.distribute.experimental.CentralStorageStrategy,
    ],
)
def test_asynchronous_replicas_are_refused(kind):
    strategy = object.__new__(kind)
    message = (
        "Negatives come from all replicas, which must work in step. Use "
        "MirroredStrategy or MultiWorkerMirroredStrategy. Received: "
        f"{kind.__name__}"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        replicas.check_strategy(strategy, [])


@pytest.mark.fault(63)
def test_distribution_of_keras_is_refused(monkeypatch):
    monkeypatch.setattr(keras.distribution, "distribution", lambda: "a mesh")
    message = (
        "`keras.distribution` does nothing on TensorFlow. Use a tf.distribute "
        "strategy, and make the model in its scope. Received: a mesh"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        simclr.SimCLRModel(network(), augmentation=light())


@pytest.mark.fault(61)
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
        rows = run_logs.untimed(path / "log.csv")
        logs.append([[float(x) for _, x in row] for row in rows])
    np.testing.assert_allclose(*logs, rtol=1e-9)
    names[0].remove("epoch-000001.weights.h5")  # They stopped after it.
    names[0].append("epoch-000001-step-000002.weights.h5")
    assert sorted(names[0]) == names[1]


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


def test_steps_per_epoch_on_replicas():
    with mirrored(2).scope():
        model = simclr.SimCLRModel(
            of_rows(penalized()), linear_head(), augmentation=Same()
        )
        model.compile("sgd")
    rows = np.random.default_rng(0).random((16, 6))
    model.fit(rows, batch_size=4, epochs=2, steps_per_epoch=3, verbose=0)
    assert model.optimizer.iterations.numpy() == 6
