"""NT-Xent: the contrastive loss of SimCLR."""

import keras
import numpy as np
import tensorflow as tf

from keras_simclr import _checks


def nt_xent(z_1, z_2, *, temperature=0.1):
    """Normalized temperature-scaled cross-entropy between two sets of views.

    Each of the 2N projections is an anchor: the other view of its image is to
    be found among the 2N - 1 other projections. With s the cosine similarity,

        loss(anchor) = log(sum over others of exp(s / temperature))
                       - s(anchor, positive) / temperature

    and the result is the mean over the 2N anchors. Computed in float32, or in
    float64 when that comes in.

    Args:
        z_1: Projections of the first views, shape `(N, D)`, any float dtype.
        z_2: Projections of the second views, `(N, D)`, in the same order.
        temperature: Positive number. The paper uses 0.1 on ImageNet and 0.5 on
            CIFAR-10.

    Returns:
        Scalar tensor, float32 (or float64): 0 at best, `log(2N - 1)` when all
        projections are the same.

    Raises:
        ValueError: If `temperature` is not positive, or the shapes differ or
            hold fewer than two images.

    Example:

    >>> z = tf.eye(4)
    >>> round(float(nt_xent(z, z, temperature=1.0)), 4)
    1.1654

    References:
        - Chen et al. 2020, arXiv:2002.05709, equation 1 and Algorithm 1.
        - google-research/simclr@383d414, tf2/objective.py:35-89.

    Deviation: the official code returns the sum over the two views of an
        image, twice the paper's mean; and it masks the anchor by subtracting
        1e9, which float16 cannot hold.
    """
    losses, _ = per_anchor(z_1, z_2, temperature=temperature)
    return mean(losses)


def mean(losses):
    """Mean of losses that may be so large that float32 cannot sum them.

    Args:
        losses: Tensor of shape `(2N,)`.

    Returns:
        Scalar tensor.

    Example:

    >>> float(mean(tf.constant([3e38, 1e38]))) < 3e38
    True
    """
    return tf.reduce_sum(losses / tf.cast(tf.size(losses), losses.dtype))


def per_anchor(z_1, z_2, *, temperature=0.1):
    """Loss of every anchor, and whether its positive was found, in one pass.

    Args:
        z_1: Projections of the first views, shape `(N, D)`.
        z_2: Projections of the second views, shape `(N, D)`.
        temperature: Positive number.

    Returns:
        Two tensors of shape `(2N,)`, anchors from `z_1` first: the losses, and
        booleans that are true where the positive is the most similar of the
        2N - 1 candidates.

    Raises:
        ValueError: As `nt_xent`.

    Example:

    >>> z = tf.eye(4)
    >>> losses, found = per_anchor(z, z)
    >>> found.numpy().all()
    np.True_
    """
    temperature = check_temperature(temperature)
    z_1, z_2 = tf.convert_to_tensor(z_1), tf.convert_to_tensor(z_2)
    _check_shapes(z_1.shape, z_2.shape)
    z = tf.concat([_normalize(z_1), _normalize(z_2)], axis=0)  # (2N, D)
    size = tf.shape(z)[0]
    partner = (tf.range(size) + size // 2) % size
    similarities = tf.matmul(z, z, transpose_b=True)  # (2N, 2N)
    positives = tf.gather(similarities, partner, batch_dims=1)
    itself = tf.fill([size], tf.constant(-np.inf, z.dtype))
    similarities = tf.linalg.set_diag(similarities, itself)
    logits = (similarities - positives[:, None]) / temperature
    found = tf.argmax(similarities, axis=1, output_type=tf.int32) == partner
    return tf.reduce_logsumexp(logits, axis=1), found


def check_temperature(temperature):
    """Returns `temperature` if float32 can divide by it; raises if not."""
    _checks.positive_number("temperature", temperature)
    limits = np.finfo("float32")
    low, high = float(limits.tiny), float(limits.max)
    return _checks.real_number(
        "temperature",
        temperature,
        low=low,
        high=high,
        rule=f"a float32 number, from {low:.3g} to {high:.3g}",
    )


def _check_shapes(first, second):
    if first.rank != 2 or not first.is_compatible_with(second):
        raise ValueError(
            "Both views need projections of the same shape (N, D). "
            f"Received: z_1 of shape {first}, z_2 of shape {second}"
        )
    if first[0] is not None and first[0] < 2:
        raise ValueError(
            "A contrastive loss needs at least two images: every other image "
            f"of the batch is a negative. Received: z_1 of shape {first}"
        )


def _normalize(z):
    if z.dtype != tf.float64:
        z = tf.cast(z, tf.float32)
    # Dividing by the largest entry first keeps the squares in range.
    largest = tf.reduce_max(tf.abs(z), axis=1, keepdims=True)
    z = tf.math.divide_no_nan(z, tf.stop_gradient(largest))
    return tf.math.l2_normalize(z, axis=1)


@keras.saving.register_keras_serializable(package="keras_simclr")
class NTXent(keras.losses.Loss):
    """NT-Xent as an object for `model.compile(loss=NTXent(0.5))`.

    Args:
        temperature: Positive number.
        name: Name of the loss.

    Call arguments:
        z_1: Projections of the first views, shape `(N, D)`.
        z_2: Projections of the second views, shape `(N, D)`.

    Raises:
        ValueError: If `temperature` is not a positive number.

    Example:

    >>> loss = NTXent(temperature=1.0)
    >>> round(float(loss(tf.eye(4), tf.eye(4))), 4)
    1.1654

    References:
        - Chen et al. 2020, arXiv:2002.05709, equation 1.
    """

    def __init__(self, temperature=0.1, name="nt_xent"):
        super().__init__(name=name)
        self.temperature = check_temperature(temperature)

    def call(self, z_1, z_2):
        return nt_xent(z_1, z_2, temperature=self.temperature)

    def get_config(self):
        return {"temperature": self.temperature, "name": self.name}
