import csv
import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import standins
from helpers.replicas import mirrored

import keras_simclr as simclr
from keras_simclr import callbacks, collapse, looks

pytestmark = pytest.mark.usefixtures("eagerly")


def tiny_model(**compile_arguments):
    keras.utils.set_random_seed(0)
    model = simclr.SimCLRModel(
        standins.encoder(keras.layers.BatchNormalization()),
        keras.layers.Dense(4),
        augmentation=simclr.RandomFlip(),
    )
    model.compile(keras.optimizers.SGD(0.1), **compile_arguments)
    return model


IMAGES, LABELS = standins.labelled_images()
TRAIN, TEST = (IMAGES[:16], LABELS[:16]), (IMAGES[16:], LABELS[16:])


def fit(model, *more, epochs=1, **arguments):
    arguments.setdefault("x", IMAGES)
    arguments.setdefault("batch_size", 8)
    return model.fit(
        epochs=epochs, verbose=0, callbacks=list(more), **arguments
    ).history


@pytest.fixture(scope="module")
def plain_weights():
    model = tiny_model()
    fit(model, epochs=2)
    return model.get_weights()


def every_callback(**arguments):
    return [
        callbacks.KNNProbe(TRAIN, TEST, **arguments),
        callbacks.LinearProbe(TRAIN, TEST, **arguments),
        callbacks.Measures(IMAGES, **arguments),
    ]


def test_callbacks_report_the_model_as_it_is_and_leave_it_so(plain_weights):
    model, probes = tiny_model(), every_callback()
    history = fit(model, *probes, epochs=2)
    for probe in probes:
        at_rest, with_views = probe._copies.at_rest, probe._copies.with_views
        assert at_rest.graph.experimental_get_tracing_count() <= 1
        # For one batch size, and for any.
        assert with_views.experimental_get_tracing_count() <= 2
    for ours, right in zip(model.get_weights(), plain_weights, strict=True):
        np.testing.assert_array_equal(ours, right)
    for name in ("knn", "linear"):
        features = [simclr.extract_features(model, x) for x, _ in (TRAIN, TEST)]
        classify = getattr(simclr, f"{name}_probe")
        right = classify(features[0], TRAIN[1], features[1], TEST[1]).accuracy
        assert history[f"{name}_accuracy"][-1] == right
        assert min(history[f"{name}_seconds"]) > 0


def test_measures_are_those_of_the_model_at_rest():
    model = tiny_model()
    history = fit(model, callbacks.Measures(IMAGES))

    def project(view):
        h = model.encoder(view, training=False)
        return model.projection_head(h, training=False).numpy()

    h = simclr.extract_features(model, IMAGES)
    z = project(model.evaluation_view(IMAGES))
    z_1, z_2 = map(project, model.views(IMAGES, step=0))
    right = {
        "rankme": collapse.rankme(h),
        "rankme_z": collapse.rankme(z),
        "spread": collapse.spread(z).mean(),
        "alignment": collapse.alignment(z_1, z_2),
        "uniformity": np.mean([collapse.uniformity(x) for x in (z_1, z_2)]),
        "loss_over_chance": history["loss"][0] / np.log(2 * 8 - 1),
    }
    assert right["alignment"] > 1e-7
    for name, value in right.items():
        assert history[name] == [pytest.approx(value, rel=1e-4)], name
    assert set(history) == {*right, "loss", "contrastive_accuracy"}


def counted(callback):
    """Has a callback count its measurements instead."""
    calls = []

    def measure():
        calls.append(len(calls) + 1)
        return {"knn_accuracy": calls[-1], "knn_seconds": 1.0}

    callback.measure = measure
    return callback


@pytest.mark.usefixtures("in_graphs")
def test_first_every_kth_and_last_epoch_are_probed(tmp_path):
    model, path = tiny_model(run_eagerly=True), tmp_path / "log.csv"
    probe = counted(callbacks.KNNProbe(TRAIN, TEST, every=3))
    history = fit(model, probe, keras.callbacks.CSVLogger(path), epochs=8)
    right = [1, 1, 2, 2, 2, 3, 3, 4]
    measured = [1, 0, 1, 0, 0, 1, 0, 1]
    assert history["knn_accuracy"] == right
    assert history["knn_seconds"] == measured
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["knn_accuracy"]) for row in rows] == right
    assert [float(row["knn_seconds"]) for row in rows] == measured
    # A second `fit` begins anew.
    history = fit(model, probe, epochs=10, initial_epoch=9)
    assert history["knn_accuracy"] == [5]


