"""What holds for every class of the package that Keras can save."""

import inspect
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_simclr as simclr
from keras_simclr import audio, series, tables
from keras_simclr.adapted import AdaptedLayer
from keras_simclr.columns import CategoryColumn, NumberColumn
from keras_simclr.imitation import Distiller
from keras_simclr.networks import FastConv2D, FusedBatchNormalization
from keras_simclr.optimizers import Restarted

IMAGES = np.random.default_rng(0).random((4, 10, 10, 3), "float32")
WINDOWS = np.random.default_rng(2).normal(size=(4, 16, 6)).astype("float32")
ROWS = np.random.default_rng(3).normal(size=(4, 5)).astype("float32")
SOUNDS = np.random.default_rng(4).uniform(-1, 1, (4, 130)).astype("float32")
SPECTROGRAMS = np.random.default_rng(5).normal(size=(4, 9, 7)).astype("float32")
VECTORS = np.random.default_rng(1).normal(size=(2, 4, 6)).astype("float32")


def encoder():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, name="convolution"),
            keras.layers.GlobalAveragePooling2D(),
        ],
        name="encoder",
    )


# Every argument has a value other than its default.
AUGMENTATIONS = {
    simclr.RandomResizedCrop: {
        "height": 8,
        "width": 6,
        "scale": (0.2, 0.8),
        "ratio": (0.6, 1.8),
        "interpolation": "bicubic",
        "antialias": False,
        "seed": 3,
    },
    simclr.RandomFlip: {
        "mode": "horizontal_and_vertical",
        "rate": 0.4,
        "seed": 4,
    },
    simclr.RandomRotate90: {"seed": 5},
    simclr.RandomColorDistortion: {
        "strength": 0.6,
        "rate": 0.7,
        "grayscale_rate": 0.4,
        "seed": 6,
    },
    simclr.RandomGaussianBlur: {
        "rate": 0.9,
        "sigma": (0.3, 1.5),
        "kernel_fraction": 0.5,
        "seed": 7,
    },
    simclr.RandomGaussianNoise: {"stddev": 0.2, "rate": 0.9, "seed": 8},
    simclr.SimCLRAugmentation: {
        "image_size": (8, 6),
        "strength": 0.6,
        "scale": (0.2, 0.8),
        "flip_rate": 0.4,
        "color_rate": 0.7,
        "grayscale_rate": 0.4,
        "blur_rate": 0.9,
        "seed": 9,
    },
}
OF_SERIES = {
    series.Standardization: {},
    series.RandomRotation3D: {
        "triples": [[0, 2, 1], [5, 3, 4]],
        "angle": 70.0,
        "seed": 10,
    },
    series.RandomScaling: {"stddev": 0.3, "seed": 11},
    series.RandomJitter: {"stddev": 0.2, "seed": 12},
    series.RandomPermutation: {"segments": 4, "seed": 13},
    series.RandomTimeWarp: {"stddev": 0.4, "knots": 4, "seed": 14},
    series.RandomCrop1D: {"length": 12, "scale": (0.3, 0.7), "seed": 15},
    series.RandomMask: {"share": 0.6, "seed": 16},
}
OF_TABLES = {
    tables.MarginalCorruption: {
        "rate": 0.5,
        "groups": [0, 1, 1, 2, 3],
        "seed": 17,
    },
}
OF_SOUNDS = {
    audio.LogMel: {"rate": 2000, "bands": 9},
    audio.LevelNormalization: {},
    audio.RandomTimeCrop: {"samples": 90, "seed": 10},
    audio.RandomGain: {"decibels": 7.0, "seed": 11},
    audio.RandomNoise: {"decibels": (3.0, 30.0), "seed": 12},
    audio.MixBackground: {"rate": 0.9, "decibels": (3.0, 20.0), "seed": 13},
    audio.RandomFrequencyShift: {"bands": 2, "seed": 14},
    audio.RandomTimeFrequencyMask: {"time": 0.6, "frequency": 0.4, "seed": 15},
}
AUGMENTATIONS |= OF_SERIES | OF_TABLES | OF_SOUNDS
STILL = (series.Standardization, audio.LogMel, audio.LevelNormalization)
RANDOM = [x for x in AUGMENTATIONS if x not in STILL]
LAYERS = {
    simclr.ProjectionHead: {"layers": 3, "units": 5, "hidden_units": 7},
    FastConv2D: {
        "filters": 4,
        "kernel_size": (3, 1),
        "padding": "same",
        "activation": "relu",
        "use_bias": False,
        "kernel_initializer": keras.initializers.Constant(0.1),
        "bias_initializer": keras.initializers.Constant(0.2),
        "kernel_regularizer": keras.regularizers.L2(0.1),
        "bias_regularizer": keras.regularizers.L2(0.2),
        "activity_regularizer": keras.regularizers.L2(0.3),
        "kernel_constraint": keras.constraints.NonNeg(),
        "bias_constraint": keras.constraints.NonNeg(),
    },
    FusedBatchNormalization: {
        "axis": 3,
        "momentum": 0.7,
        "epsilon": 0.1,
        "beta_initializer": keras.initializers.Constant(0.3),
        "gamma_initializer": keras.initializers.Constant(0.4),
        "moving_mean_initializer": keras.initializers.Constant(0.5),
        "moving_variance_initializer": keras.initializers.Constant(0.6),
        "beta_regularizer": keras.regularizers.L2(0.1),
        "gamma_regularizer": keras.regularizers.L2(0.2),
        "beta_constraint": keras.constraints.NonNeg(),
        "gamma_constraint": keras.constraints.NonNeg(),
    },
}
OTHERS = {
    simclr.NTXent: {
        "temperature": 0.3,
        "block_size": 7,
        "name": "contrast",
        "decoupled": True,
    },
    simclr.LARS: {
        "optimizer": lambda: keras.optimizers.SGD(0.3, momentum=0.5),
        "weight_decay": 0.1,
        "trust_coefficient": 0.02,
        "exclude": ("dropped",),
        "warmup_steps": 3,
        "name": "layerwise",
    },
    simclr.SimCLRModel: {
        "encoder": encoder,
        "projection_head": lambda: simclr.ProjectionHead(1, units=3),
        "augmentation": lambda: simclr.RandomResizedCrop(8, 8),
        "second_augmentation": lambda: [
            simclr.RandomResizedCrop(8, 8, scale=(0.5, 1.0)),
            simclr.RandomFlip("vertical"),
        ],
        "views": 3,
        "micro_batch_size": 2,
        "on_nan": "skip",
        "seed": 11,
    },
}
OBJECTS = {**AUGMENTATIONS, **LAYERS, **OTHERS}
# Other values would leave what is ours, or need several replicas.
DEFAULTS = {
    FastConv2D: {"strides", "data_format", "dilation_rate", "groups"},
    FusedBatchNormalization: {
        "center",
        "scale",
        "synchronized",
        "renorm",
        "renorm_clipping",
        "renorm_momentum",
    },
}


