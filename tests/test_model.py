import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import oracles

import keras_simclr as simclr
from keras_simclr import elements

pytestmark = pytest.mark.usefixtures("eagerly")


@keras.saving.register_keras_serializable(package="test_model")
class Shake(keras.layers.Layer):
    """A user's own augmentation, for data of any shape."""

    def call(self, inputs, training=True, seed=None):
        if not training:
            return inputs
        noise = tf.random.stateless_uniform(tf.shape(inputs), seed)
        return 0.5 * inputs + 0.5 * tf.cast(noise, inputs.dtype)


class Unseeded(keras.layers.Layer):
    def call(self, inputs):
        return inputs


def random_images(count=8, size=8, channels=3, dtype="float32", seed=0):
    shape = (count, size, size, channels)
    images = np.random.default_rng(seed).integers(0, 256, shape, "uint8")
    return images if dtype == "uint8" else (images / 255.0).astype(dtype)


def batches(*arrays, size=4):
    """Batches in a fixed order."""
    return tf.data.Dataset.from_tensor_slices(
        arrays[0] if len(arrays) == 1 else arrays
    ).batch(size, drop_remainder=True)


def tiny_encoder(shape=(8, 8, 3), norm=True, **kwargs):
    layers = [
        keras.Input(shape),
        keras.layers.Flatten(),
        keras.layers.Dense(6, activation="tanh", **kwargs),
    ]
    if norm:
        layers.append(keras.layers.BatchNormalization(momentum=0.5))
    return keras.Sequential(layers)


def tiny_model(
    encoder=None,
    head=None,
    augmentation=None,
    optimizer=None,
    loss=None,
    run_eagerly=True,
    **kwargs,
):
    """A model to train. Few steps are faster without a graph."""
    keras.utils.set_random_seed(0)
    model = simclr.SimCLRModel(
        tiny_encoder() if encoder is None else encoder,
        keras.layers.Dense(4, use_bias=False) if head is None else head,
        augmentation=Shake() if augmentation is None else augmentation,
        **kwargs,
    )
    optimizer = optimizer or keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(optimizer, loss, run_eagerly=run_eagerly)
    return model


def fit(model, data, epochs=1, **kwargs):
    return model.fit(data, epochs=epochs, verbose=0, **kwargs).history


def state(model):
    """Weights, moving averages, momentum and iterations."""
    model.optimizer.build(model.trainable_variables)
    variables = [*model.weights, *model.optimizer.variables]
    return [variable.numpy() for variable in variables]


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def differs(first, second):
    return any((a != b).any() for a, b in zip(first, second, strict=True))


def project(model, images, step):
    views = model.views(images, step=step)
    hs = [model.encoder(view, training=False) for view in views]
    return [h.numpy().astype("float64") for h in hs]


@pytest.fixture(scope="module")
def bare_model():
    """Everything as a bare `compile()` gives it."""
    keras.utils.set_random_seed(0)
    model = simclr.SimCLRModel(tiny_encoder())
    model.compile()
    return model


@pytest.mark.usefixtures("in_graphs")
def test_bare_compile_trains_with_lars_and_nt_xent(bare_model):
    before = state(bare_model)
    history = fit(bare_model, batches(random_images(16), size=8), epochs=2)
    assert sorted(history) == ["contrastive_accuracy", "loss"]
    assert np.isfinite(history["loss"]).all()
    assert isinstance(bare_model.optimizer, simclr.LARS)
    assert isinstance(bare_model.loss, simclr.NTXent)
    assert bare_model.loss.temperature == 0.1
    assert int(bare_model.optimizer.iterations) == 4
    assert differs(before, state(bare_model))


@pytest.mark.fault(66)
@pytest.mark.usefixtures("in_graphs")
def test_the_step_is_traced_once(monkeypatch):
    model = tiny_model(run_eagerly=False)
    traces, contrast = [], model._contrast
    monkeypatch.setattr(
        model,
        "_contrast",
        lambda *args, **kwargs: traces.append(1) or contrast(*args, **kwargs),
    )
    fit(model, batches(random_images(16), size=8), epochs=2)
    assert len(traces) == 1


def test_prediction_is_the_encoder_on_the_view_at_rest(bare_model):
    images = random_images(6, size=16, dtype="uint8")
    before = state(bare_model)
    outputs = bare_model.predict(images, verbose=0)
    view = bare_model.augmentation(images, training=False)
    at_rest = bare_model.encoder(view, training=False)
    np.testing.assert_allclose(outputs, at_rest, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        outputs, bare_model(images), rtol=1e-5, atol=1e-6
    )
    assert outputs.dtype == "float32"
    assert_same(before, state(bare_model))


def test_evaluation_moves_nothing_and_repeats_itself(bare_model):
    images = batches(random_images(16), size=8)
    before = state(bare_model)
    first = bare_model.evaluate(images, verbose=0, return_dict=True)
    second = bare_model.evaluate(images, verbose=0, return_dict=True)
    assert first == second
    assert sorted(first) == ["contrastive_accuracy", "loss"]
    assert_same(before, state(bare_model))


def test_saved_model_predicts_the_same(bare_model, tmp_path):
    bare_model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    images = random_images(4)
    assert_same(state(bare_model), state(copy))
    np.testing.assert_array_equal(copy(images), bare_model(images))


def test_training_step_follows_the_gradient_of_the_loss():
    encoder = tiny_encoder(norm=False)
    model = tiny_model(encoder, optimizer=keras.optimizers.SGD(0.1))
    images = random_images(4)
    kernel = model.projection_head.kernel.numpy().astype("float64")
    weights = [weight.numpy() for weight in encoder.weights]
    h_1, h_2 = project(model, images, step=0)
    with tf.GradientTape() as tape:
        z = [
            model.projection_head(encoder(view))
            for view in model.views(images, step=0)
        ]
        loss = simclr.nt_xent(*z)
    gradients = tape.gradient(loss, encoder.weights)
    fit(model, batches(images))
    kernel_gradient = oracles.central_differences(
        lambda w: oracles.nt_xent(h_1 @ w, h_2 @ w, 0.1), kernel
    )
    np.testing.assert_allclose(
        model.projection_head.kernel,
        kernel - 0.1 * kernel_gradient,
        rtol=1e-4,
        atol=1e-5,
    )
    for weight, before, gradient in zip(
        encoder.weights, weights, gradients, strict=True
    ):
        np.testing.assert_allclose(
            weight, before - 0.1 * gradient, rtol=1e-4, atol=1e-5
        )


def test_every_step_takes_the_views_of_its_number():
    model = tiny_model(tiny_encoder(norm=False))
    images = random_images(8)
    for step in range(3):
        h_1, h_2 = project(model, images, step)
        kernel = model.projection_head.kernel.numpy()
        history = fit(model, batches(images, size=8))
        z_1, z_2 = h_1 @ kernel, h_2 @ kernel
        loss = oracles.nt_xent(z_1, z_2, 0.1)
        found = np.mean(oracles.positives_found(z_1, z_2))
        np.testing.assert_allclose(history["loss"], [loss], rtol=1e-4)
        np.testing.assert_allclose(history["contrastive_accuracy"], [found])


