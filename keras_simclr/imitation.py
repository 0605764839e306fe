"""A student that imitates a teacher at rest: two losses, and the step."""

import keras
import numpy as np
import tensorflow as tf

from keras_simclr import _checks, augmentations, copies, programs, trials
from keras_simclr.losses import ContrastiveLoss, check_temperature, mean
from keras_simclr.model import SimCLRModel
from keras_simclr.replicas import ForwardPass

# arXiv:2006.10029, section 3.1: of a student of the teacher's shape, of others.
SELF_TEMPERATURE, TEMPERATURE = 0.1, 1.0
_STUDENT_TEMPERATURE, _TEACHER_TEMPERATURE = 0.2, 0.07  # SEED's.


def class_losses(logits, probabilities, *, temperature=1.0):
    """Cross-entropy of each student's classes to those of its teacher.

    With p the teacher's probabilities, q the student's and t the temperature,
    which divides the logarithms of both before they are normalized again:

        loss = -t**2 * sum over classes of p * log(q)

    Computed in float32, or in float64 when that comes in.

    Args:
        logits: Of the student, shape `(N, classes)`.
        probabilities: Of the teacher, `(N, classes)`, each from 0 to 1. No
            gradient reaches them.
        temperature: Positive number.

    Returns:
        Losses of shape `(N,)`; and booleans, `(N,)`: whether both find the same
        class.

    Raises:
        ValueError: If `temperature` is not a positive number.

    Example:

    >>> losses, agree = class_losses([[2.0, 0.0]], [[0.9, 0.1]])
    >>> round(float(losses[0]), 4), bool(agree[0])
    (0.3269, True)

    References:
        - Chen et al. 2020, arXiv:2006.10029, section 2 (without t**2).
        - Hinton et al. 2015, arXiv:1503.02531, section 2 (t**2: gradients do
          not depend on t); google-research/simclr@383d414,
          tf2/colabs/distillation_self_training.ipynb has it, too.
    """
    check_temperature(temperature)
    logits, probabilities = _floats(logits, probabilities)
    tiny = np.finfo(logits.dtype.as_numpy_dtype).tiny
    known = tf.math.log(tf.maximum(tf.stop_gradient(probabilities), tiny))
    losses = _cross_entropies(logits / temperature, known / temperature)
    return temperature**2 * losses, _agree(logits, probabilities)


def similarity_losses(z, teacher_z, *, temperature, teacher_temperature):
    """Cross-entropy of each student's similarities to those of its teacher.

    The student's embedding of an image, and the teacher's, are compared with
    the teacher's of all N images, that of the same image among them. With p the
    softmax of the teacher's cosine similarities divided by its temperature, and
    q the same of the student's:

        loss = -sum over images of p * log(q)

    Computed in float32, or in float64 when that comes in.

    Args:
        z: Embeddings of the student, shape `(N, D)`.
        teacher_z: Of the teacher, `(N, D)`, in the same order. No gradient
            reaches them.
        temperature: Positive number.
        teacher_temperature: Positive number.

    Returns:
        Losses of shape `(N,)`; and booleans, `(N,)`: whether student and
        teacher are most similar to the same image.

    Raises:
        ValueError: If a temperature is not a positive number.

    Example:

    >>> losses, agree = similarity_losses(
    ...     tf.eye(2), tf.eye(2), temperature=1.0, teacher_temperature=1.0
    ... )
    >>> losses.numpy().round(2), agree.numpy()
    (array([0.58, 0.58], dtype=float32), array([ True,  True]))

    References:
        - Fang et al. 2021, arXiv:2101.04731 (SEED), equations 4 to 6.

    Deviation: SEED compares with a queue of 65,536 past embeddings and the
        image's own. Here they are those of the global batch: no state.
    """
    for value in (temperature, teacher_temperature):
        check_temperature(value)
    z, teacher_z = _floats(z, teacher_z)
    teacher_z = tf.math.l2_normalize(tf.stop_gradient(teacher_z), axis=-1)
    z = tf.math.l2_normalize(z, axis=-1)
    ours, theirs = (
        tf.matmul(x, teacher_z, transpose_b=True) for x in (z, teacher_z)
    )
    losses = _cross_entropies(ours / temperature, theirs / teacher_temperature)
    return losses, _agree(ours, theirs)


def _floats(student, teacher):
    student = tf.convert_to_tensor(student)
    if student.dtype != tf.float64:
        student = tf.cast(student, tf.float32)
    return student, tf.cast(teacher, student.dtype)


