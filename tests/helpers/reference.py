"""What the tests compare with: loops in float64, from the papers' formulas."""

import colorsys
import math

import numpy as np

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def jitter(image, order, factors, turn):
    """Colour jitter of one image, clipped after each step.

    From google-research/simclr@383d414, tf2/data_util.py:33-175, with
    `colorsys` for HSV. Saturation and hue leave one-channel images alone.
    """
    image = np.array(image, "float64")
    for operation in order:
        if operation == BRIGHTNESS:
            image = image * factors[BRIGHTNESS]
        elif operation == CONTRAST:
            image = _contrast(image, factors[CONTRAST])
        elif image.shape[2] == 3:
            image = _hsv(image, operation, factors[SATURATION], turn)
        image = np.clip(image, 0, 1)
    return image


def _contrast(image, factor):
    result = np.zeros_like(image)
    for channel in range(image.shape[2]):
        plane = image[:, :, channel]
        mean = sum(plane.flat) / plane.size
        result[:, :, channel] = (plane - mean) * factor + mean
    return result


def _hsv(image, operation, factor, turn):
    result = np.zeros_like(image)
    for place in np.ndindex(image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*image[place])
        if operation == SATURATION:
            saturation = min(max(saturation * factor, 0.0), 1.0)
        else:
            hue = (hue + turn) % 1.0
        result[place] = colorsys.hsv_to_rgb(hue, saturation, value)
    return result


def grayscale(image):
    """ITU-R BT.601 luma in all channels (tf2/data_util.py:46-50)."""
    image = np.array(image, "float64")
    for place in np.ndindex(image.shape[:2]):
        red, green, blue = image[place]
        image[place] = 0.2989 * red + 0.5870 * green + 0.1140 * blue
    return image


def blur(image, sigma, radius):
    """Gaussian blur of one image, weights outside the image left out."""
    image = np.array(image, "float64")
    height, width, _ = image.shape
    result = np.zeros_like(image)
    for row, column in np.ndindex(height, width):
        total = 0.0
        for y in range(max(0, row - radius), min(height, row + radius + 1)):
            for x in range(
                max(0, column - radius), min(width, column + radius + 1)
            ):
                square = (y - row) ** 2 + (x - column) ** 2
                weight = math.exp(-square / (2 * sigma**2))
                result[row, column] += weight * image[y, x]
                total += weight
        result[row, column] /= total
    return result


def blur_radius(height, fraction=0.1):
    """Half of the official kernel (tf2/data_util.py:323-440), at least 1."""
    size = int(height * fraction)
    return max(1, int(size / 2))


def rest_box(height, width, ratio, proportion=0.875):
    """Top, height, left and width of the official centre crop.

    From google-research/simclr@383d414, tf2/data_util.py:176-243, where
    `ratio` is width / height of the target.
    """
    if ratio > width / height:
        crop_height = round(proportion / ratio * width)
        crop_width = round(proportion * width)
    else:
        crop_height = round(proportion * height)
        crop_width = round(proportion * ratio * height)
    top = (height - crop_height + 1) // 2
    left = (width - crop_width + 1) // 2
    return top, crop_height, left, crop_width


def crop_boxes(views, height, width):
    """Boxes of crops of a coordinate image, resized to 2x2.

    Channel 0 of the coordinate image is x, channel 1 is y, in [0, 1]. The two
    samples per axis lie at 1/4 and 3/4 of the box.

    Returns:
        Tops, heights, lefts and widths, in pixels.
    """
    views = np.array(views, "float64")
    x, y = views[:, 0, :, 0], views[:, :, 0, 1]
    heights, widths = 2 * (y[:, 1] - y[:, 0]), 2 * (x[:, 1] - x[:, 0])
    tops, lefts = y[:, 0] - heights / 4, x[:, 0] - widths / 4
    return tops * height, heights * height, lefts * width, widths * width


def coordinates(height, width):
    """Image whose channel 0 is x and channel 1 is y, at the pixel centres."""
    image = np.zeros((height, width, 2), "float32")
    image[:, :, 0] = (np.arange(width) + 0.5) / width
    image[:, :, 1] = (np.arange(height)[:, None] + 0.5) / height
    return image
