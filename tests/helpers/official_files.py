"""Files as the official code writes them, with random weights, and outputs.

`Network` runs the official network in float64, from its description in
google-research/simclr@383d414, tf2/resnet.py and tf2/model.py, and draws each
variable where it is first used. It remembers three names for each: its place
among the objects of the TF2 code, its name in TF2 and its name in TF1.
"""

import numpy as np
import tensorflow as tf

SK_RATIO = 0.0625
BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
}


class Network:
    """Official network of random weights.

    `images` have been run through it; outputs are `representation`,
    `projection`, `logits` and `hiddens`, those that a classifier may sit on.
    `first` is the number that the process gave to the first of each kind of
    layer, as after another model was made in it.
    """

    def __init__(
        self,
        depth,
        images,
        *,
        sk=False,
        stem="imagenet",
        head_layers=3,
        classes=None,
        on_layer=0,
        first=0,
    ):
        self.rng = np.random.default_rng(depth)
        self.variables = []  # (place, TF2 name, TF1 name, value)
        self.first = first
        self.counts = {"conv2d": first, "conv2d_fixed_padding": first}
        self.counts |= {"batch_normalization": first, "dense": first}
        self.tf1_counts = dict.fromkeys(self.counts, 0)
        self.sk = sk
        self.is_bottleneck = depth >= 50
        x = self._stem(tf.constant(images, tf.float64), stem)
        count = 0
        for group, blocks in enumerate(BLOCKS[depth]):
            for block in range(blocks):
                kind = "bottleneck" if self.is_bottleneck else "residual"
                scope = f"block_group{group + 1}/{kind}_block{_suffix(count)}"
                place = f"block_groups/{group}/layers/{block}"
                strides = 2 if group > 0 and block == 0 else 1
                filters = 64 * 2**group
                x = self._block(x, place, scope, filters, strides, block == 0)
                count += 1
        self.representation = tf.reduce_mean(x, (1, 2))
        self.hiddens = [self.representation]
        for number in range(head_layers):
            is_last = number == head_layers - 1
            self.hiddens.append(self._head(number, is_last))
        self.projection = self.hiddens[-1] if head_layers else None
        if classes is not None:
            self.logits = self._classify(self.hiddens[on_layer], classes)

    def _draw(self, place, tf2, tf1, shape, reach, middle=0.0):
        """A new variable, uniform in `middle` plus or minus `reach`."""
        value = self.rng.uniform(middle - reach, middle + reach, shape)
        value = value.astype("float32")
        self.variables.append((place, tf2.replace("//", "/"), tf1, value))
        return tf.constant(value, tf.float64)

    def _count(self, kind):
        """The suffixes of a new layer in TF2 and in TF1."""
        suffixes = (
            _suffix(self.counts[kind]),
            _suffix(self.tf1_counts[kind]),
        )
        self.counts[kind] += 1
        self.tf1_counts[kind] += 1
        return suffixes

    def _kernel(self, x, place, scope, filters, size):
        tf2, tf1 = self._count("conv2d")
        shape = (size, size, x.shape[-1], filters)
        return self._draw(
            f"resnet_model/{place}/kernel",
            f"resnet/{scope}/conv2d{tf2}/kernel",
            f"base_model/conv2d{tf1}/kernel",
            shape,
            _reach(np.prod(shape[:3])),
        )

    def _convolve(self, x, place, scope, filters, size, strides=1):
        tf2, _ = self._count("conv2d_fixed_padding")
        scope = f"{scope}/conv2d_fixed_padding{tf2}"
        kernel = self._kernel(x, f"{place}/conv2d", scope, filters, size)
        if strides == 1:
            return tf.nn.conv2d(x, kernel, 1, "SAME")
        before = (size - 1) // 2
        pad = (before, size - 1 - before)
        x = tf.pad(x, ((0, 0), pad, pad, (0, 0)))
        return tf.nn.conv2d(x, kernel, strides, "VALID")

    def _norm(self, x, place, scope, tf1_scope="base_model", relu=True, beta=1):
        count, tf1 = self._count("batch_normalization")
        scope = (
            f"{scope}/batch_norm_relu{count}/sync_batch_normalization{count}"
        )
        tf1_scope = f"{tf1_scope}/batch_normalization{tf1}"
        values = {"beta": 0.0}
        for name in ("gamma", "beta", "moving_mean", "moving_variance"):
            if name != "beta" or beta:
                is_scale = name in ("gamma", "moving_variance")
                values[name] = self._draw(
                    f"{place}/bn/{name}",
                    f"{scope}/{name}",
                    f"{tf1_scope}/{name}",
                    x.shape[-1:],
                    reach=0.5 if is_scale else 0.1,
                    middle=1.0 if is_scale else 0.0,
                )
        x = (x - values["moving_mean"]) / tf.sqrt(
            values["moving_variance"] + 1e-5
        )
        x = x * values["gamma"] + values["beta"]
        return tf.nn.relu(x) if relu else x

    def _norm_in(self, x, place, scope, relu=True):
        return self._norm(x, f"resnet_model/{place}", scope, relu=relu)

    def _stem(self, x, stem):
        top = "initial_conv_relu_max_pool"
        if stem == "cifar":
            x = self._convolve(x, f"{top}/0", "", 64, 3)
            return self._norm_in(x, f"{top}/2", "resnet")
        if self.sk:
            x = self._convolve(x, f"{top}/0", "", 32, 3, 2)
            x = self._norm_in(x, f"{top}/1", "resnet")
            x = self._convolve(x, f"{top}/2", "", 32, 3)
            x = self._norm_in(x, f"{top}/3", "resnet")
            x = self._convolve(x, f"{top}/4", "", 64, 3)
            x = self._norm_in(x, f"{top}/6", "resnet")
        else:
            x = self._convolve(x, f"{top}/0", "", 64, 7, 2)
            x = self._norm_in(x, f"{top}/2", "resnet")
        return tf.nn.max_pool2d(x, 3, 2, "SAME")

    def _block(self, x, place, scope, filters, strides, project):
        shortcut = x
        outputs = 4 * filters if self.is_bottleneck else filters
        if project:
            kind = "projection" if self.is_bottleneck else "shortcut"
            at, steps = 0, strides
            if self.sk:
                if strides == 2:
                    pad = (0, 1)
                    shortcut = tf.pad(shortcut, ((0, 0), pad, pad, (0, 0)))
                    at = 1
                padding = "SAME" if strides == 1 else "VALID"
                shortcut = tf.nn.avg_pool2d(shortcut, 2, strides, padding)
                at, steps = at + 1, 1
            top = f"{place}/{kind}_layers"
            shortcut = self._convolve(
                shortcut, f"{top}/{at}", scope, outputs, 1, steps
            )
            shortcut = self._norm_in(
                shortcut, f"{top}/{at + 1}", f"resnet/{scope}", relu=False
            )
        run = self._bottleneck if self.is_bottleneck else self._basic
        return tf.nn.relu(shortcut + run(x, place, scope, filters, strides))

    def _basic(self, x, place, scope, filters, strides):
        top, scope_2 = f"{place}/conv2d_bn_layers", f"resnet/{scope}"
        x = self._convolve(x, f"{top}/0", scope, filters, 3, strides)
        x = self._norm_in(x, f"{top}/1", scope_2)
        x = self._convolve(x, f"{top}/2", scope, filters, 3)
        return self._norm_in(x, f"{top}/3", scope_2, relu=False)

    def _bottleneck(self, x, place, scope, filters, strides):
        top, scope_2 = f"{place}/conv_relu_dropblock_layers", f"resnet/{scope}"
        x = self._convolve(x, f"{top}/0", scope, filters, 1)
        x = self._norm_in(x, f"{top}/1", scope_2)
        if self.sk:
            x = self._selective(x, f"{top}/3", scope, filters, strides)
        else:
            x = self._convolve(x, f"{top}/3", scope, filters, 3, strides)
            x = self._norm_in(x, f"{top}/4", scope_2)
        last = 5 if self.sk else 6
        x = self._convolve(x, f"{top}/{last}", scope, 4 * filters, 1)
        return self._norm_in(x, f"{top}/{last + 1}", scope_2, relu=False)

    def _selective(self, x, place, scope, filters, strides):
        scope = f"{scope}/sk__conv2d"
        x = self._convolve(
            x, f"{place}/conv2d_fixed_padding", scope, 2 * filters, 3, strides
        )
        x = self._norm_in(x, f"{place}/batch_norm_relu", f"resnet/{scope}")
        first, second = x[..., :filters], x[..., filters:]
        means = tf.reduce_mean(first + second, (1, 2), keepdims=True)
        units = max(int(filters * SK_RATIO), 32)
        kernel = self._kernel(means, f"{place}/conv2d_0", scope, units, 1)
        means = tf.nn.conv2d(means, kernel, 1, "VALID")
        means = self._norm_in(
            means, f"{place}/batch_norm_relu_1", f"resnet/{scope}"
        )
        kernel = self._kernel(means, f"{place}/conv2d_1", scope, 2 * filters, 1)
        means = tf.nn.conv2d(means, kernel, 1, "VALID")
        share = tf.sigmoid(means[..., :filters] - means[..., filters:])
        return share * first + (1.0 - share) * second

    def _head(self, number, is_last):
        x = self.hiddens[-1]
        units = 128 if is_last else x.shape[-1]
        place = f"_projection_head/linear_layers/{number}"
        tf2, _ = self._count("dense")
        kernel = self._draw(
            f"{place}/dense/kernel",
            f"projection_head/nl_{number}/dense{tf2}/kernel",
            f"head_contrastive/nl_{number}/dense/kernel",
            (x.shape[-1], units),
            _reach(x.shape[-1]),
        )
        self.tf1_counts["batch_normalization"] = 0  # Each has a scope.
        return self._norm(
            x @ kernel,
            f"{place}/bn_relu",
            f"projection_head/nl_{number}",
            f"head_contrastive/nl_{number}",
            relu=not is_last,
            beta=not is_last,
        )

    def _classify(self, x, classes):
        tf2, _ = self._count("dense")
        kernel, bias = (
            self._draw(
                f"supervised_head/linear_layer/dense/{name}",
                f"head_supervised/linear_layer/dense{tf2}/{name}",
                f"head_supervised/linear_layer/dense/{name}",
                shape,
                _reach(x.shape[-1]),
            )
            for name, shape in (
                ("kernel", (x.shape[-1], classes)),
                ("bias", (classes,)),
            )
        )
        return x @ kernel + bias


