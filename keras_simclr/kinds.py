"""What an example is: an image, a sound, a stretch of a series, a row."""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Kind:
    """What all examples of one kind have in common.

    A layer that makes views has its kind as the attribute `kind`, and a model
    that of the first layer of its augmentation: rules for the values, and what
    an encoder must be better than, follow.

    Attributes:
        name: As `--kind` has it.
        example: What one is called.
        plural: What several are called.
        rank: Axes of a batch; None for any number.
        raw: What the features are called that need no encoder.
        sized: Axes of an example that may be padded, told by `sizes`.
    """

    name: str
    example: str
    plural: str
    rank: int | None
    raw: str
    sized: int = 0

    def __str__(self):
        return self.name

    def said(self, text):
        """What is said of images, of these: without names of anybody's.

        Example:

        >>> TABLES.said("9 images, of which one image is broken.")
        '9 rows, of which one row is broken.'
        """
        if self is IMAGES:
            return text
        text = re.sub(r"\b(raw )?pixels\b", self.raw, text)
        text = re.sub(r"\bimages\b", self.plural, text)
        if self.example[0] not in "aeiou":
            text = re.sub(r"\b([Aa])n (?=image\b)", r"\1 ", text)
        return re.sub(r"\bimage\b", self.example, text)

    def tell(self, report, text):
        """Tells a function, unless it is None, what is `said`."""
        if report:
            report(self.said(text))


IMAGES = Kind("images", "image", "images", 4, "pixels", sized=2)
AUDIO = Kind("audio", "sound", "sounds", 2, "log-mel", sized=1)
SERIES = Kind("series", "window", "windows", 3, "statistics")
TABLES = Kind("tables", "row", "rows", 2, "columns")
OTHER = Kind("other", "example", "examples", None, "values", sized=2)


def named(name):
    """The kind that `--kind` calls so, or None."""
    every = (IMAGES, AUDIO, SERIES, TABLES, OTHER)
    return next((kind for kind in every if kind.name == name), None)


def kind_of(layers, shape):
    """The kind of the examples that layers make views of.

    Args:
        layers: List of Keras layers, of which the first that has a `kind`
            tells it.
        shape: Shape of a batch of the views. Of four axes they are images,
            unless a layer says otherwise.

    Returns:
        A `Kind`.

    Example:

    >>> str(kind_of([], (None, 8, 8, 3))), str(kind_of([], (None, 30)))
    ('images', 'other')
    """
    for layer in layers:
        if isinstance(getattr(layer, "kind", None), Kind):
            return layer.kind
    return IMAGES if len(shape) == 4 else OTHER
