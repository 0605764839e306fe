"""Small networks from big ones: a teacher at rest, a student that learns."""

import dataclasses
import functools
import itertools
import logging
import os

import keras
import numpy as np
import tensorflow as tf

from keras_simclr import (
    _checks,
    augmentations,
    classifiers,
    copies,
    duplicates,
    elements,
    fit_data,
    imitation,
    orders,
    pretrained,
    programs,
    recipe as recipes,
)
from keras_simclr.augmentations import SimCLRAugmentation
from keras_simclr.evaluation_views import with_evaluation_view
from keras_simclr.features import (
    check_fits,
    representation,
    resized_representation,
)
from keras_simclr.finetuning import named_model
from keras_simclr.labelled import in_batches, load_labelled
from keras_simclr.model import SimCLRModel
from keras_simclr.networks import check_encoder
from keras_simclr.replicas import ForwardPass

_logger = logging.getLogger("keras_simclr")

# "Considerably lower" than that of the teacher: arXiv:1503.02531, section 2.
LABEL_WEIGHT = 0.1
_SHARE = 8  # Unlabelled images of a batch to each labelled one beside them.
_SUM_TOLERANCE = 1e-2  # Of probabilities, which may be float16.


@dataclasses.dataclass(frozen=True)
class Distillation:
    """Result of `distill`.

    Attributes:
        accuracy: Share of test examples that the student classifies rightly,
            0 to 1; None without a test set.
        teacher_accuracy: The same of the teacher.
        classifier: Keras model from images, float32 in [0, 1], to class
            probabilities, of Keras's own layers: the student.
        classes: Label of each probability.
        steps: Steps that it was trained for.
        predictions: Label that the student finds for each test example.
    """

    accuracy: float | None
    teacher_accuracy: float | None
    classifier: keras.Model
    classes: tuple
    steps: int
    predictions: np.ndarray = dataclasses.field(repr=False, compare=False)

    def __str__(self):
        worth = "not tested"
        if self.accuracy is not None:
            worth = accuracies_in_words(self.accuracy, self.teacher_accuracy)
        return f"distilled: {worth} ({self.steps} steps)"


def accuracies_in_words(accuracy, teacher_accuracy):
    """Both of a test set, as a part of a sentence."""
    return f"accuracy {accuracy:.2%}, of the teacher {teacher_accuracy:.2%}"


