"""The batches of a `fit`: one iterator, from anywhere; how far training is."""

import logging
import time
import typing
import warnings
import weakref

import keras
import numpy as np
import tensorflow as tf

from keras_simclr import elements
from keras_simclr.optimizers import check_rates
from keras_simclr.orders import (
    begins_anywhere,
    calling,
    is_shuffled,
    passes_of,
)

_LESS = (
    "Go through each batch in parts, with the same negatives: "
    "--micro_batch_size=auto, or SimCLRModel(..., micro_batch_size=N). Or take "
    "a smaller batch: --batch_size"
)
_logger = logging.getLogger("keras_simclr")

# How often `fit` has iterated a dataset of somebody else's.
_drawn = weakref.WeakKeyDictionary()


class Unfinished(typing.NamedTuple):
    """Where in an epoch a model is.

    Attributes:
        epoch: Epochs before it.
        step: Steps of it that are behind.
        metrics: As from `values_of_metrics`.
        skips: Whether every image was read so far: then those that are behind
            need not be read again.
    """

    epoch: int
    step: int
    metrics: list
    skips: bool


def values_of_metrics(model):
    """Values of all variables of a model's metrics, as of one device.

    Replicas count every projection of the global batch, each.
    """
    replicas = model.distribute_strategy.num_replicas_in_sync
    variables = [x for metric in model.metrics for x in metric.variables]
    return [float(x.numpy()) / replicas for x in variables]


def set_metrics(model, values):
    """Sets a model's metrics to what `values_of_metrics` returned."""
    replicas = model.distribute_strategy.num_replicas_in_sync
    variables = [x for metric in model.metrics for x in metric.variables]
    # What was counted before is not there, or is over.
    for variable, value in zip(variables, values, strict=False):
        variable.assign(value * replicas)


def listed(callbacks):
    """The callbacks of a `fit`, in whatever form."""
    return tf.nest.flatten(getattr(callbacks, "callbacks", callbacks))


