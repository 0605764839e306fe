import io

import numpy as np
import PIL.Image
import pytest
from helpers.pictures import picture

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


def pairs(groups):
    """Places of images of one group."""
    numbers = np.unique(groups)
    found = [np.flatnonzero(groups == x).tolist() for x in numbers]
    return [places for places in found if len(places) > 1]


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("shape", [(8, 8, 1), (20, 30, 3), (6, 6, 5), (50,)])
def test_equal_images_in_memory_are_duplicates(shape, dtype):
    images = np.random.default_rng(0).integers(0, 256, (12, *shape))
    images = (images[[*range(12), 3, 7, 3]] / 256 ** (dtype != "uint8")).astype(
        dtype
    )
    groups, is_complete = duplicates.group_images(images)
    assert is_complete
    assert pairs(groups) == [[3, 12, 14], [7, 13]]


def test_images_saved_again_are_duplicates_in_memory():
    images = []
    for quality in (95, 60):
        for seed in range(6):
            file = io.BytesIO()
            picture(seed, 160, 120).save(file, "JPEG", quality=quality)
            images.append(np.asarray(PIL.Image.open(file)))
    groups, _ = duplicates.group_images(np.stack(images))
    assert pairs(groups) == [[place, place + 6] for place in range(6)]


def test_canvases_beside_an_image_do_not_count():
    images = np.zeros((3, 16, 16, 3), "uint8")
    rng = np.random.default_rng(0)
    images[:, :9, :12] = rng.integers(0, 256, (3, 9, 12, 3))
    images[1] = images[0]
    images[1, 9:] = 77
    images[2, :9, :12] = images[0, :9, :12]
    sizes = np.array([[9, 12], [9, 12], [9, 11]])
    groups, _ = duplicates.group_images(images, sizes)
    assert groups[0] == groups[1]


def test_images_of_one_colour_are_nobodys_duplicates():
    images = np.zeros((4, 8, 8, 3), "uint8")
    assert pairs(duplicates.group_images(images)[0]) == []


def test_among_many_only_equal_images_are_looked_for(monkeypatch):
    monkeypatch.setattr(duplicates, "_MOST_IN_MEMORY", 3)
    images = np.random.default_rng(0).integers(0, 250, (4, 32, 32, 3), "uint8")
    images[3] = images[2]
    images[1] = images[0] + 1
    groups, is_complete = duplicates.group_images(images)
    assert not is_complete
    assert pairs(groups) == [[2, 3]]
    groups, is_complete = duplicates.group_images(images[:3])
    assert is_complete
    assert pairs(groups) == [[0, 1]]


def saved(seed, quality):
    file = io.BytesIO()
    picture(seed, 80 + 8 * seed, 60).save(file, "JPEG", quality=quality)
    return np.asarray(PIL.Image.open(file))


@pytest.mark.parametrize("most", [100, 5, 2])
def test_images_are_found_among_others_of_any_size(most, monkeypatch):
    """Near ones as far as these are looked for, equal ones always."""
    monkeypatch.setattr(duplicates, "_MOST_IN_MEMORY", most)
    plain = np.full((9, 9, 3), 7, "uint8")
    images = [saved(0, 90), saved(1, 90), plain, saved(3, 90)]
    others = [saved(1, 60), plain, saved(4, 90), saved(3, 90)]
    found = duplicates.repeated(iter(images), iter(others))
    assert found.tolist() == [False, most > 4, False, True]
    rows = np.random.default_rng(0).random((5, 6))
    found = duplicates.repeated(rows[:3], rows[2:])
    assert found.tolist() == [False, False, True]
