import contextlib
import functools
import inspect
import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import reference
from helpers.replicas import mirrored
from helpers.standins import uncompiled
from scipy import stats

import keras_simclr as simclr
from keras_simclr import augmentations, devices

MANY = 10_000

# Small layers whose every branch can be seen in a batch of 16.
LAYERS = {
    "crop": lambda seed=0: simclr.RandomResizedCrop(6, 7, seed=seed),
    "flip": lambda seed=0: simclr.RandomFlip(
        "horizontal_and_vertical", seed=seed
    ),
    "rotate": lambda seed=0: simclr.RandomRotate90(seed=seed),
    "color": lambda seed=0: simclr.RandomColorDistortion(seed=seed),
    "blur": lambda seed=0: simclr.RandomGaussianBlur(seed=seed),
    "noise": lambda seed=0: simclr.RandomGaussianNoise(seed=seed),
    "recipe": lambda seed=0: simclr.SimCLRAugmentation(8, seed=seed),
}
shared = functools.cache(lambda name: LAYERS[name]())
every_layer = pytest.mark.parametrize("name", LAYERS)


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, "float32")


IMAGES = random_images(16, 10, 10, 3)


def pair(first, second):
    return tf.stack([tf.cast(first, tf.int64), tf.cast(second, tf.int64)])


@pytest.fixture
def policy():
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


@pytest.fixture
def fast():
    with uncompiled():
        yield


def share_of_changed(layer, images):
    views = layer(images, seed=(0, 1)).numpy()
    return (np.abs(views - images) > 1e-6).any(axis=(1, 2, 3)).mean()


# Seeds, batches, dtypes and compilation: the same for every layer.


