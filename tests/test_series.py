import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats
from scipy.spatial.transform import Rotation

import keras_simclr as simclr
from keras_simclr import features, kinds, series
from keras_simclr.random_layers import uniforms

RNG = np.random.default_rng(0)
WINDOWS = RNG.normal(1.0, 2.0, (40, 32, 6)).astype("float32")
DRAWS = 20_000
LAYERS = [
    series.RandomRotation3D(),
    series.RandomScaling(),
    series.RandomJitter(),
    series.RandomPermutation(),
    series.RandomTimeWarp(),
    series.RandomCrop1D(),
    series.RandomMask(),
]
each_layer = pytest.mark.parametrize("layer", LAYERS, ids=lambda x: x.name)


def draws_of(layer, count=DRAWS, shape=(32, 6)):
    """What a layer draws for so many windows, as arrays."""
    windows = tf.zeros((count, *shape))
    return layer._draw(tf.constant([0, 1], tf.int64), windows)


def adapted():
    layer = series.Standardization(name="standardization")
    layer.adapt(WINDOWS)
    return layer


@each_layer
def test_windows_at_rest_come_back(layer):
    views = layer(WINDOWS.astype("float64"), training=False)
    np.testing.assert_array_equal(views, WINDOWS)
    assert views.dtype == tf.float32
    assert layer.kind is kinds.SERIES


@each_layer
def test_views_are_others_in_training(layer):
    views = np.asarray(layer(WINDOWS, seed=(0, 1)))
    is_changed = (np.abs(views - WINDOWS) > 1e-3).any(axis=(1, 2))
    # One in five permutations is of a single segment.
    assert is_changed.mean() > 0.6
    assert np.isfinite(views).all()


@each_layer
def test_parts_of_a_batch_get_the_views_of_the_whole(layer):
    whole = layer(WINDOWS, seed=(3, 4))
    parts = [
        layer(WINDOWS[a:b], seed=(3, 4), part=(a, 40))
        for a, b in ((0, 7), (7, 39), (39, 40))
    ]
    np.testing.assert_allclose(tf.concat(parts, axis=0), whole, atol=3e-5)


@each_layer
def test_what_is_no_series_is_refused(layer):
    with pytest.raises(ValueError, match=r"\(batch, time, channels\)"):
        layer(np.zeros((2, 4, 8, 6)))
    with pytest.raises(ValueError, match=r"Windows must be floats\. Rec"):
        layer(np.zeros((2, 8, 6), "int32"))


@pytest.mark.parametrize(
    ("kind", "arguments", "name"),
    [
        (series.RandomRotation3D, {"triples": [[0, 1]]}, "triples"),
        (series.RandomRotation3D, {"triples": [[0, 1, 1]]}, "triples"),
        (series.RandomRotation3D, {"triples": [[0, 1, -2]]}, "triples"),
        (series.RandomRotation3D, {"triples": [["x", "y", "z"]]}, "triples"),
        (series.RandomRotation3D, {"triples": []}, "triples"),
        (series.RandomRotation3D, {"angle": 181}, "angle"),
        (series.RandomScaling, {"stddev": 0}, "stddev"),
        (series.RandomJitter, {"stddev": -1.0}, "stddev"),
        (series.RandomJitter, {"stddev": float("nan")}, "stddev"),
        (series.RandomPermutation, {"segments": 1}, "segments"),
        (series.RandomTimeWarp, {"stddev": 0.0}, "stddev"),
        (series.RandomTimeWarp, {"knots": 1}, "knots"),
        (series.RandomCrop1D, {"length": 1}, "length"),
        (series.RandomCrop1D, {"scale": (0.5, 1.5)}, "scale"),
        (series.RandomCrop1D, {"scale": 0.5}, "scale"),
        (series.RandomMask, {"share": 0.0}, "share"),
        (series.RandomMask, {"share": 1.5}, "share"),
    ],
)
def test_wrong_argument_is_named(kind, arguments, name):
    with pytest.raises(ValueError, match=f"^`{name}` must .*Received: {name}="):
        kind(**arguments)


