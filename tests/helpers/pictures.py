"""Image files to find, scan and read."""

import io
import pathlib
import struct
import zlib

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


def tiff(
    values,
    *,
    order="<",
    packed=False,
    predicted=False,
    planar=False,
    tile=None,
    kind=None,
    extra=None,
    orientation=1,
):
    """A TIFF of an array (height, width, channels), written by hand.

    In strips of 5 rows, or in tiles; `kind` and `extra` are its tags for what
    the channels are.
    """
    height, width, channels = values.shape
    kind = {3: 2, 4: 2}.get(channels, 1) if kind is None else kind
    down, right = (tile, tile) if tile else (5, width)
    parts = []
    planes = np.split(values, channels, axis=2) if planar else [values]
    for plane in planes:
        for y in range(0, height, down):
            for x in range(0, width, right):
                part = plane[y : y + down, x : x + right]
                if tile:
                    missing = down - part.shape[0], right - part.shape[1]
                    part = np.pad(part, [*((0, n) for n in missing), (0, 0)])
                if predicted:
                    first = np.zeros_like(part[:, :1])
                    part = np.diff(part, axis=1, prepend=first)
                data = part.astype(part.dtype.newbyteorder(order)).tobytes()
                parts.append(zlib.compress(data) if packed else data)
    starts = 8 + np.cumsum([0, *map(len, parts)])[:-1]
    bits, formats = 8 * values.dtype.itemsize, {"u": 1, "i": 2, "f": 3}
    tags = {256: [width], 257: [height], 258: [bits] * channels}
    tags |= {259: [8 if packed else 1], 262: [kind], 274: [orientation]}
    tags |= {277: [channels], 284: [2 if planar else 1]}
    tags |= {317: [2 if predicted else 1]}
    tags[339] = [formats[values.dtype.kind]] * channels
    sizes = [*map(len, parts)]
    if tile:
        tags |= {322: [tile], 323: [tile], 324: starts, 325: sizes}
    else:
        tags |= {273: starts, 278: [down], 279: sizes}
    others = channels - (3 if kind == 2 else 1)
    if extra is not None and others:
        tags[338] = [extra] * others
    place = 8 + sum(sizes)
    header = {"<": b"II*\0", ">": b"MM\0*"}[order]
    header += struct.pack(f"{order}I", place)
    entries, rest = struct.pack(f"{order}H", len(tags)), b""
    place += 2 + 12 * len(tags) + 4
    for tag, numbers in sorted(tags.items()):
        data = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(numbers) > 1:
            rest, data = (
                rest + data,
                struct.pack(f"{order}I", place + len(rest)),
            )
        entries += struct.pack(f"{order}HHI", tag, 4, len(numbers)) + data
    return b"".join([header, *parts, entries, bytes(4), rest])


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
