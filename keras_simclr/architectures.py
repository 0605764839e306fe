"""Residual networks as tables of layers: what is made, costs, and is loaded."""

import dataclasses
import functools

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


@dataclasses.dataclass(frozen=True)
class BatchNorm:
    """A batch norm.

    Attributes:
        name: Of our layer, without `_bn`.
        official: Path to it through the objects of the official code.
        channels: Channels in and out.
    """

    name: str
    official: str
    channels: int


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A convolution, and what belongs to it.

    Attributes:
        name: Of our layer, without `_conv`.
        official: Path to it through the objects of the official code.
        size: Side of the kernel.
        inputs: Channels in, for images of three.
        outputs: Channels out.
        reduction: How many times smaller than the images the outputs are, or
            None if they are a single pixel.
        strides: Of the kernel.
        norm: The `BatchNorm` after it, or None.
        mixing: If it makes the two branches of a selective kernel, the two
            `Convolution`s that weigh them; else empty.
    """

    name: str
    official: str
    size: int
    inputs: int
    outputs: int
    reduction: int | None
    strides: int = 1
    norm: BatchNorm | None = None
    mixing: tuple = ()

    def side(self, image_side):
        """Side of the outputs, given that of the images; in pixels."""
        return -(-image_side // self.reduction) if self.reduction else 1

    def cost(self, image_side):
        """Multiply-adds for an image of a side, and numbers put out."""
        numbers = self.outputs * self.side(image_side) ** 2
        return self.size**2 * self.inputs * numbers, numbers


def _layer(
    top,
    name,
    size,
    inputs,
    outputs,
    reduction,
    place,
    norm_place,
    *,
    norm=None,
    **kwargs,
):
    """A convolution and its batch norm, at two places of an official list."""
    return Convolution(
        name=name,
        official=f"{top}/{place}/conv2d",
        size=size,
        inputs=inputs,
        outputs=outputs,
        reduction=reduction,
        norm=BatchNorm(norm or name, f"{top}/{norm_place}/bn", outputs),
        **kwargs,
    )


@dataclasses.dataclass(frozen=True)
class Block:
    """A residual block.

    Attributes:
        name: Beginning of the names of its layers.
        official: Path to it through the objects of the official code.
        is_bottleneck: Whether it has three convolutions and not two.
        inputs: Channels in.
        filters: Channels of its 3x3 convolutions.
        strides: From its inputs to its outputs.
        reduction: How many times smaller than the images the outputs are.
        has_shortcut: Whether a convolution takes the place of the identity.
        sk_ratio: As in `ResNet`.
    """

    name: str
    official: str
    is_bottleneck: bool
    inputs: int
    filters: int
    strides: int
    reduction: int
    has_shortcut: bool
    sk_ratio: float

    @property
    def outputs(self):
        """Channels out."""
        return 4 * self.filters if self.is_bottleneck else self.filters

    @property
    def pooling(self):
        """Strides of the pooling before the shortcut (ResNet-D), or None."""
        return self.strides if self.has_shortcut and self.sk_ratio else None

    @property
    def shortcut(self):
        """`Convolution` beside the others, or None for the identity."""
        if not self.has_shortcut:
            return None
        kind = "projection" if self.is_bottleneck else "shortcut"
        # A pooling comes before, and a padding if it has strides.
        place = self.pooling or 0
        return _layer(
            f"{self.official}/{kind}_layers",
            f"{self.name}_shortcut",
            1,
            self.inputs,
            self.outputs,
            self.reduction,
            place,
            place + 1,
            strides=1 if self.pooling else self.strides,
        )

    @property
    def layers(self):
        """List of the other `Convolution`s, one after the other."""
        return self._bottleneck() if self.is_bottleneck else self._basic()

    def _basic(self):
        top = f"{self.official}/conv2d_bn_layers"
        layer, name = functools.partial(_layer, top), self.name
        inputs, filters, after = self.inputs, self.filters, self.reduction
        strides, last = self.strides, f"{name}_last"
        return [
            layer(
                f"{name}_1", 3, inputs, filters, after, 0, 1, strides=strides
            ),
            layer(f"{name}_2", 3, filters, filters, after, 2, 3, norm=last),
        ]

    def _bottleneck(self):
        top = f"{self.official}/conv_relu_dropblock_layers"
        layer, name = functools.partial(_layer, top), self.name
        inputs, filters, after = self.inputs, self.filters, self.reduction
        strides, end = self.strides, f"{name}_last"
        if self.sk_ratio:
            second, last = self._selective_kernel(top), (5, 6)
        else:
            second = layer(
                f"{name}_2", 3, filters, filters, after, 3, 4, strides=strides
            )
            last = 6, 7
        return [
            layer(f"{name}_1", 1, inputs, filters, after // strides, 0, 1),
            second,
            layer(f"{name}_3", 1, filters, 4 * filters, after, *last, norm=end),
        ]

    def _selective_kernel(self, top):
        name, filters = f"{self.name}_2", self.filters
        units = max(int(filters * self.sk_ratio), _FEWEST_MIXING_UNITS)
        squeeze = Convolution(
            name=f"{name}_squeeze",
            official=f"{top}/3/conv2d_0",
            size=1,
            inputs=filters,
            outputs=units,
            reduction=None,
            norm=BatchNorm(
                f"{name}_squeeze", f"{top}/3/batch_norm_relu_1/bn", units
            ),
        )
        mix = Convolution(
            name=f"{name}_mix",
            official=f"{top}/3/conv2d_1",
            size=1,
            inputs=units,
            outputs=2 * filters,
            reduction=None,
        )
        return _layer(
            top,
            name,
            3,
            filters,
            2 * filters,
            self.reduction,
            "3/conv2d_fixed_padding",
            "3/batch_norm_relu",
            strides=self.strides,
            mixing=(squeeze, mix),
        )


@dataclasses.dataclass(frozen=True)
class ResNetLayers:
    """Result of `resnet_layers`.

    Attributes:
        stem: List of `Convolution`s.
        blocks: List of `Block`s.
    """

    stem: list
    blocks: list

    def convolutions(self):
        """Yields every `Convolution`, in the order in which they are made."""
        yield from self.stem
        for block in self.blocks:
            if block.has_shortcut:
                yield block.shortcut
            for layer in block.layers:
                yield layer
                yield from layer.mixing


def resnet_layers(depth, width_multiplier, stem, sk_ratio=0.0):
    """The layers of a `ResNet`, without making it.

    Args:
        depth: As in `ResNet`.
        width_multiplier: The same.
        stem: The same.
        sk_ratio: The same.

    Returns:
        `ResNetLayers`.

    Example:

    >>> layer = next(resnet_layers(50, 1, "imagenet").convolutions())
    >>> layer.name, layer.size, layer.inputs, layer.outputs, layer.side(224)
    ('stem', 7, 3, 64, 112)
    """
    groups, is_bottleneck = ARCHITECTURES[depth]
    width = channels = max(1, round(64 * width_multiplier))
    blocks = []
    for group, count in enumerate(groups):
        for number in range(count):
            block = Block(
                name=f"group{group + 1}_block{number + 1}",
                official=f"resnet_model/block_groups/{group}/layers/{number}",
                is_bottleneck=is_bottleneck,
                inputs=channels,
                filters=width * 2**group,
                strides=2 if group > 0 and number == 0 else 1,
                reduction=2**group * (4 if stem == "imagenet" else 1),
                has_shortcut=number == 0,
                sk_ratio=sk_ratio,
            )
            blocks.append(block)
            channels = block.outputs
    return ResNetLayers(_stem_layers(width, stem, sk_ratio), blocks)


def _stem_layers(width, stem, sk_ratio):
    top = "resnet_model/initial_conv_relu_max_pool"
    layer = functools.partial(_layer, top)
    if stem == "cifar":
        return [layer("stem", 3, 3, width, 1, 0, 2)]
    if not sk_ratio:
        return [layer("stem", 7, 3, width, 2, 0, 2, strides=2)]
    half = max(1, width // 2)
    return [
        layer("stem_1", 3, 3, half, 2, 0, 1, strides=2),
        layer("stem_2", 3, half, half, 2, 2, 3),
        layer("stem", 3, half, width, 2, 4, 6),
    ]
