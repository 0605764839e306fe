import keras
import pytest

import keras_simclr as simclr
from keras_simclr import architectures


@pytest.mark.parametrize(
    ("depth", "stem", "side", "sk_ratio"),
    [
        (10, "cifar", 9, 0.0),
        (50, "imagenet", 50, 0.0),
        (10, "imagenet", 50, 0.25),
        (50, "imagenet", 50, 0.25),
    ],
)
def test_convolutions_are_those_of_the_network(depth, stem, side, sk_ratio):
    network = simclr.ResNet(
        depth,
        width_multiplier=0.25,
        sk_ratio=sk_ratio,
        stem=stem,
        input_shape=(side, side, 3),
    )
    expected = [
        (*layer.kernel.shape[1:], layer.output.shape[1])
        for layer in network.layers
        if isinstance(layer, keras.layers.Conv2D)
    ]
    layers = architectures.resnet_layers(depth, 0.25, stem, sk_ratio)
    found = [
        (layer.size, layer.inputs, layer.outputs, layer.side(side))
        for layer in layers.convolutions()
    ]
    assert sorted(found) == sorted(expected)
