import keras
import pytest
import tensorflow as tf

import keras_simclr as simclr
from keras_simclr import audio, kinds, series, tables


def test_a_layer_tells_the_kind_and_else_the_shape_does():
    images, vectors = (None, 8, 8, 3), (None, 30)
    assert kinds.kind_of([], images) is kinds.IMAGES
    assert kinds.kind_of([keras.layers.ReLU()], vectors) is kinds.OTHER
    sounds = [keras.layers.ReLU(), audio.RandomGain()]
    assert kinds.kind_of(sounds, images) is kinds.AUDIO
    assert series.RandomMask.kind is kinds.SERIES
    assert tables.MarginalCorruption.kind is kinds.TABLES


class Spectrograms(keras.layers.Layer):
    """A user's own layer, for pictures that are no images."""

    kind = kinds.OTHER

    def call(self, examples, training=True, seed=None):
        return examples


def test_rules_for_images_are_for_images_alone():
    encoder = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.GlobalAveragePooling2D()]
    )
    decibels = tf.random.stateless_normal((6, 4, 4, 1), (0, 1)) * 80.0
    model = simclr.SimCLRModel(encoder, augmentation=Spectrograms())
    assert model.kind is kinds.OTHER
    model.compile("sgd", run_eagerly=True)
    model.fit(decibels, batch_size=3, verbose=0)
    assert model.predict(decibels, verbose=0).shape == (6, 1)
    features = simclr.extract_features(model, decibels.numpy())
    assert features.shape == (6, 1)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (kinds.IMAGES, "9 images of raw pixels, the first image"),
        (kinds.AUDIO, "9 sounds of log-mel, the first sound"),
        (kinds.TABLES, "9 rows of columns, the first row"),
    ],
)
def test_sentences_speak_of_what_there_is(kind, said):
    assert kind.said("9 images of raw pixels, the first image") == said
    told = []
    kind.tell(told.append, "9 images of raw pixels, the first image")
    kind.tell(None, "nobody listens")
    assert told == [said]


def test_articles_go_with_what_they_are_of():
    text = "An image, an image-like one"
    assert kinds.IMAGES.said(text) == text
    assert kinds.TABLES.said(text) == "A row, a row-like one"
    assert kinds.OTHER.said(text) == "An example, an example-like one"


def test_kinds_are_found_by_the_name_of_a_flag():
    names = [str(kinds.named(name)) for name in ("images", "audio", "tables")]
    assert names == ["images", "audio", "tables"]
    assert kinds.named("auto") is None
