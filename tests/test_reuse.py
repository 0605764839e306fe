"""Models that are saved, loaded elsewhere, and trained on."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import own_parts, reuse, standins

import keras_simclr as simclr
from keras_simclr import runs
from keras_simclr.networks import FusedBatchNormalization

# See setup.cfg.
IGNORED = ("-W", "ignore:__array__ implementation doesn't:DeprecationWarning")


pytestmark = pytest.mark.usefixtures("eagerly")


def network(norm=keras.layers.BatchNormalization):
    return standins.encoder(norm(momentum=0.5), shape=(8, 8, 3))


def recipe():
    """What `keras-simclr pretrain` would train, with all that can be set."""
    # Its path is another one once it is loaded.
    encoder = network(FusedBatchNormalization)
    exclude = f"{encoder.name}/"
    assert any(exclude in weight.path for weight in encoder.weights)
    model = simclr.SimCLRModel(
        encoder,
        simclr.ProjectionHead(2, units=4),
        augmentation=[simclr.RandomFlip(), simclr.RandomGaussianNoise()],
        second_augmentation=simclr.RandomFlip("vertical"),
        seed=5,
    )
    rate = simclr.warmup_cosine(0.5, 8, warmup_steps=3)
    inner = keras.optimizers.SGD(rate, momentum=0.9)
    optimizer = simclr.LARS(inner, exclude=exclude)
    model.compile(optimizer, simclr.NTXent(0.3), run_eagerly=True)
    return model


def micro_batches():
    """With a loss that is a function of the package."""
    model = simclr.SimCLRModel(
        network(), augmentation=simclr.RandomFlip(), micro_batch_size=4
    )
    model.compile("sgd", simclr.nt_xent, run_eagerly=True)
    return model


def float16():
    """The process that loads it has another policy."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = simclr.SimCLRModel(network(), augmentation=simclr.RandomFlip())
        model.compile("rmsprop", run_eagerly=True)
    finally:
        keras.config.set_dtype_policy("float32")
    # Keras scales losses so high at first that steps are left out.
    model.optimizer.build(model.trainable_variables)
    model.optimizer.dynamic_scale.assign(16.0)
    return model


def own():
    model = own_parts.Weighted(
        network(),
        keras.layers.Dense(4),
        augmentation=[simclr.RandomFlip(), own_parts.Scale(0.2)],
        weight=3.0,
    )
    model.compile("adam", own_parts.distance, run_eagerly=True)
    return model


@pytest.mark.fault(46, 51)
def test_fresh_process_goes_on_exactly(tmp_path):
    expected = {}
    for make in (recipe, micro_batches, float16, own):
        keras.utils.set_random_seed(0)
        model = make()
        reuse.go_on(model)
        model.save(tmp_path / f"{make.__name__}.keras")
        expected[make.__name__] = reuse.go_on(model)
    result = subprocess.run(
        [sys.executable, "-W", "error", *IGNORED, reuse.__file__, tmp_path],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    for name, values in expected.items():
        with np.load(tmp_path / f"{name}.npz") as found:
            assert len(found) == len(values)
            for value, other in zip(values, found.values(), strict=True):
                np.testing.assert_array_equal(value, other, err_msg=name)


def model_with(augmentation=None, optimizer="sgd", loss=None, **dense):
    """A model, some part of which is a user's."""
    encoder = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Flatten(),
            keras.layers.Dense(3, **dense),
        ]
    )
    model = simclr.SimCLRModel(
        encoder,
        keras.layers.Dense(2),
        augmentation=augmentation or simclr.RandomFlip(),
    )
    model.compile(optimizer, loss, run_eagerly=True)
    return model


def gap(z_1, z_2):
    return tf.reduce_mean((z_1 - z_2) ** 2)


class Halved(simclr.RandomFlip):
    def call(self, images, training=True, seed=None, part=None):
        return super().call(images, training, seed, part) / 2


class Slower(keras.optimizers.SGD):
    pass


def test_what_keras_does_not_know_is_named_when_saved(tmp_path):
    optimizer = simclr.LARS(Slower(0.1))
    model = model_with([Halved(), simclr.RandomFlip()], optimizer, gap)
    path = tmp_path / "model.keras"
    with pytest.warns(UserWarning) as record:
        model.save(path)
    (warning,) = [x for x in record if x.category is UserWarning]
    assert str(warning.message) == (
        "Keras does not know Halved, Slower, gap: the file will load only "
        "with keras.models.load_model(path, custom_objects={'Halved': Halved, "
        "'Slower': Slower, 'gap': gap}). Decorate each with "
        "@keras.saving.register_keras_serializable(package='mine') before you "
        "save."
    )
    assert warning.filename == __file__
    with pytest.raises(TypeError, match="Could not locate"):
        keras.models.load_model(path)
    names = {"Halved": Halved, "Slower": Slower, "gap": gap}
    loaded = keras.models.load_model(path, custom_objects=names)
    for ours, theirs in zip(
        reuse.go_on(loaded), reuse.go_on(model), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_subclass_that_keras_does_not_know_is_named(tmp_path):
    class Mine(simclr.SimCLRModel):
        pass

    model = Mine(network(), augmentation=simclr.RandomFlip())
    with pytest.warns(UserWarning, match="Keras does not know Mine: the file"):
        model.save(tmp_path / "model.keras")


@pytest.mark.fault(70)
@pytest.mark.parametrize(
    ("part", "arguments"),
    [
        ("loss", {"loss": lambda z_1, z_2: tf.reduce_mean(z_1 * z_2)}),
        ("optimizer", {"optimizer": keras.optimizers.SGD(lambda: 0.1)}),
        ("encoder", {"activation": lambda x: 2 * x}),
    ],
)
def test_lambda_is_refused_when_saved(tmp_path, part, arguments):
    model = model_with(**arguments)
    with pytest.raises(ValueError) as error:
        model.save(tmp_path / "model.keras")
    assert str(error.value) == (
        "A model to be saved must hold no lambda: Keras would have to run code "
        "from the file to load it. Make it a function with a name, and "
        "decorate that with "
        "@keras.saving.register_keras_serializable(package='mine'). "
        f"Received: a lambda in `{part}`"
    )
    assert not any(tmp_path.iterdir())


def test_lambda_is_refused_before_a_run_that_saves(tmp_path):
    model = model_with(loss=lambda z_1, z_2: tf.reduce_mean(z_1 * z_2))
    keeper = runs.Checkpoints(tmp_path / "run")
    batches = tf.data.Dataset.from_tensors(reuse.IMAGES)
    with pytest.raises(ValueError, match="A model to be saved must hold no la"):
        model.fit(batches, callbacks=[keeper], verbose=0)
    assert int(model.optimizer.iterations) == 0


def test_saved_before_training_it_goes_on_as_the_original(tmp_path):
    encoder = network()
    model = simclr.SimCLRModel(encoder, augmentation=simclr.RandomFlip())
    inner = keras.optimizers.SGD(0.1)
    optimizer = simclr.LARS(inner, exclude=f"{encoder.name}/")
    model.compile(optimizer, run_eagerly=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.save(tmp_path / "again.keras")
    loaded = keras.models.load_model(tmp_path / "again.keras")
    for ours, theirs in zip(
        reuse.go_on(loaded), reuse.go_on(model), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
