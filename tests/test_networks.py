import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import oracles
from helpers.processors import needs_bfloat16

import keras_simclr as simclr
from keras_simclr import copies, devices, networks
from keras_simclr.networks import FastConv2D, FusedBatchNormalization


@pytest.fixture(scope="module")
def encoder():
    keras.utils.set_random_seed(0)
    return simclr.ResNet(
        10, width_multiplier=0.25, stem="cifar", input_shape=(8, 8, 3)
    )


def count(variables):
    return sum(int(np.prod(variable.shape)) for variable in variables)


def random_images(*shape, dtype="float32"):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


# Goldens: google-research/simclr@383d414, tf2/resnet.py, parameters counted on
# the built networks, for ResNet-50 with and without the moving averages. Deeper
# and wider ones, which take long to build, are counted in test_official.py.
@pytest.mark.parametrize(
    ("depth", "sk_ratio", "stem", "official"),
    [
        (18, 0.0, "imagenet", 11_180_736),
        (18, 0.0, "cifar", 11_173_056),
        (34, 0.0, "imagenet", 21_288_896),
        (50, 0.0, "imagenet", 23_508_032),
        (50, 0.0625, "imagenet", 35_215_584),
    ],
)
def test_number_of_parameters_is_the_official_one(
    monkeypatch, depth, sk_ratio, stem, official
):
    # To draw millions of kernels takes long, and nobody looks at them here.
    zeros = keras.initializers.Zeros
    monkeypatch.setattr(keras.initializers, "VarianceScaling", zeros)
    encoder = simclr.ResNet(
        depth, width_multiplier=1, sk_ratio=sk_ratio, stem=stem
    )
    assert count(encoder.trainable_variables) == official
    if (depth, sk_ratio) == (50, 0.0):
        assert encoder.count_params() == 23_561_152


@pytest.mark.parametrize(
    ("features", "official"), [(2048, 8_659_072), (4096, 34_095_232)]
)
def test_number_of_head_parameters_is_the_official_one(features, official):
    head = simclr.ProjectionHead(3)
    head.build((None, features))
    assert count(head.trainable_variables) == official


@pytest.mark.parametrize(
    ("depth", "width", "features"),
    [(10, 0.25, 128), (10, 0.1, 48), (18, 0.25, 128), (50, 0.0625, 128)],
)
def test_representation_has_the_size_of_the_last_group(depth, width, features):
    encoder = simclr.ResNet(
        depth, width_multiplier=width, stem="cifar", input_shape=(8, 8, 3)
    )
    assert encoder.output_shape == (None, features)
    assert encoder(random_images(2, 8, 8, 3)).shape == (2, features)


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 2), ("cifar", 8)])
def test_resolution_is_halved_by_the_stem_and_three_groups(stem, side):
    encoder = simclr.ResNet(
        10, width_multiplier=0.1, stem=stem, input_shape=(64, 64, 3)
    )
    pooling = encoder.get_layer("representation")
    assert pooling.input.shape[1:3] == (side, side)


def test_image_size_may_be_unknown():
    encoder = simclr.ResNet(
        10, width_multiplier=0.1, stem="cifar", input_shape=(None, None, 1)
    )
    assert encoder(random_images(2, 9, 12, 1)).shape == (2, 48)


def test_blocks_that_do_not_project_are_the_identity_at_first():
    encoder = simclr.ResNet(
        18, width_multiplier=0.1, stem="cifar", input_shape=(8, 8, 3)
    )
    middle = keras.Model(
        encoder.input,
        [
            encoder.get_layer(f"group2_block{place}_relu").output
            for place in (1, 2)
        ],
    )
    before, after = middle(random_images(2, 8, 8, 3), training=True)
    assert np.abs(before).max() > 0
    np.testing.assert_array_equal(before, after)


def test_only_the_last_gamma_of_every_block_is_zero(encoder):
    for layer in encoder.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma = 0.0 if layer.name.endswith("last_bn") else 1.0
            assert (layer.gamma.numpy() == gamma).all()


