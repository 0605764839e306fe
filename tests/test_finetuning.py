import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import standins

import keras_simclr as simclr
from keras_simclr import copies, finetuning, labelled

pytestmark = pytest.mark.usefixtures("eagerly")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(finetuning, "_FEWEST_STEPS", 3)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    norm = simclr.networks.FusedBatchNormalization()
    return simclr.SimCLRModel(
        standins.encoder(norm, keras.layers.ReLU()),
        simclr.ProjectionHead(3, units=5),
        augmentation=simclr.SimCLRAugmentation(8),
    )


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    labels = np.array(["cat", "dog"])[np.arange(24) % 2]
    pixels = rng.random((24, 8, 8, 1))
    pixels[1::2] *= 0.3
    return pixels.astype("float32"), labels


def test_encoders_are_taken_by_name(model, images, tmp_path):
    """A run's model as it is, and an encoder with crops of its own size."""
    (tmp_path / "run").mkdir()
    model.save(tmp_path / "run" / "model.keras")
    expected = simclr.fine_tune(model, images, images)
    found = simclr.fine_tune(tmp_path / "run", images, images)
    np.testing.assert_array_equal(found.predictions, expected.predictions)
    model.encoder.save(tmp_path / "mine.keras")
    named = finetuning.named_model(str(tmp_path / "mine.keras"))
    assert named.augmentation.image_size == (8, 8)
    for ours, theirs in zip(
        weights(named.encoder), weights(model.encoder), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ValueError, match="a head of 0 layers"):
        simclr.fine_tune(named, images, projection_layer=1)


def test_tables_are_no_encoders_to_train(images):
    with pytest.raises(ValueError) as error:
        simclr.fine_tune("dinov3.parquet", images)
    assert str(error.value) == (
        "`model` must be an encoder, which can be trained; vectors in a table "
        "cannot. Received: model='dinov3.parquet'. Compare them with "
        "`evaluate`, or name the encoder that made them"
    )


def weights(model):
    return [variable.numpy() for variable in model.variables]


@pytest.mark.parametrize("projection_layer", [0, 1])
def test_result_is_a_plain_classifier(model, images, projection_layer):
    before = weights(model)
    result = simclr.fine_tune(
        model, images, images, projection_layer=projection_layer
    )
    for old, new in zip(before, weights(model), strict=True):
        np.testing.assert_array_equal(old, new)
    probabilities = result.classifier.predict(images[0], verbose=0)
    found = np.array(result.classes)[probabilities.argmax(axis=1)]
    np.testing.assert_array_equal(found, result.predictions)
    assert np.mean(found == images[1]) == result.accuracy
    assert result.classes == ("cat", "dog")
    assert result.steps == 3
    layers = result.classifier._flatten_layers()
    assert not any("keras_simclr" in type(x).__module__ for x in layers)
    assert str(result).startswith(f"fine-tuned accuracy {result.accuracy:.2%} ")


def test_training_starts_from_a_logistic_regression(model, images, monkeypatch):
    from sklearn.linear_model import LogisticRegression

    monkeypatch.setitem(finetuning._LEARNING_RATES, "finetune", 0.0)
    tuner = finetuning.Tuner(model, np.array(["cat", "dog"]))
    # Batch norm goes on with new statistics even at a rate of 0.
    tuner.fit({"images": images[0], "labels": images[1]}, 0)
    kernel, bias = tuner.network().layers[-1].get_weights()
    features = simclr.extract_features(model, images[0]).astype("float64")
    centred = features - features.mean(axis=0)
    centred /= centred.std()
    oracle = LogisticRegression(C=0.1, tol=1e-9).fit(centred, images[1])
    logits = features @ kernel + bias
    np.testing.assert_allclose(
        logits[:, 1] - logits[:, 0], oracle.decision_function(centred), 0.02
    )


def test_a_class_without_labels_is_never_right(model, images):
    tuner = finetuning.Tuner(model, np.array(["ape", "cat", "dog", "elk"]))
    examples = {"images": images[0], "labels": images[1]}
    tuner.fit(examples, 0)
    assert set(tuner.predict(examples)) <= {"cat", "dog"}


def check_that_all_weights_move(tuner, images, encoder):
    tuner.fit({"images": images[0], "labels": images[1]}, 0)
    network = tuner.network()
    tuned = next(x for x in network.layers if isinstance(x, keras.Model))
    for old, new in zip(weights(encoder), weights(tuned), strict=True):
        assert np.abs(old - new).max() > 0


def test_all_weights_move(model, images):
    tuner = finetuning.Tuner(model, np.array(["cat", "dog"]))
    encoder = simclr.copies.plain_copy(model.encoder)
    check_that_all_weights_move(tuner, images, encoder)


