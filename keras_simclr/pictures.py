"""What examples look like that are no images: pictures of them for a page."""

import base64
import io
import wave

import numpy as np

from keras_simclr import kinds

_SIZE = (64, 96)  # Height and width of curves, pixels.
# Of channels, in turn: as far apart for most eyes as colours on white are.
_COLORS = np.array(
    [
        (0, 114, 178),
        (213, 94, 0),
        (0, 158, 115),
        (204, 121, 167),
        (86, 180, 233),
    ],
    "uint8",
)
_SECONDS = 2  # Of a sound that is played.


def picture_of(view, kind):
    """A picture of what an encoder sees.

    Args:
        view: Array without a batch: of sounds `(time, mel)`, of series `(time,
            channels)`, of rows `(columns,)`; or an image, which is returned.
        kind: `kinds.Kind` of the example.

    Returns:
        Array of shape `(height, width, channels)`, uint8 or float in [0, 1].

    Example:

    >>> picture_of(np.eye(4, 6), kinds.AUDIO).shape
    (6, 4, 1)
    """
    view = np.asarray(view)
    if kind is kinds.IMAGES:
        return view
    if kind is kinds.SERIES:
        return _curves(view)
    if kind is not kinds.AUDIO:
        # Cells of a square, row by row.
        side = int(np.ceil(np.sqrt(view.size)))
        cells = np.zeros(side * side)
        cells[: view.size] = view.ravel()
        view = cells.reshape(side, side)
        return np.kron(_unit(view), np.ones((8, 8)))[..., None]
    return _unit(view.T[::-1])[..., None]  # Low notes below.


def _unit(values):
    low, high = float(values.min()), float(values.max())
    return (values - low) / ((high - low) or 1.0)


def _curves(window):
    """Each channel as a curve of its own colour, all on one scale."""
    height, width = _SIZE
    picture = np.full((height, width, 3), 255, "uint8")
    places = np.linspace(0, len(window) - 1, width)
    values = _unit(window)
    for channel, color in zip(values.T, _cycled(values.shape[1]), strict=True):
        curve = np.interp(places, np.arange(len(window)), channel)
        rows = np.rint((1 - curve) * (height - 1)).astype(int)
        for column, (here, before) in enumerate(
            zip(rows, [rows[0], *rows[:-1]], strict=True)
        ):
            picture[min(here, before) : max(here, before) + 1, column] = color
    return picture


def _cycled(count):
    return _COLORS[np.arange(count) % len(_COLORS)]


def played(sound, rate):
    """A sound as the `data:` address of a WAV file, at most two seconds.

    Args:
        sound: Array of shape `(samples,)`, floats in [-1, 1].
        rate: Samples in a second.

    Returns:
        String. Its samples have 8 bits.

    Example:

    >>> played(np.zeros(8), 8000)[:22]
    'data:audio/wav;base64,'
    """
    samples = np.rint(128 * np.asarray(sound)[: _SECONDS * rate] + 128)
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(1)
        writer.setframerate(rate)
        writer.writeframes(np.clip(samples, 0, 255).astype("uint8"))
    text = base64.b64encode(file.getvalue()).decode("ascii")
    return f"data:audio/wav;base64,{text}"
