import functools
import itertools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import oracles

import keras_simclr as simclr
from keras_simclr import devices, losses
from keras_simclr.losses import per_positive


def projections(count=8, size=8, seed=0, dtype="float64"):
    z = np.random.default_rng(seed).normal(size=(2, count, size))
    return z.astype(dtype)


def loss_and_gradients(z_1, z_2, temperature=0.1, block_size=None):
    z_1, z_2 = tf.convert_to_tensor(z_1), tf.convert_to_tensor(z_2)
    with tf.GradientTape() as tape:
        tape.watch((z_1, z_2))
        loss = simclr.nt_xent(
            z_1, z_2, temperature=temperature, block_size=block_size
        )
    return loss, tape.gradient(loss, (z_1, z_2))


# Goldens: add_contrastive_loss of google-research/simclr@383d414,
# tf2/objective.py, run on these rows. It sums over the two views of an image:
# twice the paper's mean.
def golden_rows():
    return np.sin(np.arange(64, dtype="float32") * 0.7).reshape(2, 4, 8)


@pytest.mark.fault(20)
@pytest.mark.parametrize(
    ("temperature", "official"),
    [(1.0, 5.8799310), (0.5, 8.5101681), (0.1, 34.5948639)],
)
def test_loss_is_half_the_official_sum(temperature, official):
    loss = simclr.nt_xent(*golden_rows(), temperature=temperature)
    np.testing.assert_allclose(2 * loss, official, rtol=1e-6)


@pytest.mark.fault(22)
def test_loss_of_identical_views_is_half_the_official_sum():
    z, _ = golden_rows()
    loss = simclr.nt_xent(z, z, temperature=0.5)
    np.testing.assert_allclose(2 * loss, 2.3103757, rtol=1e-6)


def test_gradient_is_half_the_official_gradient():
    _, (gradient, _) = loss_and_gradients(*golden_rows(), temperature=0.5)
    official = [0.02951756, 0.02033912, 0.00159472, -0.01789972]
    official += [-0.02897529, -0.02642363, -0.01144463, 0.00891715]
    np.testing.assert_allclose(2 * gradient[0], official, rtol=1e-4)


@pytest.mark.fault(20)
@pytest.mark.parametrize("temperature", [0.01, 0.05, 0.1, 0.5, 1.0, 10.0])
@pytest.mark.parametrize("count", [2, 3, 8, 64])
def test_loss_equals_algorithm_1(count, temperature):
    z = projections(count)
    expected = oracles.nt_xent(*z, temperature)
    exact = simclr.nt_xent(*z, temperature=temperature)
    rounded = simclr.nt_xent(*z.astype("float32"), temperature=temperature)
    np.testing.assert_allclose(exact, expected, rtol=1e-6)
    np.testing.assert_allclose(rounded, expected, rtol=1e-5)


@pytest.mark.fault(20)
@pytest.mark.parametrize("temperature", [0.05, 0.5, 10.0])
def test_gradient_equals_finite_differences(temperature):
    z = projections(3, 4)
    _, gradients = loss_and_gradients(*z, temperature=temperature)
    expected = oracles.central_differences(
        lambda z: oracles.nt_xent(*z, temperature), z
    )
    np.testing.assert_allclose(gradients, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.fault(17, 18, 19)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_half_precision_projections_give_a_float32_loss(dtype, temperature):
    z = tf.cast(projections(), dtype)
    loss, gradients = loss_and_gradients(*z, temperature=temperature)
    rows = tf.cast(z, tf.float64).numpy()
    assert loss.dtype == tf.float32
    assert all(np.isfinite(tf.cast(g, "float32")).all() for g in gradients)
    expected = oracles.nt_xent(*rows, temperature)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.fault(7)
@pytest.mark.parametrize("temperature", [1e-36, 1e-30, 1e-6, 1e6, 1e30])
def test_loss_and_gradient_are_finite_at_extreme_temperatures(temperature):
    z = projections(dtype="float32")
    loss, gradients = loss_and_gradients(*z, temperature=temperature)
    assert np.isfinite(loss)
    assert np.isfinite(gradients).all()


def test_output_is_float64_only_for_float64():
    z = projections()
    assert simclr.nt_xent(*z).dtype == tf.float64
    assert simclr.nt_xent(*z.astype("float32")).dtype == tf.float32


@pytest.mark.fault(20)
def test_views_can_change_places():
    z_1, z_2 = projections()
    swapped = simclr.nt_xent(z_2, z_1)
    np.testing.assert_allclose(simclr.nt_xent(z_1, z_2), swapped, rtol=1e-12)


@pytest.mark.fault(15, 16)
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 7.0, 1e30])
def test_length_of_the_rows_does_not_matter(scale):
    z_1, z_2 = projections(dtype="float32")
    expected = simclr.nt_xent(z_1, z_2)
    scales = np.ones((len(z_1), 1), "float32")
    scales[::2] = scale
    loss = simclr.nt_xent(z_1 * scales, z_2)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.fault(15, 16)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_length_of_rows_in_half_precision_does_not_matter(dtype, scale):
    """Their squares are 0, or infinite."""
    z = tf.cast(scale * projections(), dtype)
    rows = tf.cast(z, tf.float64).numpy()
    expected = oracles.nt_xent(*rows, 0.1)
    np.testing.assert_allclose(simclr.nt_xent(*z), expected, rtol=1e-5)


