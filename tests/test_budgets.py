import dataclasses
import math

import pytest
from helpers import standins

from keras_simclr import budgets
from keras_simclr.budgets import MOST_EPOCHS, Budget, Encoder, candidates
from keras_simclr.recipe import FEWEST_STEPS

ENCODERS = candidates(500)
SIZES = (64, 96, 128, 224)
SMALL, MIDDLE, LARGE = (Encoder(10, width, 32) for width in (0.25, 0.5, 1.0))
PHOTOGRAPHS = Budget(hours=0.5, images=14 * 256, batch_size=256, views=2)


@pytest.fixture
def _rule(monkeypatch):
    standins.use_rule(monkeypatch)


def machine(images, speed=1):
    """Seconds per epoch: at a speed of 1 as on two cores, of photographs."""
    return {
        encoder: images
        * (1e-3 + 2e-5 * encoder.image_size + 4.4e-11 * encoder.cost()[0])
        / speed
        for encoder in ENCODERS
    }


# Published: torchvision's, with the classifier. Ours has one convolution more
# at depth 18, as the official SimCLR network: the shortcut of the first block.
@pytest.mark.parametrize(
    ("depth", "work"),
    [(18, 1.814e9 - 512e3 + 64 * 64 * 56**2), (50, 4.089e9 - 2048e3)],
)
def test_work_is_the_published_one(depth, work):
    found, _ = Encoder(depth, 1.0, 224).cost()
    assert found == pytest.approx(work, rel=1e-3)


def test_least_views_are_a_power_of_the_work(monkeypatch):
    small, middle, large = (x.cost()[0] for x in (SMALL, MIDDLE, LARGE))
    monkeypatch.setattr(budgets, "_MEASURED", (middle, 1e6))
    monkeypatch.setattr(budgets, "_PUBLISHED", (large, 8e6))
    assert MIDDLE.least_views() == pytest.approx(1e6)
    assert LARGE.least_views() == pytest.approx(8e6)
    slope = 3 * math.log(2) / math.log(large / middle)
    found = math.log(SMALL.least_views()) - math.log(1e6)
    assert found == pytest.approx(slope * math.log(small / middle))


def test_least_views_are_those_known():
    ours, published = MIDDLE.least_views(), Encoder(50, 1.0, 224).least_views()
    # 8 epochs of Fashion-MNIST, 100 of ImageNet, two views each.
    assert 0.5 < ours / (8 * 60_000 * 2) < 1
    assert 0.9 < published / (100 * 1_281_167 * 2) < 1.1


@pytest.mark.usefixtures("_rule")
def test_beyond_is_what_was_not_tried():
    assert MIDDLE.beyond(60_000, 1e6) == []
    assert Encoder(50, 1.0, 224).beyond(400, 1e8) == [
        "400 images",
        "views of 224 pixels",
        "4,087.1 million multiply-adds",
        "100.0 million views",
    ]


@pytest.mark.usefixtures("_rule")
@pytest.mark.parametrize(
    ("batch_size", "views", "epochs"),
    # Enough views; 800 steps, where fewer would show enough of them.
    [(32, 2, 112), (32, 4, 56), (256, 2, 112), (256, 4, 58), (512, 2, 115)],
)
def test_least_epochs_show_enough_views_in_enough_steps(
    batch_size, views, epochs
):
    budget = Budget(0.5, 3584, batch_size, views)
    assert budget.least_epochs(MIDDLE) == epochs


@pytest.mark.usefixtures("_rule")
def test_epochs_fill_the_time():
    assert PHOTOGRAPHS.epochs(MIDDLE, 10.0) == 180
    assert PHOTOGRAPHS.epochs(MIDDLE, 10.0, start_up=5.0) == 179
    assert PHOTOGRAPHS.epochs(MIDDLE, 100.0) == 112
    assert PHOTOGRAPHS.epochs(MIDDLE, 0.1) == MOST_EPOCHS
    endless = dataclasses.replace(PHOTOGRAPHS, hours=1e308)
    assert endless.epochs(MIDDLE, 0.1) == MOST_EPOCHS


