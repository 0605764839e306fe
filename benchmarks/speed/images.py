"""What every contender gets: images, their order, the size of the blur."""

import numpy as np

_WAVES = 8  # Knots a side.


def smooth_noise(count, size, channels=3):
    """Draws low-frequency noise.

    Args:
        count: Number of images.
        size: Height and width, pixels.
        channels: Number of channels.

    Returns:
        uint8 array of shape `(count, size, size, channels)`.
    """
    rng = np.random.default_rng(0)
    knots = rng.uniform(0.0, 255.0, (count, _WAVES, _WAVES, channels))
    places = np.linspace(0.0, _WAVES - 1, size)
    distances = np.abs(places[:, None] - np.arange(_WAVES))
    weights = np.maximum(1.0 - distances, 0.0)  # (size, knots)
    rows = np.tensordot(knots, weights, (1, 1))  # (N, knots, C, size)
    images = np.tensordot(rows, weights, (1, 1))  # (N, C, size, size)
    return np.moveaxis(images, 1, 3).astype("uint8", order="C")


def blur_size(size):
    """Taps of the blur: a tenth of the image, odd and at least 3."""
    return max(3, size // 10 // 2 * 2 + 1)


def parts_of_training(count, batch_size, steps, parts, seed):
    """Places of `count` images for so many steps, in an order of each epoch.

    Yields:
        Those of as many batches at a time as make `parts` of all.
    """
    rng = np.random.default_rng(seed)
    epochs = -(-steps * batch_size // count)
    places = np.concatenate([rng.permutation(count) for _ in range(epochs)])
    for batches in np.array_split(np.arange(steps), parts):
        start, end = batches[0] * batch_size, (batches[-1] + 1) * batch_size
        yield places[start:end]