@pytest.mark.fault(46)
@every_layer
def test_draws_are_the_same_bits_in_eager_graph_tf_data_and_xla(name):
    def draw(images):
        return tf.nest.flatten(shared(name)._draw(pair(3, 4), images))

    specification = [tf.TensorSpec([None, 10, 10, 3])]
    expected = draw(tf.constant(IMAGES))
    dataset = tf.data.Dataset.from_tensors(IMAGES).map(draw)
    for drawn in (
        tf.function(draw, input_signature=specification)(IMAGES),
        tf.function(draw, jit_compile=True)(tf.constant(IMAGES)),
        next(iter(dataset)),
    ):
        for ours, theirs in zip(drawn, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@every_layer
@pytest.mark.parametrize("how", ["eager", "graph", "xla"])
def test_part_of_a_batch_is_augmented_as_in_the_batch(name, how):
    layer = shared(name)

    def augment(images, first):
        total = tf.shape(images)[0] if how == "graph" else len(IMAGES)
        part = images[first : first + 3]
        part = tf.ensure_shape(part, (3, *IMAGES.shape[1:]))
        return layer(part, seed=(0, 1), part=(first, total))

    images, first = tf.constant(IMAGES), 2
    if how == "graph":
        first = tf.constant(first)  # A replica's place may be a tensor.
    with uncompiled():
        expected = layer(IMAGES, seed=(0, 1))[2:5]
        if how == "eager":
            view = augment(images, first)
    if how != "eager":
        view = tf.function(augment, jit_compile=how == "xla")(images, first)
    np.testing.assert_allclose(view, expected, atol=3e-6)


@every_layer
def test_single_images_in_tf_data_equal_batches_of_one(name):
    layer = shared(name)
    dataset = tf.data.Dataset.from_tensor_slices(IMAGES[:2]).enumerate()
    dataset = dataset.map(lambda i, image: layer(image, seed=pair(0, i)))
    for place, view in enumerate(dataset):
        with uncompiled():
            batch = layer(IMAGES[place : place + 1], seed=(0, place))
        # Rounding differs between compiled and uncompiled code.
        np.testing.assert_allclose(view, batch[0], atol=3e-6)


@every_layer
def test_single_image_equals_a_batch_of_one(fast, name):
    view = shared(name)(IMAGES[0], seed=(0, 1))
    expected = shared(name)(IMAGES[:1], seed=(0, 1))
    np.testing.assert_array_equal(view, expected[0])


def test_seed_can_be_a_pair_of_an_integer_and_a_tensor():
    layer = shared("flip")
    dataset = tf.data.Dataset.from_tensors(IMAGES).enumerate(1)
    dataset = dataset.map(lambda i, images: layer(images, seed=(0, i)))
    expected = layer(IMAGES, seed=(0, 1))
    np.testing.assert_array_equal(next(iter(dataset)), expected)


def test_seed_can_be_a_tuple_an_array_or_a_tensor(fast):
    layer = shared("flip")
    expected = layer(IMAGES, seed=(0, 1))
    for seed in ([0, 1], np.array([0, 1], "int32"), tf.constant([0, 1])):
        np.testing.assert_array_equal(layer(IMAGES, seed=seed), expected)


@every_layer
def test_views_are_a_function_of_the_seed(fast, name):
    layer, fresh = shared(name), LAYERS[name](seed=None)
    views = layer(IMAGES, seed=(5, 6)).numpy()
    np.testing.assert_array_equal(fresh(IMAGES, seed=(5, 6)), views)
    assert not np.array_equal(layer(IMAGES, seed=(5, 7)), views)
    assert not np.array_equal(layer(IMAGES, seed=(6, 6)), views)


@pytest.mark.fault(46)
@every_layer
def test_view_depends_only_on_seed_and_place_in_the_batch(fast, name):
    layer = shared(name)
    whole, half = layer(IMAGES, seed=(0, 1)), layer(IMAGES[:8], seed=(0, 1))
    np.testing.assert_allclose(half, whole[:8], atol=1e-6)


@pytest.mark.fault(47)
@every_layer
def test_places_of_a_batch_get_different_views_of_one_image(fast, name):
    images = np.repeat(IMAGES[:1], 16, axis=0)
    views = shared(name)(images, seed=(0, 1)).numpy()
    assert len(np.unique(views, axis=0)) > 2


@pytest.mark.fault(27)
@every_layer
def test_uint8_images_equal_their_floats(fast, name):
    integers = (255 * IMAGES).astype("uint8")
    floats = integers.astype("float32") / 255
    layer = shared(name)
    expected = layer(floats, seed=(0, 1))
    np.testing.assert_array_equal(layer(integers, seed=(0, 1)), expected)


@every_layer
def test_without_a_seed_the_layer_counts_its_calls(fast, name):
    layer, fresh = LAYERS[name](seed=7), LAYERS[name](seed=7)
    views = [layer(IMAGES).numpy() for _ in range(2)]
    again = [fresh(IMAGES).numpy() for _ in range(2)]
    assert not np.array_equal(*views)
    np.testing.assert_array_equal(views, again)


def test_calls_are_counted_in_a_graph_too():
    layer, fresh = LAYERS["flip"](seed=7), LAYERS["flip"](seed=7)
    graph = tf.function(fresh)
    for _ in range(3):
        np.testing.assert_array_equal(graph(IMAGES), layer(IMAGES))


def test_first_call_uses_the_seed_and_call_number_zero(fast):
    first = LAYERS["flip"](seed=7)(IMAGES)
    expected = shared("flip")(IMAGES, seed=(7, 0))
    np.testing.assert_array_equal(first, expected)


def test_layers_without_a_seed_differ(fast):
    views = [LAYERS["noise"](seed=None)(IMAGES).numpy() for _ in range(2)]
    assert not np.array_equal(*views)


@every_layer
def test_at_rest_nothing_is_drawn(fast, name):
    layer, fresh = LAYERS[name](seed=7), LAYERS[name](seed=7)
    integers = (255 * IMAGES).astype("uint8")
    views = layer(integers, training=False).numpy()
    assert views.dtype == "float32"
    assert views.min() >= 0
    assert views.max() <= 1
    again = layer(integers, training=False, seed=(1, 2))
    np.testing.assert_array_equal(again, views)
    np.testing.assert_array_equal(layer(IMAGES), fresh(IMAGES))


@pytest.mark.parametrize("name", sorted(set(LAYERS) - {"crop", "recipe"}))
def test_at_rest_images_come_back_as_they_are(name):
    views = shared(name)(IMAGES, training=False)
    np.testing.assert_array_equal(views, IMAGES)


@every_layer
@pytest.mark.parametrize("training", [False, True])
def test_views_stay_float32_in_the_unit_range(fast, name, training):
    images = (IMAGES > 0.5).astype("float64")
    views = shared(name)(images, training=training, seed=(0, 1)).numpy()
    assert views.dtype == "float32"
    assert views.min() >= 0
    assert views.max() <= 1


@pytest.mark.parametrize("half", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("name", ["crop", "color", "recipe"])
def test_views_are_float32_under_a_mixed_policy(fast, policy, half, name):
    policy(half)
    views = LAYERS[name]()(IMAGES, seed=(0, 1))
    assert views.dtype == tf.float32
    np.testing.assert_array_equal(views, shared(name)(IMAGES, seed=(0, 1)))


@pytest.mark.fault(47)
@pytest.mark.parametrize(
    "layer",
    [
        simclr.RandomResizedCrop(10, 10, scale=(1, 1), ratio=(1, 1)),
        simclr.RandomFlip(rate=0),
        simclr.RandomColorDistortion(rate=0, grayscale_rate=0),
        simclr.RandomGaussianBlur(rate=0),
        simclr.RandomGaussianNoise(rate=0),
    ],
    ids=lambda layer: layer.name,
)
def test_layers_that_never_apply_are_the_identity(layer):
    views = layer(IMAGES, seed=(0, 1))
    np.testing.assert_allclose(views, IMAGES, atol=1e-5)


def test_ranges_of_integers_equal_ranges_of_floats(fast):
    layers = [
        simclr.RandomResizedCrop(6, 6, scale=(low, high), ratio=(high, ratio))
        for low, high, ratio in ((0.5, 1, 2), (0.5, 1.0, 2.0))
    ]
    views = [layer(IMAGES[:2], seed=(0, 1)) for layer in layers]
    np.testing.assert_array_equal(*views)


def test_sub_seeds_differ_by_seed_and_number():
    seeds = [pair(*numbers) for numbers in ((0, 0), (0, 1), (1, 0))]
    folded = [
        augmentations.fold_seed(seed, number).numpy()
        for seed in seeds
        for number in range(3)
    ]
    assert len(np.unique(folded, axis=0)) == 9


def test_sub_seeds_are_the_same_under_xla():
    compiled = tf.function(augmentations.fold_seed, jit_compile=True)
    expected = augmentations.fold_seed(pair(1, 2), 3)
    np.testing.assert_array_equal(compiled(pair(1, 2), 3), expected)


# Crop.


def crop_of(box, size, **kwargs):
    """Layer and draws that cut `box` out of a square image of `size`."""
    top, height, left, width = box
    area, ratio = height * width / size**2, width / height
    layer = simclr.RandomResizedCrop(
        scale=(area, area), ratio=(ratio, ratio), **kwargs
    )
    places = (top / max(size - height, 1), left / max(size - width, 1))
    return layer, tf.constant([[0.5, 0.5, *places]], tf.float32)


@pytest.mark.fault(48)
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(
    ("interpolation", "kernel"),
    [("bilinear", "triangle"), ("bicubic", "keyscubic")],
)
@pytest.mark.parametrize("target", [(5, 4), (12, 15)])
@pytest.mark.parametrize(
    "box", [(0, 16, 0, 16), (3, 8, 4, 12), (2.3, 7.9, 5.6, 9.1), (13, 3, 0, 2)]
)
def test_crop_equals_scale_and_translate(
    box, target, interpolation, kernel, antialias
):
    images = random_images(1, 16, 16, 3)
    layer, draws = crop_of(
        box,
        16,
        height=target[0],
        width=target[1],
        interpolation=interpolation,
        antialias=antialias,
    )
    scales = target[0] / box[1], target[1] / box[3]
    expected = tf.raw_ops.ScaleAndTranslate(
        images=images,
        size=target,
        scale=scales,
        translation=(-box[0] * scales[0], -box[2] * scales[1]),
        kernel_type=kernel,
        antialias=antialias,
    )
    views = layer._transform(tf.constant(images), draws)
    expected = np.clip(expected, 0, 1)
    np.testing.assert_allclose(views, expected, atol=2e-5)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("training", [False, True])
def test_crop_of_the_whole_image_equals_antialiased_resize(
    fast, interpolation, training
):
    images = random_images(2, 14, 11, 3)
    crop = simclr.RandomResizedCrop(
        6, 18, scale=(1, 1), ratio=(0.5, 2), interpolation=interpolation
    )
    expected = tf.image.resize(images, (6, 18), interpolation, antialias=True)
    views = crop(images, training=training, seed=(0, 1))
    np.testing.assert_allclose(views, np.clip(expected, 0, 1), atol=1e-5)


# The bicubic kernel of `tf.image.resize` is a table of 1,024 entries.
@pytest.mark.parametrize(
    ("interpolation", "tolerance"), [("bilinear", 1e-5), ("bicubic", 2e-3)]
)
@pytest.mark.parametrize("target", [(6, 5), (20, 18)])
def test_crop_without_antialiasing_equals_plain_resize(
    interpolation, tolerance, target
):
    images = random_images(2, 14, 11, 3)
    crop = simclr.RandomResizedCrop(
        *target, interpolation=interpolation, antialias=False
    )
    expected = tf.image.resize(images, target, interpolation)
    views = crop(images, training=False)
    expected = np.clip(expected, 0, 1)
    np.testing.assert_allclose(views, expected, atol=tolerance)


# Probed from google-research/simclr@383d414, tf2/data_util.py:176-243.
@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((256, 256), (16, 224, 16, 224)),
        ((500, 375), (86, 328, 24, 328)),
        ((333, 500), (21, 291, 105, 291)),
        ((224, 224), (14, 196, 14, 196)),
        ((31, 47), (2, 27, 10, 27)),
    ],
)
def test_box_at_rest_equals_the_official_centre_crop(size, box):
    crop = simclr.RandomResizedCrop(224, 224)
    rows, columns = crop.rest_box(*(tf.constant(float(n)) for n in size))
    np.testing.assert_array_equal([*rows, *columns], box)
    assert reference.rest_box(*size, ratio=1) == box


