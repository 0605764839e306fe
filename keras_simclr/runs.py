"""The run directory: flags, log, weights and results of one pretraining."""

import collections
import json
import os
import pathlib
import re
import tempfile
import time
import warnings

import keras
import tensorflow as tf

from keras_simclr import _checks
from keras_simclr.export import check_is_free
from keras_simclr.large_batch import has_workers

_MODEL, _LOG, _SUMMARY = "model.keras", "log.csv", "summary.json"
_FLAGS, _CHECKPOINT = "flags.txt", "epoch-{:06d}.weights.h5"
_KEPT = 2  # Checkpoints that stay.


def pretrain(model, dataset, run_dir, *, epochs, flags="", summary=None):
    """Trains a model and keeps everything in a run directory.

    It holds `flags.txt`, `log.csv` (a line per epoch), `model.keras` (after
    the latest epoch; complete at any time), checkpoints of the last two epochs
    and `summary.json`. Ctrl-C ends training early and keeps the model as it is
    then. Called again with the same flags, an unfinished run goes on after its
    last whole epoch, and ends as if it had not been interrupted.

    Args:
        model: A compiled `SimCLRModel`.
        dataset: What `fit` takes. Made anew in each call, with seeded shuffles:
            otherwise the order of its batches is another.
        run_dir: Directory to write: new, empty, or with an unfinished run.
        epochs: Passes over the dataset.
        flags: Text of `flags.txt`, for `--flagfile`.
        summary: Dictionary, the first content of `summary.json`.

    Returns:
        The number of epochs trained; less than `epochs` after Ctrl-C.

    Raises:
        FileExistsError: If `run_dir` holds a finished run, one with other
            flags, or anything else.

    Example:

    ```python
    pretrain(model, dataset, "runs/flowers", epochs=100)
    model = load_model("runs/flowers")
    ```
    """
    run_dir = pathlib.Path(run_dir)
    check_can_run(run_dir, flags)
    first = restore(model, run_dir)
    strategy = model.distribute_strategy
    check_agreement(strategy, first)
    keeper = Checkpoints(run_dir)
    callbacks = [keeper]
    is_chief = strategy.extended.should_checkpoint
    if is_chief:
        run_dir.mkdir(parents=True, exist_ok=True)
        _write_text(run_dir / _FLAGS, flags)
        update_summary(run_dir, summary or {})
        callbacks.insert(0, _logger(run_dir / _LOG, first))
    keeper.epochs = first
    try:
        model.fit(
            dataset, epochs=epochs, initial_epoch=first, callbacks=callbacks
        )
    except KeyboardInterrupt:
        for callback in callbacks:
            callback.on_train_end()
        if is_chief:
            save_model(model, run_dir)
    entries = {
        "epochs_trained": keeper.epochs,
        "steps_trained": int(model.optimizer.iterations.numpy()),
        "finished": keeper.epochs == epochs,
    }
    if is_chief:
        update_summary(run_dir, entries)
    return keeper.epochs


def _logger(path, first):
    """Goes on with a log after its first epochs: more may have been logged."""
    if first and path.exists():
        with path.open(newline="") as file:  # The log ends lines as CSV does.
            lines = file.readlines()
        _write_text(path, "".join(lines[: first + 1]))
    return keras.callbacks.CSVLogger(path, append=first > 0)


def make_strategy(name):
    """Makes the strategy that the command line calls by a name.

    Args:
        name: `"one"` device; `"mirrored"`: all GPUs of this machine;
            `"multi_worker"`: the machines of `TF_CONFIG`; `"tpu"`: those of a
            TPU VM; `"auto"`: the machines of `TF_CONFIG` if it is set, else
            all GPUs, or TPUs, if there are several, else one device.

    Returns:
        A `tf.distribute.Strategy`.

    Raises:
        ValueError: If there is no strategy of that name, or `TF_CONFIG` is
            missing.

    Example:

    >>> make_strategy("one").num_replicas_in_sync
    1
    """
    _checks.choice("strategy", name, _STRATEGIES)
    has_cluster = "TF_CONFIG" in os.environ
    if name == "auto":
        if has_cluster:
            name = "multi_worker"
        elif tf.config.list_physical_devices("TPU"):
            name = "tpu"
        else:
            gpus = tf.config.list_physical_devices("GPU")
            name = "mirrored" if len(gpus) > 1 else "one"
    if name == "multi_worker" and not has_cluster:
        raise ValueError(
            "`strategy` multi_worker needs the environment variable TF_CONFIG, "
            "which names all workers and this one. It is not set."
        )
    return _STRATEGIES[name]()


