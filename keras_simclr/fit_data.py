"""What Keras needs done to data: whole batches, one iterator, lengths."""

import inspect
import math
import numbers
import time
import warnings
import weakref

import keras
import numpy as np
import tensorflow as tf

from keras_simclr import _checks
from keras_simclr.elements import (
    failures_in_words,
    images_and_sizes,
    unpack,
    value_checks,
)
from keras_simclr.iterables import EMPTY, batches_from, is_read_once
from keras_simclr.optimizers import check_rates
from keras_simclr.orders import (
    batches_of,
    calling,
    is_shuffled,
    passes_of,
)

_BATCH_SIZE = 32  # Keras's default.
# Arguments of `fit`, and the least that each can be.
_NUMBERS = {
    "batch_size": 1,
    "epochs": 0,
    "initial_epoch": 0,
    "steps_per_epoch": 1,
    "validation_steps": 1,
    "validation_batch_size": 1,
}
_LESS = (
    "Go through each batch in parts, with the same negatives: "
    "--micro_batch_size=auto, or SimCLRModel(..., micro_batch_size=N). Or take "
    "a smaller batch: --batch_size"
)
_FORMAT = "tf_saved_model"  # Keras's default.


# How often `fit` has iterated a dataset of somebody else's.
_drawn = weakref.WeakKeyDictionary()


def arguments_of(method, args, kwargs):
    """Dictionary of the arguments of a call, by name.

    Without those that are None where that is the default.
    """
    signature = inspect.signature(method)
    call = signature.bind(*args, **kwargs).arguments
    call = {
        name: value
        for name, value in call.items()
        if value is not None or signature.parameters[name].default is not None
    }
    call.update(call.pop("kwargs", {}))
    return call


def fit_arguments(call, seed, steps_per_execution, *, check, value_checks):
    """The arguments of `fit`, with checked datasets in place of its data.

    Args:
        call: Dictionary of the arguments of `keras.Model.fit`.
        seed: Integer that the orders of arrays depend on.
        steps_per_execution: As in `compile`.
        check: Function that refuses datasets that cannot be used.
        value_checks: As `elements.Rules.value_checks`, for validation.

    Returns:
        Dictionary of the same kind, and the `Stream` of its data.
    """
    refuse_weights(call)
    call = {**call, **_checked_numbers(call)}
    data, validation = call.get("x"), call.pop("validation_data", None)
    options = {"shuffle": call.get("shuffle", True), "seed": seed}
    if _is_arrays(data):
        data = data, call.pop("y", None)
        options["batch_size"] = call.pop("batch_size", None)
        share = call.pop("validation_split", 0.0)
        if validation is None:
            data, validation = _held_out(data, share)
    elif is_read_once(data) and "steps_per_epoch" not in call:
        if call.get("epochs", 1) > 1:
            raise ValueError(
                "A generator can be read only once: more than one epoch needs "
                "`steps_per_epoch`, and a generator that goes on. Received: "
                f"epochs={call['epochs']}"
            )
    call["x"] = as_dataset(data, check=check, **options)
    check_length(call["x"], call.get("steps_per_epoch"))
    stream = Stream(
        call["x"],
        data if isinstance(data, tf.data.Dataset) else call["x"],
        call.get("steps_per_epoch"),
        call.get("initial_epoch"),
        steps_per_execution,
        is_timed=any(
            getattr(x, "times_reading", False)
            for x in _listed(call.get("callbacks"))
        ),
    )
    call["shuffle"] = False  # Keras warns that it leaves it to us.
    call.update(stream.arguments)
    if validation is not None:
        batch_size = call.pop("validation_batch_size", None)
        call["validation_data"] = _validation_dataset(
            validation,
            batch_size or options.get("batch_size"),
            call.get("validation_steps"),
            check,
            value_checks,
        )
    return call, stream


def _checked_numbers(call):
    """Those arguments of `fit` that are numbers, if they can be used."""
    found = {
        name: _checks.integer(name, call[name], minimum=minimum)
        for name, minimum in _NUMBERS.items()
        # Of numbers that Keras has no default for, None means none.
        if name in call and (minimum == 0 or call[name] is not None)
    }
    if "validation_split" in call:
        share = _checks.real_number(
            "validation_split",
            call["validation_split"],
            low=0.0,
            high=math.nextafter(1.0, 0.0),
            rule="a share of at least 0 and less than 1",
        )
        found["validation_split"] = share
    # Keras takes a list of epochs, too.
    if isinstance(call.get("validation_freq"), (numbers.Number, str)):
        found["validation_freq"] = _checks.integer(
            "validation_freq", call["validation_freq"], minimum=1
        )
    return found


