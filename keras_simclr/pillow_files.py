"""Image files that TensorFlow does not decode, as Pillow reads them."""

import importlib.util
import io
import struct

import numpy as np

DEPTHS = (8, 10, 12, 14, 16)  # Bits per channel of cameras and scanners.

# What Pillow may have been built without.
_FEATURES = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}
_RGB = 2  # TIFF's number of that kind of colours.
_COLORS = {_RGB: 3, 5: 4, 6: 3, 8: 3}  # RGB, CMYK, YCbCr, Lab; others: 1.
_IS_ALPHA = (1, 2, 999)  # Kinds of TIFF's extra samples; 999: Corel Draw's.
_IS_PACKED = (5, 8, 32946, 34925, 50000)  # TIFF's ways that may predict.
_IS_LOSSLESS = (1, 32773, *_IS_PACKED)
# What an image of samples keeps of a TIFF's tags: order of bits, compression,
# strips or tiles.
_KEPT = (259, 266, 273, 278, 279, 322, 323, 324, 325)


class UnusableError(ValueError):
    """An image is whole, but cannot be used; says why: `kind: detail`."""


class Picture:
    """An image file of which the header has been read.

    Args:
        contents: Bytes of the file.
        name: Its format, one of `decoding.FORMATS`.

    Attributes:
        width: Pixels as stored, before the picture is turned upright.
        height: The same.
        channels: 1 (grey), 2 (with alpha), 3 (colour), 4 (with alpha, or
            CMYK); of a TIFF file that has others, how many.
        has_others: Whether it has channels that are no colours.
        orientation: EXIF's number, 1 to 8, by which `pixels` turns it; of JPEG
            and PNG, which TensorFlow decodes, it is not looked for.
        remarks: List of what is worth knowing.
        depth: Bits per channel in use, of images of 16; else None. Known when
            pixels have been read.

    Raises:
        UnusableError: If what reads the format is not installed.
        Exception: If the header is broken: what Pillow raises.

    Example:

    >>> import PIL.Image
    >>> file = io.BytesIO()
    >>> PIL.Image.new("L", (24, 16)).save(file, "TIFF")
    >>> picture = Picture(file.getvalue(), "TIFF")
    >>> picture.width, picture.height, picture.channels
    (24, 16, 1)
    >>> picture.pixels().shape
    (16, 24, 3)
    """

    def __init__(self, contents, name):
        _check_can_read(name)
        self.contents, self.name, self.depth = contents, name, None
        self._tags = _first_directory(contents) if name == "TIFF" else {}
        self.orientation = _checked(self._tags.get(274))
        self.has_others, self._alpha = _extra_samples(self._tags)
        self._is_deep = (
            set(_numbers(self._tags, 258)) == {16}
            and set(_numbers(self._tags, 339)) <= {1}
            and self._tags.get(262) in (0, 1, _RGB)
        )
        if self.has_others or self._is_deep:
            self.width, self.height = self._tags[256], self._tags[257]
            self.channels = _samples(self._tags)
            self.remarks = ["transparency"] * (self._alpha is not None)
            return
        with self._open() as image:
            self.width, self.height = image.size
            if self._tags:  # Pillow says how wide it is when turned upright.
                self.width, self.height = self._tags[256], self._tags[257]
            elif name not in ("JPEG", "PNG"):
                self.orientation = _orientation(image)
            self.channels = 3 if image.mode == "P" else len(image.getbands())
            self.remarks = _remarks(image)

    def _open(self):
        import PIL.Image

        contents = self.contents
        if self.name == "PNG":
            contents = _without_notes(contents)
        return PIL.Image.open(io.BytesIO(contents), formats=[self.name])

    def check(self, channels):
        """Raises `UnusableError` unless it can have so many channels."""
        is_usual = channels in (1, 3) and not self.has_others
        is_same = self.name == "TIFF" and channels == self.channels
        if not (is_usual or is_same):
            raise UnusableError(
                f"other channels: {self.channels}, where {channels} are asked "
                "for"
            )

    def load(self):
        """Raises what Pillow finds wrong with it, if anything."""
        with self._open() as image:
            image.load()

    def pixels(self, channels=3, bits=8):
        """Decodes it, turned upright.

        Args:
            channels: 3, or 1, for RGB, on white where it is transparent; or
                as many as a TIFF file has, which are taken as they are.
            bits: 8, or 16 for all that there is.

        Returns:
            Array of shape `(height, width, 3)`, or with that other number of
            channels: uint8, or float32 in [0, 1] for 16 bits.

        Raises:
            UnusableError: If it has other channels, or values without a known
                scale.
            Exception: If it is broken: what Pillow raises.
        """
        self.check(channels)
        if self.has_others or channels not in (1, 3):
            return self._upright(self._scaled(self._stored(), bits))
        if self._is_deep:
            return self._upright(self._colors(bits))
        with self._open() as image:
            image.load()
            pixels = self._of_mode(image, bits)
        # Pillow turns a TIFF when it loads it.
        return pixels if self._tags else self._upright(pixels)

    def _upright(self, pixels):
        if self.orientation in (5, 6, 7, 8):
            pixels = pixels.swapaxes(0, 1)
        if self.orientation in (3, 4, 7, 8):
            pixels = pixels[::-1]
        if self.orientation in (2, 3, 6, 7):
            pixels = pixels[:, ::-1]
        return np.ascontiguousarray(pixels)

    def _of_mode(self, image, bits):
        """RGB of an image that Pillow has loaded."""
        import PIL.Image

        if image.mode.startswith("I;16"):
            pixels = np.asarray(image).astype("uint16")[..., None]
        elif image.mode in ("F", "I"):
            pixels = _unit_floats(image)
        else:
            if image.has_transparency_data:
                image = image.convert("RGBA")
                white = PIL.Image.new("RGBA", image.size, "white")
                image = PIL.Image.alpha_composite(white, image)
            try:
                pixels = np.asarray(image.convert("RGB"))
            except ValueError:
                raise UnusableError(
                    f"unsupported format: {self.name} of {image.mode}"
                ) from None
        return self._scaled(np.broadcast_to(pixels, _rgb_of(pixels)), bits)

    def _colors(self, bits):
        """RGB of a TIFF of 16 bits, of which Pillow keeps but 8 of some."""
        stored = self._stored()
        if self._tags[262] == 0:  # White is zero.
            stored[..., :1] = ~stored[..., :1]
        colors = stored if self._alpha is None else stored[..., :-1]
        colors = self._scaled(np.broadcast_to(colors, _rgb_of(colors)), bits)
        if self._alpha is None:
            return colors
        alpha = stored[..., -1:].astype("float32") / 65535
        white = 255 if bits == 8 else 1
        if self._alpha != 1:  # 1: they are multiplied already.
            colors = colors * alpha
        colors = np.clip(colors + white * (1 - alpha), 0, white)
        return colors if bits == 16 else colors.astype("uint8")

    def _scaled(self, pixels, bits):
        """Pixels in 8 bits, or as floats, by the depth of what they hold."""
        if pixels.dtype == "uint16":
            largest = int(pixels.max())
            self.depth = min(x for x in DEPTHS if largest < 2**x)
            if bits == 8:
                return (pixels >> (self.depth - 8)).astype("uint8")
            pixels = pixels.astype("float32")
            return pixels / np.float32(2**self.depth - 1)
        if pixels.dtype == "uint8":
            return pixels if bits == 8 else pixels / np.float32(255)
        return pixels if bits == 16 else _as_bytes(pixels)

    def _stored(self):
        """The samples of a TIFF: uint8 or uint16, of shape (H, W, samples)."""
        tags, samples = self._tags, _samples(self._tags)
        kinds = {*_numbers(tags, 258)}, {*_numbers(tags, 339)} or {1}
        compression = tags.get(259, 1)
        is_known = kinds in (({8}, {1}), ({16}, {1}))
        if not is_known or compression not in _IS_LOSSLESS:
            bits = "/".join(map(str, sorted(kinds[0])))
            raise UnusableError(
                f"unsupported format: TIFF of {samples} channels of {bits} "
                f"bits, kind {min(kinds[1])}, compression {compression}"
            )
        if tags.get(284, 1) == 2:  # Each channel has strips of its own.
            planes = [self._plane(x, samples) for x in range(samples)]
            pixels = np.stack(planes, axis=-1)
        else:
            pixels = self._plane(0, 1).reshape(self.height, self.width, -1)
        if tags.get(317) == 2 and compression in _IS_PACKED:
            step = tags.get(322, self.width)
            for start in range(0, self.width, step):
                part = pixels[:, start : start + step]
                np.cumsum(part, axis=1, dtype=pixels.dtype, out=part)
        return pixels

    def _plane(self, number, planes):
        """Samples of a plane, read as a grey image with that many columns.

        Pillow knows few combinations of samples, and of 16 bits often keeps 8.
        """
        from PIL import TiffImagePlugin

        order = {b"II": "<", b"MM": ">"}[self.contents[:2]]
        columns = 1 if planes > 1 else _samples(self._tags)
        tags = {x: _numbers(self._tags, x) for x in _KEPT if x in self._tags}
        for tag in (273, 279, 324, 325):
            if tag in tags:
                size = len(tags[tag]) // planes
                tags[tag] = tags[tag][number * size :][:size]
        for starts, sizes in ((273, 279), (324, 325)):
            parts = zip(tags.get(starts, ()), tags.get(sizes, ()), strict=False)
            if any(sum(part) > len(self.contents) for part in parts):
                raise OSError("image file is truncated")
        if 322 in tags:
            tags[322] = (tags[322][0] * columns,)
        tags |= {256: (self.width * columns,), 257: (self.height,)}
        tags |= {258: _numbers(self._tags, 258)[:1], 262: (1,), 277: (1,)}
        end = len(self.contents) + len(self.contents) % 2
        header = self.contents[:2] + struct.pack(f"{order}HI", 42, end)
        data = b"".join(
            [
                header,
                self.contents[8:].ljust(end - 8, b"\0"),
                _directory(tags, order, end),
            ]
        )
        with TiffImagePlugin.TiffImageFile(io.BytesIO(data)) as image:
            return np.array(image).astype(f"uint{tags[258][0]}")