def quaternions(draws):
    """Shoemake's, in float64."""
    u, v, w = np.asarray(draws, "float64").T
    v, w = 2 * np.pi * v, 2 * np.pi * w
    a, b = np.sqrt(1 - u), np.sqrt(u)
    return np.stack(
        [a * np.sin(v), a * np.cos(v), b * np.sin(w), b * np.cos(w)]
    )


def test_rotation_is_that_of_its_quaternion():
    layer = series.RandomRotation3D()
    draws = draws_of(layer, 40)
    expected = WINDOWS.astype("float64").copy()
    for sensor in (0, 1):
        rotations = Rotation.from_quat(quaternions(draws[:, sensor]).T)
        place = slice(3 * sensor, 3 * sensor + 3)
        for window, matrix in zip(expected, rotations.as_matrix(), strict=True):
            window[:, place] = window[:, place] @ matrix.T
    views = layer._transform(tf.constant(WINDOWS), draws)
    np.testing.assert_allclose(views, expected, atol=1e-5)


@pytest.mark.parametrize("angle", [180.0, 40.0])
def test_rotations_are_orthogonal_and_proper(angle):
    layer = series.RandomRotation3D(angle=angle)
    draws = uniforms(tf.constant([0, 2], tf.int64), (DRAWS, 3))
    matrices = np.asarray(layer.matrices(draws), "float64")
    products = matrices @ matrices.transpose(0, 2, 1)
    np.testing.assert_allclose(
        products, np.tile(np.eye(3), (DRAWS, 1, 1)), atol=1e-5
    )
    np.testing.assert_allclose(np.linalg.det(matrices), 1.0, atol=1e-5)
    # Where any vector lands is as likely everywhere on the sphere.
    axis = np.array([1.0, 2.0, -2.0]) / 3
    trace = np.trace(matrices, axis1=1, axis2=2)
    angles = np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1)))
    if angle == 180.0:
        for row in matrices @ axis, matrices[:, 0]:
            for column in row.T:
                assert stats.kstest(column, "uniform", (-1, 2)).pvalue > 0.001
        # The density of the angle of a uniform rotation: (1 - cos) / pi.
        radians = np.radians(angles)
        expected = stats.kstest(radians, lambda x: (x - np.sin(x)) / np.pi)
        assert expected.pvalue > 0.001
    else:
        assert angles.max() <= angle + 0.1
        assert stats.kstest(angles, "uniform", (0, angle)).pvalue > 0.001


def test_only_the_triples_that_are_told_are_rotated():
    layer = series.RandomRotation3D([[5, 0, 2]])
    views = np.asarray(layer(WINDOWS, seed=(0, 1)))
    np.testing.assert_array_equal(
        views[..., [1, 3, 4]], WINDOWS[..., [1, 3, 4]]
    )
    lengths = [
        np.linalg.norm(x[..., [5, 0, 2]], axis=-1) for x in (views, WINDOWS)
    ]
    np.testing.assert_allclose(*lengths, rtol=1e-4)
    for column in (0, 2, 5):
        assert np.abs(views[..., column] - WINDOWS[..., column]).max() > 0.1


def test_channels_that_are_no_triples_are_refused():
    with pytest.raises(ValueError, match="triples=None for windows of shape"):
        series.RandomRotation3D()(np.zeros((2, 8, 4)))
    with pytest.raises(ValueError, match=r"`triples` must be of channels that"):
        series.RandomRotation3D([[0, 1, 6]])(np.zeros((2, 8, 6)))