def refuse_weights(call):
    """Refuses weights of images among the arguments of Keras's methods."""
    for name in ("class_weight", "sample_weight"):
        if call.get(name) is not None:
            raise ValueError(
                f"`{name}` has nothing to weigh: contrastive training "
                f"treats all images alike. Leave out `{name}`."
            )


def _validation_dataset(data, batch_size, steps, check, value_checks):
    """Checks the values of arrays, and of the first batch of a dataset.

    Of all its batches if their sizes are not known: the last may be too small.
    """
    is_whole = _is_arrays(data)
    try:
        if is_read_once(data):
            raise TypeError(
                "A generator can be read only once, and every epoch reads "
                "them. Pass arrays, a keras.utils.PyDataset or a "
                "tf.data.Dataset"
            )
        data = as_dataset(
            data, batch_size=batch_size, shrinks=True, check=check
        )
        check_length(data, steps, "validation_steps")
        data = data if steps is None else data.take(steps)
        shapes = [x.shape for x in tf.nest.flatten(data.element_spec)]
        is_whole |= any(shape[:1] == [None] for shape in shapes)
        for _ in _checked(data if is_whole else data.take(1), value_checks):
            pass
    except (TypeError, ValueError) as error:
        raise type(error)(f"In `validation_data`: {error}") from None
    return data


def evaluate_arguments(call, *, check):
    """The arguments of `evaluate`, as from `fit_arguments`."""
    refuse_weights(call)
    call, data, options = dict(call), call.get("x"), {}
    if _is_arrays(data):
        data = data, call.pop("y", None)
        size = call.pop("batch_size", None)
        options = {"batch_size": size, "shrinks": True}
    call["x"] = as_dataset(data, check=check, **options)
    _check_steps(call)
    if call.get("steps") is not None:  # With `steps_per_execution`, too.
        call["x"] = call["x"].take(call["steps"])
    return call


def evaluation_in_words(call):
    """Context of `evaluate`, with these arguments, as `failures_in_words`."""
    # Keras has `fit` say so.
    where = " (in `validation_data`)" * ("_use_cached_eval_dataset" in call)
    return failures_in_words(lambda: where)


def predict_arguments(call, check):
    """The arguments of `predict`, with a dataset for arrays, of all images.

    `check` is as `elements.Rules.check_at_rest`.
    """
    call = dict(call)
    call["x"] = as_dataset(
        call.get("x"),
        batch_size=call.pop("batch_size", None),
        whole=False,
        check=lambda dataset: check(unpack(dataset.element_spec)),
    )
    _check_steps(call)
    return call


def export_arguments(call, shape, is_any_size):
    """The arguments of `export`, with the images that it takes.

    Keras would take them from a call of the model. `shape` is that of the
    views; other formats than TensorFlow's need it.
    """
    call = dict(call)
    if call.get("input_signature") is None:
        if is_any_size and call.get("format", _FORMAT) == _FORMAT:
            shape = (None, None, None, shape[3])
        call["input_signature"] = [keras.InputSpec("float32", shape)]
    return call


def _check_steps(call):
    steps = call.get("steps")
    if steps is not None:
        _checks.integer("steps", steps, minimum=1)
    check_length(call["x"], steps, "steps")


def as_dataset(
    data,
    *,
    check,
    batch_size=None,
    shrinks=False,
    whole=True,
    shuffle=False,
    seed=0,
):
    """Brings whatever Keras is given to checked batches, if that can be.

    Args:
        data: A `tf.data.Dataset` of batches; an array, or arrays in a tuple or
            dictionary; or what `batches_from` takes.
        check: Function that refuses datasets, or None.
        batch_size: Images in a batch of arrays, or None for Keras's 32.
        shrinks: Whether fewer images make a smaller batch.
        whole: Whether images that do not fill a batch are left out, with a
            warning.
        shuffle: Whether every epoch has another order.
        seed: Integer that the orders depend on.

    Returns:
        A `tf.data.Dataset` as `prepared` returns it.
    """
    if _is_arrays(data):
        size = _length(data)
        batch_size = batch_size or _BATCH_SIZE
        batch_size = min(batch_size, size) if shrinks else batch_size
        if whole and size > batch_size:
            _warn_of_the_rest(size, batch_size, shuffle)
        data = batches_of(
            tuple(data) if isinstance(data, list) else data,
            batch_size,
            shuffle=shuffle,
            seed=seed,
            drop_remainder=whole,
        )
    if not isinstance(data, tf.data.Dataset):
        data = batches_from(data, shuffle=shuffle, seed=seed, check=check)
    if check is not None:
        check(data)
    return prepared(data)


