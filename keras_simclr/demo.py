"""The demo: real handwritten digits, without a download, in a few minutes."""

import contextlib
import csv
import dataclasses
import fnmatch
import hashlib
import math
import pathlib
import subprocess
import sys
import tempfile

import keras
import numpy as np

from keras_simclr import (
    augmentations,
    callbacks,
    cards,
    devices,
    feature_files,
    report as reports,
    runs,
)
from keras_simclr.evaluation import evaluate
from keras_simclr.export import export_encoder
from keras_simclr.model import SimCLRModel
from keras_simclr.recipe import Recipe
from keras_simclr.sources import dataset_from_arrays

# Chosen on a quarter of the training digits, held out. A mirrored digit is
# another sign: no flip.
RECIPE = Recipe(
    width_multiplier=0.25,
    views=2,
    epochs=80,
    batch_size=128,
    learning_rate=0.8,
    temperature=0.3,
    smallest_crop=0.35,
    flip_rate=0.0,
    blur_rate=0.0,
)
_PASSES = 5  # In what training calls an epoch: keeping a model takes its time.
# Both change when the run is evaluated.
_SUMMARY, _FEATURES = "summary.json", "features"
_EPOCH, _STEP = (f"{x}-{6 * '[0-9]'}" for x in ("epoch", "step"))
_OTHERS = (
    "checkpoints.json",
    "digits.npz",
    "encoder",
    f"{_EPOCH}.weights.h5",
    f"{_EPOCH}-{_STEP}.weights.h5",
    "flags.txt",
    runs.LOG,
    "loss.png",
    "model.keras",
    "report",
    "views.png",
)

# Runs in a fresh process, where this package is not imported.
_CHECK = """
import sys
import numpy as np
import tensorflow as tf

module = tf.saved_model.load(sys.argv[1])
check = np.load(sys.argv[2])
found = module(tf.constant(check["images"])).numpy()
assert "keras_simclr" not in sys.modules
np.testing.assert_allclose(found, check["representations"], atol=1e-5)
"""


