"""Checkpoints: what training needs to go on, kept at any step."""

import hashlib
import json
import math
import pathlib
import re
import tempfile
import time
import warnings

import keras
import tensorflow as tf

from keras_simclr import _checks, _files, copies, records, streams
from keras_simclr.replicas import agreed_by_workers

MODEL, FLAGS = "model.keras", "flags.txt"
_NAME = re.compile(r"epoch-(\d{6,})(?:-step-(\d{6,}))?\.weights\.h5")
_RECORD = "checkpoints.json"  # What `Checkpoints` wrote, in order.
_MOST_FAILURES = 3  # In a row, until training stops.
_OVERHEAD = 4096  # Bytes that HDF5 takes for a variable's name and place.


class Checkpoints(keras.callbacks.Callback):
    """Keeps the model and all that training needs to go on.

    After each epoch, and where `minutes` say so within one. Each file is
    written beside its place, flushed to the disk and then renamed: at any time
    those that are there are complete. Of several workers only the chief's are
    kept; all keep at the same step. `checkpoints.json` lists them, with their
    SHA-256; nothing else is ever replaced or deleted. Where a weight is NaN or
    infinite nothing is written, with a warning: what was there before it stays.
    So it does where the disk is full or gone: training goes on, and stops with
    an error after the third failure in a row.

    Args:
        run_dir: Directory to write into; made if it is missing.
        minutes: Minutes after which a checkpoint is written within an epoch,
            or None for only after each.
        keep: How many of the latest stay.
        keep_every: Those after every so many epochs stay, too; None: only the
            latest.

    Attributes:
        is_asked: Function without arguments; once it says True, training keeps
            a checkpoint after the step, and ends as by Ctrl-C. By default it
            never does.
        place: Pair: epochs, and steps of the next, that are behind.
        has_given_up: Whether too many checkpoints could not be written.

    Raises:
        FileExistsError: By `fit`, before an epoch, if a file of somebody else
            stands where one of this or a later epoch would be written.
        OSError: By `fit`, before it trains, if the directory cannot be written;
            or if three checkpoints in a row could not be.
        ValueError: If a number is not positive.

    Example:

    ```python
    # The dataset made anew each time, and its shuffles with a seed.
    first = simclr.callbacks.restore(model, "runs/flowers")
    model.fit(
        dataset,
        epochs=100,
        initial_epoch=first,
        callbacks=[simclr.callbacks.Checkpoints("runs/flowers", minutes=15)],
    )
    ```
    """

    def __init__(self, run_dir, *, minutes=None, keep=2, keep_every=None):
        super().__init__()
        self.run_dir = pathlib.Path(run_dir)
        if minutes is not None:
            _checks.positive_number("minutes", minutes)
        self._seconds = math.inf if minutes is None else 60 * minutes
        self._keep = _checks.integer("keep", keep, minimum=1)
        if keep_every is not None:
            _checks.integer("keep_every", keep_every, minimum=1)
        self._keep_every = keep_every
        self.is_asked = lambda: False
        # Of the model that is kept, or was before.
        self.epochs, self.steps, self.weights = 0, 0, None
        self._epoch, self._step, self._first = 0, 0, 0
        self._directory, self._failures = None, 0

    def on_train_begin(self, logs=None):
        copies.check_can_be_saved(self.model)
        self._agreed = agreed_by_workers(self.model.distribute_strategy)
        if self.model.distribute_strategy.extended.should_checkpoint:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            _files.check_can_write(self.run_dir)
        else:  # All workers must take part in saving.
            self._directory = tempfile.TemporaryDirectory()
            self.run_dir = pathlib.Path(self._directory.name)
        if self.steps:  # What was killed may have left an older model.
            self.save_model()
        self._latest, self._failures = time.monotonic(), 0

    def on_train_end(self, logs=None):
        if self._directory is not None:
            self._directory.cleanup()

    def on_epoch_begin(self, epoch, logs=None):
        unfinished = getattr(self.params.get("stream"), "unfinished", None)
        is_within = unfinished and unfinished.epoch == epoch
        self._begin_epoch(epoch, unfinished.step if is_within else 0)
        ours, last = written(self.run_dir), self.params["epochs"]
        for path in self.run_dir.iterdir():
            place = _place(path.name)
            is_next = place is not None and (epoch, 0) < place <= (last, 0)
            is_model = path.name == MODEL and ours is None
            if is_model or (is_next and path.name not in (ours or [])):
                raise FileExistsError(
                    "`run_dir` must hold nothing that would be overwritten. "
                    f"Received: {str(path)!r}, which `Checkpoints` did not "
                    "write there. Move it elsewhere"
                )

    def _begin_epoch(self, epoch, step=0):
        made = int(self.model.optimizer.iterations.numpy())
        self._epoch, self._step, self._first = epoch, step, made - step

    @property
    def place(self):
        # Other callbacks come first, and steps of an execution: they may have
        # failed where more were made. Those that an optimizer leaves out are
        # no iterations.
        made = int(self.model.optimizer.iterations.numpy()) - self._first
        return self._epoch, max(self._step, made)

    def on_train_batch_end(self, batch, logs=None):
        steps = self.params["steps"]
        self._step = min(batch + 1, steps or batch + 1)
        if steps and batch + 1 >= steps:  # Keras counts full executions.
            return  # The epoch is about to end.
        is_due = time.monotonic() - self._latest >= self._seconds
        # No clock but the chief's.
        is_due = is_due and self._directory is None
        is_asked, is_due = self._agreed(self.is_asked(), is_due)
        if is_asked or is_due:
            self.keep_within()
        if is_asked:
            raise KeyboardInterrupt

    def keep_within(self):
        """Writes a checkpoint within an epoch, if training can go on there."""
        params = self.params or {}
        steps = params.get("steps")
        if steps is None or "stream" not in params:
            return  # Nobody knows how.
        epoch, step = self.place
        if 0 < step < steps:
            self._try_to_keep(epoch, step)

    def on_epoch_end(self, epoch, logs=None):
        self._begin_epoch(epoch + 1)
        self._try_to_keep(epoch + 1, 0)
        (is_asked,) = self._agreed(self.is_asked())
        if is_asked and epoch + 1 < self.params["epochs"]:
            raise KeyboardInterrupt

    @property
    def has_given_up(self):
        return self._failures >= _MOST_FAILURES

    def _try_to_keep(self, epochs, step):
        """Writes a checkpoint; if that cannot be, training may go on."""
        self._latest = time.monotonic()  # Of what is written now.
        try:
            if self.is_worth_keeping():
                self._keep_checkpoint(epochs, step)
            self._failures = 0
        except (OSError, RuntimeError) as error:  # HDF5 raises both.
            self._failures += 1
            kept = (
                f"{str(self.run_dir)!r} keeps the model after step {self.steps}"
            )
            if self.has_given_up:
                raise OSError(
                    f"{_MOST_FAILURES} checkpoints in a row could not be "
                    f"written: {error}. {kept}. Make room, or see to the disk, "
                    "and go on from there"
                ) from error
            warnings.warn(
                f"The checkpoint after {_in_words(epochs, step)} could not be "
                f"written: {error}. Training goes on; {kept}",
                stacklevel=2,
            )

    def _keep_checkpoint(self, epochs, step):
        name, record = _name(epochs, step), _read_record(self.run_dir) or {}
        record.pop(name, None)
        # Before it is written: then it is ours, whatever comes between.
        self._write({**record, name: None})
        with _files.replacing(self.run_dir / name) as staged:
            _files.reserve(staged, _size_of_weights(self.model))
            self.model.save_weights(staged)
            digest = _digest(staged)
        record[name] = {"sha256": digest, **self._partial(step)}
        self._write(record)
        self.save_model()
        self.epochs = epochs
        for old in self._superfluous(record):
            (self.run_dir / old).unlink(missing_ok=True)
            del record[old]
        self._write(record)

    def _partial(self, step):
        """What else there is to know of a checkpoint within an epoch."""
        if not step:
            return {}
        return {
            "metrics": streams.values_of_metrics(self.model),
            "skips": self.params["stream"].has_read_all,
        }

    def _superfluous(self, record):
        """Names of the checkpoints that need not stay."""
        for name in list(record)[: -self._keep]:
            epochs, step = _place(name)
            is_kept = self._keep_every and epochs % self._keep_every == 0
            if step or not is_kept:
                yield name

    def is_worth_keeping(self):
        """Whether all weights are finite; warns if not."""
        trouble = _divergence(self.model)
        if trouble:
            warnings.warn(
                f"{trouble}. {str(self.run_dir)!r} keeps what was saved "
                "before.",
                stacklevel=2,
            )
        return not trouble

    def save_model(self):
        """Saves the model as it is now, without a checkpoint."""
        if _read_record(self.run_dir) is None:
            self._write({})  # Then it is ours.
        save_model(self.model, self.run_dir)
        self.steps = int(self.model.optimizer.iterations.numpy())
        self.weights = copies.weights_digest(self.model)

    def _write(self, record):
        text = json.dumps({"files": record}, indent=2) + "\n"
        with _files.replacing(self.run_dir / _RECORD) as staged:
            staged.write_text(text)