@pytest.mark.parametrize("target", [(48, 64), (64, 48), (33, 33)])
def test_box_at_rest_follows_the_targets_aspect_ratio(target):
    crop = simclr.RandomResizedCrop(*target)
    heights, widths = np.random.default_rng(0).integers(20, 400, (2, 50))
    rows, columns = crop.rest_box(
        tf.constant(heights, tf.float32), tf.constant(widths, tf.float32)
    )
    expected = [
        reference.rest_box(*size, ratio=target[1] / target[0])
        for size in zip(heights.tolist(), widths.tolist(), strict=True)
    ]
    np.testing.assert_array_equal(np.stack([*rows, *columns], 1), expected)


def test_large_targets_at_rest_see_the_resized_centre():
    images = random_images(2, 44, 40, 3)
    top, height, left, width = reference.rest_box(44, 40, ratio=1)
    centre = images[:, top : top + height, left : left + width]
    expected = tf.image.resize(centre, (33, 33), antialias=True)
    views = simclr.RandomResizedCrop(33, 33)(images, training=False)
    np.testing.assert_allclose(views, expected, atol=1e-5)


@pytest.mark.parametrize("size", [8, 32])
def test_images_of_a_small_target_size_are_returned_at_rest(size):
    images = random_images(2, size, size, 3)
    views = simclr.RandomResizedCrop(size, size)(images, training=False)
    np.testing.assert_array_equal(views, images)


def padded_images():
    sizes = np.array([(9, 7), (16, 5), (6, 16), (12, 12)])
    return random_images(4, 16, 16, 3), sizes


@pytest.mark.fault(37)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("target", [8, 34])
def test_crop_of_padded_images_equals_crop_of_the_valid_part(
    fast, training, target
):
    images, sizes = padded_images()
    crop = simclr.RandomResizedCrop(target, target)
    views = crop(images, sizes=sizes, training=training, seed=(0, 1))
    for place, (height, width) in enumerate(sizes):
        valid = images[:, :height, :width]
        expected = crop(valid, training=training, seed=(0, 1))[place]
        np.testing.assert_allclose(views[place], expected, atol=2e-5)


def test_sizes_of_a_single_image_are_a_pair(fast):
    images, sizes = padded_images()
    layer = simclr.SimCLRAugmentation(8)
    view = layer(images[0], sizes=sizes[0], seed=(0, 1))
    expected = layer(images[:1], sizes=sizes[:1], seed=(0, 1))
    np.testing.assert_allclose(view, expected[0], atol=1e-6)


@pytest.mark.fault(37)
def test_images_of_many_sizes_pass_through_one_pipeline():
    sizes = [(9, 12), (16, 8)]
    dataset = tf.data.Dataset.from_generator(
        lambda: (random_images(*size, 3) for size in sizes),
        output_signature=tf.TensorSpec([None, None, 3]),
    )
    layer = simclr.RandomResizedCrop(6, 7)
    views = list(dataset.map(lambda image: layer(image, seed=(0, 1))))
    for size, view in zip(sizes, views, strict=True):
        expected = layer(random_images(*size, 3), seed=(0, 1))
        np.testing.assert_allclose(view, expected, atol=1e-6)


@functools.cache
def many_boxes(height, width):
    image = reference.coordinates(height, width)
    crop = simclr.RandomResizedCrop(2, 2, antialias=False)
    views = crop(np.repeat(image[None], MANY, axis=0), seed=(0, 1))
    return reference.crop_boxes(views, height, width)


def assert_uniform(values, low, high):
    uniform = stats.uniform(low, high - low)
    assert stats.kstest(values, uniform.cdf).pvalue > 1e-3


@pytest.mark.fault(48)
def test_crop_area_is_uniform_in_scale():
    _, heights, _, widths = many_boxes(16, 16)
    assert_uniform(heights * widths / 16**2, 0.08, 1)


# Of a wide image at most the share 4/3 : 2 fits; of a tall one as much.
@pytest.mark.parametrize("size", [(12, 24), (24, 12)])
def test_crop_area_of_a_long_image_is_uniform_up_to_what_fits(size):
    _, heights, _, widths = many_boxes(*size)
    assert_uniform(heights * widths / math.prod(size), 0.08, 2 / 3)


@pytest.mark.fault(48)
@pytest.mark.parametrize("size", [(16, 16), (12, 24), (24, 12)])
def test_crop_ratio_is_log_uniform_where_the_area_fits(size):
    _, heights, _, widths = many_boxes(*size)
    area, ratio = heights * widths / math.prod(size), widths / heights
    low = np.maximum(3 / 4, size[1] / size[0] * area)
    high = np.minimum(4 / 3, size[1] / size[0] / area)
    # Where only one ratio fits, rounding would decide.
    wide = np.log(high / low) > 0.05
    places = np.log(ratio / low)[wide] / np.log(high / low)[wide]
    assert_uniform(places, 0, 1)