def test_batch_norm_has_the_official_constants(encoder):
    head = simclr.ProjectionHead(3)
    head.build((None, 4))
    layers = [*encoder.layers, *head.stages[0].layers, *head.stages[-1].layers]
    norms = [
        layer
        for layer in layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    # The stem, four blocks with a shortcut, and two stages of the head.
    assert len(norms) == 1 + 4 * 3 + 2
    assert {norm.momentum for norm in norms} == {0.9}
    assert {norm.epsilon for norm in norms} == {1e-5}


def test_convolutions_have_no_bias_and_unit_gain():
    keras.utils.set_random_seed(0)
    encoder = simclr.ResNet(
        10, width_multiplier=0.5, stem="cifar", input_shape=(8, 8, 3)
    )
    convolution = encoder.get_layer("group4_block1_1_conv")
    kernel = convolution.kernel.numpy()
    spread = np.sqrt(1 / np.prod(kernel.shape[:3]))
    assert not convolution.use_bias
    assert abs(kernel.mean()) < 0.01 * spread
    np.testing.assert_allclose(kernel.std(), spread, rtol=0.01)
    # A normal distribution cut off at two of its standard deviations.
    assert np.abs(kernel).max() < 2 * spread / 0.87


@pytest.mark.parametrize("size", [7, 8])
def test_strided_convolutions_pad_all_sides_alike(encoder, size):
    images = random_images(2, size, size, 16)
    pad = encoder.get_layer("group2_block1_1_pad")
    convolution = encoder.get_layer("group2_block1_1_conv")
    expected = oracles.symmetric_convolution(
        images, convolution.kernel.numpy(), strides=2
    )
    np.testing.assert_allclose(
        convolution(pad(images)), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("size", [15, 16])
def test_imagenet_stem_pads_all_sides_alike(size):
    encoder = simclr.ResNet(
        10, width_multiplier=0.1, input_shape=(None, None, 3)
    )
    images = random_images(1, size, size, 3)
    convolution = encoder.get_layer("stem_conv")
    expected = oracles.symmetric_convolution(
        images, convolution.kernel.numpy(), strides=2
    )
    outputs = convolution(encoder.get_layer("stem_pad")(images))
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [7, 8])
def test_max_pooling_pads_even_images_at_their_end(size):
    encoder = simclr.ResNet(
        10, width_multiplier=0.1, input_shape=(None, None, 3)
    )
    images = random_images(2, size, size, 6)
    outputs = encoder.get_layer("stem_pool")(images)
    np.testing.assert_array_equal(outputs, oracles.same_max_pool(images))


def test_encoder_comes_back_from_its_config(encoder):
    copy = keras.Model.from_config(encoder.get_config())
    copy.set_weights(encoder.get_weights())
    images = random_images(2, 8, 8, 3)
    np.testing.assert_array_equal(copy(images), encoder(images))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            {"depth": 51},
            (
                "`depth` must be one of 10, 18, 34, 50, 101, 152, 200. "
                "Received: depth=51"
            ),
        ),
        (
            {"width_multiplier": 0},
            (
                "`width_multiplier` must be a positive number. Received: "
                "width_multiplier=0"
            ),
        ),
        (
            {"sk_ratio": 1.5},
            ("`sk_ratio` must be a number from 0 to 1. Received: sk_ratio=1.5"),
        ),
        (
            {"stem": "cifar10"},
            (
                "`stem` must be one of 'cifar', 'imagenet'. Received: "
                "stem='cifar10'. Did you mean 'cifar'?"
            ),
        ),
    ],
)
def test_network_that_does_not_exist_is_refused(argument, message):
    with pytest.raises(ValueError) as error:
        simclr.ResNet(**argument)
    assert str(error.value) == message


CONVOLUTIONS = pytest.mark.parametrize(
    ("filters", "size", "padding", "shape"),
    [
        (8, 1, "same", (6, 20, 30, 5)),
        (80, 3, "same", (3, 4, 5, 6)),
        (64, 3, "valid", (3, 4, 4, 6)),
        (64, (2, 3), "same", (3, 4, 4, 1)),
    ],
)


def convolved(layer, images, upstream):
    with tf.GradientTape() as tape:
        tape.watch(images)
        outputs = layer(images)
    gradients = tape.gradient(
        outputs, [images, layer.kernel], output_gradients=upstream
    )
    return outputs, *gradients


def count_products(layer, images):
    graph = tf.function(lambda x: convolved(layer, x, None))
    graph = graph.get_concrete_function(images).graph
    return sum(
        operation.type == "MatMul" for operation in graph.get_operations()
    )


