"""SimCLRModel: an encoder that learns from two random views of each image."""

import contextlib
import functools
import warnings

import keras
import tensorflow as tf

from keras_simclr import (
    _checks,
    augmentations,
    copies,
    elements,
    fit_data,
    kinds,
    losses,
    micro_batches,
    programs,
    streams,
)
from keras_simclr.augmentations import as_views, check_view, seen_at_rest
from keras_simclr.networks import (
    ProjectionHead,
    check_encoder,
    check_projection_head,
    check_trainable,
)
from keras_simclr.optimizers import built, default_optimizer, make_or_skip
from keras_simclr.replicas import (
    ForwardPass,
    check_execution,
    check_on_nan,
    check_optimizer,
    check_strategy,
    from_all_replicas,
    has_workers,
    penalized,
    piece_and_number,
    prepare,
    share_failure,
)

_TEST_STEP = -1  # Validation draws as no training step does.


@keras.saving.register_keras_serializable(package="keras_simclr")
class SimCLRModel(copies.KeepsGenerators):
    """Trains an encoder so that two views of an image agree.

    `fit` makes two random views of every image, brings all of them through
    encoder and projection head in one pass and minimizes the contrastive loss.
    `model(images)` and `predict` return the representation of the images as
    they are (at rest), which is what the encoder is wanted for.

    Args:
        encoder: A `keras.Model` with a known input shape, from views to
            representations `(batch, features)`: `simclr.ResNet`, a
            `keras.applications` network with `pooling="avg"`, or your own.
        projection_head: Layer from representations to projections, or None
            for `ProjectionHead()`.
        augmentation: Layer, or list of layers applied in order, that makes
            the views; or None for `SimCLRAugmentation` at the encoder's size.
        second_augmentation: The same for the second view and those after it,
            or None to use `augmentation` again.
        views: Views of each image, at least 2. Each is an anchor, and each
            other one of its image its positive. With more views, as many fewer
            images take the same time and memory.
        micro_batch_size: Images that pass through the encoder at a time, or
            None for all. Memory then depends on it and not on the batch; the
            encoder runs forward twice. The gradient is that of the whole
            batch, except that batch norm normalizes each micro-batch (both
            views of its images) by itself; its moving averages move once a
            step, to the mean of what all micro-batches would have set.
        on_nan: What is done where a loss or gradient is NaN or infinite:
            `"stop"` with an error; or `"skip"` the step, up to 10 of an epoch,
            counted in the logs as `skipped`, on one device.
        seed: Integer. All randomness of the views is a function of it, the
            step, the view and the image's place in the batch.
        **kwargs: Standard `keras.Model` arguments (`name`, `dtype`).

    Call arguments:
        images: uint8, or float in [0, 1], of shape `(batch, height, width,
            channels)`; or whatever the augmentation takes.
        sizes: Integers of shape `(batch, 2)`: height and width of images that
            are padded below and to the right. None: all of the image.

    Raises:
        TypeError: If `encoder` is not a Keras model.
        ValueError: If values are not finite, or those of images not in [0, 1];
            if encoder, head and augmentation do not fit together; if
            an augmentation draws at rest, or brings images out of [0, 1]; or
            if a layer draws where a forward pass must be repeatable.

    Example:

    >>> encoder = simclr.ResNet(
    ...     10, width_multiplier=0.25, stem="cifar", input_shape=(8, 8, 1)
    ... )
    >>> model = simclr.SimCLRModel(encoder)
    >>> model.compile()
    >>> images = np.random.default_rng(0).random((64, 8, 8, 1), "float32")
    >>> history = model.fit(images, batch_size=32, epochs=1, verbose=0)
    >>> sorted(history.history)
    ['contrastive_accuracy', 'loss']
    >>> model.predict(images, verbose=0).shape
    (64, 128)

    Under a `tf.distribute` strategy, make encoder and model in its scope.
    Negatives come from all replicas, batch norm is synchronized, views depend
    on the place in the global batch: the result is that of one device.

    Orders of arrays, and of this package's datasets, are functions of the seed
    and the epochs trained so far, unless `initial_epoch` is given. A step whose
    loss or gradient is not finite is not made: `fit` stops with an error.

    Augmentations of your own are layers with `call(images)` and those of these
    arguments that they name: `training`, a boolean; `seed`, int64 of shape
    `(2,)`, of which all randomness in training is a function; `part`, None or,
    of a replica or micro-batch, `(first, total)`, int32 scalars: the place of
    the first image in the global batch, and the size of that; `sizes`, None
    or int32 of shape `(batch, 2)`, for the first layer only. All but
    `training` are given in training, `sizes` also at rest. CONTRIBUTING.md
    shows one for tables and one for sounds.

    Elements of a dataset are `images`, `(images, labels)`, or a dictionary
    with `images`, or `view_1` and `view_2`, and optionally `labels`, which
    never touch the loss; `sizes`, as above; and `groups`, integers of shape
    `(batch,)`: images with the same number are never each other's negatives.

    References:
        - Chen et al. 2020, arXiv:2002.05709, Algorithm 1.
        - google-research/simclr@383d414, tf2/model.py:228-289.
        - Gao et al. 2021, arXiv:2101.06983 (micro-batches).
    """

    def __init__(
        self,
        encoder,
        projection_head=None,
        *,
        augmentation=None,
        second_augmentation=None,
        views=2,
        micro_batch_size=None,
        on_nan="stop",
        seed=0,
        **kwargs,
    ):
        # Images must not be cast to the compute dtype: the encoder does that.
        super().__init__(autocast=False, **kwargs)
        check_encoder(encoder)
        if projection_head is None:
            projection_head = ProjectionHead(name="projection_head")
        if augmentation is None:
            augmentation = augmentations.default_augmentation(
                encoder.input_shape
            )
        self.encoder = encoder
        self.projection_head = projection_head
        self.augmentation = augmentation
        self.second_augmentation = second_augmentation
        self.number_of_views = _checks.integer("views", views, minimum=2)
        if micro_batch_size is not None:
            _checks.integer("micro_batch_size", micro_batch_size, minimum=1)
        self.micro_batch_size = micro_batch_size
        self.on_nan = check_on_nan(on_nan, self._replicas)
        self.seed = _checks.seed("seed", seed)
        self.loss_metric = keras.metrics.Mean(name="loss")
        self.accuracy_metric = keras.metrics.Mean(name="contrastive_accuracy")
        self.skipped_metric = keras.metrics.Sum(name="skipped")
        self._is_tried = False  # Before the first `fit`.
        self.unfinished = None  # Where in an epoch `restore` has brought it.
        self._check_augmentations()
        if not projection_head.built:
            projection_head.build(encoder.output_shape)
        check_projection_head(projection_head, encoder.output_shape)
        networks = (encoder, projection_head)
        prepare(
            [x for network in networks for x in copies.nested_layers(network)],
            lambda views: self._project(views, training=True),
            copies.examples_for(encoder),
            replicas=self._replicas,
            micro_batch_size=micro_batch_size,
        )
        variables = [v for network in networks for v in network.variables]
        check_strategy(self.distribute_strategy, variables, micro_batch_size)
        self.built = True

    @property
    def kind(self):
        """What it learns from, a `kinds.Kind`: images or, say, sounds."""
        layers = augmentations.as_list(self.augmentation)
        return kinds.kind_of(layers, self.encoder.input_shape)

    @property
    def _replicas(self):
        return self.distribute_strategy.num_replicas_in_sync

    def call(self, images, sizes=None):
        h = self.encoder(self._seen_at_rest(images, sizes), training=False)
        return tf.cast(h, keras.config.floatx())

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.encoder.output_shape[-1])

    def evaluation_view(self, images, sizes=None):
        """Brings images to what the encoder sees at rest.

        Args:
            images: As `call`.
            sizes: As `call`.

        Returns:
            Tensor that fits the encoder; float32 in [0, 1] for images.

        Raises:
            ValueError: If values are not finite, or those of images not in
                [0, 1]. In a graph, a `tf.errors.InvalidArgumentError`.

        Example:

        >>> encoder = simclr.ResNet(10, stem="cifar", input_shape=(8, 8, 3))
        >>> model = simclr.SimCLRModel(encoder)
        >>> model.evaluation_view(np.zeros((2, 16, 16, 3), "uint8")).shape
        TensorShape([2, 8, 8, 3])
        """
        with programs.running_here():
            return self._seen_at_rest(images, sizes)

    def _seen_at_rest(self, images, sizes):
        images = self._rules.usable(images, sizes)
        shape = self.encoder.input_shape
        return seen_at_rest(self.augmentation, images, shape, sizes)

    def views(self, images, sizes=None, *, step=0):
        """Makes the views of training step `step`.

        Args:
            images: As `call`. In a replica: the replica's own images.
            sizes: As `call`.
            step: Integer, `optimizer.iterations` of the step.

        Returns:
            A tensor for each view, as the encoder receives them.

        Example:

        >>> encoder = simclr.ResNet(10, stem="cifar", input_shape=(8, 8, 3))
        >>> crop = simclr.RandomResizedCrop(8, 8)
        >>> model = simclr.SimCLRModel(encoder, augmentation=crop)
        >>> view_1, view_2 = model.views(np.zeros((2, 16, 16, 3), "uint8"))
        >>> view_1.shape
        TensorShape([2, 8, 8, 3])
        """
        return self._views(self._rules.usable(images, sizes), sizes, step)

    def _views(self, images, sizes, step, start=0, size=None):
        """Views of images that follow `start` among the replica's `size`."""
        place, replicas = piece_and_number()
        part = None
        if size is not None or replicas > 1:
            if size is None:
                size = elements.size_of({"images": images})
            part = place * size + start, replicas * size
        second = self.second_augmentation
        second = self.augmentation if second is None else second
        others = [second] * (self.number_of_views - 1)
        return augmentations.views_of(
            [self.augmentation, *others],
            as_views(images, self.kind),
            seed=(self.seed, step),
            sizes=sizes,
            part=part,
        )

    def compile(self, optimizer=None, loss=None, **kwargs):
        """Configures the model for training.

        Args:
            optimizer: Keras optimizer, or None for LARS around SGD with
                momentum, with a short warm-up to a constant learning rate,
                which can be set.
            loss: `losses.ContrastiveLoss`, or any callable `(z_1, z_2) ->
                scalar`, or None for `NTXent()`.
            **kwargs: Further arguments of `keras.Model.compile`.

        Raises:
            TypeError: If `loss` is not callable.
            ValueError: If metrics are given, or an option that Keras 3 gets
                wrong on several replicas or in micro-batches.
        """
        check_strategy(self.distribute_strategy, self.variables)
        with self.distribute_strategy.scope():
            optimizer = keras.optimizers.get(optimizer or default_optimizer())
        check_strategy(self.distribute_strategy, optimizer.variables)
        loss = losses.NTXent() if loss is None else loss
        contrastive_loss = losses.as_contrastive(loss, self.number_of_views)
        for name in ("metrics", "weighted_metrics", "loss_weights"):
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"`{name}` has nothing to compare: contrastive training "
                    f"has no targets. Received: {name}={kwargs[name]!r}"
                )
        check_optimizer(optimizer, replicas=self._replicas)
        # What gains from XLA is compiled inside the step.
        if kwargs.get("jit_compile", "auto") == "auto":
            kwargs["jit_compile"] = False
        check_execution(self._replicas, self.micro_batch_size, **kwargs)
        if kwargs["jit_compile"]:
            warnings.warn(
                "With `jit_compile=True` pixel values are not checked: XLA "
                "leaves out assertions.",
                stacklevel=2,
            )
        with self.distribute_strategy.scope():
            super().compile(optimizer=optimizer, **kwargs)
        self.loss = loss
        self.contrastive_loss = contrastive_loss

    def get_compile_config(self):
        config = super().get_compile_config()
        return config and {
            **config,
            "loss": keras.saving.serialize_keras_object(self.loss),
        }

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.build_optimizer()

    def build_optimizer(self):
        """Makes the optimizer's variables, unless they are there."""
        if self.compiled:
            with self.distribute_strategy.scope():
                self.optimizer = built(self.optimizer, self.trainable_variables)

    @functools.wraps(keras.Model.save)
    def save(self, *args, **kwargs):
        copies.check_can_be_saved(self)
        self.build_optimizer()
        return super().save(*args, **kwargs)

    @functools.wraps(keras.Model.fit)
    def fit(self, *args, **kwargs):
        call = fit_data.arguments_of(super().fit, args, kwargs)
        unfinished, self.unfinished = self.unfinished, None
        call, stream = fit_data.fit_arguments(
            call,
            self.seed,
            self.steps_per_execution,
            check=self._check_training_data,
            value_checks=self._rules.value_checks,
            unfinished=unfinished,
        )
        check_trainable(self.encoder, self.projection_head)
        if not self._is_tried:
            copies.check_for_later(self)
            self._is_tried = True
        # Variables made inside the step would have it traced twice.
        self.build_optimizer()
        progress = streams.Progress(stream)
        call["callbacks"] = progress.among(call, self)
        return streams.fit(super().fit, call, progress)

    @functools.wraps(keras.Model.evaluate)
    def evaluate(self, *args, **kwargs):
        call = fit_data.arguments_of(super().evaluate, args, kwargs)
        call = fit_data.evaluate_arguments(call, check=self._check_replicas)
        with fit_data.evaluation_in_words(call):
            return super().evaluate(**call)

    @functools.wraps(keras.Model.predict)
    def predict(self, *args, **kwargs):
        call = fit_data.arguments_of(super().predict, args, kwargs)
        with elements.failures_in_words():
            check = self._rules.check_at_rest
            return super().predict(**fit_data.predict_arguments(call, check))

    @functools.wraps(keras.Model.predict_on_batch)
    def predict_on_batch(self, *args, **kwargs):
        with elements.failures_in_words():
            return super().predict_on_batch(*args, **kwargs)

    @functools.wraps(keras.Model.train_on_batch)
    def train_on_batch(self, *args, **kwargs):
        return self._on_batch(super().train_on_batch, args, kwargs)

    @functools.wraps(keras.Model.test_on_batch)
    def test_on_batch(self, *args, **kwargs):
        return self._on_batch(super().test_on_batch, args, kwargs)

    def _on_batch(self, method, args, kwargs):
        call = fit_data.arguments_of(method, args, kwargs)
        fit_data.refuse_weights(call)
        if self._replicas > 1:
            raise ValueError(
                f"`{method.__name__}` gives the whole batch to every replica. "
                f"Use `fit` or `evaluate`. Received: {self._replicas} replicas"
            )
        with elements.failures_in_words():
            return method(**call)

    @functools.wraps(keras.Model.export)
    def export(self, *args, **kwargs):
        call = fit_data.arguments_of(super().export, args, kwargs)
        shapes = augmentations.shapes_taken(
            self.augmentation, self.encoder.input_shape
        )
        return super().export(**fit_data.export_arguments(call, *shapes))

    def train_step(self, element):
        element = elements.unpack(element)
        with self._checked(element):
            gradients, loss, found, forward = self._propagate(element)
        scale = 0.0
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            # One that is too high is for that optimizer to see.
            scale = self.optimizer.scale_loss(1.0)
            if self._replicas > 1:
                gradients = share_failure(gradients)

        def make():
            forward.write()
            self.optimizer.apply(gradients, self.trainable_variables)
            self._note(loss, found)

        step = loss, gradients, scale
        if self.on_nan == "skip":
            is_finite = elements.is_finite_step(*step)
            skipped = make_or_skip(make, self.optimizer, is_finite)
            self.skipped_metric.update_state(skipped)
            count = self.skipped_metric.result()
            with self._after(lambda: [elements.few_skipped(count)]):
                return self._results()
        with self._after(lambda: [elements.finite_step(*step)]):
            make()
            return self._results()

    def test_step(self, element):
        element = elements.unpack(element)
        with self._checked(element):
            forward = ForwardPass()
            if self.micro_batch_size is None:
                with forward:
                    views = self._views_of(element, _TEST_STEP)
                    z = self._embed(views, training=False)
                forward.write()
            else:
                z = micro_batches.embeddings(
                    self._embed_rows(element, _TEST_STEP, False, self._embed),
                    size=elements.size_of(element),
                    micro_batch_size=self.micro_batch_size,
                )
            loss, found = self._contrast(z, element)
            _, loss = penalized(self, loss, forward.penalties)
            self._note(loss, found)
            return self._results()

    def predict_step(self, element):
        with programs.running_here():
            return self(*elements.images_and_sizes(element))

    def _checked(self, element):
        """Context in which nothing runs before the values are checked."""
        rules = self._rules
        rules.check(element)
        return self._after(lambda: rules.value_checks(element))

    def _after(self, checks):
        """Context in which nothing runs before what a function returns."""
        if self.jit_compile:
            return contextlib.nullcontext()
        return tf.control_dependencies(checks())

    @property
    def _rules(self):
        """What an element of training must be like."""
        takes_groups = not self.compiled or self.contrastive_loss.takes_groups
        return elements.Rules.of(
            self.encoder.input_shape,
            self.augmentation,
            self.second_augmentation,
            without_groups=None if takes_groups else repr(self.loss),
            views=self.number_of_views,
            may_be_nan=self.on_nan == "skip",
        )

    def _check_training_data(self, dataset):
        element = elements.unpack(dataset.element_spec)
        self._rules.check(element)
        self._check_replicas(dataset)
        if "images" in element:
            augmentations.warn_of_sizes(
                self.augmentation, element["images"], self.encoder.input_shape
            )

    def _check_replicas(self, dataset):
        check_strategy(self.distribute_strategy, self.variables)
        elements.check_shared_evenly(
            elements.unpack(dataset.element_spec), self._replicas
        )

    def _check_augmentations(self):
        for name in ("augmentation", "second_augmentation"):
            augmentations.check_augmentation(
                name,
                getattr(self, name),
                self.encoder,
                needs_seed=self._replicas > 1 or self.micro_batch_size,
            )
        augmentations.check_at_rest(self.augmentation, self.encoder)

    def replica_gradients(self, element):
        """What this replica adds to the gradients of a step.

        Args:
            element: Dictionary, as `elements.unpack` returns it.

        Returns:
            The gradients, one per trainable variable, whose sum over the
            replicas is that of the global batch; the loss, the same in all
            replicas; and for each of the global batch's projections whether
            its positives were found. Moving averages have moved.

        Example:

        >>> encoder = keras.Sequential(
        ...     [keras.Input((8, 8, 3)), keras.layers.Flatten()]
        ... )
        >>> flip = simclr.RandomFlip()
        >>> model = simclr.SimCLRModel(encoder, augmentation=flip)
        >>> model.compile()
        >>> images = tf.zeros((4, 8, 8, 3))
        >>> gradients, _, found = model.replica_gradients({"images": images})
        >>> len(gradients) == len(model.trainable_variables), found.shape
        (True, TensorShape([1, 2, 4]))
        """
        gradients, loss, found, forward = self._propagate(element)
        forward.write()
        return gradients, loss, found

    def _propagate(self, element):
        """As `replica_gradients`, with the pass that has yet to be written."""
        step = self.optimizer.iterations
        if self.micro_batch_size is not None:
            return self._cached_gradients(element, step)
        forward, tape = ForwardPass(), tf.GradientTape()
        with forward:
            views = self._views_of(element, step)
            with tape:
                z = self._embed(views, training=True)
        with tape:
            loss, found = self._contrast(z, element)
            target, loss = penalized(self, loss, forward.penalties)
        gradients = micro_batches.dense_gradients(
            tape, target, self.trainable_variables
        )
        return gradients, loss, found, forward

    def _cached_gradients(self, element, step):
        averages = [
            *self.encoder.non_trainable_variables,
            *self.projection_head.non_trainable_variables,
        ]

        def contrast(z):
            loss, found = self._contrast(z, element)
            return self.optimizer.scale_loss(loss), loss, found

        gradients, (_, loss, found), means = micro_batches.cached_gradients(
            self._embed_rows(element, step, True, self._embed),
            contrast,
            self.trainable_variables,
            averages,
            size=elements.size_of(element),
            micro_batch_size=self.micro_batch_size,
            again=self._embed_rows(element, step, True, self._embed_again),
        )
        forward = ForwardPass()
        replica = tf.distribute.get_replica_context()
        with forward:
            for place, value in means.items():
                value = replica.all_reduce(tf.distribute.ReduceOp.MEAN, value)
                averages[place].assign(value)
        with tf.GradientTape() as tape:
            target, loss = penalized(self, loss, [])
        others = micro_batches.dense_gradients(
            tape, target, self.trainable_variables
        )
        gradients = list(map(micro_batches.sum_of, gradients, others))
        return gradients, loss, found, forward

    def _embed_rows(self, element, step, training, method):
        """Function that embeds examples start to stop of this replica's."""
        used = ("images", "view_1", "view_2", "sizes")
        element = {k: v for k, v in element.items() if k in used}
        size = elements.size_of(element)

        def embed(start, stop):
            rows = {name: batch[start:stop] for name, batch in element.items()}
            views = self._views_of(rows, step, start, size)
            return method(views, training=training)

        return embed

    def _views_of(self, element, step, start=0, size=None):
        if "view_1" in element:
            names = ["view_1", "view_2"]
            views = [as_views(element[x], self.kind) for x in names]
        else:
            others = ["second_augmentation"] * (self.number_of_views - 1)
            names = ["augmentation", *others]
            images, sizes = element["images"], element.get("sizes")
            views = self._views(images, sizes, step, start, size)
        shape = self.encoder.input_shape
        return [
            tf.stop_gradient(check_view(view, shape, f"`{name}`"))
            for view, name in zip(views, names, strict=True)
        ]

    def _embed(self, views, training):
        """Projections `(N, V, D)` of V views of N images, in one pass."""
        z = self._project(tf.concat(views, axis=0), training)  # (V * N, D)
        z = tf.reshape(z, (len(views), -1, z.shape[-1]))
        return tf.transpose(z, (1, 0, 2))

    _embed_again = _embed  # Of a second pass, for the gradient.

    def _project(self, views, training):
        representations = self.encoder(views, training=training)
        return self.projection_head(representations, training=training)

    def _contrast(self, z, element):
        """Loss among the projections of all replicas, and what was found."""
        groups = element.get("groups")
        if groups is not None:
            groups = from_all_replicas(groups)
        # Losses compute in it anyway, and machines cannot exchange bfloat16.
        z = from_all_replicas(tf.cast(z, keras.config.floatx()))
        z = tf.transpose(z, (1, 0, 2))  # (V, N, D)
        loss, found = losses.contrast_of(self.contrastive_loss, z, groups)
        if found is None:
            _, found = losses.per_positive(tf.stop_gradient(z))
        return loss, found

    def _note(self, loss, found):
        self.loss_metric.update_state(loss, sample_weight=tf.size(found))
        self.accuracy_metric.update_state(found)

    def _results(self):
        """The metrics, as `fit` wants them."""
        results = {metric.name: metric.result() for metric in self.metrics}
        if has_workers(self.distribute_strategy):
            # Keras takes the mean over an axis that scalars do not have.
            return {k: tf.reshape(v, [1]) for k, v in results.items()}
        return results

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Does not build what is built: Keras fails at it on several workers.

        The hook is Keras's own, not public: there is no other way.
        """

    @property
    def metrics(self):
        both = [self.loss_metric, self.accuracy_metric]
        return [*both, self.skipped_metric] if self.on_nan == "skip" else both

    def get_config(self):
        parts = {
            "encoder": self.encoder,
            "projection_head": self.projection_head,
            "augmentation": self.augmentation,
            "second_augmentation": self.second_augmentation,
            # By it, Keras decides whether losses are scaled.
            "dtype": self.dtype_policy,
        }
        return {
            **{
                name: keras.saving.serialize_keras_object(part)
                for name, part in parts.items()
            },
            "views": self.number_of_views,
            "micro_batch_size": self.micro_batch_size,
            "on_nan": self.on_nan,
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        load = keras.saving.deserialize_keras_object
        own = {"custom_objects": custom_objects}
        return cls(**{name: load(x, **own) for name, x in config.items()})


# By this name alone, files of Keras 2's format (.h5) know it.
keras.utils.get_custom_objects()["SimCLRModel"] = SimCLRModel