def test_training_can_stop_early_by_a_probe():
    probe = counted(callbacks.KNNProbe(TRAIN, TEST, every=2))
    stop = keras.callbacks.EarlyStopping(
        "knn_accuracy", mode="min", patience=2, start_from_epoch=0
    )
    model = tiny_model(run_eagerly=True)
    history = fit(model, probe, stop, epochs=9)
    assert history["knn_accuracy"] == [1, 2, 2]


def test_measures_between_repeat_but_the_loss_does_not():
    history = fit(tiny_model(), callbacks.Measures(IMAGES, every=4), epochs=3)
    assert history["rankme"][0] == history["rankme"][1] != history["rankme"][2]
    right = np.array(history["loss"]) / np.log(15)
    np.testing.assert_allclose(history["loss_over_chance"], right, rtol=1e-6)


def test_chance_is_that_of_training_and_not_of_validation():
    validation = tf.data.Dataset.from_tensor_slices(IMAGES).batch(4)
    model = tiny_model(run_eagerly=True)
    history = fit(model, callbacks.Measures(IMAGES), validation_data=validation)
    right = history["loss"][0] / np.log(2 * 8 - 1)
    assert history["loss_over_chance"] == [pytest.approx(right)]


def test_other_losses_have_no_chance():
    model = tiny_model(
        run_eagerly=True, loss=lambda a, b: tf.reduce_mean((a - b) ** 2)
    )
    assert "loss_over_chance" not in fit(model, callbacks.Measures(IMAGES))


@pytest.mark.usefixtures("in_graphs")
def test_replicas_train_as_they_do_without_callbacks():
    weights = []
    for more in ([], every_callback()):
        with mirrored(2).scope():
            model = tiny_model()
        history = fit(model, *more)
        weights.append(model.get_weights())
    for ours, right in zip(*weights, strict=True):
        np.testing.assert_array_equal(ours, right)
    features = simclr.extract_features(model, IMAGES)
    assert history["rankme"] == [pytest.approx(collapse.rankme(features))]
    parts = features[:16], TRAIN[1], features[16:], TEST[1]
    right = simclr.knn_probe(*parts).accuracy
    assert history["knn_accuracy"] == [right]
    right = history["loss"][0] / np.log(2 * 8 - 1)
    assert history["loss_over_chance"] == [pytest.approx(right)]


def test_fit_in_the_scope_of_a_strategy_is_measured():
    with mirrored(2).scope():
        model = tiny_model()
        history = fit(model, *every_callback())
    features = simclr.extract_features(model, IMAGES)
    assert history["rankme"] == [pytest.approx(collapse.rankme(features))]


@pytest.fixture
def _mixed():
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.usefixtures("_mixed")
def test_mixed_precision_is_measured_in_float32():
    model = tiny_model()
    assert model.encoder.compute_dtype == "bfloat16"
    history = fit(model, *every_callback())
    features = simclr.extract_features(model, IMAGES)
    assert history["rankme"] == [pytest.approx(collapse.rankme(features))]
    assert 0 <= history["knn_accuracy"][0] <= 1
    assert 0 <= history["linear_accuracy"][0] <= 1
    assert keras.config.dtype_policy().name == "mixed_bfloat16"