@CONVOLUTIONS
@pytest.mark.parametrize(
    "how",
    [
        pytest.param("eager", marks=needs_bfloat16),
        pytest.param("graph", marks=needs_bfloat16),
        "xla",
    ],
)
def test_convolution_and_its_gradients_equal_those_of_float64(
    how, filters, size, padding, shape
):
    layer = FastConv2D(filters, size, padding=padding, dtype="mixed_bfloat16")
    images = tf.cast(random_images(*shape), tf.bfloat16)
    upstream = tf.cast(random_images(*layer(images).shape), tf.bfloat16)
    exact = keras.layers.Conv2D(filters, size, padding=padding, dtype="float64")
    exact.build(shape)
    exact.kernel.assign(tf.cast(tf.cast(layer.kernel, tf.bfloat16), tf.float64))
    run = convolved
    if how != "eager":
        run = tf.function(convolved, jit_compile=how == "xla")
    actual = run(layer, images, upstream)
    expected = convolved(
        exact, tf.cast(images, tf.float64), tf.cast(upstream, tf.float64)
    )
    for ours, right in zip(actual, expected, strict=True):
        ours, right = tf.cast(ours, tf.float64), right.numpy()
        np.testing.assert_allclose(ours, right, atol=0.01 * abs(right).max())


@CONVOLUTIONS
def test_kernel_gradient_is_made_of_products(filters, size, padding, shape):
    layer = FastConv2D(filters, size, padding=padding, dtype="mixed_bfloat16")
    images = tf.zeros(shape, tf.bfloat16)
    layer(images)
    assert count_products(layer, images) == np.prod(layer.kernel_size)


@pytest.mark.parametrize(
    ("kwargs", "shape"),
    [
        ({"dtype": "float32"}, (2, 4, 4, 6)),
        ({"strides": 2}, (2, 4, 4, 6)),
        ({"dilation_rate": 2}, (2, 4, 4, 6)),
        ({}, (2, 5, 4, 6)),  # It would be slower.
    ],
)
def test_other_convolutions_are_left_to_keras(kwargs, shape):
    kwargs = {"padding": "same", "dtype": "mixed_bfloat16", **kwargs}
    layer = FastConv2D(64, 3, **kwargs)
    images = tf.zeros(shape, layer.compute_dtype)
    layer(images)
    assert count_products(layer, images) == 0


def test_convolution_on_a_gpu_is_left_to_keras(monkeypatch):
    monkeypatch.setattr(devices, "only_cpus", lambda: False)
    layer = FastConv2D(64, 3, dtype="mixed_bfloat16")
    images = tf.zeros((2, 4, 4, 6), tf.bfloat16)
    layer(images)
    assert count_products(layer, images) == 0


def two_norms(dtype="float32", shape=(None, 4, 4, 5), **kwargs):
    """Ours and Keras's with the same, not trivial, values."""
    norms = [
        kind(momentum=0.8, epsilon=1e-3, dtype=dtype, **kwargs)
        for kind in (FusedBatchNormalization, keras.layers.BatchNormalization)
    ]
    rng = np.random.default_rng(1)
    values = [rng.uniform(0.5, 1.5, 5) for _ in range(4)]
    for norm in norms:
        norm.build(shape)
        norm.set_weights(values[: len(norm.weights)])
    return norms


def step(norm, images):
    with tf.GradientTape() as tape:
        tape.watch(images)
        outputs = norm(images, training=True)
        loss = tf.reduce_sum(tf.sin(tf.cast(outputs, "float32")))
    sources = [images, *norm.trainable_variables]
    gradients = tape.gradient(loss, [images, *norm.trainable_variables])
    assert len(gradients) == len(sources)
    return [tf.cast(x, "float32") for x in (outputs, *gradients)]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-4), ("mixed_bfloat16", 0.03)]
)
def test_fused_batch_norm_equals_that_of_keras(dtype, tolerance):
    ours, theirs = two_norms(dtype)
    images = tf.cast(random_images(6, 4, 4, 5), ours.compute_dtype)
    for a, b in zip(step(ours, images), step(theirs, images), strict=True):
        scale = np.abs(b).max()
        np.testing.assert_allclose(a, b, atol=tolerance * scale)
    for a, b in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=max(1e-5, tolerance / 10))


