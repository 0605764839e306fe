import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import oracles
from helpers.replicas import mirrored
from helpers.training import IMAGES, assert_equal, lars, network, sgd

import keras_simclr as simclr
from keras_simclr import imitation, runs
from keras_simclr.imitation import ClassImitation, SimilarityImitation

pytestmark = pytest.mark.usefixtures("eagerly")
RNG = np.random.default_rng(0)
LOGITS, OTHERS = RNG.normal(size=(2, 7, 5)) * 4
PROBABILITIES = np.exp(OTHERS) / np.exp(OTHERS).sum(axis=1, keepdims=True)
Z, TEACHER_Z = RNG.normal(size=(2, 7, 5))
DTYPES = [("float64", 1e-12), ("float32", 1e-5), ("bfloat16", 0.05)]


def cast(dtype, *arrays):
    return [tf.cast(array, dtype) for array in arrays]


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 0.1, 3.0])
def test_class_losses_are_those_of_the_paper(temperature, dtype, tolerance):
    expected = [
        oracles.distilled(*rows, temperature)
        for rows in zip(LOGITS, PROBABILITIES, strict=True)
    ]
    losses, agree = imitation.class_losses(
        *cast(dtype, LOGITS, PROBABILITIES), temperature=temperature
    )
    assert losses.dtype == ("float64" if dtype == "float64" else "float32")
    np.testing.assert_allclose(losses, expected, rtol=tolerance)
    np.testing.assert_array_equal(agree, LOGITS.argmax(1) == OTHERS.argmax(1))
    assert 0 < np.mean(agree) < 1


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_similarity_losses_are_those_of_seed(dtype, tolerance):
    expected = oracles.seed(Z, TEACHER_Z, 0.2, 0.07)
    losses, agree = imitation.similarity_losses(
        *cast(dtype, Z, TEACHER_Z), temperature=0.2, teacher_temperature=0.07
    )
    np.testing.assert_allclose(losses, expected, rtol=tolerance)
    cosines = [[oracles.cosine(a, b) for b in TEACHER_Z] for a in Z]
    np.testing.assert_array_equal(agree, np.argmax(cosines, 1) == np.arange(7))


GROUPS = np.array([-1, 2, -1, -1, 0, 4, -1], "int32")


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES[:2])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_true_classes_are_a_part_of_the_loss(weight, dtype, tolerance):
    """And of the gradient: q, less 1 of the true class of an image."""
    (z,) = cast(dtype, np.concatenate([LOGITS, PROBABILITIES], axis=1)[None])
    loss = ClassImitation(0.5, label_weight=weight)
    with tf.GradientTape() as tape:
        tape.watch(z)
        value, agree = loss.contrast(z, tf.constant(GROUPS))
    taught = [
        oracles.distilled(LOGITS[row], PROBABILITIES[row], 0.5)
        for row in np.flatnonzero(GROUPS < 0)
    ]
    known = np.flatnonzero(GROUPS >= 0)
    ours = np.array([oracles.softmax(LOGITS[row]) for row in known])
    true = np.log(ours[range(3), GROUPS[known]])
    expected = (1 - weight) * np.mean(taught) - weight * np.mean(true)
    np.testing.assert_allclose(value, expected, rtol=tolerance)
    np.testing.assert_array_equal(agree, LOGITS.argmax(1) == OTHERS.argmax(1))
    ours[range(3), GROUPS[known]] -= 1
    gradient = tape.gradient(value, z)[0].numpy()
    np.testing.assert_allclose(
        gradient[known, :5], weight * ours / 3, atol=tolerance
    )
    assert not gradient[:, 5:].any()


def test_groups_are_classes_only_where_there_is_a_weight_of_them():
    z = tf.constant(np.concatenate([LOGITS, PROBABILITIES], axis=1)[None])
    without, _ = ClassImitation(0.5).contrast(z)
    for loss, groups in [
        (ClassImitation(0.5), GROUPS),
        (ClassImitation(0.5, 0.3), None),
        (ClassImitation(0.5, 0.0), np.full(7, -1)),
    ]:
        found, _ = loss.contrast(z, groups)
        np.testing.assert_allclose(found, without, rtol=1e-12)
    all_known, _ = ClassImitation(0.5, 0.3).contrast(z, np.abs(GROUPS))
    assert np.isfinite(all_known)
    with pytest.raises(ValueError, match="`label_weight` must be a probab"):
        ClassImitation(label_weight=1.5)


def test_a_class_that_is_impossible_costs_nothing():
    losses, _ = imitation.class_losses([[9.0, -200.0]], [[1.0, 0.0]])
    assert abs(losses[0]) < 1e-30
    for temperature in (1e-6, 1e6):
        losses, _ = imitation.class_losses(
            [[0.0, 0.0]], [[1.0, 0.0]], temperature=temperature
        )
        expected = temperature**2 * np.log(2)
        assert float(losses[0]) == pytest.approx(expected)


