import functools
import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.standins import uncompiled

import keras_simclr as simclr
from keras_simclr import augmentations, programs
from keras_simclr.features import extract_features

# As in test_augmentations.py: what is compiled there is compiled here.
LAYERS = {
    "crop": lambda: simclr.RandomResizedCrop(6, 7),
    "flip": lambda: simclr.RandomFlip("horizontal_and_vertical"),
    "rotate": lambda: simclr.RandomRotate90(),
    "color": lambda: simclr.RandomColorDistortion(),
    "blur": lambda: simclr.RandomGaussianBlur(),
    "noise": lambda: simclr.RandomGaussianNoise(),
    "recipe": lambda: simclr.SimCLRAugmentation(8),
}
program_of = functools.partial(programs.program_of, one_by_one=True)
shared = functools.cache(lambda name: LAYERS[name]())
every_layer = pytest.mark.parametrize("name", LAYERS)


def random_images(*shape):
    return np.random.default_rng(0).random(shape, "float32")


def expected(layer, images, **kwargs):
    with uncompiled():
        return layer(images, seed=(0, 1), **kwargs).numpy()


# Sizes of images and batches.


@every_layer
def test_images_of_many_sizes_share_a_program(name):
    layer = shared(name)
    program, traced = program_of(layer), []
    sizes = [(9, 12), (16, 10), (11, 11), (12, 15)]
    for height, width in sizes:
        width = height if name == "rotate" else width
        # 33 are more than a piece.
        for batch in (3,) if traced else (2, 3, 33):
            images = random_images(batch, height, width, 3)
            views = layer(images, seed=(0, 1))
            np.testing.assert_allclose(
                views, expected(layer, images), atol=1e-5
            )
        traced.append(program._forward.experimental_get_tracing_count())
    # Beyond the first, at most the one for images that fill their canvas.
    assert traced[-1] - traced[0] <= 1


def test_blur_on_a_canvas_has_the_kernel_of_the_image():
    blur = simclr.RandomGaussianBlur(rate=1.0, kernel_fraction=0.5)
    for height in (9, 15):
        images = random_images(2, height, 12, 1)
        views = blur(images, seed=(0, 1))
        np.testing.assert_allclose(views, expected(blur, images), atol=1e-6)


def pipeline_of(images, shape, function):
    return tf.data.Dataset.from_generator(
        lambda: iter(images), output_signature=tf.TensorSpec(shape)
    ).map(function)


@pytest.fixture
def shapes(monkeypatch):
    """Views show the shape of what would be compiled."""
    monkeypatch.setattr(
        programs.Program,
        "_run",
        lambda self, count, images, *others: (
            tf.zeros_like(images) + tf.cast(tf.shape(images)[:3], tf.float32)
        ),
    )


@pytest.mark.parametrize("dimensions", [3, 4])
def test_pipelines_lay_images_on_few_canvases(shapes, dimensions):
    images = [
        random_images(5, height, width, 3)[: 5 if dimensions == 4 else 1]
        for height, width in ((9, 12), (16, 10), (17, 100), (128, 7))
    ]
    if dimensions == 3:
        images = [batch[0] for batch in images]
    flip, shape = simclr.RandomFlip(), (None,) * (dimensions - 1) + (3,)
    views = list(pipeline_of(images, shape, lambda x: flip(x, seed=(0, 1))))
    for image, view in zip(images, views, strict=True):
        assert view.shape == image.shape
    found = [tuple(np.ravel(view)[:3]) for view in views]
    batch = 1 if dimensions == 3 else 8
    assert found == [
        (batch, 16, 16),
        (batch, 16, 16),
        (batch, 32, 128),
        (batch, 128, 8),
    ]


def test_batches_of_many_sizes_are_cut_into_pieces_of_one(shapes):
    flip = simclr.RandomFlip()
    batches = [random_images(size, 10, 10, 3) for size in (32, 7, 1, 40)]
    views = pipeline_of(
        batches, (None, 10, 10, 3), lambda x: flip(x, seed=(0, 1))
    )
    for images, view in zip(batches, views, strict=True):
        assert view.shape == images.shape
        np.testing.assert_array_equal(view[0, 0, 0], (32, 10, 10))


def test_pieces_of_large_images_are_small(shapes):
    views = simclr.RandomFlip()(np.zeros((2, 1024, 2048, 3), "float32"))
    np.testing.assert_array_equal(views[0, 0, 0], (2, 1024, 2048))


def test_known_shapes_stay_as_they_are_in_graphs(shapes):
    flip = simclr.RandomFlip()
    graph = tf.function(lambda x: flip(x, seed=(0, 1)))
    views = graph(random_images(5, 10, 13, 3))
    np.testing.assert_array_equal(views[0, 0, 0], (5, 10, 13))


@pytest.mark.parametrize("name", ["crop", "color", "noise"])
def test_pipelines_of_any_shape_draw_what_batches_draw(name):
    layer = shared(name)
    batches = [random_images(*shape, 3) for shape in ((3, 9, 12), (9, 16, 10))]
    views = pipeline_of(
        batches, (None, None, None, 3), lambda x: layer(x, seed=(0, 1))
    )
    for images, view in zip(batches, views, strict=True):
        np.testing.assert_allclose(view, expected(layer, images), atol=1e-5)