@pytest.mark.parametrize("size", [(16, 16), (12, 24), (24, 12)])
def test_crop_stays_in_the_image_and_in_range(size):
    tops, heights, lefts, widths = many_boxes(*size)
    assert tops.min() > -1e-4
    assert lefts.min() > -1e-4
    assert (tops + heights).max() < size[0] + 1e-4
    assert (lefts + widths).max() < size[1] + 1e-4
    assert (widths / heights).min() > 3 / 4 - 1e-4
    assert (widths / heights).max() < 4 / 3 + 1e-4
    assert (heights * widths).min() > 0.08 * math.prod(size) - 1e-3


@pytest.mark.fault(48)
@pytest.mark.parametrize("size", [(16, 16), (12, 24), (24, 12)])
def test_crop_position_is_uniform(size):
    tops, heights, lefts, widths = many_boxes(*size)
    for starts, lengths, whole in (
        (tops, heights, size[0]),
        (lefts, widths, size[1]),
    ):
        room = whole - lengths
        assert_uniform((starts / room)[room > 0.1], 0, 1)


def test_crop_draws_are_independent():
    tops, heights, lefts, widths = many_boxes(16, 16)
    room = np.minimum(16 - heights, 16 - widths) > 0.1
    draws = np.stack(
        [
            heights * widths,
            tops / (16 - heights),
            lefts / (16 - widths),
        ]
    )[:, room]
    correlations = np.corrcoef(draws) - np.eye(3)
    assert np.abs(correlations).max() < 0.04


def test_area_that_fits_with_no_ratio_is_not_drawn(fast):
    image = reference.coordinates(8, 64)
    crop = simclr.RandomResizedCrop(2, 2, scale=(0.5, 1), antialias=False)
    views = crop(np.repeat(image[None], 16, axis=0), seed=(0, 1))
    _, heights, _, widths = reference.crop_boxes(views, 8, 64)
    np.testing.assert_allclose(heights, 8, atol=1e-3)
    np.testing.assert_allclose(widths, 8 * 4 / 3, atol=1e-3)


# Flip and rotation.


@pytest.mark.parametrize(
    ("mode", "axes"),
    [
        ("horizontal", [2]),
        ("vertical", [1]),
        ("horizontal_and_vertical", [1, 2]),
    ],
)
def test_flip_with_rate_one_reverses_the_axes_of_its_mode(fast, mode, axes):
    views = simclr.RandomFlip(mode, rate=1)(IMAGES, seed=(0, 1))
    np.testing.assert_array_equal(views, np.flip(IMAGES, axes))


@pytest.mark.fault(48)
@pytest.mark.parametrize(
    ("rate", "mode"),
    [(0.5, "horizontal"), (0.5, "vertical"), (0.1, "horizontal")],
)
def test_flip_rate(fast, rate, mode):
    layer = simclr.RandomFlip(mode, rate=rate)
    images = np.tile(random_images(1, 2, 2, 1), (MANY, 1, 1, 1))
    assert abs(share_of_changed(layer, images) - rate) < 0.015


def test_flips_along_both_axes_are_independent(fast):
    image = random_images(1, 2, 2, 1)
    layer = simclr.RandomFlip("horizontal_and_vertical")
    views = layer(np.repeat(image, MANY, axis=0), seed=(0, 1)).numpy()
    for axes in ((), (1,), (2,), (1, 2)):
        flipped = (views == np.flip(image, axes)).all(axis=(1, 2, 3))
        assert abs(flipped.mean() - 0.25) < 0.015


def test_quarter_turns_are_equally_likely(fast):
    image = random_images(1, 2, 2, 1)
    layer = simclr.RandomRotate90()
    views = layer(np.repeat(image, MANY, axis=0), seed=(0, 1)).numpy()
    counts = [
        (views == np.rot90(image, turns, (1, 2))).all(axis=(1, 2, 3)).sum()
        for turns in range(4)
    ]
    assert sum(counts) == MANY
    assert stats.chisquare(counts).pvalue > 1e-3


def test_rotated_images_are_numpys_quarter_turns(fast):
    views = shared("rotate")(IMAGES, seed=(0, 1)).numpy()
    for image, view in zip(IMAGES, views, strict=True):
        turned = [np.rot90(image, turns) for turns in range(4)]
        assert sum(np.array_equal(view, turn) for turn in turned) == 1


# Colour.

LINE = np.linspace(0, 1, 12, dtype="float32").reshape(1, 2, 2, 3)


def jitter_one(images, operation, factor):
    """Applies one operation; the others leave the images as they are."""
    factors = np.ones((len(images), 3), "float32")
    turns = np.zeros(len(images), "float32")
    if operation == reference.HUE:
        turns[:] = factor
    else:
        factors[:, operation] = factor
    order = sorted(range(4), key=lambda place: place != operation)
    orders = tf.constant([order] * len(images))
    return augmentations.jitter_colors(
        tf.constant(images), orders, tf.constant(factors), tf.constant(turns)
    ).numpy()


# Goldens of google-research/simclr@383d414, tf2/data_util.py:33-175, on
# linspace(0, 1, 12); the official functions do not clip, its caller does.
def test_contrast_equals_the_official_golden():
    golden = [-0.3272727, -0.2363636, -0.1454545]
    golden += [0.1636364, 0.2545455, 0.3454545]
    golden += [0.6545454, 0.7454546, 0.8363637]
    golden += [1.1454544, 1.2363636, 1.3272727]
    result = jitter_one(LINE, reference.CONTRAST, 1.8)
    np.testing.assert_allclose(result.ravel(), np.clip(golden, 0, 1), atol=1e-6)


@pytest.mark.parametrize(
    ("operation", "factor", "golden"),
    [
        (reference.SATURATION, 0.2, (0.1454546, 0.1636364, 0.1818182)),
        (reference.HUE, 0.1, (0.0181818, 0, 0.1818182)),
    ],
)
def test_first_pixel_equals_the_official_golden(operation, factor, golden):
    result = jitter_one(LINE, operation, factor)
    np.testing.assert_allclose(result[0, 0, 0], golden, atol=1e-6)


def test_grayscale_equals_the_official_golden(fast):
    layer = simclr.RandomColorDistortion(rate=0, grayscale_rate=1)
    golden = np.repeat([0.0740909, 0.3467909, 0.619491, 0.892191], 3)
    views = layer(LINE, seed=(0, 1)).numpy()
    np.testing.assert_allclose(views.ravel(), golden, atol=1e-6)


