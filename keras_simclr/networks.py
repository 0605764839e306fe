"""The encoder and the projection head of the paper; encoders of others."""

import itertools
import warnings

import keras
import tensorflow as tf
from keras import layers as keras_layers

from keras_simclr import _checks, devices
from keras_simclr.architectures import ARCHITECTURES, resnet_layers


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
    layers = resnet_layers(depth, width_multiplier, stem, sk_ratio)
    x = inputs = keras.Input(input_shape, name="images")
    for layer in layers.stem:
        x = _convolution_norm_relu(x, layer)
    if stem == "imagenet":
        x = keras_layers.MaxPooling2D(3, 2, padding="same", name="stem_pool")(x)
    for block in layers.blocks:
        x = _residual_block(x, block)
    outputs = keras_layers.GlobalAveragePooling2D(name="representation")(x)
    return keras.Model(inputs, outputs, name=f"resnet{depth}")


def ConvNet1D(
    filters=(64, 128, 128), *, kernel_size=7, input_shape, name="convnet1d"
):
    """A small convolutional network over time.

    Each stage is a convolution, batch norm, a ReLU and a max-pooling that
    halves the time; the last is followed by the mean and the maximum over time
    instead.

    Args:
        filters: Channels of each stage.
        kernel_size: Steps that a convolution sees.
        input_shape: `(time, channels)`; time may be None.
        name: Name of the model.

    Returns:
        A functional `keras.Model` from windows `(batch, time, channels)` to
        representations `(batch, 2 * filters[-1])`.

    Raises:
        ValueError: If an argument is out of range, or windows are too short to
            be halved so often.

    Example:

    >>> ConvNet1D((8, 16), input_shape=(32, 6)).output_shape
    (None, 32)
    """
    for number in filters:
        _checks.integer("filters", number, minimum=1)
    _checks.integer("kernel_size", kernel_size, minimum=1)
    time = input_shape[0]
    if not filters or (time is not None and time < 2 ** (len(filters) - 1)):
        raise ValueError(
            "`filters` must hold one number for each stage, and windows be "
            "long enough to be halved after each but the last. Received: "
            f"filters={tuple(filters)}, input_shape={tuple(input_shape)}"
        )
    x = inputs = keras.Input(input_shape, name="windows")
    for stage, number in enumerate(filters, 1):
        x = keras_layers.Conv1D(
            number,
            kernel_size,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            name=f"stage{stage}_conv",
        )(x)
        x = keras_layers.BatchNormalization(
            momentum=0.9, epsilon=1e-5, name=f"stage{stage}_bn"
        )(x)
        x = keras_layers.ReLU(name=f"stage{stage}_relu")(x)
        if stage < len(filters):
            x = keras_layers.MaxPooling1D(name=f"stage{stage}_pool")(x)
    pools = (
        keras_layers.GlobalAveragePooling1D(name="mean"),
        keras_layers.GlobalMaxPooling1D(name="maximum"),
    )
    outputs = keras_layers.Concatenate(name="representation")(
        [pool(x) for pool in pools]
    )
    return keras.Model(inputs, outputs, name=name)


def MLP(units=(256, 256, 256, 256), *, input_shape, name="mlp"):
    """A network of dense layers, each with batch norm and a ReLU.

    Args:
        units: Size of each layer; the last is that of the representation.
        input_shape: `(columns,)`.
        name: Name of the model.

    Returns:
        A functional `keras.Model` from rows `(batch, columns)` to
        representations `(batch, units[-1])`.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> MLP((32, 16), input_shape=(10,)).output_shape
    (None, 16)

    References:
        - Bahri et al. 2021, arXiv:2106.15147 (SCARF), section 4.1.

    Deviation: there is no batch norm there.
    """
    if not units:
        raise ValueError(
            "`units` must hold the size of one layer at least. Received: "
            f"units={units!r}"
        )
    x = inputs = keras.Input(input_shape, name="rows")
    for layer, number in enumerate(units, 1):
        _checks.integer("units", number, minimum=1)
        x = keras_layers.Dense(
            number,
            use_bias=False,
            kernel_initializer="he_normal",
            name=f"layer{layer}_dense",
        )(x)
        x = keras_layers.BatchNormalization(
            momentum=0.9, epsilon=1e-5, name=f"layer{layer}_bn"
        )(x)
        x = keras_layers.ReLU(name=f"layer{layer}_relu")(x)
    return keras.Model(inputs, x, name=name)


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


