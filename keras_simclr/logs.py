"""What a run says while it trains: its log, its pace, the time that is left."""

import csv
import importlib.util
import io
import pathlib
import time

import keras
import numpy as np
import tensorflow as tf

from keras_simclr import _files, callbacks, curves, elements, optimizers
from keras_simclr.csv_files import cell

_AT_ONCE = 32  # Images in memory.
_PICTURES = 8  # Images of which TensorBoard shows views.
_SAID = ("too_few_steps",)  # By `recipe.Recipe.steps_in_words`.


class Pace(keras.callbacks.Callback):
    """Adds seconds, images a second and the learning rate to the logs.

    The rate is that of the epoch's last step. `progress`, a function as from
    `_terminal.progress`, or None, is told of the steps of the whole training.
    """

    def __init__(self, progress=None):
        super().__init__()
        self._progress = progress

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._start = epoch, time.perf_counter()
        self._first = self._steps_trained

    def on_train_batch_end(self, batch, logs=None):
        steps, epochs = self.params["steps"], self.params["epochs"]
        if self._progress is None:
            return
        more = [f"{k} {float(x):.4g}" for k, x in sorted((logs or {}).items())]
        more = ", ".join([f"epoch {self._epoch + 1} of {epochs}", *more])
        more = more.replace("_", " ")
        if steps is None:
            self._progress(batch + 1, None, more)
            return
        done = min(batch + 1, steps)  # Keras counts the last execution as full.
        self._progress(
            self._epoch * steps + done,
            epochs * steps,
            more,
            ends=done == steps,
        )

    def on_epoch_end(self, epoch, logs=None):
        seconds = time.perf_counter() - self._start
        steps = self._steps_trained - self._first
        stream = self.params.get("stream")
        size = stream and stream.batch_size
        logs["seconds"] = seconds
        if size:
            logs["images_per_second"] = size * steps / seconds
        logs["learning_rate"] = optimizers.rate_at(
            self.model.optimizer, self._steps_trained - 1
        )

    @property
    def _steps_trained(self):
        return int(self.model.optimizer.iterations.numpy())


class Log(keras.callbacks.Callback):
    """A CSV file with a row for each epoch, complete at any time.

    What a run that goes on logs beside what it did, or no longer, are columns
    with nothing in the other rows. Where it cannot be written, there is a
    warning, and the next epoch writes all.

    Args:
        path: `pathlib.Path` of the file.
        first: Epochs that the run has behind it. Rows of these stay.
    """

    def __init__(self, path, first=0):
        super().__init__()
        self._path, self._first = path, first
        self._columns, self._rows = [], []

    def on_train_begin(self, logs=None):
        self._columns, self._rows = [], []
        if self._first and self._path.exists():
            self._columns, rows = curves.read_rows(self._path)
            self._rows = rows[: self._first]
            self._write()  # More may have been logged.

    def on_epoch_end(self, epoch, logs=None):
        row = {"epoch": epoch, **dict(sorted((logs or {}).items()))}
        self._columns += [name for name in row if name not in self._columns]
        self._rows.append(row)
        self._write()

    def _write(self):
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        for row in self._rows:  # What was read may be a stranger's.
            writer.writerow({k: cell(x) for k, x in row.items()})
        with _files.tried(), _files.replacing(self._path) as staged:
            staged.write_text(text.getvalue(), newline="")


def watching(strategy, doctor, tensorboard):
    """What makes the callbacks that watch a training by a few of its images.

    Args:
        strategy: `tf.distribute.Strategy`. Of several workers the chief alone
            writes TensorBoard's files.
        doctor: Whether to have a `callbacks.Doctor`.
        tensorboard: Whether to write TensorBoard's files, into `tensorboard` in
            the run directory, with views of 8 images.

    Returns:
        Function of a dataset, the run directory and what is told of findings,
        that returns a list of callbacks.

    Raises:
        ImportError: If TensorBoard is asked for and not installed.

    Example:

    ```python
    watch = watching(tf.distribute.get_strategy(), True, False)
    callbacks = watch(dataset, "runs/flowers", print)
    ```
    """
    if tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ImportError(
            "`tensorboard` needs the package of that name. Install it with: "
            "pip install tensorboard"
        )

    def watch(dataset, run_dir, report):
        few = dataset.unbatch().take(callbacks.Doctor.most).batch(_AT_ONCE)
        found = []
        if doctor:
            found += [callbacks.Doctor(few, report=report, silent=_SAID)]
        if tensorboard and strategy.extended.should_checkpoint:
            directory = pathlib.Path(run_dir) / "tensorboard"
            element = elements.unpack(next(iter(few)))
            element = {name: x[:_PICTURES] for name, x in element.items()}
            found += [
                keras.callbacks.TensorBoard(str(directory), write_graph=False),
                Pictures(directory, elements.images_and_sizes(element)),
            ]
        return found

    return watch


def doctors_among(listed):
    """Those callbacks that are a `callbacks.Doctor`."""
    return [x for x in listed if isinstance(x, callbacks.Doctor)]


def findings_of(doctors):
    """The entry of a summary for what doctors have found, if there are any."""
    return {"findings": doctors[0].findings} if doctors else {}


def findings_before(summary, first, doctors):
    """The entry of what was found in the epochs that a run has behind it.

    The doctors are told.
    """
    earlier = summary.get("findings", []) if first else []
    earlier = [x for x in earlier if x["epoch"] <= first]
    for each in doctors:
        each.findings = [*earlier]
    return {"findings": earlier} if doctors or "findings" in summary else {}


def keeping(keep, doctors):
    """A callback that has each epoch's findings kept, by a function."""

    def keep_findings(epoch, logs):
        with _files.tried():
            keep(findings_of(doctors))

    return keras.callbacks.LambdaCallback(on_epoch_end=keep_findings)


class Pictures(keras.callbacks.Callback):
    """Writes views of a few images where TensorBoard shows them, each epoch.

    A row has an image at rest, and its views of that epoch's last step.

    Args:
        directory: `pathlib.Path` of TensorBoard's files.
        element: Images and sizes, or None, as `SimCLRModel.views` takes them.
    """

    def __init__(self, directory, element):
        super().__init__()
        self._directory, self._element = directory, element

    def on_epoch_end(self, epoch, logs=None):
        step = int(self.model.optimizer.iterations.numpy())
        writer = tf.summary.create_file_writer(str(self._directory / "views"))
        with writer.as_default():
            grid = views_grid(self.model, self._element, step)
            tf.summary.image("views", grid[None], step=epoch)
        writer.close()


def views_grid(model, element, step=0):
    """Images at rest and their views, side by side, as one picture.

    Args:
        model: A `SimCLRModel`.
        element: Images and sizes, or None, as `SimCLRModel.views` takes them.
        step: As there.

    Returns:
        float32 array of shape `(N * height, (1 + V) * width, channels)`, with
        1 or 3 channels: of 2 the first is shown, of more the first three.
    """
    columns = [model.evaluation_view(*element)]
    columns += model.views(*element, step=step)
    rows = np.concatenate(columns, axis=2)  # (N, height, (1 + V) * width, C)
    channels = rows.shape[-1]
    picture = np.concatenate(rows, axis=0)
    return picture[..., : 3 if channels >= 3 else 1]
