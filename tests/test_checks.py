import math

import numpy as np
import pytest

from keras_simclr import _checks

NOT_NUMBERS = [math.nan, math.inf, -math.inf, "0.1", None, True, [1.0], 1j]


@pytest.mark.parametrize("value", [1, 2.5, np.float32(1.5), np.int64(2)])
def test_number_in_range_comes_back(value):
    assert _checks.real_number("rate", value, low=1, high=2.5, rule="") is value


@pytest.mark.parametrize("value", [0.9, 2.6, *NOT_NUMBERS])
def test_number_out_of_range_is_refused(value):
    with pytest.raises(ValueError) as error:
        _checks.real_number("rate", value, low=1, high=2.5, rule="small")
    assert str(error.value) == f"`rate` must be small. Received: rate={value!r}"


@pytest.mark.parametrize("value", [math.ulp(0.0), 1, 1e300])
def test_positive_number_comes_back(value):
    assert _checks.positive_number("rate", value) is value


@pytest.mark.parametrize("value", [0, 0.0, -1e-300, *NOT_NUMBERS])
def test_number_that_is_not_positive_is_refused(value):
    with pytest.raises(ValueError) as error:
        _checks.positive_number("rate", value)
    assert str(error.value) == (
        f"`rate` must be a positive number. Received: rate={value!r}"
    )


@pytest.mark.parametrize("value", [0, 0.5, 1])
def test_probability_comes_back(value):
    assert _checks.probability("rate", value) is value


@pytest.mark.parametrize("value", [-0.1, 1.1, *NOT_NUMBERS])
def test_number_that_is_no_probability_is_refused(value):
    with pytest.raises(ValueError) as error:
        _checks.probability("rate", value)
    assert str(error.value) == (
        "`rate` must be a probability between 0 and 1. "
        f"Received: rate={value!r}"
    )


@pytest.mark.parametrize("value", [(0.1, 2.0), [0.1, 2.0], np.array([0.1, 2])])
def test_positive_range_comes_back_as_a_tuple(value):
    assert _checks.positive_range("sigma", value) == (0.1, 2.0)


@pytest.mark.parametrize(
    "value",
    [(0, 1), (2, 1), (1, math.inf), (math.nan, 1), (1,), (1, 2, 3), 1, "ab"],
)
def test_pair_that_is_no_positive_range_is_refused(value):
    with pytest.raises(ValueError) as error:
        _checks.positive_range("sigma", value)
    assert str(error.value) == (
        "`sigma` must be a pair (low, high) with 0 < low <= high. "
        f"Received: sigma={value!r}"
    )


def test_positive_range_above_its_limit_is_refused():
    with pytest.raises(ValueError) as error:
        _checks.positive_range("scale", (0.5, 1.5), high=1)
    assert str(error.value) == (
        "`scale` must be a pair (low, high) with 0 < low <= high <= 1. "
        "Received: scale=(0.5, 1.5)"
    )


@pytest.mark.parametrize("value", [1, 7, np.int32(7)])
def test_integer_comes_back_as_a_python_integer(value):
    result = _checks.integer("units", value, minimum=1)
    assert result == value
    assert type(result) is int


@pytest.mark.parametrize("value", [0, -1, 1.0, "1", None, True])
def test_what_is_no_integer_in_range_is_refused(value):
    with pytest.raises(ValueError) as error:
        _checks.integer("units", value, minimum=1)
    assert str(error.value) == (
        f"`units` must be an integer of at least 1. Received: units={value!r}"
    )


@pytest.mark.parametrize(
    ("value", "choices"), [("b", ("b", "a")), (18, (18, 50))]
)
def test_choice_comes_back(value, choices):
    assert _checks.choice("stem", value, choices) is value


def test_unknown_choice_is_refused_with_a_near_match():
    with pytest.raises(ValueError) as error:
        _checks.choice("stem", "imagnet", ("imagenet", "cifar"))
    assert str(error.value) == (
        "`stem` must be one of 'cifar', 'imagenet'. "
        "Received: stem='imagnet'. Did you mean 'imagenet'?"
    )


@pytest.mark.parametrize("value", ["zzz", None, 3.5])
def test_unknown_choice_without_a_near_match_is_refused(value):
    with pytest.raises(ValueError) as error:
        _checks.choice("stem", value, ("imagenet", "cifar"))
    assert str(error.value) == (
        f"`stem` must be one of 'cifar', 'imagenet'. Received: stem={value!r}"
    )


def test_choices_that_are_numbers_are_listed_in_order():
    with pytest.raises(ValueError) as error:
        _checks.choice("depth", 17, (101, 18, 50))
    assert str(error.value) == (
        "`depth` must be one of 18, 50, 101. Received: depth=17"
    )
