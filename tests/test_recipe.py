import dataclasses
import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import standins

import keras_simclr as simclr
from keras_simclr import devices, replicas
from keras_simclr.architectures import ARCHITECTURES
from keras_simclr.flag_texts import as_flags, from_text, read_flags
from keras_simclr.recipe import Data, Recipe

FIELDS = [
    *dataclasses.fields(Recipe),
    *dataclasses.fields(Data),
]


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_help_names_the_librarys_own_default_where_it_differs(field):
    places = {"smallest_crop": "scale"}
    for name, default in field.metadata["library"].items():
        signature = inspect.signature(getattr(simclr, name))
        own = signature.parameters[places.get(field.name, field.name)].default
        own = own[0] if isinstance(own, tuple) else own
        assert own == default != field.default


def test_recipe_is_what_it_builds():
    recipe = Recipe(
        depth=18,
        width_multiplier=0.125,
        projection_layers=1,
        epochs=4,
        batch_size=128,
        micro_batch_size="8",
        learning_rate=2.0,
        warmup_epochs=1.0,
        weight_decay=1e-4,
        trust_coefficient=0.01,
        temperature=0.3,
        smallest_crop=0.5,
        flip_rate=0.1,
        strength=0.2,
        color_rate=0.3,
        grayscale_rate=0.4,
        blur_rate=0.6,
        seed=7,
    )
    model = recipe.build(tf.TensorSpec((128, 12, 10, 3), "uint8"), steps=10)
    assert model.encoder.input_shape == (None, 12, 10, 3)
    assert model.encoder.name == "resnet18"
    assert model.encoder.layers[1].strides == (1, 1)  # Stem for small images.
    assert model.projection_head.depth == 1
    assert (model.micro_batch_size, model.seed) == (8, 7)
    assert model.loss.temperature == 0.3
    config = model.augmentation.get_config()
    for name in ("flip_rate", "strength", "color_rate", "grayscale_rate"):
        assert config[name] == getattr(recipe, name)
    assert config["scale"] == (0.5, 1.0)
    assert config["blur_rate"] == 0.6
    assert model.optimizer.coupled_weight_decay == 1e-4
    assert model.optimizer.trust_coefficient == 0.01
    schedule = model.optimizer.optimizer._learning_rate
    rates = [float(schedule(step)) for step in (0, 5, 10, 40)]
    np.testing.assert_allclose(rates, [0.0, 0.5, 1.0, 0.0], atol=1e-7)


