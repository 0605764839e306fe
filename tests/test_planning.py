import shlex
import types

import keras
import numpy as np
import PIL.Image
import psutil
import pytest
import tensorflow as tf
from absl import flags
from helpers import standins

import keras_simclr as simclr
import keras_simclr_cli as cli
from keras_simclr import devices, planning, recipe, replicas
from keras_simclr.planning import Encoder, Plan

pytestmark = pytest.mark.usefixtures("eagerly")


GIVEN = {
    "data": "my photos",
    "epochs": 10,
    "batch_size": 64,
    "learning_rate": 1.0,
}
RECIPE = recipe.Recipe(precision="float32")
SMALL, MIDDLE, LARGE = (Encoder(10, width, 32) for width in (0.25, 0.5, 1.0))


def planned(encoder, seconds_per_epoch):
    return Plan(
        flags={**GIVEN, **encoder._asdict(), "micro_batch_size": None},
        images=1000,
        side=48,
        seconds={
            "reading": 0.0001,
            "augmentation": 0.0004,
            "encoder": 0.0015,
            "all": (seconds_per_epoch - 1) / 1000,
        },
        start_up=20.0,
        saving=1.0,
        minutes_per_epoch=0.05,
    )


# Published: torchvision's, with the classifier. Ours has one convolution more
# at depth 18, as the official SimCLR network: the shortcut of the first block.
@pytest.mark.parametrize(
    ("depth", "work"),
    [(18, 1.814e9 - 512e3 + 64 * 64 * 56**2), (50, 4.089e9 - 2048e3)],
)
def test_work_is_the_published_one(depth, work):
    found, _ = Encoder(depth, 1.0, 224).cost()
    assert found == pytest.approx(work, rel=1e-3)


@pytest.mark.parametrize(
    ("most", "choice"), [(30.0, LARGE), (29.0, MIDDLE), (10.0, SMALL)]
)
def test_choice_is_the_largest_that_is_fast_enough(most, choice):
    seconds = {SMALL: 10.0, LARGE: 30.0, MIDDLE: 20.0}
    assert planning.choose(seconds, most) == choice


def test_work_counts_and_not_time():
    seconds = {SMALL: 30.0, LARGE: 20.0}
    assert planning.choose(seconds, 40.0) == LARGE


def test_choice_is_the_fastest_if_none_is_fast_enough():
    assert planning.choose({MIDDLE: 9.0, SMALL: 7.0}, 5.0) == SMALL


@pytest.mark.parametrize(
    ("found", "choice", "measured"),
    [
        # As was thought.
        ({MIDDLE: 2.0}, MIDDLE, [MIDDLE]),
        # Twice as slow, so the next smaller one.
        ({MIDDLE: 4.0, SMALL: 2.0}, SMALL, [MIDDLE, SMALL]),
        # Twice as fast, but the next larger one takes longer after all.
        ({MIDDLE: 1.0, LARGE: 3.5}, MIDDLE, [MIDDLE, LARGE]),
    ],
)
def test_plan_chooses_again_if_the_machine_is_not_as_thought(
    found, choice, measured, monkeypatch
):
    asked = []

    def measure(encoder, guess, minutes_per_epoch):
        assert guess == pytest.approx(guesses[encoder])
        asked.append(encoder)
        return planned(encoder, found[encoder])

    guesses = {SMALL: 0.001, MIDDLE: 0.002, LARGE: 0.004}
    machine = types.SimpleNamespace(
        images=1000, extrapolate=lambda: guesses, measure=measure
    )
    monkeypatch.setattr(planning, "_Machine", lambda *_: machine)
    plan = planning.plan(RECIPE, None, minutes_per_epoch=3 / 60)
    assert plan == planned(choice, found[choice])
    assert asked == measured


REPORT = """\
images          1,000 an epoch, 48 pixels a side
reading         10,000 images a second
augmentation    2,500 images a second
encoder         667 images a second
all             500 images a second
bottleneck      encoder, 75% of the time. Cure: a GPU, or more of them; or \
a smaller encoder
choice          ResNet-10, width 0.5, views of 32 pixels: the largest whose \
epoch takes at most 0.05 minutes
micro-batch     none: a batch fits
learning rate   0.25 at a batch of 64
an epoch        3.0 seconds: 1,200.0 an hour
steps           15 an epoch, 150 in all: too few. After fewer than 800 \
an encoder may be worth less than raw pixels. Cure: --epochs=54, or no --epochs
10 epochs       50.0 seconds, of which 20.0 seconds to start

keras-simclr pretrain '--data=my photos' --epochs=10 --batch_size=64 \
--learning_rate=1.0 --depth=10 --width_multiplier=0.5 --image_size=32 \
--output_dir=runs/planned"""