@pytest.mark.fault(20)
def test_order_of_the_images_does_not_matter():
    z_1, z_2 = projections()
    order = np.random.default_rng(1).permutation(len(z_1))
    loss = simclr.nt_xent(z_1[order], z_2[order])
    np.testing.assert_allclose(loss, simclr.nt_xent(z_1, z_2), rtol=1e-12)


@pytest.mark.fault(20)
def test_rotation_of_all_rows_does_not_matter():
    z_1, z_2 = projections()
    rotation, _ = np.linalg.qr(projections(seed=1)[0])
    loss = simclr.nt_xent(z_1 @ rotation, z_2 @ rotation)
    np.testing.assert_allclose(loss, simclr.nt_xent(z_1, z_2), rtol=1e-12)


@pytest.mark.fault(12)
@pytest.mark.parametrize("count", [2, 5, 16])
def test_identical_rows_give_the_logarithm_of_the_candidates(count):
    z = np.ones((count, 4), "float32")
    loss = simclr.nt_xent(z, z)
    np.testing.assert_allclose(loss, np.log(2 * count - 1), rtol=1e-6)


@pytest.mark.fault(14)
def test_zero_rows_give_a_finite_loss_and_gradient():
    z = projections(dtype="float32")
    z[:, 0] = 0.0
    loss, gradients = loss_and_gradients(*z)
    assert np.isfinite(loss)
    assert np.isfinite(gradients).all()


@pytest.mark.fault(14)
def test_only_zero_rows_give_the_logarithm_of_the_candidates():
    z = np.zeros((4, 8), "float32")
    loss, gradients = loss_and_gradients(z, z)
    np.testing.assert_allclose(loss, np.log(7), rtol=1e-6)
    assert np.isfinite(gradients).all()


@pytest.mark.parametrize("noise", [0.1, 1.0, 3.0])
def test_positives_are_sought_among_all_other_projections(noise):
    z_1, z_2 = projections(16)
    z_2 = z_1 + noise * z_2
    _, found = per_positive(tf.stack([z_1, z_2]))
    assert found.numpy().ravel().tolist() == oracles.positives_found(z_1, z_2)


