import itertools

import numpy as np
import pytest

import keras_simclr as simclr
from keras_simclr import windows
from keras_simclr.windows import statistics, windows_of, windows_of_all

RNG = np.random.default_rng(0)
STEPS = np.arange(64)


def names(channels, bands=12):
    """What the features are, in order, so many of each."""
    each = [
        *("mean", "stddev", "rms", "min", "q1", "median", "q3", "max"),
        *("skew", "crossings", "change", "peak"),
        *(f"band {i}" for i in range(bands)),
    ]
    pairs = channels * (channels - 1) // 2
    return np.array([*np.repeat(each, channels), *["correlation"] * pairs])


def test_statistics_are_those_of_loops():
    batch = RNG.normal(2.0, 3.0, (5, 64, 3))
    found = statistics(batch)
    bands = (found.shape[1] - 3) // 3 - 12
    where = names(3, bands)
    for window, row in zip(batch, found, strict=True):
        expected = {
            "mean": [x.mean() for x in window.T],
            "stddev": [x.std() for x in window.T],
            "rms": [np.sqrt((x @ x) / 64) for x in window.T],
            "min": window.min(axis=0),
            "median": np.sort(window, axis=0)[31:33].mean(axis=0),
            "max": window.max(axis=0),
            "skew": [
                ((x - x.mean()) ** 3).mean() / x.std() ** 3 for x in window.T
            ],
            "crossings": [
                sum(a * b < 0 for a, b in itertools.pairwise(x)) / 63
                for x in (window - window.mean(axis=0)).T
            ],
            "change": [
                sum(abs(b - a) for a, b in itertools.pairwise(x)) / 63
                for x in window.T
            ],
            "correlation": np.corrcoef(window.T)[np.triu_indices(3, 1)],
        }
        for name, values in expected.items():
            np.testing.assert_allclose(row[where == name], values, rtol=1e-4)


def test_bands_hold_all_of_the_variance_each_at_its_frequency():
    noise = RNG.normal(size=(4, 64, 1))
    bands = slice(12, None)
    power = np.exp(statistics(noise)[:, bands])
    # Each frequency stands for itself and its mirror, the highest alone.
    spectrum = np.fft.rfft(noise[..., 0], axis=1)
    highest = np.abs(spectrum[:, -1]) ** 2 / 64**2
    variance = noise.var(axis=(1, 2))
    np.testing.assert_allclose(
        2 * power.sum(axis=1) - highest, variance, rtol=1e-4
    )
    loudest = []
    for frequency in (1, 3, 9, 30):
        wave = np.sin(2 * np.pi * frequency * STEPS / 64)[None, :, None]
        row = statistics(wave)[0]
        assert row[11] == pytest.approx((frequency - 1) / 32)
        loudest.append(row[bands].argmax())
    assert loudest == sorted(set(loudest))


@pytest.mark.parametrize("value", [0.0, 101_325.3, -1e-9])
def test_statistics_of_a_constant_channel_are_finite(value):
    batch = RNG.normal(size=(3, 32, 2)).astype("float32")
    batch[..., 1] = value
    found = statistics(batch)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[:, -1], 0.0)  # The correlation.


def test_statistics_of_two_steps_are_finite():
    assert np.isfinite(statistics(RNG.normal(size=(3, 2, 4)))).all()


def test_windows_without_statistics_are_refused():
    for shape in ((3, 32), (3, 1, 2)):
        with pytest.raises(ValueError, match=r"\(N, time, channels\)"):
            statistics(np.zeros(shape))
    with pytest.raises(ValueError, match="NaN or infinity"):
        statistics(np.full((3, 8, 2), np.nan))


@pytest.mark.parametrize("stride", [1, 5, 8, 20])
def test_windows_are_those_stretches_of_the_recording(stride):
    recording = RNG.normal(size=(50, 3))
    found, starts = windows_of(recording, 8, stride)
    assert starts.tolist() == list(range(0, 43, stride))
    for window, start in zip(found, starts, strict=True):
        expected = recording[start : start + 8].astype("float32")
        np.testing.assert_array_equal(window, expected)
    assert found.dtype == "float32"


def test_windows_with_gaps_are_left_out():
    recording = RNG.normal(size=(50, 3))
    recording[17, 1], recording[33] = np.nan, np.inf
    found, starts = windows_of(recording, 8, 4)
    assert starts.tolist() == [0, 4, 8, 20, 24, 36, 40]
    assert np.isfinite(found).all()