@pytest.mark.parametrize("decoupled", [False, True])
def test_a_step_contrasts_any_number_of_views(decoupled):
    images = random_images(6)
    model = tiny_model(
        tiny_encoder(norm=False),
        augmentation=simclr.RandomGaussianNoise(),
        second_augmentation=simclr.RandomFlip(),
        loss=simclr.NTXent(0.3, decoupled=decoupled),
        views=4,
    )
    views = model.views(images, step=0)
    assert len(views) == 4
    for view in views[1:]:  # Made like the second: flipped or not.
        for row, image in zip(view.numpy(), images, strict=True):
            assert any(np.allclose(row, x) for x in (image, image[:, ::-1]))
    z = [model.projection_head(model.encoder(x)).numpy() for x in views]
    expected = oracles.of_views(z, 0.3, decoupled=decoupled).mean()
    history = fit(model, batches(images, size=6))
    np.testing.assert_allclose(history["loss"], [expected], rtol=1e-4)
    nearest = model.contrastive_loss.contrast(tf.stack(z))[1]
    np.testing.assert_allclose(
        history["contrastive_accuracy"], [np.mean(nearest)], rtol=1e-6
    )


def test_number_of_views_stays_with_the_model():
    model = simclr.SimCLRModel(
        tiny_encoder(), augmentation=simclr.RandomFlip(), views=3
    )
    copy = simclr.SimCLRModel.from_config(model.get_config())
    images = random_images(2)
    assert_same(copy.views(images), model.views(images))
    assert len(copy.views(images)) == 3


@pytest.mark.parametrize("views", [1, 0, 2.0, True, "2", None])
def test_fewer_than_two_views_are_refused(views):
    with pytest.raises(ValueError) as error:
        simclr.SimCLRModel(tiny_encoder(), views=views)
    assert str(error.value) == (
        f"`views` must be an integer of at least 2. Received: views={views!r}"
    )


def test_what_compares_two_views_is_refused_for_more():
    model = simclr.SimCLRModel(
        tiny_encoder(), augmentation=simclr.RandomFlip(), views=3
    )
    with pytest.raises(ValueError, match="more than two views must be"):
        model.compile("sgd", lambda z_1, z_2: tf.reduce_mean(z_1 * z_2))
    model.compile("sgd")
    views = random_images(4)
    dataset = tf.data.Dataset.from_tensors({"view_1": views, "view_2": views})
    with pytest.raises(ValueError, match=r"with views=3\. Give it"):
        model.fit(dataset, verbose=0)


@pytest.mark.fault(47)
def test_views_depend_on_seed_step_and_view():
    images = random_images(2)
    model, other = tiny_model(), tiny_model(seed=1)
    view_1, view_2 = model.views(images, step=3)
    assert_same(model.views(images, step=3), (view_1, view_2))
    for different in (
        view_2,
        model.views(images, step=4)[0],
        other.views(images, step=3)[0],
    ):
        assert np.abs(view_1 - different).max() > 0.1


@pytest.mark.filterwarnings("ignore:The learning rate is 0")
def test_reported_loss_is_the_mean_over_the_batches():
    model = tiny_model(optimizer=keras.optimizers.SGD(0.0))
    data = batches(random_images(12))
    losses = []
    model.fit(
        data,
        verbose=0,
        callbacks=keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: losses.append(logs["loss"])
        ),
    )
    running = np.array(losses) * [1, 2, 3]
    single = np.diff(running, prepend=0.0)
    assert len(losses) == 3
    assert len(set(single.round(4))) == 3
    np.testing.assert_allclose(losses[-1], single.mean(), rtol=1e-6)


@pytest.mark.fault(43)
def test_labels_never_influence_the_weights():
    images, labels = random_images(8), np.arange(8)
    runs = []
    for data in (
        batches(images),
        batches(images, labels),
        batches({"images": images, "labels": labels[::-1]}),
    ):
        model = tiny_model()
        fit(model, data, epochs=2)
        runs.append(state(model))
    assert_same(runs[0], runs[1])
    assert_same(runs[0], runs[2])


@pytest.mark.fault(46)
def test_same_seed_gives_the_same_training():
    runs = []
    for seed, run_eagerly in ((3, True), (3, True), (3, False), (4, True)):
        model = tiny_model(seed=seed, run_eagerly=run_eagerly)
        fit(model, random_images(8), epochs=2, batch_size=4)
        runs.append(state(model))
    assert_same(runs[0], runs[1])
    np.testing.assert_allclose(runs[1][0], runs[2][0], atol=1e-4)
    assert np.abs(runs[1][0] - runs[3][0]).max() > 1e-3


@pytest.mark.fault(27)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_bytes_and_floats_give_the_same_views(dtype):
    model = tiny_model()
    views = model.views(random_images(4, dtype="uint8"))
    for view, expected in zip(
        model.views(random_images(4, dtype=dtype)), views, strict=True
    ):
        assert view.dtype == expected.dtype == "float32"
        np.testing.assert_allclose(view, expected, atol=1e-3)


@pytest.mark.fault(27)
def test_training_on_bytes_equals_training_on_floats():
    runs = []
    for dtype in ("uint8", "float32"):
        model = tiny_model()
        fit(model, batches(random_images(8, dtype=dtype)))
        runs.append(state(model))
    for first, second in zip(*runs, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-5)


def test_custom_loss_receives_both_projections():
    def distance(z_1, z_2):
        return tf.reduce_mean((z_1 - z_2) ** 2)

    model = tiny_model(tiny_encoder(norm=False))
    model.compile(keras.optimizers.SGD(0.1), distance, run_eagerly=True)
    images = random_images(4)
    h_1, h_2 = project(model, images, step=0)
    kernel = model.projection_head.kernel.numpy()
    history = fit(model, batches(images))
    expected = np.mean((h_1 @ kernel - h_2 @ kernel) ** 2)
    np.testing.assert_allclose(history["loss"], [expected], rtol=1e-4)


def test_optimizer_may_be_a_name():
    model = tiny_model(optimizer="adam")
    before = state(model)
    fit(model, batches(random_images(4)))
    assert isinstance(model.optimizer, keras.optimizers.Adam)
    assert differs(before, state(model))


@pytest.mark.fault(51)
@pytest.mark.parametrize("optimizer", [None, "adam"])
def test_saved_model_goes_on_training_as_if_never_saved(tmp_path, optimizer):
    data = batches(random_images(8))
    model, whole = tiny_model(), tiny_model()
    for each in (model, whole):
        each.compile(optimizer, simclr.NTXent(0.5), run_eagerly=True)
    fit(whole, data, epochs=2)
    fit(model, data)
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    fit(copy, data)
    assert copy.loss.temperature == 0.5
    assert_same(state(whole), state(copy))


def test_config_keeps_seed_name_and_second_augmentation():
    model = tiny_model(
        second_augmentation=[Shake(name="a"), Shake(name="b")],
        seed=7,
        name="mine",
    )
    config = keras.saving.serialize_keras_object(model)
    copy = keras.saving.deserialize_keras_object(config)
    assert (copy.seed, copy.name) == (7, "mine")
    assert [layer.name for layer in copy.second_augmentation] == ["a", "b"]
    images = random_images(2)
    assert_same(copy.views(images, step=2), model.views(images, step=2))


