import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.training import (
    IMAGES,
    Reverse,
    flip,
    linear_head,
    network,
    of_rows,
)

import keras_simclr as simclr


@pytest.mark.parametrize(
    ("what", "cause"),
    [
        (
            "penalty",
            (
                "an `add_loss` that is no mean over the batch, or a layer in "
                "front of it that looks at a replica's own images only"
            ),
        ),
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
    order = ["penalty", "loss", "gradient", "batch norm", "update"]
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
            **dict.fromkeys(("penalty", "loss", "gradient", "update"), values),
            "batch norm": [],
        }

    simclr.testing._compare(results(1e-14), results(-1e-14), 2)
    with pytest.raises(AssertionError):
        simclr.testing._compare(results(1e-6), results(-1e-6), 2)


def test_parity_of_a_users_own_encoder():
    """One that has it is the example of the function itself."""

    class Norm(keras.layers.Layer):
        """Batch norm that forgets about the other replicas."""

        def call(self, images):
            return images - tf.reduce_mean(images, axis=(0, 1, 2))

    def build_model():
        model = simclr.SimCLRModel(
            network(Norm), linear_head(), augmentation=flip()
        )
        model.compile()
        return model

    dataset = simclr.dataset_from_arrays(IMAGES, batch_size=16)
    message = "2 replicas differ from one device, first in the loss"
    with pytest.raises(AssertionError, match=message):
        simclr.testing.assert_replica_parity(build_model, dataset)


@pytest.mark.parametrize("reduce", [tf.reduce_mean, tf.reduce_sum])
def test_parity_of_a_users_own_penalty(reduce):
    class Adds(keras.layers.Layer):
        def call(self, rows):
            self.add_loss(reduce(rows**2))
            return rows

    def build_model():
        encoder = of_rows(keras.layers.Dense(4), Adds())
        model = simclr.SimCLRModel(
            encoder, linear_head(), augmentation=Reverse()
        )
        model.compile()
        return model

    rows = np.random.default_rng(0).normal(size=(8, 6))
    dataset = simclr.dataset_from_arrays(rows, batch_size=8)
    if reduce is tf.reduce_mean:
        simclr.testing.assert_replica_parity(build_model, dataset)
        return
    message = "2 replicas differ from one device, first in the penalty"
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


def test_copies_of_a_users_own_encoder():
    class Mean(keras.layers.Layer):
        """Subtracts what it was given after it was made."""

        mean = 0.0

        def call(self, images):
            return images - self.mean

    encoder = network(Mean)
    simclr.testing.assert_copies_agree(encoder)
    encoder.layers[1].mean = 3.0
    with pytest.raises(AssertionError, match="must return what it returns"):
        simclr.testing.assert_copies_agree(encoder)


def test_copies_are_tried_on_a_users_own_inputs():
    """Random words would all be unknown ones."""
    lookup = keras.layers.StringLookup()
    lookup.adapt(np.array(["cat", "dog"]))
    layers = [lookup, keras.layers.Embedding(3, 2), keras.layers.Flatten()]
    encoder = keras.Sequential([keras.Input((1,), dtype="string"), *layers])
    words = tf.constant([["cat"], ["dog"], ["cow"]])
    simclr.testing.assert_copies_agree(encoder, words)
    plain = simclr.copies.plain_copy
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            simclr.copies, "plain_copy", lambda x: reversed_words(plain(x))
        )
        with pytest.raises(AssertionError, match="must return what it returns"):
            simclr.testing.assert_copies_agree(encoder, words)


def reversed_words(encoder):
    lookup = encoder.layers[0]
    lookup.set_vocabulary(lookup.get_vocabulary()[:0:-1])
    return encoder


def test_nothing_is_random_at_rest():
    class Noise(keras.layers.Layer):
        """Knows no `training`."""

        def call(self, images):
            return images + tf.random.normal(tf.shape(images))

    images = np.float32(IMAGES[:3] / 255)
    assert_at_rest = simclr.testing.assert_at_rest
    assert_at_rest(flip(), images)
    assert_at_rest([keras.layers.RandomRotation(0.1), flip()], images)
    assert_at_rest(network(), images)
    assert_at_rest(keras.layers.Dropout(0.5), images)
    model = simclr.SimCLRModel(network(), augmentation=flip())
    assert_at_rest(model, images)
    for part in (
        Noise(name="noise"),
        [flip(), Noise(name="noise")],
        keras.Sequential([Noise()], name="noise"),
    ):
        with pytest.raises(AssertionError, match="'noise' returns other"):
            assert_at_rest(part, images)