def _cross_entropies(logits, others):
    """Of the softmax of some logits to that of others; rows."""
    targets = tf.nn.softmax(others)
    return -tf.reduce_sum(targets * tf.nn.log_softmax(logits), axis=-1)


def _agree(ours, theirs):
    return tf.equal(tf.argmax(ours, axis=-1), tf.argmax(theirs, axis=-1))


def _mean_where(condition, losses):
    """As `mean`, of those of which a condition holds; 0 of none."""
    count = tf.reduce_sum(tf.cast(condition, losses.dtype))
    shares = losses / tf.maximum(count, 1)
    return tf.reduce_sum(tf.where(condition, shares, tf.zeros_like(shares)))


class _Imitation(ContrastiveLoss):
    """A loss of what `Distiller` embeds: student's half, teacher's half."""

    def contrast(self, z, groups=None):
        losses, agree = self.losses(*tf.split(z[0], 2, axis=-1))
        return mean(losses), agree

    def call(self, student, teacher):
        return mean(self.losses(student, teacher)[0])


class ClassImitation(_Imitation):
    """The mean of `class_losses`, as `Distiller` takes it.

    With a `label_weight` w, the `groups` of a batch are places of true classes
    among the teacher's, and -1 where none is known; and

        loss = (1 - w) * mean of `class_losses` where it is not known
               + w * mean of -log(softmax(logits)[class]) where it is

    Args:
        temperature: As `class_losses`. It is of no true class.
        label_weight: Number from 0 to 1; None for no true classes: `groups`
            are ignored.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> loss = ClassImitation(0.5)
    >>> round(float(loss([[2.0, 0.0]], [[0.9, 0.1]])), 4)
    0.0167
    >>> both = tf.constant([[[2.0, 0.0, 0.9, 0.1], [2.0, 0.0, 0.9, 0.1]]])
    >>> loss = ClassImitation(0.5, label_weight=0.25)
    >>> value, _ = loss.contrast(both, groups=tf.constant([-1, 1]))
    >>> round(float(value), 4)
    0.5443

    References:
        - Chen et al. 2020, arXiv:2006.10029, section 2.
    """

    def __init__(self, temperature=TEMPERATURE, label_weight=None):
        super().__init__(name="class_imitation")
        self.temperature = check_temperature(temperature)
        if label_weight is not None:
            _checks.probability("label_weight", label_weight)
        self.label_weight = label_weight

    def contrast(self, z, groups=None):
        if self.label_weight is None or groups is None:
            return super().contrast(z)
        logits, probabilities = tf.split(z[0], 2, axis=-1)
        losses, agree = self.losses(logits, probabilities)
        is_known = groups >= 0
        wrong = tf.nn.sparse_softmax_cross_entropy_with_logits(
            tf.maximum(groups, 0), logits
        )
        weight = self.label_weight
        loss = (1 - weight) * _mean_where(~is_known, losses)
        return loss + weight * _mean_where(is_known, wrong), agree

    def losses(self, student, teacher):
        return class_losses(student, teacher, temperature=self.temperature)


class SimilarityImitation(_Imitation):
    """The mean of `similarity_losses`, as `Distiller` takes it.

    Args:
        temperature: As `similarity_losses`.
        teacher_temperature: As `similarity_losses`.

    Raises:
        ValueError: If a temperature is not a positive number.

    Example:

    >>> loss = SimilarityImitation(1.0, 1.0)
    >>> round(float(loss(tf.eye(2), tf.eye(2))), 4)
    0.5822
    """

    def __init__(
        self,
        temperature=_STUDENT_TEMPERATURE,
        teacher_temperature=_TEACHER_TEMPERATURE,
    ):
        super().__init__(name="similarity_imitation")
        self.temperature = check_temperature(temperature)
        self.teacher_temperature = check_temperature(teacher_temperature)

    def losses(self, student, teacher):
        return similarity_losses(
            student,
            teacher,
            temperature=self.temperature,
            teacher_temperature=self.teacher_temperature,
        )


class _Teacher:
    """A network at rest. It is no layer, so that no model has its weights."""

    def __init__(self, network):
        self._network, self._crop = network, None
        shape = network.input_shape
        if len(shape) == 4 and None not in shape[1:3]:
            self._crop = augmentations.RandomResizedCrop(*shape[1:3])

    def __call__(self, views):
        if self._crop is not None:
            with programs.running_here():
                views = self._crop.resize(views)
        with ForwardPass():  # What layers add or set is forgotten.
            outputs = self._network(views, training=False)
        return tf.stop_gradient(tf.cast(outputs, keras.config.floatx()))