@pytest.mark.fault(17, 18)
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.usefixtures("in_graphs")
def test_mixed_precision_trains_and_predicts_float32(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = tiny_model(head=simclr.ProjectionHead(2, units=4))
        model.compile(run_eagerly=policy == "mixed_bfloat16")
    finally:
        keras.config.set_dtype_policy("float32")
    before = model.get_weights()
    images = random_images(8)
    history = fit(model, batches(images), epochs=2)
    assert model.encoder.layers[-1].compute_dtype == policy[len("mixed_") :]
    assert np.isfinite(history["loss"]).all()
    assert differs(before, model.get_weights())
    assert model.predict(images, verbose=0).dtype == "float32"


@pytest.mark.fault(25, 67)
@pytest.mark.filterwarnings("ignore:The learning rate is 0")
def test_regularization_is_added_to_the_loss():
    penalty = keras.regularizers.L2(0.5)
    plain = tiny_model(optimizer=keras.optimizers.SGD(0.0))
    model = tiny_model(
        tiny_encoder(kernel_regularizer=penalty),
        optimizer=keras.optimizers.SGD(0.0),
    )
    model.set_weights(plain.get_weights())
    data = batches(random_images(4))
    (expected,) = fit(plain, data)["loss"]
    kernel = model.encoder.layers[1].kernel
    expected += 0.5 * float(tf.reduce_sum(kernel**2))
    np.testing.assert_allclose(fit(model, data)["loss"], [expected], rtol=1e-5)


@pytest.mark.usefixtures("in_graphs")
def test_encoder_of_keras_applications_trains():
    encoder = keras.applications.MobileNetV2(
        (32, 32, 3), alpha=0.35, weights=None, include_top=False, pooling="avg"
    )
    model = tiny_model(encoder)
    before = encoder.get_weights()
    images = random_images(4, size=32)
    history = fit(model, batches(images))
    assert np.isfinite(history["loss"]).all()
    assert differs(before, encoder.get_weights())
    assert model.predict(images, verbose=0).shape == (4, 1280)


def test_rows_of_a_table_train_with_an_augmentation_of_their_own():
    model = tiny_model(tiny_encoder((5,)))
    rows = 100 * np.random.default_rng(0).normal(size=(8, 5))
    history = fit(model, batches(rows.astype("float32")), epochs=2)
    assert np.isfinite(history["loss"]).all()
    assert model.predict(rows, verbose=0).shape == (8, 6)


class Unknown(keras.layers.Layer):
    """Tokens as they are in a table, and in training some made unknown."""

    def call(self, tokens, training=True, seed=None):
        tokens = tf.gather(tf.range(9, dtype=tokens.dtype), tokens)
        if not training:
            return tokens
        bits = tf.random.stateless_uniform(
            tf.shape(tokens), seed, None, None, tf.int32, alg="philox"
        )
        return tf.where(bits < 0, tf.constant(1, tokens.dtype), tokens)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_tokens_are_integers_for_an_augmentation_of_their_own(dtype):
    inputs = keras.Input((5,), dtype=dtype)
    x = keras.layers.Embedding(9, 6, mask_zero=True)(inputs)
    encoder = keras.Model(inputs, keras.layers.GlobalAveragePooling1D()(x))
    model = tiny_model(encoder, augmentation=Unknown())
    tokens = np.random.default_rng(0).integers(1, 9, (8, 5)).astype(dtype)
    for view in model.views(tokens):
        assert view.dtype == dtype
        assert set(tokens[view != tokens]) - {1}
    history = fit(model, batches(tokens), epochs=2)
    assert np.isfinite(history["loss"]).all()
    np.testing.assert_allclose(
        model.predict(tokens, verbose=0),
        np.asarray(encoder.layers[1].embeddings)[tokens].mean(axis=1),
        rtol=1e-5,
    )


def test_layer_without_a_seed_warns_once():
    with pytest.warns() as record:
        tiny_model(augmentation=[Shake(), Unseeded(name="mine")])
    (warning,) = record
    assert str(warning.message) == (
        "These layers of `augmentation` take no `seed`: mine. Their views "
        "depend on more than seed, step and place: a run with them cannot be "
        "repeated. If this is a `Sequential` or a `Pipeline`, pass its layers "
        "as a list."
    )
    assert warning.filename == __file__


def test_layers_of_a_list_get_seeds_of_their_own():
    images = random_images(2)
    single = tiny_model(augmentation=[Shake()])
    double = tiny_model(augmentation=[Shake(), Shake()])
    (first, _), (both, _) = single.views(images), double.views(images)
    noise_1 = 2 * first - images
    noise_2 = 2 * both - first
    assert np.abs(noise_1 - noise_2).max() > 0.1
    assert (
        np.abs(
            np.corrcoef(noise_1.numpy().ravel(), noise_2.numpy().ravel())[0, 1]
        )
        < 0.2
    )


def test_second_augmentation_makes_the_second_view():
    images = random_images(2)
    model = tiny_model(second_augmentation=simclr.RandomFlip(rate=1.0))
    plain = tiny_model()
    view_1, view_2 = model.views(images)
    np.testing.assert_array_equal(view_1, plain.views(images)[0])
    np.testing.assert_array_equal(view_2, images[:, :, ::-1])


def test_ready_views_are_not_augmented():
    model = tiny_model(tiny_encoder(norm=False))
    images = random_images(8)
    views = {"view_1": images[:4], "view_2": images[4:]}
    h = model.encoder(images).numpy() @ model.projection_head.kernel.numpy()
    history = fit(model, batches(views))
    expected = oracles.nt_xent(h[:4], h[4:], 0.1)
    np.testing.assert_allclose(history["loss"], [expected], rtol=1e-4)


@pytest.mark.fault(32)
def test_images_of_one_channel_train():
    model = tiny_model(
        tiny_encoder((8, 8, 1)), augmentation=simclr.SimCLRAugmentation(8)
    )
    history = fit(model, batches(random_images(8, channels=1)))
    assert np.isfinite(history["loss"]).all()


@pytest.mark.fault(13)
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_images_of_one_colour_stay_finite(value):
    model = tiny_model(
        simclr.ResNet(
            10, width_multiplier=0.1, stem="cifar", input_shape=(8, 8, 3)
        ),
        augmentation=simclr.SimCLRAugmentation(8),
    )
    images = np.full((8, 8, 8, 3), value, "float32")
    for view in model.views(images):
        assert np.isfinite(view).all()
    history = fit(model, batches(images))
    assert np.isfinite(history["loss"]).all()
    assert all(np.isfinite(x).all() for x in state(model))


def test_steps_are_the_same_however_they_are_run():
    data = batches(random_images(16))
    model, plain = tiny_model(), tiny_model()
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9), steps_per_execution=2
    )
    fit(plain, data)
    fit(model, data)
    for a, b in zip(state(model), state(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert int(model.optimizer.iterations) == 4


@pytest.mark.fault(63)
@pytest.mark.usefixtures("in_graphs")
def test_compiled_by_xla_it_trains_and_says_what_is_lost():
    model = tiny_model()
    with pytest.warns() as record:
        model.compile(keras.optimizers.SGD(0.1), jit_compile=True)
    (warning,) = record
    assert str(warning.message) == (
        "With `jit_compile=True` pixel values are not checked: XLA leaves out "
        "assertions."
    )
    assert warning.filename == __file__
    before = state(model)
    history = fit(model, batches(random_images(4)))
    assert np.isfinite(history["loss"]).all()
    assert differs(before, state(model))


@pytest.mark.fault(11)
@pytest.mark.usefixtures("in_graphs")
def test_arrays_warn_once_about_the_remainder():
    model = tiny_model()
    with pytest.warns() as record:
        fit(model, random_images(11), epochs=2, batch_size=4)
    (warning,) = record
    assert str(warning.message) == (
        "3 of 11 images do not fill a batch of 4 and are left out, others in "
        "each epoch."
    )
    assert warning.filename == __file__
    assert int(model.optimizer.iterations) == 4


def test_arrays_with_labels_train():
    model = tiny_model()
    model.fit(random_images(8), np.arange(8), batch_size=4, verbose=0)
    assert int(model.optimizer.iterations) == 2


def test_validation_arrays_are_evaluated():
    model = tiny_model()
    held_out = random_images(8, seed=1)
    for validation in (held_out, (held_out, np.arange(8))):
        history = fit(
            model, random_images(8), batch_size=4, validation_data=validation
        )
        loss, accuracy = model.evaluate(batches(held_out), verbose=0)
        np.testing.assert_allclose(history["val_loss"], [loss], rtol=1e-6)
        assert history["val_contrastive_accuracy"] == [accuracy]


def test_validation_split_holds_out_the_last_images():
    model = tiny_model()
    images = random_images(12)
    history = fit(model, images, batch_size=4, validation_split=1 / 3)
    loss, _ = model.evaluate(batches(images[8:]), verbose=0)
    assert int(model.optimizer.iterations) == 2
    np.testing.assert_allclose(history["val_loss"], [loss], rtol=1e-6)


# Refusals at construction.


@pytest.mark.fault(67)
@pytest.mark.parametrize("encoder", ["resnet", None])
def test_encoder_that_is_no_model_is_refused(encoder):
    with pytest.raises(TypeError) as error:
        simclr.SimCLRModel(encoder)
    assert str(error.value) == (
        "`encoder` must be a Keras model, for example simclr.ResNet(18). "
        f"Received: encoder={encoder!r}"
    )


@pytest.mark.fault(67)
def test_encoder_without_an_input_shape_is_refused():
    encoder = keras.Sequential([keras.layers.Dense(2)], name="mine")
    with pytest.raises(ValueError) as error:
        simclr.SimCLRModel(encoder)
    assert str(error.value) == (
        "`encoder` must know its input shape: make it a functional model, or "
        "a Sequential one that starts with keras.Input(shape). "
        "Received: encoder='mine'"
    )


@pytest.mark.fault(67)
def test_encoder_that_returns_maps_is_refused_with_the_cure():
    encoder = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, padding="same")]
    )
    with pytest.raises(ValueError) as error:
        simclr.SimCLRModel(encoder)
    assert str(error.value) == (
        "`encoder` must return one representation per image, of shape "
        "(batch, features). Received: output shape (None, 8, 8, 4). "
        "Add keras.layers.GlobalAveragePooling2D() to its end."
    )