def _residual_block(x, block):
    shortcut = x
    if block.has_shortcut:
        shortcut = _shortcut(x, block)
    *layers, last = block.layers
    for layer in layers:
        x = _convolution_norm_relu(x, layer)
        if layer.mixing:
            x = _mixed_branches(x, layer)
    x = _convolution(x, last)
    # A gamma of 0 makes every block the identity at first.
    x = _batch_norm(x, last.norm, gamma_initializer="zeros")
    x = keras_layers.Add(name=f"{block.name}_add")([shortcut, x])
    return keras_layers.ReLU(name=f"{block.name}_relu")(x)


def _shortcut(x, block):
    layer = block.shortcut
    if block.pooling:
        # ResNet-D: a 1x1 convolution with strides would leave out pixels.
        if block.pooling == 2:
            pad = keras_layers.ZeroPadding2D(
                ((0, 1), (0, 1)), name=f"{layer.name}_pad"
            )
            x = pad(x)
        x = keras_layers.AveragePooling2D(
            2,
            block.pooling,
            padding="same" if block.pooling == 1 else "valid",
            name=f"{layer.name}_pool",
        )(x)
    return _batch_norm(_convolution(x, layer), layer.norm)


def _mixed_branches(x, layer):
    """The two branches of a selective kernel, weighed by both of them."""
    name, (squeeze, mix) = layer.name, layer.mixing
    branches = keras.ops.split(x, 2, axis=-1)
    weights = keras_layers.Add(name=f"{name}_sum")(branches)
    weights = keras_layers.GlobalAveragePooling2D(
        keepdims=True, name=f"{name}_mean"
    )(weights)  # (batch, 1, 1, filters)
    weights = _convolution_norm_relu(weights, squeeze)
    weights = _convolution(weights, mix)
    shape = (2, squeeze.inputs)
    weights = keras_layers.Reshape(shape, name=f"{name}_weights")(weights)
    weights = keras_layers.Softmax(axis=1, name=f"{name}_softmax")(weights)
    shape = (1, 1, mix.outputs)
    weights = keras_layers.Reshape(shape, name=f"{name}_flat")(weights)
    x = keras_layers.Multiply(name=f"{name}_weighted")([x, weights])
    branches = keras.ops.split(x, 2, axis=-1)
    return keras_layers.Add(name=f"{name}_mixed")(branches)


def _convolution_norm_relu(x, layer):
    x = _batch_norm(_convolution(x, layer), layer.norm)
    return keras_layers.ReLU(name=f"{layer.name}_relu")(x)


def _convolution(x, layer):
    # With strides, "same" would pad by an amount that depends on the image.
    padding = "same" if layer.strides == 1 else "valid"
    if layer.strides > 1 and layer.size > 1:
        x = keras_layers.ZeroPadding2D(
            (layer.size - 1) // 2, name=f"{layer.name}_pad"
        )(x)
    return FastConv2D(
        layer.outputs,
        layer.size,
        layer.strides,
        padding=padding,
        use_bias=False,
        kernel_initializer=keras.initializers.VarianceScaling(),
        name=f"{layer.name}_conv",
    )(x)


def _batch_norm(x, norm, **kwargs):
    return FusedBatchNormalization(
        momentum=0.9, epsilon=1e-5, name=f"{norm.name}_bn", **kwargs
    )(x)


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
        # Not `layers`: of that, Keras's `summary` expects a list.
        self.depth = _checks.integer("layers", layers, minimum=0)
        _checks.choice("layers", self.depth, (0, 1, 2, 3))
        self.units = _checks.integer("units", units, minimum=1)
        if hidden_units is not None:
            _checks.integer("hidden_units", hidden_units, minimum=1)
        self.hidden_units = hidden_units
        self.stages = []

    def build(self, input_shape):
        hidden_units = self.hidden_units or input_shape[-1]
        shape = tuple(input_shape)
        for number in range(1, self.depth + 1):
            is_last = number == self.depth
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
        if self.depth == 0:
            return tuple(input_shape)
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return {
            **super().get_config(),
            "layers": self.depth,
            "units": self.units,
            "hidden_units": self.hidden_units,
        }


