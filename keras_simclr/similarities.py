"""Cosine similarities of all pairs of rows, a block at a time.

Log-sum-exp over the similarities of each row to the others, and its gradient,
in memory that grows with the rows and not with their square. Nothing here
knows what the sums are for.

The rows are cut into blocks, and the pairs of blocks are numbered: first each
block with itself, then with the next one, then with the one after that, around
the end. A core works at a share of the numbers. Three blocks, two shares A and
B:

              block 0   block 1   block 2
    block 0    0  A
    block 1    3  B      1  A
    block 2    5  B      4  B      2  A

The matrix is symmetric, so its upper half is never computed: a similarity
counts for both of its rows. On the diagonal only places below it count, so that
each pair of rows is met once, and none with itself.
"""

import numpy as np
import tensorflow as tf

from keras_simclr import devices

# What two blocks give fits a core's cache. 256 is as fast, 128 30 % slower.
_BLOCK_SIZE = 512


def log_sum_exp(rows, scale, *, groups=None, block_size=None):
    """Compares each row with all others, relative to its partner.

    The partner of a row is the one half of the rows further, around the end.
    With s the cosine similarity, the sum is over the row's candidates: all
    others but those of its group; the partner stays.

    Args:
        rows: Float tensor of shape `(2N, D)`, each row of length 1 or 0.
        scale: Number that multiplies similarities, at most 2**126.
        groups: Integer tensor of shape `(2N, 1)`, or None.
        block_size: Rows in a block; None takes 512, or all if fewer.

    Returns:
        Two tensors of shape `(2N,)`: log(sum of exp(scale * (s - s of the
        partner))), differentiable; and whether the partner is the most similar
        candidate.
    """
    block_size = block_size or _BLOCK_SIZE
    if groups is not None:
        groups = _blocks(groups, block_size)
    scale = tf.constant(scale, rows.dtype)
    forward, backward = _forward, _backward
    # Each core works at pairs of blocks of its own.
    count = devices.cores() if devices.only_cpus() else 1
    if rows.shape[0] is not None:
        blocks = -(-rows.shape[0] // block_size)
        count = min(count, blocks * (blocks + 1) // 2)
        if blocks == 1:
            # It gains little from XLA, whose compilation takes seconds.
            forward, backward = (
                function.python_function for function in (forward, backward)
            )
    shares = [
        (tf.constant(place), tf.constant(count)) for place in range(count)
    ]

    @tf.custom_gradient
    def compare(rows):
        rows = tf.stop_gradient(rows)  # No tape looks inside.
        inputs = rows, groups, scale, block_size
        states = [forward(*inputs, share) for share in shares]
        logs, found, *sums = _merged(rows, scale, states)

        def gradient(upstream, _):
            return tf.add_n(
                [backward(upstream, *inputs, share, *sums) for share in shares]
            )

        return (logs, found), gradient

    return compare(rows)


@tf.function(jit_compile=True, autograph=False)
def _forward(rows, groups, scale, block_size, share):
    """What a share of the pairs tells about each row.

    Returns the similarity to the partner, the largest similarity, the sum of
    exp((similarity - largest) * scale), and the place of the largest.
    """
    size = tf.shape(rows)[0]
    rows = _blocks(rows, block_size)  # (blocks, rows, D)

    def merge(block, state, similarities, candidates):
        """Brings candidates (rows of a matrix) to a block (its columns)."""
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

    def step(i, j, partners, *state):
        first, second = _places(rows, i), _places(rows, j)
        similarities, counts, is_partner = _pairs(rows, groups, size, i, j)
        counts &= second[:, None] < size  # None is padding.
        outside = tf.constant(-np.inf, rows.dtype)
        similarities = tf.where(counts, similarities, outside)
        partner = tf.where(is_partner, similarities, 0)
        partner = tf.reduce_sum(partner, axis=0)[None]
        partners = tf.tensor_scatter_nd_add(partners, [[i]], partner)
        state = merge(i, state, similarities, second)
        state = merge(j, state, tf.transpose(similarities), first)
        return partners, *state

    zeros = tf.zeros(tf.shape(rows)[:2], rows.dtype)
    below_all = zeros - 2  # A finite number below each cosine.
    state = zeros, below_all, zeros, tf.cast(zeros, tf.int32)
    state = _over_blocks(step, rows, state, share)
    return [tf.reshape(each, [-1])[:size] for each in state]


def _merged(rows, scale, states):
    """The shares together: log, found or not, largest similarity, sum."""
    size = tf.shape(rows)[0]
    partners, largests, totals, nearest = (
        tf.stack(each) for each in zip(*states, strict=True)
    )
    largest = tf.reduce_max(largests, axis=0)
    total = tf.reduce_sum(totals * tf.exp((largests - largest) * scale), axis=0)
    nearest = tf.where(largests == largest, nearest, size)
    partners = tf.reduce_sum(partners, axis=0)
    partners = tf.tile(partners[: size // 2], [2])
    logs = tf.math.log(total) + (largest - partners) * scale
    partner = tf.roll(tf.range(size), size // 2, axis=0)
    found = tf.reduce_min(nearest, axis=0) == partner
    return logs, found, largest, total


@tf.function(jit_compile=True, autograph=False)
def _backward(upstream, rows, groups, scale, block_size, share, largest, total):
    """What a share of the pairs adds to the gradient of the rows."""
    size = tf.shape(rows)[0]
    pull = upstream + tf.roll(upstream, size // 2, axis=0)
    weight, largest, pull = (
        _blocks(each[:, None], block_size)
        for each in (upstream / total, largest, pull)
    )
    rows = _blocks(rows, block_size)  # (blocks, rows, D)

    def step(i, j, gradient):
        similarities, counts, is_partner = _pairs(rows, groups, size, i, j)

        def softmax(weight, largest):
            # Never above 1, however another product rounds.
            logits = tf.minimum((similarities - largest) * scale, 0)
            return weight * tf.exp(logits)

        push = softmax(weight[j], largest[j])
        push += softmax(tf.transpose(weight[i]), tf.transpose(largest[i]))
        push = tf.where(counts, push, 0)
        # Here, not at the end: what is left is small where the loss is.
        push -= tf.where(is_partner, tf.transpose(pull[i]), 0)
        first = tf.matmul(push, rows[j], transpose_a=True)
        second = tf.matmul(push, rows[i])
        return [
            tf.tensor_scatter_nd_add(
                gradient, [[i], [j]], tf.stack([first, second])
            )
        ]

    (gradient,) = _over_blocks(step, rows, [tf.zeros_like(rows)], share)
    return tf.reshape(gradient, [-1, rows.shape[2]])[:size] * scale


def _pairs(rows, groups, size, i, j):
    """Of blocks j and i: similarities, which of them count, and partners."""
    distance = _places(rows, j)[:, None] - _places(rows, i)
    counts, is_partner = distance > 0, distance == size // 2
    if groups is not None:
        counts &= is_partner | (groups[j] != tf.transpose(groups[i]))
    return tf.matmul(rows[j], rows[i], transpose_b=True), counts, is_partner


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


def _over_blocks(step, blocks, state, share):
    """State after step(i, j, *state) for a share of the pairs i <= j."""
    count = tf.shape(blocks)[0]
    pairs = count * (count + 1) // 2
    place, shares = share

    def body(k, *state):
        i = k % count
        j = (i + k // count) % count
        return k + 1, *step(tf.minimum(i, j), tf.maximum(i, j), *state)

    first, last = place * pairs // shares, (place + 1) * pairs // shares
    _, *state = tf.while_loop(
        lambda k, *_: k < last, body, (first, *state), parallel_iterations=1
    )
    return state