@pytest.mark.parametrize("shape", [(None, 8, 4), (5,)])
def test_default_augmentation_needs_images_of_one_size(shape):
    last = keras.layers.Dense(2)
    if len(shape) == 3:
        last = keras.layers.GlobalAveragePooling2D()
    encoder = keras.Sequential([keras.Input(shape), last])
    with pytest.raises(ValueError) as error:
        simclr.SimCLRModel(encoder)
    assert str(error.value) == (
        "`augmentation` must be given for an encoder that does not take "
        "images of one size and one number of channels: a layer, or a list "
        f"of layers. Received: an encoder with input shape {(None, *shape)}"
    )


def test_augmentation_that_does_not_fit_the_encoder_is_refused():
    crop = simclr.RandomResizedCrop(4, 4)
    for name in ("augmentation", "second_augmentation"):
        arguments = {"augmentation": Shake(), name: crop}
        with pytest.raises(ValueError) as error:
            simclr.SimCLRModel(tiny_encoder(), **arguments)
        assert str(error.value) == (
            "The encoder takes views of shape (None, 8, 8, 3). "
            f"Received: shape (None, 4, 4, 3) from `{name}`"
        )


@pytest.mark.parametrize("augmentation", ["flip", 3])
def test_augmentation_that_is_no_layer_is_refused(augmentation):
    for given in (augmentation, [Shake(), augmentation]):
        with pytest.raises(TypeError) as error:
            simclr.SimCLRModel(tiny_encoder(), augmentation=given)
        assert str(error.value) == (
            "`augmentation` must be a Keras layer or a list of them. "
            f"Received: augmentation={augmentation!r}"
        )


# Refusals by `compile`.


def test_loss_that_cannot_be_called_is_refused():
    with pytest.raises(TypeError) as error:
        tiny_model().compile(loss="mse")
    assert str(error.value) == (
        "`loss` must be a callable (z_1, z_2) -> scalar, for example "
        "simclr.NTXent(0.5). Received: loss='mse'"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("metrics", ["accuracy"]),
        ("weighted_metrics", ["mse"]),
        ("loss_weights", [1.0]),
    ],
)
def test_what_compares_with_targets_is_refused(name, value):
    with pytest.raises(ValueError) as error:
        tiny_model().compile(**{name: value})
    assert str(error.value) == (
        f"`{name}` has nothing to compare: contrastive training has no "
        f"targets. Received: {name}={value!r}"
    )


# Refusals by `fit`: nothing may have changed.


@pytest.fixture(scope="module")
def model():
    model = tiny_model(run_eagerly=False)
    fit(model, batches(random_images(8)))
    return model


class StatesAfterSteps(keras.callbacks.Callback):
    def __init__(self):
        self.all = []

    def on_train_batch_end(self, batch, logs=None):
        self.all.append(state(self.model))


def refusal(model, data, **kwargs):
    """The message, once it is known that no variable has changed."""
    before = state(model)
    with pytest.raises(ValueError) as error:
        fit(model, data, **kwargs)
    assert_same(before, state(model))
    return str(error.value)


@pytest.mark.fault(28)
@pytest.mark.usefixtures("in_graphs")
def test_floats_up_to_255_are_refused(model):
    images = random_images(4)
    images[1, 0, 0, 0] = 255.0
    assert refusal(model, batches(images)) == (
        "Float values of `images` must lie in [0, 1]. If they are 0 to 255, "
        "add: dataset = dataset.map(lambda images, *labels: "
        "(images / 255.0, *labels)). If they are no pixels, as in "
        "spectrograms, scale all by one range: (images - low) / (high - low). "
        f"Received: values from {images.min():g} "
        "to 255 in rows 1 of the batch (epoch 1, step 1). The model is as "
        "the step before left it."
    )


@pytest.mark.fault(29)
@pytest.mark.usefixtures("in_graphs")
def test_negative_floats_are_refused(model):
    images = random_images(4)
    images[[0, 3], 0, 0, 0] = -1.0
    assert refusal(model, batches(images)) == (
        "Float values of `images` must lie in [0, 1]. If they are 0 to 255, "
        "add: dataset = dataset.map(lambda images, *labels: "
        "(images / 255.0, *labels)). If they are no pixels, as in "
        "spectrograms, scale all by one range: (images - low) / (high - low). "
        "Received: values from -1 "
        f"to {images.max():g} in rows 0 3 of the batch (epoch 1, step 1). "
        "The model is as the step before left it."
    )


@pytest.mark.fault(30)
def test_integers_that_are_no_bytes_are_refused(model):
    images = random_images(4, dtype="uint8").astype("int32")
    assert refusal(model, batches(images)) == (
        "Images must be uint8, or float with values in [0, 1]. Received: "
        "images of dtype int32. If their values are 0 to 255, add: "
        "images = tf.cast(images, 'uint8')"
    )


