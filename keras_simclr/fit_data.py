"""What Keras needs done to data: whole batches, one iterator, lengths."""

import warnings
import weakref

import keras
import numpy as np
import tensorflow as tf

from keras_simclr import _checks
from keras_simclr.elements import (
    failed_check,
    images_and_sizes,
    unpack,
    value_checks,
)

_BATCH_SIZE = 32  # Keras's default.


# How often `fit` has iterated a dataset of somebody else's; what counts the
# passes over ours.
_drawn = weakref.WeakKeyDictionary()
_passes = weakref.WeakKeyDictionary()


class _Passes:
    """Counts the passes over a dataset of ours."""

    number = 0

    def __call__(self, _):
        self.number += 1
        return np.int64(self.number - 1)


def orders(size, shuffle, seed):
    """Dataset of an order of `size` places: a function of seed and pass.

    A pass is an epoch: the first one that is read has the number 0, and `fit`
    says where it goes on.
    """
    # A few bytes per place; `Dataset.shuffle` takes some hundred.
    if not shuffle:
        return tf.data.Dataset.from_tensors(tf.range(size, dtype=tf.int64))
    passes = _Passes()

    def order(number):
        bits = tf.random.stateless_uniform(
            [size], tf.stack([seed, number]), None, None, tf.int64, alg="philox"
        )
        return tf.cast(tf.argsort(bits, stable=True), tf.int64)

    numbers = tf.data.Dataset.from_tensors(0).map(_calling(passes))
    _passes[numbers] = passes
    return numbers.map(order)


def _calling(function):
    """What has `Dataset.map` call a function for an integer."""

    def number(element):
        number = tf.numpy_function(
            function, [element], tf.int64, stateful=False
        )
        return tf.ensure_shape(number, ())

    return number


def _passes_of(dataset):
    """The counters of those of our datasets that one was made of."""
    if dataset in _passes:
        return [_passes[dataset]]
    inputs = getattr(dataset, "_inputs", list)()
    return [passes for each in inputs for passes in _passes_of(each)]


def _is_shuffled(dataset):
    """Whether somebody shuffles what comes from a dataset of ours."""
    if "Shuffle" in type(dataset).__name__:
        return True
    return any(map(_is_shuffled, getattr(dataset, "_inputs", list)()))


def batches_of(arrays, batch_size, *, shuffle, seed, drop_remainder):
    """The dataset of `dataset_from_arrays`, of arrays in any structure."""
    _checks.integer("batch_size", batch_size, minimum=1)
    if isinstance(arrays, tuple):
        arrays = tuple(array for array in arrays if array is not None)
        arrays = arrays[0] if len(arrays) == 1 else arrays
    arrays = tf.nest.map_structure(tf.convert_to_tensor, arrays)
    sizes = {array.shape[0] for array in tf.nest.flatten(arrays)}
    if len(sizes) > 1:
        raise ValueError(
            "All arrays must have the same length. Received: arrays of length "
            + " and ".join(map(str, sorted(sizes)))
        )
    size = sizes.pop()
    check_fills_a_batch(size, batch_size, drop_remainder, "images")
    places = orders(size, shuffle, seed).flat_map(
        lambda order: tf.data.Dataset.from_tensor_slices(order).batch(
            batch_size, drop_remainder=drop_remainder
        )
    )
    count = size // batch_size if drop_remainder else -(-size // batch_size)
    places = places.apply(tf.data.experimental.assert_cardinality(count))
    return places.map(
        lambda batch: tf.nest.map_structure(
            lambda array: tf.gather(array, batch), arrays
        ),
        num_parallel_calls=tf.data.AUTOTUNE,
    ).prefetch(tf.data.AUTOTUNE)


def check_fills_a_batch(size, batch_size, drop_remainder, what):
    """Refuses images that make no batch at all."""
    if (size < batch_size and drop_remainder) or size == 0:
        raise ValueError(
            "The images must fill at least one batch. Received: "
            f"{size} {what}, batch_size={batch_size}. Use a smaller batch."
        )


def fit_arguments(call, seed, steps_per_execution, *, check, value_checks):
    """The arguments of `fit`, with checked datasets in place of its data.

    Args:
        call: Dictionary of the arguments of `keras.Model.fit`.
        seed: Integer that the orders of arrays depend on.
        steps_per_execution: As in `compile`.
        check: Function that refuses datasets that cannot be used.
        value_checks: As `elements.Rules.value_checks`, for validation.

    Returns:
        Dictionary of the same kind, and the `Stream` of its data, or None if
        they are neither arrays nor a dataset.
    """
    for name in ("class_weight", "sample_weight"):
        if call.get(name) is not None:
            raise ValueError(
                f"`{name}` has nothing to weigh: contrastive training "
                f"treats all images alike. Leave out `{name}`."
            )
    call, stream = dict(call), None
    data, validation = call.get("x"), call.pop("validation_data", None)
    options = {"batch_size": None}
    if _is_arrays(data):
        data = data, call.pop("y", None)
        options = {
            "batch_size": call.pop("batch_size", None),
            "shuffle": call.get("shuffle", True),
            "seed": seed,
        }
        share = call.pop("validation_split", 0.0)
        if validation is None:
            data, validation = _held_out(data, share)
    call["x"] = as_dataset(data, check=check, **options)
    if isinstance(call["x"], tf.data.Dataset):
        check_length(call["x"], call.get("steps_per_epoch"))
        stream = Stream(
            call["x"],
            data if isinstance(data, tf.data.Dataset) else call["x"],
            call.get("steps_per_epoch"),
            call.get("initial_epoch"),
            steps_per_execution,
        )
        call["shuffle"] = False  # Keras warns that it leaves it to us.
        call.update(stream.arguments)
    if validation is not None:
        batch_size = call.pop("validation_batch_size", None)
        call["validation_data"] = _validation_dataset(
            validation,
            batch_size or options["batch_size"],
            call.get("validation_steps"),
            check,
            value_checks,
        )
    return call, stream


