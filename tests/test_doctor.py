import json
import math
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import standins
from helpers.replicas import mirrored

import keras_simclr as simclr
from keras_simclr import (
    callbacks,
    demo,
    doctor,
    looks,
    losses,
    recipe,
    runs,
    streams,
)

pytestmark = pytest.mark.usefixtures("eagerly")
(DIGITS, LABELS), _ = demo.digits()
FEW = DIGITS[:160]


class Stop(keras.callbacks.Callback):
    """Ends a `fit` that is planned to be longer."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = epoch + 1 >= self.after


class Noise(keras.layers.Layer):
    """Views that show nothing of their image."""

    def call(self, images, training=True, seed=None):
        if not training:
            return images
        return tf.random.stateless_uniform(tf.shape(images), seed)


class Jitter(keras.layers.Layer):
    """Views of the rows of a table."""

    def call(self, rows, training=True, seed=None):
        if not training:
            return rows
        return rows + 0.5 * tf.random.stateless_uniform(tf.shape(rows), seed)


class Same(keras.layers.Layer):
    """Views that are other than their image, and all the same."""

    def call(self, images, training=True, seed=None):
        return images[:, ::-1] if training else images


def small_model(
    *,
    augmentation=None,
    head=None,
    loss=None,
    rate=0.01,
    prepare=None,
    views=2,
    encoder=None,
):
    keras.utils.set_random_seed(0)
    if encoder is None:
        norm = keras.layers.BatchNormalization(momentum=0.9)
        encoder = standins.encoder(norm, keras.layers.ReLU(), filters=16)
    if prepare:
        prepare(encoder)
    model = simclr.SimCLRModel(
        encoder,
        head or simclr.ProjectionHead(1),
        augmentation=augmentation or simclr.RandomResizedCrop(8, 8),
        views=views,
    )
    model.compile(keras.optimizers.SGD(rate), loss or demo.RECIPE.loss())
    return model


def watched(model, images=FEW, *, batch_size=40, epochs=1, **arguments):
    """What a doctor finds: rules and epochs. And all that it has seen."""
    told = []
    watcher = callbacks.Doctor(images, report=told.append)
    planned = 800 * batch_size // len(images) + 1
    model.fit(
        arguments.pop("x", images),
        batch_size=batch_size if "x" not in arguments else None,
        epochs=arguments.pop("planned", planned),
        verbose=0,
        callbacks=[watcher, Stop(epochs)],
        **arguments,
    )
    assert told == [finding["text"] for finding in watcher.findings]
    assert json.loads(json.dumps(watcher.findings)) == watcher.findings
    return [(x["rule"], x["epoch"]) for x in watcher.findings]


def near_duplicates():
    rng, images = np.random.default_rng(0), FEW.copy()
    places = rng.permutation(len(images))[: len(images) // 3]
    noise = rng.normal(0, 0.02, (len(places), 8, 8, 1))
    images[places] = np.clip(images[:1] + noise, 0, 1)
    return images


@pytest.mark.fault(12, 13)
@pytest.mark.parametrize(
    ("rule", "images"),
    [
        ("equal_images", np.repeat(FEW[:1], len(FEW), axis=0)),
        ("near_duplicates", near_duplicates()),
        ("dark_images", FEW * np.float32(0.05)),
        ("scaled_twice", FEW / np.float32(255)),
    ],
)
def test_faults_of_images_are_found_before_training(rule, images):
    assert watched(small_model(), images) == [(rule, 0)]


@pytest.mark.fault(7, 14, 47)
@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("identical_views", {"augmentation": Same()}),
        ("idle_augmentation", {"augmentation": simclr.RandomFlip(rate=0.0)}),
        ("low_temperature", {"loss": simclr.NTXent(0.001)}),
        ("high_temperature", {"loss": simclr.NTXent(10.0)}),
        ("high_temperature", {"loss": simclr.NTXent(10.0, decoupled=True)}),
        ("zero_projections", {"head": keras.layers.Rescaling(0.0)}),
    ],
)
def test_faults_of_settings_are_found_before_training(rule, changes):
    first, *later = watched(small_model(**changes))
    assert first == (rule, 0)
    assert all(epoch > 0 for _, epoch in later)  # What it leads to.


def test_too_few_steps_and_images_in_a_batch_are_found_before_training():
    assert watched(small_model(), FEW[:32], batch_size=4, planned=10) == [
        ("small_batch", 0),
        ("too_few_steps", 0),
    ]
    rules = {rule.name: rule for rule in doctor.RULES}
    assert rules["too_few_steps"].threshold == recipe.FEWEST_STEPS


def freeze_batch_norm(encoder):
    for layer in encoder.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False


@pytest.mark.fault(23)
@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("no_updates", {"rate": 0.0}),
        ("large_steps", {"rate": 10.0}),
        ("frozen_batch_norm", {"prepare": freeze_batch_norm}),
    ],
)
@pytest.mark.filterwarnings("ignore:The learning rate is 0")
def test_faults_of_training_are_found_after_an_epoch(rule, changes):
    assert (rule, 1) in watched(small_model(**changes))


@pytest.mark.fault(67)
@pytest.mark.filterwarnings("ignore:The encoder is frozen")
def test_frozen_encoder_is_found():
    model = small_model()
    model.encoder.trainable = False
    assert ("frozen_encoder", 1) in watched(model)


def test_views_without_anything_in_common_are_found():
    model = small_model(augmentation=Noise())
    assert watched(model, batch_size=16, epochs=2) == [("no_agreement", 2)]


@pytest.mark.fault(21)
@pytest.mark.usefixtures("in_graphs")
def test_negatives_of_one_replica_are_found(monkeypatch):
    with mirrored(2).scope():
        model = small_model()
    monkeypatch.setattr("keras_simclr.model.from_all_replicas", lambda x: x)
    assert ("missing_negatives", 1) in watched(model)


@pytest.mark.parametrize(("seconds", "found"), [(1.0, True), (0.2, False)])
def test_reading_that_is_slower_than_training_is_found(
    seconds, found, monkeypatch
):
    clock = [0.0]
    clocks = types.SimpleNamespace(perf_counter=lambda: clock[0])
    for module in (streams, looks):
        monkeypatch.setattr(module, "time", clocks)

    def read(batch):
        clock[0] += seconds
        return batch

    batches = tf.data.Dataset.from_tensor_slices(FEW[:80]).batch(
        40, drop_remainder=True
    )
    slow = batches.map(
        lambda x: tf.ensure_shape(
            tf.numpy_function(read, [x], tf.float32), x.shape
        )
    )
    model = small_model()
    step = model.train_step

    def counted(element):
        clock[0] += 1.0
        return step(element)

    model.train_step = counted
    rules = [("slow_reading", 2)] if found else []
    assert watched(model, x=slow, epochs=2, planned=400) == rules


@pytest.mark.fault(1)
def test_one_image_that_is_not_finite_ends_training_at_once():
    images = FEW.copy()
    images[150, 3, 3] = math.nan
    with pytest.raises(ValueError, match="finite"):
        watched(small_model(), FEW, x=images)


@pytest.fixture(scope="module")
def resnet():
    """A small ResNet, compiled once."""
    tf.config.run_functions_eagerly(False)
    keras.utils.set_random_seed(0)
    encoder = simclr.ResNet(
        10, width_multiplier=0.125, stem="cifar", input_shape=(8, 8, 1)
    )
    model = small_model(
        encoder=encoder,
        head=simclr.ProjectionHead(),
        augmentation=demo.RECIPE.augmentation((8, 8, 1)),
    )
    steps = len(DIGITS) // 128
    model.compile(demo.RECIPE.optimizer(steps), demo.RECIPE.loss())
    yield model
    tf.config.run_functions_eagerly(True)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_clean_runs_on_digits_get_no_finding(seed, resnet):
    tf.config.run_functions_eagerly(False)
    keras.utils.set_random_seed(seed)
    for variable in resnet.trainable_variables:
        if len(variable.shape) > 1:
            draw = keras.initializers.GlorotUniform(seed=seed)
            variable.assign(draw(variable.shape))
    for variable in resnet.optimizer.variables:
        variable.assign(tf.zeros_like(variable))
    resnet.seed = seed  # Of the order.
    try:
        assert watched(resnet, DIGITS[:1408], batch_size=128, epochs=3) == []
    finally:
        tf.config.run_functions_eagerly(True)


def test_training_is_not_changed():
    weights = []
    for watcher in ([], [callbacks.Doctor(FEW, report=lambda text: None)]):
        model = small_model(rate=0.1)
        model.fit(FEW, batch_size=80, epochs=2, verbose=0, callbacks=watcher)
        weights.append(model.get_weights())
    for ours, right in zip(*weights, strict=True):
        np.testing.assert_array_equal(ours, right)


def test_sentences_return_only_after_an_epoch_without_their_symptom():
    watcher = callbacks.Doctor(FEW, report=lambda text: None)
    watcher._speaking, watcher._seen = set(), {}
    for epoch, knows in enumerate([1.0, 1.0, 0.0, 1.0, 1.0]):
        watcher._examine(epoch, {"waiting": knows})
    assert [x["epoch"] for x in watcher.findings] == [0, 3]
    assert watcher.findings[0]["values"] == {"waiting": 1.0}
    assert "100%" in watcher.findings[0]["text"]


def row(**values):
    """Of an epoch in which all is well, but for these values."""
    return {
        "loss": 3.0,
        "loss_over_chance": 0.6,
        "contrastive_accuracy": 0.4,
        "guessing": 0.004,
        "negatives": 254,
        "rankme": 30.0,
        "spread": 0.9,
        "z_spread": 0.95,
        "dead": 0.0,
        "length": 5.0,
        "sharpness": 1.0,
        "clipped": 0.1,
        "encoder_gradient": 1.0,
        "encoder_update": 0.1,
        "head_update": 0.1,
        "made": 100,
        **values,
    }


WELL = [row() for _ in range(4)]


@pytest.mark.parametrize(
    ("rule", "ill", "well"),
    [
        ("clipped_views", [row(clipped=0.4)], [row(clipped=0.2)]),
        ("collapse", [row(z_spread=0.01)], [row(z_spread=0.3)]),
        ("dead_columns", [row(dead=0.3)], [row(dead=0.2)]),
        ("no_gradient", [row(encoder_gradient=0.0)], [row()]),
        (
            "exploding_gradient",
            [*WELL, row(encoder_gradient=150.0)],
            [*WELL, row(encoder_gradient=50.0)],
        ),
        (
            "falling_rank",
            [row(rankme=30.0), row(rankme=14.0, loss=2.0)],
            [row(rankme=30.0), row(rankme=14.0, loss=3.5)],
        ),
        (
            "falling_probe",
            [
                row(knn_accuracy=0.9 - 0.02 * x, loss=3.0 - 0.1 * x)
                for x in range(4)
            ],
            [
                row(knn_accuracy=0.9 - 0.01 * x, loss=3.0 - 0.1 * x)
                for x in range(4)
            ],
        ),
        (
            "nothing_learnt",
            [row(loss_over_chance=1.0)] * 2,
            [row(loss_over_chance=1.1), row(loss_over_chance=1.0)],
        ),
        (
            "no_agreement",
            [row(contrastive_accuracy=0.005)] * 2,
            [
                row(contrastive_accuracy=0.005),
                row(contrastive_accuracy=0.01),
            ],
        ),
        (
            "easy_views",
            [row(contrastive_accuracy=0.995)],
            [row(contrastive_accuracy=0.995, negatives=60)],
        ),
    ],
)
def test_rules_tell_ill_from_well(rule, ill, well):
    assert [name for name, *_ in doctor.findings_in(ill)] == [rule]
    assert doctor.findings_in(well) == []


def test_first_steps_of_a_warm_up_need_not_have_learnt():
    cases = [row(loss_over_chance=1.0, contrastive_accuracy=0.004, made=10)] * 2
    assert doctor.findings_in(cases) == []


def test_what_is_explained_is_not_said_twice():
    case = row(
        z_spread=0.0,
        dead=1.0,
        length=0.0,
        encoder_gradient=0.0,
        loss_over_chance=1.0,
        contrastive_accuracy=0.0,
    )
    found = doctor.findings_in([case, case])
    assert [name for name, *_ in found] == ["zero_projections"]
    case["steps"] = 10  # Which explains nothing.
    assert len(doctor.findings_in([row(dead=0.3, steps=10)])) == 2


def test_every_rule_is_described():
    names = [rule.name for rule in doctor.RULES]
    assert len(set(names)) == len(names)
    for rule in doctor.RULES:
        # Symptom; likely cause; what to try.
        assert rule.text.count("; ") >= 2, rule.name
        assert rule.text.endswith("."), rule.name
        assert rule.source, rule.name
        for name in rule.values:
            assert isinstance(name, str)


def test_unknown_values_find_nothing():
    assert doctor.findings_in([{}]) == []
    names = {name for rule in doctor.RULES for name in rule.values}
    assert doctor.findings_in([dict.fromkeys(names, math.nan)] * 3) == []


def test_a_loss_of_ones_own_is_watched():
    model = small_model(loss=lambda a, b: tf.reduce_mean((a - b) ** 2))
    assert watched(model) == []


def test_tables_and_more_views_are_watched():
    keras.utils.set_random_seed(0)
    encoder = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8)])
    model = simclr.SimCLRModel(
        encoder, keras.layers.Dense(8), augmentation=Jitter(), views=3
    )
    model.compile(keras.optimizers.SGD(0.01), losses.NTXent(0.5))
    rows = np.random.default_rng(0).normal(size=(96, 6)).astype("float32")
    assert watched(model, rows, batch_size=24) == []


@pytest.fixture
def ill(tmp_path):
    """Has a run find something in each call, before it trains."""
    images = FEW[:32]
    batches = simclr.dataset_from_arrays(images, batch_size=16, seed=0)

    def train(epochs=3, stop=None, **arguments):
        model = small_model(augmentation=simclr.RandomFlip(rate=0.0))
        step = model.train_step

        def interrupted(element):
            if stop is not None and int(model.optimizer.iterations) == stop:
                raise KeyboardInterrupt
            return step(element)

        model.train_step = interrupted
        runs.pretrain(
            model, batches, tmp_path / "run", epochs=epochs, **arguments
        )
        return runs.read_summary(tmp_path / "run").get("findings")

    return train


def new_doctor():
    return callbacks.Doctor(FEW[:32], report=lambda text: None)


def test_findings_are_kept_and_survive_resumption(ill):
    found = ill(stop=3, callbacks=[new_doctor()])
    rules = ["idle_augmentation", "too_few_steps"]
    assert [x["rule"] for x in found] == rules
    assert [x["epoch"] for x in found] == [0, 0]
    assert found[0].keys() == {"rule", "epoch", "text", "values"}
    # It does not repeat itself, and goes on without a doctor, too.
    assert ill(stop=5, callbacks=[new_doctor()]) == found
    assert ill() == found


def test_a_run_without_findings_says_so_and_one_without_a_doctor_does_not(ill):
    assert ill(epochs=1) is None


def test_new_run_forgets_what_an_interrupted_first_epoch_found(ill):
    ill(stop=1, callbacks=[new_doctor()])
    found = ill(callbacks=[new_doctor()])
    assert [x["epoch"] for x in found] == [0, 0]