def _reach(inputs):
    """Of kernels whose outputs vary as their inputs do."""
    return (3.0 / inputs) ** 0.5


def _suffix(number):
    return f"_{number}" if number else ""


def write_saved_model(
    network, path, *, has_structure=True, extra=(), on_layer=None
):
    """Writes what `build_saved_model` does.

    Its function is there if the classifier's layer is given, and does and names
    what the official one does between the encoder and the classifier. Lists of
    the variables come before the objects, as in Keras 2, so that the keys in
    the file say nothing. `extra` holds further variables, as (place, name)
    pairs.
    """
    root = tf.Module()
    root.model = tf.Module()
    variables = _objects(network, root.model, has_structure)
    root.trainable_variables_list = []
    root.model.listed = variables
    for place, name in extra:
        _put(root.model, place, tf.Variable([1.0, 2.0], name=name))
    if on_layer is not None:
        root.__call__ = _function(on_layer)
        for trainable in (False, True):
            images = tf.TensorSpec((None, None, None, 3), tf.float32)
            root.__call__.get_concrete_function(images, trainable)
    tf.saved_model.save(root, str(path))


def _function(on_layer, layers=3, size=4):
    square = tf.ones((size, size))

    @tf.function(autograph=False)
    def call(inputs, trainable):
        with tf.name_scope("resnet"):
            x = tf.nn.conv2d(inputs, tf.ones((1, 1, 3, size)), 1, "SAME")
            x = tf.reduce_mean(x, (1, 2), name="final_avg_pool")
        hiddens = [x]
        for number in range(layers):
            with tf.name_scope(f"projection_head/nl_{number}/dense/"):
                x = tf.matmul(hiddens[-1], square, name="MatMul")
            if number < layers - 1:
                with tf.name_scope("projection_head/"):
                    x = tf.nn.relu(x, name=f"Relu{_suffix(number)}")
            hiddens.append(x)
        x = hiddens[on_layer]
        if trainable:
            x = tf.stop_gradient(x)
        with tf.name_scope("head_supervised/linear_layer/dense_3/"):
            logits = tf.matmul(x, square, name="MatMul")
        return {"logits_sup": logits, "proj_head_output": hiddens[-1]}

    return call