def test_grayscale_equals_the_reference(fast):
    layer = simclr.RandomColorDistortion(rate=0, grayscale_rate=1)
    expected = [reference.grayscale(image) for image in IMAGES]
    views = layer(IMAGES, seed=(0, 1))
    np.testing.assert_allclose(views, expected, atol=1e-6)


@pytest.mark.fault(48)
@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_equals_the_reference_in_all_orders(channels):
    generator = np.random.default_rng(0)
    orders = np.array(list(itertools.permutations(range(4))), "int32")
    factors = generator.uniform(0.2, 1.8, (24, 3)).astype("float32")
    turns = generator.uniform(-0.5, 0.5, 24).astype("float32")
    images = random_images(24, 4, 5, channels)
    result = augmentations.jitter_colors(
        *map(tf.constant, (images, orders, factors, turns))
    )
    expected = [
        reference.jitter(*draws)
        for draws in zip(images, orders, factors, turns, strict=True)
    ]
    np.testing.assert_allclose(result, expected, atol=1e-5)


# At 2.5, factors reach from 0 to 3 and every hue occurs.
@pytest.mark.parametrize("strength", [0, 1.25, 2.5])
def test_distortion_equals_the_reference_at_the_ends_of_its_ranges(strength):
    layer = simclr.RandomColorDistortion(
        strength=strength, rate=1, grayscale_rate=0
    )
    top = 1 - 2**-24
    draws = np.array(
        [
            [0, order / 24, *factors, hue, 0.5]
            for order in (0.5, 7.5, 16.5, 23.5)
            for factors in ((0, top, top), (top, 0, top), (top, top, 0))
            for hue in (0, top)
        ],
        "float32",
    )
    images = random_images(len(draws), 3, 3, 3)
    views = layer._transform(tf.constant(images), tf.constant(draws))
    low, high = max(0, 1 - 0.8 * strength), 1 + 0.8 * strength
    permutations = list(itertools.permutations(range(4)))
    expected = [
        reference.jitter(
            image,
            permutations[int(24 * draw[1])],
            low + draw[2:5] * (high - low),
            0.2 * strength * (2 * draw[5] - 1),
        )
        for image, draw in zip(images, draws, strict=True)
    ]
    np.testing.assert_allclose(views, expected, atol=2e-5)


def special_colors():
    """Corners and greys of the colour cube, and random colours."""
    corners = np.array(list(itertools.product((0, 0.5, 1), repeat=3)))
    colors = np.concatenate([corners, random_images(37, 3)])
    return colors.astype("float32").reshape(1, 8, 8, 3)


@pytest.mark.parametrize("turn", [-0.5, -0.2, 0.0, 0.07, 0.5])
def test_hue_equals_tf_image(turn):
    colors = special_colors()
    result = jitter_one(colors, reference.HUE, turn)
    expected = tf.image.adjust_hue(colors, turn)
    np.testing.assert_allclose(result, expected, atol=2e-6)


@pytest.mark.parametrize("factor", [0.0, 0.2, 1.0, 1.8, 3.0])
def test_saturation_equals_tf_image(factor):
    colors = special_colors()
    result = jitter_one(colors, reference.SATURATION, factor)
    expected = tf.image.adjust_saturation(colors, factor)
    np.testing.assert_allclose(result, expected, atol=2e-6)


def test_colors_are_clipped_after_each_step():
    pixel = tf.constant([[[[0.5, 0.6, 0.9]]]])
    factors = tf.constant([[2.0, 1.0, 0.5]])
    result = augmentations.jitter_colors(
        pixel, tf.constant([[0, 1, 2, 3]]), factors, tf.zeros(1)
    )
    np.testing.assert_array_equal(result, tf.ones_like(pixel))


@pytest.mark.fault(13)
def test_gray_images_have_no_hue_and_no_saturation():
    gray = np.repeat(random_images(1, 4, 4, 1), 3, axis=3)
    for operation, factor in ((reference.HUE, 0.3), (reference.SATURATION, 3)):
        result = jitter_one(gray, operation, factor)
        np.testing.assert_allclose(result, gray, atol=1e-6)


def test_strength_zero_changes_no_color(fast):
    layer = simclr.RandomColorDistortion(strength=0, rate=1, grayscale_rate=0)
    views = layer(IMAGES, seed=(0, 1))
    np.testing.assert_allclose(views, IMAGES, atol=1e-6)


@pytest.mark.fault(32, 33)
@pytest.mark.parametrize("channels", [1, 2, 4, 5])
@pytest.mark.parametrize("how", ["fast", "eager"])
def test_other_than_three_channels_are_jittered_each_by_itself(how, channels):
    layer = simclr.RandomColorDistortion(rate=1)
    images = np.repeat(IMAGES[..., :1], channels, axis=-1)
    with uncompiled() if how == "fast" else contextlib.nullcontext():
        views = layer(images, seed=(0, 1)).numpy()
    with uncompiled():
        gray = layer(images[..., :1], seed=(0, 1)).numpy()
    expected = np.repeat(gray, channels, axis=-1)
    np.testing.assert_allclose(views, expected, atol=1e-6)


@pytest.mark.fault(32)
def test_one_channel_images_are_jittered_but_not_made_gray(fast):
    layer = simclr.RandomColorDistortion(rate=0, grayscale_rate=1)
    images = IMAGES[..., :1]
    np.testing.assert_array_equal(layer(images, seed=(0, 1)), images)
    views = shared("color")(images, seed=(0, 1)).numpy()
    assert views.shape == images.shape
    assert not np.array_equal(views, images)


COLORED = np.full((MANY, 2, 2, 3), (0.2, 0.4, 0.6), "float32")


@pytest.mark.fault(48)
def test_jitter_rate_is_the_papers(fast):
    layer = simclr.RandomColorDistortion(grayscale_rate=0)
    assert abs(share_of_changed(layer, COLORED) - 0.8) < 0.015


@pytest.mark.fault(48)
def test_grayscale_rate_is_the_papers(fast):
    layer = simclr.RandomColorDistortion(rate=0)
    assert abs(share_of_changed(layer, COLORED) - 0.2) < 0.015


def test_grayscale_does_not_depend_on_the_jitter(fast):
    views = simclr.RandomColorDistortion()(COLORED, seed=(0, 1)).numpy()
    plain = np.abs(views - COLORED).max(axis=(1, 2, 3)) < 1e-6
    luma = reference.grayscale(COLORED[0])
    gray = np.abs(views - luma).max(axis=(1, 2, 3)) < 1e-6
    assert abs(plain.mean() - 0.2 * 0.8) < 0.015
    assert abs(gray.mean() - 0.2 * 0.2) < 0.008


