import math

import numpy as np
import pytest
import tensorflow as tf
from helpers import oracles

from benchmarks import results
from benchmarks.claims import (
    augmentations,
    batch_and_epochs,
    distillation,
    few_labels,
    heads,
    losses,
    temperature,
    verdicts,
    width,
)

SCRIPTS = [
    augmentations,
    batch_and_epochs,
    distillation,
    few_labels,
    heads,
    losses,
    temperature,
    width,
]


def similarities(size=6, seed=0):
    z = np.random.default_rng(seed).normal(size=(2, size, 3))
    z /= np.linalg.norm(z, axis=2, keepdims=True)
    return (z[0] @ z[1].T).astype("float32")


def chosen_negatives(row, i, is_semi_hard):
    others = [s for k, s in enumerate(row) if k != i]
    if not is_semi_hard:
        return others
    return sorted(s for s in others if s < row[i])[-1:]


def margin(row, i, negatives):
    terms = [max(s - row[i] + 0.8, 0.0) for s in negatives]
    return sum(terms) / max(len(terms), 1)


def logistic(row, i, negatives):
    terms = [math.log1p(math.exp(s / 0.2)) for s in negatives]
    attraction = math.log1p(math.exp(-row[i] / 0.2))
    return attraction + sum(terms) / max(len(terms), 1)


@pytest.mark.parametrize("is_semi_hard", [False, True])
@pytest.mark.parametrize("oracle", [margin, logistic])
def test_losses_equal_loops(oracle, is_semi_hard):
    s = similarities()
    # One anchor whose positive is the farthest: it has no semi-hard negative.
    s[2, 2] = -0.99
    loss = getattr(losses, oracle.__name__)
    rows = s.astype("float64")
    expected = [
        oracle(row, i, chosen_negatives(row, i, is_semi_hard))
        for i, row in enumerate(rows)
    ]
    np.testing.assert_allclose(
        loss(tf.constant(s), is_semi_hard), np.mean(expected), rtol=1e-5
    )


def test_cross_entropy_equals_loop():
    s = similarities().astype("float64")
    expected = [
        math.log(sum(math.exp(x / 0.2) for x in row)) - row[i] / 0.2
        for i, row in enumerate(s)
    ]
    loss = losses.cross_entropy(tf.constant(s, "float32"), False)
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)


def test_n_pairs_equals_loop():
    z = np.random.default_rng(0).normal(size=(2, 5, 3))
    expected = []
    for anchors, others in (z, z[::-1]):
        for i, anchor in enumerate(anchors):
            worse = (anchor @ (x - others[i]) for x in others)
            expected.append(math.log(sum(map(math.exp, worse))))
    loss = losses.n_pairs(*z.astype("float32"))
    lengths = 5e-4 * np.square(z).sum() / 5
    np.testing.assert_allclose(loss, np.mean(expected) + lengths, rtol=1e-5)


def test_loss_of_products_is_nt_xent_where_rows_have_length_one():
    z = np.random.default_rng(0).normal(size=(2, 5, 4))
    z /= np.linalg.norm(z, axis=2, keepdims=True)
    loss = temperature.cross_entropy_of_products(0.5)
    np.testing.assert_allclose(
        loss(*z.astype("float32")), oracles.nt_xent(*z, 0.5), rtol=1e-5
    )


def test_sobel_is_scipys():
    from scipy import ndimage

    sobel = augmentations.Sobel()
    images = np.random.default_rng(0).random((2, 8, 10, 3))
    found = sobel(images.astype("float32"), seed=(0, 1)).numpy()
    for image, channel in np.ndindex(2, 3):
        plane = images[image, :, :, channel]
        # Beyond the edge the outermost pixels are repeated.
        gradients = [
            ndimage.sobel(plane, axis, mode="reflect") for axis in (0, 1)
        ]
        expected = np.minimum(np.hypot(*gradients) / 4, 1)
        np.testing.assert_allclose(
            found[image, :, :, channel], expected, atol=1e-5
        )


def test_cutout_is_a_gray_square_anywhere():
    cutout = augmentations.Cutout()
    found = cutout(np.zeros((64, 8, 8, 3), "uint8"), seed=(0, 1)).numpy()
    assert set(np.unique(found)) == {0.0, 0.5}
    rows, columns = (
        found[..., 0].any(axis=axis).sum(axis=1) for axis in (2, 1)
    )
    # A square, unless the edge of the image cuts it.
    np.testing.assert_array_equal(
        (found[..., 0] > 0).sum(axis=(1, 2)), rows * columns
    )
    assert set(rows) == set(columns) == {2, 3, 4}
    assert len({image.tobytes() for image in found}) > 32


@pytest.mark.parametrize(
    ("differences", "above", "verdict"),
    [
        ([], 0.0, "not run"),
        ([0.5], 0.0, "open"),
        ([0.010, 0.012, 0.011], 0.0, "holds"),
        ([-0.010, -0.012, -0.011], 0.0, "does not hold"),
        ([0.010, -0.012, 0.011], 0.0, "open"),
        ([-0.010, -0.012, -0.011], -0.02, "holds"),
        ([0.010, 0.012, 0.011], 0.02, "does not hold"),
    ],
)
def test_verdicts(differences, above, verdict):
    assert verdicts.statement("", differences, above).verdict == verdict


def test_interval_is_students():
    # The quantile of two degrees of freedom has a closed form.
    quantile = 0.95 * math.sqrt(2 / (1 - 0.95**2))
    mean, half = verdicts.interval([1.0, 2.0, 6.0])
    assert mean == 3.0
    assert half == pytest.approx(quantile * math.sqrt(7 / 3))


def test_differences_pair_the_seeds():
    runs = [
        {"config": {"head": head, "seed": seed}, "result": {"accuracy": value}}
        for head, seed, value in (
            ("linear", 0, 0.5),
            ("linear", 1, 0.6),
            ("none", 1, 0.25),
            ("none", 2, 0.3),
        )
    ]
    first, second = (verdicts.by_seed(runs, head=x) for x in ("linear", "none"))
    assert verdicts.differences(first, second) == [0.6 - 0.25]


@pytest.mark.parametrize("script", SCRIPTS)
def test_claims_without_runs_are_not_run(script):
    claim = script.CLAIM
    assert claim.name == script.__name__.split(".")[-1]
    assert {x.verdict for x in claim.statements([])} == {"not run"}


def test_what_others_store_meanwhile_is_kept(tmp_path):
    path = tmp_path / "x.json"

    def make():
        results.store(path, [{"seed": 1}])
        return {"linear": 0.5}

    result = results.once(path, {"seed": 0}, make)
    assert results.stored(path) == [{"seed": 1}, result]