@pytest.mark.parametrize("loss", [ClassImitation(), SimilarityImitation()])
def test_no_gradient_reaches_what_the_teacher_returns(loss):
    student, teacher = tf.constant(LOGITS), tf.constant(PROBABILITIES)
    with tf.GradientTape() as tape:
        tape.watch([student, teacher])
        value = loss(student, teacher)
    ours, theirs = tape.gradient(value, [student, teacher])
    assert np.abs(ours).max() > 0
    assert theirs is None


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), "1", None])
def test_temperatures_are_positive_numbers(value):
    for make in (
        lambda: ClassImitation(value),
        lambda: SimilarityImitation(value),
        lambda: SimilarityImitation(0.2, value),
    ):
        with pytest.raises(ValueError, match="`temperature` must be"):
            make()


class Restless(keras.layers.Layer):
    """Adds a loss, and counts the images that it sees, also at rest."""

    def build(self, input_shape):
        self.count = self.add_weight(trainable=False, initializer="zeros")
        self.seen = []

    def call(self, images):
        self.add_loss(1e6 * tf.reduce_sum(images))
        self.count.assign_add(1.0)
        self.seen.append(images.shape[0])
        return images


def teacher_of(*layers, shape=(8, 8, 3)):
    return keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            *layers,
            keras.layers.Flatten(),
            keras.layers.Dense(5, "softmax"),
        ]
    )


def groups():
    return keras.layers.GroupNormalization(4)


def distiller(teacher, encoder=network, loss=ClassImitation, **kwargs):
    model = imitation.Distiller(
        teacher,
        encoder(),
        keras.layers.Dense(5),
        augmentation=simclr.RandomFlip(),
        **kwargs,
    )
    model.compile(sgd(), loss())
    return model


def values(model):
    return [variable.numpy() for variable in model.variables]


def test_nothing_of_the_teacher_moves():
    noisy = keras.layers.Dropout(0.5)
    teacher = teacher_of(noisy, keras.layers.ActivityRegularization(1e6))
    teacher.layers[0].trainable = False
    flags = [layer.trainable for layer in teacher.layers]
    before = values(teacher)
    model = distiller(teacher)
    student = values(model.encoder)
    history = model.fit(IMAGES, batch_size=32, verbose=0).history
    assert history.keys() == {"loss", "agreement"}
    assert history["loss"][0] < 10  # The teacher's own losses are not in it.
    for old, new in zip(before, values(teacher), strict=True):
        np.testing.assert_array_equal(old, new)
    assert [layer.trainable for layer in teacher.layers] == flags
    assert any(
        (a != b).any()
        for a, b in zip(student, values(model.encoder), strict=True)
    )
    theirs = {id(variable) for variable in teacher.variables}
    assert not theirs & {id(variable) for variable in model.variables}


def test_a_layer_that_does_not_rest_is_held():
    teacher = teacher_of(Restless())
    model = distiller(teacher, lambda: network(groups))
    history = model.fit(IMAGES, batch_size=32, verbose=0).history
    assert history["loss"][0] < 10
    assert teacher.layers[2].count == 0


def test_the_teacher_sees_a_view_once_and_the_same_as_the_student():
    keras.utils.set_random_seed(0)
    restless, shown = Restless(), []
    model = distiller(
        teacher_of(restless), lambda: network(groups), micro_batch_size=5
    )
    restless.seen.clear()
    model.replica_gradients({"images": tf.constant(IMAGES[:12])})
    assert restless.seen == [5, 5, 2]
    teacher = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    student = keras.models.clone_model(teacher)
    model = imitation.Distiller(
        teacher,
        student,
        keras.layers.Identity(),
        augmentation=[simclr.RandomFlip(), simclr.RandomGaussianNoise()],
    )
    element = {"images": tf.constant(IMAGES[:4])}
    for step in range(2):
        (z,) = tf.transpose(
            model._embed(model._views_of(element, step), True), (1, 0, 2)
        )
        ours, theirs = np.split(z.numpy(), 2, axis=-1)
        np.testing.assert_array_equal(ours, theirs)
        shown.append(ours)
    assert (shown[0] != shown[1]).any()


def with_true_classes():
    return ClassImitation(label_weight=0.3)


def train(replicas, micro_batch_size, loss, dtype="float64"):
    """Four steps, of a batch of 8."""
    keras.config.set_floatx("float64" if dtype == "float64" else "float32")
    keras.config.set_dtype_policy(dtype)
    keras.utils.set_random_seed(1)
    with mirrored(replicas).scope():
        teacher = teacher_of(shape=(12, 10, 3))
        model = imitation.Distiller(
            teacher,
            network(groups),
            keras.layers.Dense(5),
            augmentation=simclr.RandomFlip(),
            micro_batch_size=micro_batch_size,
            seed=3,
        )
        model.compile(lars(), loss())
    data = {"images": IMAGES[:32], "groups": np.arange(32) % 8 - 3}
    data["groups"] = np.maximum(data["groups"], -1)
    history = model.fit(data, batch_size=8, shuffle=False, verbose=0)
    return history.history, values(model)