@pytest.mark.parametrize("from_scratch", [False, True])
def test_all_weights_of_a_frozen_encoder_move(model, images, from_scratch):
    encoder = simclr.copies.plain_copy(model.encoder)
    encoder.trainable = False
    before = weights(encoder)
    tuner = finetuning.Tuner(
        encoder, np.array(["cat", "dog"]), from_scratch=from_scratch
    )
    first = encoder
    if from_scratch:
        first = copies.untrained_copy(encoder, 0)
    check_that_all_weights_move(tuner, images, first)
    assert not encoder.trainable
    for old, new in zip(before, weights(encoder), strict=True):
        np.testing.assert_array_equal(old, new)


def test_float16_with_loss_scaling_trains(model, images):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        tuner = finetuning.Tuner(model, np.array(["cat", "dog"]))
    finally:
        keras.config.set_dtype_policy("float32")
    assert type(tuner._network.optimizer).__name__ == "LossScaleOptimizer"
    for _ in range(2):
        tuner.fit({"images": images[0], "labels": images[1]}, 0)
        for weight in weights(tuner.network()):
            assert np.isfinite(weight).all()


def test_the_seed_is_all_that_training_depends_on(model, images):
    found = []
    for seed in (1, 2):
        keras.utils.set_random_seed(seed)
        found.append(weights(simclr.fine_tune(model, images).classifier))
    for first, second in zip(*found, strict=True):
        np.testing.assert_array_equal(first, second)