@pytest.fixture
def color_draws(monkeypatch):
    """Orders, factors and turns that many images are jittered with."""
    monkeypatch.setattr(
        augmentations,
        "_jitter",
        lambda planes, chosen, orders, factors, turns, sizes: tf.concat(
            [tf.cast(orders, tf.float32), factors, turns[:, None]], axis=1
        )[:, None, None, :],
    )
    layer = simclr.RandomColorDistortion(rate=1, grayscale_rate=0)
    with uncompiled():  # What is compiled would be shared.
        views = layer(np.zeros((MANY, 1, 8, 1), "float32"), seed=(0, 1))
    orders, factors, turns = np.split(views[:, 0, :, 0], [4, 7], axis=1)
    return orders, factors, turns[:, 0]


@pytest.mark.fault(48)
def test_all_orders_of_the_jitter_are_equally_likely(color_draws):
    orders, _, _ = color_draws
    kinds, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(kinds) == 24
    assert (np.sort(kinds, axis=1) == range(4)).all()
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.fault(48)
def test_factors_and_turns_of_the_jitter_are_uniform(color_draws):
    _, factors, turns = color_draws
    for values in factors.T:
        assert_uniform(values, 0.2, 1.8)
    assert_uniform(turns, -0.2, 0.2)
    correlations = np.corrcoef([*factors.T, turns]) - np.eye(4)
    assert np.abs(correlations).max() < 0.04


# Blur.


def test_blur_of_a_delta_equals_the_official_golden(fast):
    # google-research/simclr@383d414, tf2/data_util.py:323-390, kernel size 3
    # and sigma 1: the row through the delta.
    golden = [0.1238414, 0.2041799, 0.1238414]
    delta = np.zeros((1, 7, 7, 1), "float32")
    delta[0, 3, 3] = 1
    blur = simclr.RandomGaussianBlur(rate=1, sigma=(1, 1))
    row = blur(delta, seed=(0, 1)).numpy()[0, 3, 2:5, 0]
    np.testing.assert_allclose(row, golden, atol=1e-6)


@pytest.mark.fault(48)
@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
@pytest.mark.parametrize("fraction", [0.1, 0.4, 1.0])
def test_blur_equals_the_reference(sigma, fraction):
    images = random_images(2, 9, 6, 3)
    blur = simclr.RandomGaussianBlur(
        rate=1, sigma=(sigma, sigma), kernel_fraction=fraction
    )
    draws = tf.zeros((2, 2))
    views = blur._transform(tf.constant(images), draws)
    radius = reference.blur_radius(9, fraction)
    expected = [reference.blur(image, sigma, radius) for image in images]
    np.testing.assert_allclose(views, expected, atol=1e-6)