def test_short_recording_has_no_windows():
    for length in (0, 7):
        found, starts = windows_of(np.zeros((length, 3)), 8, 4)
        assert found.shape == (0, 8, 3)
        assert starts.shape == (0,)


def test_recording_of_one_channel_needs_no_second_axis():
    found, _ = windows_of(list(range(16)), 8, 8)
    assert found.shape == (2, 8, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"recording": np.zeros((2, 3, 4))},
        {"recording": np.array(["a", "b"])},
        {"recording": np.array([None, 1.0])},
        {"window": 1},
        {"stride": 0},
    ],
)
def test_what_cannot_be_cut_is_refused(wrong):
    with pytest.raises(ValueError, match="Received: "):
        windows_of(**{"recording": np.zeros((50, 3)), "window": 8, **wrong})


def test_constant_is_what_float32_cannot_tell_from_it():
    values = np.float32([0.1, 3.3, 1e-20, 101_325.3])
    channels = np.tile(values.astype("float64"), (1000, 1))
    mean, stddev = channels.mean(axis=0), channels.std(axis=0)
    assert windows.is_constant(mean, stddev).all()
    assert not windows.is_constant(np.float64(101_325.0), 1.0)


def test_recordings_of_any_length_become_windows_of_their_labels():
    recordings = [RNG.normal(size=(n, 2)) for n in (30, 16, 40)]
    recordings[2][35] = np.nan
    found, labels, _ = windows_of_all(recordings, ["a", "b", "c"], 16)
    assert labels.tolist() == ["a", "a", "b", "c", "c", "c"]
    parts = [windows_of(x, 16, 8)[0] for x in recordings]
    np.testing.assert_array_equal(found, np.concatenate(parts))


def test_labels_of_steps_become_the_most_frequent():
    steps = np.repeat([5, 3, -1], [10, 12, 10])
    _, labels, _ = windows_of_all([np.zeros((32, 2))], [steps], 8, 8)
    assert labels.tolist() == [5, 3, 3, -1]
    _, mixed, _ = windows_of_all(np.zeros((2, 32, 2)), [steps, 7], 8, 8)
    assert mixed.tolist() == [5, 3, 3, -1, 7, 7, 7, 7]


def test_recordings_without_windows_are_said():
    recordings = [np.zeros((5, 2)), np.zeros((8, 2)), np.full((9, 2), np.nan)]
    with pytest.warns(UserWarning, match="2 of 3 recordings, which have no"):
        found, labels, _ = windows_of_all(recordings, [1, 2, 3], 8)
    assert len(found) == 1
    assert labels.tolist() == [2]


@pytest.mark.parametrize(
    ("recordings", "labels", "words"),
    [
        ([], None, "window=8 for 0 recordings of at most 0 steps"),
        ([np.zeros((7, 2))], None, "window=8 for 1 recordings of at most 7"),
        ([np.zeros((9, 2)), np.zeros((9, 3))], None, "2 and 3 of them"),
        (np.zeros((9, 2)), None, r"write \[recording\]"),
        ([np.zeros((9, 2))], [1, 2], "2 for 1 recordings"),
        ([np.zeros((9, 2))], [[1, 2]], r"shape \(2,\) for 9 steps"),
    ],
)
def test_recordings_of_no_use_are_refused(recordings, labels, words):
    with pytest.raises(ValueError, match=f"must .*Received: .*{words}"):
        windows_of_all(recordings, labels, 8)


def test_dataset_of_recordings_has_their_windows():
    recordings = [RNG.normal(size=(n, 2)) for n in (32, 24)]
    dataset = simclr.dataset_from_arrays(
        recordings, [4, 5], window=8, stride=8, batch_size=7, shuffle=False
    )
    ((batch, labels),) = dataset
    np.testing.assert_array_equal(
        batch, windows_of_all(recordings, None, 8, 8)[0]
    )
    assert labels.numpy().tolist() == [4, 4, 4, 4, 5, 5, 5]
    (batch,) = simclr.dataset_from_arrays(recordings, window=8, batch_size=9)
    assert batch.shape == (9, 8, 2)
    with pytest.raises(ValueError, match=r"tell `window`, too.*stride=8"):
        simclr.dataset_from_arrays(np.zeros((9, 8, 2)), stride=8, batch_size=4)
