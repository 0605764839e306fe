"""TensorFlow without keras_simclr: Keras's layers, and `tf.image`."""

import pathlib

import keras
import tensorflow as tf

from benchmarks.speed.images import blur_size, smooth_noise


def layers_augmentation(source, size, batch_size):
    """Keras's preprocessing layers on a batch, in a `tf.function`.

    Keras has no random resized crop; its SimCLR example translates and zooms.
    """
    zoom = 1.0 - 0.08**0.5
    transform = keras.Sequential(
        [
            keras.layers.Rescaling(1 / 255),
            keras.layers.RandomTranslation(zoom / 2, zoom / 2),
            keras.layers.RandomZoom((-zoom, 0.0), (-zoom, 0.0)),
            keras.layers.Resizing(size, size, antialias=True),
            keras.layers.RandomFlip("horizontal"),
            keras.layers.RandomColorJitter((0, 1), 0.8, 0.8, 0.8, 0.2),
            keras.layers.RandomGrayscale(0.2),
            keras.layers.RandomGaussianBlur(
                0.5, blur_size(size), (0.1, 1.0), (0, 1)
            ),
        ]
    )
    view = tf.function(lambda images: transform(images, training=True))
    images = tf.constant(smooth_noise(batch_size, source))
    return lambda: len(view(images).numpy())


def tf_image_resize(source, size, batch_size):
    """`tf.image.resize` of the central 7/8, with antialiasing."""
    images = tf.constant(smooth_noise(batch_size, source))
    side = round(7 / 8 * source)
    first = (source - side + 1) // 2
    view = tf.function(
        lambda images: (
            tf.image.resize(
                images[:, first : first + side, first : first + side],
                (size, size),
                antialias=True,
            )
            / 255.0
        )
    )
    return lambda: len(view(images).numpy())


def tf_image_augmentation(source, size, batch_size):
    """`tf.image` for each image in `dataset.map`, as the official code."""
    images = tf.constant(smooth_noise(batch_size, source))
    dataset = tf.data.Dataset.from_tensor_slices(images).repeat()
    dataset = dataset.map(lambda image: _view(image, size)).batch(batch_size)
    batches = iter(dataset)
    return lambda: len(next(batches).numpy())


def tf_image_pipeline(directory, size, batch_size):
    """The same from files, on all cores."""
    paths = sorted(str(path) for path in pathlib.Path(directory).iterdir())

    def views(path):
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        return _view(image, size), _view(image, size)

    dataset = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths))
    dataset = dataset.map(views, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.batch(batch_size, drop_remainder=True)
    options = tf.data.Options()
    options.autotune.enabled = False  # Its last sleep would be on the clock.
    dataset = dataset.prefetch(tf.data.AUTOTUNE).with_options(options)
    return lambda: sum(len(view_1.numpy()) for view_1, _ in dataset)


def _view(image, size):
    start, extent, _ = tf.image.sample_distorted_bounding_box(
        tf.shape(image),
        tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        min_object_covered=0.1,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1.0),
        max_attempts=100,
    )
    image = tf.slice(image, start, extent)
    image = tf.image.convert_image_dtype(image, tf.float32)
    image = tf.image.resize(image, (size, size), antialias=True)
    image.set_shape((size, size, 3))
    image = tf.image.random_flip_left_right(image)
    image = _sometimes(0.8, _jitter, image)
    image = _sometimes(0.2, _gray, image)
    return tf.clip_by_value(_sometimes(0.5, _blur, image), 0.0, 1.0)


def _sometimes(rate, change, image):
    chosen = tf.random.uniform(()) < rate
    return tf.cond(chosen, lambda: change(image), lambda: image)


def _jitter(image):
    def brightness():
        return image * tf.random.uniform((), 0.2, 1.8)

    def contrast():
        return tf.image.random_contrast(image, 0.2, 1.8)

    def saturation():
        return tf.image.random_saturation(image, 0.2, 1.8)

    def hue():
        return tf.image.random_hue(image, 0.2)

    order = tf.random.shuffle(tf.range(4))
    for place in range(4):
        changes = [brightness, contrast, saturation, hue]
        image = tf.switch_case(order[place], changes)
        image = tf.clip_by_value(image, 0.0, 1.0)
    return image


def _gray(image):
    return tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(image))


def _blur(image):
    radius = max(1, image.shape[0] // 10 // 2)
    sigma = tf.random.uniform((), 0.1, 2.0)
    offsets = tf.range(-radius, radius + 1, dtype=tf.float32)
    kernel = tf.nn.softmax(-0.5 * (offsets / sigma) ** 2)
    kernel = tf.tile(kernel[:, None, None, None], (1, 1, 3, 1))
    image = image[None]
    for one in (kernel, tf.transpose(kernel, (1, 0, 2, 3))):
        image = tf.nn.depthwise_conv2d(image, one, (1, 1, 1, 1), "SAME")
    return image[0]