def _warn_of_the_rest(size, batch_size, shuffle):
    remainder = size % batch_size
    if remainder:
        others = ", others in each epoch" if shuffle else ""
        warnings.warn(
            f"{remainder} of {size} images do not fill a batch of {batch_size} "
            f"and are left out{others}.",
            stacklevel=5,
        )


def _held_out(arrays, share):
    """Splits `(x, y)` as `validation_split` asks: the last ones are held out.

    The second is None if nothing is.
    """
    size = _length(arrays)
    held_out = int(size * share)
    if not held_out:
        return arrays, None
    return tuple(
        tf.nest.map_structure(
            lambda array, rows=rows: None if array is None else array[rows],
            arrays,
        )
        for rows in (slice(size - held_out), slice(size - held_out, None))
    )


def _is_arrays(x):
    """Whether `x` is an array, or arrays in any structure."""
    arrays = [each for each in tf.nest.flatten(x) if each is not None]
    return bool(arrays) and all(hasattr(x, "__array__") for x in arrays)


def _length(arrays):
    return len(tf.nest.flatten(arrays)[0])


def _listed(callbacks):
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
        is_timed: Whether `waited` is measured, which takes time itself.

    Attributes:
        arguments: Dictionary of the arguments of `fit` that change.
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
        is_timed=False,
    ):
        self._source, self._is_told = source, first is not None
        self._length = int(dataset.cardinality())  # Negative if not known.
        self._steps = steps_per_epoch
        self._skipped, self._number, self._begin = 0, 0, 0
        self.arguments, self.waited = {}, 0.0
        self._spec = dataset.element_spec
        steps = steps_per_epoch or self._length
        if steps <= 0:
            return
        if steps_per_epoch or steps_per_execution > 1:
            skipped = calling(lambda _: np.int64(self._skipped))
            # Nothing is drawn before it is read.
            stream = tf.data.Dataset.from_tensors(0).flat_map(
                lambda x: dataset.repeat().skip(skipped(x))
            )
        else:
            stream = dataset.repeat()
        if steps_per_execution > 1:
            batches = iter(stream.with_options(dataset.options()))
            stream = tf.data.Dataset.range(steps).map(
                lambda _: batches.get_next()
            )
        if is_timed:
            stream = self._timed(stream)
        stream = stream.with_options(dataset.options())
        self.arguments = {"x": stream, "steps_per_epoch": steps}

    @property
    def batch_size(self):
        element = unpack(self._spec)
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

    def begin(self, epoch, steps_trained):
        """Brings the data to where training goes on; before they are read."""
        self._begin = steps_trained
        is_told = self._is_told or epoch > 0
        passes = passes_of(self._source)
        if self._steps is None:
            number = epoch
            if not is_told and self._length > 0:
                number = -(-steps_trained // self._length)
        elif self._length > 0 and (passes or is_told):
            position = epoch * self._steps if is_told else steps_trained
            number, self._skipped = divmod(position, self._length)
        elif is_told:
            number, self._skipped = 0, epoch * self._steps
        else:
            number = steps_trained // self._steps
        drawn = _drawn.get(self._source, 0)
        if not passes or is_shuffled(self._source):
            for _ in range(number - drawn):
                iter(self._source)  # Has the order of the next epoch drawn.
        for each in passes:
            each.number = number
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
        self._stream = stream

    def set_params(self, params):
        super().set_params(params)
        params["stream"] = self._stream  # For the other callbacks.

    @property
    def _steps_trained(self):
        return int(self.model.optimizer.iterations.numpy())

    def on_epoch_begin(self, epoch, logs=None):
        if self.epoch is None and self._stream is not None:
            self._stream.begin(epoch, self._steps_trained)
        self.epoch, self._first = epoch + 1, self._steps_trained

    def on_epoch_end(self, epoch, logs=None):
        loss = (logs or {}).get("loss", 0.0)
        if self.model.jit_compile and not np.isfinite(loss):
            raise ValueError(
                "The loss must be finite: try a lower learning rate, a longer "
                "warm-up or a higher temperature. With `jit_compile=True` no "
                "single step is checked: the model is as the epoch left it. "
                f"Received: loss={loss} (epoch {self.epoch})"
            )

    def among(self, call, model):
        """The callbacks of a `fit`, in whatever form, with this one.

        Refuses those, and warns of rates, with which training would fail.
        """
        callbacks = call.get("callbacks")
        epochs = call.get("epochs", 1) - call.get("initial_epoch", 0)
        if model.compiled and epochs > 0:
            check_rates(
                model.optimizer,
                _listed(callbacks),
                epochs * call.get("steps_per_epoch", 0),
            )
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks.callbacks.append(self)
            self.set_model(model)
            return callbacks
        if isinstance(callbacks, keras.callbacks.Callback):
            callbacks = [callbacks]
        return [*(callbacks or ()), self]

    def end(self):
        if self.epoch is not None and self._stream is not None:
            self._stream.end(self._steps_trained)

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
        return failures_in_words(self._where, _LESS)

    def _where(self):
        where = ""
        if self.epoch is not None:  # What a callback does comes first.
            step = self._steps_trained - self._first + 1
            where = f" (epoch {self.epoch}, step {step})"
        return f"{where}. The model is as the step before left it."


def check_length(dataset, steps=None, name="steps_per_epoch"):
    """Refuses a dataset that is empty, or has no end and no number of steps."""
    batches = dataset.cardinality().numpy()
    if batches == 0:
        raise ValueError(EMPTY)
    if batches == tf.data.INFINITE_CARDINALITY and steps is None:
        raise ValueError(
            f"An infinite dataset needs `{name}`. Pass it, or leave out "
            "`repeat()`."
            if name
            else "The dataset must end. Received: an infinite one. Leave out "
            "`repeat()`, or take(...) some of its batches."
        )


def prepared(dataset):
    """Sets the options with which a dataset is read fast, and by all workers.

    tf.data's tuner is turned off, unless the dataset says that it wants it:
    when an iterator ends, TensorFlow (seen with 2.21) often waits until the
    tuner's sleep is over, and the sleeps double, up to a minute: an epoch of 3
    seconds then takes 5. Without it `AUTOTUNE` stands for one call per core, at
    most 16.

    Of several workers each reads everything and keeps its rows of each batch:
    by files, as TensorFlow would have it, the batches would be others than
    those of one device.
    """
    options = tf.data.Options()
    if dataset.options().autotune.enabled is None:
        options.autotune.enabled = False
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.DATA
    )
    return dataset.with_options(options)


