import numpy as np

from keras_simclr import duplicates


def test_grouping_finds_each_pair_that_brute_force_finds():
    rng = np.random.default_rng(0)
    keys = np.zeros(400, duplicates.KEYS)
    keys["digest"] = rng.permutation(400)
    keys["hash"] = rng.integers(0, 2**64, 400, "uint64")
    keys["thumbnail"] = rng.integers(0, 256, keys["thumbnail"].shape)
    keys["contrast"] = 70
    for copy in range(0, 200, 2):
        flipped = rng.choice(64, 3, replace=False).astype("uint64")
        mask = np.bitwise_or.reduce(np.uint64(1) << flipped)
        keys["hash"][copy] = keys["hash"][copy + 1] ^ mask
        keys["thumbnail"][copy] = keys["thumbnail"][copy + 1]
    keys["thumbnail"][0] += 70
    keys["hash"][2] = keys["hash"][3] ^ np.uint64(0x7F)
    groups = duplicates.group(keys, np.ones(400, bool))
    together = [
        (one, other)
        for one in range(400)
        for other in range(one + 1, 400)
        if groups[one] == groups[other]
    ]
    assert together == [(copy, copy + 1) for copy in range(4, 200, 2)]


def test_many_alike_are_linked_once_per_order_not_each_with_each():
    keys = np.zeros(3000, duplicates.KEYS)
    keys["digest"] = np.arange(3000)
    keys["contrast"] = 70
    links = list(duplicates._near_pairs(keys, np.arange(3000)))
    assert sum(len(one) for one, _ in links) == 4 * 2999
    assert not duplicates.group(keys, np.ones(3000, bool)).any()
