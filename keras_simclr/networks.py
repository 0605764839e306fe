"""The encoder and the projection head of the paper."""

import itertools

import keras
import tensorflow as tf
from keras import layers as keras_layers

from keras_simclr import _checks, devices

# Depth: (blocks per group, whether the blocks are bottlenecks).
ARCHITECTURES = {
    10: ((1, 1, 1, 1), False),
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
    200: ((3, 24, 36, 3), True),
}
_FEWEST_MIXING_UNITS = 32  # Of a selective kernel.


def ResNet(
    depth=50,
    *,
    width_multiplier=1,
    sk_ratio=0.0,
    stem="imagenet",
    input_shape=(224, 224, 3),
):
    """Residual network without a classifier, numerically the official one.

    Args:
        depth: 18, 34, 50, 101, 152 or 200, or 10 for small machines.
        width_multiplier: Positive number; every layer has this many times the
            usual channels.
        sk_ratio: Number from 0 to 1. Above 0 bottlenecks have selective
            kernels, whose mixing layer has this share of the channels, but at
            least 32; and stem and shortcuts are those of ResNet-D. SimCLRv2
            uses 0.0625.
        stem: `"imagenet"`: a 7x7 convolution (three 3x3 ones with `sk_ratio`)
            and a max-pooling, each halving the resolution; `"cifar"`: a 3x3
            convolution at full resolution, for images up to about 64 pixels.
        input_shape: `(height, width, channels)`; height and width may be None.

    Returns:
        A functional `keras.Model` from images
        `(batch, height, width, channels)`, float in [0, 1], to
        representations `(batch, features)`; `features` is `512 *
        width_multiplier` up to depth 34 and `2048 * width_multiplier` above.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> encoder = ResNet(18, stem="cifar", input_shape=(32, 32, 3))
    >>> encoder.output_shape
    (None, 512)

    References:
        - He et al. 2015, arXiv:1512.03385.
        - He et al. 2018, arXiv:1812.01187 (ResNet-D).
        - Li et al. 2019, arXiv:1903.06586 (selective kernels).
        - google-research/simclr@383d414, tf2/resnet.py.

    Deviation: depth 10 has one basic block in each group; the official code
        has no network that small. Both branches of a selective kernel are 3x3
        without dilation, as in the official code and not as in its paper.
    """
    depth = _checks.integer("depth", depth, minimum=1)
    _checks.choice("depth", depth, tuple(ARCHITECTURES))
    _checks.positive_number("width_multiplier", width_multiplier)
    rule = "a number from 0 to 1"
    _checks.real_number("sk_ratio", sk_ratio, low=0, high=1, rule=rule)
    _checks.choice("stem", stem, ("imagenet", "cifar"))
    groups, is_bottleneck = ARCHITECTURES[depth]
    width = max(1, round(64 * width_multiplier))
    block = _bottleneck_block if is_bottleneck else _basic_block
    inputs = keras.Input(input_shape, name="images")
    x = inputs
    if stem == "cifar":
        x = _convolution(x, width, 3, name="stem")
    elif sk_ratio:
        for number, strides in ((1, 2), (2, 1)):
            name = f"stem_{number}"
            half = max(1, width // 2)
            x = _convolution(x, half, 3, strides=strides, name=name)
            x = _batch_norm_relu(x, name=name)
        x = _convolution(x, width, 3, name="stem")
    else:
        x = _convolution(x, width, 7, strides=2, name="stem")
    x = _batch_norm_relu(x, name="stem")
    if stem == "imagenet":
        x = keras_layers.MaxPooling2D(3, 2, padding="same", name="stem_pool")(x)
    for group, blocks in enumerate(groups):
        for place in range(blocks):
            x = block(
                x,
                width * 2**group,
                strides=2 if group > 0 and place == 0 else 1,
                project=place == 0,
                sk_ratio=sk_ratio,
                name=f"group{group + 1}_block{place + 1}",
            )
    outputs = keras_layers.GlobalAveragePooling2D(name="representation")(x)
    return keras.Model(inputs, outputs, name=f"resnet{depth}")


def stem_for(side):
    """The stem that suits images of a size.

    Args:
        side: Longer side of the images, pixels.

    Returns:
        `"cifar"` up to 32 pixels, else `"imagenet"`.

    Example:

    >>> stem_for(32), stem_for(64)
    ('cifar', 'imagenet')
    """
    return "cifar" if side <= 32 else "imagenet"


def convolutions(depth, width_multiplier, stem, side, sk_ratio=0.0):
    """The convolutions of a ResNet, without making it.

    A block's shortcut comes first, as in the official code.

    Args:
        depth: As in `ResNet`.
        width_multiplier: The same.
        stem: The same.
        side: Height and width of the images, pixels.
        sk_ratio: As in `ResNet`.

    Yields:
        Tuples of four: side of the kernel, channels in and out, and side of
        the output.

    Example:

    >>> next(convolutions(50, 1, "imagenet", 224))
    (7, 3, 64, 112)
    """
    groups, is_bottleneck = ARCHITECTURES[depth]
    width = channels = max(1, round(64 * width_multiplier))
    if stem == "cifar":
        yield 3, 3, width, side
    else:
        side = -(-side // 2)
        if sk_ratio:
            half = max(1, width // 2)
            yield 3, 3, half, side
            yield 3, half, half, side
            yield 3, half, width, side
        else:
            yield 7, 3, width, side
        side = -(-side // 2)
    for group, blocks in enumerate(groups):
        filters = width * 2**group
        for place in range(blocks):
            before = side
            if group > 0 and place == 0:
                side = -(-side // 2)
            outputs = 4 * filters if is_bottleneck else filters
            if place == 0:
                yield 1, channels, outputs, side
            if is_bottleneck:
                yield 1, channels, filters, before
                if sk_ratio:
                    units = _mixing_units(filters, sk_ratio)
                    yield 3, filters, 2 * filters, side
                    yield 1, filters, units, 1
                    yield 1, units, 2 * filters, 1
                else:
                    yield 3, filters, filters, side
                yield 1, filters, outputs, side
            else:
                yield 3, channels, filters, side
                yield 3, filters, filters, side
            channels = outputs


def _mixing_units(filters, sk_ratio):
    return max(int(filters * sk_ratio), _FEWEST_MIXING_UNITS)


def _basic_block(x, filters, *, strides, project, sk_ratio, name):
    shortcut = x
    if project:
        shortcut = _shortcut(x, filters, strides, sk_ratio, name)
    x = _convolution(x, filters, 3, strides=strides, name=f"{name}_1")
    x = _batch_norm_relu(x, name=f"{name}_1")
    x = _convolution(x, filters, 3, name=f"{name}_2")
    return _add_to_shortcut(shortcut, x, name=name)


def _bottleneck_block(x, filters, *, strides, project, sk_ratio, name):
    shortcut = x
    if project:
        shortcut = _shortcut(x, 4 * filters, strides, sk_ratio, name)
    x = _convolution(x, filters, 1, name=f"{name}_1")
    x = _batch_norm_relu(x, name=f"{name}_1")
    if sk_ratio:
        units = _mixing_units(filters, sk_ratio)
        x = _selective_kernel(x, filters, units, strides, name=f"{name}_2")
    else:
        x = _convolution(x, filters, 3, strides=strides, name=f"{name}_2")
        x = _batch_norm_relu(x, name=f"{name}_2")
    x = _convolution(x, 4 * filters, 1, name=f"{name}_3")
    return _add_to_shortcut(shortcut, x, name=name)


def _shortcut(x, filters, strides, sk_ratio, name):
    name = f"{name}_shortcut"
    if sk_ratio:
        # ResNet-D: a 1x1 convolution with strides would leave out pixels.
        if strides == 2:
            pad = keras_layers.ZeroPadding2D(
                ((0, 1), (0, 1)), name=f"{name}_pad"
            )
            x = pad(x)
        padding = "same" if strides == 1 else "valid"
        x = keras_layers.AveragePooling2D(
            2, strides, padding=padding, name=f"{name}_pool"
        )(x)
        strides = 1
    x = _convolution(x, filters, 1, strides=strides, name=name)
    return _batch_norm(x, name=name)


def _selective_kernel(x, filters, units, strides, *, name):
    """Two convolutions, mixed with weights that depend on both."""
    x = _convolution(x, 2 * filters, 3, strides=strides, name=name)
    x = _batch_norm_relu(x, name=name)
    branches = keras.ops.split(x, 2, axis=-1)
    weights = keras_layers.Add(name=f"{name}_sum")(branches)
    weights = keras_layers.GlobalAveragePooling2D(
        keepdims=True, name=f"{name}_mean"
    )(weights)  # (batch, 1, 1, filters)
    weights = _convolution(weights, units, 1, name=f"{name}_squeeze")
    weights = _batch_norm_relu(weights, name=f"{name}_squeeze")
    weights = _convolution(weights, 2 * filters, 1, name=f"{name}_mix")
    weights = keras_layers.Reshape((2, filters), name=f"{name}_weights")(
        weights
    )
    weights = keras_layers.Softmax(axis=1, name=f"{name}_softmax")(weights)
    weights = keras_layers.Reshape((1, 1, 2 * filters), name=f"{name}_flat")(
        weights
    )
    x = keras_layers.Multiply(name=f"{name}_weighted")([x, weights])
    branches = keras.ops.split(x, 2, axis=-1)
    return keras_layers.Add(name=f"{name}_mixed")(branches)


def _add_to_shortcut(shortcut, x, *, name):
    # A gamma of 0 makes every block the identity at first.
    x = _batch_norm(x, gamma_initializer="zeros", name=f"{name}_last")
    x = keras_layers.Add(name=f"{name}_add")([shortcut, x])
    return keras_layers.ReLU(name=f"{name}_relu")(x)


def _convolution(x, filters, size, *, strides=1, name):
    # With strides, "same" would pad by an amount that depends on the image.
    padding = "same" if strides == 1 else "valid"
    if strides > 1 and size > 1:
        x = keras_layers.ZeroPadding2D((size - 1) // 2, name=f"{name}_pad")(x)
    return FastConv2D(
        filters,
        size,
        strides,
        padding=padding,
        use_bias=False,
        kernel_initializer=keras.initializers.VarianceScaling(),
        name=f"{name}_conv",
    )(x)


def _batch_norm(x, *, name, **kwargs):
    return FusedBatchNormalization(
        momentum=0.9, epsilon=1e-5, name=f"{name}_bn", **kwargs
    )(x)


def _batch_norm_relu(x, *, name):
    return keras_layers.ReLU(name=f"{name}_relu")(_batch_norm(x, name=name))


@keras.saving.register_keras_serializable(package="keras_simclr")
class FastConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D`, faster in training in bfloat16 on a CPU.

    Same arguments, same numbers: only the kernel's gradient is computed in
    another way where that is faster, as one matrix product for each place of
    the kernel. TensorFlow's own takes up to six times as long on small images
    with many channels. An exported encoder holds the plain Keras layer instead.

    Example:

    >>> layer = FastConv2D(4, 3, padding="same")
    >>> layer(keras.ops.ones((2, 8, 8, 3))).shape
    TensorShape([2, 8, 8, 4])
    """

    def convolution_op(self, inputs, kernel):
        sides = inputs.shape[1:3]
        is_plain = (
            inputs.dtype == "bfloat16"
            and self.padding in ("same", "valid")
            and self.data_format == "channels_last"
            and self.strides == self.dilation_rate == (1, 1)
            and self.groups == 1
            and None not in sides
        )
        # Measured at 4 to 56 pixels a side, 32 to 2,048 channels.
        is_faster = is_plain and (
            self.kernel_size == (1, 1) or 16 * max(sides) <= self.filters
        )
        if not is_faster or not devices.only_cpus():
            return super().convolution_op(inputs, kernel)
        return _convolve(inputs, tf.convert_to_tensor(kernel), self.padding)


def _convolve(inputs, kernel, padding):
    """Convolution whose kernel gradient is made of matrix products."""
    options = {"strides": [1, 1, 1, 1], "padding": padding.upper()}

    @tf.custom_gradient
    def convolve(inputs, kernel):
        def gradient(upstream):
            by_inputs = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(inputs),
                filter=kernel,
                out_backprop=upstream,
                **options,
            )
            return by_inputs, kernel_gradient(inputs, upstream)

        return tf.nn.conv2d(inputs, kernel, **options), gradient

    def kernel_gradient(inputs, upstream):
        height, width, channels, filters = kernel.shape
        if padding == "same":
            rows, columns = (
                ((size - 1) // 2, size // 2) for size in (height, width)
            )
            inputs = tf.pad(inputs, ((0, 0), rows, columns, (0, 0)))
        _, rows, columns, _ = tf.unstack(tf.shape(upstream))
        upstream = tf.reshape(upstream, (-1, filters))
        products = []
        for y, x in itertools.product(range(height), range(width)):
            seen = inputs[:, y : y + rows, x : x + columns]
            seen = tf.reshape(seen, (-1, channels))
            products.append(tf.matmul(seen, upstream, transpose_a=True))
        return tf.reshape(tf.concat(products, axis=0), kernel.shape)

    return convolve(inputs, kernel)


@keras.saving.register_keras_serializable(package="keras_simclr")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization`, faster in training on TensorFlow.

    Same arguments, same numbers: only batches of images in training go
    through TensorFlow's fused kernel. An exported encoder holds the plain
    Keras layer instead.

    Example:

    >>> layer = FusedBatchNormalization()
    >>> layer(keras.ops.ones((2, 4, 4, 3)), training=True).shape
    TensorShape([2, 4, 4, 3])

    References:
        - Ioffe & Szegedy 2015, arXiv:1502.03167.
    """

    def call(self, inputs, training=None, mask=None):
        is_ours = (
            training
            and self.trainable
            and mask is None
            and not getattr(self, "renorm", False)
            and (self.center and self.scale)
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and inputs.dtype in ("float32", "bfloat16", "float16")
        )
        if not is_ours:
            return super().call(inputs, training=training, mask=mask)
        normalize = self._synchronized if self.synchronized else self._fused
        outputs, *moments = normalize(inputs)
        averages = self.moving_mean, self.moving_variance
        for average, value in zip(averages, moments, strict=True):
            value = tf.cast(value, average.dtype)
            average.assign(
                self.momentum * average + (1.0 - self.momentum) * value
            )
        return outputs

    def _fused(self, inputs):
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.cast(self.gamma, tf.float32),
            offset=tf.cast(self.beta, tf.float32),
            mean=tf.zeros([0]),
            variance=tf.zeros([0]),
            epsilon=self.epsilon,
            is_training=True,
        )
        # The kernel divides by n - 1; Keras's moving average divides by n.
        count = tf.cast(tf.reduce_prod(tf.shape(inputs)[:3]), tf.float32)
        return outputs, mean, variance * (count - 1.0) / count

    def _synchronized(self, inputs):
        # In two passes: the mean of squares less the square of the mean, as
        # Keras has it, loses more digits than the kernel does.
        images = tf.cast(inputs, tf.float32)
        mean = _mean_of_replicas(images)
        variance = _mean_of_replicas(tf.square(images - mean))
        outputs = tf.nn.batch_normalization(
            images, mean, variance, self.beta, self.gamma, self.epsilon
        )
        return tf.cast(outputs, inputs.dtype), mean, variance


def _mean_of_replicas(images):
    replica = tf.distribute.get_replica_context()
    mean = tf.reduce_mean(images, axis=(0, 1, 2))
    return replica.all_reduce(tf.distribute.ReduceOp.MEAN, mean)


@keras.saving.register_keras_serializable(package="keras_simclr")
class ProjectionHead(keras.layers.Layer):
    """Network from the representation h to the projection z of the loss.

    Every layer is linear without bias, followed by batch norm; all but the
    last by a ReLU too. It is thrown away after training.

    Args:
        layers: Number of layers, 0 to 3. 0: the representation itself;
            1: a linear head; 2: SimCLR; 3: SimCLRv2.
        units: Size of z.
        hidden_units: Size of the layers before the last, or None for the size
            of h.
        **kwargs: Standard `keras.layers.Layer` arguments (`name`, `dtype`).

    Attributes:
        stages: The layers as a list of `keras.Sequential`, once built.
            SimCLRv2 fine-tunes from an output between them.

    Input shape:
        `(batch, features)`.

    Output shape:
        `(batch, units)`, or that of the input without layers.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> head = ProjectionHead(units=64)
    >>> head(keras.ops.ones((4, 512))).shape
    TensorShape([4, 64])
    >>> len(head.stages)
    2

    References:
        - Chen et al. 2020, arXiv:2002.05709, section 4.2.
        - google-research/simclr@383d414, tf2/model.py:157-213.
    """

    def __init__(self, layers=2, *, units=128, hidden_units=None, **kwargs):
        super().__init__(**kwargs)
        self.layers = _checks.integer("layers", layers, minimum=0)
        _checks.choice("layers", self.layers, (0, 1, 2, 3))
        self.units = _checks.integer("units", units, minimum=1)
        if hidden_units is not None:
            _checks.integer("hidden_units", hidden_units, minimum=1)
        self.hidden_units = hidden_units
        self.stages = []

    def build(self, input_shape):
        hidden_units = self.hidden_units or input_shape[-1]
        shape = tuple(input_shape)
        for number in range(1, self.layers + 1):
            is_last = number == self.layers
            stage = keras.Sequential(name=f"stage{number}")
            stage.add(
                keras_layers.Dense(
                    self.units if is_last else hidden_units,
                    use_bias=False,
                    kernel_initializer=keras.initializers.RandomNormal(
                        stddev=0.01
                    ),
                    dtype=self.dtype_policy,
                )
            )
            stage.add(
                keras_layers.BatchNormalization(
                    momentum=0.9,
                    epsilon=1e-5,
                    center=not is_last,
                    dtype=self.dtype_policy,
                )
            )
            if not is_last:
                stage.add(keras_layers.ReLU(dtype=self.dtype_policy))
            stage.build(shape)
            shape = stage.output_shape
            self.stages.append(stage)
        self.built = True

    def call(self, representations, training=False):
        for stage in self.stages:
            representations = stage(representations, training=training)
        return representations

    def compute_output_shape(self, input_shape):
        if self.layers == 0:
            return tuple(input_shape)
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return {
            **super().get_config(),
            "layers": self.layers,
            "units": self.units,
            "hidden_units": self.hidden_units,
        }