def test_shapes_that_only_xla_knows_are_compiled_too():
    crop = shared("crop")
    images = random_images(3, 9, 12, 3)
    compiled = tf.function(
        lambda x: crop(x, seed=(0, 1)),
        jit_compile=True,
        input_signature=[tf.TensorSpec((None, None, None, 3))],
    )
    np.testing.assert_allclose(
        compiled(images), expected(crop, images), atol=1e-5
    )


def test_rotation_refuses_images_that_turn_out_not_to_be_square():
    rotate = shared("rotate")
    views = pipeline_of(
        [random_images(33, 40, 3)],
        (None, None, 3),
        lambda x: rotate(x, seed=(0, 1)),
    )
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="needs square images"
    ):
        next(iter(views))


def test_uint8_images_on_a_canvas_equal_their_floats():
    layer = shared("crop")
    integers = (255 * random_images(3, 9, 12, 3)).astype("uint8")
    np.testing.assert_allclose(
        layer(integers, seed=(0, 1)),
        layer(integers.astype("float32") / 255, seed=(0, 1)),
        atol=1e-6,
    )


def test_sizes_of_the_user_stay_valid_on_a_larger_canvas():
    crop = shared("crop")
    images, sizes = random_images(3, 9, 12, 3), [[9, 12], [5, 7], [8, 3]]
    np.testing.assert_allclose(
        crop(images, seed=(0, 1), sizes=np.array(sizes)),
        expected(crop, images, sizes=np.array(sizes)),
        atol=1e-5,
    )


# Gradients.


def gradient_of(function, images):
    with tf.GradientTape() as tape:
        tape.watch(images)
        views = function(images)
        total = tf.reduce_sum(views**2 - views)
    return total, tape.gradient(total, images)