def _tpu():
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu="local")
    tf.tpu.experimental.initialize_tpu_system(resolver)
    return tf.distribute.TPUStrategy(resolver)


_STRATEGIES = {
    "auto": None,
    "one": tf.distribute.get_strategy,
    "mirrored": tf.distribute.MirroredStrategy,
    "multi_worker": tf.distribute.MultiWorkerMirroredStrategy,
    "tpu": _tpu,
}


def describe_devices(strategy):
    """One line about the devices found, and how many work.

    Args:
        strategy: A `tf.distribute.Strategy`.

    Returns:
        String.

    Example:

    >>> describe_devices(tf.distribute.get_strategy())
    '4 x CPU found; training on 1'
    """
    devices = tf.config.list_logical_devices()
    kinds = collections.Counter(device.device_type for device in devices)
    found = ", ".join(f"{n} x {kind}" for kind, n in sorted(kinds.items()))
    return f"{found} found; training on {strategy.num_replicas_in_sync}"


def check_agreement(strategy, epoch):
    """Refuses workers that would go on from different epochs.

    Args:
        strategy: The model's strategy.
        epoch: Where this worker would go on.

    Raises:
        ValueError: In all workers, if their epochs differ.

    Example:

    >>> check_agreement(tf.distribute.get_strategy(), 3)
    """
    if not has_workers(strategy):
        return

    def share():
        replica = tf.distribute.get_replica_context()
        powers = tf.constant([epoch, epoch**2], tf.float64)
        return replica.all_reduce("MEAN", powers)

    means = tf.function(lambda: strategy.run(share))()
    mean, of_squares = strategy.experimental_local_results(means)[0].numpy()
    if of_squares > mean**2:
        raise ValueError(
            "All workers must see one run directory, on a disk that they "
            f"share. Received: a checkpoint of epoch {epoch} here, and on "
            f"average of epoch {mean:g}"
        )


def recorded_flags(run_dir):
    """The flags of the run that a directory holds.

    Args:
        run_dir: Path; it need not exist.

    Returns:
        Dictionary of names and texts; empty if there is no run.

    Example:

    >>> recorded_flags("a/new/directory")
    {}
    """
    path = pathlib.Path(run_dir) / _FLAGS
    lines = path.read_text().splitlines() if path.exists() else []
    return dict(line.removeprefix("--").split("=", 1) for line in lines)


def about(run_dir):
    """What the model card of a run's encoder says about the run.

    Args:
        run_dir: The run directory.

    Returns:
        Dictionary: `recipe`, the flags without the place where the run is;
        and of `summary.json`, as far as it has them, `data`, how long it was
        trained, and the evaluation.

    Example:

    >>> about("a/new/directory")
    {'recipe': {}}
    """
    recipe = recorded_flags(run_dir)
    recipe.pop("output_dir", None)
    summary = _read_summary(run_dir)
    kept = (
        "data",
        "official",
        "epochs_trained",
        "steps_trained",
        "rows",
        "evaluation",
    )
    return {"recipe": recipe, **{k: summary[k] for k in kept if k in summary}}


def check_can_run(run_dir, flags=None):
    """Refuses a directory that is neither free nor an unfinished run's.

    Args:
        run_dir: Path; it need not exist.
        flags: Text that `flags.txt` of an unfinished run must hold; on what
            devices it runs, `--strategy`, may change. None: any.

    Raises:
        FileExistsError: If the run is finished, has other flags, or is none.

    Example:

    >>> check_can_run("a/new/directory")
    """
    run_dir = pathlib.Path(run_dir)
    if not (run_dir / _FLAGS).exists():
        # A run that was ended while it wrote its first file has only this.
        if list(run_dir.glob("*")) != [_staged(run_dir / _FLAGS)]:
            check_is_free(run_dir)
        return
    theirs = (run_dir / _FLAGS).read_text()
    if _read_summary(run_dir).get("finished"):
        raise FileExistsError(
            "The output directory must be new, empty, or hold an unfinished "
            f"run. Received: {str(run_dir)!r}, whose run is finished"
        )
    if flags is None:
        return
    ours, theirs = (
        {x for x in text.splitlines() if not x.startswith("--strategy=")}
        for text in (flags, theirs)
    )
    if ours != theirs:
        raise FileExistsError(
            "An unfinished run goes on with the flags that it began with. "
            f"Received: {' '.join(sorted(ours - theirs)) or 'no flag'} for "
            f"{str(run_dir)!r}, which has "
            f"{' '.join(sorted(theirs - ours)) or 'none'}"
        )