def test_from_scratch_forgets_what_was_learned(model, images):
    """Two models with the same shape and different weights."""
    other = type(model).from_config(model.get_config())
    options = {"from_scratch": True, "seed": 1}
    first, second = (
        simclr.fine_tune(each, images, images, **options)
        for each in (model, other)
    )
    for ours, theirs in zip(
        weights(first.classifier), weights(second.classifier), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.usefixtures("in_graphs")
def test_a_tuner_forgets_its_last_training(model, images):
    examples = {"images": images[0], "labels": images[1]}
    tuner = finetuning.Tuner(model, np.array(["cat", "dog"]))
    tuner.fit(examples, 1)
    tuner.fit(examples, 0)
    fresh = simclr.fine_tune(model, images, seed=0)
    assert fresh.accuracy is None
    for ours, theirs in zip(
        weights(tuner.network()), weights(fresh.classifier), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_images_on_canvases_are_learned_from(model, images):
    pixels = np.zeros((24, 12, 10, 1), "uint8")
    pixels[:, :8, :8] = images[0] * 255
    sizes = np.full((24, 2), 8)
    labels = (images[1] == "dog").astype(int)
    dataset = tf.data.Dataset.from_tensor_slices(
        {"images": pixels, "sizes": sizes, "labels": labels}
    ).batch(7)
    result = simclr.fine_tune(model, dataset, dataset)
    assert result.predictions.shape == (24,)
    assert result.accuracy == 1.0


def test_labels_of_datasets_may_be_strings(images):
    dataset = tf.data.Dataset.from_tensor_slices(images).batch(7)
    examples = labelled.load_labelled("train", dataset)
    np.testing.assert_array_equal(examples["labels"], images[1])
    np.testing.assert_array_equal(examples["images"], images[0])


def test_steps_grow_with_the_root_of_the_labels():
    found = [finetuning.steps_for(n) for n in (2, 64, 256, 6400)]
    assert found == [3, 3, 6, 30]


def test_cost_is_that_of_the_steps():
    cost = finetuning.Cost(fixed=2.0, per_step=0.5)
    assert cost.seconds(train=256, test=400) == 2.0 + 0.5 * (6 + 2)


def test_learning_rate_follows_a_cosine_to_zero():
    schedule = finetuning._Cosine(0.2)
    schedule.steps.assign(4)
    found = [float(schedule(step)) for step in (0, 1, 2, 4)]
    expected = keras.optimizers.schedules.CosineDecay(0.2, 4)
    np.testing.assert_allclose(
        found, [float(expected(step)) for step in (0, 1, 2, 4)], atol=1e-7
    )


def test_bad_input_is_refused(model, images):
    with pytest.raises(ValueError) as error:
        simclr.fine_tune(model, images, projection_layer=4)
    assert str(error.value) == (
        "`projection_layer` must be a layer of the projection head. Received: "
        "projection_layer=4, a head of 3 layers"
    )
    with pytest.raises(ValueError) as error:
        simclr.fine_tune(model, (images[0], np.zeros(24)))
    assert str(error.value) == (
        "`train` must hold at least two classes. Received: [0.0]"
    )
    with pytest.raises(ValueError) as error:
        simclr.fine_tune(model, images, images[0])
    assert str(error.value) == (
        "`test` must hold labels: elements (images, labels). Received: "
        "images only"
    )


def test_classes_are_compared_by_name(model, images, said):
    pixels, numbers = images[0], np.arange(24) % 2
    train, same, other = (
        tf.data.Dataset.from_tensor_slices((pixels, labels)).batch(9)
        for labels in (numbers, 2 * numbers, numbers + 1)
    )
    train.class_names = ["dark", "bright"]
    same.class_names = other.class_names = ["dark", "other", "bright"]
    right = simclr.fine_tune(model, train, train)
    found = simclr.fine_tune(model, train, same)
    assert found.accuracy == right.accuracy
    assert found.classes == ("bright", "dark")
    assert set(found.predictions) <= set(found.classes)
    assert not said.messages
    simclr.fine_tune(model, train, other)
    assert said.messages[0].endswith("count as wrong: other.")
    with pytest.raises(ValueError, match="must both have names of classes"):
        simclr.fine_tune(model, train, (pixels, numbers))
    # Half of the labels are negative: only one class is left.
    with pytest.raises(ValueError, match="at least two classes"):
        simclr.fine_tune(model, (pixels, numbers - 1))


def halving_model():
    return simclr.SimCLRModel(
        standins.encoder(),
        augmentation=[
            simclr.SimCLRAugmentation(8),
            keras.layers.Rescaling(0.5),
        ],
    )


@pytest.mark.filterwarnings("ignore:These layers:UserWarning")
def test_views_to_learn_from_have_the_range_of_those_at_rest():
    tuner = finetuning.Tuner(halving_model(), np.array(["cat", "dog"]))
    network = tuner._network
    network.core = lambda views, training: views
    batch = {"images": tf.ones((4, 8, 8, 1))}  # So is every crop of it.
    for training in (False, True):
        views = network.call(batch, training)
        np.testing.assert_allclose(views, np.full((4, 8, 8, 1), 0.5), rtol=1e-6)


@pytest.mark.filterwarnings("ignore:These layers:UserWarning")
def test_what_plain_layers_cannot_do_is_refused_before_training(
    images, monkeypatch
):
    monkeypatch.delattr(finetuning.Tuner, "fit")
    with pytest.raises(ValueError, match="must leave images of the encoder's"):
        simclr.fine_tune(halving_model(), images)


@pytest.mark.parametrize(
    ("head", "layers", "width"),
    [
        (lambda: keras.layers.Dense(5), 0, 6),
        (lambda: keras.layers.Dense(5), 1, 5),
        (lambda: keras.Sequential([keras.layers.Dense(4)]), 0, 6),
        (
            lambda: keras.Sequential(
                [keras.layers.Dense(7), keras.layers.Dense(4)]
            ),
            1,
            7,
        ),
        (lambda: simclr.ProjectionHead(0), 0, 6),
    ],
)
def test_head_may_be_any_layer(images, head, layers, width):
    model = simclr.SimCLRModel(
        standins.encoder(),
        head(),
        augmentation=simclr.SimCLRAugmentation(8),
    )
    result = simclr.fine_tune(model, images, projection_layer=layers)
    assert result.classifier.get_layer("probabilities").kernel.shape[0] == width


def test_batch_norm_from_scratch_begins_with_the_images():
    """Its averages move too slowly for few steps."""
    keras.utils.set_random_seed(0)
    norm = keras.layers.BatchNormalization(momentum=0.999)
    layers = [keras.Input((8, 8, 1)), norm, standins.encoder()]
    encoder = keras.Sequential(layers)
    tuner = finetuning.Tuner(encoder, np.arange(2), from_scratch=True)
    images, labels = standins.labelled_images()
    images = 0.5 + images / 10
    tuner.fit({"images": images, "labels": labels}, 0)
    copy = tuner._network.layers_below[0].layers[0]
    np.testing.assert_allclose(copy.moving_mean, [images.mean()], rtol=1e-2)
    np.testing.assert_allclose(copy.moving_variance, [images.var()], rtol=0.1)
    np.testing.assert_array_equal(norm.moving_variance, [1.0])


def test_weights_that_are_not_finite_are_refused_before_training(
    images, monkeypatch
):
    monkeypatch.delattr(finetuning.Tuner, "fit")
    model = standins.model()
    weight = model.encoder.weights[0]
    weight.assign(weight * np.nan)
    with pytest.raises(ValueError, match="Weights must be finite"):
        simclr.fine_tune(model, images)
