"""What Keras needs done to data: whole batches, arrays, lengths."""

import inspect
import math
import numbers
import warnings

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
from keras_simclr.kinds import IMAGES, kind_of
from keras_simclr.orders import batches_of
from keras_simclr.streams import Stream, listed

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
_FORMAT = "tf_saved_model"  # Keras's default.


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


def fit_arguments(
    call, seed, steps_per_execution, *, check, value_checks, unfinished=None
):
    """The arguments of `fit`, with checked datasets in place of its data.

    Args:
        call: Dictionary of the arguments of `keras.Model.fit`.
        seed: Integer that the orders of arrays depend on.
        steps_per_execution: As in `compile`.
        unfinished: As `Stream`.
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
        unfinished,
        is_timed=any(
            getattr(x, "times_reading", False)
            for x in listed(call.get("callbacks"))
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


def export_arguments(call, any_size, shape):
    """The arguments of `export`, with the images that it takes.

    Keras would take them from a call of the model. The shapes are those of
    `augmentations.shapes_taken`; other formats than TensorFlow's need the
    second.
    """
    call = dict(call)
    if call.get("input_signature") is None:
        if call.get("format", _FORMAT) == _FORMAT:
            shape = any_size
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


def checked_elements(dataset, progress=None, total=None, kind=None):
    """Yields the elements of a dataset, as dictionaries of usable values.

    They are of that kind or, if it is not given, of that of their shape.
    `progress` is told of the images done, and of all, or None: `total`, or as
    many as the number of batches says. Without any images there is an error.
    """

    def checks(element):
        images, _ = images_and_sizes(element)
        is_image = (kind or kind_of([], images.shape)) is IMAGES
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
