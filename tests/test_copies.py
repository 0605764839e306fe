import keras

from keras_simclr import copies


def test_layers_are_found_at_any_depth():
    inner = keras.Sequential([keras.layers.BatchNormalization()])

    class Outer(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.parts = {"a": [inner], "b": (keras.layers.Dropout(0.5),)}

    outer = Outer()
    found = copies.nested_layers(keras.Sequential([outer]))
    assert {outer, inner, *inner.layers, *outer.parts["b"]} <= set(found)
