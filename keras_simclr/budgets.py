"""Which encoder is worth the time there is: arithmetic, without measuring."""

import dataclasses
import math
import typing

import numpy as np

from keras_simclr.architectures import resnet_layers
from keras_simclr.networks import stem_for
from keras_simclr.recipe import FEWEST_STEPS

# Depths and widths; and sizes of views.
_NETWORKS = ((10, 0.25), (10, 0.5), (10, 1.0), (18, 0.5), (18, 1.0), (50, 1.0))
_SIZES = (32, 64, 96, 128, 224)
LARGEST = max(_SIZES)

# What `Encoder.least_views` and the report say of the rule rests on these.
# Multiply-adds of a view, and views after which such an encoder is worth it.
# The first: ResNet-10 of half width is better than of a quarter after half an
# hour on two cores, or a million views (benchmarks/README.md). The second:
# ResNet-50 at 224 pixels after 100 epochs of ImageNet (Chen et al. 2020,
# figure 9).
_MEASURED, _PUBLISHED = (65e6, 0.8e6), (4.1e9, 256e6)
BASIS = "Fashion-MNIST, half an hour on two cores"
_TRIED = {  # There: the least and the most.
    "{:,.0f} images": (54_000, 60_000),
    "views of {:,.0f} pixels": (28, 32),
    "{:,.1f} million multiply-adds": (12, 50),
    "{:,.1f} million views": (0.3, 2.2),
}
MOST_EPOCHS = 1000  # The paper's longest training.
# A choice: the demo's 1,437 digits make an encoder that is better than pixels;
# fewer photographs were not tried.
FEWEST_IMAGES = 1000


class Encoder(typing.NamedTuple):
    """A ResNet and the size of its views: flags of `pretrain`.

    Attributes:
        depth: Depth of the ResNet.
        width_multiplier: Every layer has this many times the usual channels.
        image_size: Side of the views, pixels.
    """

    depth: int
    width_multiplier: float
    image_size: int

    def cost(self):
        """Work and memory of one view.

        Returns:
            Array of two: multiply-adds of the convolutions, and numbers that
            they put out.

        Example:

        >>> work, numbers = Encoder(50, 1.0, 224).cost()
        >>> f"{work:.2e} {numbers:.2e}"
        '4.09e+09 1.11e+07'
        """
        layers = resnet_layers(
            self.depth, self.width_multiplier, stem_for(self.image_size)
        )
        costs = [layer.cost(self.image_size) for layer in layers.convolutions()]
        return np.sum(costs, axis=0, dtype="float64")

    def least_views(self):
        """Views to train on before so much work a view is worth it.

        A power of the multiply-adds, through two points: one from what was
        measured on Fashion-MNIST (views of 28 pixels, 12 to 50 million
        multiply-adds), one from what is published of ImageNet. In between, and
        for other images, it is extrapolated. It counts views and not minutes,
        so that it holds on machines of any speed.

        Returns:
            Float.

        Example:

        >>> for depth, width in ((10, 0.25), (10, 0.5), (18, 1.0)):
        ...     print(f"{Encoder(depth, width, 32).least_views():,.0f}")
        118,002
        797,395
        16,011,539
        """
        work, _ = self.cost()
        (first, least), (last, most) = _MEASURED, _PUBLISHED
        exponent = math.log(most / least) / math.log(last / first)
        return float(least * (work / first) ** exponent)

    def beyond(self, images, views):
        """What of a training the rule was not measured on, in words.

        Args:
            images: Images that there are.
            views: Views that the encoder is trained on.

        Returns:
            List of strings.

        Example:

        >>> Encoder(10, 0.5, 64).beyond(60_000, 1e6)
        ['views of 64 pixels']
        """
        work, _ = self.cost()
        values = (images, self.image_size, work / 1e6, views / 1e6)
        return [
            text.format(value)
            for (text, (low, high)), value in zip(
                _TRIED.items(), values, strict=True
            )
            if not low <= value <= high
        ]

    def in_words(self):
        """Depth, width and size of the views."""
        return (
            f"ResNet-{self.depth}, width {self.width_multiplier:g}, views of "
            f"{self.image_size} pixels"
        )