def _check_can_read(name):
    from PIL import features

    if name == "HEIF":
        if importlib.util.find_spec("pillow_heif") is None:
            raise UnusableError(
                "no plug-in: HEIF. Install it with: pip install "
                "'keras_simclr[formats]'"
            )
        import pillow_heif

        pillow_heif.register_heif_opener()
    elif name in _FEATURES and not features.check(_FEATURES[name]):
        raise UnusableError(
            f"no plug-in: {name}. This Pillow was built without it; install "
            "it with: pip install --force-reinstall pillow"
        )


def _remarks(image):
    """What is worth knowing of an image of which Pillow has the header."""
    found = {
        "animated": image.format != "MPO"
        and getattr(image, "is_animated", False),
        "CMYK": image.mode == "CMYK",
        "palette": image.mode == "P" and image.format != "GIF",
        "transparency": image.has_transparency_data,
    }
    return [name for name, is_so in found.items() if is_so]


def _without_notes(contents):
    """A PNG with only what its pixels need: Pillow stops at long texts."""
    parts, place = [contents[:8]], 8
    while place + 8 <= len(contents):
        size, kind = struct.unpack_from(">I4s", contents, place)
        # Small letters begin the names of what can be left out.
        if kind[:1].isupper() or kind in (b"tRNS", b"acTL"):
            parts.append(contents[place : place + size + 12])
        place += size + 12
    return b"".join(parts)


