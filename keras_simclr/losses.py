"""NT-Xent: the contrastive loss of SimCLR."""

import os

import keras
import numpy as np
import tensorflow as tf

from keras_simclr import _checks

# A tile of similarities fits a core's cache. 256 is as fast, 128 30 % slower.
_BLOCK_SIZE = 512


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
    losses, _ = per_anchor(
        z_1,
        z_2,
        temperature=temperature,
        block_size=block_size,
        groups=groups,
    )
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


def per_anchor(z_1, z_2, *, temperature=0.1, block_size=None, groups=None):
    """Loss of every anchor, and whether its positive was found, in one pass.

    Args:
        z_1: Projections of the first views, shape `(N, D)`.
        z_2: Projections of the second views, shape `(N, D)`.
        temperature: Positive number.
        block_size: Anchors per block, or None.
        groups: Integers, shape `(N,)`, or None: see `nt_xent`.

    Returns:
        Two tensors of shape `(2N,)`, anchors from `z_1` first: the losses, and
        booleans that are true where the positive is the most similar of the
        candidates: the 2N - 1 others, or those of them that `groups` leaves.

    Raises:
        ValueError: As `nt_xent`.

    Example:

    >>> z = tf.eye(4)
    >>> losses, found = per_anchor(z, z)
    >>> found.numpy().all()
    np.True_
    """
    temperature = check_temperature(temperature)
    block_size = check_block_size(block_size) or _BLOCK_SIZE
    z_1, z_2 = tf.convert_to_tensor(z_1), tf.convert_to_tensor(z_2)
    _check_shapes(z_1.shape, z_2.shape)
    if groups is not None:
        groups = _blocks(_anchor_groups(groups, z_1), block_size)
    z = tf.concat([_normalize(z_1), _normalize(z_2)], axis=0)  # (2N, D)
    # At most 2**126: float32 flushes a smaller scale to 0, and 0 * inf is nan.
    scale = tf.constant(1 / min(temperature, 2.0**126), z.dtype)
    forward, backward = _forward, _backward
    # Each core works at pairs of blocks of its own.
    parts = (os.cpu_count() or 1) if _checks.only_cpus() else 1
    if z.shape[0] is not None:
        blocks = -(-z.shape[0] // block_size)
        parts = min(parts, blocks * (blocks + 1) // 2)
        if blocks == 1:
            # It gains little from XLA, whose compilation takes seconds.
            forward, backward = (
                function.python_function for function in (forward, backward)
            )
    shares = [(tf.constant(part), tf.constant(parts)) for part in range(parts)]

    @tf.custom_gradient
    def contrast(z):
        z = tf.stop_gradient(z)  # No tape looks inside.
        inputs = z, groups, scale, block_size
        states = [forward(*inputs, share) for share in shares]
        losses, found, *sums = _merged(z, scale, states)

        def gradient(upstream, _):
            return tf.add_n(
                [backward(upstream, *inputs, share, *sums) for share in shares]
            )

        return (losses, found), gradient

    losses, found = contrast(z)
    return tf.ensure_shape(losses, z.shape[:1]), found


@tf.function(jit_compile=True, autograph=False)
def _forward(z, groups, scale, block_size, share):
    """What a share of the pairs tells about each anchor.

    Returns:
        The similarity to the positive, the largest similarity, the sum of
        exp((similarity - largest) * scale), the place of the largest.
    """
    size = tf.shape(z)[0]
    z = _blocks(z, block_size)  # (blocks, anchors, D)

    def merge(block, state, similarities, candidates):
        """Brings the candidates (rows) to the block's anchors (columns)."""
        before, total, nearest = (each[block] for each in state)
        largest = tf.maximum(before, tf.reduce_max(similarities, axis=0))
        total *= tf.exp((before - largest) * scale)
        terms = tf.exp((similarities - largest) * scale)
        total += tf.reduce_sum(terms, axis=0)
        # The first of equals, as argmax takes it.
        first = tf.where(similarities == largest, candidates[:, None], size)
        first = tf.reduce_min(first, axis=0)
        nearest = tf.where(largest > before, first, tf.minimum(nearest, first))
        merged = (largest, total, nearest)
        return [
            tf.tensor_scatter_nd_update(old, [[block]], new[None])
            for old, new in zip(state, merged, strict=True)
        ]

    def step(i, j, positives, *state):
        first, second = _places(z, i), _places(z, j)
        similarities, valid, positive = _tile(z, groups, size, i, j)
        valid &= second[:, None] < size  # None is padding.
        outside = tf.constant(-np.inf, z.dtype)
        similarities = tf.where(valid, similarities, outside)
        positive = tf.where(positive, similarities, 0)
        positive = tf.reduce_sum(positive, axis=0)[None]
        positives = tf.tensor_scatter_nd_add(positives, [[i]], positive)
        state = merge(i, state, similarities, second)
        state = merge(j, state, tf.transpose(similarities), first)
        return positives, *state

    zeros = tf.zeros(tf.shape(z)[:2], z.dtype)
    below_all = zeros - 2  # A finite number below each cosine.
    state = zeros, below_all, zeros, tf.cast(zeros, tf.int32)
    state = _over_pairs(step, z, state, share)
    return [tf.reshape(each, [-1])[:size] for each in state]


def _merged(z, scale, states):
    """Loss of each anchor, found or not, largest similarity, sum of exp."""
    size = tf.shape(z)[0]
    positives, largests, totals, nearest = (
        tf.stack(each) for each in zip(*states, strict=True)
    )
    largest = tf.reduce_max(largests, axis=0)
    total = tf.reduce_sum(totals * tf.exp((largests - largest) * scale), axis=0)
    nearest = tf.where(largests == largest, nearest, size)
    positives = tf.reduce_sum(positives, axis=0)
    positives = tf.tile(positives[: size // 2], [2])
    losses = tf.math.log(total) + (largest - positives) * scale
    partner = tf.roll(tf.range(size), size // 2, axis=0)
    found = tf.reduce_min(nearest, axis=0) == partner
    return losses, found, largest, total


@tf.function(jit_compile=True, autograph=False)
def _backward(upstream, z, groups, scale, block_size, share, largest, total):
    """Gradient with respect to z of the losses' sum weighted by upstream.

    That part of it that a share of the pairs contributes.
    """
    size = tf.shape(z)[0]
    pull = upstream + tf.roll(upstream, size // 2, axis=0)
    weight, largest, pull = (
        _blocks(each[:, None], block_size)
        for each in (upstream / total, largest, pull)
    )
    z = _blocks(z, block_size)  # (blocks, anchors, D)

    def step(i, j, gradient):
        similarities, valid, positive = _tile(z, groups, size, i, j)

        def softmax(weight, largest):
            # Never above 1, however another product rounds.
            logits = tf.minimum((similarities - largest) * scale, 0)
            return weight * tf.exp(logits)

        push = softmax(weight[j], largest[j])
        push += softmax(tf.transpose(weight[i]), tf.transpose(largest[i]))
        push = tf.where(valid, push, 0)
        # Here, not at the end: what is left is small where the loss is.
        push -= tf.where(positive, tf.transpose(pull[i]), 0)
        first = tf.matmul(push, z[j], transpose_a=True)
        second = tf.matmul(push, z[i])
        return [
            tf.tensor_scatter_nd_add(
                gradient, [[i], [j]], tf.stack([first, second])
            )
        ]

    (gradient,) = _over_pairs(step, z, [tf.zeros_like(z)], share)
    return tf.reshape(gradient, [-1, z.shape[2]])[:size] * scale


def _tile(z, groups, size, i, j):
    """Similarities of blocks j (rows) and i (columns), valid or not, positive.

    Valid are the pairs that count: each once, its two places in order.
    """
    distance = _places(z, j)[:, None] - _places(z, i)
    valid, positive = distance > 0, distance == size // 2
    if groups is not None:
        valid &= positive | (groups[j] != tf.transpose(groups[i]))
    return tf.matmul(z[j], z[i], transpose_b=True), valid, positive


def _blocks(rows, block_size):
    """Rows `(2N, D)` as `(blocks, block_size, D)`; zeros fill the last one."""
    size = tf.shape(rows)[0]
    block_size = tf.minimum(block_size, size)
    blocks = -(-size // block_size)
    rows = tf.pad(rows, [[0, blocks * block_size - size], [0, 0]])
    return tf.reshape(rows, [blocks, block_size, rows.shape[1]])


def _places(blocks, i):
    """Places of the rows of block i among all rows."""
    block_size = tf.shape(blocks)[1]
    return i * block_size + tf.range(block_size)


def _over_pairs(step, blocks, state, share):
    """State after step(i, j, *state) for a share of the pairs i <= j.

    Pair k is of the blocks that lie k // count apart, around the end.
    """
    count = tf.shape(blocks)[0]
    pairs = count * (count + 1) // 2
    part, parts = share

    def body(k, *state):
        i = k % count
        j = (i + k // count) % count
        return k + 1, *step(tf.minimum(i, j), tf.maximum(i, j), *state)

    first, last = part * pairs // parts, (part + 1) * pairs // parts
    _, *state = tf.while_loop(
        lambda k, *_: k < last, body, (first, *state), parallel_iterations=1
    )
    return state


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


def _anchor_groups(groups, z_1):
    """Groups of the 2N anchors, shape `(2N, 1)`; raises if they are not N."""
    groups = tf.convert_to_tensor(groups)
    shape, images = groups.shape, z_1.shape[:1]
    if not groups.dtype.is_integer or not (
        shape.rank == 1 and shape.is_compatible_with(images)
    ):
        raise ValueError(
            "`groups` must be integers of shape (N,), one for each image. "
            f"Received: groups of shape {shape} and dtype {groups.dtype.name}, "
            f"z_1 of shape {z_1.shape}"
        )
    # It fails where a length that only the run knows is not N.
    groups = tf.reshape(groups, [tf.shape(z_1)[0], 1])
    return tf.concat([groups, groups], axis=0)


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
        block_size: Anchors per block, or None: see `nt_xent`.
        name: Name of the loss.

    Call arguments:
        z_1: Projections of the first views, shape `(N, D)`.
        z_2: Projections of the second views, shape `(N, D)`.
        groups: Integers, shape `(N,)`, or None: see `nt_xent`. Only `call`
            takes them: the object itself has no place for them in Keras.

    Raises:
        ValueError: If `temperature` is not a positive number, or `block_size`
            is no integer of at least 1.

    Example:

    >>> loss = NTXent(temperature=1.0)
    >>> round(float(loss(tf.eye(4), tf.eye(4))), 4)
    1.1654

    References:
        - Chen et al. 2020, arXiv:2002.05709, equation 1.
    """

    def __init__(self, temperature=0.1, block_size=None, name="nt_xent"):
        super().__init__(name=name)
        self.temperature = check_temperature(temperature)
        self.block_size = check_block_size(block_size)

    def call(self, z_1, z_2, *, groups=None):
        return nt_xent(
            z_1,
            z_2,
            temperature=self.temperature,
            block_size=self.block_size,
            groups=groups,
        )

    def get_config(self):
        return {
            "temperature": self.temperature,
            "block_size": self.block_size,
            "name": self.name,
        }