def test_losses_of_the_anchors_average_to_the_loss():
    z = projections()
    losses, found = per_positive(z, temperature=0.3)
    assert losses.shape == found.shape == (1, 2, 8)
    loss = simclr.nt_xent(*z, temperature=0.3)
    np.testing.assert_allclose(np.mean(losses), loss, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_collapsed_projections_find_no_positive(dtype):
    row = np.random.default_rng(0).normal(size=8)
    _, found = per_positive(np.tile(row, (2, 32, 1)).astype(dtype))
    assert not np.any(found)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_loss_is_the_same_eagerly_in_a_graph_and_under_xla(jit_compile):
    z = projections(dtype="float32")
    compiled = tf.function(loss_and_gradients, jit_compile=jit_compile)
    loss, gradients = loss_and_gradients(*z)
    loss_2, gradients_2 = compiled(*z)
    np.testing.assert_allclose(loss_2, loss, rtol=1e-6)
    np.testing.assert_allclose(gradients_2, gradients, rtol=1e-4, atol=1e-7)


def test_loss_of_a_batch_of_unknown_size_is_the_same():
    z = projections(5)
    shape = tf.TensorSpec((None, 8), tf.float64)
    in_graph = tf.function(simclr.nt_xent, input_signature=[shape, shape])
    np.testing.assert_allclose(in_graph(*z), simclr.nt_xent(*z), rtol=1e-12)


def weighted(z, weights, block_size, temperature=0.3, groups=None):
    """Losses, positives found, gradient of the losses' weighted sum."""
    with tf.GradientTape() as tape:
        tape.watch(z)
        losses, found = per_positive(
            z, temperature=temperature, block_size=block_size, groups=groups
        )
        losses, found = tf.reshape(losses, [-1]), tf.reshape(found, [-1])
        total = tf.reduce_sum(losses * weights)
    return losses, found, tape.gradient(total, z)


def dense(z, weights, temperature=0.3):
    """`weighted` by the formula itself, differentiated by TensorFlow."""
    with tf.GradientTape() as tape:
        tape.watch(z)
        rows = tf.math.l2_normalize(tf.reshape(z, (-1, z.shape[2])), axis=1)
        similarities = tf.matmul(rows, rows, transpose_b=True)
        candidates = tf.linalg.set_diag(
            similarities, tf.fill(len(rows), tf.constant(-np.inf, z.dtype))
        )
        partner = np.roll(np.arange(len(rows)), len(rows) // 2)
        positives = tf.gather(similarities, partner, batch_dims=1)
        losses = tf.reduce_logsumexp(candidates / temperature, axis=1)
        losses -= positives / temperature
        total = tf.reduce_sum(losses * weights)
    found = tf.argmax(candidates, axis=1) == partner
    return losses, found, tape.gradient(total, z)


def noisy_pairs(count, size=8):
    z_1, z_2 = projections(count, size)
    weights = np.random.default_rng(2).normal(size=2 * count)
    return tf.constant([z_1, z_1 + z_2]), tf.constant(weights)


@pytest.mark.parametrize("block_size", [None, *range(1, 8)])
def test_blocks_of_every_size_equal_the_dense_formula(block_size):
    z, weights = noisy_pairs(2)
    losses, found, gradient = weighted(z, weights, block_size)
    expected = dense(z, weights)
    np.testing.assert_allclose(losses, expected[0], rtol=1e-12)
    assert found.numpy().tolist() == expected[1].numpy().tolist()
    np.testing.assert_allclose(gradient, expected[2], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.01, 0.3, 100.0])
def test_blocks_in_float32_equal_the_formula_in_float64(temperature):
    z, weights = noisy_pairs(40)
    losses, found, gradient = weighted(
        tf.cast(z, tf.float32), tf.cast(weights, tf.float32), 32, temperature
    )
    expected = dense(z, weights, temperature)
    # The rounding of a similarity is divided by the temperature.
    atol = 3e-7 / temperature
    np.testing.assert_allclose(losses, expected[0], rtol=1e-6, atol=atol)
    assert found.numpy().tolist() == expected[1].numpy().tolist()
    atol = 1e-6 * np.abs(expected[2]).max()
    np.testing.assert_allclose(gradient, expected[2], rtol=0, atol=atol)


@pytest.mark.fault(7)
@pytest.mark.parametrize("block_size", [None, 5])
@pytest.mark.parametrize("temperature", [1.2e-38, 1e-6, 3.4e38])
def test_blocks_are_finite_at_extreme_temperatures(temperature, block_size):
    z = projections(dtype="float32")
    loss, gradients = loss_and_gradients(*z, temperature, block_size)
    assert np.isfinite(loss)
    assert np.isfinite(gradients).all()


@pytest.mark.parametrize("block_size", [None, 3])
def test_a_positive_as_similar_as_a_negative_is_not_found(block_size):
    z = np.float32([[1, 0], [1, 0], [0, 1], [-1, 0]])
    _, found = per_positive(np.stack([z, z]), block_size=block_size)
    assert found.numpy().ravel().tolist() == [0, 0, 1, 1, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("views", "groups", "decoupled", "block_size"),
    [
        *itertools.product(
            [2, 3], [None, [3, 0, 3, 1]], [False, True], [None, 4]
        ),
        (5, None, False, None),
        (5, [3, 0, 3, 1], True, 4),
    ],
)
def test_any_number_of_views_equals_the_oracle(
    views, groups, decoupled, block_size
):
    z = np.random.default_rng(views).normal(size=(views, 4, 3))
    loss = simclr.NTXent(0.3, block_size, decoupled=decoupled)
    with tf.GradientTape() as tape:
        variable = tf.Variable(z)
        value, found = loss.contrast(variable, groups)
    expected = oracles.of_views(z, 0.3, groups, decoupled)
    losses, _ = per_positive(
        z, temperature=0.3, decoupled=decoupled, groups=groups
    )
    np.testing.assert_allclose(losses, expected, rtol=1e-10)
    assert float(value) == pytest.approx(expected.mean(), rel=1e-10)
    assert found.shape == expected.shape
    np.testing.assert_allclose(
        tape.gradient(value, variable),
        oracles.central_differences(
            lambda z: oracles.of_views(z, 0.3, groups, decoupled).mean(), z
        ),
        rtol=1e-5,
        atol=1e-8,
    )


@pytest.mark.parametrize("views", [2, 3, 5])
def test_a_positive_is_found_where_it_is_nearer_than_each_negative(views):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(6, 4)) + 0.7 * rng.normal(size=(views, 6, 4))
    _, found = per_positive(z)
    for k, v, n in np.ndindex(views - 1, views, 6):
        nearest = max(
            oracles.cosine(z[v, n], z[w, m])
            for w in range(views)
            for m in range(6)
            if m != n
        )
        positive = oracles.cosine(z[v, n], z[(v + k + 1) % views, n])
        assert bool(found[k, v, n]) == (positive > nearest)
    assert 0 < np.mean(found) < 1