class Checkpoints(keras.callbacks.Callback):
    """Keeps the model and, of the last two epochs, all that training needs.

    Each file is written beside its place and then renamed: at any time those
    that are there are complete. Of several workers only the chief's are kept.

    Args:
        run_dir: Directory to write into; made if it is missing.

    Example:

    ```python
    # The dataset made anew each time, and its shuffles with a seed.
    first = simclr.runs.restore(model, "runs/flowers")
    model.fit(
        dataset,
        epochs=100,
        initial_epoch=first,
        callbacks=[simclr.runs.Checkpoints("runs/flowers")],
    )
    ```
    """

    def __init__(self, run_dir):
        super().__init__()
        self.run_dir = pathlib.Path(run_dir)
        self.epochs = 0
        self._directory = None

    def on_train_begin(self, logs=None):
        _checks.can_be_loaded(self.model)
        if self.model.distribute_strategy.extended.should_checkpoint:
            self.run_dir.mkdir(parents=True, exist_ok=True)
        else:  # All workers must take part in saving.
            self._directory = tempfile.TemporaryDirectory()
            self.run_dir = pathlib.Path(self._directory.name)

    def on_train_end(self, logs=None):
        if self._directory is not None:
            self._directory.cleanup()

    def on_epoch_end(self, epoch, logs=None):
        path = self.run_dir / _CHECKPOINT.format(epoch + 1)
        _write(path, self.model.save_weights)
        save_model(self.model, self.run_dir)
        for old in _checkpoints(self.run_dir)[:-_KEPT]:
            old.unlink()
        self.epochs = epoch + 1


def restore(model, run_dir):
    """Brings a model to where the last checkpoint of a run was taken.

    One that cannot be read is passed over with a warning.

    Args:
        model: A compiled `SimCLRModel`, made like that of the run.
        run_dir: Directory that `Checkpoints` wrote into.

    Returns:
        Epochs that it was trained for; 0 if there is no checkpoint.

    Raises:
        ValueError: If there are checkpoints, but none can be read.

    Example:

    >>> encoder = simclr.ResNet(10, stem="cifar", input_shape=(8, 8, 1))
    >>> model = simclr.SimCLRModel(encoder)
    >>> model.compile()
    >>> restore(model, "a/new/directory")
    0
    """
    checkpoints = _checkpoints(run_dir)
    if not checkpoints:
        return 0
    model.build_optimizer()
    for path in reversed(checkpoints):
        try:
            model.load_weights(path)
        except (OSError, RuntimeError, KeyError) as error:
            warnings.warn(
                f"The checkpoint {str(path)!r} cannot be read and is passed "
                f"over: {error}",
                stacklevel=2,
            )
        else:
            return int(re.search(r"\d+", path.name)[0])
    raise ValueError(
        "A run goes on from a checkpoint that can be read. Received: "
        f"{str(run_dir)!r}, where none can. Begin anew in another directory."
    )


def _checkpoints(run_dir):
    return sorted(pathlib.Path(run_dir).glob("epoch-*.weights.h5"))


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
    _write(pathlib.Path(run_dir) / _MODEL, model.save)


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
    summary = {**_read_summary(run_dir), **entries}
    path = pathlib.Path(run_dir) / _SUMMARY
    _write_text(path, json.dumps(summary, indent=2) + "\n")


def _write_text(path, text):
    _write(path, lambda staged: staged.write_text(text, newline=""))


def _write(path, write):
    """Has a file written beside its place, and puts it there when complete."""
    staged = _staged(path)
    write(staged)
    staged.replace(path)


def _staged(path):
    return path.with_name(f"staged-{path.name}")


def _read_summary(run_dir):
    path = pathlib.Path(run_dir) / _SUMMARY
    return json.loads(path.read_text()) if path.exists() else {}


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


def duration(seconds):
    """A time in words.

    Args:
        seconds: Number.

    Returns:
        String.

    Example:

    >>> duration(90), duration(600)
    ('90.0 seconds', '10.0 minutes')
    """
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} seconds"


def forget_models():
    """Frees the memory of models that are no longer used.

    `keras.backend.clear_session` alone would also reset the dtype policy.

    Example:

    >>> forget_models()
    """
    policy = keras.config.dtype_policy()
    keras.backend.clear_session()
    keras.config.set_dtype_policy(policy)


def _convolve_and_back(images, kernel):
    with tf.GradientTape() as tape:
        tape.watch((images, kernel))
        outputs = tf.nn.conv2d(images, kernel, 1, "SAME")
    return tape.gradient(outputs, (images, kernel))