@pytest.mark.parametrize(
    ("images", "batch_size", "epochs"),
    [
        (60_000, 256, 8),  # The recipe's own; also of nine tenths.
        (54_000, 256, 8),
        (40_000, 256, 8),
        (10_000, 256, 21),
        (1_437, 256, 160),
        (400, 256, 800),
        (400, 64, 134),
    ],
)
def test_few_images_are_passed_over_more_often(images, batch_size, epochs):
    recipe, steps = Recipe(batch_size=batch_size), images // batch_size
    assert recipe.epochs_for(steps) == epochs
    assert "too few" not in recipe.steps_in_words(steps)
    schedule = recipe.optimizer(steps).optimizer._learning_rate
    assert float(schedule(epochs * steps)) == pytest.approx(0, abs=1e-7)
    assert float(schedule(epochs * steps // 2)) > 0.1 * batch_size / 256


@pytest.mark.parametrize(
    ("shape", "strength", "blur_rate"),
    [
        ((32, 32, 3), 0.5, 0.0),
        ((28, 28, 1), 1.0, 0.0),  # Nothing to distort but the brightness.
        ((32, 32, 4), 1.0, 0.0),
        ((33, 32, 3), 1.0, 0.5),
        ((64, 64, 3), 1.0, 0.5),
    ],
)
def test_colours_and_blur_suit_the_views(shape, strength, blur_rate):
    spec = tf.TensorSpec((4, *shape), "uint8")
    recipe = Recipe().completed(spec, steps=10)
    assert (recipe.strength, recipe.blur_rate) == (strength, blur_rate)
    # What a run keeps makes the same views.
    for each in (Recipe(), recipe):
        config = each.augmentation(shape).get_config()
        assert config["strength"] == strength
        assert config["blur_rate"] == blur_rate
    given = Recipe(strength=0.0, blur_rate=0.25).completed(spec, steps=10)
    assert (given.strength, given.blur_rate) == (0.0, 0.25)


def test_epochs_that_are_asked_for_are_what_is_trained():
    recipe = Recipe(epochs=8)
    assert recipe.epochs_for(1) == 8
    assert recipe.steps_in_words(1) == (
        "1 an epoch, 8 in all: too few. After fewer than 800 an encoder may be "
        "worth less than raw pixels. Cure: --epochs=800, or no --epochs"
    )


def test_images_of_any_size_get_views_of_one():
    spec = {
        "images": tf.TensorSpec((8, 64, 64, 3), "uint8"),
        "sizes": tf.TensorSpec((8, 2), "int32"),
    }
    assert Recipe().input_shape(spec) == (64, 64, 3)
    assert Recipe(image_size=32).input_shape(spec) == (32, 32, 3)
    whole = {"images": spec["images"]}
    assert Recipe(image_size=32).input_shape(whole) == (32, 32, 3)


@pytest.mark.parametrize(
    ("name", "wrong", "rule"),
    [
        ("width_multiplier", 0, "a positive number of at most 100"),
        ("image_size", -5, "an integer of at least 1"),
        ("epochs", 0, "an integer of at least 1"),
        ("batch_size", 1, "an integer of at least 2"),
        ("temperature", -1.0, "a positive number"),
        ("smallest_crop", 0.0, "above 0 and at most 1"),
        ("flip_rate", 1.5, "a probability between 0 and 1"),
        ("seed", 2**32, "an integer of at least 0 and at most 4294967295"),
        ("weight_decay", float("nan"), "a number of at least 0"),
        ("strength", 3.0, "between 0 and 2.5"),
        ("stem", "x", "one of 'auto', 'cifar', 'imagenet'"),
        ("micro_batch_size", "few", "a positive integer or auto"),
    ],
)
def test_wrong_values_are_refused_by_name(name, wrong, rule):
    with pytest.raises(ValueError) as error:
        Recipe(**{name: wrong})
    assert str(error.value) == (
        f"`{name}` must be {rule}. Received: {name}={wrong!r}"
    )


def test_warm_up_ends_before_the_training():
    with pytest.raises(ValueError) as error:
        Recipe(epochs=3, warmup_epochs=3.0)
    assert str(error.value) == (
        "`warmup_epochs` must be below `epochs`. Received: warmup_epochs=3.0, "
        "epochs=3"
    )


@pytest.mark.parametrize(
    ("values", "rule", "wrong"),
    [
        (
            {"start_from": "a", "depth": 18, "stem": "cifar"},
            "`depth`, `stem` must be left out: what `start_from` names has its",
            "depth=18, stem='cifar'",
        ),
        (
            {"start_from": "a", "keep_head": True, "projection_layers": 3},
            "`projection_layers` must be left out: what `start_from` names has",
            "projection_layers=3",
        ),
        (
            {"keep_head": True},
            "`keep_head` must be left out without `start_from`",
            "keep_head=True",
        ),
    ],
)
def test_what_a_start_tells_is_told_by_nothing_else(values, rule, wrong):
    with pytest.raises(ValueError, match=f"^{rule}") as error:
        Recipe(**values)
    assert str(error.value).endswith(f". Received: {wrong}")


def test_new_head_is_the_same_in_whatever_the_start_is_kept(tmp_path):
    """A run that was ended in its first epoch goes on from another file."""
    encoder = standins.encoder()
    encoder.trainable = False  # As probes leave it.
    encoder.save(tmp_path / "encoder.keras")
    spec = tf.TensorSpec((4, 8, 8, 1))
    heads = []
    for name in ("encoder.keras", "start.keras"):
        recipe = Recipe(start_from=str(tmp_path / name), batch_size=4, seed=1)
        model = recipe.build(spec, steps=10)
        assert len(model.encoder.trainable_weights) == 2
        heads.append(model.projection_head.get_weights())
        model.save(tmp_path / "start.keras")
    for ours, right in zip(*heads, strict=True):
        np.testing.assert_array_equal(ours, right)


def test_choices_are_what_the_library_takes():
    choices = {
        x.name: x.metadata["rule"][1].get("choices")
        for x in FIELDS
        if x.metadata["rule"]
    }
    assert choices["depth"] == tuple(ARCHITECTURES)
    assert set(choices["strategy"]) == set(devices._STRATEGIES)
    for precision in choices["precision"][1:]:
        keras.DTypePolicy(precision)


def test_limit_of_unreadable_files_is_a_share():
    with pytest.raises(ValueError) as error:
        Data(data="photos", unreadable_limit=2.0)
    assert str(error.value) == (
        "`unreadable_limit` must be a probability between 0 and 1. Received: "
        "unreadable_limit=2.0"
    )


def test_channels_and_bits_are_checked():
    for name, wrong, rule in (
        ("channels", 0, "an integer of at least 1"),
        ("bits", 12, "one of 8, 16"),
    ):
        with pytest.raises(ValueError) as error:
            Data(data="photos", **{name: wrong})
        assert str(error.value) == (
            f"`{name}` must be {rule}. Received: {name}={wrong}"
        )


def test_images_without_channels_are_refused_with_the_cure():
    with pytest.raises(ValueError) as error:
        Recipe().build(tf.TensorSpec((16, 8, 8), "uint8"), steps=1)
    assert str(error.value) == (
        "Images must have the shape (batch, height, width, channels). "
        "Received: images of shape (16, 8, 8). Add the channels: "
        "images[..., None]."
    )


def test_flags_come_back_from_their_text():
    recipe = Recipe(image_size=32, micro_batch_size="8", weight_decay=1e-5)
    texts = read_flags(as_flags(vars(recipe)))
    assert Recipe(**from_text(Recipe, texts)) == recipe
    assert from_text(Recipe, {"image_size": None}) == {"image_size": None}


@dataclasses.dataclass(frozen=True)
class Switched:
    doctor: bool = True


def test_flags_that_are_on_or_off_come_back():
    for value in (True, False):
        text = as_flags({"doctor": value})
        assert text == f"--doctor={str(value).lower()}\n"
        # As absl itself would write it.
        short = "--doctor\n" if value else "--nodoctor\n"
        for each in (text, short):
            assert from_text(Switched, read_flags(each)) == {"doctor": value}


def test_choice_gives_another_recipe():
    strategy, words = tf.distribute.get_strategy(), []
    recipe = Recipe(precision="auto")
    chosen = recipe.with_choice(
        "precision", strategy, lambda: "float32", words.append
    )
    assert (recipe.precision, chosen.precision) == ("auto", "float32")
    assert words == ["Chosen for this machine: --precision=float32."]
    assert chosen.with_choice("precision", strategy, None, None) is chosen
    none = Recipe(micro_batch_size="auto").with_choice(
        "micro_batch_size", strategy, lambda: None, words.append
    )
    assert none.micro_batch_size is None
    assert words[1:] == ["Chosen for this machine: no --micro_batch_size."]


def test_workers_do_not_choose(monkeypatch):
    monkeypatch.setattr(replicas, "has_workers", lambda strategy: True)
    with pytest.raises(ValueError, match="must be the same for all workers"):
        Recipe().with_choice("precision", None, None, None)


def test_trying_micro_batches_leaves_no_trace(monkeypatch):
    standins.use(monkeypatch)
    recipe = Recipe(batch_size=16, micro_batch_size="auto", seed=3)
    spec = tf.TensorSpec((16, 8, 8, 1), "uint8")
    strategy = tf.distribute.get_strategy()
    weights = []
    for tried in (True, False):
        keras.utils.set_random_seed(3)
        if tried:
            assert recipe.largest_micro_batch(spec, 1, strategy) is None
        whole = dataclasses.replace(recipe, micro_batch_size=None)
        weights.append(whole.build(spec, 1).get_weights())
    for first, second in zip(*weights, strict=True):
        np.testing.assert_array_equal(first, second)
