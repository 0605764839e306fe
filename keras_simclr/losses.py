"""NT-Xent, and what `SimCLRModel` asks of any contrastive loss."""

import math

import keras
import numpy as np
import tensorflow as tf

from keras_simclr import _checks, similarities
from keras_simclr.replicas import on_one_device, replica_and_number


class ContrastiveLoss(keras.losses.Loss):
    """What `SimCLRModel` asks of a loss; a base for losses of your own.

    Override `contrast`, and `chance` if the value is known. A plain callable
    `(z_1, z_2) -> scalar` works in `compile(loss=...)`, too; but then there
    are no `groups`, and the similarities that tell which positives are found
    are computed beside its own.

    Example:

    >>> @keras.saving.register_keras_serializable(package="mine")
    ... class Alignment(simclr.losses.ContrastiveLoss):
    ...     takes_groups = False
    ...     def contrast(self, z, groups=None):
    ...         z = tf.math.l2_normalize(z, axis=-1)
    ...         return -tf.reduce_mean(tf.reduce_sum(z[0] * z[1], -1)), None
    >>> round(float(Alignment()(tf.eye(4), tf.eye(4))), 4)
    -1.0

    References:
        - Chen et al. 2020, arXiv:2002.05709, section 2.1.
    """

    takes_groups = True

    def contrast(self, z, groups=None):
        """Loss among the projections of all views.

        Args:
            z: Projections of the views, shape `(V, N, D)`; the same place in
                each view is the same example.
            groups: Integers, shape `(N,)`, or None. Examples with equal
                numbers are no negatives of each other. Given only to a loss
                whose `takes_groups` is true.

        Returns:
            The loss, a scalar tensor; and booleans of any shape, for each
            anchor and each of its V - 1 positives whether it is found, or
            None: then the model compares the projections itself.
        """
        raise NotImplementedError

    def chance(self, batch_size, views=2):
        """Value of an encoder that gives all views the same projection.

        Args:
            batch_size: Number of examples N, at least 2.
            views: Number of views V.

        Returns:
            Float, or None where it is not known.
        """
        return None

    def call(self, z_1, z_2):
        z_1, z_2 = tf.convert_to_tensor(z_1), tf.convert_to_tensor(z_2)
        check_views(z_1.shape, z_2.shape)
        return self.contrast(tf.stack([z_1, z_2]))[0]


class _Callable(ContrastiveLoss):
    """A plain callable `(z_1, z_2) -> scalar` as a contrastive loss."""

    takes_groups = False

    def __init__(self, function):
        super().__init__()
        self._function = function

    def contrast(self, z, groups=None):
        return self._function(z[0], z[1]), None


def as_contrastive(loss, views=2):
    """The loss itself if it has a method `contrast`, else one made of it.

    What the most derived class says counts: a subclass that overrides `call`
    alone is a callable.
    """
    if not callable(loss):
        raise TypeError(
            "`loss` must be a callable (z_1, z_2) -> scalar, for example "
            f"simclr.NTXent(0.5). Received: loss={loss!r}"
        )
    for kind in type(loss).__mro__:
        if "contrast" in vars(kind):
            return loss
        if {"call", "__call__"} & vars(kind).keys():
            break
    if views != 2:
        raise ValueError(
            "A loss of more than two views must be a losses.ContrastiveLoss. "
            f"Received: loss={loss!r} for views={views}"
        )
    return _Callable(loss)


def contrast_of(loss, z, groups=None):
    """What `loss.contrast` returns, the same on any number of replicas.

    The loss is a scalar of the projections' dtype; others are refused.
    """
    _, replicas = replica_and_number()
    inputs = (z,) if groups is None else (z, groups)
    if replicas == 1:
        value, found = loss.contrast(*inputs)
    else:
        value, found = on_one_device(loss.contrast, *inputs)
    value = tf.convert_to_tensor(value)
    if value.shape.rank not in (0, None):
        raise ValueError(
            "A loss must return one number for all projections: take the mean, "
            "tf.reduce_mean(...), or leave the `reduction` of a Keras loss as "
            f"it is. Received: a loss of shape {value.shape}"
        )
    return tf.cast(value, z.dtype), found


