import itertools
import types

import pytest
import tensorflow_datasets as tfds

from keras_simclr import splits

BOUNDS = ["", "0", "3", "-3", "1_0", "33%", "-12.5%", "100%", "-100%"]
WRONG = ["1e3", "..", "200%", "1000", "-1000", "a", "1.5"]


def rows_of_tfds(split, size):
    instruction = tfds.core.ReadInstruction.from_spec(split)
    whole = {"train": types.SimpleNamespace(num_examples=size)}
    (part,) = instruction.to_absolute(whole)
    first, last, _ = slice(part.from_, part.to).indices(size)
    return slice(first, last)


def outcome(function, *args):
    try:
        return function(*args)
    except ValueError:
        return "refused"


def test_rows_are_those_of_tfds():
    for first, last in itertools.product(BOUNDS + WRONG, repeat=2):
        split = f"train[{first}:{last}]"
        for size in (10, 7, 997):
            expected = outcome(rows_of_tfds, split, size)
            assert outcome(splits.rows_of_split, split, size) == expected, split
    assert splits.rows_of_split("train", 7) == slice(0, 7)


NOTATION = "a split in TFDS's notation, such as 'train[:90%]'"
PART = "one part of 20 images, such as 'train[:90%]'"


@pytest.mark.parametrize(
    ("split", "rule"),
    [
        ("train[abc]", NOTATION),
        ("train[:200%]", NOTATION),
        ("train[:]", NOTATION),
        ("train[3]", NOTATION),
        ("train[::2]", NOTATION),
        ("train[", NOTATION),
        ("train[30:40]", PART),
        ("train[:2]+train[9:]", PART),
        ("train + train", PART),
        ("train[:1shard]", PART),
    ],
)
def test_wrong_splits_are_refused(split, rule):
    with pytest.raises(ValueError) as info:
        splits.rows_of_split(split, 20)
    assert str(info.value) == (
        f"`split` must be {rule}. Received: split={split!r}"
    )


@pytest.mark.parametrize("split", ["test", "a+b", "Train", "", "test[:9%]"])
def test_other_names_of_splits_are_refused(split):
    with pytest.raises(ValueError, match="`split` must be one of 'train'"):
        splits.rows_of_split(split, 20)