def test_divergence_is_logged_as_nan():
    class Diverges(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            weights = self.model.get_weights()
            self.model.set_weights([np.nan * weight for weight in weights])

    history = fit(tiny_model(), Diverges(), *every_callback())
    names = ["knn_accuracy", "linear_accuracy", "rankme", "rankme_z"]
    names += ["spread", "alignment", "uniformity"]
    for name in names:
        assert np.isnan(history[name]).all(), name


@pytest.mark.parametrize("most", [5, 8, 11, 16, 17])
def test_first_examples_are_taken_from_batches_of_any_size(most):
    dataset = tf.data.Dataset.from_tensor_slices(TRAIN).batch(4).repeat(2)
    elements = list(callbacks._first(dataset, most))
    images = np.concatenate([element["images"] for element in elements])
    labels = np.concatenate([element["labels"] for element in elements])
    np.testing.assert_array_equal(
        images, np.tile(IMAGES[:16], (2, 1, 1, 1))[:most]
    )
    np.testing.assert_array_equal(labels, np.tile(LABELS[:16], 2)[:most])


def test_cost_is_bounded(monkeypatch):
    monkeypatch.setattr(callbacks, "_MOST_TO_PROBE", 10)
    monkeypatch.setattr(callbacks.Measures, "most", 10)
    images, labels = np.tile(IMAGES, (2, 1, 1, 1)), np.tile(LABELS, 2)
    endless = tf.data.Dataset.from_tensor_slices((images, labels))
    endless = endless.batch(4).repeat()
    history = fit(
        tiny_model(run_eagerly=True),
        callbacks.KNNProbe(endless, endless),
        callbacks.Measures(endless),
    )
    few = fit(
        tiny_model(run_eagerly=True),
        callbacks.KNNProbe(
            (images[:10], labels[:10, None]), (images[:10], labels[:10, None])
        ),
        callbacks.Measures(images[:10]),
    )
    for name in ("knn_accuracy", "rankme", "rankme_z", "spread"):
        assert history[name] == [pytest.approx(few[name][0])], name


def test_images_on_canvases_are_measured():
    sizes = np.full((24, 2), 8, "int32")
    canvases = np.pad(IMAGES, ((0, 0), (0, 4), (0, 4), (0, 0)))
    dataset = tf.data.Dataset.from_tensor_slices(
        {"images": canvases, "sizes": sizes, "labels": LABELS}
    ).batch(8)
    keras.utils.set_random_seed(0)
    encoder = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
    crop = simclr.RandomResizedCrop(8, 8)
    model = simclr.SimCLRModel(
        encoder, keras.layers.Dense(4), augmentation=crop
    )
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    history = fit(
        model,
        callbacks.KNNProbe(dataset, dataset),
        callbacks.Measures(dataset),
        x=dataset,
        batch_size=None,
    )
    right = collapse.rankme(simclr.extract_features(model, IMAGES))
    assert history["rankme"] == [pytest.approx(right, rel=1e-4)]
    assert 0 <= history["knn_accuracy"][0] <= 1


@pytest.mark.parametrize("probe", [callbacks.KNNProbe, callbacks.LinearProbe])
def test_probes_refuse_other_than_one_label_per_image(probe):
    with pytest.raises(ValueError) as error:
        probe(TRAIN, IMAGES)
    assert str(error.value) == (
        "`test` must hold labels: elements (images, labels). Received: images "
        "only"
    )
    with pytest.raises(ValueError) as error:
        probe((IMAGES, np.eye(24)), TEST)
    assert str(error.value) == (
        "`train` must hold one label per image. Received: labels of shape "
        "(None, 24). Of one-hot labels take labels.argmax(axis=1)"
    )
    with pytest.raises(ValueError) as error:
        probe(TRAIN, TEST, every=0)
    assert str(error.value) == (
        "`every` must be an integer of at least 1. Received: every=0"
    )


def test_measures_refuse_a_single_image():
    with pytest.raises(ValueError) as error:
        callbacks.Measures(IMAGES[:1])
    assert str(error.value) == (
        "`images` must be at least two. Received: images of shape (1, 8, 8, 1)"
    )


def test_skipped_steps_do_not_change_chance():
    model = tiny_model(run_eagerly=True)
    scaler = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.1), initial_scale=2.0**125
    )
    model.compile(scaler, run_eagerly=True)
    history = fit(model, callbacks.Measures(IMAGES))
    assert 0 < int(scaler.iterations) < 3
    right = history["loss"][0] / np.log(2 * 8 - 1)
    assert history["loss_over_chance"] == [pytest.approx(right)]


def test_batches_are_counted_where_a_dataset_does_not_know_its_length():
    dataset = tf.data.Dataset.from_tensor_slices(IMAGES).batch(8)
    unknown = dataset.filter(lambda batch: True)
    model = tiny_model(run_eagerly=True)
    with pytest.warns(UserWarning, match="ran out of data"):  # Keras's.
        history = fit(
            model, callbacks.Measures(IMAGES), x=unknown, batch_size=None
        )
    right = history["loss"][0] / np.log(2 * 8 - 1)
    assert history["loss_over_chance"] == [pytest.approx(right)]


def test_probes_need_no_projection_head_that_can_be_copied():
    model = simclr.SimCLRModel(
        standins.encoder(),
        keras.Sequential([keras.layers.Lambda(lambda h: 2 * h)]),
        augmentation=simclr.RandomFlip(),
    )
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    with pytest.warns(UserWarning, match="can be trained, but not saved"):
        history = fit(model, callbacks.KNNProbe(TRAIN, TEST))
    assert 0 <= history["knn_accuracy"][0] <= 1


