"""What layers do to images, compiled by XLA: once for all that are equal.

A program is shared by all layers of equal settings, and lives as long as the
process, as what XLA compiles does anyway. Where shapes are known when a graph
is made, it is compiled for them. Elsewhere, eagerly and in `dataset.map` of
images of many sizes, images are laid on canvases whose sides are powers of
two, and batches are cut into pieces of one size: a few programs for all.
"""

import contextlib
import contextvars
import dataclasses
import functools
import inspect

import keras
import tensorflow as tf

_CANVASES = [2**exponent for exponent in range(3, 31)]  # Pixels a side.
# A piece holds so many images at most, or so many pixels. Of unknown size it
# holds a few images.
_PIECE = 32
_PIECE_PIXELS = 2**22
_PIECE_OF_UNKNOWN = 8


_runs_here = contextvars.ContextVar("runs_here", default=False)


@contextlib.contextmanager
def running_here():
    """Context for graphs that run in this process: they may hold programs.

    Others may be exported, to where there is no XLA.
    """
    token = _runs_here.set(True)
    try:
        yield
    finally:
        _runs_here.reset(token)


def are_wanted():
    """Whether what draws nothing shall be a program, too.

    Not eagerly: few images are sooner done than compiled for.
    """
    return _runs_here.get() and not tf.executing_eagerly()


class TracedOnce:
    """A function of images, and sizes or None, as a graph.

    It is one graph for batches of any number of images.
    """

    def __init__(self, function):
        self.graph = tf.function(function)

    def __call__(self, images, sizes):
        specs = [
            None if x is None else tf.TensorSpec((None, *x.shape[1:]), x.dtype)
            for x in (images, sizes)
        ]
        self.graph.get_concrete_function(*specs)  # Fits what follows.
        return self.graph(images, sizes)


def program_of(layer, method="_transform", *, one_by_one):
    """The `Program` of a layer, the same for all with equal settings.

    Args:
        layer: A Keras layer.
        method: Name of its method `(images, draws)` that depends on the
            layer's class and settings alone; with an argument `sizes` it takes
            images on canvases.
        one_by_one: As in `Program`.

    Returns:
        A `Program`.
    """
    return _program(_Settings.of(layer), method, one_by_one)


@functools.cache
def _program(settings, method, one_by_one):
    return Program(getattr(settings.layer(), method), one_by_one)


@functools.cache
def _state():
    """Names of what every layer has, beside TensorFlow's own `_self_...`."""
    return frozenset(vars(keras.layers.Layer())) | {"_seed", "_calls", "seed"}


class _Same:
    """What cannot be compared by value is equal to itself only."""

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self):
        return id(self.value)


@dataclasses.dataclass(frozen=True)
class _Settings:
    """Class and settings of a layer, without its state."""

    kind: type
    values: tuple  # Pairs of names and values.

    @classmethod
    def of(cls, layer):
        values = [
            (name, _frozen(value))
            for name, value in vars(layer).items()
            if name not in _state() and not name.startswith("_self_")
        ]
        return cls(type(layer), tuple(values))

    def layer(self):
        """A layer with these settings, of which `_transform` can be called."""
        layer = object.__new__(self.kind)
        vars(layer).update({k: _thawed(v) for k, v in self.values})
        return layer


def _frozen(value):
    if isinstance(value, keras.layers.Layer) and hasattr(value, "_transform"):
        return _Settings.of(value)
    if isinstance(value, (list, tuple)):
        return tuple(map(_frozen, value))
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    return _Same(value)


def _thawed(value):
    if isinstance(value, _Settings):
        return value.layer()
    if isinstance(value, tuple):
        return tuple(map(_thawed, value))
    return value.value if isinstance(value, _Same) else value


