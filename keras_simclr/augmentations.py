"""Random image augmentations: batched, one draw per image, compiled.

Every layer is two pure functions, as `random_layers` says. `_transform` is
compiled by XLA, in `programs`.

What differs between images (which operation, how many taps) is written once,
with `_choose` and `_loop`. On a CPU the images pass one by one: each stays in
the cache, and only what it drew is computed. On a GPU or TPU the whole batch
passes at once: everything is computed and each image takes its own.
"""

import dataclasses
import functools
import inspect
import itertools
import math
import warnings

import keras
import numpy as np
import tensorflow as tf

from keras_simclr import _checks, devices, kinds, programs, trials
from keras_simclr.random_layers import (
    RandomLayer,
    between,
    fold_seed,
    normals,
    rows_and_total,
    uniforms,
    uniforms_of_rows,
)

# Weights of red, green and blue in the official code's grayscale image
# (google-research/simclr@383d414, tf2/data_util.py:46-50).
_GRAY_WEIGHTS = (0.2989, 0.5870, 0.1140)

# Targets up to this size (CIFAR and smaller) are evaluated on whole images.
_WHOLE_IMAGE_SIZE = 32

# Rows of an image that are resized at a time.
_ROWS = 32


def to_float(images):
    """Converts uint8, or floats in [0, 1], to float32 in [0, 1]."""
    check_dtype(images.dtype)
    floats = tf.cast(images, tf.float32)
    return floats / 255.0 if images.dtype == tf.uint8 else floats


def check_dtype(dtype):
    """Refuses a dtype that images cannot have."""
    if dtype != tf.uint8 and not dtype.is_floating:
        raise ValueError(
            "Images must be uint8, or float with values in [0, 1]. "
            f"Received: images of dtype {dtype.name}. If their values are 0 "
            "to 255, add: images = tf.cast(images, 'uint8')"
        )


def _unit(values):
    return tf.clip_by_value(values, 0.0, 1.0)


def _per_image(values):
    return values[:, None, None, None]  # (B,) -> (B, 1, 1, 1)


def _loop(count, body, *values, at_most=None):
    """`values = body(step, *values)`, `count` times.

    Gradients under XLA need `at_most`, known from shapes, where `count` is a
    tensor. The loop also keeps XLA from fusing what comes before it with what
    comes after, which would compute the former once for every use.
    """
    _, *values = tf.while_loop(
        lambda step, *_: step < count,
        lambda step, *values: (step + 1, *body(step, *values)),
        (tf.constant(0), *values),
        maximum_iterations=count if at_most is None else at_most,
    )
    return values


def _choose(choice, branches):
    """The branch that each image chose, for all images.

    `choice` (B,) holds places in `branches`, functions that return (B, ...) of
    rank 4. Of one image only its own branch is computed.
    """
    if choice.shape[0] == 1:
        return tf.switch_case(choice[0], branches)
    chosen, *others = (branch() for branch in branches)
    for place, images in enumerate(others, 1):
        chosen = tf.where(_per_image(choice == place), images, chosen)
    return chosen


def _loop_where(chosen, count, body, planes):
    """`_loop` over the planes of those images that chose it.

    Not a branch of `_choose`: XLA has no gradient of loops in branches.
    """
    if chosen.shape[0] == 1:
        steps = count * tf.cast(chosen[0], tf.int32)
        (planes,) = _loop(steps, body, planes, at_most=count)
        return planes
    (changed,) = _loop(count, body, planes)
    return tf.where(_per_image(chosen), changed, planes)


def _is_valid(sizes, axis, extent):
    """Which of `extent` places along an axis are image, (B, extent)."""
    return tf.range(extent)[None] < tf.cast(sizes[:, axis, None], tf.int32)


def _reverse(images, axes, sizes):
    """Reverses images of one size along axes; `sizes` on a canvas, or None."""
    images = tf.reverse(images, axes)
    if sizes is not None:
        canvas = tf.shape(images)
        for axis in axes:
            valid = tf.cast(sizes[0, axis - 1], tf.int32)
            images = tf.roll(images, valid - canvas[axis], axis)
    return images


def _to_planes(images):
    return tf.transpose(images, (0, 3, 1, 2))  # (B, C, H, W)


def _from_planes(planes):
    return tf.transpose(planes, (0, 2, 3, 1))  # (B, H, W, C)


class Augmentation(RandomLayer):
    """What all layers for images share: [0, 1], compilation.

    None of them changes the number of channels.
    """

    kind = kinds.IMAGES
    _axes = ("height", "width", "channels")
    _keeps_size = True  # Whether views are as large as the images.
    # Names of the probabilities with which a layer changes the colours of
    # pixels; none of a layer that only moves them.
    _color_rates = ()

    def call(self, images, training=True, seed=None, part=None):
        return self._augment(images, training, seed, part)

    def _check_dtype(self, dtype):
        check_dtype(dtype)

    def _transformed(self, images, draws, *sizes):
        program = programs.program_of(self, one_by_one=devices.only_cpus())
        return program(images, draws, *sizes, keeps_size=self._keeps_size)

    def _at_rest(self, images):
        return to_float(images)


