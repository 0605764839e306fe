"""Sets of images that are seen once, and of which some are seen again."""

import numpy as np
import tensorflow as tf

from keras_simclr import duplicates, elements, fit_data, kinds, labelled
from keras_simclr._checks import finite_rows
from keras_simclr._files import valid_names
from keras_simclr.features import check_fits, representation
from keras_simclr.folders import EncodedImages

_SPARE = 1_024  # Rows in place of some that are not there or not readable.


class ImageSet:
    """Representations of images, and what else is known of each.

    The images themselves are not held: `again` reads those that are needed a
    second time.

    Args:
        name: What the images are called in errors.
        images: As of `extract_features`: an array, `(images, labels)`, or a
            dataset of batches, which gives the same images in each pass.
        names: Names of the images by their `places`, or None: those of a
            dataset from files, or the places.
        class_names: As of `evaluate`.
        split: What the images are of, in a word.
        kind: What they are, a `kinds.Kind`.
        needs_labels: Whether images without usable labels are refused.

    Attributes:
        features: float32 array of shape `(N, D)`.
        names: List of names.
        labels: Array of shape `(N,)` of objects: the class of each, an integer
            or a text, or None. None if no image has one.
        keys: Array of `duplicates.KEYS` of the images that are `compared`.
        compared: Array of rows whose images are compared with each other.
        is_varied: Boolean array, of those: whether they are of more than one
            colour.
        split: As given.

    Raises:
        ValueError: If there are no images, they are no images, or labels are
            not one per image.

    Example:

    ```python
    found = ImageSet("images", images)
    found.see(model, most=1_000)
    found.features.shape
    ```
    """

    def __init__(
        self,
        name,
        images,
        *,
        names=None,
        class_names=(),
        split="train",
        kind=kinds.IMAGES,
        needs_labels=False,
    ):
        self.name, self.split, self.kind = name, split, kind
        self._needs_labels = needs_labels
        self._class_names = labelled.names_of_classes(name, images, class_names)
        self._source = getattr(images, "source", None)
        if not isinstance(self._source, EncodedImages):
            self._source = None
        if names is None and self._source is not None:
            names = self._source.paths
        self._given_names = None if names is None else list(names)
        if needs_labels:
            self.dataset = labelled.in_order_with_labels(name, images)
        else:
            self.dataset = fit_data.in_order(images)
        fit_data.check_length(self.dataset, name=None)
        spec = elements.unpack(self.dataset.element_spec)
        rank = elements.images_and_sizes(spec)[0].shape.rank
        if rank != (kind.rank or rank):
            shape = "(N, height, width, channels)"
            if kind is not kinds.IMAGES:
                shape = f"(N, ...), {kind.rank} axes in all"
            raise ValueError(
                f"`{name}` must be {kind.plural} of shape {shape}. Received: "
                f"elements of {spec['images']}"
            )

    @property
    def total(self):
        """How many images there are; at least so many, or None: not known."""
        if self._given_names is not None:
            return len(self._given_names)
        batches = int(self.dataset.cardinality())
        size = elements.unpack(self.dataset.element_spec)["images"].shape[0]
        if batches > 0 and size is None:
            # The last batch of arrays may be smaller.
            first = next(iter(self.dataset.take(1)))
            size = len(elements.unpack(first)["images"])
        return batches * size if batches > 0 else None

    def see(self, model, most, *, seed=0, progress=None):
        """Reads all images once; of at most so many, also what compares them.

        Args:
            model: As of `extract_features`.
            most: Images that are compared: of more, some that are drawn; if
                it is not known how many there are, the first ones.
            seed: Integer that these are drawn by.
            progress: As of `extract_features`.
        """
        check_fits(model, self.dataset)
        represent, total = representation(model), self.total
        ranks = _ranks(total, most, seed)
        features, labels, places, keys, varied, compared = (
            [] for _ in "abcdef"
        )
        count = 0
        for element in fit_data.checked_elements(
            self.dataset, progress, total, self.kind
        ):
            images, sizes = elements.images_and_sizes(element)
            features.append(represent(images, sizes).numpy())
            places.append(elements.places_of(element, count))
            if "labels" in element:
                labels.append(np.asarray(element["labels"]))
            images = images.numpy()
            rows = np.arange(count, count + len(images))
            for row in rows[ranks(rows) < most + _SPARE]:
                image = _cut(images, sizes, row - count)
                varied.append(bool(np.ptp(image) > 0))
                keys.append(_key(image, varied[-1]))
                compared.append(row)
            count += len(images)
        self.features = labelled.joined(features)
        self._places = np.concatenate(places)
        self.names = self._names()
        finite_rows("Representations", self.features, self.names)
        compared = np.array(compared, "int64")
        first = np.sort(np.argsort(ranks(compared), kind="stable")[:most])
        self.keys = np.array(keys, duplicates.KEYS)[first]
        self.is_varied = np.array(varied, bool)[first]
        self.compared = compared[first]
        self.labels = None
        if labels:
            self.labels = self._labels(labelled.joined(labels))

    def _names(self):
        if self._given_names is None:
            return [str(place) for place in self._places]
        return valid_names(self._given_names[place] for place in self._places)

    def _labels(self, given):
        try:
            known, rows = labelled.known_labels(
                self.name, given, self._class_names
            )
        except ValueError:  # Of several labels each, say.
            if self._needs_labels:
                raise
            return None
        if not len(rows):
            return None
        labels = np.full(len(given), None, object)
        labels[rows] = [x.item() for x in known]
        return labels

    def again(self, rows):
        """Yields pairs of a row and its image, read a second time.

        Args:
            rows: Of images that are `compared`.

        Yields:
            `(row, image)`, in order of the rows: an array of shape `(height,
            width, channels)`, without the canvas.

        Raises:
            ValueError: If an image is not what it was.
        """
        rows = np.unique(rows)
        digests = self.keys["digest"].tolist()
        known = dict(zip(self.compared.tolist(), digests, strict=True))
        left = set(rows.tolist())
        for row, image in self._read(rows):
            if duplicates.digest_of(image) != known[row]:
                break
            left.remove(row)
            yield row, image
        if left:
            raise ValueError(
                f"`{self.name}` must be the same images in the same order each "
                "time they are read. Received: another "
                f"{self.names[min(left)]!r} than before. Shuffle nothing, and "
                "try again when nobody writes there"
            )

    def _read(self, rows):
        if self._source is not None:
            spec = self.dataset.element_spec["images"]
            canvas_size, channels = spec.shape[1], spec.shape[-1]
            bits = 8 if spec.dtype == tf.uint8 else 16
            places = self._places[rows]
            rows = dict(zip(places.tolist(), rows.tolist(), strict=True))
            images = self._source.read(
                tf.data.Dataset.from_tensors(tf.constant(places, tf.int64)),
                canvas_size,
                channels,
                bits,
            )
            for place, image in images:
                yield rows[int(place)], image.numpy()
            return
        count = 0
        for element in fit_data.checked_elements(self.dataset, kind=self.kind):
            images, sizes = elements.images_and_sizes(element)
            end = count + images.shape[0]
            found = rows[slice(*np.searchsorted(rows, (count, end)))]
            if len(found):
                images = images.numpy()
            for row in found:
                yield int(row), _cut(images, sizes, row - count)
            count = end
            if count > rows[-1]:
                return


def _ranks(total, most, seed):
    """Function from rows to their places in the order in which to take them."""
    if total is None or total <= most:
        return lambda rows: rows
    ranks = np.random.default_rng(seed).permutation(total)
    return lambda rows: ranks[rows]


def _cut(images, sizes, row):
    size = None if sizes is None else sizes[row]
    return duplicates.without_canvas(images[row], size)


def _key(image, is_varied):
    """What tells duplicates; of one colour, or where not, only equal ones."""
    if is_varied and image.shape[2:] in ((1,), (3,)):
        return duplicates.image_keys(image)
    key = np.zeros((), duplicates.KEYS)
    key["digest"] = duplicates.digest_of(image)
    return key.item()