def test_report_says_it_all():
    assert str(planned(MIDDLE, 3.0)) == REPORT


def test_report_says_that_nothing_is_fast_enough():
    assert (
        "views of 32 pixels: the fastest found, yet an epoch takes more "
        "than 0.05 minutes\n"
    ) in str(planned(MIDDLE, 8000.0))
    assert "10 epochs       22.2 hours" in str(planned(MIDDLE, 8000.0))


@pytest.fixture
def directory(tmp_path):
    """12 images in a folder."""
    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = rng.integers(0, 256, (14, 10, 3), "uint8")
        PIL.Image.fromarray(pixels).save(tmp_path / f"{number:02}.png")
    return tmp_path


@keras.saving.register_keras_serializable(package="tests")
class Middle(keras.layers.Layer):
    """The whole image as the view: nothing random, nothing to compile."""

    def __init__(self, size, **_):
        super().__init__()
        self.size = size

    def call(self, images, training=True, seed=None, sizes=None):
        return tf.image.resize(images, self.size)


@pytest.fixture
def _quick(monkeypatch):
    """Small networks and views, and a blink of time to measure them."""

    def network(depth, *, width_multiplier, stem, input_shape):
        # Also after others, whose memory was freed.
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
        return standins.encoder(filters=4, shape=input_shape)

    monkeypatch.setattr(simclr, "ResNet", network)
    monkeypatch.setattr(simclr, "SimCLRAugmentation", Middle)
    monkeypatch.setattr(devices, "fastest_precision", lambda: "mixed_bfloat16")
    for name in ("_READING", "_TRAINING", "_WARM_UP"):
        monkeypatch.setattr(planning, name, 0.01)
    yield
    keras.config.set_dtype_policy("float32")


def flags_of(report):
    """The flags of the command that a report ends with, as it is parsed."""
    program, command, *arguments = shlex.split(report.splitlines()[-1])
    assert (program, command) == ("keras-simclr", "pretrain")
    values = flags.FlagValues()
    cli.define_flags("pretrain", values)
    assert values([command, *arguments]) == [command]
    return {
        name: values[name].value
        for name in values
        if values[name].value != values[name].default
    }


@pytest.mark.filterwarnings("ignore:These layers of `augmentation` change")
@pytest.mark.usefixtures("_quick")
def test_folder_is_planned(directory, capsys):
    arguments = [f"--data={directory}", "--batch_size=12", "--seed=3"]
    assert cli.main(["plan", *arguments, "--minutes_per_epoch=1e-9"]) == 0
    text = capsys.readouterr().out
    assert "images          12 an epoch, 10 pixels a side\n" in text
    assert "views of 10 pixels: the fastest found, yet" in text
    found = flags_of(text)
    found.pop("depth", None)  # The fastest, by chance.
    found.pop("width_multiplier", None)
    assert found == {
        "data": str(directory),
        "output_dir": "runs/planned",
        "epochs": 800,  # Of one step each.
        "batch_size": 12,
        "learning_rate": 1.0,
        "image_size": 10,
        "precision": "mixed_bfloat16",
        "seed": 3,
    }


@pytest.mark.filterwarnings("ignore:These layers of `augmentation` change")
@pytest.mark.usefixtures("_quick")
def test_file_is_planned_for_little_memory(tmp_path, monkeypatch, capsys):
    free = types.SimpleNamespace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    path = tmp_path / "images.npz"
    np.savez(path, images=np.zeros((20, 40, 100, 3), "uint8"))
    arguments = [f"--data={path}", "--split=train[:18]", "--batch_size=16"]
    assert cli.main(["plan", *arguments]) == 0
    text = capsys.readouterr().out
    assert "images          16 an epoch, 40 pixels a side\n" in text
    assert flags_of(text) == {
        "data": str(path),
        "split": "train[:18]",
        "output_dir": "runs/planned",
        "epochs": 800,
        "batch_size": 16,
        "learning_rate": 1.0,
        "depth": 50,
        "width_multiplier": 1.0,
        "image_size": 32,
        "micro_batch_size": "8",
        "precision": "mixed_bfloat16",
    }


def test_several_machines_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(replicas, "has_workers", lambda strategy: True)
    assert cli.main(["plan", "--data=."]) == 1
    assert capsys.readouterr().err == (
        "keras-simclr: plan: A plan is for one machine. Unset TF_CONFIG.\n"
    )


def test_minutes_must_be_positive():
    with pytest.raises(ValueError) as error:
        planning.plan(RECIPE, None, minutes_per_epoch=0)
    assert str(error.value) == (
        "`minutes_per_epoch` must be a positive number. Received: "
        "minutes_per_epoch=0"
    )