def _validation_dataset(data, batch_size, steps, check, value_checks):
    """Checks the values of one batch, or of all if their sizes are not known.

    A last batch may be too small, which is known too late after an epoch.
    """
    try:
        data = as_dataset(
            data, batch_size=batch_size, shrinks=True, check=check
        )
        if isinstance(data, tf.data.Dataset):
            check_length(data, steps, "validation_steps")
            data = data if steps is None else data.take(steps)
            shapes = [x.shape for x in tf.nest.flatten(data.element_spec)]
            is_ragged = any(shape[:1] == [None] for shape in shapes)
            for _ in _checked(
                data if is_ragged else data.take(1), value_checks
            ):
                pass
    except ValueError as error:
        raise ValueError(f"In `validation_data`: {error}") from None
    return data


def evaluate_arguments(call, *, check):
    """The arguments of `evaluate`, as from `fit_arguments`."""
    call, data, options = dict(call), call.get("x"), {}
    if _is_arrays(data):
        data = data, call.pop("y", None)
        size = call.pop("batch_size", None)
        options = {"batch_size": size, "shrinks": True}
    call["x"] = as_dataset(data, check=check, **options)
    steps = call.get("steps")
    if steps is not None and isinstance(call["x"], tf.data.Dataset):
        call["x"] = call["x"].take(steps)  # With `steps_per_execution`, too.
    return call


def predict_arguments(call):
    """The arguments of `predict`, with a dataset for arrays, of all images."""
    call = dict(call)
    size = call.pop("batch_size", None)
    call["x"] = as_dataset(
        call.get("x"), batch_size=size, whole=False, check=None
    )
    return call


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
            dictionary; or anything else.
        check: Function that refuses datasets, or None.
        batch_size: Images in a batch of arrays, or None for Keras's 32.
        shrinks: Whether fewer images make a smaller batch.
        whole: Whether images that do not fill a batch are left out, with a
            warning.
        shuffle: Whether every epoch has another order.
        seed: Integer that the orders depend on.

    Returns:
        A `tf.data.Dataset` as `prepared` returns it; `data` itself if it is
        neither arrays nor a dataset.
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
    if isinstance(data, tf.data.Dataset):
        if check is not None:
            check(data)
        data = prepared(data)
    return data


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

    Attributes:
        arguments: Dictionary of the arguments of `fit` that change.

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
    ):
        self._source, self._is_told = source, first is not None
        self._length = int(dataset.cardinality())  # Negative if not known.
        self._steps = steps_per_epoch
        self._skipped, self._number, self._begin = 0, 0, 0
        self.arguments = {}
        steps = steps_per_epoch or self._length
        if steps <= 0:
            return
        if steps_per_epoch or steps_per_execution > 1:
            skipped = _calling(lambda _: np.int64(self._skipped))
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
        stream = stream.with_options(dataset.options())
        self.arguments = {"x": stream, "steps_per_epoch": steps}

    def begin(self, epoch, steps_trained):
        """Brings the data to where training goes on; before they are read."""
        self._begin = steps_trained
        is_told = self._is_told or epoch > 0
        passes = _passes_of(self._source)
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
        if not passes or _is_shuffled(self._source):
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

    def among(self, callbacks, model):
        """The callbacks of a `fit`, in whatever form, with this one."""
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

    def in_words(self):
        if self.epoch is None:  # What a callback does comes first.
            return ""
        step = self._steps_trained - self._first + 1
        return f" (epoch {self.epoch}, step {step})"


def check_length(dataset, steps=None, name="steps_per_epoch"):
    """Refuses a dataset that is empty, or has no end and no number of steps."""
    batches = dataset.cardinality().numpy()
    if batches == 0:
        raise ValueError(
            "The dataset must hold at least one batch. Received: an empty "
            "dataset. If it ends in batch(..., drop_remainder=True), use a "
            "smaller batch."
        )
    if batches == tf.data.INFINITE_CARDINALITY and steps is None:
        raise ValueError(
            f"An infinite dataset needs `{name}`. Pass it to `fit`, or "
            "leave out `repeat()`."
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

    Takes an array, `(images, labels)`, a dictionary of arrays, or a dataset of
    batches, which stay as they are.
    """
    if not isinstance(images, tf.data.Dataset):
        images = batches_of(
            images, batch_size, shuffle=False, seed=0, drop_remainder=False
        )
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
    try:
        for element in prepared(dataset):
            element = unpack(element)
            checks(element)
            yield element
    except tf.errors.InvalidArgumentError as error:
        text = failed_check(error)
        if text is None:
            raise
        raise ValueError(text) from None
