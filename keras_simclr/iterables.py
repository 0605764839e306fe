"""Datasets of what Python iterates over: `PyDataset`, generators, loaders."""

import collections
import concurrent.futures
import itertools

import keras
import tensorflow as tf

from keras_simclr import _checks
from keras_simclr.elements import unpack
from keras_simclr.orders import orders

EMPTY = (
    "The dataset must hold at least one batch. Received: an empty dataset. If "
    "it ends in batch(..., drop_remainder=True), use a smaller batch."
)


def batches_from(data, *, shuffle=False, seed=0, check=None):
    """The dataset of what a `PyDataset` or another iterable yields.

    Each item is an element as `elements.unpack` takes it. A `PyDataset` is read
    in orders that follow from seed and pass, by as many threads as it has
    workers; a generator only once.

    Args:
        data: A `keras.utils.PyDataset`, a generator, or what else can be
            iterated over, such as the `DataLoader` of PyTorch.
        shuffle: Whether a `PyDataset` has another order in every epoch.
        seed: Integer that the orders depend on.
        check: Function that refuses datasets, also for the ends of a
            `PyDataset`; or None.

    Returns:
        A `tf.data.Dataset` of dictionaries.

    Raises:
        TypeError: If `data` is something else.
        ValueError: If it is empty, or an element has another form.

    Example:

    >>> dataset = batches_from(np.zeros((4, 8, 8, 3)) for _ in range(2))
    >>> dataset.element_spec["images"].shape
    TensorShape([None, 8, 8, 3])
    """
    if isinstance(data, keras.utils.PyDataset):
        return _batches_of_py_dataset(data, shuffle, seed, check)
    others = (str, bytes, list, tuple, dict, tf.distribute.DistributedDataset)
    if isinstance(data, others) or not hasattr(data, "__iter__"):
        raise TypeError(
            "Images must be an array, a tf.data.Dataset of batches, a "
            "keras.utils.PyDataset or a generator of batches. Received: an "
            f"object of class {type(data).__name__}. Make arrays of lists: "
            "np.asarray(images)"
        )
    iterator = iter(data)
    first = next(iterator, None)
    if first is None:
        raise ValueError(EMPTY)
    spec, passes = _spec([first], any_size=True), itertools.count()

    def batches():
        if iterator is not data:
            return map(alike, data)
        if next(passes):
            _checks.fail(
                "A generator can be read only once. Received: one that has "
                "ended. Let it go on for all steps, or pass a "
                "keras.utils.PyDataset or a tf.data.Dataset, which begin again"
            )
        return map(alike, itertools.chain([first], iterator))

    alike = _alike(spec)
    dataset = tf.data.Dataset.from_generator(batches, output_signature=spec)
    if hasattr(data, "__len__"):
        return dataset.apply(tf.data.experimental.assert_cardinality(len(data)))
    return dataset


def is_read_once(data):
    """Whether data are a generator, or another iterator."""
    return hasattr(data, "__next__")


def _batches_of_py_dataset(data, shuffle, seed, check):
    size = data.num_batches
    if size == 0:
        raise ValueError(EMPTY)
    ends = [data[x] for x in sorted({0, (size or 1) - 1})]
    for element in ends if check is not None else ():
        check(tf.data.Dataset.from_tensors(unpack(element)))
    spec = _spec(ends, any_size=size is None)
    alike = _alike(spec)

    def batches(order):
        places = itertools.count() if size is None else order.tolist()
        data.on_epoch_begin()
        for number, item in enumerate(_items(data, places), 1):
            if number == size:  # Nobody need ask for more.
                data.on_epoch_end()
            yield alike(item)

    passes = orders(size or 0, shuffle and size is not None, seed)
    dataset = passes.flat_map(
        lambda order: tf.data.Dataset.from_generator(
            batches, args=(order,), output_signature=spec
        )
    )
    count = tf.data.INFINITE_CARDINALITY if size is None else size
    return dataset.apply(tf.data.experimental.assert_cardinality(count))


def _items(data, places):
    """Items of a `PyDataset`, in order, by as many threads as it asks for.

    Processes, which it may ask for, cannot be divided off from TensorFlow's.
    """
    if data.workers <= 1:
        yield from map(data.__getitem__, places)
        return
    waiting = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(data.workers) as pool:
        for place in places:
            waiting.append(pool.submit(data.__getitem__, place))
            if len(waiting) >= data.max_queue_size:
                yield waiting.popleft().result()
        for item in waiting:
            yield item.result()


def _spec(elements, any_size):
    """What the first and last element have in common, as `tf.TensorSpec`."""
    first, last = unpack(elements[0]), unpack(elements[-1])
    spec = {}
    for name, batch in first.items():
        shape = batch.shape
        if name in last:
            shape = shape.most_specific_compatible_shape(last[name].shape)
        if any_size:
            shape = [None, *shape[1:]]
        spec[name] = tf.TensorSpec(shape, batch.dtype)
    return spec


def _alike(spec):
    """Function that names the parts of an element; refuses other ones."""

    def alike(element):
        try:
            element = unpack(element)
        except ValueError as error:
            _checks.fail(str(error))
        found = {
            name: tf.TensorSpec.from_tensor(x) for name, x in element.items()
        }
        if found.keys() != spec.keys() or not all(
            spec[name].is_compatible_with(x) for name, x in found.items()
        ):
            _checks.fail(
                "All batches must be alike, but for their number of images. "
                f"Received: {_listed(found)} after {_listed(spec)}"
            )
        return element

    return alike


def _listed(spec):
    return ", ".join(
        f"`{k}` of shape {x.shape} and dtype {x.dtype.name}"
        for k, x in spec.items()
    )