LARGE = np.zeros((24, 9, 9, 1), "uint8")


@pytest.mark.parametrize(
    "callback",
    [
        callbacks.KNNProbe((LARGE, LABELS), TEST),
        callbacks.LinearProbe(TRAIN, (LARGE, LABELS)),
        callbacks.Measures(LARGE),
    ],
)
def test_images_that_do_not_fit_are_refused_before_training(callback):
    model = tiny_model()
    with pytest.raises(ValueError, match="takes views of shape"):
        fit(model, callback)
    assert int(model.optimizer.iterations) == 0


def test_a_single_class_is_refused_before_training(monkeypatch):
    monkeypatch.setattr(callbacks, "_MOST_TO_READ", 10)
    model = tiny_model()
    labels = np.sort(np.arange(24) % 2)  # The first twelve are alike.
    with pytest.raises(ValueError) as error:
        fit(model, callbacks.KNNProbe((IMAGES, labels), TEST))
    assert str(error.value) == (
        "The images of `train`, 10,000 spread over the first 10, must be of at "
        "least two classes. Received: [0]. Shuffle what is sorted by class."
    )
    assert int(model.optimizer.iterations) == 0


def named(images, labels, *names):
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(6)
    dataset.class_names = names
    return dataset


def test_probes_compare_classes_by_name(said):
    """What is class 1 here is class 2 there."""
    train = named(IMAGES, LABELS, "dark", "bright")
    test = named(IMAGES, 2 * LABELS, "dark", "other", "bright")
    probes = callbacks.KNNProbe, callbacks.LinearProbe
    same = fit(tiny_model(), *(probe(train, train) for probe in probes))
    found = fit(tiny_model(), *(probe(train, test) for probe in probes))
    assert not said.messages
    for name in ("knn_accuracy", "linear_accuracy"):
        assert found[name] == same[name]
        assert found[name][0] > 0.6
    other = named(IMAGES, LABELS + 1, "dark", "other", "bright")
    fit(tiny_model(), callbacks.KNNProbe(train, other), epochs=2)
    unknown, missing = said.messages
    assert unknown == (
        "12 of 24 images to test on are of classes without images to learn "
        "from, and count as wrong: other."
    )
    assert missing == "No image to test on is of dark."


def test_probes_refuse_classes_without_a_match_before_training():
    train = named(IMAGES, LABELS, "dark", "bright")
    model = tiny_model()
    with pytest.raises(ValueError, match="must both have names of classes"):
        fit(model, callbacks.KNNProbe(train, TEST))
    other = named(IMAGES, LABELS, "red", "green")
    with pytest.raises(ValueError, match="`test` must hold classes of `train`"):
        fit(model, callbacks.LinearProbe(train, other))
    fraction = LABELS + np.where(np.arange(24) > 20, 0.5, 0.0)
    with pytest.raises(ValueError, match="3 labels such as"):
        fit(model, callbacks.KNNProbe((IMAGES, fraction), TEST))
    assert int(model.optimizer.iterations) == 0


def test_probes_leave_out_images_without_a_label():
    labels = np.concatenate([[-1] * 8, LABELS])
    images = np.concatenate([1 - IMAGES[:8], IMAGES])
    for probe in (callbacks.KNNProbe, callbacks.LinearProbe):
        whole, part = (
            fit(tiny_model(), probe(both, both))
            for both in ((IMAGES, LABELS), (images, labels))
        )
        name = f"{probe.prefix}_accuracy"
        assert whole[name] == part[name]
    with pytest.raises(ValueError) as error:
        fit(tiny_model(), callbacks.KNNProbe(TRAIN, (IMAGES, -1 - LABELS)))
    assert str(error.value) == (
        "The images of `test`, 10,000 spread over the first 100,000, must be "
        "of at least one class. Received: []. Shuffle what is sorted by class."
    )


def test_linear_probe_is_told_the_duplicates(monkeypatch):
    groups = np.arange(24) // 2
    element = {"images": IMAGES, "labels": LABELS, "groups": groups}
    dataset = tf.data.Dataset.from_tensor_slices(element).batch(5)
    told = []

    def linear_probe(*arrays, groups):
        told.append(groups)
        return simclr.linear_probe(*arrays, groups=groups)

    monkeypatch.setattr(callbacks, "linear_probe", linear_probe)
    fit(tiny_model(), callbacks.LinearProbe(dataset, TEST))
    np.testing.assert_array_equal(*told, groups)


