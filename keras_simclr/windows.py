"""Windows of long recordings, and features of them that need no network."""

import warnings

import numpy as np

from keras_simclr import _checks
from keras_simclr.moments import is_constant

# Frequencies of a window are summed up in bands, each wider than the last.
_BANDS = 12


def statistics(windows):
    """Raw features of windows, which an encoder must be better than.

    Of each channel: mean, standard deviation, root of the mean square, extremes
    and quartiles, skewness, how often it crosses its mean, the share of the
    steps in its change, its dominant frequency, and the logarithm of its power
    in up to 12 bands of frequencies. Of each pair of channels: their
    correlation; 0 of a channel that is constant.

    Args:
        windows: Array of shape `(N, time, channels)`, `time` at least 2.

    Returns:
        float32 array of shape `(N, features)`.

    Raises:
        ValueError: If windows have another shape, or are not finite.

    Example:

    >>> windows = np.random.default_rng(0).normal(size=(5, 64, 6))
    >>> statistics(windows).shape
    (5, 147)
    """
    windows = np.asarray(windows, "float64")
    if windows.ndim != 3 or windows.shape[1] < 2:
        raise ValueError(
            "Windows must have the shape (N, time, channels), with at least 2 "
            f"steps. Received: windows of shape {windows.shape}"
        )
    if not np.isfinite(windows).all():
        raise ValueError(
            "Windows must be finite numbers. Received: NaN or infinity in "
            f"windows of shape {windows.shape}. Leave such windows out, as "
            "`windows_of` does"
        )
    mean, stddev = windows.mean(axis=1), windows.std(axis=1)
    still = is_constant(mean, stddev)[:, None]
    shape = np.where(still, 0.0, windows - mean[:, None])
    shape /= np.where(still, 1.0, stddev[:, None])
    signs = shape > 0
    power = np.abs(np.fft.rfft(windows - mean[:, None], axis=1)[:, 1:]) ** 2
    edges = np.unique(np.rint(np.geomspace(1, power.shape[1] + 1, _BANDS + 1)))
    edges = edges.astype(int) - 1
    bands = np.add.reduceat(power, edges[:-1], axis=1) / windows.shape[1] ** 2
    first, second = np.triu_indices(windows.shape[2], 1)
    parts = [
        mean,
        stddev,
        np.sqrt((windows**2).mean(axis=1)),
        *np.quantile(windows, (0.0, 0.25, 0.5, 0.75, 1.0), axis=1),
        (shape**3).mean(axis=1),
        (signs[:, 1:] != signs[:, :-1]).mean(axis=1),
        np.abs(np.diff(windows, axis=1)).mean(axis=1),
        power.argmax(axis=1) / power.shape[1],
        *np.moveaxis(np.log(bands + 1e-8), 1, 0),
        (shape[..., first] * shape[..., second]).mean(axis=1),
    ]
    return np.concatenate(parts, axis=1).astype("float32")


def windows_of(recording, window=128, stride=64):
    """Cuts a recording into windows of one length.

    Windows with a gap (NaN, or infinity) are left out, as is what does not
    fill a window at the end. A recording that is too short has none.

    Args:
        recording: Array of shape `(time, channels)`, or `(time,)` for one
            channel.
        window: Steps in a window, at least 2.
        stride: Steps from the beginning of one to that of the next.

    Returns:
        float32 array of shape `(N, window, channels)`, and an integer array of
        shape `(N,)`: where in time each begins.

    Raises:
        ValueError: If an argument is out of range, or the recording has
            another shape or no numbers.

    Example:

    >>> windows, starts = windows_of(np.zeros((300, 6)), 128, 64)
    >>> windows.shape, starts.tolist()
    ((3, 128, 6), [0, 64, 128])
    """
    _checks.integer("window", window, minimum=2)
    _checks.integer("stride", stride, minimum=1)
    recording = np.asarray(recording)
    if recording.ndim == 1:
        recording = recording[:, None]
    if recording.ndim != 2 or recording.dtype.kind not in "biuf":
        raise ValueError(
            "A recording must be an array of numbers of shape (time, channels)."
            f" Received: shape {recording.shape} and dtype {recording.dtype}"
        )
    starts = np.arange(0, len(recording) - window + 1, stride)
    places = starts[:, None] + np.arange(window)
    windows = recording.astype("float32")[places]
    is_whole = np.isfinite(windows).all(axis=(1, 2))
    return windows[is_whole], starts[is_whole]