@keras.saving.register_keras_serializable(package="keras_simclr")
class RandomResizedCrop(Augmentation):
    """Cuts a random rectangle out of each image and resizes it.

    The rectangle's share of the image's area is uniform in `scale`; its aspect
    ratio is log-uniform in the part of `ratio` with which that area fits into
    the image. An area that fits with no ratio (a long, narrow image) is not
    drawn. Crop and resize are one multiplication by a small matrix per image
    and axis.

    At rest (`training=False`) targets of at most 32 pixels see the whole
    image, larger ones its centre 7/8, in the target's aspect ratio.

    Args:
        height: Height of the output, pixels.
        width: Width of the output, pixels.
        scale: Pair `(low, high)`, share of the image's area,
            `0 < low <= high <= 1`.
        ratio: Pair `(low, high)`, width / height of the crop in pixels.
        interpolation: `"bilinear"` or `"bicubic"` (Keys, a = -0.5).
        antialias: Whether the kernel widens when the crop is made smaller.
        seed: Integer, or None for a random one. Same seed and same call,
            same result.
        **kwargs: `name` of the layer.

    Call arguments:
        images: uint8, or float with values in [0, 1].
        training: Whether to crop at random. If False nothing is drawn.
        seed: Pair of integers, or None to count the layer's own calls.
        part: Pair `(first, total)` if the images are a part of a batch: the
            first image's place in it, and its size. They are augmented as
            they would be among the whole batch.
        sizes: Integers of shape `(batch, 2)`: valid height and width of images
            that are padded below and to the right. None: all of the image.

    Input shape:
        `(batch, any, any, channels)` or `(any, any, channels)`.

    Output shape:
        `(batch, height, width, channels)` or `(height, width, channels)`,
        float32 in [0, 1].

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> crop = RandomResizedCrop(8, 8)
    >>> crop(np.zeros((2, 16, 24, 3), "uint8"), seed=(0, 1)).shape
    TensorShape([2, 8, 8, 3])

    In `tf.data`, take the seed from `enumerate`; then the pipeline can be
    checkpointed and its order does not matter:

    >>> images = tf.data.Dataset.from_tensors(np.zeros((16, 24, 3), "uint8"))
    >>> views = images.enumerate().map(lambda i, x: crop(x, seed=(0, i)))
    >>> views.element_spec.shape
    TensorShape([8, 8, 3])

    References:
        - Chen et al. 2020, arXiv:2002.05709, Appendix A ("Random crop and
          resize").
        - google-research/simclr@383d414, tf2/data_util.py:176-320.

    Deviation: the official sampler (`sample_distorted_bounding_box`) is
        uniform in the side, not the area, and never goes below 0.10: its mean
        area is 0.42 where the paper's text gives 0.54. The official resize is
        bicubic without antialiasing.
    """

    _draws_per_example = 4
    _keeps_size = False

    def __init__(
        self,
        height,
        width,
        *,
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        interpolation="bilinear",
        antialias=True,
        seed=None,
        **kwargs,
    ):
        super().__init__(seed=seed, **kwargs)
        self.height = _checks.integer("height", height, minimum=1)
        self.width = _checks.integer("width", width, minimum=1)
        self.scale = _checks.positive_range("scale", scale, high=1)
        self.ratio = _checks.positive_range("ratio", ratio)
        self.interpolation = _checks.choice(
            "interpolation", interpolation, ("bilinear", "bicubic")
        )
        self.antialias = antialias

    def call(self, images, training=True, seed=None, sizes=None, part=None):
        sizes = [] if sizes is None else [tf.cast(sizes, tf.float32)]
        return self._augment(images, training, seed, part, *sizes)

    def _transform(self, images, draws, sizes=None):
        return _from_planes(self._planes(images, draws, sizes))

    def _planes(self, images, draws, sizes=None, mirrored=None):
        heights, widths = _valid_sizes(images, sizes)
        area, ratio, top, left = tf.unstack(draws, axis=1)
        image_ratio = widths / heights
        largest = tf.minimum(self.ratio[1] / image_ratio, 1.0)
        largest = tf.minimum(image_ratio / self.ratio[0], largest)
        area = between(area, *(tf.minimum(s, largest) for s in self.scale))
        lowest = tf.maximum(self.ratio[0], image_ratio * area)
        highest = tf.minimum(self.ratio[1], image_ratio / area)
        ratio = tf.exp(
            between(ratio, tf.math.log(lowest), tf.math.log(highest))
        )
        crop_heights = tf.sqrt(area * heights * widths / ratio)
        crop_widths = tf.sqrt(area * heights * widths * ratio)
        crop_heights = tf.minimum(crop_heights, heights)
        crop_widths = tf.minimum(crop_widths, widths)
        return self._resize(
            images,
            (top * (heights - crop_heights), crop_heights, 0.0, heights),
            (left * (widths - crop_widths), crop_widths, 0.0, widths),
            mirrored,
        )

    def _at_rest(self, images, sizes=None):
        is_fitting = images.shape[1:3] == self._target and sizes is None
        if is_fitting and self._sees_whole_image:
            return to_float(images)
        return self._seen(images, self.rest_box(*_valid_sizes(images, sizes)))

    def _seen(self, images, ranges):
        """What lies in ranges of rows and columns, of the layer's size."""
        boxes = [
            (start, length, _centers(start, length, target))
            for (start, length), target in zip(
                ranges, self._target, strict=True
            )
        ]
        if not programs.are_wanted():
            return self._resize_boxes(images, boxes)
        program = programs.program_of(
            self, "_resize_boxes", one_by_one=devices.only_cpus()
        )
        views = program(images, boxes, keeps_size=False, in_pieces=True)
        views.set_shape(self.compute_output_shape(images.shape))
        return views

    def _resize_boxes(self, images, boxes, sizes=None):
        """What is seen at rest. `sizes` only allow for a canvas.

        Centers come from outside: XLA would round them otherwise.
        """
        rows, columns = (
            (start, length, start, start + length, centers)
            for start, length, centers in boxes
        )
        return _from_planes(self._resize(images, rows, columns))

    def resize(self, images):
        """Brings whole images to the layer's size, without cropping.

        Args:
            images: Shape `(batch, any, any, channels)`, uint8 or float in
                [0, 1].

        Returns:
            float32 in [0, 1], of shape `(batch, height, width, channels)`.

        Example:

        >>> RandomResizedCrop(4, 4).resize(tf.ones((1, 9, 6, 3))).shape
        TensorShape([1, 4, 4, 3])
        """
        images = tf.convert_to_tensor(images)
        if images.shape[1:3] == self._target:
            return to_float(images)
        sides = _valid_sizes(images, None)
        return self._seen(images, [(tf.zeros_like(x), x) for x in sides])

    @property
    def _sees_whole_image(self):
        return max(self.height, self.width) <= _WHOLE_IMAGE_SIZE

    def rest_box(self, heights, widths):
        """What is seen at rest: `(top, height)` and `(left, width)`, pixels."""
        if self._sees_whole_image:
            zeros = tf.zeros_like(heights)
            return (zeros, heights), (zeros, widths)
        ratio = self.width / self.height
        side = 7 / 8 * tf.minimum(heights, widths / ratio)
        # At least a pixel, of images that are very long and narrow.
        height, width = (
            tf.maximum(tf.round(x), 1.0) for x in (side, side * ratio)
        )
        top = tf.floor((heights - height + 1) / 2)
        left = tf.floor((widths - width + 1) / 2)
        return (top, height), (left, width)

    def plain_at_rest(self, images):
        sizes = images.shape[1:3]
        if self._sees_whole_image and sizes == self._target:
            return images
        margins = []
        boxes = self.rest_box(*(tf.constant(float(size)) for size in sizes))
        for (start, length), size in zip(boxes, sizes, strict=True):
            margins.append((int(start), size - int(start) - int(length)))
        # Enlarging needs no kernel that widens, which other runtimes lack. (The
        # bicubic one without is inexact in TensorFlow.)
        is_linear = self.interpolation == "bilinear"
        is_reduced = any(
            length > target
            for (_, length), target in zip(boxes, self._target, strict=True)
        )
        # An operation, not `keras.layers.Resizing`: in Keras 3.15 that layer
        # puts batch norm behind it into training mode when the model is
        # called without `training`.
        images = keras.ops.image.resize(
            keras.layers.Cropping2D(margins)(images),
            self._target,
            interpolation=self.interpolation,
            antialias=self.antialias and (is_reduced or not is_linear),
        )
        return keras.ops.clip(images, 0.0, 1.0)

    @property
    def _target(self):
        return (self.height, self.width)

    def _resize(self, images, rows, columns, mirrored=None):
        """Planes of the target's size."""
        batch, height, width, channels = programs.shape_of(images)
        lines = tf.reshape(images, (batch, height, width * channels))
        row_taps = self._taps(height, self.height, *rows)
        column_taps = self._taps(width, self.width, *columns, mirrored=mirrored)
        # Of one image, some rows at a time: they stay in the cache.
        blocks = -(-self.height // _ROWS) if images.shape[0] == 1 else 1
        extent = -(-self.height // blocks)

        def block(number):
            taps = row_taps.part(number * extent, extent)
            part = taps.sums(lines)  # (B, extent, W * C)
            # Columns next: what is added up shall lie together in memory.
            part = tf.transpose(part, (0, 2, 1))
            part = tf.reshape(part, (batch, width, channels, extent))
            part = column_taps.sums(part, (batch, width, channels * extent))
            return _unit(tf.transpose(part, (0, 2, 1)))

        planes = tf.map_fn(
            block, tf.range(blocks), fn_output_signature=tf.float32
        )
        planes = tf.reshape(
            planes, (blocks, batch, channels, extent, self.width)
        )
        planes = tf.transpose(planes, (1, 2, 0, 3, 4))
        planes = tf.reshape(
            planes, (batch, channels, blocks * extent, self.width)
        )
        planes = planes[:, :, : self.height]
        return tf.ensure_shape(planes, (None, None, *self._target))

    def _taps(
        self,
        size,
        target,
        start,
        length,
        first,
        last,
        centers=None,
        mirrored=None,
    ):
        """How to resize the pixels [start, start + length) of an axis.

        Pixel k covers [k, k + 1). Only pixels in [first, last) count.
        """
        kernel, radius = _KERNELS[self.interpolation]
        step = length / target  # (B,)
        reach = tf.maximum(step, 1.0) if self.antialias else tf.ones_like(step)
        if centers is None:
            centers = _centers(start, length, target)
        if mirrored is not None:
            turned = tf.reverse(centers, axis=[1])
            centers = tf.where(mirrored[:, None], turned, centers)
        nearest = tf.math.ceil(centers - radius * reach[:, None] - 0.5)
        largest = tf.cast(size, tf.float32) / target if self.antialias else 1.0
        most = tf.cast(
            tf.math.ceil(radius * tf.maximum(largest, 1.0)), tf.int32
        )
        taps = tf.range(2 * most)[:, None]
        middles = nearest[:, None] + tf.cast(taps, tf.float32) + 0.5
        distances = tf.abs(middles - centers[:, None]) / reach[:, None, None]
        first = tf.broadcast_to(first, tf.shape(step))[:, None, None]
        valid = (middles > first) & (middles < last[:, None, None])
        weights = tf.where(valid, kernel(distances), 0.0)
        scales = 1.0 / tf.reduce_sum(weights, axis=1)
        places = tf.clip_by_value(tf.cast(middles - 0.5, tf.int32), 0, size - 1)
        pairs = tf.cast(tf.math.ceil(radius * tf.reduce_max(reach)), tf.int32)
        return _Taps(places, weights, scales, pairs, most)

    def compute_output_shape(self, input_shape, *args, **kwargs):
        return (*input_shape[:-3], self.height, self.width, input_shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "height": self.height,
            "width": self.width,
            "scale": self.scale,
            "ratio": self.ratio,
            "interpolation": self.interpolation,
            "antialias": self.antialias,
        }


@dataclasses.dataclass(frozen=True)
class _Taps:
    """Of which lines, and with which weights, each line is the sum.

    Attributes:
        places: int32 tensor of shape `(batch, taps, target)`.
        weights: float32 tensor of that shape.
        scales: float32 tensor of shape `(batch, target)`, what makes the
            weights of a line sum to 1.
        pairs: Scalar tensor, pairs of taps that have any weight.
        most: Pairs of taps at most, known from shapes.
    """

    places: tf.Tensor
    weights: tf.Tensor
    scales: tf.Tensor
    pairs: tf.Tensor
    most: tf.Tensor

    def part(self, first, extent):
        """Those of the lines [first, first + extent), zeros beyond the end."""

        def cut(array):
            rest = [0] * (array.shape.rank - 1)
            beyond = [*rest, extent - 1]
            array = tf.pad(array, [(0, margin) for margin in beyond])
            shape = programs.shape_of(array)
            return tf.slice(array, [*rest, first], [*shape[:-1], extent])

        return dataclasses.replace(
            self,
            places=cut(self.places),
            weights=cut(self.weights),
            scales=cut(self.scales),
        )

    def sums(self, lines, shape=None):
        """Sums (B, target, N) of lines (B, size, N), or what has that shape."""
        shape = programs.shape_of(lines) if shape is None else shape
        batch, _, target = programs.shape_of(self.places)

        def tap(number):
            # Not reshaped before the loop, or XLA would copy them twice.
            places = self.places[:, number]
            values = tf.reshape(lines, shape)
            values = tf.gather(values, places, axis=1, batch_dims=1)
            weights = self.weights[:, number, :, None]
            return weights * to_float(values)

        (total,) = _loop(
            self.pairs,
            lambda pair, total: [total + (tap(2 * pair) + tap(2 * pair + 1))],
            tf.zeros((batch, target, shape[2])),
            at_most=self.most,
        )
        return self.scales[:, :, None] * total


def _valid_sizes(images, sizes):
    """Heights (B,) and widths (B,) in pixels, float32."""
    if sizes is None:
        shape = tf.shape(images)
        sizes = tf.tile(tf.cast(shape[None, 1:3], tf.float32), (shape[0], 1))
    return sizes[:, 0], sizes[:, 1]


def _centers(start, length, target):
    """Places of the target's pixels in the image, (B, target)."""
    step = length / target
    return start[:, None] + step[:, None] * (tf.range(float(target)) + 0.5)


def _triangle(distances):
    return tf.maximum(1.0 - distances, 0.0)


def _keys_cubic(distances):
    near = (1.5 * distances - 2.5) * distances**2 + 1.0
    far = ((2.5 - 0.5 * distances) * distances - 4.0) * distances + 2.0
    far = tf.where(distances < 2.0, far, 0.0)
    return tf.where(distances < 1.0, near, far)


# Each with its radius, in pixels of the target (of the image if that is less).
_KERNELS = {"bilinear": (_triangle, 1.0), "bicubic": (_keys_cubic, 2.0)}


@keras.saving.register_keras_serializable(package="keras_simclr")
class RandomFlip(Augmentation):
    """Flips each image with probability `rate`, along each axis of `mode`.

    Args:
        mode: `"horizontal"` (left and right change places), `"vertical"` or
            `"horizontal_and_vertical"` (two independent flips).
        rate: Probability in [0, 1] of a flip along an axis.
        seed: Integer, or None for a random one.
        **kwargs: `name` of the layer.

    Call arguments:
        images: uint8, or float with values in [0, 1].
        training: Whether to flip. If False the images come back as float.
        seed: Pair of integers, or None to count the layer's own calls.
        part: Pair `(first, total)` if the images are a part of a batch: the
            first image's place in it, and its size. They are augmented as
            they would be among the whole batch.

    Input shape:
        `(batch, height, width, channels)` or `(height, width, channels)`.

    Output shape:
        Same as input, float32.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> RandomFlip(rate=1.0)(np.array([[[0], [255]]], "uint8")).numpy().ravel()
    array([1., 0.], dtype=float32)

    References:
        - google-research/simclr@383d414, tf2/data_util.py:469.

    Deviation: `keras.layers.RandomFlip` flips along both axes by default.
    """

    _draws_per_example = 2

    def __init__(self, mode="horizontal", *, rate=0.5, seed=None, **kwargs):
        super().__init__(seed=seed, **kwargs)
        modes = ("horizontal", "vertical", "horizontal_and_vertical")
        self.mode = _checks.choice("mode", mode, modes)
        self.rate = _checks.probability("rate", rate)

    def _transform(self, images, draws, sizes=None):
        images = to_float(images)
        for axis, name in ((1, "vertical"), (2, "horizontal")):
            if name in self.mode:
                flipped = _per_image(self._flipped(draws, axis))
                mirrored = _reverse(images, [axis], sizes)
                images = tf.where(flipped, mirrored, images)
        return images

    def get_config(self):
        return {**super().get_config(), "mode": self.mode, "rate": self.rate}

    def _flipped(self, draws, axis):
        return draws[:, axis - 1] < self.rate


_SQUARE = "`RandomRotate90` needs square images."


@keras.saving.register_keras_serializable(package="keras_simclr")
class RandomRotate90(Augmentation):
    """Rotates each image by 0, 90, 180 or 270 degrees, each equally likely.

    For images without an upright direction: microscopy, aerial photographs.

    Args:
        seed: Integer, or None for a random one.
        **kwargs: `name` of the layer.

    Call arguments:
        images: uint8, or float with values in [0, 1].
        training: Whether to rotate. If False the images come back as float.
        seed: Pair of integers, or None to count the layer's own calls.
        part: Pair `(first, total)` if the images are a part of a batch: the
            first image's place in it, and its size. They are augmented as
            they would be among the whole batch.

    Input shape:
        `(batch, size, size, channels)` or `(size, size, channels)`.

    Output shape:
        Same as input, float32.

    Raises:
        ValueError: If the images are not square.

    Example:

    >>> RandomRotate90(seed=0)(np.zeros((2, 8, 8, 3), "uint8")).shape
    TensorShape([2, 8, 8, 3])

    References:
        - Chen et al. 2020, arXiv:2002.05709, Figure 4 (rotation by
          {90, 180, 270} degrees).
    """

    _draws_per_example = 1

    def _check_shape(self, shape):
        super()._check_shape(shape)
        if shape[1] != shape[2]:
            raise ValueError(
                f"{_SQUARE} "
                f"Received: images of shape {shape}. Crop them first, for "
                "example with `RandomResizedCrop`."
            )

    def _draw(self, seed, images, part=None):
        checks = []
        if None in images.shape[1:3]:
            height, width = tf.unstack(tf.shape(images)[1:3])
            checks.append(tf.debugging.assert_equal(height, width, _SQUARE))
        with tf.control_dependencies(checks):
            return super()._draw(seed, images, part)

    def _transform(self, images, draws, sizes=None):
        images = to_float(images)
        turns = tf.cast(draws[:, 0] * 4.0, tf.int32)
        turned = _reverse(tf.transpose(images, (0, 2, 1, 3)), [1], sizes)
        images = tf.where(_per_image(turns % 2 == 1), turned, images)
        opposite = _reverse(images, [1, 2], sizes)
        return tf.where(_per_image(turns >= 2), opposite, images)


@keras.saving.register_keras_serializable(package="keras_simclr")
class RandomColorDistortion(Augmentation):
    """Jitters the colours of each image in its own order, or drops them.

    With probability `rate`, in an order drawn per image and clipped to [0, 1]
    after each: brightness, contrast and saturation are multiplied by a factor
    uniform in `[max(0, 1 - 0.8 strength), 1 + 0.8 strength]`; the hue turns by
    up to `0.2 strength` of the circle. Then, with probability
    `grayscale_rate`, the image becomes gray. Images with other than three
    channels get brightness and contrast only.

    Args:
        strength: The paper's s, from 0 to 2.5 (where every hue is reached).
        rate: Probability in [0, 1] of the jitter.
        grayscale_rate: Probability in [0, 1] of dropping the colours.
        seed: Integer, or None for a random one.
        **kwargs: `name` of the layer.

    Call arguments:
        images: uint8, or float with values in [0, 1].
        training: Whether to distort. If False the images come back as float.
        seed: Pair of integers, or None to count the layer's own calls.
        part: Pair `(first, total)` if the images are a part of a batch: the
            first image's place in it, and its size. They are augmented as
            they would be among the whole batch.

    Input shape:
        `(batch, height, width, channels)` or `(height, width, channels)`;
        the number of channels is known when the layer is called.

    Output shape:
        Same as input, float32 in [0, 1].

    Raises:
        ValueError: If an argument is out of range, or the number of channels
            is not known.

    Example:

    >>> distort = RandomColorDistortion(strength=0.5)
    >>> distort(np.zeros((2, 8, 8, 3), "uint8"), seed=(0, 1)).shape
    TensorShape([2, 8, 8, 3])

    References:
        - Chen et al. 2020, arXiv:2002.05709, Appendix A ("Color distortion").
        - google-research/simclr@383d414, tf2/data_util.py:33-175, 382-390.

    Deviation: the official code refuses a strength above 1.25, where contrast
        and saturation would become negative; here they stop at 0, as
        brightness does there. At strength 0 it drops no colours either; here
        `grayscale_rate` alone says so.
    """

    # Apply, order, four factors, grayscale.
    _draws_per_example = 7
    _color_rates = ("rate", "grayscale_rate")

    def __init__(
        self,
        *,
        strength=1.0,
        rate=0.8,
        grayscale_rate=0.2,
        seed=None,
        **kwargs,
    ):
        super().__init__(seed=seed, **kwargs)
        self.strength = _checks.real_number(
            "strength", strength, low=0, high=2.5, rule="between 0 and 2.5"
        )
        self.rate = _checks.probability("rate", rate)
        self.grayscale_rate = _checks.probability(
            "grayscale_rate", grayscale_rate
        )

    def _check_shape(self, shape):
        super()._check_shape(shape)
        if shape[3] is None:
            raise ValueError(
                "`RandomColorDistortion` needs images with a known number of "
                f"channels. Received: images of shape {shape}. Set it, for "
                "example: images = tf.ensure_shape(images, (None, None, 3))"
            )

    def _transform(self, images, draws, sizes=None):
        planes = _to_planes(to_float(images))
        return _from_planes(self._distort(planes, draws, sizes))

    def _distort(self, planes, draws, sizes=None):
        spread = 0.8 * self.strength
        factors = between(draws[:, 2:5], max(0.0, 1.0 - spread), 1.0 + spread)
        turns = 0.2 * self.strength * (2.0 * draws[:, 5] - 1.0)
        orders = tf.gather(_ORDERS, tf.cast(draws[:, 1] * 24.0, tf.int32))
        planes = _jitter(
            planes,
            draws[:, 0] < self.rate,
            orders,
            factors,
            turns,
            sizes,
        )
        if planes.shape[1] == 3:
            gray = tf.cast(draws[:, 6] < self.grayscale_rate, tf.int32)
            drop = functools.partial(_without_colors, planes)
            planes = _choose(gray, [lambda: planes, drop])
        return planes

    def get_config(self):
        return {
            **super().get_config(),
            "strength": self.strength,
            "rate": self.rate,
            "grayscale_rate": self.grayscale_rate,
        }


_TINY = 1e-30  # Keeps a division by the chroma of a gray pixel finite.
_ORDERS = np.array(list(itertools.permutations(range(4))), "int32")  # (24, 4)


def jitter_colors(images, orders, factors, turns):
    """Changes brightness, contrast, saturation and hue in the given orders.

    Args:
        images: float32 of shape `(batch, height, width, channels)` in [0, 1].
            Saturation and hue are those of 3 channels; others keep theirs.
        orders: int32 of shape `(batch, 4)`: a permutation of 0 (brightness),
            1 (contrast), 2 (saturation) and 3 (hue) per image.
        factors: float32 of shape `(batch, 3)`, of the first three.
        turns: float32 of shape `(batch,)`: added to the hue, in turns.

    Returns:
        float32 of the shape of `images`, clipped to [0, 1] after each step.

    Example:

    >>> pixel = tf.constant([[[[0.2, 0.4, 0.6]]]])
    >>> factors = tf.constant([[2.0, 1.0, 1.0]])
    >>> orders, turns = tf.constant([[0, 1, 2, 3]]), tf.zeros(1)
    >>> jitter_colors(pixel, orders, factors, turns).numpy().round(3)
    array([[[[0.4, 0.8, 1. ]]]], dtype=float32)

    References:
        - google-research/simclr@383d414, tf2/data_util.py:33-175.
    """
    everything = tf.ones_like(turns, tf.bool)
    planes = _to_planes(images)
    planes = _jitter(planes, everything, orders, factors, turns)
    return _from_planes(planes)


def _jitter(planes, chosen, orders, factors, turns, sizes=None):
    """As `jitter_colors`, of those images that are chosen."""
    factors = tf.concat([factors, turns[:, None]], axis=1)  # (B, 4)
    factors = tf.gather(factors, orders, axis=1, batch_dims=1)
    contrast = functools.partial(_contrast, sizes=sizes)
    operations = (_brightness, contrast, _saturation, _hue)

    def two_steps(pair, planes):
        # Two, so that XLA need not copy what a loop begins with.
        for step in (2 * pair, 2 * pair + 1):
            factor = _per_image(factors[:, step])
            branches = [
                functools.partial(operation, planes, factor)
                for operation in operations
            ]
            planes = _choose(orders[:, step], branches)
        return [planes]

    return _loop_where(chosen, 2, two_steps, planes)


def _brightness(planes, factor):
    return _unit(factor * planes)


def _contrast(planes, factor, sizes=None):
    if sizes is None:
        mean = _mean(planes)
    else:
        rows, columns = (
            _is_valid(sizes, axis, tf.shape(planes)[axis + 2])
            for axis in range(2)
        )
        valid = rows[:, None, :, None] & columns[:, None, None, :]
        total = tf.where(valid, planes, 0.0)
        total = tf.reduce_sum(total, axis=(2, 3), keepdims=True)
        mean = total / _per_image(tf.reduce_prod(sizes, axis=1))
    return _unit(mean + factor * (planes - mean))


def _mean(planes):
    """Means of planes, (B, C, 1, 1)."""
    batch, channels, height, width = programs.shape_of(planes)
    total, count = planes, height * width
    # XLA adds up numbers one by one, and arrays many at a time.
    while isinstance(count, int) and (parts := math.gcd(count, 32)) > 1:
        count //= parts
        total = tf.reshape(total, (batch, channels, parts, count))
        total = sum(tf.unstack(total, axis=2))
    total = tf.reshape(total, (batch, channels, count))
    total = tf.reduce_sum(total, axis=2)[:, :, None, None]
    return total / tf.cast(height * width, tf.float32)


def _saturation(planes, factor):
    if planes.shape[1] != 3:
        return planes
    # The factor stops where the smallest channel is 0 (saturation 1 in HSV).
    value, chroma = _value_and_chroma(planes)
    factor = tf.minimum(factor, value / tf.maximum(chroma, _TINY))
    return _unit(value + factor * (planes - value))


def _hue(planes, turns):
    if planes.shape[1] != 3:
        return planes
    red, green, blue = tf.split(planes, 3, axis=1)
    value, chroma = _value_and_chroma(planes)
    inverse = 1.0 / tf.maximum(chroma, _TINY)
    sextant = tf.where(
        red == value,
        (green - blue) * inverse,
        tf.where(
            green == value,
            (blue - red) * inverse + 2.0,
            (red - green) * inverse + 4.0,
        ),
    )
    turned = sextant / 6.0 + turns
    sextant = 6.0 * (turned - tf.floor(turned))
    # How far a channel lies above the smallest is a trapezoid of the hue.
    start, slope, middle = np.array(
        [[-1.0, 2.0, 2.0], [1.0, -1.0, -1.0], [3.0, 2.0, 4.0]], "float32"
    )[:, :, None, None]
    height = _unit(start + slope * tf.abs(sextant - middle))
    return _unit(value - chroma + chroma * height)


def _value_and_chroma(planes):
    """Largest channel, and its distance from the smallest, (B, 1, H, W)."""
    channels = tf.split(planes, 3, axis=1)
    value = functools.reduce(tf.maximum, channels)
    return value, value - functools.reduce(tf.minimum, channels)


def _without_colors(planes):
    channels = tf.split(planes, 3, axis=1)
    pairs = zip(_GRAY_WEIGHTS, channels, strict=True)
    gray = sum(weight * channel for weight, channel in pairs)
    return tf.broadcast_to(gray, tf.shape(planes))


@keras.saving.register_keras_serializable(package="keras_simclr")
class RandomGaussianBlur(Augmentation):
    """Blurs each image with probability `rate` and a width of its own.

    The kernel is a separable Gaussian whose standard deviation is drawn per
    image and uniformly from `sigma`, the same along both axes. Its size is odd
    and at least 3; at the edges the weights that fall on the image are
    scaled to sum to 1.

    Args:
        rate: Probability in [0, 1] that an image is blurred.
        sigma: Pair `(low, high)`, pixels, `0 < low <= high`.
        kernel_fraction: Size of the kernel as a share of the image's height,
            in (0, 1].
        seed: Integer, or None for a random one.
        **kwargs: `name` of the layer.

    Call arguments:
        images: uint8, or float with values in [0, 1].
        training: Whether to blur. If False the images come back as float.
        seed: Pair of integers, or None to count the layer's own calls.
        part: Pair `(first, total)` if the images are a part of a batch: the
            first image's place in it, and its size. They are augmented as
            they would be among the whole batch.

    Input shape:
        `(batch, height, width, channels)` or `(height, width, channels)`;
        height and width are known when the layer is called.

    Output shape:
        Same as input, float32.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> blur = RandomGaussianBlur(rate=1.0)
    >>> blur(np.ones((2, 8, 8, 3), "float32"), seed=(0, 1)).shape
    TensorShape([2, 8, 8, 3])

    References:
        - Chen et al. 2020, arXiv:2002.05709, Appendix A ("Gaussian blur").
        - google-research/simclr@383d414, tf2/data_util.py:323-440.

    Deviation: the official code draws one sigma for a whole batch and pads
        with zeros, which darkens the edges.
    """

    _draws_per_example = 2
    _color_rates = ("rate",)

    def __init__(
        self,
        *,
        rate=0.5,
        sigma=(0.1, 2.0),
        kernel_fraction=0.1,
        seed=None,
        **kwargs,
    ):
        super().__init__(seed=seed, **kwargs)
        self.rate = _checks.probability("rate", rate)
        self.sigma = _checks.positive_range("sigma", sigma)
        self.kernel_fraction = _checks.real_number(
            "kernel_fraction",
            kernel_fraction,
            low=math.ulp(0.0),
            high=1,
            rule="above 0 and at most 1",
        )

    def _check_shape(self, shape):
        super()._check_shape(shape)
        if None in shape[1:3]:
            raise ValueError(
                "`RandomGaussianBlur` needs images of known height and width. "
                f"Received: images of shape {shape}. Crop them first, for "
                "example with `RandomResizedCrop`."
            )

    def _transform(self, images, draws, sizes=None):
        planes = _to_planes(to_float(images))
        return _from_planes(self._blurred(planes, draws, sizes))

    def _blurred(self, planes, draws, sizes=None):
        # An even number of taps becomes the next odd one, as officially.
        radius = max(1, int(planes.shape[2] * self.kernel_fraction) // 2)
        sigma = between(draws[:, 1], *self.sigma)
        offsets = tf.range(-radius, radius + 1, dtype=tf.float32)
        kernel = tf.exp(-0.5 * tf.square(offsets / sigma[:, None]))  # (B, taps)
        if sizes is not None:
            height = tf.cast(sizes[:, :1], tf.float64)
            most = tf.floor(tf.floor(height * self.kernel_fraction) / 2.0)
            most = tf.maximum(tf.cast(most, tf.float32), 1.0)
            kernel = tf.where(tf.abs(offsets) <= most, kernel, 0.0)

        # Beyond six sigma a weight is lost in rounding.
        reach = tf.cast(tf.math.ceil(6.0 * tf.reduce_max(sigma)), tf.int32)

        def along_both_axes(_, planes):
            for axis in (2, 3):
                planes = _blur(planes, kernel, reach, axis, sizes)
            return [_unit(planes)]  # Means of ones may round to more.

        blurred = draws[:, 0] < self.rate
        return _loop_where(blurred, 1, along_both_axes, planes)

    def get_config(self):
        return {
            **super().get_config(),
            "rate": self.rate,
            "sigma": self.sigma,
            "kernel_fraction": self.kernel_fraction,
        }


_PAIRS = 4  # Of neighbours, on both sides, that are added at a time.


def _blur(planes, kernel, reach, axis, sizes=None):
    """Weighted mean of the neighbours along `axis` that lie on the image.

    Neighbours further away than `reach` have no weight.
    """
    size, radius = planes.shape[axis], kernel.shape[1] // 2
    valid = size if sizes is None else tf.cast(sizes[:, axis - 2], tf.int32)
    valid = tf.reshape(valid, (-1, 1, 1))
    places = tf.range(size)[:, None] + tf.range(-radius, radius + 1)
    is_valid = (places >= 0) & (places < valid)  # (B, size, taps)
    totals = tf.where(is_valid, kernel[:, None], 0.0)
    totals = tf.reduce_sum(totals, axis=2)
    if sizes is not None:
        is_valid = tf.range(size) < valid[:, 0]
        planes = tf.where(_along(axis, is_valid), planes, 0.0)
        totals = tf.maximum(totals, _TINY)  # What is not image is 0.
    pairs = min(_PAIRS, radius)
    steps = -(-radius // pairs)
    margin = pairs * steps
    margins = [(0, 0)] * 4
    margins[axis] = (margin, margin)
    padded = tf.pad(planes, margins)
    kernel = tf.pad(kernel, [(0, 0), (margin - radius, margin - radius)])

    def moved(place):
        start = [0] * 4
        start[axis] = place
        return tf.slice(padded, start, programs.shape_of(planes))

    def add_pairs(step, total):
        for pair in range(pairs):
            distance = 1 + pairs * step + pair
            both = moved(margin - distance) + moved(margin + distance)
            total += _per_image(kernel[:, margin + distance]) * both
        return [total]

    count = -(-tf.minimum(reach, radius) // pairs)
    center = _per_image(kernel[:, margin]) * planes
    (total,) = _loop(count, add_pairs, center, at_most=steps)
    # Multiplied: to divide takes as long as a dozen neighbours.
    return total * _along(axis, 1.0 / totals)


def _along(axis, values):
    """Values (B, size) as a factor of planes (B, C, H, W)."""
    return values[:, None, :, None] if axis == 2 else values[:, None, None]


@keras.saving.register_keras_serializable(package="keras_simclr")
class RandomGaussianNoise(Augmentation):
    """Adds Gaussian noise to each image with probability `rate`.

    Args:
        stddev: Standard deviation of the noise; black is 0, white is 1.
        rate: Probability in [0, 1] that an image gets noise.
        seed: Integer, or None for a random one.
        **kwargs: `name` of the layer.

    Call arguments:
        images: uint8, or float with values in [0, 1].
        training: Whether to add noise. If False the images come back as float.
        seed: Pair of integers, or None to count the layer's own calls.
        part: Pair `(first, total)` if the images are a part of a batch: the
            first image's place in it, and its size. They are augmented as
            they would be among the whole batch.

    Input shape:
        `(batch, height, width, channels)` or `(height, width, channels)`.

    Output shape:
        Same as input, float32 in [0, 1].

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> noise = RandomGaussianNoise(0.2, rate=1.0)
    >>> noise(np.zeros((2, 8, 8, 1), "uint8"), seed=(0, 1)).shape
    TensorShape([2, 8, 8, 1])

    References:
        - Chen et al. 2020, arXiv:2002.05709, Figure 4 ("Gaussian noise").
    """

    _color_rates = ("rate",)

    def __init__(self, stddev=0.1, *, rate=0.5, seed=None, **kwargs):
        super().__init__(seed=seed, **kwargs)
        self.stddev = _checks.positive_number("stddev", stddev)
        self.rate = _checks.probability("rate", rate)

    def _draw(self, seed, images, part=None):
        # A key per image: only these rows' noise is drawn.
        rows, total = rows_and_total(images, part)
        shape = tf.concat([tf.shape(images)[1:], [2]], axis=0)
        seed = fold_seed(seed, 0)
        chosen = tf.gather(uniforms(seed, (total,)), rows)
        return chosen, uniforms_of_rows(seed, rows + 1, shape)

    def _transform(self, images, draws, sizes=None):
        images = to_float(images)
        chosen, pixels = draws
        noisy = _unit(images + self.stddev * normals(pixels))
        return tf.where(_per_image(chosen < self.rate), noisy, images)

    def get_config(self):
        return {
            **super().get_config(),
            "stddev": self.stddev,
            "rate": self.rate,
        }


@keras.saving.register_keras_serializable(package="keras_simclr")
class SimCLRAugmentation(Augmentation):
    """The paper's whole recipe: crop, flip, colour distortion, blur.

    Equal to the four layers in a row given the same draws, compiled as one.

    Args:
        image_size: Size of the views, pixels: an integer or (height, width).
        strength: Strength of the colour distortion, the paper's s. Its
            CIFAR-10 experiments use 0.5.
        scale: Pair `(low, high)`, share of the image's area that is cut out.
        flip_rate: Probability in [0, 1] of a horizontal flip.
        color_rate: Probability in [0, 1] of the colour jitter.
        grayscale_rate: Probability in [0, 1] of dropping the colours.
        blur_rate: Probability in [0, 1] of the blur. The paper's CIFAR-10
            experiments use 0.
        seed: Integer, or None for a random one.
        **kwargs: `name` of the layer.

    Call arguments:
        images: uint8, or float with values in [0, 1].
        training: Whether to augment. If False the images are brought to
            `image_size` as by `RandomResizedCrop` at rest.
        seed: Pair of integers, or None to count the layer's own calls.
        part: Pair `(first, total)` if the images are a part of a batch: the
            first image's place in it, and its size. They are augmented as
            they would be among the whole batch.
        sizes: Integers of shape `(batch, 2)`: valid height and width of images
            that are padded below and to the right. None: all of the image.

    Input shape:
        `(batch, any, any, channels)` or `(any, any, channels)`. Colours are
        those of 3 channels; others get brightness and contrast only.

    Output shape:
        `(batch, height, width, channels)` or `(height, width, channels)`,
        float32 in [0, 1].

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> augment = SimCLRAugmentation(8)
    >>> images = np.zeros((2, 16, 16, 3), "uint8")
    >>> augment(images, seed=(0, 1)).shape
    TensorShape([2, 8, 8, 3])

    References:
        - Chen et al. 2020, arXiv:2002.05709, Appendix A.
        - google-research/simclr@383d414, tf2/data_util.py:443-475 (crop, flip
          and colour), tf2/model.py:255-258 (blur).
    """

    _keeps_size = False

    def __init__(
        self,
        image_size,
        *,
        strength=1.0,
        scale=(0.08, 1.0),
        flip_rate=0.5,
        color_rate=0.8,
        grayscale_rate=0.2,
        blur_rate=0.5,
        seed=None,
        **kwargs,
    ):
        super().__init__(seed=seed, **kwargs)
        self.image_size = image_size
        self.crop = RandomResizedCrop(
            *_height_and_width(image_size), scale=scale
        )
        self.flip = RandomFlip(rate=_checks.probability("flip_rate", flip_rate))
        self.color = RandomColorDistortion(
            strength=strength,
            rate=_checks.probability("color_rate", color_rate),
            grayscale_rate=grayscale_rate,
        )
        self.blur = RandomGaussianBlur(
            rate=_checks.probability("blur_rate", blur_rate)
        )

    @property
    def parts(self):
        """The four layers, in order."""
        return [self.crop, self.flip, self.color, self.blur]

    def without_colors(self):
        """A copy that crops and flips alike, and leaves colours as they are."""
        copy = type(self).from_config(self.get_config())
        for layer in copy.parts:
            for rate in layer._color_rates:
                setattr(layer, rate, 0.0)
        return copy

    def call(self, images, training=True, seed=None, sizes=None, part=None):
        sizes = [] if sizes is None else [tf.cast(sizes, tf.float32)]
        return self._augment(images, training, seed, part, *sizes)

    def _check_shape(self, shape):
        super()._check_shape(shape)
        self.color._check_shape(shape)

    @property
    def _draws_per_example(self):
        return sum(part._draws_per_example for part in self.parts)

    def _transform(self, images, draws, sizes=None):
        counts = [part._draws_per_example for part in self.parts]
        crop, flip, color, blur = tf.split(draws, counts, axis=1)
        mirrored = self.flip._flipped(flip, axis=2)
        planes = self.crop._planes(images, crop, sizes, mirrored)
        planes = self.color._distort(planes, color)
        return _from_planes(self.blur._blurred(planes, blur))

    def _at_rest(self, images, *sizes):
        return self.crop._at_rest(images, *sizes)

    def plain_at_rest(self, images):
        return self.crop.plain_at_rest(images)

    def compute_output_shape(self, input_shape, *args, **kwargs):
        return self.crop.compute_output_shape(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "image_size": self.image_size,
            "strength": self.color.strength,
            "scale": self.crop.scale,
            "flip_rate": self.flip.rate,
            "color_rate": self.color.rate,
            "grayscale_rate": self.color.grayscale_rate,
            "blur_rate": self.blur.rate,
        }


def _height_and_width(image_size):
    if not isinstance(image_size, (tuple, list)):
        image_size = (image_size, image_size)
    if len(image_size) != 2:
        raise ValueError(
            "`image_size` must be an integer or (height, width). "
            f"Received: image_size={image_size!r}"
        )
    return [_checks.integer("image_size", x, minimum=1) for x in image_size]


def default_augmentation(shape):
    """The recipe at an encoder's input size; refuses encoders of other data."""
    if len(shape) != 4 or None in shape[1:]:
        raise ValueError(
            "`augmentation` must be given for an encoder that does not take "
            "images of one size and one number of channels: a layer, or a list "
            f"of layers. Received: an encoder with input shape {shape}"
        )
    return SimCLRAugmentation(shape[1:3], name="augmentation")


def check_augmentation(name, augmentation, encoder, *, needs_seed):
    """Refuses what cannot make views, and warns of what cannot repeat them.

    Args:
        name: Name of the argument, for messages.
        augmentation: A layer, a list of layers, or None.
        encoder: The `keras.Model` that takes the views.
        needs_seed: Whether the layers must take a `seed`.

    Raises:
        TypeError: If it is no layer.
        ValueError: If a layer takes no `seed` where one is needed, or makes
            views of images out of [0, 1]; or if views do not fit the encoder.
    """
    layers, shape = as_list(augmentation), encoder.input_shape
    dtype = _dtype_taken(layers, encoder)
    view = keras.KerasTensor(examples_shape(layers, shape), dtype)
    unseeded = []
    for layer in layers:
        if not isinstance(layer, keras.layers.Layer):
            raise TypeError(
                f"`{name}` must be a Keras layer or a list of them. "
                f"Received: {name}={layer!r}"
            )
        seed = tf.zeros([2], tf.int64)
        view = call_layer(layer, view, training=True, seed=seed)
        unseeded += [] if accepts(layer, "seed") else [layer.name]
    if unseeded and needs_seed:
        raise ValueError(
            "Several replicas, and micro-batches, need augmentations "
            "that take a `seed`. Received: "
            f"{', '.join(unseeded)} in `{name}`. If this is a "
            "`Sequential` or a `Pipeline`, pass its layers as a list."
        )
    if unseeded:
        warnings.warn(
            f"These layers of `{name}` take no `seed`: "
            f"{', '.join(unseeded)}. Their views depend on more than "
            "seed, step and place: a run with them cannot be repeated. "
            "If this is a `Sequential` or a `Pipeline`, pass its "
            "layers as a list.",
            stacklevel=4,
        )
    check_view(view, shape, f"`{name}`")
    if kinds.kind_of(layers, shape) is kinds.IMAGES:
        _check_range(name, layers, shape)


def check_view(view, expected, name):
    """The view, unless an encoder takes others; `name` of what made it."""
    if not tf.TensorShape(view.shape).is_compatible_with(expected):
        raise ValueError(
            f"The encoder takes views of shape {expected}. Received: "
            f"shape {tuple(view.shape)} from {name}"
        )
    return view


_AT_REST_IN_WORDS = "`augmentation` at rest"
_AT_REST = 16  # Trials of a layer: one that draws may draw the same again.
_IN_TRAINING = 4
_OVERSHOOT = 0.01  # Of interpolation.
_FLAT = 0.05  # What is left of a range of 1.


def _check_range(name, layers, shape):
    """Refuses layers that make views of images out of [0, 1], or all black.

    Ours do not, and are not tried; they stand between the others as at rest.
    """
    is_ours = [isinstance(layer, RandomLayer) for layer in layers]
    if all(is_ours):
        return
    ranges = {}  # By layer: smallest and largest value of each image, by run.
    with keras.StatelessScope():  # No layer's state moves.
        for run in range(_IN_TRAINING):
            views = trials.ramps(shape[1:])
            seed = tf.constant([0, run], tf.int64)
            for place, layer in enumerate(layers):
                views = call_layer(
                    layer, views, training=not is_ours[place], seed=seed
                )
                # What follows another layer may undo what that did.
                if not is_ours[place] and all(is_ours[place + 1 : place + 2]):
                    axes = range(1, views.shape.rank)
                    low = np.asarray(tf.reduce_min(views, axes))
                    high = np.asarray(tf.reduce_max(views, axes))
                    ranges.setdefault(layer.name, []).append((low, high))
    for layer, found in ranges.items():
        lows, highs = np.float32(found).swapaxes(0, 1)
        is_in_range = (
            lows.min() >= -_OVERSHOOT and highs.max() <= 1 + _OVERSHOOT
        )
        if is_in_range and (highs - lows).max() >= _FLAT:
            continue
        raise ValueError(
            "Views must lie in [0, 1] and use it, as the images do that come "
            "to an augmentation. Received: of images from 0 to 1, views from "
            f"{lows.min():.3g} to {highs.max():.3g} by {layer} of `{name}`. "
            "Give Keras's layers value_range=(0, 1), leave out "
            "Rescaling(1 / 255), clip what overshoots, and put a Rescaling "
            "that the encoder wants in front of the encoder."
        )


def _dtype_taken(layers, encoder):
    """Of what views are made: integers for those of no kind, such as tokens."""
    inputs = getattr(encoder, "inputs", None)
    dtype = tf.as_dtype(inputs[0].dtype if inputs else "float32")
    is_other = kinds.kind_of(layers, encoder.input_shape) is kinds.OTHER
    return dtype.name if is_other and dtype.is_integer else "float32"


def check_at_rest(augmentation, encoder):
    """Refuses layers that are random at rest; warns of those that do anything.

    Args:
        augmentation: A layer, or a list of layers. Ours are not tried.
        encoder: The `keras.Model` that takes the views.

    Raises:
        ValueError: If a layer returns other views of equal images, or views
            do not fit the encoder.
    """
    layers, expected = as_list(augmentation), encoder.input_shape
    shape = examples_shape(layers, expected)
    if all(isinstance(layer, RandomLayer) for layer in layers):
        views = at_rest(layers, keras.KerasTensor(shape))
        check_view(views, expected, _AT_REST_IN_WORDS)
        return
    dtype = _dtype_taken(layers, encoder)
    views = plain = trials.examples(shape[1:], dtype)
    changing = []
    for layer in layers:
        images = views
        views = call_layer(layer, images, training=False)
        if isinstance(layer, RandomLayer):
            plain = layer(plain, training=False)
            continue
        if is_random_at_rest(layer, images):
            raise ValueError(
                "Augmentations must draw nothing at rest (training=False), as "
                "in `predict`. Received: other views of equal images by "
                f"{layer.name}. Let its `call(images, training=True)` return "
                "the images as they are if `training` is false."
            )
        if trials.differ(images, views):
            changing.append(layer.name)
    if changing and trials.differ(plain, views):
        warnings.warn(
            "These layers of `augmentation` change images at rest: "
            f"{', '.join(changing)}. No plain layers can repeat it: "
            "`export_encoder` and `fine_tune` will refuse the model. Put what "
            "is done to every image in front of the encoder instead.",
            stacklevel=4,
        )
    check_view(views, expected, _AT_REST_IN_WORDS)


def warn_of_sizes(augmentation, images, expected):
    """Warns if images at rest have another shape than the encoder expects.

    `images` is a `tf.TensorSpec`; layers of ours are known to bring images to
    one size, or to be refused in training.
    """
    shape = images.shape
    layers = as_list(augmentation)
    if all(isinstance(layer, RandomLayer) for layer in layers):
        return
    if shape.rank is None or None in shape[1:]:
        return
    are_images = kinds.kind_of(layers, expected) is kinds.IMAGES
    dtype = "float32" if are_images else images.dtype.name
    view = keras.KerasTensor((None, *shape[1:]), dtype)
    for layer in layers:
        view = call_layer(layer, view, training=False)
    if not tf.TensorShape(view.shape).is_compatible_with(expected):
        warnings.warn(
            f"`predict`, probes and exports will refuse images of shape "
            f"{tuple(shape[1:])}: `augmentation` makes {view.shape[1:]} of "
            f"them at rest, and the encoder takes {expected[1:]}. Put "
            "RandomResizedCrop first, which resizes at rest.",
            stacklevel=6,
        )


def is_random_at_rest(layer, inputs):
    """Whether a layer or model draws at rest; `inputs` as of `trials`."""
    return trials.is_random(
        lambda batch: call_layer(layer, batch, training=False),
        inputs,
        runs=_AT_REST,
        at_rest=True,
    )


def as_list(augmentation):
    """The layers of an augmentation, which may be one, a list, or None."""
    if augmentation is None:
        return []
    if isinstance(augmentation, (list, tuple)):
        return list(augmentation)
    return [augmentation]


def examples_shape(augmentation, shape):
    """Shape of a batch of what an augmentation takes.

    Args:
        augmentation: As in `SimCLRModel`.
        shape: Of a batch of what the encoder takes.

    Returns:
        Tuple; the same shape where no layer of ours says otherwise. What comes
        in any size has that in which it is seen at rest.

    Example:

    >>> examples_shape(RandomFlip(), (None, 8, 8, 3))
    (None, 8, 8, 3)
    """
    shape = (None, *shape[1:])
    for layer in reversed(as_list(augmentation)):
        if isinstance(layer, RandomLayer):
            shape = layer.examples_shape(shape)
    return shape


def shapes_taken(augmentation, shape):
    """Shapes of batches of any examples, and of those of `examples_shape`.

    Arguments are as there. The first has None for what may be of any size.
    """
    plain = examples_shape(augmentation, shape)
    if not takes_sizes(augmentation):
        return plain, plain
    sized = kinds.kind_of(as_list(augmentation), shape).sized
    return (*[None for _ in plain[: 1 + sized]], *plain[1 + sized :]), plain


def as_views(images, kind):
    """Images as float32 in [0, 1]; anything else as it is."""
    images = tf.convert_to_tensor(images)
    return to_float(images) if kind is kinds.IMAGES else images


def views_of(augmentations, images, *, seed, sizes=None, part=None):
    """Makes a view of images by each augmentation; as `augment` takes them."""
    seed = tf.stack([tf.cast(number, tf.int64) for number in seed])
    return tuple(
        augment(
            augmentation,
            images,
            seed=fold_seed(seed, view),
            sizes=sizes,
            part=part,
        )
        for view, augmentation in enumerate(augmentations)
    )


def augment(augmentation, images, *, seed, sizes=None, part=None):
    """Applies an augmentation's layers in order, as in training.

    Each layer gets a sub-seed of `seed`; `part` and `sizes` are as in the call
    of `SimCLRAugmentation`.
    """
    for place, layer in enumerate(as_list(augmentation)):
        sub_seed = fold_seed(seed, place)
        if part is not None and not accepts(layer, "part"):
            # Not what one device would draw, but not the same in each part.
            sub_seed = fold_seed(sub_seed, part[0])
        images = call_layer(
            layer, images, training=True, seed=sub_seed, part=part, sizes=sizes
        )
        sizes = None  # Views fill their canvas.
    return images


def at_rest(augmentation, images, sizes=None):
    """Applies an augmentation's layers in order, as at rest."""
    for layer in as_list(augmentation):
        images = call_layer(layer, images, training=False, sizes=sizes)
        sizes = None  # Views fill their canvas.
    return images


def seen_at_rest(augmentation, images, shape, sizes=None):
    """As `at_rest`, of examples as they come: images uint8, or in [0, 1].

    `shape` is that of a batch of what the encoder takes; others are refused.
    """
    layers = as_list(augmentation)
    # Ours convert what they make, which is less than what they take.
    if not layers or not isinstance(layers[0], Augmentation):
        images = as_views(images, kinds.kind_of(layers, shape))
    views = at_rest(layers, images, sizes)
    return check_view(views, shape, _AT_REST_IN_WORDS)


def call_layer(layer, images, *, training, seed=None, sizes=None, part=None):
    """Calls a layer with those arguments that its `call` takes.

    What they are is the same everywhere, as `SimCLRModel` says: Keras refuses
    tensors and numbers in one argument.
    """
    if seed is not None:
        seed = tf.cast(seed, tf.int64)
    if sizes is not None:
        sizes = tf.cast(sizes, tf.int32)
    if part is not None:
        part = tuple(tf.cast(number, tf.int32) for number in part)
    arguments = {
        "training": training,
        "seed": seed,
        "sizes": sizes,
        "part": part,
    }
    accepted = {k: v for k, v in arguments.items() if accepts(layer, k)}
    return layer(images, **accepted)


def accepts(layer, argument):
    """Whether a layer's `call` takes an argument of that name."""
    return argument in inspect.signature(layer.call).parameters


def takes_sizes(augmentation):
    """Whether an augmentation takes images on canvases."""
    return accepts(as_list(augmentation)[0], "sizes")