@keras.saving.register_keras_serializable(package="keras_simclr")
def nt_xent(z_1, z_2, *, temperature=0.1, block_size=None, groups=None):
    """Normalized temperature-scaled cross-entropy between two sets of views.

    Each of the 2N projections is an anchor: the other view of its image is to
    be found among the 2N - 1 other projections. With s the cosine similarity,

        loss(anchor) = log(sum over others of exp(s / temperature))
                       - s(anchor, positive) / temperature

    and the result is the mean over the 2N anchors. Computed in float32, or in
    float64 when that comes in. The similarities are computed block by block,
    and again for the gradient: memory grows with N, not with its square.

    Args:
        z_1: Projections of the first views, shape `(N, D)`, any float dtype.
        z_2: Projections of the second views, `(N, D)`, in the same order.
        temperature: Positive number. The paper uses 0.1 on ImageNet and 0.5 on
            CIFAR-10.
        block_size: Anchors per block; None takes 512, or all 2N if fewer.
            It changes memory and speed, not the result.
        groups: Integers, shape `(N,)`, or None. Images with equal numbers, such
            as near-duplicates, are never each other's negatives: of their
            projections only the anchor's positive stays in the sum.

    Returns:
        Scalar tensor, float32 (or float64): 0 at best, `log(2N - 1)` when all
        projections are the same.

    Raises:
        ValueError: If `temperature` is not positive, `block_size` is no
            integer of at least 1, the shapes differ or hold fewer than two
            images, or `groups` is not one integer per image.

    Example:

    >>> z = tf.eye(4)
    >>> round(float(nt_xent(z, z, temperature=1.0)), 4)
    1.1654
    >>> round(float(nt_xent(z, z, temperature=1.0, groups=[0, 0, 1, 2])), 4)
    1.0351

    References:
        - Chen et al. 2020, arXiv:2002.05709, equation 1 and Algorithm 1.
        - google-research/simclr@383d414, tf2/objective.py:35-89.

    Deviation: the official code returns the sum over the two views of an
        image, twice the paper's mean; and it masks the anchor by subtracting
        1e9, which float16 cannot hold.
    """
    z_1, z_2 = tf.convert_to_tensor(z_1), tf.convert_to_tensor(z_2)
    check_views(z_1.shape, z_2.shape)
    losses, _ = per_positive(
        tf.stack([z_1, z_2]),
        temperature=temperature,
        block_size=block_size,
        groups=groups,
    )
    return mean(losses)


def mean(losses):
    """Mean of losses that may be so large that float32 cannot sum them."""
    return tf.reduce_sum(losses / tf.cast(tf.size(losses), losses.dtype))


def per_positive(
    z, *, temperature=0.1, decoupled=False, block_size=None, groups=None
):
    """Loss of every anchor with each of its positives, and whether it is found.

    With s the cosine similarity and t the temperature, the loss is

        log(exp(s(anchor, positive) / t) + sum over negatives of exp(s / t))
        - s(anchor, positive) / t

    and, decoupled, the same without the positive in the sum. Negatives are all
    views of examples of other groups. Without any the loss is 0.

    Args:
        z: Projections of the views, shape `(V, N, D)`.
        temperature: As in `nt_xent`.
        decoupled: Whether the sums are over negatives alone.
        block_size: As in `nt_xent`.
        groups: As in `nt_xent`.

    Returns:
        Two tensors of shape `(V - 1, V, N)`: of anchor (v, n) and its positive
        (v + k, n), around the end, at [k - 1, v, n]. The second is true where
        the positive is more similar than each negative.

    Raises:
        ValueError: As `nt_xent`.
    """
    temperature = check_temperature(temperature)
    block_size = check_block_size(block_size)
    views, _, size = z.shape
    z = _normalize(z)
    groups = _groups_of(groups, z)
    # At most 2**126: float32 flushes a smaller scale to 0, and 0 * inf is nan.
    scale = 1 / min(temperature, 2.0**126)
    logs, largest = similarities.log_sum_exp(
        tf.reshape(z, (-1, size)),
        scale,
        tf.tile(groups, (views, 1)),
        block_size=block_size,
    )
    logs, largest = (tf.reshape(x, tf.shape(z)[:2]) for x in (logs, largest))
    positives = tf.stack(
        [
            tf.reduce_sum(z * tf.roll(z, -k, axis=0), axis=2)
            for k in range(1, views)
        ]
    )
    losses = logs + scale * (largest - positives)
    if decoupled:
        losses = tf.where(tf.math.is_inf(logs), tf.zeros_like(losses), losses)
    else:
        losses = tf.nn.softplus(losses)
    # What rounding tells apart is not.
    margin = 16 * np.finfo(z.dtype.as_numpy_dtype).eps
    return losses, positives - largest > margin


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