def distill(
    teacher,
    unlabelled,
    test=None,
    *,
    student,
    labelled=None,
    label_weight=LABEL_WEIGHT,
    classes=None,
    temperature=None,
    recipe=None,
    progress=None,
):
    """Has a classifier teach a smaller one, on images without labels.

    The student learns to return the teacher's probabilities for the same view:
    crops and flips of the images, without changes of colour. A student of the
    teacher's own shape is self-training.

    Args:
        teacher: A Keras model from images, float in [0, 1], to probabilities of
            two classes or more, such as `fine_tune(...).classifier`; or a
            directory that `finetune` wrote. It is left as it is. Views are
            brought to the height and width that it takes.
        unlabelled: Images, as `SimCLRModel.fit` takes them; labels are not
            used. A dataset must tell how many batches it has.
        test: Labelled images to test both on, as in `fine_tune`; or None. How
            many of them are among the images to learn from is logged.
        student: A Keras model from images to representations, such as a
            `ResNet`, which is trained, or a `SimCLRModel`, whose encoder is,
            on views as its own, or the name of an encoder, as in `fine_tune`.
        labelled: Images whose true classes are learnt, too, as in `fine_tune`;
            or None. An eighth as many as in a batch of the recipe ride along
            with each batch, all equally often. The unlabelled images should
            hold them.
        label_weight: As in `imitation.ClassImitation`: what part of the loss is
            that of true classes.
        classes: Label of each of the teacher's probabilities, such as
            `FineTuning.classes`. None: those of the directory, or 0, 1, 2 ...
        temperature: Positive number, as in `imitation.class_losses`. None: 0.1
            if the student has the teacher's shape, else 1.
        recipe: `recipe.Recipe` that says how long, in which batches, with what
            optimizer and on which crops; or None for its defaults.
        progress: Function that is told, as training goes on, how many images
            were seen, again and again, and how many will be.

    Returns:
        A `Distillation`.

    Raises:
        OSError: If a name is that of nothing.
        TypeError: If `teacher` or `student` is no Keras model.
        ValueError: If the teacher returns logits, or something else that is no
            probabilities; takes other channels than the student; has other
            classes than the test set, or does not know one of those that are
            labelled; if the student ends in classes; or if images are
            unusable, or too few for a batch.

    Example:

    >>> def layers(*last):
    ...     return keras.Sequential(
    ...         [keras.Input((8, 8, 1)), keras.layers.Flatten(), *last]
    ...     )
    >>> teacher = layers(keras.layers.Dense(3, "softmax"))
    >>> images = np.random.default_rng(0).random((32, 8, 8, 1), "float32")
    >>> result = distill(
    ...     teacher,
    ...     images,
    ...     student=layers(),
    ...     recipe=simclr.recipe.Recipe(epochs=1, batch_size=16),
    ... )
    >>> result.classifier.output_shape, result.classes, result.steps
    ((None, 3), (0, 1, 2), 2)

    References:
        - Chen et al. 2020, arXiv:2006.10029, sections 2 and 3.1.

    Deviation: the optimizer is the recipe's, for short runs. The two parts of
        the loss are means, where the paper has sums over all images.
    """
    label_weight = checked_weight(labelled, label_weight)
    recipe = recipe or recipes.Recipe()
    if isinstance(teacher, (str, os.PathLike)):
        teacher, names = open_classifier(teacher)
        classes = names if classes is None else classes
    teacher = _network_of("teacher", teacher)
    classes = _checked_classes(teacher, classes)
    dataset, steps = _batches(unlabelled, recipe)
    model = distiller(
        teacher,
        *_encoder_and_views(student, recipe, with_colors=False),
        class_loss(temperature, label_weight),
        recipe,
        steps,
    )
    check, exam = functools.partial(check_fits, model), None
    if labelled is not None:
        examples = load_with_classes(labelled, classes, check=check)
        dataset = beside(dataset, examples, recipe)
    if test is not None:
        shown = [x for x in (unlabelled, labelled) if x is not None]
        shown = map(fit_data.in_order, shown)
        exam = Exam(test, teacher, classes, shown, check=check)
    _train(model, dataset, recipe, steps, progress)
    accuracy, predictions = None, np.array([])
    network = student_classifier(model)
    if exam:
        accuracy, predictions = exam.take(network, model)
    return Distillation(
        accuracy=accuracy,
        teacher_accuracy=exam and exam.teacher_accuracy,
        classifier=with_evaluation_view(model, network),
        classes=classes,
        steps=int(model.optimizer.iterations.numpy()),
        predictions=predictions,
    )


def distill_encoder(
    teacher,
    unlabelled,
    *,
    student,
    temperature=None,
    recipe=None,
    progress=None,
):
    """Has an encoder teach a smaller one, without any labels.

    The student, and a linear map to the teacher's size behind it, learn to be
    as similar to the teacher's representations of the images of the batch as
    these are to each other.

    Args:
        teacher: A Keras model from images, float in [0, 1], to representations;
            a `SimCLRModel`, whose encoder it is; or the name of an encoder, as
            in `fine_tune`. It is left as it is. Views are brought to the height
            and width that it takes.
        unlabelled: As `distill`.
        student: As `distill`.
        temperature: Positive number, of teacher and student, as in
            `imitation.similarity_losses`. None: 0.07 of the teacher, 0.2 of the
            student.
        recipe: As `distill`.
        progress: As `distill`.

    Returns:
        A `SimCLRModel` of the student, for `evaluate`, `fine_tune`,
        `export_encoder` and the rest.

    Raises:
        OSError: As `distill`.
        TypeError: As `distill`.
        ValueError: If teacher or student end in classes, or take other
            channels; or if images are unusable, or too few for a batch.

    Example:

    >>> def network():
    ...     return keras.Sequential(
    ...         [keras.Input((8, 8, 1)), keras.layers.Flatten()]
    ...     )
    >>> images = np.random.default_rng(0).random((32, 8, 8, 1), "float32")
    >>> model = distill_encoder(
    ...     network(),
    ...     images,
    ...     student=network(),
    ...     recipe=simclr.recipe.Recipe(epochs=1, batch_size=16),
    ... )
    >>> model(images).shape
    TensorShape([32, 64])

    References:
        - Fang et al. 2021, arXiv:2101.04731 (SEED).

    Deviation: as `imitation.similarity_losses`.
    """
    recipe = recipe or recipes.Recipe()
    encoder, augmentation = _encoder_and_views(student, recipe, True)
    if isinstance(teacher, (str, os.PathLike)):
        teacher = encoder_in_float32(teacher, encoder)
    teacher = _network_of("teacher", teacher)
    pretrained.check_is_no_classifier(teacher, teacher.name)
    dataset, steps = _batches(unlabelled, recipe)
    loss = similarity_loss(temperature)
    model = distiller(teacher, encoder, augmentation, loss, recipe, steps)
    _train(model, dataset, recipe, steps, progress)
    student = pretrained.without_compiling(model)
    student.compile()
    return student