@pytest.mark.fault(35)
def test_small_images_are_refused(model):
    assert refusal(model, batches(random_images(4, size=7))) == (
        "Images must have at least 8 pixels a side. "
        "Received: images of shape (4, 7, 7, 3)"
    )


@pytest.mark.fault(34)
def test_channels_first_are_refused_with_the_cure(model):
    images = np.moveaxis(random_images(4), -1, 1)
    assert refusal(model, batches(images)) == (
        "Images must have at least 8 pixels a side. Received: images of shape "
        "(4, 3, 8, 8). If their channels come first: np.moveaxis(images, 1, -1)"
    )
    fit(model, batches(np.moveaxis(images, 1, -1)))


@pytest.mark.fault(35)
@pytest.mark.parametrize("shape", [(0, 10), (10, 0), (1, 300), (2, 2)])
def test_images_without_area_or_nearly_are_refused(model, shape):
    images = np.ones((4, *shape, 3), "float32")
    assert "at least 8 pixels a side" in refusal(model, batches(images))
    with pytest.raises(ValueError, match="at least 8 pixels a side"):
        model.predict(images, verbose=0)


@pytest.mark.fault(34)
def test_images_without_channels_are_refused_with_the_cure(model):
    assert refusal(model, batches(random_images(4)[..., 0])) == (
        "Images must have the shape (batch, height, width, channels). "
        "Received: images of shape (4, 8, 8). "
        "Add the channels: images[..., None]."
    )


@pytest.mark.fault(33)
def test_images_of_4_channels_are_refused():
    model = tiny_model(augmentation=simclr.SimCLRAugmentation(8))
    assert refusal(model, batches(random_images(4, channels=4))) == (
        "The encoder takes images with 3 channels. Received: images of shape "
        "(4, 8, 8, 4). Convert them, for example images[..., :3] for RGBA or "
        "tf.image.grayscale_to_rgb(images)."
    )


@pytest.mark.fault(8)
def test_one_image_in_a_batch_is_refused_before_the_first_step(model):
    assert refusal(model, batches(random_images(4), size=1)) == (
        "A contrastive batch needs at least two images: every other image is "
        "a negative. Received: `images` of shape (1, 8, 8, 3)"
    )


@pytest.mark.fault(8, 11)
@pytest.mark.usefixtures("in_graphs")
def test_one_image_in_the_last_batch_is_refused_in_its_step(model):
    data = tf.data.Dataset.from_tensor_slices(random_images(9)).batch(4)
    states = StatesAfterSteps()
    with pytest.raises(ValueError) as error:
        fit(model, data, callbacks=[states])
    assert str(error.value) == (
        "A contrastive batch needs at least two images. Build it with "
        "batch(..., drop_remainder=True). Received: a batch of 1 "
        "(epoch 1, step 3). The model is as the step before left it."
    )
    assert len(states.all) == 2
    assert_same(state(model), states.all[-1])


@pytest.mark.fault(9)
def test_empty_dataset_is_refused(model):
    empty = (
        "The dataset must hold at least one batch. Received: an empty "
        "dataset. If it ends in batch(..., drop_remainder=True), use a "
        "smaller batch."
    )
    assert refusal(model, batches(random_images(4), size=8)) == empty


@pytest.mark.fault(9, 44)
def test_dataset_that_turns_out_to_be_empty_is_refused(model):
    empty = batches(random_images(4)).filter(lambda images: False)
    with pytest.warns(UserWarning, match="ran out of data"):
        assert refusal(model, empty) == (
            "The dataset must hold at least one batch. Received: a dataset "
            "that ended before the first."
        )


@pytest.mark.fault(9, 44)
def test_arrays_smaller_than_a_batch_are_refused(model):
    assert refusal(model, random_images(4), batch_size=8) == (
        "The images must fill at least one batch. Received: 4 images, "
        "batch_size=8. Use a smaller batch."
    )


@pytest.mark.fault(44)
def test_dataset_without_end_needs_steps_per_epoch(model):
    assert refusal(model, batches(random_images(4)).repeat()) == (
        "An infinite dataset needs `steps_per_epoch`. Pass it, or "
        "leave out `repeat()`."
    )


@pytest.mark.fault(43)
@pytest.mark.usefixtures("in_graphs")
def test_bare_pair_of_views_is_refused(model):
    images = random_images(4)
    assert refusal(model, batches(images, images)) == (
        "A dataset element of two parts is (images, labels). "
        "Received: two parts of shape (4, 8, 8, 3). If they are two views, "
        "name them: dataset = dataset.map(lambda a, b: "
        "{'view_1': a, 'view_2': b})"
    )


def test_ready_views_that_do_not_fit_are_refused(model):
    views = random_images(4, size=16)
    assert (
        "The encoder takes views of shape (None, 8, 8, 3). "
        "Received: shape (4, 16, 16, 3) from `view_1`"
        in refusal(model, batches({"view_1": views, "view_2": views}))
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("class_weight", {0: 2.0}), ("sample_weight", np.ones(8))],
)
def test_weights_of_the_images_are_refused(model, name, value):
    message = refusal(model, random_images(8), batch_size=4, **{name: value})
    assert message == (
        f"`{name}` has nothing to weigh: contrastive training treats all "
        f"images alike. Leave out `{name}`."
    )


@pytest.mark.fault(1, 2)
def test_value_that_is_not_finite_stops_its_step(model):
    images = random_images(24)
    images[[21, 22], 0, 0, 0] = np.nan, np.inf
    states = StatesAfterSteps()
    with pytest.raises(ValueError) as error:
        fit(
            model,
            batches(images),
            epochs=2,
            steps_per_epoch=3,
            callbacks=[states],
        )
    assert str(error.value) == (
        "Values of `images` must be finite. Received: NaN or infinity in rows "
        "1 2 of the batch (epoch 2, step 3). The model is as the step before "
        "left it."
    )
    assert len(states.all) == 5
    assert_same(state(model), states.all[-1])


@pytest.mark.fault(1, "26b")
def test_value_that_is_not_finite_stops_an_eager_step():
    images = random_images(8)
    images[5] = np.nan
    model, states = tiny_model(), StatesAfterSteps()
    with pytest.raises(ValueError) as error:
        fit(model, batches(images), callbacks=[states])
    assert str(error.value) == (
        "Values of `images` must be finite. Received: NaN or infinity in rows "
        "1 of the batch (epoch 1, step 2). The model is as the step before "
        "left it."
    )
    assert_same(state(model), states.all[-1])


@pytest.mark.fault(1)
def test_views_that_are_not_finite_are_named(model):
    views = {"view_1": random_images(4), "view_2": random_images(4)}
    views["view_2"][3] = np.nan
    assert refusal(model, batches(views)) == (
        "Values of `view_2` must be finite. Received: NaN or infinity in rows "
        "3 of the batch (epoch 1, step 1). The model is as the step before "
        "left it."
    )


def test_views_and_tables_may_lie_outside_the_unit_range():
    model = tiny_model()
    views = 4.0 * random_images(4) - 2.0
    history = fit(model, batches({"view_1": views, "view_2": views}))
    assert np.isfinite(history["loss"]).all()


class Diverges(keras.callbacks.Callback):
    """Sets a rate with which the loss is infinite after the third step."""

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == 2:
            self.model.optimizer.learning_rate = 1e38


