"""Sound files: a folder of them, or a list; reading the part that is needed."""

import functools
import hashlib
import math

import numpy as np
import tensorflow as tf

from keras_simclr import _checks, _files, kinds
from keras_simclr.duplicates import NO_KEYS
from keras_simclr.folders import (
    SOUND_FORMATS,
    ImageFolder,
    promised_sound,
    raise_if_folder,
)
from keras_simclr.lists import ImageList
from keras_simclr.scanning import Row

_BLOCK = 1 << 20  # Samples, or bytes, in memory at a time.
# As loud as 16 bits can say, in more than this share of the samples.
_LOUDEST, _CLIPPED = 32767 / 32768, 1e-3


def read_sound(file, rate, seconds):
    """Reads the middle of a sound file: mono, at that rate.

    Of a longer file nothing else is decoded.

    Args:
        file: Binary file of WAV, FLAC, OGG or MP3.
        rate: Samples in a second; others are resampled (polyphase filter).
        seconds: The most that is read.

    Returns:
        float32 array of shape `(samples,)`, the mean of the channels; of
        files of integers in [-1, 1].

    Raises:
        ImportError: If soundfile is not installed.
        ValueError: If there is no sample, or one is NaN or infinite.
        soundfile.LibsndfileError: If the file is none of these.

    Example:

    ```python
    with open("hello.flac", "rb") as file:
        sound = read_sound(file, 16_000, 5.0)
    ```
    """
    from scipy import signal

    with _soundfile().SoundFile(file) as sound:
        own = sound.samplerate
        most = math.ceil(seconds * own)
        if sound.frames > most:
            sound.seek((sound.frames - most) // 2)
        channels = sound.read(most, dtype="float32", always_2d=True)
    if not len(channels):
        raise ValueError("no samples")
    if not np.isfinite(channels).all():
        raise ValueError("NaN or infinity")
    values = channels.mean(axis=1)
    if own != rate:
        common = math.gcd(own, rate)
        values = signal.resample_poly(values, rate // common, own // common)
    return values[: math.ceil(seconds * rate)].astype("float32")


def _soundfile():
    try:
        import soundfile
    except ImportError:
        raise ImportError(
            "Files of sounds are read by the package soundfile. It is not "
            "installed: pip install 'keras_simclr[audio]'"
        ) from None
    return soundfile


class _Sounds:
    """What makes encoded images encoded sounds."""

    kind = kinds.AUDIO

    def __init__(self, source, *, rate=16_000, seconds=5.0, **kwargs):
        self.rate = _checks.integer("rate", rate, minimum=1000)
        self.seconds = _checks.positive_number("seconds", seconds)
        _soundfile()  # Said now, and not of each file.
        super().__init__(source, **kwargs)

    def canvas(self, canvas_size=None):
        seconds = min(self.seconds, self.largest)
        return (math.ceil(seconds * self.rate),)

    def read(self, orders, *_):
        def load(place):
            sound = tf.numpy_function(
                self._load, [place], tf.float32, stateful=False
            )
            sound.set_shape((None,))
            return sound

        nothing = tf.TensorSpec((0,), tf.float32)
        return self._in_turn(orders, load, nothing)

    def _load(self, place):
        with self.open_image(place) as file:
            return read_sound(file, self.rate, self.seconds)

    def examine(self, place, channels=None):
        path = self.paths[place]
        row = Row(path)
        try:
            with self.open_image(place) as file:
                _examine(row, file)
        except OSError as error:
            row.problem = f"unreadable: {error.strerror or error}"
        except _soundfile().SoundFileError as error:
            text = getattr(error, "error_string", str(error))
            text = " ".join(text.split())[:80]
            row.problem = f"not a sound: {text}"
        row.usable = row.problem is None
        if row.usable:
            row.problem = "; ".join(row.remarks) or None
        return row

    def _largest(self, widths, heights):
        """Seconds: a manifest has samples, and how many make a second."""
        return (widths / heights).max()


def _examine(row, file):
    """Fills in what a sound file holds, a block at a time."""
    digest = hashlib.blake2b(digest_size=8)
    for block in iter(lambda: file.read(_BLOCK), b""):
        digest.update(block)
    if not file.tell():
        row.problem = "empty"
        return
    file.seek(0)
    largest = clipped = count = 0
    with _soundfile().SoundFile(file) as sound:
        row.format = sound.format.replace("MPEG", "MP3")
        row.channels, row.height = sound.channels, sound.samplerate
        blocks = sound.blocks(_BLOCK, dtype="float32", always_2d=True)
        for block in blocks:
            if not np.isfinite(block).all():
                row.problem = "NaN or infinity"
                return
            level = np.abs(block).max(axis=1)
            largest = max(largest, float(level.max()))
            clipped += int((level >= _LOUDEST).sum())
            count += len(block)
    row.width = count
    if not count:
        row.problem = "no samples"
        return
    row.remarks = ["silent"] * (largest == 0)
    row.remarks += ["clipped"] * (clipped > _CLIPPED * count)
    if promised_sound(row.path) not in (row.format, None):
        row.remarks.append(f"wrong extension: {row.format}")
    row.key = (int.from_bytes(digest.digest()), *NO_KEYS[1:])


class SoundFolder(_Sounds, ImageFolder):
    """The sound files of a folder, or a part of them.

    WAV, FLAC, OGG and MP3 by their extensions, in any case. They are read as
    mono, at one rate; of a longer file than `seconds` its middle is, and
    nothing else is decoded: cut long recordings into files to have all.

    Args:
        directory: Path of the folder.
        rate: Samples in a second that all are resampled to, at least 1,000.
        seconds: The most that is read of a file.
        **kwargs: `manifest`, `split`, `unreadable_limit`: as
            `folders.EncodedImages`.

    Attributes:
        paths: As of `folders.ImageFolder`, as all others.
        largest: Length of the longest, seconds; infinite without a manifest.

    Raises:
        ImportError: If soundfile is not installed.
        OSError: If there is no such folder, or it may not be read.
        ValueError: As `folders.EncodedImages`.

    Example:

    ```python
    folder = simclr.sounds.SoundFolder("words", rate=8000, seconds=1.0)
    dataset = simclr.dataset_from_directory(folder)
    ```
    """

    def _find(self, wanted):
        directory = _files.readable_directory(self.directory)
        sounds, others, wanted = [], [], set(wanted)
        refuse = functools.partial(raise_if_folder, what="sounds")
        for path in _files.walk(directory, refuse, promised_sound):
            is_sound = path in wanted or promised_sound(path)
            (sounds if is_sound else others).append(path)
        if not sounds:
            formats = ", ".join(SOUND_FORMATS.values())
            raise ValueError(
                f"`directory` must hold sounds ({formats}). Received: "
                f"directory={directory!r} with {len(others)} other files"
            )
        self._note_others(others)
        return sorted(sounds)


class SoundList(_Sounds, ImageList):
    """The sound files that a CSV file lists.

    Args:
        path: Path of the CSV file, as of `lists.ImageList`.
        rate: As of `SoundFolder`.
        seconds: As of `SoundFolder`.
        **kwargs: As of `SoundFolder`.

    Raises:
        ImportError: If soundfile is not installed.
        OSError: If it cannot be read.
        ValueError: As `lists.ImageList`.

    Example:

    ```python
    sounds = simclr.sounds.SoundList("words.csv", seconds=1.0)  # path,label
    dataset = simclr.dataset_from_directory(sounds)
    ```
    """