@keras.saving.register_keras_serializable(package="keras_simclr")
class Distiller(SimCLRModel):
    """Trains a student to return what a teacher does of the same view.

    `fit` makes one random view of every image, brings it through the student,
    and through the teacher at rest, and minimizes what tells their outputs
    apart. In all else it is a `SimCLRModel`: replicas, micro-batches, seeds,
    precision, checkpoints. The logs have `loss` and `agreement`, how often both
    find the same. A file of it is that of a `SimCLRModel` of the student.

    Args:
        teacher: A Keras model of what the student sees, at another height and
            width if it takes another: views are brought to it. It has no part
            in this model: nothing of it is changed or saved.
        encoder: As `SimCLRModel`: the student.
        projection_head: Layer from representations to as many numbers as the
            teacher returns.
        augmentation: As `SimCLRModel`.
        **kwargs: `micro_batch_size` (the teacher sees each once), `on_nan`,
            `seed`: as `SimCLRModel`.

    Raises:
        TypeError: As `SimCLRModel`.
        ValueError: As `SimCLRModel`; or if teacher and student do not fit
            together or share weights, or the teacher is random at rest.

    Example:

    >>> def network():
    ...     return keras.Sequential(
    ...         [keras.Input((8, 8, 1)), keras.layers.Flatten()]
    ...     )
    >>> model = Distiller(
    ...     network(),
    ...     network(),
    ...     keras.layers.Dense(64),
    ...     augmentation=simclr.RandomFlip(),
    ... )
    >>> model.compile(loss=SimilarityImitation())
    >>> images = np.random.default_rng(0).random((8, 8, 8, 1), "float32")
    >>> history = model.fit(images, batch_size=8, verbose=0)
    >>> sorted(history.history)
    ['agreement', 'loss']

    References:
        - Chen et al. 2020, arXiv:2006.10029, section 2.
        - Beyer et al. 2022, arXiv:2106.05237 (the same view for both).

    Deviation: not built on `keras.distillation` of Keras 3.15, which freezes
        the caller's teacher, takes the same shape and dtype of images for both,
        logits alone, and another loss that must not be None; and which knows
        neither embeddings of the global batch nor micro-batches.
    """

    def __init__(
        self,
        teacher,
        encoder,
        projection_head,
        *,
        augmentation,
        **kwargs,
    ):
        super().__init__(
            encoder, projection_head, augmentation=augmentation, **kwargs
        )
        self.number_of_views = 1
        self.accuracy_metric.name = "agreement"
        _check_pair(teacher, encoder, projection_head)
        self._teacher = _Teacher(teacher)

    def _embed(self, views, training):
        """Outputs of the student, and behind them those of the teacher."""
        theirs = self._teacher(views[0])[:, None]  # (N, 1, D)
        ours = tf.cast(super()._embed(views, training), theirs.dtype)
        return tf.concat([ours, theirs], axis=-1)

    def get_config(self):
        return {**super().get_config(), "views": 2}

    def get_compile_config(self):
        config = super().get_compile_config()
        return config and {**config, "loss": None}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return SimCLRModel.from_config(config, custom_objects)


def _check_pair(teacher, encoder, head):
    """Refuses a teacher of other images, or of other outputs."""
    takes, sees = teacher.input_shape, encoder.input_shape
    same = takes[-1:] if len(takes) == 4 else takes[1:]
    if len(takes) != len(sees) or same != sees[-len(same) :]:
        raise ValueError(
            "Teacher and student must take the same images, but for height "
            f"and width. Received: a teacher of inputs of shape {takes}, a "
            f"student of {sees}"
        )
    ours = head.compute_output_shape(encoder.output_shape)
    if ours[-1] != teacher.output_shape[-1]:
        raise ValueError(
            "The student must return as many numbers as the teacher. Received: "
            f"{ours[-1]} of the student, {teacher.output_shape[-1]} of the "
            "teacher"
        )
    theirs = {id(variable) for variable in teacher.variables}
    if theirs & {id(x) for x in encoder.variables + head.variables}:
        raise ValueError(
            "Teacher and student must share no weights: the teacher would "
            "change with it. Make the student of a copy: "
            "keras.models.clone_model(...), or load it from its file"
        )
    inputs = copies.examples_for(teacher)
    if inputs is not None and trials.is_random(
        lambda batch: teacher(batch, training=False), inputs, at_rest=True
    ):
        raise ValueError(
            "`teacher` must draw nothing at rest (training=False). Received: "
            "other outputs for equal inputs"
        )