def candidates(side):
    """Encoders that a plan may propose.

    Args:
        side: Shorter side of the images, pixels.

    Returns:
        List of `Encoder`s, for views no larger than the images.

    Example:

    >>> for encoder in candidates(100)[5:7]:
    ...     print(encoder.in_words())
    ResNet-50, width 1, views of 64 pixels
    ResNet-10, width 0.5, views of 96 pixels
    """
    sizes = [x for x in _SIZES if x <= side] or [side]
    # 64 pixels show more than 32 and, by the other stem, are less work.
    sizes = sizes[1:] or sizes
    return [
        Encoder(*network, size)
        for size in sizes
        # The narrowest is for haste, and so are the smallest views.
        for network in _NETWORKS[size > sizes[0] :]
    ]


@dataclasses.dataclass(frozen=True)
class Budget:
    """The time there is, and what fits into it.

    Attributes:
        hours: Of training, with what it takes to start.
        images: Images in an epoch: those of whole batches.
        batch_size: Images in a batch.
        views: Views of each image.
    """

    hours: float
    images: int
    batch_size: int
    views: int

    def least_epochs(self, encoder):
        """Epochs with the least views and steps that an encoder needs.

        Example:

        >>> Budget(0.5, 3584, 256, 2).least_epochs(Encoder(10, 0.5, 32))
        112
        """
        views = encoder.least_views() / (self.images * self.views)
        return math.ceil(
            max(views, FEWEST_STEPS * self.batch_size / self.images)
        )

    def epochs(self, encoder, seconds, start_up=0.0):
        """Epochs that fill the time: never fewer than an encoder needs.

        Args:
            encoder: `Encoder`.
            seconds: Of an epoch.
            start_up: Seconds before the first step.

        Returns:
            Integer: as many as fit, or the least; at most 1,000, since the
            paper tried no more.

        Example:

        >>> Budget(0.5, 3584, 256, 2).epochs(Encoder(10, 0.5, 32), 12.0)
        150
        """
        fitting = (3600 * self.hours - start_up) / seconds
        least = self.least_epochs(encoder)
        return int(min(max(fitting, least), MOST_EPOCHS))

    def needs(self, encoder, seconds, start_up=0.0):
        """Seconds that the least epochs take; arguments as in `epochs`."""
        return start_up + self.least_epochs(encoder) * seconds

    def choose(self, seconds, start_up=0.0):
        """The largest encoder that there is time for.

        Args:
            seconds: Dictionary from encoders to seconds per epoch.
            start_up: Seconds before the first step.

        Returns:
            The `Encoder` of the most multiply-adds among those that get their
            least epochs, in the time and in no more than 1,000; if there are
            none, the one that needs the least time.

        Example:

        >>> small, large = Encoder(10, 0.25, 32), Encoder(10, 0.5, 32)
        >>> seconds = {small: 5.0, large: 12.0}
        >>> Budget(0.5, 3584, 256, 2).choose(seconds)
        Encoder(depth=10, width_multiplier=0.5, image_size=32)
        >>> Budget(0.3, 3584, 256, 2).choose(seconds)
        Encoder(depth=10, width_multiplier=0.25, image_size=32)
        """
        # Of few images a large encoder never sees enough.
        suited = [x for x in seconds if self.least_epochs(x) <= MOST_EPOCHS]
        suited = suited or [min(seconds, key=Encoder.least_views)]
        needs = {x: self.needs(x, seconds[x], start_up) for x in suited}
        fitting = [x for x in suited if needs[x] <= 3600 * self.hours]
        if not fitting:
            return min(suited, key=needs.get)
        return max(fitting, key=lambda encoder: tuple(encoder.cost()))