class Stream:
    """The batches of a `fit`, whose orders follow from what was trained.

    Keras makes several iterators for an epoch of known length, each with an
    order of its own, and reads on into the next epoch where the steps of an
    execution do not divide the epoch's. Here there is one for all epochs.

    Args:
        dataset: A `tf.data.Dataset` that is not empty.
        source: What it was made of: the same object if it is used again.
        steps_per_epoch: As in `fit`. A dataset that ends before begins again.
        first: `initial_epoch`, if it was given, or None.
        steps_per_execution: As in `compile`.
        unfinished: `Unfinished` of an epoch, or None. It counts where `first`
            is that epoch.
        is_timed: Whether `waited` is measured, which takes time itself.

    Attributes:
        arguments: Dictionary of the arguments of `fit` that change.
        unfinished: That of the first epoch, or None.
        rest: As `arguments`, of what is left of that epoch.
        batch_size: Examples in a batch, or None where it is not known.
        waited: Seconds that `fit` has waited for batches. Where Keras reads
            ahead, as for several replicas, what that took.

    Example:

    >>> dataset = tf.data.Dataset.range(3)
    >>> stream = Stream(dataset, dataset)
    >>> stream.begin(epoch=0, steps_trained=0)
    >>> stream.arguments["steps_per_epoch"]
    3
    """

    def __init__(
        self,
        dataset,
        source,
        steps_per_epoch=None,
        first=None,
        steps_per_execution=1,
        unfinished=None,
        is_timed=False,
    ):
        self._source, self._is_told = source, first is not None
        self._length = int(dataset.cardinality())  # Negative if not known.
        self._steps, self.unfinished = steps_per_epoch, None
        if unfinished and unfinished.epoch == first:
            self.unfinished = unfinished
        self._skipped, self._number, self._begin = 0, 0, 0
        self.arguments, self.rest, self.waited = {}, {}, 0.0
        self._spec = dataset.element_spec
        steps = steps_per_epoch or self._length
        if steps <= 0:
            return
        options = steps_per_execution, is_timed
        self.arguments = self._read(dataset, steps, *options)
        if self.unfinished:
            behind = unfinished.step
            left = steps - behind
            behind = 0 if self._begins_anywhere else behind
            self.rest = self._read(dataset, left, *options, behind)

    @property
    def _begins_anywhere(self):
        """Whether what is behind need not be read."""
        may_skip = self.unfinished and self.unfinished.skips
        return may_skip and begins_anywhere(self._source)

    def _read(self, dataset, steps, steps_per_execution, is_timed, behind=0):
        """Arguments of `fit`, for epochs of so many steps."""
        if self._steps or steps_per_execution > 1:
            skipped = calling(lambda _: np.int64(self._skipped))
            # Nothing is drawn before it is read.
            stream = tf.data.Dataset.from_tensors(0).flat_map(
                lambda x: dataset.repeat().skip(skipped(x))
            )
        else:  # Replicas know the size of such batches.
            stream = dataset.repeat().skip(behind)
        if steps_per_execution > 1:
            batches = iter(stream.with_options(dataset.options()))
            stream = tf.data.Dataset.range(steps).map(
                lambda _: batches.get_next()
            )
        if is_timed:
            stream = self._timed(stream)
        stream = stream.with_options(dataset.options())
        return {"x": stream, "steps_per_epoch": steps}

    @property
    def has_read_all(self):
        """Whether every image could be read so far."""
        images = getattr(self._source, "source", None)
        return not getattr(images, "skipped", ())

    @property
    def batch_size(self):
        element = elements.unpack(self._spec)
        name = "images" if "images" in element else "view_1"
        return element[name].shape[0]

    def _timed(self, dataset):
        """The dataset, while `waited` learns how long each batch takes."""

        def begin(_):
            self._asked = time.perf_counter()
            return np.int64(0)

        def end(_):
            self.waited += time.perf_counter() - self._asked
            return np.int64(0)

        with warnings.catch_warnings():
            # That these functions do not run eagerly, where others do.
            warnings.filterwarnings("ignore", "Even though the", UserWarning)
            # The parts of a zip are read one after the other.
            begins, ends = (
                tf.data.Dataset.from_tensors(0)
                .repeat()
                .map(
                    lambda x, tell=tell: tf.numpy_function(tell, [x], tf.int64)
                )
                for tell in (begin, end)
            )
            timed = tf.data.Dataset.zip((begins, dataset, ends))
            return timed.map(lambda _, element, __: element)

    def begin(self, epoch, steps_trained, behind=0):
        """Brings the data to where training goes on; before they are read.

        `behind`: steps of this epoch that were made before.
        """
        self._begin = steps_trained
        is_told = self._is_told or epoch > 0
        passes = passes_of(self._source)
        if self._steps is None:
            number, self._skipped = epoch, behind
            if not is_told and self._length > 0:
                number = -(-steps_trained // self._length)
        elif self._length > 0 and (passes or is_told):
            position = epoch * self._steps if is_told else steps_trained
            number, self._skipped = divmod(position + behind, self._length)
        elif is_told:
            number, self._skipped = 0, epoch * self._steps + behind
        else:
            number = steps_trained // self._steps
        drawn = _drawn.get(self._source, 0)
        if not passes or is_shuffled(self._source):
            for _ in range(number - drawn):
                iter(self._source)  # Has the order of the next epoch drawn.
        skips = behind and self._begins_anywhere
        if behind and not skips:
            _logger.warning(
                "Reads %d batches of epoch %d once more, to go on after them",
                behind,
                epoch + 1,
            )
        for each in passes:
            each.number, each.behind = number, self._skipped if skips else 0
        if passes and skips:
            self._skipped = 0
        self._number = max(number, drawn)

    def end(self, steps_trained):
        """Remembers how many orders have been drawn."""
        steps = self._skipped + steps_trained - self._begin
        passes = -(-steps // self._length) if self._length > 0 else 1
        _drawn[self._source] = self._number + passes


class Progress(keras.callbacks.Callback):
    """Knows where training is: for its data, and for what goes wrong.

    Keras reads the first batch after the first epoch has begun, and callbacks
    that restore a model have done so by then.
    """

    epoch = None  # Counted from 1.

    def __init__(self, stream):
        super().__init__()
        self.stream, self._is_read = stream, False

    def set_params(self, params):
        super().set_params(params)
        params["stream"] = self.stream  # For the other callbacks.

    @property
    def _steps_trained(self):
        return int(self.model.optimizer.iterations.numpy())

    def on_epoch_begin(self, epoch, logs=None):
        behind, unfinished = 0, self.stream and self.stream.unfinished
        if unfinished and self.epoch is None:
            behind = unfinished.step
            set_metrics(self.model, unfinished.metrics)
        if not self._is_read and self.stream is not None:
            self.stream.begin(epoch, self._steps_trained, behind)
            self._is_read = True
        self.epoch, self._first = epoch + 1, self._steps_trained - behind

    def read_anew(self):
        """Has the next epoch read by another iterator."""
        self.end()
        self._is_read = False

    def on_epoch_end(self, epoch, logs=None):
        loss = (logs or {}).get("loss", 0.0)
        if self.model.jit_compile and not np.isfinite(loss):
            raise ValueError(
                "The loss must be finite: try a lower learning rate, a longer "
                "warm-up or a higher temperature. With `jit_compile=True` no "
                "single step is checked: the model is as the epoch left it. "
                f"Received: loss={loss} (epoch {self.epoch})"
            )
        if self.model.jit_compile and "skipped" in (logs or {}):
            with elements.failures_in_words():
                elements.few_skipped(tf.constant(logs["skipped"]))

    def among(self, call, model):
        """The callbacks of a `fit`, in whatever form, with this one.

        Refuses those, and warns of rates, with which training would fail.
        """
        callbacks = call.get("callbacks")
        epochs = call.get("epochs", 1) - call.get("initial_epoch", 0)
        if model.compiled and epochs > 0:
            steps = epochs * call.get("steps_per_epoch", 0)
            if self.stream.unfinished:
                steps -= self.stream.unfinished.step
            check_rates(model.optimizer, listed(callbacks), steps)
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks.callbacks.append(self)
            self.set_model(model)
            return callbacks
        if isinstance(callbacks, keras.callbacks.Callback):
            callbacks = [callbacks]
        return [*(callbacks or ()), self]

    def end(self):
        if self.epoch is not None and self.stream is not None:
            self.stream.end(self._steps_trained)

    def check_any_batch(self):
        """Refuses a dataset of which it is known now that it was empty."""
        is_begun = self.epoch is not None
        if is_begun and self.model.loss_metric.count.numpy() == 0:
            raise ValueError(
                "The dataset must hold at least one batch. Received: a dataset "
                "that ended before the first."
            )

    def failures_in_words(self):
        """Context of training, as `elements.failures_in_words`."""
        return elements.failures_in_words(
            self._where, _LESS, elements.BatchError
        )

    def _where(self):
        where = ""
        if self.epoch is not None:  # What a callback does comes first.
            step = self._steps_trained - self._first + 1
            where = f" (epoch {self.epoch}, step {step})"
        return f"{where}. The model is as the step before left it."


class _Whole(keras.callbacks.CallbackList):
    """Callbacks to which two calls of `fit` are one.

    The first call has what is left of an epoch: its steps are counted from
    those that are behind.
    """

    behind, is_first, is_last = 0, True, False

    def on_train_begin(self, logs=None):
        if self.is_first:
            super().on_train_begin(logs)

    def on_train_batch_begin(self, batch, logs=None):
        super().on_train_batch_begin(batch + self.behind, logs)

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch + self.behind, logs)

    def on_train_end(self, logs=None):
        if self.is_last:
            super().on_train_end(logs)


def element_at(dataset, epoch, step):
    """What `fit` reads of a dataset in a step of an epoch, both from 0."""
    stream = Stream(
        dataset,
        dataset,
        first=epoch,
        unfinished=Unfinished(epoch, step, [], skips=False),
    )
    stream.begin(epoch, steps_trained=0, behind=step)
    return next(iter(stream.rest["x"]))


def fit(act, call, progress):
    """Calls Keras's `fit`; twice, where it begins within an epoch.

    Args:
        act: `keras.Model.fit` of a model.
        call: Dictionary of its arguments.
        progress: `Progress`, which is among its callbacks.

    Returns:
        What `fit` returns.

    Raises:
        ValueError: If a step cannot be made, or there is no batch.
    """
    try:
        with progress.failures_in_words():
            if progress.stream.unfinished:
                history = _fit_from_within(act, call, progress)
            else:
                history = act(**call)
    finally:
        progress.end()
    progress.check_any_batch()
    return history


def _fit_from_within(act, call, progress):
    stream, first = progress.stream, call["initial_epoch"]
    callbacks, verbose = call["callbacks"], call.get("verbose", "auto")
    both = call["callbacks"] = _Whole(
        getattr(callbacks, "callbacks", callbacks),
        add_history=True,
        add_progbar=verbose != 0,
        model=act.__self__,
        verbose=verbose,
        epochs=call["epochs"],
        steps=stream.arguments["steps_per_epoch"],
    )
    both.behind = stream.unfinished.step
    both.is_last = first + 1 == call["epochs"]
    history = act(**{**call, **stream.rest, "epochs": first + 1})
    if both.is_last:
        return history
    both.behind, both.is_first, both.is_last = 0, False, True
    if both.model.stop_training:
        both.on_train_end()
        return history
    progress.read_anew()
    return act(**{**call, "initial_epoch": first + 1})
