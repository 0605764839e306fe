import shlex
import time
import types

import keras
import numpy as np
import psutil
import pytest
import tensorflow as tf
from absl import flags
from helpers import standins

import keras_simclr as simclr
import keras_simclr_cli as cli
from keras_simclr import devices, flag_texts, planning, recipe, replicas
from keras_simclr.budgets import Budget, Encoder
from keras_simclr.planning import Plan, Timing

pytestmark = pytest.mark.usefixtures("eagerly")


GIVEN = {
    "data": "my photos",
    "batch_size": 64,
    "learning_rate": 1.0,
    "views": 2,
}
RECIPE = recipe.Recipe(precision="float32", views=2, batch_size=64)
SMALL, MIDDLE, LARGE = (Encoder(10, width, 32) for width in (0.25, 0.5, 1.0))


@pytest.fixture(autouse=True)
def _rule(monkeypatch):
    standins.use_rule(monkeypatch)
    monkeypatch.setattr(planning, "BASIS", "what was measured")


def timing(seconds):
    """Of an encoder, for which an epoch of 960 images takes so long."""
    parts = {
        "reading": 0.0001,
        "augmentation": 0.0004,
        "encoder": 0.0015,
        "all": (seconds - 1) / 960,
    }
    return Timing(None, parts, start_up=20.0, saving=1.0)


def planned(encoder, seconds, hours, *, epochs, twice=None, images=1000):
    """960 images an epoch: 15 batches."""
    return Plan(
        flags={
            **GIVEN,
            **encoder._asdict(),
            "epochs": epochs,
            "micro_batch_size": None,
        },
        images=images,
        side=48,
        budget=Budget(hours, images=960, batch_size=64, views=2),
        timing=timing(seconds),
        twice=twice or {},
    )


# The least epochs are 62, 416 and 2,846: more than 1,000.
@pytest.mark.parametrize(
    ("found", "hours", "choice", "epochs", "twice", "measured"),
    [
        # As was thought; twice the time is twice the epochs.
        ({MIDDLE: 4.0}, 0.5, MIDDLE, 445, {"epochs": 895}, [MIDDLE]),
        # Slower, so the next smaller one; with twice the time it would do.
        (
            {MIDDLE: 5.0, SMALL: 3.0},
            0.5,
            SMALL,
            593,
            {"epochs": 716, "width_multiplier": 0.5},
            [MIDDLE, SMALL],
        ),
        # Faster, but the next larger one would never see enough.
        ({MIDDLE: 1.5}, 0.5, MIDDLE, 1000, {}, [MIDDLE]),
        # Too short for any: the one that needs the least.
        ({SMALL: 3.0}, 0.05, SMALL, 62, {"epochs": 113}, [SMALL]),
        ({SMALL: 3.0}, 0.02, SMALL, 62, {}, [SMALL]),
    ],
)
def test_plan_chooses_again_if_the_machine_is_not_as_thought(
    found, hours, choice, epochs, twice, measured, monkeypatch
):
    asked, told = [], []

    def measure(encoder, guess):
        assert guess == guesses[encoder]
        asked.append(encoder)
        return timing(found[encoder])

    guesses = {SMALL: 0.002, MIDDLE: 0.003, LARGE: 0.006}
    machine = types.SimpleNamespace(
        recipe=RECIPE,
        images=1000,
        epoch=960,
        side=48,
        flags=lambda: GIVEN,
        extrapolate=lambda: guesses,
        measure=measure,
    )
    monkeypatch.setattr(planning, "_Machine", lambda *_: machine)
    numbers = []
    plan = planning.plan(
        RECIPE,
        None,
        hours=hours,
        report=told.append,
        progress=lambda done, total: numbers.append((done, total)),
    )
    assert plan == planned(
        choice, found[choice], hours, epochs=epochs, twice=twice
    )
    assert asked == measured
    assert told[-1] == f"Training {measured[-1].in_words()}."
    done, totals = zip(*numbers, strict=True)
    assert done[: 2 + len(measured)] == tuple(range(2 + len(measured)))
    assert {done[-1], *totals} == {4}


REPORT = """\
images          1,000, 48 pixels a side
reading         10,000 images a second
augmentation    2,500 images a second
encoder         667 images a second
all             320 images a second
bottleneck      encoder, 48% of the time. Cure: a GPU, or more of them; or \
a smaller encoder
choice          ResNet-10, width 0.5, views of 32 pixels, 2 of each image: \
the largest that sees enough in 30.0 minutes
rule            at least 0.8 million views for an encoder of its size; it \
sees 0.85 million
measured        its speed, here; the rule, on what was measured
extrapolated    the rule, to 1,000 images
micro-batch     none: a batch fits
learning rate   0.25 at a batch of 64
an epoch        4.0 seconds: 900.0 an hour
steps           15 an epoch, 6,675 in all
445 epochs      30.0 minutes, of which 20.0 seconds to start
twice the time  895 epochs of the same

keras-simclr pretrain '--data=my photos' --batch_size=64 \
--learning_rate=1.0 --views=2 --depth=10 --width_multiplier=0.5 \
--image_size=32 --epochs=445 --output_dir=runs/planned"""


