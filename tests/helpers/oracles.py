"""Independent float64 references: plain loops, slow and easy to read."""

import math

import numpy as np


def cosine(a, b):
    return float(np.dot(a, b)) / math.sqrt(np.dot(a, a) * np.dot(b, b))


def interleave(z_1, z_2):
    """Algorithm 1's order: rows 2k and 2k + 1 are the views of image k."""
    rows = [row for pair in zip(z_1, z_2, strict=True) for row in pair]
    return np.asarray(rows, "float64")


def candidates(i, size, groups):
    """Rows that anchor i is compared with, in `interleave`'s order."""
    others = [k for k in range(size) if k != i]
    if groups is None:
        return others
    own = i // 2
    return [k for k in others if k // 2 == own or groups[k // 2] != groups[own]]


def anchor_losses(z_1, z_2, temperature, groups=None):
    """Algorithm 1 of the paper (arXiv:2002.05709), line by line."""
    z = interleave(z_1, z_2)
    size = len(z)
    s = [[cosine(z[i], z[j]) for j in range(size)] for i in range(size)]

    def loss(i, j):
        # Both sides of the fraction are divided by exp(largest / temperature).
        others = [s[i][k] / temperature for k in candidates(i, size, groups)]
        largest = max(others)
        total = sum(math.exp(other - largest) for other in others)
        return math.log(total) + largest - s[i][j] / temperature

    pairs = [(2 * k, 2 * k + 1) for k in range(size // 2)]
    # In the order of `per_positive`: the first views, then the second.
    return [loss(i, j) for i, j in pairs] + [loss(j, i) for i, j in pairs]


def of_views(z, temperature, groups=None, decoupled=False):
    """Losses of anchor (v, n) and positive (v + k, n) at [k - 1, v, n]."""
    views, count, _ = np.shape(z)
    groups = range(count) if groups is None else groups
    losses = np.zeros((views - 1, views, count))
    for k, v, n in np.ndindex(losses.shape):
        negatives = [
            math.exp(cosine(z[v][n], z[w][m]) / temperature)
            for w in range(views)
            for m in range(count)
            if groups[m] != groups[n]
        ]
        positive = cosine(z[v][n], z[(v + k + 1) % views][n]) / temperature
        if decoupled:
            losses[k, v, n] = math.log(sum(negatives)) - positive
        else:
            losses[k, v, n] = math.log1p(sum(negatives) / math.exp(positive))
    return losses


def nt_xent(z_1, z_2, temperature, groups=None):
    return float(np.mean(anchor_losses(z_1, z_2, temperature, groups)))


def positives_found(z_1, z_2, groups=None):
    """Whether the positive is the nearest of the anchor's candidates."""
    z = interleave(z_1, z_2)
    found = []
    for i in range(len(z)):
        others = candidates(i, len(z), groups)
        nearest = max(others, key=lambda k: cosine(z[i], z[k]))
        found.append(nearest // 2 == i // 2)
    return found[0::2] + found[1::2]


def central_differences(function, x, width=1e-6):
    gradient = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[place] = width
        high, low = function(x + step), function(x - step)
        gradient[place] = (high - low) / (2 * width)
    return gradient


def lars(
    weight,
    gradients,
    *,
    rate,
    momentum=0.0,
    weight_decay=0.0,
    trust_coefficient=0.001,
    nesterov=False,
):
    """All weights of a run: LARS with classic momentum, Algorithm 1 of LARS."""
    weight = np.asarray(weight, "float64")
    velocity = np.zeros_like(weight)
    run = []
    for gradient in gradients:
        gradient = np.asarray(gradient, "float64") + weight_decay * weight
        lengths = np.linalg.norm(weight), np.linalg.norm(gradient)
        ratio = (
            trust_coefficient * lengths[0] / lengths[1] if all(lengths) else 1
        )
        step = rate * ratio * gradient
        velocity = momentum * velocity + step
        weight = weight - (momentum * velocity + step if nesterov else velocity)
        run.append(weight)
    return run


def symmetric_convolution(images, kernel, strides):
    """Convolution of images padded by (size - 1) // 2 zeros on every side."""
    size = kernel.shape[0]
    pad = (size - 1) // 2
    images = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height = (images.shape[1] - size) // strides + 1
    width = (images.shape[2] - size) // strides + 1
    outputs = np.zeros((len(images), height, width, kernel.shape[-1]))
    for row in range(height):
        for column in range(width):
            top, left = row * strides, column * strides
            patch = images[:, top : top + size, left : left + size]
            outputs[:, row, column] = np.tensordot(patch, kernel, 3)
    return outputs


def same_max_pool(images, size=3, strides=2):
    """Largest value of each window; an even image is padded at its end only."""
    height, width = (-(-side // strides) for side in images.shape[1:3])
    outputs = np.zeros((len(images), height, width, images.shape[-1]))
    before = [
        max((count - 1) * strides + size - side, 0) // 2
        for count, side in zip((height, width), images.shape[1:3], strict=True)
    ]
    for row in range(height):
        for column in range(width):
            top = row * strides - before[0]
            left = column * strides - before[1]
            patch = images[
                :,
                max(top, 0) : top + size,
                max(left, 0) : left + size,
            ]
            outputs[:, row, column] = patch.max(axis=(1, 2))
    return outputs


def softmax(row):
    powers = [math.exp(x - max(row)) for x in row]
    return [x / sum(powers) for x in powers]


def distilled(logits, probabilities, temperature):
    """Section 2 of SimCLRv2 (arXiv:2006.10029), times the temperature squared.

    Of one image: its logits by the student, its probabilities by the teacher.
    """
    powers = [p ** (1 / temperature) for p in probabilities]
    ours = softmax([x / temperature for x in logits])
    pairs = zip(powers, ours, strict=True)
    losses = [-p / sum(powers) * math.log(q) for p, q in pairs]
    return temperature**2 * sum(losses)


def seed(z, teacher_z, temperature, teacher_temperature):
    """SEED's loss of each image (arXiv:2101.04731), its queue the batch."""
    losses = []
    for ours, theirs in zip(z, teacher_z, strict=True):
        p, q = (
            softmax([cosine(anchor, each) / t for each in teacher_z])
            for anchor, t in (
                (theirs, teacher_temperature),
                (ours, temperature),
            )
        )
        pairs = zip(p, q, strict=True)
        losses.append(-sum(a * math.log(b) for a, b in pairs))
    return losses