def test_other_models_are_refused():
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError) as error:
        model.fit(
            IMAGES, IMAGES, verbose=0, callbacks=[callbacks.Measures(IMAGES)]
        )
    assert str(error.value) == (
        "`Measures` needs a SimCLRModel. Received: a model of class Sequential"
    )


class _Stop(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = True


@pytest.mark.parametrize("stops", [[], [_Stop()]])
def test_chance_is_that_of_the_batches_that_ran(stops):
    model = tiny_model(steps_per_execution=2)
    history = fit(model, *stops, callbacks.Measures(IMAGES))
    right = history["loss"][0] / np.log(2 * 8 - 1)
    assert history["loss_over_chance"] == [pytest.approx(right)]


@pytest.mark.parametrize("most", [1, 3, 5, 12, 20, 21, 30])
def test_examples_are_spread_over_a_dataset(most):
    rows = np.arange(20, dtype="uint8")
    images = np.broadcast_to(rows[:, None, None, None], (20, 8, 8, 1))
    dataset = tf.data.Dataset.from_tensor_slices((images, rows)).batch(3)
    places = callbacks._spread(20, most)
    assert len(places) == min(most, 20)
    assert places[0] == 0
    assert max(np.diff(places), default=0) <= -(-20 // most)
    found = list(callbacks._at(dataset, places))
    for name in ("images", "labels"):
        values = np.concatenate([x[name].numpy() for x in found])
        assert values.reshape(len(places), -1)[:, 0].tolist() == places.tolist()


def test_probes_see_all_classes_of_what_is_sorted(monkeypatch):
    monkeypatch.setattr(callbacks, "_MOST_TO_PROBE", 12)
    monkeypatch.setattr(callbacks.Measures, "most", 12)
    order = np.argsort(LABELS, kind="stable")
    images, labels = IMAGES[order], LABELS[order]
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(5)
    for data in ((images, labels), batches):
        probe = callbacks.KNNProbe(data, data)
        fit(tiny_model(run_eagerly=True), probe)
        (_, found), _ = probe._features_and_labels("train")
        assert np.bincount(found).tolist() == [6, 6]
    measures = callbacks.Measures(images)
    (element,) = measures._elements
    np.testing.assert_array_equal(element["images"], images[::2])


def fitted_twice():
    """A weak reference to a model that was, and is used by nobody now."""
    model, probe = tiny_model(), callbacks.KNNProbe(TRAIN, TEST)
    fit(model, probe, callbacks.Measures(IMAGES))
    first = probe._copies
    probe = callbacks.KNNProbe(TRAIN, TEST)
    history = fit(model, probe, callbacks.Measures(IMAGES))
    assert probe._copies is first
    other = tiny_model()
    other.set_weights(model.get_weights())
    features = [simclr.extract_features(other, x) for x, _ in (TRAIN, TEST)]
    right = simclr.knn_probe(features[0], TRAIN[1], features[1], TEST[1])
    assert history["knn_accuracy"] == [right.accuracy]
    assert model in looks._kept
    return weakref.ref(model)


@pytest.mark.fault(66)
def test_second_fit_traces_nothing_and_nothing_outlives_the_model():
    alive = fitted_twice()
    gc.collect()
    assert alive() is None


def test_what_may_be_adapted_again_is_copied_again():
    normalize = keras.layers.Normalization()
    normalize.adapt(IMAGES)
    model = simclr.SimCLRModel(
        standins.encoder(normalize),
        keras.layers.Dense(4),
        augmentation=simclr.RandomFlip(),
    )
    assert looks.copies_of(model) is not looks.copies_of(model)


@pytest.mark.parametrize("of_activation", [False, True])
def test_lambdas_are_probed(of_activation):
    layer = keras.layers.Lambda(lambda x: tf.nn.relu(x))
    if of_activation:
        layer = keras.layers.Activation(lambda x: tf.nn.relu(x))
    model = simclr.SimCLRModel(
        standins.encoder(layer),
        keras.layers.Dense(4),
        augmentation=simclr.RandomFlip(),
    )
    model.compile("sgd")
    with pytest.warns(UserWarning, match="can be trained, but not saved"):
        history = fit(model, *every_callback())
    assert 0 < history["knn_accuracy"][0] <= 1
