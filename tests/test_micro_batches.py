import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.processors import needs_bfloat16
from helpers.replicas import mirrored
from helpers.training import (
    IMAGES,
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
from keras_simclr import micro_batches, trials


def groups():
    return keras.layers.GroupNormalization(4)


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


def test_sizes_groups_and_views_reach_replicas_and_micro_batches():
    rng = np.random.default_rng(1)
    others = {
        "sizes": rng.integers(4, 9, (64, 2)),
        "groups": rng.integers(0, 4, 64),
    }

    def augmentation():
        return [simclr.RandomResizedCrop(8, 8), simclr.RandomGaussianNoise()]

    kwargs = {
        "encoder": lambda: network(groups),
        "head": lambda: simclr.ProjectionHead(0),
        "augmentation": augmentation,
        "loss": simclr.NTXent(0.3, block_size=7, decoupled=True),
        "others": others,
        "views": 3,
        "dtype": "float64",
        "batch_size": 8,
    }
    actual = train(2, micro_batch_size=3, **kwargs)
    assert_equal(actual, train(**kwargs), 1e-9)


@pytest.mark.parametrize(
    ("dtype", "replicas"),
    [
        pytest.param("mixed_bfloat16", 1, marks=needs_bfloat16),
        ("mixed_float16", 2),
    ],
)
def test_micro_batches_in_low_precision(dtype, replicas):
    def encoder():
        return network(groups)

    kwargs = {"encoder": encoder, "head": linear_head, "dtype": dtype}
    actual = train(replicas, micro_batch_size=5, **kwargs)
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
        model.compile(sgd(), run_eagerly=micro_batch_size is None)
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


class Bins(keras.layers.Layer):
    def call(self, rows):
        return tf.cast(tf.abs(rows) * 3, tf.int32) % 7


class Unused(keras.layers.Layer):
    """Has a variable that no loss depends on, and one that a penalty does."""

    def build(self, shape):
        self.lost = self.add_weight(shape=(4, 4), name="lost")
        self.kept = self.add_weight(shape=(4, 4), name="kept", regularizer="l2")

    def call(self, rows):
        return rows


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: simclr.LARS(keras.optimizers.SGD(0.1), weight_decay=0.1),
        lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    ],
    ids=["LARS", "AdamW"],
)
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_gradients_that_are_sparse_or_missing_equal_the_batch(optimizer):
    def encoder():
        return of_rows(
            Bins(),
            keras.layers.Embedding(9, 4),
            keras.layers.Flatten(),
            Unused(),
        )

    kwargs = {"encoder": encoder, "optimizer": optimizer}
    actual = train_rows(micro_batch_size=5, **kwargs)
    assert_equal(actual, train_rows(**kwargs), 1e-9)


def test_loss_that_lets_one_view_alone():
    def loss(z_1, z_2):
        return tf.reduce_mean((z_1 - tf.stop_gradient(z_2)) ** 2)

    kwargs = {"encoder": lambda: of_rows(keras.layers.Dense(4)), "loss": loss}
    actual = train_rows(micro_batch_size=5, **kwargs)
    assert_equal(actual, train_rows(**kwargs), 1e-9)


class Running(keras.layers.Layer):
    """Goes on with the average that it has just moved."""

    def build(self, shape):
        self.mean = self.add_weight(
            shape=shape[1:], trainable=False, name="mean"
        )

    def call(self, rows, training=False):
        if training:
            moved = 0.9 * self.mean + 0.1 * tf.reduce_mean(rows, axis=0)
            self.mean.assign(moved)
        return rows - self.mean


def spectral():
    return keras.layers.SpectralNormalization(keras.layers.Dense(4))


@pytest.mark.filterwarnings("ignore:The encoder is frozen")
@pytest.mark.parametrize(
    ("layer", "name"), [(spectral, "kernel"), (Running, "mean")]
)
def test_layers_that_go_on_with_what_they_set_are_refused(layer, name):
    message = (
        "Layers may set averages in micro-batches, as batch norm does, and not "
        "go on with what they have set, as keras.layers.SpectralNormalization "
        rf"does. Leave out `micro_batch_size`. Received: \S+/{name}, set in "
        "the forward pass"
    )
    with pytest.raises(ValueError, match=message):
        train_rows(lambda: of_rows(layer()), micro_batch_size=5)


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


class Drawing(keras.layers.Layer):
    """Draws in training, by no generator of its own."""

    def call(self, inputs, training=False):
        return self.draw(inputs) if training else inputs


RNG = np.random.default_rng(0)  # One for all passes.


def from_python(inputs):
    factor = tf.numpy_function(RNG.random, [], tf.float64)
    return inputs * tf.cast(tf.ensure_shape(factor, ()), inputs.dtype)


def drawing(draw):
    layer = Drawing()
    layer.draw = draw
    return layer


DRAWS = {
    "keras": lambda x: keras.random.dropout(x, 0.1),
    "one mask": lambda x: keras.random.dropout(x, 0.5, seed=1),
    "tf": lambda x: x + tf.random.normal(tf.shape(x)),
    "tf with a seed": lambda x: tf.nn.dropout(x, 0.5, seed=1),
    "of the batch": lambda x: x * tf.random.uniform([]),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("replicas", [1, 2])
def test_randomness_is_told_by_what_an_encoder_does(name, replicas):
    message = {
        1: "`micro_batch_size` needs a forward pass that can be repeated: no "
        "dropout, nothing else that draws random numbers. Received: other "
        "outputs for equal inputs. Leave out what draws in its `call`, for "
        "example from keras.random or tf.random, or leave out "
        "`micro_batch_size`.",
        2: "Several replicas need layers that draw no random numbers: Keras "
        "gives all replicas the same ones. Received: other outputs for equal "
        "inputs. Leave out what draws in its `call`, for example from "
        "keras.random or tf.random.",
    }
    with mirrored(replicas).scope(), pytest.raises(ValueError) as error:
        simclr.SimCLRModel(
            keras.Sequential([network(), drawing(DRAWS[name])]),
            augmentation=flip(),
            micro_batch_size=4 if replicas == 1 else None,
        )
    assert str(error.value) == message[replicas]


def test_a_head_that_draws_is_refused():
    head = keras.Sequential([keras.Input((16,)), drawing(DRAWS["tf"])])
    with pytest.raises(ValueError, match="pass that can be repeated"):
        simclr.SimCLRModel(
            network(), head, augmentation=flip(), micro_batch_size=4
        )


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_a_second_pass_that_differs_stops_the_step(monkeypatch, run_eagerly):
    """What draws so seldom that trying it does not show it."""
    monkeypatch.setattr(trials, "is_random", lambda *args, **kwargs: False)
    model = simclr.SimCLRModel(
        keras.Sequential([network(), drawing(from_python)]),
        linear_head(),
        augmentation=flip(),
        micro_batch_size=8,
    )
    model.compile(sgd(), run_eagerly=run_eagerly)
    before = model.get_weights()
    with pytest.raises(ValueError) as error:
        model.fit(IMAGES, batch_size=16, verbose=0)
    assert str(error.value) == (
        "`micro_batch_size` needs a forward pass that can be repeated: no "
        "dropout, nothing else that draws random numbers. Received: a second "
        "pass with other embeddings (epoch 1, step 1). The model is as the "
        "step before left it."
    )
    for value, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, expected)