def check_encoder(encoder):
    """Refuses what is no network from images to representations."""
    if not isinstance(encoder, keras.Model):
        raise TypeError(
            "`encoder` must be a Keras model, for example simclr.ResNet(18). "
            f"Received: encoder={encoder!r}"
        )
    if keras.config.image_data_format() != "channels_last":
        raise ValueError(
            "Channels come last in images, and Keras must make layers for "
            "that. Before you make the encoder, do: "
            "keras.config.set_image_data_format('channels_last'). Received: "
            f"{keras.config.image_data_format()}"
        )
    if not encoder.built or not hasattr(encoder, "input_shape"):
        raise ValueError(
            "`encoder` must know its input shape: make it a functional model, "
            "or a Sequential one that starts with keras.Input(shape). "
            f"Received: encoder={encoder.name!r}"
        )
    inputs = getattr(encoder, "inputs", None)
    dtype = inputs[0].dtype if inputs else "float32"
    if len(inputs or [0]) > 1:
        raise ValueError(
            "`encoder` must take one tensor, a view of each image. Received: "
            f"{len(inputs)} inputs, of shape {encoder.input_shape}. Wrap it "
            "in a model that makes the others from the first"
        )
    if len(encoder.input_shape) == 4 and "float" not in dtype:
        raise ValueError(
            "`encoder` must take floats: views lie in [0, 1], and as integers "
            "would be 0. Begin it with keras.Input(shape) and, if it expects 0 "
            "to 255, keras.layers.Rescaling(255.0). Received: inputs of "
            f"{dtype}"
        )
    shape = encoder.output_shape
    if not isinstance(shape, tuple) or len(shape) != 2:
        cure = ""
        if isinstance(shape, tuple) and len(shape) == 4:
            cure = " Add keras.layers.GlobalAveragePooling2D() to its end."
        if not isinstance(shape, tuple):
            cure = " Take one: keras.Model(encoder.input, encoder.outputs[0])."
        raise ValueError(
            "`encoder` must return one representation per image, of shape "
            f"(batch, features). Received: output shape {shape}.{cure}"
        )


def check_projection_head(projection_head, representations):
    """Refuses a head that makes no row of each representation.

    `representations` is their shape.
    """
    try:
        shape = projection_head.compute_output_shape(representations)
    except NotImplementedError:
        return  # Users' layers need not tell.
    if not isinstance(shape, tuple) or len(shape) != 2:
        raise ValueError(
            "`projection_head` must return one projection per image, of shape "
            f"(batch, units). Received: output shape {shape} from "
            f"{projection_head.name!r}"
        )


def check_trainable(encoder, projection_head):
    """Says before training what in a model will not learn.

    Args:
        encoder: A `keras.Model`.
        projection_head: A Keras layer.

    Raises:
        ValueError: If no weight can be trained.

    Example:

    >>> encoder = ResNet(10, stem="cifar", input_shape=(8, 8, 3))
    >>> check_trainable(encoder, keras.layers.Identity())
    """
    parts = (encoder, projection_head)
    if not any(part.trainable_variables for part in parts):
        raise ValueError(
            "Something must be trainable. Received: no trainable weight in "
            "`encoder` and `projection_head`. Set model.encoder.trainable = "
            "True, and compile anew"
        )
    if encoder.variables and not encoder.trainable_variables:
        warnings.warn(
            "The encoder is frozen: only the projection head will learn, which "
            "is thrown away. Set model.encoder.trainable = True, and compile "
            "anew.",
            stacklevel=3,
        )
    if projection_head.variables and not projection_head.trainable_variables:
        warnings.warn(
            "The projection head is frozen: its weights stay as they were "
            "drawn.",
            stacklevel=3,
        )