def digits():
    """The 1,797 handwritten digits that ship inside scikit-learn.

    Returns:
        Two pairs `(images, labels)`, to train and to test (a stratified fifth,
        the same in every run). Images are float32 of shape `(N, 8, 8, 1)` in
        [0, 1].

    Example:

    >>> (images, labels), (test_images, test_labels) = digits()
    >>> images.shape, test_images.shape
    ((1437, 8, 8, 1), (360, 8, 8, 1))
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = (images / 16.0).astype("float32").reshape(-1, 8, 8, 1)
    train, test, train_labels, test_labels = train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=0
    )
    return (train, train_labels), (test, test_labels)


def build_model(steps, seed=0):
    """The demo's model, compiled with its recipe.

    Args:
        steps: Training steps the learning rate is planned for.
        seed: Integer.

    Returns:
        A `SimCLRModel`.

    Example:

    >>> build_model(100).encoder.output_shape
    (None, 128)
    """
    recipe, shape = dataclasses.replace(RECIPE, seed=seed, epochs=1), (8, 8, 1)
    keras.utils.set_random_seed(seed)
    encoder = recipe.encoder(shape)
    noise = augmentations.RandomGaussianNoise(0.1)
    model = SimCLRModel(
        encoder,
        augmentation=[recipe.augmentation(shape), noise],
        seed=seed,
    )
    model.compile(recipe.optimizer(steps), recipe.loss())
    return model


def run(
    output_dir="runs/demo",
    *,
    seed=0,
    epochs=RECIPE.epochs,
    report=print,
    progress=None,
):
    """Pretrains on the digits, evaluates, exports and checks the export.

    Args:
        output_dir: Directory to write. An earlier demo in it is replaced.
        seed: Integer.
        epochs: Passes over the digits.
        report: Function that is told, in words, what is done and found.
        progress: As in `runs.pretrain`.

    Returns:
        The `Evaluation`.

    Raises:
        FileExistsError: If `output_dir` holds anything else.

    Example:

    ```python
    print(run("runs/demo"))
    ```
    """
    output_dir = pathlib.Path(output_dir)
    _clear(output_dir)
    train, test = digits()
    model = _pretrained(train[0], output_dir, seed, epochs, report, progress)
    np.savez(
        output_dir / "digits.npz",
        images=np.concatenate([train[0], test[0]]),
        labels=np.concatenate([train[1], test[1]]),
    )
    _record(output_dir)
    report("Probing: linear probe and k-NN, on held-out digits.")
    result = evaluate(
        model,
        train,
        test,
        probes=("linear", "knn"),
        labels=(10, "all"),
        seed=seed,
    )
    runs.update_summary(output_dir, result.summary)
    print(f"\n{result}\n")
    encoder = export_encoder(model, output_dir / "encoder")
    _record(output_dir)
    _check_export(encoder / "saved_model", test[0], model)
    report(
        f"The exported encoder, loaded in a fresh process, agrees: {encoder}"
    )
    reports.write(
        output_dir / "report",
        model,
        train[0],
        labelled=test,
        run_dir=output_dir,
        seed=seed,
    )
    _record(output_dir)
    report(f"{output_dir / 'report' / reports.PAGE} shows what was learnt.")
    return result


def _pretrained(images, output_dir, seed, epochs, report, progress):
    """The model after so many passes over images; pictures of how it went."""
    dataset = dataset_from_arrays(
        images, batch_size=RECIPE.batch_size, seed=seed
    )
    model = build_model(epochs * len(dataset), seed)
    report(f"Devices: {devices.describe_devices(model.distribute_strategy)}.")
    passes = math.gcd(epochs, _PASSES)
    report(
        f"Pretraining on {len(images):,} digits without their labels, "
        f"{passes} passes an epoch."
    )
    trained = runs.pretrain(
        model,
        dataset.repeat(passes),
        output_dir,
        epochs=epochs // passes,
        flags=f"--output_dir={output_dir}\n--seed={seed}\n",
        summary={"command": "demo", **cards.versions()},
        callbacks=[callbacks.Doctor(images, report=report)],
        progress=progress,
    )
    if trained < epochs // passes:  # It was asked to end.
        raise KeyboardInterrupt
    _plot_views(model, images[:8], output_dir / "views.png")
    _plot_loss(output_dir / runs.LOG, output_dir / "loss.png", passes)
    return model


def _content(output_dir):
    """Dictionary from what is in it, but for what changes, to digests."""
    found = {}
    for path in output_dir.rglob("*"):
        digest = "directory"
        if path.is_symlink() or not path.is_dir():
            digest = "neither file nor directory"
            if path.is_file() and not path.is_symlink():
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
        found[path.relative_to(output_dir).as_posix()] = digest
    # What evaluating it adds.
    features = [x.name for x in feature_files.found_in(output_dir / _FEATURES)]
    added = [f"{_FEATURES}/{name}" for name in features]
    for name in (*added, _FEATURES, _SUMMARY):
        found.pop(name, None)
    return found


def _record(output_dir):
    """Records what the demo has written: it may replace that later."""
    written = {
        name: digest
        for name, digest in _content(output_dir).items()
        if any(fnmatch.fnmatch(name.split("/")[0], x) for x in _OTHERS)
    }
    runs.update_summary(output_dir, {"written": written})


def _clear(output_dir):
    """Removes an earlier demo, if nothing else is there, nor was changed."""
    written = runs.read_summary(output_dir).get("written")
    if written is None or written != _content(output_dir):
        return
    features = output_dir / _FEATURES
    for path in feature_files.found_in(features):
        path.unlink()
    if features.is_dir():
        features.rmdir()
    for name in sorted((*written, _SUMMARY), reverse=True):
        path = output_dir / name
        path.rmdir() if path.is_dir() else path.unlink()
    with contextlib.suppress(OSError):  # A volume, or a link to one, stays.
        output_dir.rmdir()


def _plot_views(model, images, path):
    import matplotlib.figure

    columns = [images, *model.views(images)]
    figure = matplotlib.figure.Figure(figsize=(3, len(images)))
    axes = figure.subplots(len(images), 3)
    for axis, title in zip(axes[0], ("image", "view 1", "view 2"), strict=True):
        axis.set_title(title)
    for row, pictures in zip(axes, zip(*columns, strict=True), strict=True):
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(np.squeeze(picture), cmap="gray", vmin=0, vmax=1)
            axis.set_axis_off()
    figure.savefig(path, bbox_inches="tight")


def _plot_loss(log, path, passes):
    import matplotlib.figure

    with log.open() as lines:
        losses_seen = [float(row["loss"]) for row in csv.DictReader(lines)]
    figure = matplotlib.figure.Figure(figsize=(5, 3))
    axis = figure.subplots()
    ends = [passes * epoch for epoch in range(1, len(losses_seen) + 1)]
    axis.plot(ends, losses_seen)
    chance = RECIPE.loss().chance(RECIPE.batch_size, RECIPE.views)
    axis.axhline(chance, linestyle="--", color="gray")
    axis.set(xlabel="passes", ylabel="NT-Xent (dashed: chance)")
    figure.savefig(path, bbox_inches="tight")


def _check_export(path, images, model):
    with tempfile.TemporaryDirectory() as directory:
        check = pathlib.Path(directory) / "check.npz"
        representations = model.predict(images, verbose=0)
        np.savez(check, images=images, representations=representations)
        try:
            subprocess.run(
                [sys.executable, "-c", _CHECK, str(path), str(check)],
                check=True,
                stderr=subprocess.PIPE,  # Of interest only if it fails.
            )
        except subprocess.CalledProcessError as error:
            raise RuntimeError(error.stderr.decode(errors="replace")) from None