@pytest.mark.fault(36)
@pytest.mark.parametrize(
    ("height", "taps"), [(224, 23), (32, 3), (28, 3), (8, 3)]
)
def test_blur_kernel_has_an_odd_number_of_taps(height, taps):
    delta = np.zeros((1, height, 31, 1), "float32")
    delta[0, height // 2, 15] = 1
    blur = simclr.RandomGaussianBlur(rate=1, sigma=(9, 9))
    view = blur._transform(tf.constant(delta), tf.zeros((1, 2))).numpy()
    assert (view[0, height // 2, :, 0] > 0).sum() == taps
    assert (view[0, :, 15, 0] > 0).sum() == taps


@pytest.mark.fault(13)
def test_blur_leaves_constant_images_as_they_are(fast):
    images = np.full((4, 12, 12, 3), (0, 0.3, 1), "float32")
    blur = simclr.RandomGaussianBlur(rate=1, kernel_fraction=0.5)
    views = blur(images, seed=(0, 1))
    np.testing.assert_allclose(views, images, atol=1e-6)


@functools.cache
def many_blurred_deltas():
    delta = np.zeros((1, 5, 5, 1), "float32")
    delta[0, 2, 2] = 1
    deltas = np.repeat(delta, MANY, axis=0)
    return simclr.RandomGaussianBlur()(deltas, seed=(0, 1)).numpy()


@pytest.mark.fault(48)
def test_blur_rate_is_the_papers():
    blurred = many_blurred_deltas()[:, 2, 3, 0] > 0
    assert abs(blurred.mean() - 0.5) < 0.015


@pytest.mark.fault(48)
def test_sigma_of_the_blur_is_uniform():
    views = many_blurred_deltas()
    views = views[views[:, 2, 3, 0] > 0].astype("float64")
    falls = np.log(views[:, 2, 2, 0] / views[:, 2, 3, 0])
    assert_uniform(np.sqrt(1 / (2 * falls)), 0.1, 2)


# Noise.


def test_noise_is_normal_with_its_standard_deviation(fast):
    images = np.full((8, 16, 16, 3), 0.5, "float32")
    views = simclr.RandomGaussianNoise(0.07, rate=1)(images, seed=(0, 1))
    noise = (views.numpy() - images).ravel() / 0.07
    assert abs(noise.mean()) < 0.04
    assert abs(noise.std() - 1) < 0.03
    assert stats.kstest(noise, stats.norm.cdf).pvalue > 1e-3


def test_noise_differs_between_images_rows_and_channels(fast):
    images = np.full((4, 8, 8, 3), 0.5, "float32")
    views = simclr.RandomGaussianNoise(rate=1)(images, seed=(0, 1))
    assert len(np.unique(views)) > 0.99 * images.size


def test_noise_rate():
    layer = simclr.RandomGaussianNoise(rate=0.3)
    images = np.full((MANY, 2, 2, 1), 0.5, "float32")
    # A graph: outside of one, images are drawn one after the other in Python.
    views = tf.function(lambda x: layer(x, seed=(0, 1)))(images).numpy()
    changed = (views != images).any(axis=(1, 2, 3))
    assert abs(changed.mean() - 0.3) < 0.015


# The whole recipe.


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_recipe_equals_its_parts_given_the_same_draws(fast, channels):
    recipe = simclr.SimCLRAugmentation((9, 8), strength=0.5)
    images = tf.constant(np.concatenate([IMAGES, IMAGES], -1)[..., :channels])
    draws = recipe._draw(pair(0, 1), images)
    expected, start = images, 0
    for part in recipe.parts:
        stop = start + part._draws_per_example
        expected = part._transform(expected, draws[:, start:stop])
        start = stop
    assert start == draws.shape[1]
    views = recipe(images, seed=(0, 1))
    np.testing.assert_allclose(views, expected, atol=1e-6)


def test_images_one_by_one_equal_the_whole_batch(monkeypatch):
    views = []
    for is_one_by_one in (True, False):
        monkeypatch.setattr(
            devices, "only_cpus", lambda value=is_one_by_one: value
        )
        recipe = simclr.SimCLRAugmentation((9, 8))
        views.append(recipe(IMAGES, seed=(0, 1)))
    np.testing.assert_allclose(*views, atol=1e-6)


def test_recipe_passes_its_arguments_to_its_parts():
    recipe = simclr.SimCLRAugmentation(
        (6, 7),
        strength=0.4,
        scale=(0.3, 0.6),
        flip_rate=0.1,
        color_rate=0.2,
        grayscale_rate=0.3,
        blur_rate=0.6,
    )
    crop, flip, color, blur = recipe.parts
    assert (crop.height, crop.width, crop.scale) == (6, 7, (0.3, 0.6))
    assert (flip.mode, flip.rate) == ("horizontal", 0.1)
    assert (color.strength, color.rate, color.grayscale_rate) == (0.4, 0.2, 0.3)
    assert blur.rate == 0.6


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "target"), [((14, 11), 8), ((44, 40), 33)])
def test_plain_operations_equal_the_crop_at_rest(size, target, interpolation):
    images = random_images(2, *size, 3)
    crop = simclr.RandomResizedCrop(target, target, interpolation=interpolation)
    inputs = keras.Input((*size, 3))
    views = keras.Model(inputs, crop.plain_at_rest(inputs))(images)
    expected = crop(images, training=False)
    np.testing.assert_allclose(views, expected, atol=1e-5)


def test_plain_operations_leave_alone_what_rest_leaves_alone():
    fitting, larger = keras.Input((8, 8, 3)), keras.Input((10, 8, 3))
    recipe = shared("recipe")
    assert recipe.plain_at_rest(fitting) is fitting
    assert recipe.plain_at_rest(larger) is not larger
    assert shared("color").plain_at_rest(larger) is larger


def test_recipe_at_rest_is_the_crop_at_rest():
    crop = simclr.RandomResizedCrop(8, 8)
    views = shared("recipe")(IMAGES, training=False)
    np.testing.assert_array_equal(views, crop(IMAGES, training=False))


# Refusals.

RANGE = "must be a pair (low, high) with 0 < low <= high"
PROBABILITY = "must be a probability between 0 and 1"
LEAST = "must be an integer of at least 1"
BAD_ARGUMENTS = [
    *(
        (
            make,
            {name: value},
            f"`{name}` {PROBABILITY}. Received: {name}={text}",
        )
        for make, name in (
            (simclr.RandomFlip, "rate"),
            (simclr.RandomColorDistortion, "rate"),
            (simclr.RandomColorDistortion, "grayscale_rate"),
            (simclr.RandomGaussianBlur, "rate"),
            (simclr.RandomGaussianNoise, "rate"),
            (functools.partial(simclr.SimCLRAugmentation, 8), "flip_rate"),
            (functools.partial(simclr.SimCLRAugmentation, 8), "color_rate"),
            (functools.partial(simclr.SimCLRAugmentation, 8), "grayscale_rate"),
            (functools.partial(simclr.SimCLRAugmentation, 8), "blur_rate"),
        )
        for value, text in (
            (-0.1, "-0.1"),
            (1.1, "1.1"),
            (float("nan"), "nan"),
            (True, "True"),
            ("half", "'half'"),
        )
    ),
    *(
        (
            make,
            {"strength": value},
            f"`strength` must be between 0 and 2.5. Received: strength={value}",
        )
        for make in (
            simclr.RandomColorDistortion,
            functools.partial(simclr.SimCLRAugmentation, 8),
        )
        for value in (-1, 2.6, None)
    ),
    *(
        (
            functools.partial(simclr.RandomResizedCrop, 8, 8),
            {name: value},
            f"`{name}` {RANGE}{limit}. Received: {name}={value}",
        )
        for name, limit, values in (
            ("scale", " <= 1", [(0, 1), (0.5, 0.1), (0.1, 1.5), 0.5, (1,)]),
            ("ratio", "", [(0, 1), (2, 1), (1, float("inf")), 1, None]),
        )
        for value in values
    ),
    *(
        (
            simclr.RandomGaussianBlur,
            {"sigma": value},
            f"`sigma` {RANGE}. Received: sigma={value}",
        )
        for value in ((0, 1), (2, 1), 1.0)
    ),
    *(
        (
            simclr.RandomGaussianBlur,
            {"kernel_fraction": value},
            (
                "`kernel_fraction` must be above 0 and at most 1. "
                f"Received: kernel_fraction={value}"
            ),
        )
        for value in (0, 1.5)
    ),
    *(
        (
            functools.partial(simclr.RandomResizedCrop, **{other: 8}),
            {name: value},
            f"`{name}` {LEAST}. Received: {name}={value}",
        )
        for name, other in (("height", "width"), ("width", "height"))
        for value in (0, -8, 8.0, True)
    ),
    *(
        (
            simclr.RandomGaussianNoise,
            {"stddev": value},
            f"`stddev` must be a positive number. Received: stddev={value}",
        )
        for value in (0, -0.1)
    ),
    (
        functools.partial(simclr.RandomResizedCrop, 8, 8),
        {"interpolation": "bilinaer"},
        (
            "`interpolation` must be one of 'bicubic', 'bilinear'. Received: "
            "interpolation='bilinaer'. Did you mean 'bilinear'?"
        ),
    ),
    (
        functools.partial(simclr.RandomResizedCrop, 8, 8),
        {"interpolation": "lanczos3"},
        (
            "`interpolation` must be one of 'bicubic', 'bilinear'. Received: "
            "interpolation='lanczos3'"
        ),
    ),
    (
        simclr.RandomFlip,
        {"mode": "horizontl"},
        (
            "`mode` must be one of 'horizontal', 'horizontal_and_vertical', "
            "'vertical'. Received: mode='horizontl'. Did you mean 'horizontal'?"
        ),
    ),
]


@pytest.mark.parametrize(("make", "arguments", "message"), BAD_ARGUMENTS)
def test_constructor_refuses(make, arguments, message):
    with pytest.raises(ValueError) as error:
        make(**arguments)
    assert str(error.value) == message


@pytest.mark.fault(30)
@every_layer
def test_integers_other_than_uint8_are_refused(name):
    with pytest.raises(ValueError) as error:
        shared(name).call(IMAGES.astype("int32"))
    assert str(error.value) == (
        "Images must be uint8, or float with values in [0, 1]. Received: "
        "images of dtype int32. If their values are 0 to 255, add: images = "
        "tf.cast(images, 'uint8')"
    )


@every_layer
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(8, 8), (2, 2, 8, 8, 3)])
def test_images_of_another_rank_are_refused(name, training, shape):
    with pytest.raises(ValueError) as error:
        shared(name).call(np.zeros(shape, "float32"), training=training)
    assert str(error.value) == (
        "Images must have the shape (batch, height, width, channels) or "
        f"(height, width, channels). Received: images of shape {shape}"
    )