def open_classifier(directory):
    """The network, without what `finetune` puts in front, and its classes."""
    network = classifiers.load_classifier(directory)
    return pretrained.encoder_of(network), classifiers.class_names(directory)


def encoder_in_float32(name, student):
    """The encoder of a name, in float32, for views of the student's size."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        return pretrained.open_encoder(name, beside=student)
    finally:
        keras.config.set_dtype_policy(policy)


def _network_of(name, model):
    """The network of views in a model; refuses what is none."""
    if not isinstance(model, keras.Model) or not model.built:
        raise TypeError(
            f"`{name}` must be a Keras model that is built. Received: "
            f"{name}={model!r}"
        )
    network = pretrained.encoder_of(model)
    check_encoder(network)
    copies.check_finite(network)
    return network


def _checked_classes(teacher, classes):
    """Labels of a teacher's outputs, which must be probabilities."""
    count = teacher.output_shape[-1]
    with ForwardPass():
        rows = teacher(copies.examples_for(teacher), training=False)
    rows = np.asarray(tf.cast(rows, tf.float32))
    sums = rows.sum(axis=1)
    if count < 2 or rows.min() < 0 or np.abs(sums - 1).max() > _SUM_TOLERANCE:
        raise ValueError(
            "`teacher` must return probabilities of two classes or more, which "
            f"sum to 1. Received: {count} numbers from {rows.min():.3g} to "
            f"{rows.max():.3g}, which sum to {sums[0]:.3g}. If they are "
            "logits: keras.Sequential([teacher, keras.layers.Softmax()])"
        )
    classes = tuple(range(count)) if classes is None else tuple(classes)
    if len(classes) != count:
        raise ValueError(
            "`classes` must name each output of the teacher. Received: "
            f"{len(classes)} classes for {count} outputs"
        )
    return classes


def _encoder_and_views(student, recipe, with_colors):
    """What is trained, and the augmentation that makes views for it."""
    if isinstance(student, (str, os.PathLike)):
        student = named_model(student)
    encoder = _network_of("student", student)
    pretrained.check_is_no_classifier(encoder, encoder.name)
    if isinstance(student, SimCLRModel):
        augmentation = student.augmentation
    else:
        augmentation = recipe.augmentation(encoder.input_shape[1:])
    if not with_colors:
        augmentation = without_colors(augmentation)
    return encoder, augmentation


def without_colors(augmentation):
    """The augmentation of a classifier's student: crops and flips."""
    layers = [
        layer.without_colors()
        if isinstance(layer, SimCLRAugmentation)
        else layer
        for layer in augmentations.as_list(augmentation)
    ]
    return layers if len(layers) > 1 else layers[0]


def class_loss(temperature, label_weight=None):
    """The loss of classes, for a teacher and a student."""

    def loss(teacher, student):
        chosen = temperature
        if chosen is None:
            of_both = [
                sorted(tuple(w.shape) for w in x) for x in (teacher, student)
            ]
            is_same = of_both[0] == of_both[1]
            own = imitation.SELF_TEMPERATURE, imitation.TEMPERATURE
            chosen = own[0] if is_same else own[1]
        return imitation.ClassImitation(chosen, label_weight)

    return loss


def similarity_loss(temperature):
    """The loss of encoders, as `class_loss`."""
    pair = () if temperature is None else (temperature, temperature)
    return lambda teacher, student: imitation.SimilarityImitation(*pair)


def distiller(
    teacher, encoder, augmentation, loss, recipe, steps, more_epochs=()
):
    """The compiled model; `loss` makes its loss of the weights of both."""
    size = recipe.micro_batch_size
    head = keras.layers.Dense(teacher.output_shape[-1], name="projection_head")
    head.build(encoder.output_shape)
    # After what is drawn: a copy draws, too. The strategy must have it.
    if tf.distribute.has_strategy():
        teacher = copies.plain_copy(teacher)
    model = imitation.Distiller(
        teacher,
        encoder,
        head,
        augmentation=augmentation,
        micro_batch_size=None if size is None else int(size),
        on_nan=recipe.on_nan,
        seed=recipe.seed,
    )
    loss = loss(teacher.weights, encoder.weights + head.weights)
    model.compile(recipe.optimizer(steps, more_epochs), loss)
    return model