@pytest.mark.parametrize("temperature", [1.2e-38, 0.1, 3.4e38])
@pytest.mark.parametrize("views", [2, 3])
def test_decoupled_is_finite_at_extremes_and_without_negatives(
    temperature, views
):
    z = tf.constant(np.random.default_rng(0).normal(size=(views, 5, 4)))
    z = tf.cast(z, tf.float32)
    loss = simclr.NTXent(temperature, decoupled=True)
    for groups in (None, [7] * 5):
        with tf.GradientTape() as tape:
            tape.watch(z)
            value, _ = loss.contrast(z, groups)
        assert np.isfinite(value)
        assert np.isfinite(tape.gradient(value, z)).all()
    assert float(value) == 0


@pytest.mark.parametrize("views", [2, 3, 5])
@pytest.mark.parametrize("decoupled", [False, True])
def test_chance_is_the_loss_of_equal_projections(views, decoupled):
    loss = simclr.NTXent(0.3, decoupled=decoupled)
    value, _ = loss.contrast(tf.ones((views, 6, 4)))
    assert loss.chance(6, views) == pytest.approx(float(value), rel=1e-6)


@pytest.mark.parametrize(
    ("count", "jit_compile"), [(5, False), (5, True), (None, False)]
)
def test_blocks_in_a_graph_equal_blocks_run_eagerly(count, jit_compile):
    z, weights = noisy_pairs(5)
    compiled = tf.function(
        lambda z, weights: weighted(z, weights, block_size=4),
        input_signature=[
            tf.TensorSpec((2, count, 8), tf.float64),
            tf.TensorSpec((None,), tf.float64),
        ],
        jit_compile=jit_compile,
    )
    expected = weighted(z, weights, block_size=4)
    for result, value in zip(compiled(z, weights), expected, strict=True):
        np.testing.assert_allclose(result, value, rtol=1e-9, atol=1e-12)


@pytest.mark.fault(46)
@pytest.mark.parametrize("cores", [2, 3, 50])
@pytest.mark.parametrize("block_size", [1, 3, 4])
def test_number_of_cores_does_not_matter(monkeypatch, cores, block_size):
    z, weights = noisy_pairs(5)
    monkeypatch.setattr(devices, "cores", lambda: 1)
    expected = weighted(z, weights, block_size)
    monkeypatch.setattr(devices, "cores", lambda: cores)
    actual = weighted(z, weights, block_size)
    for ours, right in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, right, rtol=1e-9, atol=1e-12)