def _name(epochs, step):
    within = f"-step-{step:06d}" if step else ""
    return f"epoch-{epochs:06d}{within}.weights.h5"


def _place(name):
    """Epochs and steps behind a checkpoint; None if it is none."""
    found = _NAME.fullmatch(name)
    return found and (int(found[1]), int(found[2] or 0))


def _in_words(epochs, step):
    if step:
        return f"step {step} of epoch {epochs + 1}"
    return f"epoch {epochs}"


def _digest(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size_of_weights(model):
    """Bytes that a checkpoint takes at most."""
    variables = {id(x): x for x in model.variables + model.optimizer.variables}
    return sum(
        math.prod(x.shape) * tf.as_dtype(x.dtype).size + _OVERHEAD
        for x in variables.values()
    )


def written(run_dir):
    """Names of the checkpoints written into a directory, the oldest first.

    None if `Checkpoints` has written nothing there.
    """
    record = _read_record(run_dir)
    return None if record is None else list(record)


def _read_record(run_dir):
    """What is known of each checkpoint, by name; None without any record.

    Of one that may not be complete that is None, of one of version 0.1 nothing.
    """
    path = pathlib.Path(run_dir) / _RECORD
    if path.exists():
        try:
            files = json.loads(path.read_text())["files"]
            if isinstance(files, list):  # Version 0.1 knew nothing of them.
                files = {name: {} for name in files}
            records.check_checkpoints(files)
            return {x: known for x, known in files.items() if _place(x)}
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError(
                f"{_RECORD} must be what `Checkpoints` wrote. Received: "
                f"{str(path)!r}, which is not. Move it elsewhere"
            ) from None
    # Version 0.1 kept no record: what lies beside a run's flags is the run's.
    if not path.with_name(FLAGS).exists():
        return None
    names = sorted(x.name for x in path.parent.iterdir())
    return {name: {} for name in names if _place(name)}


def _divergence(model):
    """What `check_finite` says of a model; empty if nothing."""
    try:
        copies.check_finite(model)
    except ValueError as error:
        return str(error)
    return ""


def restore(model, run_dir):
    """Brings a model to where the last checkpoint of a run was taken.

    One that cannot be read, is not what was written, or holds weights that are
    not finite, is passed over with a warning. After one within an epoch the
    model's next `fit`, with the `initial_epoch` that is returned, goes on
    within that: with its metrics, and without the batches that were seen.

    Args:
        model: A compiled `SimCLRModel`, made like that of the run.
        run_dir: Directory that `Checkpoints` wrote into. Other files there are
            not taken for checkpoints, whatever their names.

    Returns:
        Whole epochs that it was trained for; 0 if there is no checkpoint.

    Raises:
        ValueError: If there are checkpoints, but none can be read.
    """
    model.unfinished = None
    checkpoints = _checkpoints(run_dir)
    if not checkpoints:
        return 0
    model.build_optimizer()
    for path, known in reversed(checkpoints.items()):
        trouble = _trouble_of(path, known)
        try:
            if not trouble:
                model.load_weights(path)
                trouble = _divergence(model)
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            trouble = " ".join(str(error).split())
        if not trouble:
            epochs, step = _place(path.name)
            if step:
                metrics, skips = known["metrics"], known["skips"]
                model.unfinished = streams.Unfinished(
                    epochs, step, metrics, skips
                )
            return epochs
        warnings.warn(
            f"The checkpoint {str(path)!r} cannot be read and is passed over: "
            f"{trouble}",
            stacklevel=2,
        )
    raise ValueError(
        "A run goes on from a checkpoint that can be read. Received: "
        f"{str(run_dir)!r}, where none can. Begin anew in another directory."
    )


def _trouble_of(path, known):
    """What is wrong with a file's content; empty if nothing."""
    expected = known.get("sha256")
    if expected is None or _digest(path) == expected:
        return ""
    return "its content is not what was written (SHA-256)"


def _checkpoints(run_dir):
    """What is known of the checkpoints that are complete, by their paths."""
    record = _read_record(run_dir) or {}
    found = {pathlib.Path(run_dir, x): known for x, known in record.items()}
    return {x: k for x, k in found.items() if k is not None and x.exists()}


def save_model(model, run_dir):
    """Saves a model into a run directory; the old one stays until then."""
    with _files.replacing(pathlib.Path(run_dir) / MODEL) as staged:
        model.save(staged)
