"""What callbacks see of a model that trains: its networks, their weights."""

import functools
import math
import time
import weakref

import keras
import numpy as np
import tensorflow as tf

from keras_simclr import copies, doctor, elements, losses, programs

_TO_TRAIN_ON = 32  # Images whose gradient is looked at.


class Copies:
    """Plain copies of a model's networks, with functions traced once.

    They are kept for later calls of `fit`, and hold no reference to the model.
    """

    def __init__(self, model):
        self._model = weakref.ref(model)
        self._encoder = weakref.ref(model.encoder)
        self.encoder = copies.plain_copy(model.encoder)
        self.at_rest = programs.TracedOnce(self._at_rest)
        self.with_views = tf.function(self._with_views, reduce_retracing=True)
        self.in_training = tf.function(
            self._in_training, reduce_retracing=True, autograph=False
        )

    @functools.cached_property
    def head(self):
        return copies.plain_copy(self._model().projection_head)

    def are_of(self, model):
        return self._encoder() is model.encoder

    def _represent(self, view):
        return tf.cast(self.encoder(view, training=False), tf.float32)

    def _at_rest(self, images, sizes):
        """Representations of images."""
        return self._represent(self._model().evaluation_view(images, sizes))

    def _with_views(self, images, sizes, step):
        """Representations, and projections of these and of two views."""
        model = self._model()
        views = model.views(images, sizes, step=step)[:2]
        views = (model.evaluation_view(images, sizes), *views)
        h, h_1, h_2 = map(self._represent, views)
        return h, *(self.head(each, training=False) for each in (h, h_1, h_2))

    def _in_training(self, images, sizes, step):
        """Projections `(V, N, D)`, and lengths of the loss's gradients.

        Of the gradient in the encoder, and in the head. The copies' averages of
        batch norm move.
        """
        model, networks = self._model(), (self.encoder, self.head)
        views = model.views(images, sizes, step=step)
        with tf.GradientTape() as tape:
            z = tf.concat(views, axis=0)
            for network in networks:
                z = tf.cast(network(z, training=True), tf.float32)
            z = tf.reshape(z, (len(views), -1, z.shape[-1]))
            loss, _ = losses.contrast_of(model.contrastive_loss, z)
        weights = [network.trainable_variables for network in networks]
        gradients = tape.gradient(loss, weights)
        return z, [
            tf.linalg.global_norm(part) if part else tf.constant(math.nan)
            for part in gradients
        ]


_kept = weakref.WeakKeyDictionary()


def copies_of(model):
    """The `Copies` of a model, from an earlier `fit` if there are some."""
    found = _kept.get(model)
    if found is None or not found.are_of(model):
        found = Copies(model)
        layers = copies.nested_layers(model.encoder)
        # Graphs hold what was adapted, and it may be adapted again.
        if not any(hasattr(layer, "adapt") for layer in layers):
            _kept[model] = found
    return found