# Equal in their lower 32 bits, the last two are not the same group.
GROUPS = [
    [3, 0, 3, 1, 0],
    [-1, -1, -1, 2, 2],
    [7, 7, 7, 7, 7],
    [2**40, 5, 5, 2**40, 2**40 + 2**33],
]


@functools.cache
def expected_of_groups(groups):
    """`weighted` by the oracle, on `noisy_pairs(5, 4)`."""
    z, weights = (each.numpy() for each in noisy_pairs(5, 4))

    def losses(z):
        return np.array(oracles.anchor_losses(*z, 0.3, groups))

    gradient = oracles.central_differences(lambda z: losses(z) @ weights, z)
    return losses(z), oracles.positives_found(*z, groups), gradient


def assert_equals_the_oracle(actual, groups, rtol=1e-6, atol=1e-8):
    losses, found, gradient = expected_of_groups(tuple(groups))
    np.testing.assert_allclose(actual[0], losses, rtol=rtol, atol=atol)
    assert actual[1].numpy().tolist() == found
    np.testing.assert_allclose(actual[2], gradient, rtol=rtol, atol=atol)


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("block_size", [None, 3, 4, 5])
def test_images_of_a_group_are_no_negatives(block_size, groups):
    z, weights = noisy_pairs(5, 4)
    ids = np.int64(groups)
    actual = weighted(z, weights, block_size, groups=ids)
    assert_equals_the_oracle(actual, groups)


@pytest.mark.parametrize("block_size", [None, 4])
def test_groups_in_float32_equal_the_oracle(block_size):
    z, weights = (tf.cast(each, tf.float32) for each in noisy_pairs(5, 4))
    actual = weighted(z, weights, block_size, groups=GROUPS[0])
    assert_equals_the_oracle(actual, GROUPS[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("count", "jit_compile"), [(5, False), (None, False), (None, True)]
)
def test_groups_in_a_graph_equal_the_oracle(count, jit_compile):
    compiled = tf.function(
        lambda z, weights, groups: weighted(z, weights, 4, groups=groups),
        input_signature=[
            tf.TensorSpec((2, count, 4), tf.float64),
            tf.TensorSpec((None,), tf.float64),
            tf.TensorSpec((None,), tf.int32),
        ],
        jit_compile=jit_compile,
    )
    actual = compiled(*noisy_pairs(5, 4), tf.constant(GROUPS[0]))
    assert_equals_the_oracle(actual, GROUPS[0])


@pytest.mark.parametrize("block_size", [None, 4])
def test_groups_that_all_differ_change_nothing(block_size):
    z, weights = noisy_pairs(5, 4)
    actual = weighted(z, weights, block_size, groups=[4, 2, 0, 3, 1])
    expected = weighted(z, weights, block_size)
    for ours, right in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(ours, right)


@pytest.mark.parametrize("temperature", [1.2e-38, 0.1, 3.4e38])
@pytest.mark.parametrize("block_size", [None, 4])
def test_images_of_one_group_have_no_loss(block_size, temperature):
    z, weights = (tf.cast(each, tf.float32) for each in noisy_pairs(5, 4))
    losses, found, gradient = weighted(
        z, weights, block_size, temperature, groups=[7] * 5
    )
    assert found.numpy().all()
    np.testing.assert_array_equal(losses, np.zeros(10))
    np.testing.assert_array_equal(gradient, np.zeros((2, 5, 4)))


def test_as_many_groups_as_images_are_needed_while_running():
    z = tf.TensorSpec((None, 8), tf.float64)
    in_graph = tf.function(
        lambda z_1, z_2, groups: simclr.nt_xent(z_1, z_2, groups=groups),
        input_signature=[z, z, tf.TensorSpec((None,), tf.int32)],
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match="with 4 values"):
        in_graph(*projections(5), tf.range(4))


def test_blocks_take_less_than_three_products_and_no_matrix_of_all_pairs(
    monkeypatch,
):
    monkeypatch.setattr(devices, "cores", lambda: 1)
    count, size, block_size = 40, 8, 16
    z, weights = noisy_pairs(count, size)
    compiled = tf.function(
        lambda z, weights: weighted(z, weights, block_size), jit_compile=True
    )
    text = compiled.experimental_get_compiler_ir(z, weights)("hlo")
    blocks = 2 * count // block_size
    # One for the similarities, in each pass, and two for the gradient, for
    # each pair of blocks.
    products = len(re.findall(r" dot\(", text))
    assert products == 4
    assert products * blocks * (blocks + 1) / 2 <= 3 * blocks**2
    shapes = re.findall(r"f64\[([\d,]+)\]", text)
    largest = max(np.prod([int(n) for n in s.split(",")]) for s in shapes)
    assert largest <= 2 * count * max(size, block_size)


def test_loss_object_equals_the_function():
    z = projections(dtype="float32")
    loss = simclr.NTXent(0.3)(*z)
    assert float(loss) == float(simclr.nt_xent(*z, temperature=0.3))


def test_loss_object_takes_groups():
    z, groups = projections(4), [0, 1, 1, 2]
    loss = simclr.NTXent(0.3).call(*z, groups=groups)
    expected = oracles.nt_xent(*z, 0.3, groups)
    np.testing.assert_allclose(loss, expected, rtol=1e-9)


def test_loss_object_comes_back_from_its_config():
    loss = simclr.NTXent(0.3, block_size=5, name="mine", decoupled=True)
    config = keras.saving.serialize_keras_object(loss)
    copy = keras.saving.deserialize_keras_object(config)
    assert isinstance(copy, simclr.NTXent)
    assert copy.get_config() == {
        "temperature": 0.3,
        "decoupled": True,
        "block_size": 5,
        "name": "mine",
    }


NO_POSITIVE_NUMBERS = [0, 0.0, -1.0, np.nan, np.inf, "0.1", True]
NO_POSITIVE_NUMBERS += [tf.constant(0.1)]


@pytest.mark.fault(4, 5, 6)
@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        *(("temperature", x, "a positive number") for x in NO_POSITIVE_NUMBERS),
        ("temperature", None, "a positive number"),
        *(
            ("block_size", x, "an integer of at least 1")
            for x in [0, -1, 2.0, "4", True]
        ),
    ],
)
def test_arguments_out_of_range_are_refused(name, value, rule):
    for make in (
        lambda: simclr.NTXent(**{name: value}),
        lambda: simclr.nt_xent(*projections(), **{name: value}),
    ):
        with pytest.raises(ValueError) as error:
            make()
        assert str(error.value) == (
            f"`{name}` must be {rule}. Received: {name}={value!r}"
        )


