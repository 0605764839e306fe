"""What a few steps of training and the rest compute, bit for bit.

    python tests/helpers/digests.py

stores the digests of this machine beside those of others in digests.json. They
are to stay what they are while code is moved; what changes numbers on purpose
stores them anew and says so.
"""

import contextlib
import csv
import hashlib
import io
import json
import os
import pathlib
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import PIL.Image
import tensorflow as tf

import keras_simclr as simclr
import keras_simclr_cli as cli

PATH = pathlib.Path(__file__).with_suffix(".json")


def machine():
    """What decides how numbers are rounded."""
    info = pathlib.Path("/proc/cpuinfo").read_text()
    names = ("vendor_id", "model name", "cpu family", "model\t", "stepping")
    lines = [x for x in info.split("\n\n")[0].splitlines()]
    facts = [x.split(":")[1].strip() for x in lines if x.startswith(names)]
    threads = f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores"
    threads += f", threads {os.environ.get('TF_NUM_INTRAOP_THREADS', 'all')}"
    versions = f"tensorflow {tf.__version__}, keras {keras.version()}"
    return "; ".join([*facts, threads, versions])


def _noise(count, size, channels):
    shape = (count, size, size, channels)
    return np.random.default_rng(0).integers(0, 256, shape, "uint8")