def each(table):
    return pytest.mark.parametrize("kind", table, ids=lambda k: k.__name__)


def make(kind):
    arguments = OBJECTS[kind].items()
    return seeing(
        kind(**{k: v() if _is_factory(v) else v for k, v in arguments})
    )


def seeing(thing):
    """The object, which has seen examples if it needs to."""
    if isinstance(thing, AdaptedLayer):
        thing.adapt(inputs(type(thing)))
    return thing


def _is_factory(value):
    return inspect.isfunction(value)


def parameters(kind):
    """The constructor's, without `self` and `**kwargs`."""
    return {
        name: parameter
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind != inspect.Parameter.VAR_KEYWORD
    }


def fill(weights):
    """Gives weights values that depend on their place only."""
    for place, weight in enumerate(weights):
        generator = np.random.default_rng(place)
        weight.assign(generator.uniform(0.1, 1, weight.shape))


def inputs(kind):
    if kind in OF_SERIES:
        return WINDOWS
    if kind in OF_TABLES:
        return ROWS
    if kind in OF_SOUNDS:
        return SOUNDS if len(kind._axes) == 1 else SPECTROGRAMS
    return VECTORS[0] if kind is simclr.ProjectionHead else IMAGES


def behaviour(thing):
    """Numbers that depend on every argument of a fresh object."""
    kind = type(thing)
    if kind in AUGMENTATIONS:
        thing, x = seeing(thing), inputs(kind)
        return [thing(x), thing(x), thing(x, training=False)]
    if kind is simclr.NTXent:
        return [thing(*VECTORS)]
    if kind is simclr.LARS:
        return steps(thing)
    if kind is simclr.SimCLRModel:
        fill(thing.weights)
        z = thing.projection_head(thing(IMAGES))
        return [*thing.views(IMAGES, step=2), thing(IMAGES), z]
    thing.build(inputs(kind).shape)
    start = [weight.numpy() for weight in thing.weights]
    if kind is simclr.ProjectionHead:
        # Its initial values are random.
        start = [weight.shape for weight in thing.weights]
        fill(thing.weights)
    outputs = thing(inputs(kind), training=True)
    return [*start, outputs, *thing.weights, *thing.losses]


