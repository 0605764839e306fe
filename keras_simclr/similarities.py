"""Cosine similarities of all pairs of rows, a block at a time.

Log-sum-exp over the similarities of each row to those of other groups, and its
gradient, in memory that grows with the rows and not with their square. Nothing
here knows what the sums are for.

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

import tensorflow as tf

from keras_simclr import devices

# What two blocks give fits a core's cache. 256 is as fast, 128 30 % slower.
_BLOCK_SIZE = 512
_BELOW = -2.0  # A finite number below each cosine.


def log_sum_exp(rows, scale, groups, *, block_size=None):
    """Compares each row with all rows of other groups.

    With s the cosine similarity and the sums over these, relative to the
    largest of them.

    Args:
        rows: Float tensor of shape `(R, D)`, each row of length 1 or 0.
        scale: Number that multiplies similarities, at most 2**126.
        groups: Integer tensor of shape `(R, 1)`.
        block_size: Rows in a block; None takes 512, or all if fewer.

    Returns:
        Two tensors of shape `(R,)`: log(sum of exp(scale * (s - largest))),
        whose gradient is that of log(sum of exp(scale * s)); and the largest,
        without gradient. Where there is no such row, -inf without gradient and
        a number below each cosine.
    """
    block_size = block_size or _BLOCK_SIZE
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
        largest, total = _merged(scale, states)

        def gradient(upstream, _):
            weight = tf.math.divide_no_nan(upstream, total)
            return tf.add_n(
                [backward(weight, *inputs, share, largest) for share in shares]
            )

        return (tf.math.log(total), largest), gradient

    return compare(rows)


@tf.function(jit_compile=True, autograph=False)
def _forward(rows, groups, scale, block_size, share):
    """What a share of the pairs tells about each row.

    Returns the largest similarity, and the sum of
    exp((similarity - largest) * scale).
    """
    size = tf.shape(rows)[0]
    rows = _blocks(rows, block_size)  # (blocks, rows, D)

    def merge(block, state, similarities, counts):
        """Brings rows of a matrix to a block, its columns."""
        before, total = (each[block] for each in state)
        candidates = tf.where(counts, similarities, _BELOW)
        largest = tf.maximum(before, tf.reduce_max(candidates, axis=0))
        total *= tf.exp((before - largest) * scale)
        terms = tf.exp((candidates - largest) * scale)
        total += tf.reduce_sum(tf.where(counts, terms, 0), axis=0)
        return [
            tf.tensor_scatter_nd_update(old, [[block]], new[None])
            for old, new in zip(state, (largest, total), strict=True)
        ]

    def step(i, j, *state):
        similarities, counts = _pairs(rows, groups, size, i, j)
        state = merge(i, state, similarities, counts)
        return merge(j, state, tf.transpose(similarities), tf.transpose(counts))

    zeros = tf.zeros(tf.shape(rows)[:2], rows.dtype)
    state = _over_blocks(step, rows, (zeros + _BELOW, zeros), share)
    return [tf.reshape(each, [-1])[:size] for each in state]


def _merged(scale, states):
    """The shares together: largest similarity, sum."""
    largests, totals = (tf.stack(each) for each in zip(*states, strict=True))
    largest = tf.reduce_max(largests, axis=0)
    total = tf.reduce_sum(totals * tf.exp((largests - largest) * scale), axis=0)
    return largest, total


@tf.function(jit_compile=True, autograph=False)
def _backward(weight, rows, groups, scale, block_size, share, largest):
    """What a share of the pairs adds to the gradient of the rows."""
    size = tf.shape(rows)[0]
    weight, largest = (
        _blocks(each[:, None], block_size) for each in (weight, largest)
    )
    rows = _blocks(rows, block_size)  # (blocks, rows, D)

    def step(i, j, gradient):
        similarities, counts = _pairs(rows, groups, size, i, j)

        def softmax(weight, largest):
            # Never above 1, however another product rounds.
            logits = tf.minimum((similarities - largest) * scale, 0)
            return weight * tf.exp(logits)

        push = softmax(weight[j], largest[j])
        push += softmax(tf.transpose(weight[i]), tf.transpose(largest[i]))
        push = tf.where(counts, push, 0)
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
    """Of blocks j and i: similarities, and which of them count."""
    first, second = _places(rows, i), _places(rows, j)[:, None]
    counts = groups[j] != tf.transpose(groups[i])
    counts &= (second > first) & (second < size)  # None is padding.
    return tf.matmul(rows[j], rows[i], transpose_b=True), counts


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