@pytest.mark.fault(23, 58)
@pytest.mark.parametrize("run_eagerly", [True, False])
@pytest.mark.parametrize("micro_batch_size", [None, 3])
@pytest.mark.usefixtures("in_graphs")
def test_divergence_stops_its_step(run_eagerly, micro_batch_size):
    model = tiny_model(
        tiny_encoder(norm=False),
        loss=lambda z_1, z_2: tf.reduce_mean(z_1**2 + (z_1 - z_2) ** 2),
        optimizer=keras.optimizers.SGD(0.1),
        run_eagerly=run_eagerly,
        micro_batch_size=micro_batch_size,
    )
    states = StatesAfterSteps()
    with pytest.raises(ValueError) as error:
        fit(
            model,
            batches(random_images(8)),
            epochs=3,
            callbacks=[states, Diverges()],
        )
    text = str(error.value)
    assert text.startswith(
        "The loss and its gradients must be finite: try a lower learning rate "
        "or a longer warm-up, a higher temperature, and look at the images of "
        "this step. Received: loss "
    )
    assert text.endswith(
        "(epoch 2, step 2). The model is as the step before left it."
    )
    assert len(states.all) == 3
    assert_same(state(model), states.all[-1])


def with_nan_in_its_gradient(z_1, z_2):
    """Its gradient is NaN, whatever the scale."""
    return tf.reduce_mean((z_1 - z_2) ** 2) + tf.sqrt(0.0 * tf.reduce_sum(z_1))


@pytest.mark.fault(26)
@pytest.mark.usefixtures("in_graphs")
def test_a_gradient_that_no_scale_mends_stops_float16():
    keras.config.set_dtype_policy("mixed_float16")
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.1), initial_scale=4.0
    )
    model = tiny_model(loss=with_nan_in_its_gradient, optimizer=optimizer)
    images = np.concatenate([random_images(4)] * 5)
    with pytest.raises(ValueError, match=r"\(epoch 1, step 1\)") as error:
        fit(model, batches(images))
    assert "NaN or infinity in the gradients of" in str(error.value)
    assert float(optimizer.dynamic_scale) == 0.5


@pytest.mark.usefixtures("in_graphs")
def test_divergence_under_xla_is_seen_after_the_epoch():
    model = tiny_model()
    with pytest.warns(UserWarning, match="pixel values are not checked"):
        model.compile(
            "sgd",
            lambda z_1, z_2: np.inf * tf.reduce_sum(z_1 - z_2) ** 2,
            jit_compile=True,
        )
    with pytest.raises(ValueError) as error:
        fit(model, batches(random_images(4)))
    assert str(error.value) == (
        "The loss must be finite: try a lower learning rate, a longer warm-up "
        "or a higher temperature. With `jit_compile=True` no single step is "
        "checked: the model is as the epoch left it. Received: loss=inf "
        "(epoch 1)"
    )


@pytest.mark.fault(1, 44)
@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (random_images(8, dtype="uint8").astype("int32"), "must be uint8"),
        (random_images(8, size=7), "at least 8 pixels a side"),
        (255 * random_images(8), r"must lie in \[0, 1\]"),
        (
            np.float32([0, 0, 0, 0, 0, 0, 0, np.nan])[:, None, None, None]
            + random_images(8),
            "must be finite",
        ),
        ((random_images(8), np.ones(8), np.ones(8)), "a tuple of 3 parts"),
        (batches(random_images(8)).repeat(), "needs `validation_steps`"),
        (
            tf.data.Dataset.from_tensor_slices(random_images(9)).batch(4),
            "a batch of 1",
        ),
    ],
)
def test_validation_data_are_checked_before_the_first_step(validation, message):
    model = tiny_model()
    message = f"^In `validation_data`: .*{message}"
    with pytest.raises(ValueError, match=message):
        fit(model, batches(random_images(8)), validation_data=validation)
    assert int(model.optimizer.iterations) == 0


def test_what_fails_in_validation_data_says_so():
    model, images = tiny_model(), random_images(8)
    images[7] = np.nan  # Of a dataset the first batch is looked at.
    with pytest.raises(ValueError, match=r"`images` .* \(in `validation_data`"):
        fit(
            model,
            batches(random_images(4)),
            validation_data=batches(images),
        )


def test_callbacks_may_be_a_list_of_keras():
    model, states = tiny_model(), StatesAfterSteps()
    callbacks = keras.callbacks.CallbackList(
        [states], add_history=True, model=model
    )
    model.fit(batches(random_images(8)), verbose=0, callbacks=callbacks)
    assert len(states.all) == 2


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (
            {"sizes": np.full((8, 3), 8)},
            (
                "`sizes` must be integers of shape (batch, 2). Received: sizes "
                "of shape (8, 3) and dtype int64"
            ),
        ),
        (
            {"groups": np.zeros(8)},
            (
                "`groups` must be integers of shape (batch,). Received: groups "
                "of shape (8,) and dtype float64"
            ),
        ),
        (
            {"sizes": np.full((8, 2), 9)},
            (
                "`sizes` must lie between 1 and the size of the canvas. "
                "Received: from 9 to 9 on a canvas of 8 8 (epoch 1, step 1). "
                "The model is as the step before left it."
            ),
        ),
    ],
)
@pytest.mark.usefixtures("in_graphs")
def test_sizes_and_groups_of_another_form_are_refused(others, message):
    model = tiny_model(augmentation=simclr.RandomResizedCrop(8, 8))
    with pytest.raises(ValueError) as info:
        fit(model, {"images": random_images(), **others}, batch_size=8)
    assert str(info.value) == message


@pytest.mark.usefixtures("in_graphs")
def test_sizes_need_an_augmentation_that_takes_them():
    images = {"images": random_images(), "sizes": np.full((8, 2), 8)}
    crop = simclr.RandomResizedCrop(8, 8)
    fit(tiny_model(augmentation=[crop, Shake()]), images, batch_size=8)
    with pytest.raises(ValueError) as info:
        fit(
            tiny_model(augmentation=[Shake(name="shake"), crop]),
            images,
            batch_size=8,
        )
    assert str(info.value) == (
        "`sizes` need an augmentation whose first layer takes them: "
        "SimCLRAugmentation or RandomResizedCrop. Received: shake as the first "
        "of `augmentation`"
    )


@pytest.mark.usefixtures("in_graphs")
def test_groups_need_a_loss_that_takes_them():
    images = {"images": random_images(), "groups": np.zeros(8, int)}
    model = tiny_model()
    model.compile("sgd", loss=lambda z_1, z_2: tf.reduce_mean(z_1 * z_2))
    with pytest.raises(ValueError, match="`groups` need the loss NTXent, whic"):
        fit(model, images, batch_size=8)


def test_images_of_one_group_are_no_negatives():
    images = {"images": random_images(), "groups": np.zeros(8, int)}
    assert fit(tiny_model(), images, batch_size=8)["loss"] == [0.0]


class Unrested(keras.layers.Layer):
    """A user's own augmentation that knows no `training`."""

    def call(self, images):
        return images * tf.random.uniform((tf.shape(images)[0], 1, 1, 1))


class SeldomFlipped(keras.layers.Layer):
    """Draws once for a whole batch, whatever `training` is."""

    def call(self, images, training=True, seed=None):
        is_flipped = tf.random.uniform(()) < 0.5
        return tf.cond(is_flipped, lambda: images[:, :, ::-1], lambda: images)


class Counting(keras.layers.Layer):
    """Depends on how often it was called."""

    def build(self, input_shape):
        self.calls = self.add_weight(initializer="zeros", trainable=False)

    def call(self, images):
        self.calls.assign_add(0.01)
        return images * (1.0 - self.calls)


