"""Orders in which examples are read: functions of a seed and the epoch."""

import os
import weakref

import numpy as np
import tensorflow as tf

from keras_simclr import _checks

# What counts the passes over our datasets.
_passes = weakref.WeakKeyDictionary()
# Places in a batch of those datasets whose every batch is the next places of
# a pass.
_in_order = weakref.WeakSet()


class _Passes:
    """Counts the passes over a dataset of ours.

    `behind`: batches, of `size` places, that the next pass leaves out at its
    beginning.
    """

    number = behind = size = 0

    def begin(self, _):
        self.number += 1
        return np.int64(self.number - 1)

    def left_out(self, _):
        behind, self.behind = self.behind, 0
        return np.int64(self.size * behind)


def orders(size, shuffle, seed, rounds=1):
    """Dataset of an order of `size` places: a function of seed and pass.

    A pass is an epoch: the first one that is read has the number 0, and `fit`
    says where it goes on. The order comes so many times in a row.
    """
    # A few bytes per place; `Dataset.shuffle` takes some hundred.
    if not shuffle:
        order = tf.tile(tf.range(size, dtype=tf.int64), [rounds])
        return tf.data.Dataset.from_tensors(order)
    passes = _Passes()

    def order(number, left_out):
        bits = tf.random.stateless_uniform(
            [size], tf.stack([seed, number]), None, None, tf.int64, alg="philox"
        )
        order = tf.cast(tf.argsort(bits, stable=True), tf.int64)
        return tf.tile(order, [rounds])[left_out:]

    begin, left_out = calling(passes.begin), calling(passes.left_out)
    numbers = tf.data.Dataset.from_tensors(0).map(
        lambda x: (begin(x), left_out(x))
    )
    _passes[numbers] = passes
    return numbers.map(order)


def in_order_of_places(dataset, batch_size=0):
    """Notes that each batch has the next places of a pass; returns the dataset.

    Then a pass can begin with any batch, without reading those before it. What
    is made of such datasets has their batches, and needs no `batch_size`.
    """
    for passes in passes_of(dataset):
        passes.size = passes.size or batch_size
    _in_order.add(dataset)
    return dataset


def begins_anywhere(dataset):
    """Whether that is noted of a dataset."""
    return dataset in _in_order


def calling(function):
    """What has `Dataset.map` call a function for an integer."""

    def number(element):
        number = tf.numpy_function(
            function, [element], tf.int64, stateful=False
        )
        return tf.ensure_shape(number, ())

    return number


def passes_of(dataset):
    """The counters of those of our datasets that one was made of."""
    if dataset in _passes:
        return [_passes[dataset]]
    inputs = getattr(dataset, "_inputs", list)()
    return [passes for each in inputs for passes in passes_of(each)]


def is_shuffled(dataset):
    """Whether somebody shuffles what comes from a dataset of ours."""
    if "Shuffle" in type(dataset).__name__:
        return True
    return any(map(is_shuffled, getattr(dataset, "_inputs", list)()))


def batches_of(arrays, batch_size, *, shuffle, seed, drop_remainder, rounds=1):
    """The dataset of `dataset_from_arrays`, of arrays in any structure.

    An epoch has everything so many times, in one order.
    """
    _checks.integer("batch_size", batch_size, minimum=1)
    _checks.seed("seed", seed)
    if isinstance(arrays, tuple):
        arrays = tuple(
            np.array(array) if isinstance(array, list) else array
            for array in arrays
            if array is not None
        )
        if len(arrays) == 1:  # Which may be a pair itself, without labels.
            return batches_of(
                arrays[0],
                batch_size,
                shuffle=shuffle,
                seed=seed,
                drop_remainder=drop_remainder,
                rounds=rounds,
            )
    arrays = tf.nest.map_structure(_as_tensor_if_writeable, arrays)
    sizes = {array.shape[0] for array in tf.nest.flatten(arrays)}
    if len(sizes) > 1:
        raise ValueError(
            "All arrays must have the same length. Received: arrays of length "
            + " and ".join(map(str, sorted(sizes)))
        )
    size = sizes.pop()
    check_fills_a_batch(rounds * size, batch_size, drop_remainder, "images")
    places = orders(size, shuffle, seed, rounds).flat_map(
        lambda order: tf.data.Dataset.from_tensor_slices(order).batch(
            batch_size, drop_remainder=drop_remainder
        )
    )
    size *= rounds
    count = size // batch_size if drop_remainder else -(-size // batch_size)
    places = places.apply(tf.data.experimental.assert_cardinality(count))
    batches = places.map(
        lambda batch: tf.nest.map_structure(
            lambda array: _gathered(array, batch), arrays
        ),
        num_parallel_calls=tf.data.AUTOTUNE,
    ).prefetch(tf.data.AUTOTUNE)
    return in_order_of_places(batches, batch_size)


def _as_tensor_if_writeable(array):
    """An array as a tensor, or as it is: what cannot change is not copied."""
    is_fixed = isinstance(array, np.ndarray) and not array.flags.writeable
    if is_fixed and array.dtype.kind in "buif":  # Numbers, perhaps in a file.
        return array
    return tf.convert_to_tensor(array)


def _file_check(array):
    """A function that refuses an array whose file was written into.

    To read what is mapped of a file that ends earlier now ends the process.
    """
    path = getattr(array, "filename", None)
    before = _written(path)

    def check():
        now = _written(path)
        # Of a file that is gone, or another one now, what is mapped stays.
        if now and before and now != before and now[0] == before[0]:
            _checks.fail(
                "A file of arrays must stay as it is while it is read. "
                f"Received: {str(path)!r}, which was written into. Begin or go "
                "on, and write to another file, which then takes its name"
            )

    return check


def _written(path):
    """Which file it is, its size and time; None without one."""
    try:
        status = os.stat(path)  # noqa: PTH116 - for each batch.
    except (OSError, TypeError):
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _gathered(array, batch):
    if isinstance(array, tf.Tensor):
        return tf.gather(array, batch)
    dtype = array.dtype.newbyteorder("=")
    check_file = _file_check(array)

    def rows_at(batch):
        check_file()
        return array[batch].astype(dtype, copy=False)

    rows = tf.numpy_function(rows_at, [batch], dtype, stateful=False)
    return tf.ensure_shape(rows, (*batch.shape, *array.shape[1:]))


def check_fills_a_batch(size, batch_size, drop_remainder, what):
    """Refuses images, or what else they are, that make no batch at all."""
    if (size < batch_size and drop_remainder) or size == 0:
        raise ValueError(
            f"The {what.split()[0]} must fill at least one batch. Received: "
            f"{size} {what}, batch_size={batch_size}. Use a smaller batch."
        )
