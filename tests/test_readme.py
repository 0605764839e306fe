import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import standins
from helpers.kinds_of_data import CLASSES, SOURCES, class_of, numbers_of
from helpers.pictures import encoded, picture
from helpers.replicas import mirrored

import keras_simclr_cli as cli
from keras_simclr import finetuning, planning

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
    assert names["result"].classifier.output_shape == (None, 2)
    assert names["small_model"].encoder is names["student"]
    assert names["network"].output_shape == (None, 1280)
    assert names["model"].encoder.input_shape == (None, 64, 64, 3)


def test_commands_are_those_of_the_command_line():
    from absl import flags

    commands = re.findall(
        r"^keras-simclr (.*)$", README.read_text(), re.MULTILINE
    )
    assert len(commands) == 47
    for line in commands:
        command, *arguments = line.split()
        values = flags.FlagValues()
        cli.define_flags(command, values)
        assert values([command, *arguments]) == [command]


def write_bands(directory, files):
    """Arrays of four channels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (len(files), 16, 12, 4), "uint8")
    labels = np.array([class_of(name) for name in files])
    np.savez(directory / "bands.npz", images=images, labels=labels)
    return str(directory / "bands.npz")


FORMATS = {".tif": "TIFF", ".avif": "AVIF", ".png": "PNG", ".jpg": "JPEG"}
FEWER = {
    "plan": ["--batch_size=6"],
    "pretrain": ["--epochs=1", "--batch_size=6", "--image_size=8"],
    "evaluate": ["--labels=2,all", "--draws=2", "--probes=knn"],
}


@pytest.mark.parametrize("kind", ["folder", "list", "shards", "bands"])
def test_commands_take_all_kinds_of_data(kind, tmp_path, monkeypatch):
    standins.use(monkeypatch)
    monkeypatch.setattr(finetuning, "_FEWEST_STEPS", 1)
    monkeypatch.setattr(planning, "_choose_on", lambda *_: "A plan.")
    monkeypatch.chdir(tmp_path)
    files = {}
    for number in range(18):
        name = f"{CLASSES[number % 3]}/{number:02}{[*FORMATS][number % 4]}"
        image = picture(*numbers_of(name))
        if number % 8 == 0:
            image = image.convert("L").convert("I;16")
        files[name] = encoded(image, FORMATS[name[6:]])
    writers = {**SOURCES, "bands": write_bands}
    # Both kinds of shards are read by the same code: a command takes one.
    first, second = {"shards": ("tar", "parquet")}.get(kind, (kind, kind))
    data = writers[first](tmp_path, files)
    others = data if first == second else writers[second](tmp_path, files)
    lines = re.findall(
        r"^keras-simclr (.*/data.*|.*=data)$", README.read_text(), re.MULTILINE
    )
    assert len(lines) == 8
    # The others are of the same code, and take long.
    everything = kind in ("folder", "bands")
    for line in lines:
        command, *arguments = line.split()
        if command in ("finetune", "predict", "export") and not everything:
            continue
        if "--data=data" in arguments:
            taken = data if command in ("plan", "pretrain") else others
            arguments[arguments.index("--data=data")] = f"--data={taken}"
        assert cli.main([command, *arguments, *FEWER.get(command, ())]) == 0
    with np.load("embeddings/data/embeddings.npz") as table:
        assert len(table["representations"]) == 18
    if everything:
        table = (tmp_path / "classes/data/predictions.csv").read_text()
        assert len(table.splitlines()) == 19
        assert (tmp_path / "encoders/data/saved_model").is_dir()


def test_four_commands_make_a_small_classifier(tmp_path, monkeypatch):
    """As they stand, but for how long, on photographs of two kinds."""
    monkeypatch.setattr(finetuning, "_FEWEST_STEPS", 1)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for number in range(24):
        kind = ("cat", "dog")[number % 2]
        pixels = rng.integers(0, 100, (70, 80, 3)) + 100 * (number % 2)
        for folder in ("photos", f"labelled/{kind}")[: 1 + (number < 16)]:
            path = tmp_path / folder / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            keras.utils.save_img(path, pixels, scale=False)
    text = README.read_text().partition("## A small one for a phone")[2]
    lines = re.findall(r"^keras-simclr (.*)$", text, re.MULTILINE)[:4]
    brief = ["--epochs=1", "--batch_size=8", "--precision=float32"]
    fewer = {"pretrain": [*brief, "--width_multiplier=0.1"], "distill": brief}
    for line in lines:
        command, *arguments = line.split()
        assert cli.main([command, *arguments, *fewer.get(command, ())]) == 0
    file = tmp_path / "app" / "classifier_int8.tflite"
    # Width, depth and format are those of the page.
    assert 300_000 < file.stat().st_size < 500_000


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