@pytest.mark.filterwarnings("ignore:These layers:UserWarning")
@pytest.mark.parametrize(
    "layers",
    [
        Unrested(name="mine"),
        SeldomFlipped(name="mine"),
        Counting(name="mine"),
        [simclr.RandomFlip(), Unrested(name="mine")],
        keras.Sequential([keras.Input((8, 8, 3)), Unrested()], name="mine"),
        keras.layers.Pipeline([Unrested()], name="mine"),
    ],
)
def test_augmentations_that_draw_at_rest_are_refused(layers):
    with pytest.raises(ValueError) as error:
        tiny_model(augmentation=layers)
    assert str(error.value) == (
        "Augmentations must draw nothing at rest (training=False), as in "
        "`predict`. Received: other views of equal images by mine. Let its "
        "`call(images, training=True)` return the images as they are if "
        "`training` is false."
    )


def keras_layer(name, **kwargs):
    return getattr(keras.layers, name)(name="mine", **kwargs)


def clipped_noise():
    noise = keras.layers.GaussianNoise(0.1)
    clip = keras.layers.ReLU(max_value=1.0)
    return [noise, clip]


@pytest.mark.filterwarnings("ignore:These layers:UserWarning")
@pytest.mark.parametrize("place", ["augmentation", "second_augmentation"])
@pytest.mark.parametrize(
    "layer",
    [
        keras_layer("RandomBrightness", factor=0.5),
        keras_layer("RandomContrast", factor=0.5),
        keras_layer("RandomInvert"),
        keras_layer("Rescaling", scale=2.0),
        keras_layer("Rescaling", scale=2.0, offset=-1.0),
        keras_layer("Rescaling", scale=1 / 255),
        keras_layer("Rescaling", scale=255.0),
        keras_layer("GaussianNoise", stddev=0.1),
        keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                keras.layers.Rescaling(1 / 255),
                keras.layers.RandomFlip(),
                keras.layers.RandomBrightness(0.2, value_range=(0, 1)),
            ],
            name="mine",
        ),
    ],
)
def test_views_out_of_the_range_of_images_are_refused(place, layer):
    for layers in ([layer], [simclr.RandomFlip(), layer, simclr.RandomFlip()]):
        with pytest.raises(ValueError) as error:
            tiny_model(**{"augmentation": Shake(), place: layers})
        assert re.fullmatch(
            r"Views must lie in \[0, 1\] and use it, as the images do that "
            r"come to an augmentation. Received: of images from 0 to 1, views "
            rf"from \S+ to \S+ by mine of `{place}`. Give Keras's layers "
            r"value_range=\(0, 1\), leave out Rescaling\(1 / 255\), clip what "
            r"overshoots, and put a Rescaling that the encoder wants in front "
            r"of the encoder.",
            str(error.value),
        )


@pytest.mark.filterwarnings("ignore:These layers of .* take no:UserWarning")
@pytest.mark.parametrize(
    "layers",
    [
        keras_layer("RandomBrightness", factor=0.5, value_range=(0, 1)),
        keras_layer("RandomContrast", factor=0.5, value_range=(0, 1)),
        keras_layer("RandomSaturation", factor=0.5, value_range=(0, 1)),
        keras_layer("RandomRotation", factor=0.2),
        keras_layer("RandomCrop", height=8, width=8),
        keras_layer("Resizing", height=8, width=8, interpolation="bicubic"),
        clipped_noise(),
        [
            keras.layers.Rescaling(255.0),
            keras.layers.RandomBrightness(0.2),
            keras.layers.Rescaling(1 / 255),
        ],
        Shake(),
    ],
)
def test_views_in_the_range_of_images_are_taken(layers):
    images = random_images(2)
    model = tiny_model(augmentation=layers)
    np.testing.assert_allclose(model.evaluation_view(images), images, atol=1e-5)


def test_layers_of_tables_have_any_range():
    encoder = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    tiny_model(encoder, augmentation=[Shake(), TimesHundred()])


class TimesHundred(keras.layers.Layer):
    def call(self, rows, training=True, seed=None):
        return 100.0 * rows if training else rows


def test_layers_that_change_images_at_rest_are_said():
    with pytest.warns(UserWarning, match="take no `seed`"):
        with pytest.warns(UserWarning, match="at rest: half") as record:
            tiny_model(
                augmentation=[
                    simclr.RandomFlip(),
                    keras.layers.Rescaling(0.5, name="half"),
                ]
            )
    assert {warning.filename for warning in record} == {__file__}


class CutInTraining(keras.layers.Layer):
    """Makes views of the encoder's size in training only."""

    def call(self, images, training=True, seed=None):
        return images[:, :8, :8] if training else images


def test_images_that_predict_will_refuse_are_said_before_training():
    model = tiny_model(augmentation=CutInTraining())
    images = random_images(4, size=16)
    message = (
        "`predict`, probes and exports will refuse images of shape (16, 16, "
        "3): `augmentation` makes (16, 16, 3) of them at rest, and the encoder "
        "takes (8, 8, 3). Put RandomResizedCrop first, which resizes at rest."
    )
    with pytest.warns(UserWarning, match=re.escape(message)) as record:
        fit(model, images, batch_size=2)
    assert record[-1].filename == __file__
    with pytest.raises(ValueError, match="`augmentation` at rest"):
        model.predict(images, verbose=0)


def test_an_encoder_of_integers_would_see_black_images():
    encoder = keras.Sequential(
        [keras.Input((8, 8, 3), dtype="uint8"), keras.layers.Flatten()]
    )
    with pytest.raises(ValueError) as error:
        tiny_model(encoder)
    assert str(error.value) == (
        "`encoder` must take floats: views lie in [0, 1], and as integers "
        "would be 0. Begin it with keras.Input(shape) and, if it expects 0 to "
        "255, keras.layers.Rescaling(255.0). Received: inputs of uint8"
    )


@pytest.mark.fault(33)
def test_images_of_four_channels_from_training_to_export(tmp_path):
    model = simclr.SimCLRModel(tiny_encoder((8, 8, 4)))
    model.compile()
    images = random_images(8, 10, 4)
    model.fit(images, batch_size=4, verbose=0)
    assert model.evaluation_view(images).shape == (8, 8, 8, 4)
    features = model.predict(images, verbose=0)
    simclr.export_encoder(model, tmp_path / "encoder")
    saved = tf.saved_model.load(tmp_path / "encoder" / "saved_model")
    np.testing.assert_allclose(saved(images), features, atol=1e-5)
    colorless = model.augmentation.without_colors()
    views = colorless(images, seed=(0, 1)).numpy()
    assert views.shape == (8, 8, 8, 4)


@pytest.mark.fault(68)
@pytest.mark.parametrize(
    ("crops", "sizes"), [(True, (8, 16)), (False, (8,))], ids=["any", "one"]
)
def test_export_serves_what_predict_returns(crops, sizes, tmp_path):
    model = tiny_model(
        augmentation=simclr.RandomResizedCrop(8, 8) if crops else None
    )
    fit(model, batches(random_images()))
    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(tmp_path / "served")
    for size in sizes:
        images = random_images(5, size=size)
        np.testing.assert_allclose(
            served.serve(images), model.predict(images, verbose=0), atol=1e-6
        )


