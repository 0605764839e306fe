import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import standins
from helpers.replicas import mirrored

from keras_simclr import finetuning

pytestmark = pytest.mark.usefixtures("eagerly")


README = pathlib.Path(__file__).parents[1] / "README.md"
# The same programs, as small as they can be.
SMALLER = {
    "batch_size=256": "batch_size=4",
    "batch_size=1024": "batch_size=4",
    "epochs=100": "epochs=1",
    "ResNet(18": "ResNet(10, width_multiplier=0.1",
}


def test_programs_run(tmp_path, monkeypatch):
    text = README.read_text()
    for large, small in SMALLER.items():
        assert large in text
        text = text.replace(large, small)
    standins.use(monkeypatch)
    images = np.zeros((4, 32, 32, 3), "uint8")
    labels = np.array([[0], [1], [0], [1]])
    monkeypatch.setattr(
        keras.datasets.cifar10,
        "load_data",
        lambda: ((images, labels), (images, labels)),
    )
    two = mirrored(2)
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", lambda: two)
    monkeypatch.chdir(tmp_path)
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(4):
        pixels = np.full((10, 10, 3), 40 * number, "uint8")
        keras.utils.save_img(photos / f"{number}.png", pixels)
        folder = tmp_path / "labelled" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        keras.utils.save_img(folder / f"{number}.png", pixels)
    monkeypatch.setattr(finetuning, "_FEWEST_STEPS", 1)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
    assert names["embeddings"].shape == (4, 4)
    assert names["dataset"].element_spec["images"].shape == (4, 256, 256, 3)
    assert names["classifier"].output_shape == (None, 2)
    assert names["model"].encoder.output_shape == (None, 1280)


def test_commands_are_those_of_the_command_line():
    from absl import flags

    import keras_simclr_cli as cli

    commands = re.findall(
        r"^keras-simclr (.*)$", README.read_text(), re.MULTILINE
    )
    assert len(commands) == 20
    for line in commands:
        command, *arguments = line.split()
        values = flags.FlagValues()
        cli.define_flags(command, values)
        assert values([command, *arguments]) == [command]


def test_augmentations_of_ones_own_are_shown_as_they_work():
    text = README.with_name("CONTRIBUTING.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {"keras": keras, "tf": tf}
    exec(program, names)
    examples = tf.constant(np.random.default_rng(0).random((6, 40), "float32"))
    for kind in ("Jitter", "Shift"):
        layer = names[kind]()
        view = layer(examples, seed=tf.constant([0, 1]))
        assert view.shape == examples.shape
        assert not np.allclose(view, examples)
        np.testing.assert_array_equal(
            view, layer(examples, seed=tf.constant([0, 1]))
        )
        np.testing.assert_array_equal(layer(examples, training=False), examples)
        rows = layer(examples[2:4], seed=tf.constant([0, 1]), part=(2, 6))
        np.testing.assert_array_equal(rows, view[2:4])