def steps(optimizer):
    names = ("kernel", "dropped", "bias")
    values = ([[3.0, 4.0]], [[3.0, 4.0]], [3.0, 4.0])
    variables = [
        keras.Variable(value, name=name)
        for value, name in zip(values, names, strict=True)
    ]
    for _ in range(2):
        gradients = [tf.ones_like(variable) for variable in variables]
        optimizer.apply(gradients, variables)
    return [*variables, optimizer.iterations]


def assert_equal(ours, theirs, atol=1e-6):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        one, other = np.asarray(one), np.asarray(other)
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=atol)


def save_and_load(model, tmp_path):
    model.save(tmp_path / "model.keras")
    return keras.saving.load_model(tmp_path / "model.keras")


@pytest.fixture
def fast():
    """Spares the time of compiling where compilation is not the question."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


# Functions of datasets are left as they are.
OF_DATA = pytest.mark.filterwarnings("ignore:Even though the `tf.config.exp")


@pytest.fixture
def mixed_float16():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy(before)


def test_every_registered_class_is_in_the_table():
    registered = {
        kind
        for name, kind in keras.saving.get_custom_objects().items()
        if name.startswith("keras_simclr>") and inspect.isclass(kind)
    }
    # The first has no name, as no schedule has: its tests are the optimizers'.
    # A file of the second is a SimCLRModel's: its tests are its module's, as
    # those of parts of a FeatureSpace.
    others = {Restarted, Distiller, NumberColumn, CategoryColumn}
    assert registered == {*OBJECTS, *others}


@each(OBJECTS)
def test_table_gives_every_argument_a_value_of_its_own(kind):
    expected = parameters(kind)
    if kind not in OTHERS:
        expected.pop("name", None)
    assert set(OBJECTS[kind]) == set(expected) - DEFAULTS.get(kind, set())
    for name, value in OBJECTS[kind].items():
        assert value != expected[name].default


@each(OBJECTS)
def test_config_holds_every_argument(kind):
    expected = set(parameters(kind)) | {"name"}
    if issubclass(kind, keras.layers.Layer):
        if not issubclass(kind, keras.Model):
            expected |= {"trainable", "dtype"}
    assert set(make(kind).get_config()) >= expected


@each(OBJECTS)
def test_object_from_json_behaves_the_same(fast, kind):
    thing = make(kind)
    text = json.dumps(keras.saving.serialize_keras_object(thing))
    copy = keras.saving.deserialize_keras_object(json.loads(text))
    assert type(copy) is kind
    assert copy.name == thing.name
    assert_equal(behaviour(copy), behaviour(thing))


@each(AUGMENTATIONS | LAYERS)
def test_layer_in_a_saved_model_behaves_the_same(fast, kind, tmp_path):
    x = inputs(kind)
    model = keras.Sequential([keras.Input(x.shape[1:]), make(kind)])
    if not issubclass(kind, AdaptedLayer):
        fill(model.weights)
    loaded = save_and_load(model, tmp_path)
    assert type(loaded.layers[-1]) is kind
    for training in (True, False):
        expected = model(x, training=training)
        assert_equal([loaded(x, training=training)], [expected])


@pytest.mark.fault(24)
def test_lars_in_a_saved_model_goes_on_with_its_momentum(tmp_path):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(6)])
    model.compile(make(simclr.LARS), "mse")
    model.fit(*VECTORS, verbose=0)
    loaded = save_and_load(model, tmp_path)
    assert type(loaded.optimizer) is simclr.LARS
    assert_equal(loaded.optimizer.variables, model.optimizer.variables)
    for each_model in (model, loaded):
        each_model.fit(*VECTORS, verbose=0)
    assert_equal(loaded.weights, model.weights)


@OF_DATA
def test_saved_simclr_model_goes_on_with_its_training(fast, tmp_path):
    model = make(simclr.SimCLRModel)
    model.compile(make(simclr.LARS), loss=make(simclr.NTXent))
    model.fit(IMAGES, batch_size=4, verbose=0)
    loaded = save_and_load(model, tmp_path)
    assert loaded.loss.temperature == 0.3
    assert_equal([loaded(IMAGES)], [model(IMAGES)])
    assert_equal(loaded.optimizer.variables, model.optimizer.variables)
    for each_model in (model, loaded):
        each_model.fit(IMAGES, batch_size=4, verbose=0)
    assert_equal(loaded.weights, model.weights)


@each(AUGMENTATIONS)
def test_augmentation_is_float32_under_mixed_float16(fast, mixed_float16, kind):
    views = make(kind)(inputs(kind).astype("float16"), seed=(0, 1))
    assert views.dtype == tf.float32
    assert np.isfinite(views).all()


@each(LAYERS)
@pytest.mark.parametrize("training", [False, True])
def test_layer_computes_in_float16_under_mixed_float16(
    mixed_float16, kind, training
):
    layer = make(kind)
    single = kind.from_config({**layer.get_config(), "dtype": "float32"})
    for each_layer in (layer, single):
        each_layer.build(inputs(kind).shape)
        fill(each_layer.weights)
    outputs = layer(inputs(kind), training=training)
    expected = single(inputs(kind), training=training)
    assert outputs.dtype == tf.float16
    assert {weight.dtype for weight in layer.weights} == {"float32"}
    np.testing.assert_allclose(outputs, expected, rtol=0.05, atol=0.02)


def test_loss_is_float32_for_float16_projections(mixed_float16):
    loss = make(simclr.NTXent)
    half = loss(*VECTORS.astype("float16"))
    assert half.dtype == tf.float32
    np.testing.assert_allclose(half, loss(*VECTORS), rtol=1e-2)


def test_lars_trains_under_mixed_float16(mixed_float16):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(6)])
    model.compile(make(simclr.LARS), "mse")
    before = model.get_weights()[0]
    model.fit(*VECTORS, epochs=2, verbose=0)  # Its rate begins at 0.
    kernel = model.get_weights()[0]
    assert np.isfinite(kernel).all()
    assert np.abs(kernel - before).max() > 1e-4


@OF_DATA
def test_simclr_model_trains_under_mixed_float16(fast, mixed_float16):
    keras.utils.set_random_seed(0)
    model = make(simclr.SimCLRModel)
    optimizer = keras.optimizers.LossScaleOptimizer(
        make(simclr.LARS), initial_scale=16.0
    )
    model.compile(optimizer, loss=make(simclr.NTXent))
    before = model.get_weights()[0]
    history = model.fit(IMAGES, batch_size=4, epochs=4, verbose=0).history
    kernel = model.get_weights()[0]
    assert np.isfinite(history["loss"]).all()
    assert np.isfinite(kernel).all()
    assert np.abs(kernel - before).max() > 1e-5
    assert model(IMAGES).dtype == tf.float32


def computation(kind):
    """A function of tensors that uses the object, and its inputs."""
    thing = make(kind)
    if kind in AUGMENTATIONS:
        seed = tf.constant([0, 1], tf.int64)
        return lambda x: thing(x, seed=seed), [inputs(kind)]
    if kind is simclr.NTXent:
        return thing, list(VECTORS)
    if kind is simclr.SimCLRModel:
        return thing, [IMAGES]
    thing.build(inputs(kind).shape)
    return lambda x: thing(x, training=True), [inputs(kind)]


@each([kind for kind in OBJECTS if kind is not simclr.LARS])
def test_object_is_the_same_in_eager_graph_tf_data_and_xla(kind):
    function, arguments = computation(kind)
    arguments = [tf.constant(argument) for argument in arguments]
    results = [tf.function(function, jit_compile=True)(*arguments)]
    if kind in AUGMENTATIONS:
        # A graph, where the size of the batches is unknown.
        dataset = tf.data.Dataset.from_tensor_slices(inputs(kind)).batch(4)
        results.append(next(iter(dataset.map(function))))
    else:
        results.append(tf.function(function)(*arguments))
    expected = function(*arguments)
    # Rounding differs where XLA fuses the parts of the whole recipe, and moves
    # places in time.
    fused = (
        simclr.SimCLRAugmentation,
        series.RandomCrop1D,
        series.RandomTimeWarp,
    )
    atol = 5e-6 if kind in fused else 1e-6
    for result in results:
        assert_equal([result], [expected], atol)


def test_lars_is_the_same_in_eager_graph_and_xla():
    def two_steps(**kwargs):
        optimizer = make(simclr.LARS)
        kernel = keras.Variable([[3.0, 4.0]], name="kernel")
        optimizer.build([kernel])

        def step(gradient):
            optimizer.apply([gradient], [kernel])

        step = tf.function(step, **kwargs) if kwargs else step
        for gradient in ([[1.0, 2.0]], [[2.0, 1.0]]):
            step(tf.constant(gradient))
        return [kernel, optimizer.iterations]

    expected = two_steps()
    assert_equal(two_steps(jit_compile=False), expected)
    assert_equal(two_steps(jit_compile=True), expected)


def test_fused_renormalization_equals_keras():
    arguments = {"renorm": True, "renorm_momentum": 0.5}
    layer = FusedBatchNormalization(**arguments)
    expected = keras.layers.BatchNormalization(**arguments)
    for _ in range(2):
        outputs = [x(3 * IMAGES, training=True) for x in (layer, expected)]
    assert_equal(outputs[:1], outputs[1:], atol=1e-4)
    assert_equal(layer.weights, expected.weights)


@each(AUGMENTATIONS | LAYERS)
def test_output_shape_is_computed(fast, kind):
    thing, x = make(kind), inputs(kind)
    outputs = thing(x)
    assert thing.compute_output_shape(x.shape) == tuple(outputs.shape)
    symbolic = thing(keras.Input(x.shape[1:]))
    assert symbolic.shape == (None, *outputs.shape[1:])


@each(AUGMENTATIONS)
def test_output_shape_of_a_single_image_is_computed(fast, kind):
    layer = make(kind)
    single = inputs(kind)[0]
    assert layer.compute_output_shape(single.shape) == tuple(
        layer(single).shape
    )


@each(RANDOM)
def test_same_seed_same_output_and_other_seed_other_output(fast, kind):
    arguments = OBJECTS[kind]
    views = [
        seeing(kind(**{**arguments, "seed": seed}))(inputs(kind)).numpy()
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(views[0], views[1])
    assert not np.array_equal(views[0], views[2])