def test_images_of_an_unknown_number_of_channels_are_refused():
    graph = tf.function(lambda images: shared("color")(images, seed=(0, 1)))
    with pytest.raises(ValueError, match="a known number of channels"):
        graph.get_concrete_function(tf.TensorSpec((2, 8, 8, None)))


def test_rotation_refuses_images_that_are_not_square():
    with pytest.raises(ValueError) as error:
        shared("rotate").call(np.zeros((2, 8, 9, 3), "float32"))
    assert str(error.value) == (
        "`RandomRotate90` needs square images. Received: images of shape "
        "(2, 8, 9, 3). Crop them first, for example with `RandomResizedCrop`."
    )


@every_layer
@pytest.mark.parametrize(
    ("seed", "received"),
    [
        ((0, 1, 2), "shape (3,) and dtype int32"),
        (3, "shape () and dtype int32"),
        ([[0, 1]], "shape (1, 2) and dtype int32"),
        ((0.5, 1.0), "shape (2,) and dtype float32"),
    ],
)
def test_seed_that_is_no_pair_is_refused(name, seed, received):
    with pytest.raises(ValueError) as error:
        shared(name).call(IMAGES, seed=tf.constant(seed))
    assert str(error.value) == (
        f"`seed` must be a pair of integers. Received: seed of {received}"
    )


def test_refusals_reach_the_caller_of_the_layer():
    with pytest.raises(ValueError, match="`RandomRotate90` needs square"):
        shared("rotate")(np.zeros((2, 8, 9, 3), "float32"))


@pytest.mark.parametrize("seed", [3, (0, 1, 2)])
def test_callers_learn_that_a_seed_is_a_pair(seed):
    with pytest.raises(ValueError, match="`seed` must be a pair of integers"):
        shared("flip")(IMAGES, seed=seed)


@pytest.mark.fault(35)
@pytest.mark.parametrize("size", [(60, 4), (4, 60), (1, 64), (64, 1), (9, 8)])
@pytest.mark.parametrize("target", [(16, 128), (128, 16), (40, 40)])
def test_long_and_narrow_images_are_seen_at_rest(size, target):
    images = np.random.default_rng(0).random((2, *size, 3), "float32")
    crop = simclr.RandomResizedCrop(*target)
    views = crop(images, training=False).numpy()
    assert np.isfinite(views).all()
    low, high = images.min(axis=(1, 2)), images.max(axis=(1, 2))
    assert (views.min(axis=(1, 2)) >= low - 1e-6).all()
    assert (views.max(axis=(1, 2)) <= high + 1e-6).all()
    np.testing.assert_allclose(
        crop.plain_at_rest(tf.constant(images)), views, atol=1e-5
    )


ARGUMENTS = [
    arguments
    for count in range(5)
    for arguments in itertools.combinations(
        ("training", "seed", "part", "sizes"), count
    )
]


def layer_that_takes(arguments, seen):
    """A layer of a user's own with a weight and these arguments."""
    parameters = [
        inspect.Parameter(
            name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None
        )
        for name in arguments
    ]

    class Own(keras.layers.Layer):
        def build(self, input_shape):
            self.scale = self.add_weight(shape=(), initializer="ones")

        def call(self, images, **kwargs):
            seen.append(kwargs)
            return self.scale * tf.cast(images, "float32")

    images = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        for name in ("self", "images")
    ]
    Own.call.__signature__ = inspect.Signature(images + parameters)
    return Own()


@pytest.mark.filterwarnings("ignore:These layers of `augmentation` take no")
@pytest.mark.parametrize(
    ("how", "arguments"),
    [
        *(("eager", arguments) for arguments in ARGUMENTS),
        *(
            ("graph", arguments)
            for arguments in ARGUMENTS
            if len(arguments) in (0, 1, 4)
        ),
        # Without a seed, a layer is refused when the model is made.
        *(
            (how, arguments)
            for how in ("micro-batches", "graph of them", "replicas")
            for arguments in ARGUMENTS
            if "seed" in arguments and len(arguments) in (1, 2, 4)
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_layers_of_users_get_what_the_contract_says(how, arguments):
    in_parts = how not in ("eager", "graph")
    seen, images = [], IMAGES[:4, :8, :8]
    strategy = (
        mirrored(2) if how == "replicas" else tf.distribute.get_strategy()
    )
    micro_batch_size = 2 if in_parts and how != "replicas" else None
    with strategy.scope():
        model = simclr.SimCLRModel(
            keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()]),
            augmentation=layer_that_takes(arguments, seen),
            micro_batch_size=micro_batch_size,
        )
    element = {"images": images}
    if "sizes" in arguments:
        element["sizes"] = np.full((4, 2), 8)
    seen.clear()

    def views(element):
        sizes = element.get("sizes")
        if micro_batch_size:
            return model._views(element["images"][2:], sizes, 3, 2, 4)
        return model._views(element["images"], sizes, 3)

    if how == "replicas":
        dataset = tf.data.Dataset.from_tensors(element)
        shared = next(iter(strategy.experimental_distribute_dataset(dataset)))
        tf.function(lambda: strategy.run(views, (shared,)))()
    elif how in ("eager", "micro-batches"):
        views(element)
    else:
        tf.function(lambda: views(element))()
    assert seen
    for found in seen:
        assert sorted(found) == sorted(arguments)
        assert found.get("training", True) is True
        if "seed" in found:
            assert (found["seed"].dtype, found["seed"].shape) == ("int64", 2)
        if "sizes" in found:
            assert found["sizes"].dtype == "int32"
        if "part" in found and not in_parts:
            assert found["part"] is None
        elif "part" in found:
            assert [(x.dtype, x.shape) for x in found["part"]] == [
                (tf.int32, ())
            ] * 2
