"""The side of tensorflow-addons in parity.py, in an environment of its own.

python benchmarks/parity/parity_addons.py QUESTIONS.npz ANSWERS.npz
"""

import math
import sys

import numpy as np
import tensorflow as tf
import tensorflow_addons as tfa

tf.get_logger().setLevel("ERROR")


def answers(images, kernels, boxes, size, offsets, orders, factors, turns, z):
    """What parity.py asks, in its words."""
    return {
        "versions": f"TensorFlow {tf.__version__} and "
        f"tensorflow-addons {tfa.__version__}",
        **{
            padding: _blurred(images, kernels, padding)
            for padding in ("CONSTANT", "REFLECT", "SYMMETRIC")
        },
        "white": _blurred(np.ones_like(images), kernels, "CONSTANT"),
        "turned": np.stack(
            [tfa.image.rotate(images, k * math.pi / 2) for k in range(4)]
        ),
        "cropped": tfa.image.transform(
            images, boxes, "bilinear", "nearest", size
        ),
        "at_rest": tf.image.resize(images[:, 4:60, 9:56], size, antialias=True),
        "cut_out": tfa.image.cutout(
            images, images.shape[1] // 2, offsets, constant_values=0.5
        ),
        "jittered": _jittered(images, orders, factors, turns),
        "gray": tf.image.rgb_to_grayscale(images),
        **_nt_xent(z),
        **_losses_of_similarities(z),
    }


def _blurred(images, kernels, padding):
    return np.stack(
        [
            tfa.image.gaussian_filter2d(
                images, int(taps), float(sigma), padding
            )
            for sigma, taps in kernels
        ]
    )


def _jittered(images, orders, factors, turns):
    def jitter(image, order, factors, turn):
        operations = (
            lambda image: image * factors[0],
            lambda image: tf.image.adjust_contrast(image, factors[1]),
            lambda image: tf.image.adjust_saturation(image, factors[2]),
            lambda image: tf.image.adjust_hue(image, turn),
        )
        for place in order:
            image = tf.clip_by_value(operations[place](image), 0.0, 1.0)
        return image

    batch = zip(images, orders, factors, turns, strict=True)
    return np.stack([jitter(*each) for each in batch])


def _nt_xent(z):
    """As an n-pairs loss: positives on the diagonal, the anchor masked."""
    z = tf.Variable(z)
    count = z.shape[1]
    with tf.GradientTape() as tape:
        rows = tf.math.l2_normalize(tf.concat(tf.unstack(z), axis=0), axis=1)
        logits = tf.matmul(rows, rows, transpose_b=True) / 0.1
        logits -= 1e9 * tf.eye(2 * count)
        logits = tf.roll(logits, count, axis=1)
        loss = tfa.losses.npairs_loss(tf.range(2 * count), logits)
    return {"nt_xent": loss, "gradient": tape.gradient(loss, z)}


def _losses_of_similarities(z):
    """Losses of anchors of either view, with negatives of the other."""
    z = tf.math.l2_normalize(z, axis=2)
    labels = tf.range(z.shape[1])
    logits = tf.matmul(z[0], z[1], transpose_b=True) / 0.2
    n_pairs = [
        tfa.losses.npairs_loss(labels, each)
        for each in (logits, tf.transpose(logits))
    ]

    def distances(rows):
        # Images of one view are too far from each other to count.
        view = tf.repeat([0.0, 1.0], z.shape[1])
        same = tf.cast(view[:, None] == view, tf.float32)
        return 1.0 - tf.matmul(rows, rows, transpose_b=True) + 9.0 * same

    return {
        "n_pairs": sum(n_pairs) / 2,
        "semi_hard": tfa.losses.triplet_semihard_loss(
            tf.tile(labels, [2]), tf.concat(tf.unstack(z), 0), 0.8, distances
        ),
    }


if __name__ == "__main__":
    with np.load(sys.argv[1]) as questions:
        np.savez(sys.argv[2], **answers(**questions))