def write_checkpoint(network, path):
    """Writes `ckpt-1` with momentum and counters, as `try_restore` reads."""
    model = tf.Module()
    variables = _objects(network, model, has_structure=True)
    optimizer = tf.train.Checkpoint(
        learning_rate=tf.Variable(0.1),
        momentum=[tf.Variable(v) for v in variables[:3]],
    )
    checkpoint = tf.train.Checkpoint(
        model=model, optimizer=optimizer, global_step=tf.Variable(7)
    )
    return checkpoint.save(str(path / "ckpt"))


def _objects(network, model, has_structure):
    variables = []
    for place, name, _, value in network.variables:
        variable = tf.Variable(value, name=name)
        variables.append(variable)
        if has_structure:
            _put(model, place, variable)
    return variables


def _put(node, place, variable):
    *parents, name = place.split("/")
    for parent in parents:
        if not hasattr(node, parent):
            setattr(node, parent, tf.Module())
        node = getattr(node, parent)
    setattr(node, name, variable)


def write_tf1(network, prefix, *, has_ema=False, left_out=(), extra=()):
    """Writes a TF1 checkpoint with slots and a counter."""
    tensors = {
        name: value
        for *_, name, value in network.variables
        if name not in left_out
    }
    for name in list(tensors):
        if name.endswith(("kernel", "gamma", "beta")):
            tensors[f"{name}/Momentum"] = np.zeros(1, "float32")
        if has_ema:
            tensors[f"ema_model/{name}"] = np.zeros(1, "float32")
    tensors["global_step"] = np.array(250228, "int64")
    for name in extra:
        tensors[name] = np.zeros(2, "float32")
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(value) for value in tensors.values()],
    )
