"""Duplicates and near duplicates among images."""

import hashlib
import itertools

import numpy as np

SMALL = (32, 32)  # Pixels, all that is kept of an image to be compared.

# Two images are near duplicates if their perceptual hashes share a quarter (16
# of 64 bits in a row) and differ in at most `_DISTANCE` bits, and the root
# mean square difference of their thumbnails is at most `_DIFFERENCE` of their
# contrast. Of 15 photographs, 14 are found again at a quarter of their width
# as JPEG of quality 50, 11 of quality 20. Of 10,000 images of Fashion-MNIST, 4
# pass for duplicates. Of 2,548 from Open Clip Art, 142 do, in 63 groups, of
# which 60 are right.
_THUMBNAIL = (16, 16)
_DISTANCE = 6
_DIFFERENCE = 0.1
# Below this standard deviation, of 255, the hash is mostly noise.
_CONTRAST = 3.0
# Images that share 16 bits are compared with so many of their neighbours.
_NEIGHBOURS = 256

_ROWS = 1024  # Pairs that are compared at a time.
# Images in memory among which near duplicates are looked for: 6 s on one core
# for small ones. Among more, only equal ones are.
_MOST_IN_MEMORY = 20_000

# By which duplicates are found.
KEYS = np.dtype(
    [
        ("digest", "uint64"),
        ("hash", "uint64"),
        ("thumbnail", "uint8", 3 * _THUMBNAIL[0] * _THUMBNAIL[1]),
        ("contrast", "float32"),
    ]
)

NO_KEYS = (0, 0, np.zeros(KEYS["thumbnail"].shape, "uint8"), 0.0)


def perceptual_keys(small):
    """Measures by which near duplicates of an image are found.

    Args:
        small: A `PIL.Image` of `SMALL` pixels of RGB.

    Returns:
        Its perceptual hash, thumbnail and contrast: fields of `KEYS`.

    Example:

    ```python
    hash, thumbnail, contrast = perceptual_keys(image.resize(SMALL))
    ```
    """
    import imagehash
    from PIL import Image

    bits = imagehash.phash(small).hash
    thumbnail = np.asarray(small.resize(_THUMBNAIL, Image.Resampling.BOX))
    packed = np.packbits(bits).view("uint64")[0]
    contrast = np.sqrt(thumbnail.var(axis=(0, 1)).mean())
    return packed, thumbnail.ravel(), contrast


def group(keys, usable):
    """Numbers images such that duplicates have the same number.

    Args:
        keys: Array of `KEYS`, one entry per image; `digest` tells equal files.
        usable: Boolean array, of which images to look at.

    Returns:
        int64 array: equal for duplicates of each other, and for none else.

    Example:

    >>> keys = np.zeros(3, KEYS)
    >>> keys["digest"] = [7, 8, 7]
    >>> group(keys, np.ones(3, bool))
    array([0, 1, 0])
    """
    from scipy import sparse
    from scipy.sparse import csgraph

    places = np.flatnonzero(usable)
    _, first, inverse = np.unique(
        keys["digest"][places], return_index=True, return_inverse=True
    )
    links = [(places, places[first][inverse])]
    different = places[first]
    different = different[keys["contrast"][different] >= _CONTRAST]
    links += _near_pairs(keys, different)
    pairs = np.concatenate(links, axis=1)
    graph = sparse.coo_array(
        (np.ones(pairs.shape[1], bool), tuple(pairs)), shape=2 * keys.shape
    )
    _, numbers = csgraph.connected_components(graph, directed=False)
    return numbers.astype("int64")


def without_canvas(image, size):
    """An image without what pads it; `size`, of its first axes, or None."""
    if size is None:
        return image
    return image[tuple(map(slice, np.asarray(size)))]


def group_images(images, sizes=None):
    """As `group`, of images in memory.

    Those of one colour are nobody's duplicates: alike, but not copied.

    Args:
        images: Array of shape `(N, height, width, channels)`, uint8 or float in
            [0, 1]; or `(N, ...)` of anything else.
        sizes: Integers of shape `(N, 2)`, height and width on a canvas; or
            None.

    Returns:
        `(groups, is_complete)`: as from `group`, and whether near duplicates
        were looked for, and not only equal ones.

    Example:

    >>> images = np.random.default_rng(0).random((2, 8, 8, 1))[[0, 1, 0]]
    >>> group_images(images)
    (array([0, 1, 0]), True)
    """
    is_complete = len(images) <= _MOST_IN_MEMORY
    shape = images.shape
    looks_near = is_complete and len(shape) == 4 and shape[3] in (1, 3)
    keys = np.zeros(len(images), KEYS)
    usable = np.zeros(len(images), bool)
    for place, image in enumerate(images):
        image = without_canvas(image, None if sizes is None else sizes[place])
        usable[place] = np.ptp(image) > 0
        if looks_near and usable[place]:
            keys[place] = image_keys(image)
        else:
            keys["digest"][place] = digest_of(image)
    return group(keys, usable), is_complete