@pytest.mark.parametrize(
    ("first", "second"),
    [((4, 8), (3, 8)), ((4, 8), (4, 7)), ((4, 8, 1), (4, 8, 1)), ((4,), (4,))],
)
def test_projections_of_unequal_or_wrong_shape_are_refused(first, second):
    with pytest.raises(ValueError) as error:
        simclr.nt_xent(np.ones(first), np.ones(second))
    assert str(error.value) == (
        "Both views need projections of the same shape (N, D). "
        f"Received: z_1 of shape {first}, z_2 of shape {second}"
    )


def test_decoupled_is_a_boolean():
    with pytest.raises(ValueError, match="`decoupled` must be True or False"):
        simclr.NTXent(decoupled="no")


@pytest.mark.fault(8)
def test_one_image_is_refused():
    with pytest.raises(ValueError) as error:
        simclr.nt_xent(np.ones((1, 8)), np.ones((1, 8)))
    assert str(error.value) == (
        "A contrastive loss needs at least two images: every other image of "
        "the batch is a negative. Received: z_1 of shape (1, 8)"
    )


@pytest.mark.parametrize(
    ("groups", "shape", "dtype"),
    [
        (np.zeros(3, "int64"), "(3,)", "int64"),
        (np.zeros((4, 1), "int32"), "(4, 1)", "int32"),
        (np.int32(0), "()", "int32"),
        (np.zeros(4, "float32"), "(4,)", "float32"),
        (np.zeros(4, "bool"), "(4,)", "bool"),
        (["a", "b", "c", "d"], "(4,)", "string"),
    ],
)
def test_groups_that_are_not_an_integer_per_image_are_refused(
    groups, shape, dtype
):
    with pytest.raises(ValueError) as error:
        simclr.nt_xent(*projections(4), groups=groups)
    assert str(error.value) == (
        "`groups` must be integers of shape (N,), one for each image. "
        f"Received: groups of shape {shape} and dtype {dtype}, "
        "projections of shape (4, 8)"
    )