class Program:
    """A function of images and draws, compiled, with its gradient.

    XLA cannot hand out what its loops keep for a gradient: that is a program
    of its own, which transforms the images again.

    Args:
        transform: Function `(images, draws)` of batches; images of shape
            `(batch, height, width, channels)`. An argument `sizes`, float32 of
            shape `(batch, 2)`, tells what of a canvas is image.
        one_by_one: Whether to transform images one after another.
    """

    def __init__(self, transform, one_by_one):
        self._transform = transform
        self._one_by_one = one_by_one
        parameters = inspect.signature(transform).parameters
        self._takes_sizes = "sizes" in parameters
        self._forward = tf.function(
            lambda count, *arrays: self._each(self._transform, count, arrays),
            jit_compile=True,
            autograph=False,
        )
        # XLA cannot keep what has no shape when the graph is made.
        self._plain_backward = tf.function(
            lambda count, *arrays: self._each(self._gradient, count, arrays),
            autograph=False,
        )
        self._backward = tf.function(
            self._plain_backward, jit_compile=True, autograph=False
        )

    def __call__(self, images, draws, *sizes, keeps_size, in_pieces=False):
        """Transforms a batch.

        Args:
            images: As of `transform`.
            draws: As of `transform`.
            *sizes: `sizes`, or nothing: all is image.
            keeps_size: Whether what comes out has the size of the images.
            in_pieces: Whether to cut batches of a known size, too: one program
                for all of them.

        Returns:
            float32 tensor, what `transform` returns.
        """
        is_known = images.shape.is_fully_defined()
        if tf.config.functions_run_eagerly() or (
            is_known and not in_pieces and not tf.executing_eagerly()
        ):
            return self._run(None, images, draws, *sizes)
        height, width = shape_of(images)[1:3]
        if self._takes_sizes:
            images, draws, sizes = _on_canvas(images, draws, sizes)
        views = self._in_pieces(images, draws, *sizes)
        return views[:, :height, :width] if keeps_size else views

    def _in_pieces(self, *arrays):
        batch, height, width, _ = shape_of(arrays[0])
        if isinstance(height, int) and isinstance(width, int):
            piece = max(1, min(_PIECE, _PIECE_PIXELS // (height * width)))
        else:
            piece = _PIECE_OF_UNKNOWN
        if isinstance(batch, int) and batch == 1:
            return self._run(None, *arrays)
        pieces = -(-batch // piece)

        def cut(array):
            rest = [(0, 0)] * (array.shape.rank - 1)
            array = tf.pad(array, [(0, pieces * piece - batch), *rest])
            return tf.reshape(array, (pieces, piece, *shape_of(array)[1:]))

        counts = tf.minimum(batch - piece * tf.range(pieces), piece)
        arrays = tf.nest.map_structure(cut, arrays)
        views = tf.map_fn(
            lambda each: self._run(*each),
            (counts, *arrays),
            fn_output_signature=tf.float32,
        )
        shape = shape_of(views)[2:]
        return tf.reshape(views, (pieces * piece, *shape))[:batch]

    def _run(self, count, images, *others):
        """Of a batch of which the first `count` are wanted, or all."""
        if not images.dtype.is_floating:
            return self._forward(count, images, *others)

        # No tape may look into what is compiled.
        still = tf.stop_gradient(images)
        is_known = None not in images.shape[1:]
        backward = self._backward if is_known else self._plain_backward

        @tf.custom_gradient
        def pull(upstream, images):
            pulled = backward(count, still, tf.stop_gradient(upstream), *others)
            return tf.cast(pulled, images.dtype), _no_second_gradient

        @tf.custom_gradient
        def run(images):
            views = self._forward(count, still, *others)
            return views, lambda upstream: pull(upstream, images)

        return run(images)

    def _gradient(self, images, upstream, *others):
        with tf.GradientTape() as tape:
            tape.watch(images)
            views = self._transform(images, *others)
        pulled = tape.gradient(
            views, images, upstream, unconnected_gradients="zero"
        )
        return tf.cast(pulled, tf.float32)

    def _each(self, function, count, arrays):
        batch = arrays[0].shape[0]
        # Eagerly only where all functions were told to run so.
        if batch == 1 or tf.executing_eagerly() or not self._one_by_one:
            return function(*arrays)

        def one(arrays):
            batches = tf.nest.map_structure(lambda x: x[None], arrays)
            return function(*batches)[0]

        if count is None:
            return tf.map_fn(one, arrays, fn_output_signature=tf.float32)

        def body(place, views):
            image = tf.nest.map_structure(lambda x: x[place], arrays)
            return place + 1, views.write(place, one(image))

        _, views = tf.while_loop(
            lambda place, _: place < count,
            body,
            (0, tf.TensorArray(tf.float32, shape_of(arrays[0])[0])),
        )
        return views.stack()


def _no_second_gradient(*_):
    raise NotImplementedError(
        "Augmentations have gradients with respect to images, and no gradients "
        "of these."
    )


def shape_of(array):
    """Sizes of the axes: integers where they are known, else tensors."""
    dynamic = tf.shape(array)
    return [dynamic[i] if n is None else n for i, n in enumerate(array.shape)]


def _on_canvas(images, draws, sizes):
    """Images padded to a canvas, draws of their pixels too, and `sizes`."""
    batch, *size, _ = shape_of(images)
    canvas = [_canvas(side) for side in size]
    is_known = None not in images.shape[1:3]
    if is_known and (canvas == size or not tf.executing_eagerly()):
        return images, draws, sizes
    margins = [(0, c - s) for c, s in zip(canvas, size, strict=True)]

    def pad(array):
        if array.shape.rank < 4:
            return array  # Numbers of an image, not of its pixels.
        rest = [(0, 0)] * (array.shape.rank - 3)
        return tf.pad(array, [(0, 0), *margins, *rest])

    if not sizes:
        sizes = [tf.tile(tf.cast([size], tf.float32), (batch, 1))]
    return pad(images), tf.nest.map_structure(pad, draws), sizes


def _canvas(side):
    if isinstance(side, int):
        return next(canvas for canvas in _CANVASES if canvas >= side)
    sides = tf.constant(_CANVASES)
    return tf.reduce_min(tf.where(sides >= side, sides, _CANVASES[-1]))