# Least epochs by this rule: 58, 112 and 764.
@pytest.mark.usefixtures("_rule")
@pytest.mark.parametrize(
    ("seconds", "choice"),
    [
        ({SMALL: 5.0, MIDDLE: 16.0, LARGE: 2.3}, LARGE),
        ({SMALL: 5.0, MIDDLE: 16.0, LARGE: 2.4}, MIDDLE),
        ({SMALL: 5.0, MIDDLE: 17.0, LARGE: 99.0}, SMALL),
        # Its work counts, and not its time.
        ({SMALL: 20.0, MIDDLE: 9.0}, MIDDLE),
        # None: 3,480 and 2,240 seconds.
        ({SMALL: 60.0, MIDDLE: 20.0}, MIDDLE),
    ],
)
def test_choice_is_the_largest_that_sees_enough(seconds, choice):
    assert PHOTOGRAPHS.choose(seconds) == choice


@pytest.mark.usefixtures("_rule")
def test_time_to_start_counts():
    seconds = {SMALL: 5.0, MIDDLE: 16.0}
    assert PHOTOGRAPHS.choose(seconds, start_up=5.0) == MIDDLE
    assert PHOTOGRAPHS.choose(seconds, start_up=60.0) == SMALL


def test_few_images_get_no_large_encoder_however_fast_the_machine():
    budget = Budget(hours=100.0, images=256, batch_size=256, views=2)
    choice = budget.choose(machine(256, speed=1e6))
    assert budget.least_epochs(choice) <= MOST_EPOCHS
    assert choice.cost()[0] < MIDDLE.cost()[0]
    # So few that none sees enough.
    least = min(ENCODERS, key=Encoder.least_views)
    assert Budget(100.0, 2, 2, 2).choose(machine(2, speed=1e6)) == least


@pytest.mark.parametrize("images", [256, 3584, 49_920, 1_000_192])
@pytest.mark.parametrize("speed", [0.1, 1, 100])
def test_more_time_never_buys_less(images, speed):
    seconds, before = machine(images, speed), (0, 0)
    for hours in (0.01, 0.1, 0.5, 1, 2, 4, 8, 100, 10_000):
        budget = Budget(hours, images, 256, 2)
        choice = budget.choose(seconds)
        epochs = budget.epochs(choice, seconds[choice])
        work, steps = choice.cost()[0], epochs * images // 256
        assert steps >= FEWEST_STEPS
        assert 1 <= epochs <= MOST_EPOCHS
        assert steps * 256 * 2 >= math.floor(choice.least_views())
        assert work >= before[0]
        if work == before[0]:
            assert epochs >= before[1]
        # It takes no longer than there is, if any would.
        takes = epochs * seconds[choice]
        needs = [budget.needs(x, seconds[x]) for x in seconds]
        assert takes <= max(3600 * hours, min(needs))
        before = work, epochs


# 3,584 photographs, and 400: a batch of 256 in each epoch.
@pytest.mark.parametrize("images", [3584, 256])
@pytest.mark.parametrize("hours", [0.5, 2, 12])
def test_two_cores_and_few_photographs_get_a_small_encoder(images, hours):
    budget = Budget(hours, images, 256, 2)
    seconds = machine(images)
    choice = budget.choose(seconds)
    assert choice.depth < 50
    assert choice.image_size < 128
    assert budget.epochs(choice, seconds[choice]) >= 50


@pytest.mark.parametrize(
    ("side", "sizes"),
    [(28, {28}), (48, {32}), (64, {64}), (100, {64, 96}), (224, {*SIZES})],
)
def test_candidates_fit_the_images(side, sizes):
    found = candidates(side)
    assert {encoder.image_size for encoder in found} == sizes
    assert len(found) == len(set(found)) == 5 * len(sizes) + 1
    assert found[0] == Encoder(10, 0.25, min(sizes))
