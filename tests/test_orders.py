import numpy as np
import pytest
import tensorflow as tf

import keras_simclr as simclr
from keras_simclr import orders


def drawn(seed, shuffle=True):
    return [list(x) for x in orders.orders(9, shuffle, seed).repeat(2)]


def test_orders_are_functions_of_seed_and_pass():
    first, second = drawn(0)
    assert sorted(first) == sorted(second) == list(range(9))
    assert first != second
    assert drawn(0) == [first, second] != drawn(1)
    assert drawn(0, shuffle=False) == [list(range(9))] * 2


def test_a_pass_of_two_begins_with_any_batch_of_both():
    def pair():
        both = tf.data.Dataset.zip(
            tuple(
                orders.batches_of(
                    np.arange(size),
                    batch_size,
                    shuffle=True,
                    seed=seed,
                    drop_remainder=True,
                    rounds=rounds,
                )
                for size, batch_size, seed, rounds in (
                    (12, 3, 1, 1),
                    (5, 2, 2, 2),
                )
            )
        )
        return orders.in_order_of_places(both, 3)

    dataset = pair()
    epochs = [[*map(str, dataset.as_numpy_iterator())] for _ in range(2)]
    assert [len(x) for x in epochs] == [4, 4]
    seen = [labels for _, labels in dataset.as_numpy_iterator()]
    assert {*np.concatenate(seen)} == {*range(5)}
    dataset = pair()
    for passes in orders.passes_of(dataset):
        passes.number, passes.behind = 1, 3
    assert str(next(dataset.as_numpy_iterator())) == epochs[1][3]


SEEDED = {
    "model": lambda seed: simclr.SimCLRModel(
        simclr.ResNet(
            10, width_multiplier=0.1, stem="cifar", input_shape=(8, 8, 1)
        ),
        seed=seed,
    ),
    "layer": lambda seed: simclr.RandomFlip(seed=seed),
    "arrays": lambda seed: simclr.dataset_from_arrays(
        np.zeros((4, 8, 8, 1)), batch_size=2, seed=seed
    ),
    "folder": lambda seed: simclr.dataset_from_directory("none", seed=seed),
}


@pytest.mark.parametrize("make", SEEDED.values(), ids=SEEDED.keys())
def test_seeds_are_integers_that_tensorflow_can_hold(make):
    for seed in (-1, 1.5, True, "3", 2**63, 2**64):
        with pytest.raises(ValueError) as error:
            make(seed)
        assert "`seed` must be an integer" in str(error.value)
        assert str(error.value).endswith(f"Received: seed={seed!r}")


def test_largest_seeds_are_used():
    for seed in (2**63 - 1, np.int64(3)):
        dataset = SEEDED["arrays"](seed)
        assert len(list(dataset)) == 2
