"""The run directory: flags, log, weights and results of one pretraining."""

import importlib.metadata
import json
import pathlib
import time

import keras
import tensorflow as tf

from keras_simclr.export import check_is_free

_MODEL, _LOG, _SUMMARY = "model.keras", "log.csv", "summary.json"


def pretrain(model, dataset, run_dir, *, epochs, flags="", summary=None):
    """Trains a model and keeps everything in a run directory.

    It holds `flags.txt`, `log.csv` (a line per epoch), `model.keras` (after
    the latest epoch; complete at any time) and `summary.json`. Ctrl-C ends
    training early and keeps the model as it is then.

    Args:
        model: A compiled `SimCLRModel`.
        dataset: What `fit` takes.
        run_dir: Directory to write, new or empty.
        epochs: Passes over the dataset.
        flags: Text of `flags.txt`, for `--flagfile`.
        summary: Dictionary, the first content of `summary.json`.

    Returns:
        The number of epochs trained; less than `epochs` after Ctrl-C.

    Raises:
        FileExistsError: If `run_dir` holds anything.

    Example:

    ```python
    pretrain(model, dataset, "runs/flowers", epochs=100)
    model = load_model("runs/flowers")
    ```
    """
    run_dir = pathlib.Path(run_dir)
    check_is_free(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "flags.txt").write_text(flags)
    update_summary(run_dir, summary or {})
    logger = keras.callbacks.CSVLogger(run_dir / _LOG)
    keeper = _Keeper(run_dir)
    try:
        model.fit(dataset, epochs=epochs, callbacks=[logger, keeper])
    except KeyboardInterrupt:
        save_model(model, run_dir)
    finally:
        if logger.csv_file is not None:
            logger.csv_file.close()
    update_summary(
        run_dir,
        {
            "epochs_trained": keeper.epochs,
            "steps_trained": int(model.optimizer.iterations),
        },
    )
    return keeper.epochs


class _Keeper(keras.callbacks.Callback):
    """Saves the model after each epoch and counts the epochs."""

    def __init__(self, run_dir):
        super().__init__()
        self.run_dir = run_dir
        self.epochs = 0

    def on_epoch_end(self, epoch, logs=None):
        self.epochs = epoch + 1
        save_model(self.model, self.run_dir)


def save_model(model, run_dir):
    """Saves a model into a run directory; the old one stays until then.

    Args:
        model: A `SimCLRModel`.
        run_dir: The run directory.

    Example:

    ```python
    save_model(model, "runs/flowers")
    ```
    """
    path = pathlib.Path(run_dir) / _MODEL
    staged = path.with_name(f"staged-{_MODEL}")
    model.save(staged)
    staged.replace(path)


def load_model(run_dir):
    """Loads the model of a run directory.

    Args:
        run_dir: The run directory.

    Returns:
        A compiled `SimCLRModel`.

    Raises:
        FileNotFoundError: If there is no model in it.

    Example:

    ```python
    model = load_model("runs/flowers")
    ```
    """
    path = pathlib.Path(run_dir) / _MODEL
    if not path.is_file():
        raise FileNotFoundError(
            f"A run directory must hold {_MODEL}, written by `pretrain`. "
            f"Received: {str(run_dir)!r}"
        )
    return keras.models.load_model(path)


def update_summary(run_dir, entries):
    """Adds entries to `summary.json` in one step.

    Args:
        run_dir: The run directory.
        entries: Dictionary; keys that exist are replaced.

    Example:

    ```python
    update_summary("runs/flowers", {"rows": list(evaluation.rows)})
    ```
    """
    path = pathlib.Path(run_dir) / _SUMMARY
    summary = json.loads(path.read_text()) if path.exists() else {}
    staged = path.with_name(f"staged-{_SUMMARY}")
    staged.write_text(json.dumps({**summary, **entries}, indent=2) + "\n")
    staged.replace(path)


def fastest_precision():
    """Finds the dtype policy in which convolutions train fastest here.

    Returns:
        `"mixed_bfloat16"` where it is clearly faster, else `"float32"`.

    Example:

    >>> fastest_precision() in ("float32", "mixed_bfloat16")
    True
    """
    seconds = {}
    for dtype in ("float32", "bfloat16"):
        images = tf.ones((32, 16, 16, 64), dtype)
        kernel = tf.ones((3, 3, 64, 64), dtype)
        step = tf.function(_convolve_and_back)
        tries = []
        for _ in range(6):
            start = time.perf_counter()
            for gradient in step(images, kernel):
                gradient.numpy()  # Waits for the device.
            tries.append(time.perf_counter() - start)
        seconds[dtype] = min(tries)
    is_faster = seconds["bfloat16"] < 0.8 * seconds["float32"]
    return "mixed_bfloat16" if is_faster else "float32"


def _convolve_and_back(images, kernel):
    with tf.GradientTape() as tape:
        tape.watch((images, kernel))
        outputs = tf.nn.conv2d(images, kernel, 1, "SAME")
    return tape.gradient(outputs, (images, kernel))


def versions():
    """Versions that a result depends on, for `summary.json`.

    Returns:
        Dictionary.

    Example:

    >>> sorted(versions())
    ['keras', 'keras_simclr', 'tensorflow']
    """
    return {
        "keras_simclr": importlib.metadata.version("keras_simclr"),
        "keras": keras.version(),
        "tensorflow": tf.__version__,
    }