def windows_of_all(recordings, labels=None, window=128, stride=None):
    """Windows of many recordings, and their labels, as `windows_of` cuts them.

    Args:
        recordings: List of arrays of shape `(time, channels)`, of any length;
            or one array of shape `(N, time, channels)`.
        labels: For each recording a label, or an array `(time,)` of a label for
            each step, of which a window has the most frequent; or None.
        window: Steps in a window, at least 2.
        stride: Steps from one window to the next; None for half a window.

    Returns:
        float32 array of shape `(N, window, channels)`; an array of labels of
        shape `(N,)`, or None; and the place of each window's recording, `(N,)`.

    Raises:
        ValueError: If no recording has a window, they differ in channels, or
            there is not one label for each recording or for each of its steps.

    Example:

    >>> recordings = [np.zeros((300, 6)), np.ones((200, 6))]
    >>> windows, labels, places = windows_of_all(
    ...     recordings, ["walk", "run"], 100, 100
    ... )
    >>> windows.shape, labels.tolist(), places.tolist()
    ((5, 100, 6), ['walk', 'walk', 'walk', 'run', 'run'], [0, 0, 0, 1, 1])
    """
    stride = max(1, window // 2) if stride is None else stride
    if isinstance(recordings, np.ndarray) and recordings.ndim != 3:
        raise ValueError(
            "Recordings must be a list of arrays (time, channels), or an array "
            "(N, time, channels). Received: an array of shape "
            f"{recordings.shape}. If it is one recording, write [recording]"
        )
    recordings = list(recordings)
    if labels is not None and len(labels) != len(recordings):
        raise ValueError(
            "There must be labels for each recording. Received: "
            f"{len(labels)} for {len(recordings)} recordings"
        )
    cut, found, short = [], [], 0
    for place, recording in enumerate(recordings):
        windows, starts = windows_of(recording, window, stride)
        short += not len(windows)
        cut.append(windows)
        if labels is not None:
            found += _labels_of(labels[place], len(recording), starts, window)
    channels = sorted({windows.shape[2] for windows in cut})
    if len(channels) > 1:
        raise ValueError(
            "Recordings must have the same channels. Received: "
            f"{' and '.join(map(str, channels))} of them"
        )
    if short == len(recordings):
        longest = max(map(len, recordings), default=0)
        raise ValueError(
            f"A recording must have a window without gaps. Received: "
            f"window={window} for {len(recordings)} recordings of at most "
            f"{longest} steps"
        )
    if short:
        warnings.warn(
            f"{short} of {len(recordings)} recordings, which have no window "
            f"of {window} steps without gaps, are left out.",
            stacklevel=3,
        )
    places = np.repeat(np.arange(len(cut)), list(map(len, cut)))
    return (
        np.concatenate(cut),
        None if labels is None else np.array(found),
        places,
    )


def _labels_of(label, length, starts, window):
    """A label for each window, of one for the recording or for each step."""
    label = np.asarray(label)
    if label.ndim == 0:
        return [label[()]] * len(starts)
    if label.shape != (length,):
        raise ValueError(
            "Labels must be one for each recording, or one for each of its "
            f"steps. Received: labels of shape {label.shape} for {length} steps"
        )
    values, places = np.unique(label, return_inverse=True)
    return [
        values[np.bincount(places[start : start + window]).argmax()]
        for start in starts
    ]