def test_moving_variance_is_the_biased_one():
    norm, _ = two_norms()
    images = 3.0 * random_images(2, 2, 2, 5) + 1.0
    mean, variance = norm.moving_mean.numpy(), norm.moving_variance.numpy()
    norm(images, training=True)
    axes = (0, 1, 2)
    np.testing.assert_allclose(
        norm.moving_mean, 0.8 * mean + 0.2 * images.mean(axes), rtol=1e-5
    )
    np.testing.assert_allclose(
        norm.moving_variance, 0.8 * variance + 0.2 * images.var(axes), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("kwargs", "shape"),
    [
        ({"dtype": "float64"}, (6, 4, 4, 5)),
        ({"center": False}, (6, 4, 4, 5)),
        ({"scale": False}, (6, 4, 4, 5)),
        ({}, (6, 5)),
    ],
)
def test_what_the_kernel_cannot_do_is_left_to_keras(kwargs, shape):
    ours, theirs = two_norms(shape=shape, **kwargs)
    images = random_images(*shape, dtype=kwargs.get("dtype", "float32"))
    outputs = [norm(images, training=True) for norm in (ours, theirs)]
    np.testing.assert_array_equal(*outputs)
    assert outputs[0].dtype == kwargs.get("dtype", "float32")
    for a, b in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_batch_norm_at_rest_equals_that_of_keras():
    ours, theirs = two_norms()
    before = ours.get_weights()
    images = random_images(6, 4, 4, 5)
    np.testing.assert_array_equal(ours(images), theirs(images))
    for a, b in zip(ours.weights, before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_frozen_batch_norm_is_at_rest_in_training():
    norm, _ = two_norms()
    images = random_images(6, 4, 4, 5)
    norm.trainable = False
    before = norm.get_weights()
    outputs = norm(images, training=True)
    np.testing.assert_array_equal(outputs, norm(images, training=False))
    for a, b in zip(norm.weights, before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("layers", "shapes"),
    [
        (0, []),
        (1, [(16, 5)]),
        (2, [(16, 16), (16, 5)]),
        (3, [(16, 16), (16, 16), (16, 5)]),
    ],
)
def test_head_has_one_stage_for_each_layer(layers, shapes):
    head = simclr.ProjectionHead(layers, units=5)
    representations = random_images(4, 16)
    outputs = head(representations, training=True)
    kernels = [stage.layers[0].kernel.shape for stage in head.stages]
    assert kernels == shapes
    assert outputs.shape == head.compute_output_shape((4, 16))
    assert outputs.shape == ((4, 5) if layers else (4, 16))


def test_head_without_layers_is_the_identity():
    representations = random_images(4, 16)
    outputs = simclr.ProjectionHead(0)(representations)
    np.testing.assert_array_equal(outputs, representations)


def test_head_equals_its_stages_in_order():
    head = simclr.ProjectionHead(3, units=5, hidden_units=7)
    representations = random_images(4, 16)
    outputs = representations
    head.build((None, 16))
    for stage in head.stages:
        outputs = stage(outputs)
    np.testing.assert_array_equal(head(representations), outputs)
    assert head.stages[1].layers[0].kernel.shape == (7, 7)


def test_last_layer_of_the_head_has_gamma_only_and_no_relu():
    head = simclr.ProjectionHead(2, units=5)
    outputs = head(random_images(8, 16), training=True)
    names = [
        [variable.name for variable in stage.trainable_variables]
        for stage in head.stages
    ]
    assert names == [["kernel", "gamma", "beta"], ["kernel", "gamma"]]
    assert np.min(outputs) < 0
    np.testing.assert_allclose(np.mean(outputs, axis=0), 0, atol=1e-5)


def test_kernels_of_the_head_have_the_official_spread():
    keras.utils.set_random_seed(0)
    head = simclr.ProjectionHead(1, units=256)
    head.build((None, 256))
    kernel = head.stages[0].layers[0].kernel.numpy()
    np.testing.assert_allclose(kernel.std(), 0.01, rtol=0.02)


def test_head_comes_back_from_its_config():
    head = simclr.ProjectionHead(3, units=5, hidden_units=7, name="mine")
    config = keras.saving.serialize_keras_object(head)
    copy = keras.saving.deserialize_keras_object(config)
    assert copy.get_config() == head.get_config()
    assert (copy.depth, copy.units, copy.hidden_units) == (3, 5, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"layers": 4},
            "`layers` must be one of 0, 1, 2, 3. Received: layers=4",
        ),
        (
            {"layers": -1},
            "`layers` must be an integer of at least 0. Received: layers=-1",
        ),
        (
            {"units": 0},
            "`units` must be an integer of at least 1. Received: units=0",
        ),
        (
            {"hidden_units": 1.5},
            (
                "`hidden_units` must be an integer of at least 1. "
                "Received: hidden_units=1.5"
            ),
        ),
    ],
)
def test_head_that_does_not_exist_is_refused(arguments, message):
    with pytest.raises(ValueError) as error:
        simclr.ProjectionHead(**arguments)
    assert str(error.value) == message


@pytest.fixture(scope="module")
def selective():
    keras.utils.set_random_seed(0)
    return simclr.ResNet(
        50,
        width_multiplier=0.0625,
        sk_ratio=0.0625,
        stem="cifar",
        input_shape=(None, None, 3),
    )