def in_order(images, *, batch_size=256):
    """All images in batches, in order, for use without training.

    Takes an array, `(images, labels)`, a dictionary of arrays, a dataset of
    batches, which stay as they are, or what `batches_from` takes.
    """
    if isinstance(images, tuple):  # Labels may be a list.
        images = tuple(
            np.array(x) if isinstance(x, list) else x for x in images
        )
    if _is_arrays(images):
        images = batches_of(
            images, batch_size, shuffle=False, seed=0, drop_remainder=False
        )
    if not isinstance(images, tf.data.Dataset):
        images = batches_from(images)
    return prepared(images)


def checked_elements(dataset, progress=None, total=None):
    """Yields the elements of a dataset, as dictionaries of usable values.

    `progress` is told of the images done, and of all, or None: `total`, or as
    many as the number of batches says. Without any images there is an error.
    """

    def checks(element):
        images, _ = images_and_sizes(element)
        is_image = images.shape.rank == 4
        return value_checks(images, "images", in_unit_range=is_image)

    done, batches = 0, int(dataset.cardinality())
    for element in _checked(dataset, checks):
        yield element
        size = len(element["images"])
        if done == 0 and total is None and batches > 0:
            total = batches * size
        done += size
        if progress:
            progress(done, total)
    if done == 0:
        raise ValueError(
            "The dataset must hold at least one image. Received: none"
        )
    if progress and done != total:
        progress(done, done)


def _checked(dataset, checks):
    with failures_in_words():
        for element in prepared(dataset):
            element = unpack(element)
            checks(element)
            yield element