def check_block_size(block_size):
    """Returns `block_size` if it is None or an integer above 0; or raises."""
    if block_size is None:
        return None
    return _checks.integer("block_size", block_size, minimum=1)


def check_views(first, second):
    """Refuses shapes of projections that are no two views of two images."""
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


def _groups_of(groups, z):
    """Groups of the examples, shape `(N, 1)`; raises if they are not N."""
    size = tf.shape(z)[1]
    if groups is None:
        return tf.range(size)[:, None]
    groups = tf.convert_to_tensor(groups)
    shape = groups.shape
    if not groups.dtype.is_integer or not (
        shape.rank == 1 and shape.is_compatible_with(z.shape[1:2])
    ):
        raise ValueError(
            "`groups` must be integers of shape (N,), one for each image. "
            f"Received: groups of shape {shape} and dtype {groups.dtype.name}, "
            f"projections of shape {z.shape[1:]}"
        )
    # It fails where a length that only the run knows is not N.
    return tf.reshape(groups, [size, 1])


def _normalize(z):
    if z.dtype != tf.float64:
        z = tf.cast(z, tf.float32)
    # Dividing by the largest entry first keeps the squares in range.
    largest = tf.reduce_max(tf.abs(z), axis=-1, keepdims=True)
    z = tf.math.divide_no_nan(z, tf.stop_gradient(largest))
    return tf.math.l2_normalize(z, axis=-1)


@keras.saving.register_keras_serializable(package="keras_simclr")
class NTXent(ContrastiveLoss):
    """NT-Xent as an object for `model.compile(loss=NTXent(0.5))`.

    Args:
        temperature: Positive number. (`keras-simclr pretrain` takes 0.2, which
            did best in short runs; 0.1 is the paper's, for ImageNet.)
        block_size: Anchors per block, or None: see `nt_xent`.
        name: Name of the loss.
        decoupled: Whether an anchor's sum is over its negatives alone, without
            its positive. The loss may then be negative.

    Call arguments:
        z_1: Projections of the first views, shape `(N, D)`.
        z_2: Projections of the second views, shape `(N, D)`.
        groups: Integers, shape `(N,)`, or None: see `nt_xent`. Only `call`
            takes them: the object itself has no place for them in Keras.

    Raises:
        ValueError: If `temperature` is not a positive number, `block_size` is
            no integer of at least 1, or `decoupled` no boolean.

    Example:

    >>> loss = NTXent(temperature=1.0)
    >>> round(float(loss(tf.eye(4), tf.eye(4))), 4)
    1.1654
    >>> round(loss.chance(256), 4)
    6.2364

    References:
        - Chen et al. 2020, arXiv:2002.05709, equation 1.
        - Yeh et al. 2021, arXiv:2110.06848, equation 6 (decoupled).

    Deviation: with more than two views, views of the anchor's own example are
        no negatives, and the mean is over all anchors and positives.
    """

    def __init__(
        self,
        temperature=0.1,
        block_size=None,
        name="nt_xent",
        *,
        decoupled=False,
    ):
        super().__init__(name=name)
        self.temperature = check_temperature(temperature)
        self.decoupled = _checks.boolean("decoupled", decoupled)
        self.block_size = check_block_size(block_size)

    def contrast(self, z, groups=None):
        losses, found = per_positive(
            z,
            temperature=self.temperature,
            decoupled=self.decoupled,
            block_size=self.block_size,
            groups=groups,
        )
        return mean(losses), found

    def call(self, z_1, z_2, *, groups=None):
        z_1, z_2 = tf.convert_to_tensor(z_1), tf.convert_to_tensor(z_2)
        check_views(z_1.shape, z_2.shape)
        return self.contrast(tf.stack([z_1, z_2]), groups)[0]

    def chance(self, batch_size, views=2):
        """log(2N - 1) for two views, log(2N - 2) decoupled, at any temperature.

        Training that stays there has learnt nothing; one that starts above it
        is not broken, since projections that merely differ cost more.
        """
        batch_size = _checks.integer("batch_size", batch_size, minimum=2)
        return math.log((not self.decoupled) + views * (batch_size - 1))

    def get_config(self):
        return {
            "temperature": self.temperature,
            "decoupled": self.decoupled,
            "block_size": self.block_size,
            "name": self.name,
        }