def _batches(unlabelled, recipe):
    """A dataset of batches, and how many there are."""
    dataset = fit_data.as_dataset(
        unlabelled,
        check=None,
        batch_size=recipe.batch_size,
        shuffle=True,
        seed=recipe.seed,
    )
    fit_data.check_length(dataset, name=None)
    steps = int(dataset.cardinality())
    if steps < 0:
        raise ValueError(
            "`unlabelled` must tell how many batches an epoch has: arrays do, "
            "and dataset.apply(tf.data.experimental.assert_cardinality(100)). "
            "Received: a dataset of unknown length"
        )
    return dataset, steps


def checked_weight(labelled, label_weight):
    """The weight of labels in the loss; None if there are none to weigh."""
    _checks.probability("label_weight", label_weight)
    if labelled is None and label_weight != LABEL_WEIGHT:
        raise ValueError(
            "`label_weight` must be left out without `labelled`. Received: "
            f"label_weight={label_weight}"
        )
    return None if labelled is None else label_weight


def load_with_classes(images, classes, **kwargs):
    """Labelled images in memory, with the places of their classes as `groups`.

    Args:
        images: As `labelled` in `distill`.
        classes: Labels of the teacher's probabilities.
        **kwargs: As `Exam`.

    Returns:
        What `load_labelled` does.

    Raises:
        ValueError: If some are of classes that the teacher does not know.
    """
    examples = load_labelled("labelled", images, **kwargs)
    labels, classes = _of_one_kind(examples["labels"], classes)
    is_place = labels[:, None] == classes
    strangers = np.unique(labels[~is_place.any(axis=1)])
    if len(strangers):
        raise ValueError(
            "`labelled` must hold classes of the teacher alone. Received: "
            f"{_checks.listing(strangers)} in `labelled`, "
            f"{_checks.listing(classes)} of the teacher. Leave their images "
            "out, or have a teacher that learnt these classes, too"
        )
    examples["groups"] = is_place.argmax(axis=1).astype("int32")
    return examples


def _of_one_kind(labels, classes):
    """Arrays of both, of texts, as `finetune` has them, if one is of these."""
    labels, classes = np.asarray(labels), np.asarray(classes)
    if labels.dtype.kind != classes.dtype.kind:
        labels, classes = labels.astype(str), classes.astype(str)
    return labels, classes


