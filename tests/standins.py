"""Small stand-ins for what takes long to compile."""

import keras

import keras_simclr as simclr


def use(patch):
    """Replaces ResNets and the paper's recipe for programs that take both.

    Arguments still have to be right: the real ones are made with them, too.
    """
    resnet, recipe = simclr.ResNet, simclr.SimCLRAugmentation

    def small_resnet(*args, **kwargs):
        return keras.Sequential(
            [
                keras.Input(resnet(*args, **kwargs).input_shape[1:]),
                keras.layers.Conv2D(4, 3),
                keras.layers.BatchNormalization(),
                keras.layers.GlobalAveragePooling2D(),
            ]
        )

    def small_recipe(*args, **kwargs):
        return simclr.RandomFlip(name=recipe(*args, **kwargs).name)

    patch.setattr(simclr, "ResNet", small_resnet)
    for place in ("keras_simclr", "keras_simclr.model"):
        patch.setattr(f"{place}.SimCLRAugmentation", small_recipe)
