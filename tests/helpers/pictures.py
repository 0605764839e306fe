"""Image files to find, scan and read."""

import io
import pathlib

import numpy as np
from PIL import Image


def picture(seed, width=48, height=32):
    """An image of blots that no other seed gives."""
    rng = np.random.default_rng(seed)
    blots = rng.integers(0, 256, (5, 6, 3)).astype("uint8")
    return Image.fromarray(blots).resize((width, height), 3)


def encoded(image, name, **kwargs):
    file = io.BytesIO()
    image.save(file, name, **kwargs)
    return file.getvalue()


def write(directory, files):
    for path, data in files.items():
        path = directory / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return directory


JPEG = encoded(picture(0), "JPEG")


PNG = encoded(picture(2, 300, 200), "PNG")


def refuse(monkeypatch, function, name):
    """Has the system refuse a path; root may read everything."""
    module, attribute = function
    original = getattr(module, attribute)

    def refused(path, *args):
        if pathlib.Path(path).name == name:
            raise PermissionError(13, "Permission denied")
        return original(path, *args)

    monkeypatch.setattr(module, attribute, refused)
