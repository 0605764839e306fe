"""JPEG files cut from the photographs that come with scikit-image and sklearn.

A worker, in an environment of its own: see worker.py.
"""

import pathlib

import numpy as np
import PIL.Image
import skimage.data
import sklearn.datasets

_NAMES = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
    "rocket.jpg",
)
_MORE_NAMES = ("china.jpg", "flower.jpg")
_RATIOS = (4 / 3, 4 / 3, 3 / 2, 3 / 4)  # Width to height, how often.


def write(directory, count):
    """A folder of `count` files, always the same."""

    def work():
        pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
        sources = _sources()
        for place in range(count):
            path = pathlib.Path(directory, f"{place:04}.jpg")
            _write(path, sources, np.random.default_rng(place))
        return count

    return work


def _sources():
    shipped = pathlib.Path(skimage.data.__file__).parent
    more = pathlib.Path(sklearn.datasets.__file__).parent / "images"
    paths = [shipped / name for name in _NAMES]
    paths += [more / name for name in _MORE_NAMES]
    return [PIL.Image.open(path).convert("RGB") for path in paths]


def _write(path, sources, rng):
    """Cuts out 0.4 to 1 of what fits into a photograph, about 500 x 375."""
    source = sources[rng.integers(len(sources))]
    ratio = _RATIOS[rng.integers(len(_RATIOS))]
    largest = min(source.height, source.width / ratio)
    height = largest * np.sqrt(rng.uniform(0.4, 1.0))
    width = height * ratio
    left = rng.uniform(0.0, source.width - width)
    top = rng.uniform(0.0, source.height - height)
    longest = rng.integers(450, 551)
    scale = longest / max(height, width)
    image = source.resize(
        (round(width * scale), round(height * scale)),
        PIL.Image.Resampling.LANCZOS,
        box=(left, top, left + width, top + height),
    )
    image.save(path, quality=int(rng.integers(60, 96)))