@pytest.mark.parametrize(
    ("loss", "ways"),
    [
        (SimilarityImitation, [(2, None), (2, 3)]),
        (with_true_classes, [(2, 3)]),
    ],
)
def test_replicas_and_micro_batches_equal_the_batch(loss, ways, in_graphs):
    expected = train(1, None, loss)
    for replicas, size in ways:
        assert_equal(train(replicas, size, loss), expected, 1e-9)


def test_micro_batches_of_a_student_in_low_precision(in_graphs):
    both = [
        train(1, size, SimilarityImitation, "mixed_bfloat16")
        for size in (None, 3)
    ]
    assert_equal(*both, 0.02)


def test_views_are_brought_to_the_teachers_size():
    """Whole, not cropped again: what is at the edges is seen."""
    average = keras.Sequential(
        [keras.Input((64, 48, 3)), keras.layers.GlobalAveragePooling2D()]
    )
    model = imitation.Distiller(
        average,
        network(),
        keras.layers.Dense(3),
        augmentation=simclr.RandomFlip(rate=0.0),
    )
    images = RNG.random((4, 8, 8, 3)).astype("float32")
    images[:, :1] = 1.0
    z = model._embed([tf.constant(images)], training=False)[:, 0, 3:]
    np.testing.assert_allclose(z, images.mean(axis=(1, 2)), atol=2e-3)


def test_probes_ride_along_and_measures_of_two_views_do_not():
    both = IMAGES[:16], np.arange(16) % 2
    model = distiller(teacher_of())
    probe = simclr.callbacks.KNNProbe(both, both)
    history = model.fit(IMAGES, batch_size=32, verbose=0, callbacks=[probe])
    assert history.history.keys() >= {"knn_accuracy", "agreement"}
    callbacks = [simclr.callbacks.Measures(IMAGES)]
    with pytest.raises(ValueError, match="compares two views of each image"):
        model.fit(IMAGES, batch_size=32, verbose=0, callbacks=callbacks)


def test_a_file_of_it_is_that_of_its_student(tmp_path):
    model = distiller(teacher_of())
    model.fit(IMAGES, batch_size=32, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is simclr.SimCLRModel
    assert loaded.number_of_views == 2
    np.testing.assert_array_equal(loaded(IMAGES[:4]), model(IMAGES[:4]))
    assert int(loaded.optimizer.iterations) == 2
    loaded.fit(IMAGES, batch_size=32, verbose=0)


def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    teacher = teacher_of()

    def run(name, stop_at=None):
        keras.utils.set_random_seed(2)
        model = distiller(teacher, seed=5)
        step, steps = model.train_step, itertools.count()

        def interrupted(element):
            if next(steps) == stop_at:
                raise KeyboardInterrupt
            return step(element)

        model.train_step = interrupted
        done = runs.pretrain(model, dataset(), tmp_path / name, epochs=3)
        return done, values(model)

    def dataset():
        return simclr.dataset_from_arrays(IMAGES, batch_size=16, seed=4)

    whole, expected = run("whole")
    assert run("stopped", stop_at=6)[0] == 1
    epochs, found = run("stopped")
    assert whole == epochs == 3
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


REFUSED = {
    "with other channels": (
        lambda: teacher_of(shape=(8, 8, 1)),
        (
            "Teacher and student must take the same images, but for height and "
            "width. Received: a teacher of inputs of shape (None, 8, 8, 1), a "
            "student of (None, 8, 8, 3)"
        ),
    ),
    "of rows": (
        lambda: keras.Sequential([keras.Input((3,)), keras.layers.Dense(5)]),
        "a teacher of inputs of shape (None, 3), a student of (None, 8, 8, 3)",
    ),
    "of other outputs": (
        lambda: keras.Sequential(
            [keras.Input((8, 8, 3)), keras.layers.GlobalAveragePooling2D()]
        ),
        (
            "The student must return as many numbers as the teacher. "
            "Received: 5 of the student, 3 of the teacher"
        ),
    ),
    "that draws at rest": (
        lambda: teacher_of(Noise()),
        (
            "`teacher` must draw nothing at rest (training=False). Received: "
            "other outputs for equal inputs"
        ),
    ),
}


class Noise(keras.layers.Layer):
    def call(self, images):
        return images + tf.random.normal(tf.shape(images))


@pytest.mark.parametrize("kind", REFUSED)
def test_teachers_are_refused(kind):
    make, message = REFUSED[kind]
    with pytest.raises(ValueError) as error:
        distiller(make())
    assert message in str(error.value)


def test_a_student_is_not_a_part_of_its_teacher():
    encoder = network()
    teacher = keras.Sequential([encoder, keras.layers.Dense(5, "softmax")])
    teacher.build((None, 8, 8, 3))
    with pytest.raises(ValueError, match="must share no weights: the teacher "):
        distiller(teacher, lambda: encoder)
