"""Values of this package beside those of tensorflow-addons.

    python benchmarks/parity/parity.py PYTHON

PYTHON is that of an environment with tensorflow-addons, as `make parity` makes
it. Prints the table of docs/parity.md, and fails if something that should be
equal is not.
"""

import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import keras
import numpy as np
import tensorflow as tf

import keras_simclr as simclr
from benchmarks.claims import augmentations, losses
from benchmarks.results import markdown, report
from keras_simclr.augmentations import jitter_colors

tf.get_logger().setLevel("ERROR")

_HERE = pathlib.Path(__file__).parent
_SIZE = (48, 40)  # Of crops.


@dataclasses.dataclass(frozen=True)
class Row:
    """Values that were compared.

    Attributes:
        quantity: What it is.
        theirs: Function that answered for the other side.
        difference: The largest.
        tolerance: The most that counts as equal, or None: not expected to be.
        reason: Why it is not expected.
    """

    quantity: str
    theirs: str
    difference: float
    tolerance: float | None = 1e-5
    reason: str = ""

    @property
    def verdict(self):
        """Equal, not equal, or why not."""
        if self.tolerance is None:
            return f"differs by design: {self.reason}"
        return "equal" if self.difference <= self.tolerance else "NOT EQUAL"


def main(python):
    """Prints the table; returns how many rows are not as they should be."""
    asked = questions()
    found = ask(python, asked)
    rows = compare(asked, found)
    cells = [
        (
            row.quantity,
            row.theirs,
            f"{row.difference:.1g}",
            "" if row.tolerance is None else f"{row.tolerance:g}",
            row.verdict,
        )
        for row in rows
    ]
    titles = ("quantity", "beside", "largest difference", "tolerance", "")
    report(markdown(titles, cells))
    report(
        f"\nTensorFlow {tf.__version__} and Keras {keras.version()} beside "
        f"{found['versions']}"
    )
    return sum(row.verdict == "NOT EQUAL" for row in rows)