def _encoder(channels=1):
    return keras.Sequential(
        [
            keras.Input((8, 8, channels)),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )


def _model(crops=False, **kwargs):
    keras.utils.set_random_seed(0)
    layers = [simclr.RandomResizedCrop(8, 8)] * crops + [simclr.RandomFlip()]
    return simclr.SimCLRModel(_encoder(), augmentation=layers, **kwargs)


def _trained(model, *args, **kwargs):
    history = model.fit(*args, verbose=0, **kwargs).history
    losses = [history[x] for x in sorted(history) if "seconds" not in x]
    return [x.numpy() for x in model.variables] + [np.array(losses)]


def recipe(directory):
    """What `keras-simclr pretrain` trains, writes and logs."""
    path = directory / "images.npz"
    np.savez(path, images=_noise(40, 12, 3), labels=np.arange(40) % 2)
    arguments = [f"--data={path}", f"--output_dir={directory / 'run'}"]
    arguments += ["--width_multiplier=0.1", "--epochs=2", "--batch_size=8"]
    with contextlib.redirect_stdout(io.StringIO()):
        cli.main(["pretrain", "--precision=float32", *arguments])
    keras.config.set_dtype_policy("float32")
    model = keras.models.load_model(directory / "run" / "model.keras")
    flags = (directory / "run" / "flags.txt").read_text()
    flags = flags.replace(str(directory), "DIR")
    files = sorted(x.name for x in (directory / "run").iterdir())
    with (directory / "run" / "log.csv").open(newline="") as log:
        rows = [list(row.items()) for row in csv.DictReader(log)]
    rows = [[x for x in row if "second" not in x[0]] for row in rows]
    texts = [flags, *files, str(rows)]
    yield "weights", [x.numpy() for x in model.variables]
    yield "texts", [np.frombuffer("\n".join(texts).encode(), "uint8")]
    yield "at rest", [model.predict(_noise(4, 20, 3), verbose=0)]


def demonstration(_):
    """The demo's model before its first step, and the views of that."""
    from keras_simclr import demo

    model = demo.build_model(880, seed=1)
    (images, _), _ = demo.digits()
    yield "weights", [x.numpy() for x in model.variables]
    yield "views", [x.numpy() for x in model.views(images[:8], step=3)]


def training(_):
    """The ways in which `fit` is used; all but the first without a graph."""
    model = _model(crops=True)
    model.compile()
    data = {"batch_size": 8, "epochs": 2, "validation_split": 0.35}
    yield "plain", _trained(model, _noise(24, 10, 1), **data)
    images = _noise(24, 8, 1)
    model = _model(micro_batch_size=3)
    loss = simclr.NTXent(0.5, block_size=5)
    model.compile("sgd", loss, run_eagerly=True)
    element = {"images": images, "groups": np.arange(24) // 2}
    batches = simclr.dataset_from_arrays(element, batch_size=8)
    yield "micro-batches", _trained(model, batches, epochs=2)
    model = _model(second_augmentation=simclr.RandomFlip("vertical"))
    model.compile("adam", _distance, run_eagerly=True)
    yield "own loss", _trained(model, images, batch_size=8)
    both = images, np.arange(24) % 3
    probe = simclr.callbacks.KNNProbe(both, both)
    callbacks = [probe, simclr.callbacks.Measures(images)]
    model = _model()
    model.compile("sgd", run_eagerly=True)
    yield (
        "callbacks",
        _trained(model, images, batch_size=12, callbacks=callbacks),
    )
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = _model()
    model.compile(run_eagerly=True)
    yield "bfloat16", _trained(model, images, batch_size=8)
    keras.config.set_dtype_policy("float32")


def _distance(z_1, z_2):
    return tf.reduce_mean((z_1 - z_2) ** 2)


def folder(directory):
    """Batches of a folder of many kinds of file, one of them broken."""
    keras.utils.set_random_seed(0)
    images = _noise(20, 30, 3)
    for number, image in enumerate(images):
        kind = ("jpg", "png", "bmp", "gif", "webp")[number % 5]
        place = directory / "images" / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        image = PIL.Image.fromarray(image[: 9 + number])
        image.save(place / f"{number:02}.{kind}")
    path = directory / "images" / "cat" / "00.jpg"
    path.write_bytes(path.read_bytes()[:300])
    whole = simclr.folders.ImageFolder(
        directory / "images", unreadable_limit=0.1
    )
    for name, options in (
        ("shuffled", {"seed": 3}),
        ("in order", {"shuffle": False, "drop_remainder": False}),
    ):
        batches = simclr.dataset_from_directory(
            whole, canvas_size=16, batch_size=6, **options
        )
        batches = [x for _ in range(2) for x in batches]
        keys = ("images", "labels", "sizes")
        yield name, [x[k].numpy() for x in batches for k in keys]
    yield "skipped", [np.array([list(whole.skipped.items())], "S")]


def worth(_):
    """Probes, fine-tuning and evaluation."""
    labels = np.arange(40) % 2
    images = _noise(40, 8, 1) // (1 + labels)[:, None, None, None]
    both = images.astype("uint8"), labels
    model = _model()
    result = simclr.fine_tune(model, both, both)
    yield "fine-tuning", result.classifier.get_weights()
    result = simclr.evaluate(
        model, both, probes=("linear", "knn"), labels=(2, "50%", "all"), draws=2
    )
    text = json.dumps([result.rows, result.gains]) + str(result)
    text = "\n".join(x for x in text.splitlines() if "second" not in x)
    yield "evaluation", [np.frombuffer(text.encode(), "uint8")]


def losses(_):
    """NT-Xent in one block and in several, with its gradient."""
    z = np.random.default_rng(0).normal(size=(2, 40, 6)).astype("float32")
    for name, options in (
        ("one block", {}),
        ("blocks", {"block_size": 16, "temperature": 0.2}),
        ("groups", {"block_size": 16, "groups": np.arange(40) // 3}),
    ):
        rows = tf.constant(z)
        with tf.GradientTape() as tape:
            tape.watch(rows)
            loss = simclr.nt_xent(rows[0], rows[1], **options)
        yield name, [loss.numpy(), tape.gradient(loss, rows).numpy()]


CASES = (recipe, demonstration, training, folder, worth, losses)


def compute():
    """Yields names, and lists of arrays."""
    for case in CASES:
        with tempfile.TemporaryDirectory() as directory:
            for name, arrays in case(pathlib.Path(directory)):
                yield f"{case.__name__}: {name}", arrays


def digest(arrays):
    """What bits arrays have, and what other machines come near to."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def size(arrays):
    """Mean of the absolute values; None where they are no numbers."""
    if any(array.dtype.kind != "f" for array in arrays):
        return None
    values = np.concatenate([np.ravel(array) for array in arrays])
    return float(np.mean(np.abs(values), dtype="float64"))


def main():
    """Stores the digests of this machine."""
    stored = json.loads(PATH.read_text()) if PATH.exists() else {}
    stored["machines"] = stored.get("machines", {})
    stored["sizes"], ours = {}, {}
    for name, arrays in compute():
        ours[name] = digest(arrays)
        if size(arrays) is not None:
            stored["sizes"][name] = size(arrays)
    stored["machines"][machine()] = ours
    PATH.write_text(json.dumps(stored, indent=1) + "\n")
    sys.stdout.write(f"{len(ours)} digests of: {machine()}\n")


if __name__ == "__main__":
    main()