def test_report_says_it_all():
    twice = {"epochs": 895}
    assert str(planned(MIDDLE, 4.0, 0.5, epochs=445, twice=twice)) == REPORT


@pytest.mark.parametrize(
    ("plan", "row"),
    [
        (
            planned(SMALL, 3.0, 0.02, epochs=62),
            (
                "the one that needs the least time, yet 72.0 seconds are "
                "too short. Cure: --hours=0.06\n"
            ),
        ),
        (planned(SMALL, 3.0, 0.02, epochs=62), "the time  too short, too\n"),
        (planned(SMALL, 3.0, 0.04, epochs=62), "the time  enough for this\n"),
        (
            planned(SMALL, 8000.0, 0.5, epochs=1),
            "Cure: --hours=2.23 or, with --split, fewer images\n",
        ),
        (
            planned(MIDDLE, 1.5, 0.5, epochs=1000),
            (
                "1,000 epochs    25.3 minutes, of which 20.0 seconds to "
                "start. Less time is enough: the paper trains for 1,000 "
                "epochs at most\n"
            ),
        ),
        (planned(MIDDLE, 1.5, 0.5, epochs=1000), "the time  nothing more\n"),
        (
            planned(SMALL, 3.0, 0.5, epochs=593, twice={"depth": 18}),
            (
                "twice the time  ResNet-18, width 0.25, views of 32 pixels, "
                "593 epochs, if its speed is as extrapolated\n"
            ),
        ),
        (
            planned(SMALL, 3.0, 0.5, epochs=593, images=999),
            (
                "images          999, 48 pixels a side: too few to pretrain "
                "from scratch, which takes 1,000 or more. Cure: start from "
                "weights (pretrain --start_from=keras_applications:NAME), "
                "or take their frozen features (evaluate "
                "--encoders=keras_applications:NAME)\n"
            ),
        ),
        (
            planned(Encoder(50, 1.0, 224), 99.0, 99.0, epochs=999),
            (
                "the rule, to 1,000 images, views of 224 pixels, 4,087.1 "
                "million multiply-adds\n"
            ),
        ),
        (
            planned(MIDDLE, 3.0, 0.5, epochs=593, images=60_000),
            "extrapolated    nothing\n",
        ),
    ],
)
def test_report_says_what_is_otherwise(plan, row):
    assert row in str(plan)


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


def open_on_canvases(recipe, data):
    """As `Recipe.open` of a folder: images of 10 pixels on canvases of 16."""
    elements = {
        "images": np.zeros((18, 16, 16, 3), "uint8"),
        "sizes": np.full((18, 2), 10, "int32"),
    }
    dataset = tf.data.Dataset.from_tensor_slices(elements)
    return data.data, dataset.batch(recipe.batch_size, drop_remainder=True)


@pytest.mark.filterwarnings("ignore:These layers of `augmentation` change")
@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("kind", ["arrays", "canvases"])
def test_command_follows_what_is_measured(kind, tmp_path, monkeypatch, capsys):
    path = tmp_path / "images.npz"
    np.savez(path, images=np.zeros((20, 10, 12, 3), "uint8"))
    given = {"data": str(path), "split": "train[:18]", "batch_size": 16}
    expected = {"epochs": 800, "image_size": 10, "precision": "mixed_bfloat16"}
    if kind == "arrays":
        free = types.SimpleNamespace(available=1000)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
        given["seed"], expected["micro_batch_size"] = 3, "8"
    else:  # Training is as of arrays.
        monkeypatch.setattr(recipe.Recipe, "open", open_on_canvases)
        trained = (0.1, time.perf_counter() + 10)
        monkeypatch.setattr(planning, "_training", lambda *_: trained)
    assert (
        cli.main(["plan", *flag_texts.as_arguments(given), "--hours=1e-9"]) == 0
    )
    text = capsys.readouterr().out
    assert "\nimages          18, 10 pixels a side: too few" in text
    assert "yet 0.0 seconds are too short. Cure: --hours=" in text
    found = flags_of(text)
    found.pop("width_multiplier", None)  # The fastest, by chance.
    found.pop("depth", None)
    assert found == {**given, **expected, "output_dir": "runs/planned"}


def test_several_machines_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(replicas, "has_workers", lambda strategy: True)
    assert cli.main(["plan", "--data=."]) == 1
    assert capsys.readouterr().err == (
        "keras-simclr: plan: A plan is for one machine. Unset TF_CONFIG.\n"
    )


def test_hours_must_be_positive():
    with pytest.raises(ValueError) as error:
        planning.plan(RECIPE, None, hours=0)
    assert str(error.value) == (
        "`hours` must be a positive number. Received: hours=0"
    )