@pytest.mark.parametrize("name", ["encoder", "selective"])
def test_plain_copy_of_a_resnet_holds_layers_of_keras_only(
    name, request, tmp_path
):
    encoder = request.getfixturevalue(name)
    copies.plain_copy(encoder).save(tmp_path / "plain.keras")
    plain = keras.saving.load_model(tmp_path / "plain.keras")
    assert all(type(x).__module__.startswith("keras.") for x in plain.layers)
    images = random_images(2, 8, 8, 3)
    np.testing.assert_allclose(plain(images), encoder(images), atol=1e-5)


def test_selective_kernel_mixes_its_two_branches(selective):
    name = "group2_block1_2"
    parts = [f"{name}_relu", f"{name}_softmax", f"{name}_mixed"]
    outputs = [selective.get_layer(part).output for part in parts]
    branches, shares, mixed = keras.Model(selective.input, outputs)(
        random_images(2, 8, 8, 3)
    )
    assert branches.shape == (2, 4, 4, 16)
    assert shares.shape == (2, 2, 8)
    np.testing.assert_allclose(np.sum(shares, axis=1), 1.0, rtol=1e-5)
    shares = np.array(shares)[:, :, None, None, :]
    expected = (
        shares[:, 0] * branches[..., :8] + shares[:, 1] * branches[..., 8:]
    )
    np.testing.assert_allclose(mixed, expected, rtol=1e-5, atol=1e-6)


def test_all_of_a_selective_network_is_trained(selective):
    with tf.GradientTape() as tape:
        outputs = selective(random_images(4, 8, 8, 3), training=True)
        loss = tf.reduce_sum(tf.sin(outputs))
    gradients = tape.gradient(loss, selective.trainable_variables)
    assert all(gradient is not None for gradient in gradients)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_head_is_part_of_an_expanded_summary():
    head = simclr.ProjectionHead()
    model = keras.Sequential([keras.Input((4,)), head])
    lines = []
    model.summary(expand_nested=True, print_fn=lines.append)
    assert head.name in "".join(lines)


def several():
    first, second = (
        keras.Input((8, 8, 1), name="a"),
        keras.Input((3,), name="b"),
    )
    rows = keras.layers.Flatten()(first)
    both = keras.layers.Concatenate()([rows, second])
    return {
        "inputs": keras.Model([first, second], both),
        "named inputs": keras.Model({"a": first, "b": second}, both),
        "outputs": keras.Model(first, [rows, rows]),
        "named outputs": keras.Model(first, {"a": rows, "b": rows}),
    }


KINDS = ("inputs", "named inputs", "outputs", "named outputs")


@pytest.mark.fault(67)
@pytest.mark.parametrize("kind", KINDS)
def test_encoder_takes_one_tensor_and_returns_one(kind):
    with pytest.raises(ValueError) as error:
        simclr.SimCLRModel(several()[kind])
    cure = "Wrap it in a model" if "inputs" in kind else "Take one: keras.Model"
    assert cure in str(error.value)


@pytest.mark.fault(67)
def test_projection_head_returns_a_row_for_each_image():
    encoder = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.GlobalAveragePooling2D()]
    )
    rows = keras.Input((1,))
    for outputs in ({"z": rows}, [rows, rows], keras.ops.expand_dims(rows, 1)):
        with pytest.raises(ValueError, match="must return one projection per"):
            simclr.SimCLRModel(encoder, keras.Model(rows, outputs))


@pytest.mark.fault(34)
def test_keras_must_make_layers_for_channels_that_come_last():
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(ValueError) as error:
            simclr.SimCLRModel(simclr.ResNet(18, input_shape=(32, 32, 3)))
    finally:
        keras.config.set_image_data_format("channels_last")
    assert str(error.value) == (
        "Channels come last in images, and Keras must make layers for that. "
        "Before you make the encoder, do: "
        "keras.config.set_image_data_format('channels_last'). Received: "
        "channels_first"
    )


@pytest.mark.fault(67)
def test_what_is_frozen_is_told():
    encoder = simclr.ResNet(
        10, width_multiplier=0.1, stem="cifar", input_shape=(8, 8, 1)
    )
    head = keras.layers.Dense(2)
    head.build((None, 4))
    encoder.trainable = False
    with pytest.warns(UserWarning, match="The encoder is frozen"):
        networks.check_trainable(encoder, head)
    head.trainable = False
    with pytest.raises(ValueError, match="Something must be trainable"):
        networks.check_trainable(encoder, head)
    encoder.trainable = True
    with pytest.warns(UserWarning, match="The projection head is frozen"):
        networks.check_trainable(encoder, head)