def test_scaling_has_a_normal_factor_for_each_channel():
    layer = series.RandomScaling(0.3)
    views = layer(np.ones((DRAWS // 4, 3, 6), "float32"), seed=(0, 1)).numpy()
    factors = views[:, 0]
    np.testing.assert_array_equal(views, np.repeat(factors[:, None], 3, axis=1))
    pvalue = stats.kstest(factors.ravel(), "norm", (1.0, 0.3)).pvalue
    assert pvalue > 0.001
    assert np.abs(np.corrcoef(factors.T) - np.eye(6)).max() < 0.1


def test_jitter_is_normal_and_of_each_value_alone():
    noise = series.RandomJitter(0.3)(np.zeros((200, 16, 6)), seed=(0, 1))
    noise = noise.numpy()
    assert stats.kstest(noise.ravel(), "norm", (0.0, 0.3)).pvalue > 0.001
    assert len(np.unique(noise)) > 0.95 * noise.size
    again = series.RandomJitter(0.3)(np.zeros((200, 16, 6)), seed=(0, 2))
    assert abs(np.corrcoef(noise.ravel(), again.numpy().ravel())[0, 1]) < 0.02


def test_permutation_keeps_what_there_is_and_cuts_it_rarely():
    steps = np.tile(np.arange(32.0)[:, None], (DRAWS // 4, 1, 2))
    steps[..., 1] += 100.0
    views = series.RandomPermutation(4)(steps, seed=(0, 1)).numpy()
    np.testing.assert_array_equal(np.sort(views, axis=1), steps)
    np.testing.assert_array_equal(views[..., 1], views[..., 0] + 100.0)
    breaks = (np.diff(views[..., 0], axis=1) != 1.0).sum(axis=1)
    assert breaks.max() == 3
    # One segment in a quarter of them, or more in the same order.
    assert 0.25 < (breaks == 0).mean() < 0.5
    first = views[views[:, 0, 0] > 0, 0, 0]
    assert len(np.unique(first)) == 31  # Cut anywhere.


def test_warp_takes_the_windows_at_places_that_rise():
    layer = series.RandomTimeWarp(0.5, knots=4)
    draws = draws_of(layer, 40)
    places = np.asarray(layer.places(draws, 32), "float64")
    assert (np.diff(places, axis=1) > 0).all()
    np.testing.assert_allclose(places[:, 0], 0.0)
    np.testing.assert_allclose(places[:, -1], 31.0, rtol=1e-5)
    views = layer._transform(tf.constant(WINDOWS), draws)
    np.testing.assert_allclose(views, at_places(places), atol=1e-4)
    pairs = np.asarray(draws, "float64").reshape(40, 4, 2)
    normals = np.sqrt(-2 * np.log(1 - pairs[..., 0]))
    speeds = np.exp(0.5 * normals * np.cos(2 * np.pi * pairs[..., 1]))
    middles = (np.arange(31) + 0.5) / 31 * 3
    steps = [np.interp(middles, range(4), each) for each in speeds]
    passed = np.cumsum(steps, axis=1)
    passed *= 31 / passed[:, -1:]
    np.testing.assert_allclose(places[:, 1:], passed, rtol=1e-4)


def at_places(places):
    """The windows at places in time, in float64."""
    steps = np.arange(WINDOWS.shape[1])
    return np.stack(
        [
            np.stack([np.interp(at, steps, x) for x in window.T], axis=-1)
            for at, window in zip(
                places, WINDOWS.astype("float64"), strict=True
            )
        ]
    )


def test_crop_is_a_stretch_of_the_window():
    layer = series.RandomCrop1D(scale=(0.2, 0.6))
    draws = draws_of(layer, 40)
    share, start = np.asarray(draws, "float64").T[:, :, None]
    share = 0.2 + 0.4 * share
    places = start * (1 - share) * 31 + share * np.arange(32)
    assert places.min() >= 0
    assert places.max() <= 31
    views = layer._transform(tf.constant(WINDOWS), draws)
    np.testing.assert_allclose(views, at_places(places), atol=1e-4)


def test_crop_of_a_length_lies_anywhere_and_in_the_middle_at_rest():
    steps = np.tile(np.arange(32.0)[:, None], (DRAWS // 4, 1, 1))
    layer = series.RandomCrop1D(8, scale=(1.0, 1.0))
    views = layer(steps, seed=(0, 1)).numpy()[..., 0]
    np.testing.assert_allclose(np.diff(views, axis=1), 1.0, atol=1e-4)
    assert stats.kstest(views[:, 0], "uniform", (0, 24)).pvalue > 0.001
    rest = layer(steps, training=False)
    np.testing.assert_array_equal(rest[0, :, 0], np.arange(12.0, 20.0))
    plain = keras.Input((32, 1))
    plain = keras.Model(plain, layer.plain_at_rest(plain))
    np.testing.assert_array_equal(plain(steps[:2]), rest[:2])
    with pytest.raises(ValueError, match=r"windows of shape .* for length=8"):
        layer(steps[:, :7])


def test_model_of_crops_takes_longer_windows():
    layers = [series.Standardization(), series.RandomCrop1D(8)]
    encoder = series.ConvNet1D((4,), input_shape=(8, 6))
    model = simclr.SimCLRModel(encoder, augmentation=layers)
    features.adapt(model, simclr.dataset_from_arrays(WINDOWS, batch_size=8))
    model.compile()
    model.fit(WINDOWS, batch_size=20, epochs=1, verbose=0)
    h = model.predict(WINDOWS[:4], verbose=0)
    middle = model.predict(WINDOWS[:4, 12:20], verbose=0)
    np.testing.assert_allclose(h, middle, atol=1e-6)


def test_whole_crop_is_the_window():
    views = series.RandomCrop1D(scale=(1.0, 1.0))(WINDOWS, seed=(0, 1))
    np.testing.assert_allclose(views, WINDOWS, atol=1e-6)


def test_mask_is_one_stretch_of_up_to_its_share():
    ones = np.ones((DRAWS // 4, 50, 2), "float32")
    is_masked = series.RandomMask(0.4)(ones, seed=(0, 1)).numpy() == 0.0
    np.testing.assert_array_equal(is_masked[..., 0], is_masked[..., 1])
    is_masked = is_masked[..., 0]
    ends = np.diff(np.pad(is_masked, [(0, 0), (1, 1)]).astype(int), axis=1)
    assert (ends == 1).sum(axis=1).max() == 1
    share = is_masked.mean(axis=1)
    assert share.max() <= 0.4 + 1 / 50
    assert abs(share.mean() - 0.2) < 0.01
    assert is_masked.any(axis=0).all()


def test_standardization_is_that_of_all_steps():
    scale = np.array([1e-6, 1.0, 1e6, 1.0, 3.0, 0.5])
    windows = np.add(WINDOWS, [0, 1e4, 0, -5, 0, 0]) * scale
    windows[..., 3] = 1013.25  # A sensor that is stuck.
    windows = windows.astype("float32")
    layer = series.Standardization()
    layer.adapt(
        simclr.dataset_from_arrays(
            windows, batch_size=7, shuffle=False, drop_remainder=False
        )
    )
    values = windows.astype("float64")
    mean, stddev = values.mean(axis=(0, 1)), values.std(axis=(0, 1))
    stddev[3] = 1.0
    expected = (values - mean) / stddev
    expected[..., 3] = 0.0
    for training in (True, False):
        views = layer(windows, training=training)
        np.testing.assert_allclose(views, expected, atol=2e-3)
    plain = keras.Input((32, 6))
    plain = keras.Model(plain, layer.plain_at_rest(plain))
    np.testing.assert_allclose(plain(windows), views, atol=1e-5)


def test_standardization_forgets_what_it_saw_before():
    layer = series.Standardization()
    layer.adapt(100.0 * WINDOWS)
    layer.adapt(WINDOWS)
    np.testing.assert_array_equal(layer(WINDOWS), adapted()(WINDOWS))


def test_standardization_must_have_seen_windows():
    layer = series.Standardization(name="first")
    sentence = re.escape(
        "Standardization must see windows before it makes views: adapt(...). "
        "Received: none, for 'first'"
    )
    for call in (layer, tf.function(layer), tf.function(layer.call)):
        with pytest.raises(ValueError, match=sentence):
            call(tf.constant(WINDOWS))
    layer(keras.Input((32, 6)))  # A model can be made.
    for wrong in (WINDOWS[:0], WINDOWS * np.nan, WINDOWS[0], WINDOWS > 0):
        with pytest.raises(ValueError, match="Received"):
            series.Standardization().adapt(wrong)


def test_network_needs_windows_that_can_be_halved():
    for arguments in (
        {"filters": (4, 4, 4), "input_shape": (3, 6)},
        {"filters": (), "input_shape": (32, 6)},
        {"filters": (0,), "input_shape": (32, 6)},
        {"kernel_size": 0, "input_shape": (32, 6)},
    ):
        with pytest.raises(ValueError, match="Received: "):
            series.ConvNet1D(**arguments)
    network = series.default_encoder((None, 6), 0.1)
    assert network(np.zeros((2, 50, 6))).shape == network(WINDOWS[:2]).shape


def build():
    keras.utils.set_random_seed(0)
    layers = series.default_augmentation((None, 32, 6))["augmentation"]
    model = simclr.SimCLRModel(
        series.ConvNet1D((4, 8), kernel_size=3, input_shape=(32, 6)),
        simclr.ProjectionHead(units=4),
        augmentation=[series.RandomRotation3D(angle=20.0), *layers],
    )
    features.adapt(model, simclr.dataset_from_arrays(WINDOWS, batch_size=8))
    model.compile(keras.optimizers.SGD(0.1))
    return model


def test_model_of_series_trains_and_comes_back(tmp_path):
    model = build()
    assert model.kind is kinds.SERIES
    history = model.fit(WINDOWS, batch_size=20, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    h = model.predict(WINDOWS, verbose=0)
    np.testing.assert_allclose(
        h, simclr.extract_features(model, WINDOWS), atol=1e-5
    )
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    loaded, other = keras.saving.load_model(tmp_path / "model.keras"), build()
    other.load_weights(tmp_path / "model.weights.h5")
    for copy in (loaded, other):
        np.testing.assert_allclose(
            copy.predict(WINDOWS, verbose=0), h, atol=1e-6
        )
        for views in zip(
            copy.views(WINDOWS), model.views(WINDOWS), strict=True
        ):
            np.testing.assert_allclose(*views, atol=1e-6)
    directory = tmp_path / "exported"
    simclr.export_encoder(model, directory, formats=["keras", "saved_model"])
    plain = keras.saving.load_model(directory / "encoder.keras")
    np.testing.assert_allclose(plain.predict(WINDOWS, verbose=0), h, atol=1e-4)
    module = tf.saved_model.load(str(directory / "saved_model"))
    np.testing.assert_allclose(module(WINDOWS), h, atol=1e-4)


def test_model_with_a_layer_of_another_comes_back(tmp_path):
    """Which is tried before there are weights."""
    layers = [series.Standardization(), keras.layers.GaussianNoise(0.1)]
    encoder = series.ConvNet1D((4,), input_shape=(32, 6))
    with pytest.warns(UserWarning, match="take no `seed`"):
        model = simclr.SimCLRModel(encoder, augmentation=layers)
    layers[0].adapt(WINDOWS)
    model.save(tmp_path / "model.keras")
    with pytest.warns(UserWarning, match="take no `seed`"):
        loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(WINDOWS), model(WINDOWS))


def test_replicas_train_on_series_as_one_device():
    dataset = simclr.dataset_from_arrays(WINDOWS, batch_size=16)
    simclr.testing.assert_replica_parity(build, dataset)