# What the recipe is made of is tried in it, or in graphs.
@pytest.mark.parametrize(
    ("name", "training"),
    [
        ("flip", True),
        ("flip", False),
        ("rotate", True),
        ("noise", True),
        ("recipe", True),
        ("recipe", False),
    ],
)
def test_gradients_with_respect_to_images(name, training):
    layer = shared(name)
    augment = functools.partial(layer, training=training, seed=(0, 3))
    images = tf.constant(random_images(3, 10, 10, 3))
    _, found = gradient_of(augment, images)
    with uncompiled():
        along = tf.constant(random_images(3, 10, 10, 3)[::-1]) - 0.5
        above, below = (
            gradient_of(augment, images + step * along)[0]
            for step in (1e-3, -1e-3)
        )
    difference = (above - below) / 2e-3
    along_found = tf.reduce_sum(found * along)
    np.testing.assert_allclose(along_found, difference, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("crop", "any shape"),
        ("color", "xla"),
        ("blur", "graph"),
    ],
)
def test_gradients_in_graphs(name, how):
    augment = functools.partial(shared(name), seed=(0, 3))
    images = tf.constant(random_images(3, 10, 10, 3))
    shape = [None, None, None, 3] if how == "any shape" else images.shape
    graph = tf.function(
        functools.partial(gradient_of, augment),
        jit_compile=how == "xla",
        input_signature=[tf.TensorSpec(shape)],
    )
    _, found = graph(images)
    with uncompiled():
        _, plain = gradient_of(augment, images)
    np.testing.assert_allclose(found, plain, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_gradients_have_the_dtype_of_the_images(dtype):
    images = tf.constant(random_images(2, 8, 8, 3), dtype)
    _, gradient = gradient_of(
        functools.partial(shared("flip"), seed=(0, 1)), images
    )
    assert gradient.dtype == dtype
    assert np.abs(gradient).max() > 0


def test_gradients_of_gradients_are_refused():
    images = tf.constant(random_images(2, 8, 8, 3))
    with tf.GradientTape() as tape:
        tape.watch(images)
        _, gradient = gradient_of(
            functools.partial(shared("flip"), seed=(0, 1)), images
        )
        penalty = tf.reduce_sum(gradient**2)
    with pytest.raises(NotImplementedError, match="no gradients of these"):
        tape.gradient(penalty, images)


# At rest.


def resting_model(height=34):
    encoder = keras.Sequential(
        [keras.Input((height, 36, 3)), keras.layers.GlobalAveragePooling2D()]
    )
    return simclr.SimCLRModel(encoder)


def has_programs(graph):
    """Whether XLA must compile a part of a graph."""
    functions = graph.as_graph_def().library.function
    return any(function.attr["_XlaMustCompile"].b for function in functions)


@pytest.mark.parametrize("on_canvas", [False, True])
@pytest.mark.parametrize("how", ["graph", "any batch", "any size", "xla"])
def test_compiled_at_rest_views_are_the_same(on_canvas, how):
    model, images = resting_model(), random_images(5, 50, 64, 3)
    images = (255 * images).astype("uint8")
    sizes = tf.constant([[50, 64], [20, 64], [50, 7], [31, 33], [1, 1]])
    sizes = sizes if on_canvas else None
    view = tf.function(
        lambda images: model.evaluation_view(images, sizes),
        autograph=False,
        jit_compile=how == "xla",
    )
    shape = {"any batch": (None, 50, 64, 3), "any size": (None, None, None, 3)}
    spec = tf.TensorSpec(shape.get(how, images.shape), tf.uint8)
    compiled = view.get_concrete_function(spec)
    assert has_programs(compiled.graph)
    plain = model.augmentation(images, training=False, sizes=sizes)
    found = view(images) if how == "xla" else compiled(tf.constant(images))
    # XLA rounds places, too, where all is compiled.
    atol = 1e-5 if how == "xla" else 1e-6
    np.testing.assert_allclose(found, plain, atol=atol)


def test_gradients_at_rest_are_those_of_plain_operations():
    model, images = resting_model(), tf.Variable(random_images(3, 50, 44, 3))

    def pulled(view):
        with tf.GradientTape() as tape:
            views = view(images)
        return tape.gradient(views, images, tf.cos(views))

    compiled = tf.function(lambda images: model.evaluation_view(images))
    plain = functools.partial(model.augmentation, training=False)
    np.testing.assert_allclose(pulled(compiled), pulled(plain), atol=1e-6)


def test_all_passes_over_images_of_a_size_share_a_program_at_rest():
    model, images = resting_model(height=35), random_images(70, 40, 40, 3)
    crop = model.augmentation.crop
    program = programs.program_of(crop, "_resize_boxes", one_by_one=True)
    for batch_size in (16, 70):
        model.predict(images, batch_size=batch_size, verbose=0)
        extract_features(model, images, batch_size=batch_size)
    assert program._forward.experimental_get_tracing_count() == 1


def test_nothing_that_is_exported_holds_programs(tmp_path):
    model, images = resting_model(), random_images(2, 40, 48, 3)
    expected = model.predict(images, verbose=0)
    model.export(tmp_path / "whole", verbose=False)
    simclr.export_encoder(model, tmp_path / "encoder")
    for path in (tmp_path / "whole", tmp_path / "encoder" / "saved_model"):
        loaded = tf.saved_model.load(path)
        for signature in loaded.signatures.values():
            assert not has_programs(signature.graph)
    assert not has_programs(
        loaded.on_canvas.get_concrete_function(
            tf.TensorSpec((None, None, None, 3), tf.uint8),
            tf.TensorSpec((None, 2), tf.int32),
        ).graph
    )
    np.testing.assert_allclose(loaded(images), expected, atol=1e-6)


# Sharing.


@every_layer
def test_equal_layers_share_their_program(name):
    layer, equal = LAYERS[name](), LAYERS[name]()
    layer(random_images(2, 8, 8, 3), training=False)
    with uncompiled():
        layer(random_images(2, 8, 8, 3))
    other = type(layer).from_config({**layer.get_config(), "seed": 3})
    program = program_of(layer)
    assert program_of(equal) is program
    assert program_of(other) is program


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (simclr.RandomFlip(rate=0.5), simclr.RandomFlip(rate=0.25)),
        (simclr.RandomFlip(), simclr.RandomRotate90()),
        (simclr.SimCLRAugmentation(8), simclr.SimCLRAugmentation((8, 9))),
        (
            simclr.SimCLRAugmentation(8),
            simclr.SimCLRAugmentation(8).without_colors(),
        ),
    ],
)
def test_other_layers_have_programs_of_their_own(first, second):
    assert program_of(first) is not program_of(second)


class Dimmed(augmentations.Augmentation):
    """A user's own, which forgets `get_config` and keeps an array."""

    def __init__(self, by):
        super().__init__()
        self.by, self.array = by, np.full(3, by, "float32")

    _draws_per_example = 1

    def _transform(self, images, draws):
        return images * (self.by + self.array) / 2


def test_layers_of_users_are_told_apart_by_what_they_hold():
    images = np.ones((2, 9, 9, 3), "float32")
    layers = [Dimmed(0.5), Dimmed(0.25)]
    layers[0](images)
    for layer, value in zip(layers, (0.5, 0.25), strict=True):
        np.testing.assert_allclose(layer(images), value * images)
    layers[0].by, layers[0].array = 0.75, np.full(3, 0.75, "float32")
    np.testing.assert_allclose(layers[0](images), 0.75 * images)


@pytest.mark.fault(66)
def test_models_leave_nothing_behind():
    def used():
        encoder = keras.Sequential(
            [keras.Input((8, 8, 3)), keras.layers.Flatten()]
        )
        model = simclr.SimCLRModel(encoder, augmentation=simclr.RandomFlip())
        model.views(images)
        layer = model.augmentation
        return weakref.ref(model), weakref.ref(layer)

    images = random_images(2, 8, 8, 3)
    used()
    count = programs._program.cache_info().currsize
    program = program_of(simclr.RandomFlip())
    traced = program._forward.experimental_get_tracing_count()
    left = [reference for _ in range(3) for reference in used()]
    gc.collect()
    assert all(reference() is None for reference in left)
    assert programs._program.cache_info().currsize == count
    assert program._forward.experimental_get_tracing_count() == traced