def repeated(images, others):
    """Which images are among others, too.

    Those of one colour are in neither. Near duplicates are looked for among the
    first 20,000 of all; of those that follow, equal ones.

    Args:
        images: Iterable of arrays of shape `(height, width, channels)`, as in
            `image_keys`, or of anything else.
        others: The same. It is read once, and nothing of it is kept.

    Returns:
        Boolean array, one for each of `images`.

    Example:

    >>> images = np.random.default_rng(0).random((3, 8, 8, 1))
    >>> repeated(images[:2], images[1:]).tolist()
    [False, True]
    """
    keys, rest, count = [], set(), 0
    for place, image in enumerate(itertools.chain(images, [None], others)):
        if image is None:
            count = place
        elif np.ptp(image) == 0:
            keys += [NO_KEYS] * (not count)
        elif place > _MOST_IN_MEMORY and count:
            rest.add(digest_of(image))
        elif place <= _MOST_IN_MEMORY and image.shape[2:] in ((1,), (3,)):
            keys.append(image_keys(image))
        else:
            keys.append((digest_of(image), *NO_KEYS[1:]))
    keys = np.array(keys, KEYS)
    usable = keys["digest"] > 0
    groups = group(keys, usable)
    known = np.isin(groups[:count], groups[count:])
    return known | (
        np.isin(keys["digest"][:count], np.array([*rest], "uint64"))
        & usable[:count]
    )


def image_keys(image):
    """Measures by which duplicates of an image in memory are found.

    Args:
        image: Array of shape `(height, width, channels)`, uint8 or float in
            [0, 1]. Of other than one or three channels, the first ones tell
            near duplicates.

    Returns:
        Fields of `KEYS`.

    Example:

    >>> len(image_keys(np.zeros((8, 8, 4), "uint8"))) == len(KEYS)
    True
    """
    return digest_of(image), *perceptual_keys(_small(image))


def digest_of(image):
    """What equal images in memory have in common: an integer of 64 bits.

    Args:
        image: Array of any shape.

    Returns:
        Integer.

    Example:

    >>> digest_of(np.zeros((8, 8, 1))) == digest_of(np.zeros((8, 8, 1)))
    True
    """
    content = hashlib.blake2b(f"{image.shape}".encode(), digest_size=8)
    content.update(np.ascontiguousarray(image))
    return int.from_bytes(content.digest())


def _small(image):
    """An image in memory as `perceptual_keys` takes it."""
    from PIL import Image

    if image.dtype != np.uint8:
        image = np.round(255 * np.clip(image, 0, 1)).astype("uint8")
    image = image[..., : 3 if image.shape[2] > 2 else 1]
    image = np.broadcast_to(image, (*image.shape[:2], 3))
    image = Image.fromarray(np.ascontiguousarray(image))
    return image.resize(SMALL, Image.Resampling.BILINEAR)


def _near_pairs(keys, places):
    """Yields arrays of pairs of near duplicates."""
    # Sorted by hash, images that share the first 16 bits are neighbours;
    # turning all hashes by 16 bits three times finds all that share a quarter.
    # Each is linked with the nearest neighbour before it that is alike.
    hashes = keys["hash"][places]
    quarters = hashes.view("uint16").reshape(-1, 4)
    for turn in range(4):
        turned = np.roll(quarters, turn, axis=1).view("uint64")[:, 0]
        order = np.argsort(turned, kind="stable")
        quarter = turned[order] >> 48
        later = np.arange(len(order))
        for step in range(1, _NEIGHBOURS + 1):
            later = later[later >= step]
            later = later[quarter[later] == quarter[later - step]]
            one, other = places[order[later]], places[order[later - step]]
            alike = _alike(keys, one, other)
            yield one[alike], other[alike]
            later = later[~alike]


def _alike(keys, one, other):
    """Whether pairs of images are near duplicates."""
    bits = np.bitwise_count(keys["hash"][one] ^ keys["hash"][other])
    alike = bits <= _DISTANCE
    near = np.flatnonzero(alike)
    for start in range(0, len(near), _ROWS):
        rows = near[start : start + _ROWS]
        a, b = keys[one[rows]], keys[other[rows]]
        difference = a["thumbnail"].astype("float32") - b["thumbnail"]
        contrast = np.minimum(a["contrast"], b["contrast"])
        rms = np.sqrt(np.mean(difference**2, axis=1))
        alike[rows] = rms <= _DIFFERENCE * contrast
    return alike