def beside(dataset, examples, recipe):
    """Batches of a dataset, behind each of which are some labelled images.

    Args:
        dataset: `tf.data.Dataset` of batches whose number it knows.
        examples: As from `load_with_classes`.
        recipe: `recipe.Recipe`, for size and seed.

    Returns:
        A `tf.data.Dataset` of as many batches, of which the `groups` are places
        of classes, and -1 of the images of `dataset`.
    """
    size, steps = -(-recipe.batch_size // _SHARE), int(dataset.cardinality())
    names = [x for x in ("images", "sizes", "groups") if x in examples]
    others = orders.batches_of(
        {name: np.asarray(examples[name]) for name in names},
        size,
        shuffle=True,
        seed=recipe.seed,
        drop_remainder=True,
        rounds=-(-steps * size // len(examples["groups"])),
    )
    both = tf.data.Dataset.zip((dataset, others)).map(_joined)
    both = both.prefetch(tf.data.AUTOTUNE)
    both.source = getattr(dataset, "source", None)
    if orders.passes_of(dataset) and orders.begins_anywhere(dataset):
        orders.in_order_of_places(both)
    return both


def _joined(element, others):
    """One batch of two, on canvases of one size."""
    parts = [elements.images_and_sizes(x) for x in (element, others)]
    images, sizes = (list(x) for x in zip(*parts, strict=True))
    if images[0].dtype != images[1].dtype:
        images = [augmentations.to_float(x) for x in images]
    unknown = -tf.ones_like(images[0][:, 0, 0, 0], others["groups"].dtype)
    found = {"groups": tf.concat([unknown, others["groups"]], 0)}
    sides = [x.shape[1:3] for x in images]
    if sides[0] != sides[1] or sizes != [None, None]:
        found["sizes"] = tf.concat(list(map(_sizes, images, sizes)), 0)
        canvas = tf.reduce_max([tf.shape(x)[1:3] for x in images], 0)
        if None not in (*sides[0], *sides[1]):  # So theirs is known, too.
            canvas = tf.constant(np.max(sides, axis=0), tf.int32)
        canvas = tf.unstack(canvas)
        images = [
            tf.image.pad_to_bounding_box(x, 0, 0, *canvas) for x in images
        ]
    return {**found, "images": tf.concat(images, 0)}


def _sizes(images, sizes):
    """Heights and widths of images; those of the canvas if none are told."""
    if sizes is not None:
        return tf.cast(sizes, tf.int32)
    return tf.repeat(tf.shape(images)[None, 1:3], tf.shape(images)[0], axis=0)


def _train(model, dataset, recipe, steps, progress):
    epochs, seen = recipe.epochs_for(steps), itertools.count(1)

    def tell(batch, logs):
        size = recipe.batch_size
        progress(next(seen) * size, epochs * steps * size)

    told = keras.callbacks.LambdaCallback(on_train_batch_end=tell)
    model.fit(
        dataset,
        epochs=epochs,
        verbose=0,
        callbacks=[told] if progress else None,
    )
    copies.check_finite(model)


def student_classifier(model):
    """The plain network from views to probabilities that a model trained."""
    images = keras.Input(model.encoder.input_shape[1:], name="images")
    logits = model.projection_head(model.encoder(images))
    softmax = keras.layers.Softmax(dtype="float32", name="probabilities")
    network = keras.Model(images, softmax(logits), name="classifier")
    return copies.plain_copy(network)


class Exam:
    """Labelled images that teacher and student are tested on.

    Args:
        test: As in `distill`.
        teacher: Network from views to probabilities.
        classes: Their labels.
        shown: Datasets of batches of the images to learn from.
        **kwargs: `check`, `report` and `progress`, as in `load_labelled`.
    """

    def __init__(self, test, teacher, classes, shown, **kwargs):
        self._examples = load_labelled("test", test, **kwargs)
        self._labels, self._classes = _of_one_kind(
            self._examples["labels"], classes
        )
        self._check_classes()
        self._warn_of_shared(shown)
        is_any = len(teacher.input_shape) < 4 or None in teacher.input_shape[1:]
        function = representation if is_any else resized_representation
        self.teacher_accuracy, _ = self._take(function(teacher))

    def take(self, network, model):
        """Accuracy of a network of a model's views at rest.

        Returns it, 0 to 1, and the labels found.
        """
        return self._take(
            programs.TracedOnce(
                lambda images, sizes: network(
                    model.evaluation_view(images, sizes), training=False
                )
            )
        )

    def _take(self, function):
        rows = [
            function(*elements.images_and_sizes(element)).numpy().argmax(axis=1)
            for element in in_batches(self._examples)
        ]
        found = self._classes[np.concatenate(rows)]
        return float(np.mean(found == self._labels)), found

    def _check_classes(self):
        is_known = np.isin(self._labels, self._classes)
        strangers = np.unique(self._labels[~is_known])
        if not is_known.any():
            raise ValueError(
                "`test` must hold classes of the teacher. Received: "
                f"{_checks.listing(strangers)} in `test`, "
                f"{_checks.listing(self._classes)} of the teacher. `classes` "
                "says which these are"
            )
        if len(strangers):
            _logger.warning(
                "%d of %d images to test on are of classes that the teacher "
                "does not know, and count as wrong: %s.",
                np.sum(~is_known),
                len(is_known),
                _checks.listing(strangers),
            )

    def _warn_of_shared(self, shown):
        tests = self._examples["images"]
        batches = itertools.chain.from_iterable(
            map(fit_data.checked_elements, shown)
        )
        shared = duplicates.repeated(
            (tests[place] for place in range(len(tests))),
            itertools.chain.from_iterable(map(_single, batches)),
        )
        if shared.any():
            _logger.warning(
                "%d of %d images to test on are among those to learn from, "
                "too: their accuracy is no measure of what is new.",
                shared.sum(),
                len(shared),
            )


def _single(element):
    """Yields the images of an element, without what pads them."""
    images, sizes = elements.images_and_sizes(element)
    images = images.numpy()
    sizes = itertools.repeat(None) if sizes is None else sizes.numpy()
    yield from map(duplicates.without_canvas, images, sizes)