class Look:
    """What a `callbacks.Doctor` sees of a model in one `fit`, as values."""

    def __init__(self, model, parts, params):
        self._model, self._parts, self._params = model, parts, params
        self._stream = params.get("stream")
        self._epochs = 0

    @property
    def _size(self):
        return self._stream and self._stream.batch_size

    def before_training(self):
        """Of images, their views and the settings."""
        model, steps = self._model, self._params["steps"]
        parts = [
            (
                model.evaluation_view(*both),
                *model.views(*both, step=step)[:2],
            )
            for step, both in enumerate(
                map(elements.images_and_sizes, self._parts)
            )
        ]
        images, *views = map(np.concatenate, zip(*parts, strict=True))
        return doctor.of_images(images, views) | doctor.of_settings(
            self._size,
            model.number_of_views,
            model.contrastive_loss,
            steps and steps * self._params["epochs"],
        )

    def begin_epoch(self):
        self._start = time.perf_counter()
        self._waited = self._stream.waited if self._stream else 0.0
        self._before = self._last = Weights(self._model)
        self._first_update = 0.0
        if self._epochs == 0:
            self._first = self._before.steps

    def begin_batch(self, batch):
        steps, at_once = self._params["steps"], self._model.steps_per_execution
        if batch == at_once:
            now = Weights(self._model)
            self._first_update = now.step_update(self._before)
        if steps and batch + at_once >= steps > 1:
            self._last = Weights(self._model)

    def after_epoch(self):
        """Of the weights, and of the time."""
        seconds = time.perf_counter() - self._start
        now = Weights(self._model)
        self._epochs += 1
        values = {
            **now.updates(self._before),
            "standing_norms": now.standing_norms(self._before),
            # Of the first step or the last. In between, weights that batch
            # norm follows have grown to where no step is large any more.
            "step_update": max(now.step_update(self._last), self._first_update),
            "made": now.steps - self._first,
        }
        # The first epoch waits for what begins, too.
        if self._epochs > 1 and self._stream:
            waited = self._stream.waited - self._waited
            values["waiting"] = waited / seconds
        return values

    def after_batches_of(self, size):
        """Of the images that the loss has compared."""
        negatives = self._model.number_of_views * (size - 1)
        values = {"negatives": negatives, "guessing": 1 / (1 + negatives)}
        if self._size:
            values["gathered"] = size / self._size
        return values

    def in_training(self, networks):
        """Of projections and gradients, by `Copies` that have the weights."""
        # No more than fit into memory.
        size = min(_TO_TRAIN_ON, self._model.micro_batch_size or _TO_TRAIN_ON)
        element = {k: x[: max(size, 2)] for k, x in self._parts[0].items()}
        z, lengths = networks.in_training(
            *elements.images_and_sizes(element), tf.constant(0)
        )
        temperature = getattr(self._model.contrastive_loss, "temperature", None)
        names = ("encoder_gradient", "head_gradient")
        return {
            **dict(zip(names, map(float, lengths), strict=True)),
            **doctor.of_projections(z.numpy(), temperature),
        }


class Weights:
    """A model's weights as they are now; how far others are from them.

    Attributes:
        steps: Steps that the model had made.
    """

    def __init__(self, model):
        self.steps = int(model.optimizer.iterations.numpy())
        parts = {"encoder": model.encoder, "head": model.projection_head}
        self._frozen = {
            name
            for name, part in parts.items()
            if part.weights and not part.trainable_variables
        }
        self._trained = {
            name: [x.numpy() for x in part.trainable_variables]
            for name, part in parts.items()
        }
        self._averages = [
            [x.numpy() for x in layer.non_trainable_variables]
            for layer in copies.nested_layers(model.encoder)
            if isinstance(layer, keras.layers.BatchNormalization)
        ]

    def updates(self, before):
        """How far each part has come, in lengths of its earlier weights."""
        return {
            f"{name}_update": 0.0
            if name in self._frozen
            else _lengths(now, before._trained[name])
            for name, now in self._trained.items()
        }

    def step_update(self, before):
        """How far a step moves the median kernel, in its own lengths."""
        moved = [
            _lengths([now], [then])
            for name, arrays in self._trained.items()
            for now, then in zip(arrays, before._trained[name], strict=True)
            if now.ndim > 1
        ]
        steps = max(self.steps - before.steps, 1)
        return float(np.median(moved)) / steps if moved else math.nan

    def standing_norms(self, before):
        """Share of the layers of batch norm whose averages have not moved."""
        pairs = zip(self._averages, before._averages, strict=True)
        stand = [all(map(np.array_equal, *pair)) for pair in pairs]
        return float(np.mean(stand)) if stand else math.nan


def _lengths(now, before):
    """Length of a difference, in lengths of what was before."""
    pairs = list(zip(now, before, strict=True))
    moved = sum(np.sum((a - b) ** 2, dtype="float64") for a, b in pairs)
    length = sum(np.sum(b**2, dtype="float64") for _, b in pairs)
    if not pairs or length == 0:
        return math.nan if not pairs else float(moved and math.inf)
    return math.sqrt(moved / length)