def _first_directory(contents):
    """The tags of the first image in a TIFF file: a dictionary."""
    from PIL import TiffImagePlugin

    if contents[:4] == b"MM\0+":
        raise UnusableError("unsupported format: TIFF, big-endian and big")
    size = 16 if contents[2:4] == b"+\0" else 8
    tags = TiffImagePlugin.ImageFileDirectory_v2(contents[:size])
    file = io.BytesIO(contents)
    file.seek(tags.next)
    tags.load(file)
    if not {256, 257} <= tags.keys():
        raise SyntaxError("a directory without width and height")
    return dict(tags)


def _directory(tags, order, place):
    """A directory, of numbers alone, as it stands at that place in a TIFF."""
    entries, rest = struct.pack(f"{order}H", len(tags)), b""
    place += 2 + 12 * len(tags) + 4
    for tag, numbers in sorted(tags.items()):
        data = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(numbers) > 1:
            data, rest = (
                struct.pack(f"{order}I", place + len(rest)),
                rest + data,
            )
        entries += struct.pack(f"{order}HHI", tag, 4, len(numbers)) + data
    return entries + bytes(4) + rest


def _numbers(tags, tag):
    """Values of a TIFF's tag: a tuple."""
    values = tags.get(tag, ())
    return values if isinstance(values, tuple) else (values,)


def _samples(tags):
    return tags.get(277, 1)


def _extra_samples(tags):
    """Whether a TIFF has channels that are no colours; its kind of alpha."""
    kind = tags.get(262)
    extra = _samples(tags) - _COLORS.get(kind, 1)
    kinds = _numbers(tags, 338) or (2,) * (kind == _RGB)
    alpha = kinds[0] if extra == 1 and kinds[:1] in zip(_IS_ALPHA) else None
    return extra > (alpha is not None), alpha


def _rgb_of(pixels):
    return (*pixels.shape[:2], 3)


def _unit_floats(image):
    """Values in [0, 1] as they are: no others have a known scale."""
    pixels = np.asarray(image)[..., None]
    if image.mode == "I":
        raise UnusableError(
            f"unsupported format: {image.format} of signed or 32-bit integers"
        )
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):
        raise UnusableError(
            f"unsupported format: {image.format} of floats from {low:g} to "
            f"{high:g}, not in [0, 1]"
        )
    return pixels


def _as_bytes(pixels):
    return np.round(pixels * 255).astype("uint8")


def _orientation(image):
    """EXIF's number of it; 1 if there is none or it is broken."""
    try:
        return _checked(image.getexif().get(0x0112))
    except Exception:  # Readers of notes raise what they like.
        return 1


def _checked(orientation):
    return orientation if orientation in range(1, 9) else 1