def ask(python, questions):
    """The other side's answers to the questions."""
    with tempfile.TemporaryDirectory() as directory:
        files = [pathlib.Path(directory) / x for x in ("asked.npz", "told.npz")]
        np.savez(files[0], **questions)
        subprocess.run(
            [python, "-W", "ignore", _HERE / "parity_addons.py", *files],
            check=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        with np.load(files[1]) as told:
            return dict(told)


def questions():
    """Inputs, and what was drawn for them."""
    rng = np.random.default_rng(0)
    images = rng.random((24, 64, 64, 3), "float32")
    images[:, :8] = images[:, :8, :, :1]  # Gray.
    images[:, 8:12] = np.round(images[:, 8:12])  # Black, white, pure colours.
    return {
        "images": images,
        "kernels": [(0.1, 7), (0.8, 7), (2.0, 19)],  # Sigma and taps.
        "boxes": _boxes(images),
        "size": _SIZE,
        "offsets": _offsets(images),
        "orders": np.array([rng.permutation(4) for _ in images], "int32"),
        "factors": rng.uniform(0.2, 1.8, (24, 3)).astype("float32"),
        "turns": rng.uniform(-0.2, 0.2, 24).astype("float32"),
        "z": rng.normal(size=(2, 16, 8)).astype("float32"),
    }


def _boxes(images):
    """Where each crop's pixels lie in the image, for tfa.image.transform."""
    places = np.moveaxis(np.indices(images.shape[1:3]), 0, -1)  # (H, W, 2)
    ramps = np.zeros_like(images)
    ramps[..., :2] = (places + 0.5) / places.shape[:2]
    cropped = _crop(ramps).astype("float64") * images.shape[1]
    # Away from the edges, where a place is the pixel's own.
    near, far = cropped[:, 12, 12, :2], cropped[:, 36, 28, :2]
    step = (far - near) / (24, 16)
    first = near - 12 * step - 0.5
    (y, x), (dy, dx) = first.T, step.T
    none = np.zeros_like(x)
    rows = [dx, none, x, none, dy, y, none, none]
    return np.stack(rows, axis=1).astype("float32")


def _crop(images):
    crop = simclr.RandomResizedCrop(*_SIZE, scale=(0.2, 1.0), antialias=False)
    return crop(images, seed=(0, 1)).numpy()


def _offsets(images):
    """Rows and columns in the middle of what was cut out."""
    cut = _cut_out(np.zeros_like(images))[..., 0] > 0
    middles = []
    for axis in (2, 1):
        lines = cut.any(axis=axis)  # (B, side)
        side = lines.shape[1]
        first = lines.argmax(axis=1)
        last = side - lines[:, ::-1].argmax(axis=1)
        inside = np.where(first > 0, first + side // 4, last - side // 4)
        middles.append(inside)
    return np.stack(middles, axis=1).astype("int32")


def _cut_out(images):
    return augmentations.Cutout()(images, seed=(0, 1)).numpy()


def compare(asked, found):
    """Rows of the table.

    Args:
        asked: Dictionary of `questions`.
        found: Dictionary of the other side's answers.

    Returns:
        List of `Row`.
    """
    return [
        *_blurs(asked, found),
        *_other_augmentations(asked, found),
        *_losses(asked, found),
    ]


def _blurs(asked, found):
    images = asked["images"]
    blurred = np.stack(
        [
            simclr.RandomGaussianBlur(
                rate=1.0,
                sigma=(sigma, sigma),
                kernel_fraction=taps / images.shape[1],
            )(images, seed=(0, 0))
            for sigma, taps in asked["kernels"]
        ]
    )
    name = "tfa.image.gaussian_filter2d"
    inside = np.s_[:, :, 9:-9, 9:-9]
    yield Row(
        "Gaussian blur, away from the edges",
        name,
        _largest(blurred[inside] - found["CONSTANT"][inside]),
    )
    yield Row(
        "Gaussian blur, everywhere",
        f'{name}, padding="CONSTANT", over that of a white image',
        _largest(blurred - found["CONSTANT"] / found["white"]),
    )
    for padding, reason in (
        ("CONSTANT", "zeros around the image darken its edges"),
        ("REFLECT", "pixels near the edge count twice, the outermost once"),
        ("SYMMETRIC", "pixels near the edge count twice"),
    ):
        yield Row(
            "Gaussian blur, everywhere",
            f'{name}, padding="{padding}"',
            _largest(blurred - found[padding]),
            None,
            f"{reason}; here the weights on the image sum to 1",
        )


def _other_augmentations(asked, found):
    images = asked["images"]
    turned = simclr.RandomRotate90()(images, seed=(0, 0))
    # Each image beside its four turns: ours took one of them.
    each_turn = np.abs(found["turned"] - turned).max(axis=(2, 3, 4))
    yield Row(
        "quarter turns",
        "tfa.image.rotate",
        each_turn.min(axis=0).max(),
    )
    cropped = _crop(images)
    yield Row(
        "random crop, bilinear without antialiasing",
        "tfa.image.transform",
        _largest(cropped - found["cropped"]),
        1e-4,  # The box is known to about 1e-5 pixels.
    )
    yield Row(
        "cutout (benchmarks)",
        "tfa.image.cutout",
        _largest(_cut_out(images) - found["cut_out"]),
    )
    crop = simclr.RandomResizedCrop(*_SIZE)
    yield Row(
        "view at rest, bilinear with antialiasing",
        "tf.image.resize",
        _largest(crop(images, training=False) - found["at_rest"]),
    )
    jitter = (asked[name] for name in ("orders", "factors", "turns"))
    yield Row(
        "brightness, contrast, saturation and hue, in any order",
        "tf.image.adjust_*",
        _largest(jitter_colors(images, *jitter) - found["jittered"]),
    )
    gray = simclr.RandomColorDistortion(rate=0.0, grayscale_rate=1.0)
    yield Row(
        "grayscale",
        "tf.image.rgb_to_grayscale",
        _largest(gray(images, seed=(0, 0)) - found["gray"]),
    )


def _losses(asked, found):
    z = tf.constant(asked["z"])
    for name, block_size in (("NT-Xent", None), ("NT-Xent in blocks", 5)):
        with tf.GradientTape() as tape:
            tape.watch(z)
            loss = simclr.nt_xent(*tf.unstack(z), block_size=block_size)
        theirs = "tfa.losses.npairs_loss, positives on the diagonal"
        yield Row(name, theirs, _largest(loss - found["nt_xent"]))
        yield Row(
            f"{name}, gradient",
            theirs,
            _largest(tape.gradient(loss, z) - found["gradient"]),
        )
    n_pairs = losses.both_ways(losses.cross_entropy, False)
    semi_hard = losses.both_ways(losses.margin, True)
    yield Row(
        "n-pairs loss (benchmarks)",
        "tfa.losses.npairs_loss",
        _largest(n_pairs(*tf.unstack(z)) - found["n_pairs"]),
    )
    yield Row(
        "semi-hard triplet loss (benchmarks)",
        "tfa.losses.triplet_semihard_loss, images of one view far apart",
        _largest(semi_hard(*tf.unstack(z)) - found["semi_hard"]),
    )


def _largest(differences):
    return float(np.abs(differences).max())


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
