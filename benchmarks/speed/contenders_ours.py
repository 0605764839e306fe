"""keras_simclr, as its README uses it."""

import pathlib

import keras
import numpy as np
import tensorflow as tf

import keras_simclr as simclr
from benchmarks.speed.images import parts_of_training, smooth_noise
from keras_simclr import augmentations, decoding, fit_data, folders, scanning
from keras_simclr.recipe import Recipe


def augmentation(source, size, batch_size, smallest_crop=0.08):
    """The whole recipe on a batch, in a compiled function."""
    augment = simclr.SimCLRAugmentation(size, scale=(smallest_crop, 1.0))
    view = tf.function(lambda images, seed: augment(images, seed=seed))
    images = tf.constant(smooth_noise(batch_size, source))
    steps = iter(range(1_000_000_000))

    def work():
        seed = tf.constant([0, next(steps)], tf.int64)
        return len(view(images, seed).numpy())

    return work


def at_rest(source, size, batch_size, is_exported=False):
    """Views at rest: as `predict` and probes make them, or an export."""
    encoder = keras.Sequential(
        [keras.Input((size, size, 3)), keras.layers.GlobalAveragePooling2D()]
    )
    model = simclr.SimCLRModel(encoder)
    images = tf.constant(smooth_noise(batch_size, source))

    def exported(images):
        return augmentations.seen_at_rest(
            model.augmentation, images, model.encoder.input_shape
        )

    view = tf.function(
        exported if is_exported else model.evaluation_view,
        input_signature=[tf.TensorSpec((None, *images.shape[1:]), tf.uint8)],
    )
    return lambda: len(view(images).numpy())


def input_pipeline(directory, size, batch_size):
    """Passes over the photographs of a folder: both views, as in training."""
    manifest = pathlib.Path(directory).with_suffix(".parquet")
    if not manifest.exists():
        scanning.scan(directory, manifest)
    folder = folders.ImageFolder(directory, manifest=manifest)
    dataset = _dataset(folder, decoding.canvas_for(size, 0.08), batch_size)
    augment = simclr.SimCLRAugmentation(size)

    @tf.function
    def views(images, sizes, step):
        seeds = [tf.stack([view, step]) for view in (0, 1)]
        return [augment(images, sizes=sizes, seed=seed) for seed in seeds]

    def work():
        count = 0
        for step, batch in dataset.enumerate():
            view_1, _ = views(batch["images"], batch["sizes"], step)
            count += len(view_1.numpy())
        return count

    return work


def first_batch(directory, batch_size=256):
    """A dataset over a folder, until it has given a batch."""

    def work():
        next(
            iter(_dataset(directory, decoding.canvas_for(64, 0.08), batch_size))
        )
        return 1

    return work


def listing(directory):
    """What is in a folder."""
    return lambda: len(folders.find_images(directory))


def _dataset(directory, canvas_size, batch_size):
    dataset = simclr.dataset_from_directory(
        directory, canvas_size=canvas_size, batch_size=batch_size
    )
    return fit_data.prepared(dataset)  # As `fit` does.


def training(width, steps, precision, batch_size=256, micro_batch_size=None):
    """`fit` on arrays: ResNet-18, LARS around SGD with momentum."""
    keras.config.set_dtype_policy(precision)
    encoder = simclr.ResNet(
        18, width_multiplier=width, stem="cifar", input_shape=(32, 32, 3)
    )
    model = simclr.SimCLRModel(encoder, micro_batch_size=micro_batch_size)
    model.compile(simclr.LARS(keras.optimizers.SGD(0.1, momentum=0.9)))
    images = smooth_noise(steps * batch_size, 32)

    def work():
        model.fit(images, batch_size=batch_size, verbose=0)
        return len(images)

    return work


def loss(count, features=128):
    """`nt_xent` and its gradient in a `tf.function`."""

    @tf.function
    def gradients(z_1, z_2):
        with tf.GradientTape() as tape:
            tape.watch((z_1, z_2))
            value = simclr.nt_xent(z_1, z_2)
        return tape.gradient(value, (z_1, z_2))

    # What TensorFlow allocates at its first step is not the loss's memory.
    gradients(*tf.unstack(_normals((2, 8, features))))
    z_1, z_2 = tf.unstack(_normals((2, count, features)))

    def work():
        gradients(z_1, z_2)
        return 1

    return work


def products(count, features=128, rows=None):
    """Three products of (2N, D) by (D, 2N), at once or `rows` at a time."""
    rows = rows or 2 * count

    @tf.function
    def multiply(lefts, right):
        corner = tf.constant(0.0)
        for left in tf.unstack(lefts):
            for start in tf.range(0, 2 * count, rows):
                with tf.control_dependencies([corner]):
                    block = left[start : start + rows]
                    corner = tf.matmul(block, right)[0, 0]
        return corner

    lefts = _normals((3, 2 * count, features))
    right = tf.transpose(lefts[0])

    def work():
        multiply(lefts, right)
        return 1

    return work


def _normals(shape):
    return tf.constant(np.random.default_rng(0).normal(size=shape), "float32")


def optimizer(name):
    """One step of an optimizer on ResNet-50's variables."""
    variables = simclr.ResNet(50).trainable_variables
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    if name == "LARS":
        optimizer = simclr.LARS(optimizer)
    optimizer.build(variables)
    step = tf.function(lambda gradients: optimizer.apply(gradients, variables))
    gradients = [_normals(variable.shape) for variable in variables]

    def work():
        step(gradients)
        return 1

    return work


class Pretraining:
    """Pretraining for so many steps; one of `parts` of them at a time."""

    def __init__(self, data, steps, parts, **flags):
        recipe = Recipe(**{"precision": "mixed_bfloat16", **flags, "epochs": 1})
        keras.config.set_dtype_policy(recipe.precision)
        keras.utils.set_random_seed(recipe.seed)
        arrays = np.load(data)
        self.images, self.test_images = arrays["images"], arrays["test_images"]
        self.batch_size = recipe.batch_size
        self.parts = parts_of_training(
            len(self.images), self.batch_size, steps, parts, recipe.seed
        )
        spec = tf.TensorSpec((None, *self.images.shape[1:]))
        self.model = recipe.build(spec, steps)

    def __call__(self):
        part = next(self.parts)
        self.model.fit(self.images[part], batch_size=self.batch_size, verbose=0)
        return len(part)

    def save(self, path):
        """Writes the representations of all images."""
        np.savez(
            path,
            train=simclr.extract_features(self.model, self.images),
            test=simclr.extract_features(self.model, self.test_images),
        )