class Halved(simclr.NTXent):
    """Overrides what Keras's losses override."""

    def call(self, z_1, z_2, *, groups=None):
        return super().call(z_1, z_2) / 2.0


class Doubled(simclr.NTXent):
    """Overrides what the model calls."""

    def contrast(self, z, groups=None):
        loss, found = super().contrast(z, groups)
        return 2.0 * loss, found


class Own(losses.ContrastiveLoss):
    """Has a method of its own, and nothing else."""

    takes_groups = False

    def contrast(self, z, groups=None):
        return tf.reduce_mean((z[0] - z[1]) ** 2), None


def called(z_1, z_2):
    return tf.reduce_mean((z_1 - z_2) ** 2)


def test_the_method_of_a_subclass_is_what_runs():
    z = tf.constant(projections(dtype="float32"))
    value = float(simclr.nt_xent(*z))
    for loss, factor in ((simclr.NTXent(), 1), (Doubled(), 2), (Halved(), 0.5)):
        found, _ = losses.as_contrastive(loss).contrast(z)
        assert float(found) == pytest.approx(factor * value, rel=1e-6)
    assert float(Doubled()(*z)) == pytest.approx(2 * value, rel=1e-6)
    # It is trained, too.
    encoder = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
    images = np.random.default_rng(0).random((8, 8, 8, 1), "float32")
    values = []
    for loss in (simclr.NTXent(), Doubled(), Halved()):
        model = simclr.SimCLRModel(
            encoder, keras.layers.Identity(), augmentation=simclr.RandomFlip()
        )
        model.compile("sgd", loss, run_eagerly=True)
        values.append(model.evaluate(images, batch_size=8, verbose=0)[0])
    assert values[1:] == pytest.approx([2 * values[0], values[0] / 2])


def test_what_has_no_method_for_groups_takes_none():
    kinds = [simclr.NTXent(), Doubled(), Halved(), Own(), called]
    taken = [losses.as_contrastive(kind).takes_groups for kind in kinds]
    assert taken == [True, True, False, False, False]


def test_own_losses_can_be_used_as_functions():
    z = tf.constant(projections(dtype="float32"))
    expected = float(called(*z))
    assert float(Own()(*z)) == pytest.approx(expected)
    assert losses.as_contrastive(Own()).chance(8) is None
    without = losses.ContrastiveLoss()  # Whose method names no groups.
    without.contrast = lambda z: (called(*tf.unstack(z)), None)
    assert float(losses.contrast_of(without, tf.stack(z))[0]) == expected
    assert float(losses.as_contrastive(called).contrast(z)[0]) == expected


def test_similarities_are_computed_once(monkeypatch):
    calls, compare = [], losses.similarities.log_sum_exp
    monkeypatch.setattr(
        losses.similarities,
        "log_sum_exp",
        lambda *args, **kwargs: calls.append(1) or compare(*args, **kwargs),
    )
    encoder = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
    images = tf.zeros((4, 8, 8, 1))
    for loss in (simclr.NTXent(), Doubled(), called):
        model = simclr.SimCLRModel(encoder, augmentation=simclr.RandomFlip())
        model.compile("sgd", loss, run_eagerly=True)
        del calls[:]
        model.replica_gradients({"images": images})
        assert len(calls) == 1


@pytest.mark.parametrize(
    "loss",
    [
        keras.losses.cosine_similarity,
        keras.losses.CosineSimilarity(reduction=None),
        lambda z_1, z_2: z_1 - z_2,
    ],
)
def test_loss_that_is_no_number_is_refused(loss):
    z = tf.zeros((2, 4, 3))
    with pytest.raises(ValueError) as error:
        losses.contrast_of(losses.as_contrastive(loss), z)
    shape = "(4, 3)" if getattr(loss, "__name__", "") == "<lambda>" else "(4,)"
    assert str(error.value) == (
        "A loss must return one number for all projections: take the mean, "
        "tf.reduce_mean(...), or leave the `reduction` of a Keras loss as it "
        f"is. Received: a loss of shape {shape}"
    )


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_loss_has_the_type_of_the_projections(dtype):
    loss = losses.as_contrastive(lambda z_1, z_2: tf.constant(2, dtype))
    value, found = losses.contrast_of(loss, tf.zeros((2, 4, 3)))
    assert (value.dtype, float(value), found) == (tf.float32, 2.0, None)