def test_files_of_keras_2_bring_a_model_back(bare_model, tmp_path, said):
    images = random_images(4)
    bare_model.save(tmp_path / "model.h5")
    copy = keras.models.load_model(tmp_path / "model.h5")
    np.testing.assert_array_equal(copy(images), bare_model(images))
    assert isinstance(copy.optimizer, simclr.LARS)
    copy.build_optimizer()
    copy.train_step(images)
    assert int(copy.optimizer.iterations.numpy()) == 1
    bare_model.save_weights(tmp_path / "model.weights.h5")
    copy = simclr.SimCLRModel(tiny_encoder())
    copy.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(copy(images), bare_model(images))


@pytest.mark.parametrize("method", ["train_on_batch", "test_on_batch"])
def test_one_batch_is_checked_as_those_of_fit(method):
    model = tiny_model()
    images, before = random_images(4), state(model)
    on_batch = getattr(model, method)
    wrong = [
        (np.full_like(images, np.nan), {}, "must be finite"),
        (2.0 * images, {}, r"must lie in \[0, 1\]"),
        (images[:1], {}, "at least two images"),
        (images.tolist(), {}, "A dataset element must be"),
        (images, {"sample_weight": np.ones(4)}, "nothing to weigh"),
    ]
    for data, arguments, text in wrong:
        with pytest.raises(ValueError, match=text):
            on_batch(data, **arguments)
    with pytest.raises(ValueError, match="must be finite"):
        model.evaluate(wrong[0][0], verbose=0)
    assert_same(before, state(model))
    assert on_batch({"images": images, "labels": np.arange(4)})[0] > 0


def test_callbacks_set_the_rate_of_bare_compile(bare_model):
    with_rates = [
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2),
        keras.callbacks.ReduceLROnPlateau("loss", min_lr=0.01),
    ]
    bare_model.optimizer.learning_rate = 0.25
    history = fit(bare_model, batches(random_images()), 2, callbacks=with_rates)
    assert history["learning_rate"] == [0.125, 0.0625]


@pytest.mark.fault(23, 67)
def test_what_cannot_learn_is_told_when_fit_starts():
    schedule = simclr.warmup_cosine(0.1, 4)
    model = tiny_model(optimizer=keras.optimizers.SGD(schedule))
    data = batches(random_images(8), size=4)
    plateau = keras.callbacks.ReduceLROnPlateau()
    with pytest.raises(
        ValueError, match="`ReduceLROnPlateau` needs a learning"
    ):
        fit(model, data, callbacks=plateau)
    assert int(model.optimizer.iterations) == 0
    fit(model, data, epochs=2)
    before = model.encoder.get_weights()
    with pytest.warns(UserWarning, match="rate is 0 from about step 4"):
        fit(model, data)
    model.encoder.trainable = False
    model.compile("sgd", run_eagerly=True)
    with pytest.warns(UserWarning, match="The encoder is frozen"):
        fit(model, data)
    kernel, bias, *_ = model.encoder.get_weights()
    assert_same(before[:2], (kernel, bias))


@pytest.mark.fault(43)
@pytest.mark.parametrize(
    "element",
    [
        lambda x: (x, {"label": tf.zeros(4)}),
        lambda x: ({"images": x}, tf.zeros(4)),
    ],
)
def test_dictionaries_inside_of_elements_are_refused_with_the_cure(element):
    data = batches(random_images()).map(element)
    with pytest.raises(ValueError, match="Put all parts into one dictionary"):
        fit(tiny_model(), data)


class Hungry(keras.layers.Layer):
    """The identity, for which memory is too small from some time on."""

    error = None

    def call(self, images):
        # What is tried on a few examples fits.
        if self.error is None or (images.shape[0] or 8) < 8:
            return images
        if tf.executing_eagerly():
            raise self.error
        # TensorFlow makes its own kind of error of it.
        (images,) = tf.py_function(self.fail, [images], [images.dtype])
        return tf.ensure_shape(images, (None, 8, 8, 3))

    def fail(self, images):
        if len(images) < 8:
            return images
        raise MemoryError("Unable to allocate 9 GiB")


ON_A_DEVICE = tf.errors.ResourceExhaustedError(
    None,
    None,
    "{{function_node __wrapped__Conv2D}} OOM when allocating tensor with "
    "shape[256,8] and type float on /job:localhost/replica:0/task:0/device:"
    "GPU:0 by allocator GPU_0_bfc [Op:Conv2D]\nHint: many lines",
)
WAYS = {
    "fit": lambda model, x: model.fit(x, batch_size=8, verbose=0),
    "evaluate": lambda model, x: model.evaluate(x, batch_size=8, verbose=0),
    "predict": lambda model, x: model.predict(x, batch_size=8, verbose=0),
    "train_on_batch": lambda model, x: model.train_on_batch(x),
    "extract_features": simclr.extract_features,
}


@pytest.mark.fault(66)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("error", "received", "run_eagerly"),
    [
        (
            ON_A_DEVICE,
            "OOM when allocating tensor with shape[256,8] and type float",
            True,
        ),
        (MemoryError(), "not enough memory", True),
        (MemoryError(), "MemoryError: Unable to allocate 9 GiB", False),
    ],
)
def test_memory_that_is_too_small_is_told_with_the_cure(
    way, error, received, run_eagerly, monkeypatch
):
    hungry = keras.Sequential([keras.Input((8, 8, 3)), Hungry()])
    hungry.add(tiny_encoder())
    model = tiny_model(hungry, run_eagerly=run_eagerly)
    monkeypatch.setattr(Hungry, "error", error)
    if not run_eagerly:
        tf.config.run_functions_eagerly(False)
    try:
        with pytest.raises(MemoryError) as caught:
            WAYS[way](model, random_images(8))
    finally:
        tf.config.run_functions_eagerly(True)
    cure = "Take a smaller `batch_size`, or a dataset of smaller batches"
    if way == "fit":
        cure = (
            "Go through each batch in parts, with the same negatives: "
            "--micro_batch_size=auto, or SimCLRModel(..., micro_batch_size=N). "
            "Or take a smaller batch: --batch_size"
        )
    assert str(caught.value) == (
        "What is computed at once must fit into memory. "
        f"{cure}. Received: {received}"
    )


def test_other_resources_that_are_exhausted_keep_their_words():
    text = "No space left on device"
    error = tf.errors.ResourceExhaustedError(None, None, text)
    with pytest.raises(tf.errors.ResourceExhaustedError, match=text):
        with elements.failures_in_words():
            raise error


@pytest.mark.fault(40)
@pytest.mark.parametrize("spoil", [True, False])
def test_records_that_are_gone_are_told_with_the_cure(spoil, tmp_path):
    path = tmp_path / "images.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as file:
        for image in random_images(8, dtype="uint8"):
            file.write(image.tobytes())
    data = tf.data.TFRecordDataset(str(path)).map(
        lambda x: tf.reshape(tf.io.decode_raw(x, tf.uint8), (8, 8, 3))
    )
    data = data.apply(tf.data.experimental.assert_cardinality(8))
    model, data = tiny_model(), data.batch(4, drop_remainder=True)
    fit(model, data)
    if spoil:
        path.write_bytes(path.read_bytes()[:300])
    else:
        path.unlink()
    for act in (lambda: fit(model, data), lambda: model.predict(data)):
        with pytest.raises(OSError) as error:
            act()
        assert str(error.value).startswith(
            "Data must stay what and where they are while they are read. Put "
            "them back, and begin or go on. Received: "
        )
