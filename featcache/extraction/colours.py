"""Colours: the colour space in which a network sees the pixels, by Pillow."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featcache.errors import FeatcacheError

if TYPE_CHECKING:
    from PIL import ImageCms


def recoloured(pixels: NDArray[np.uint8], colour: str) -> NDArray[np.uint8]:
    """RGB pixels in another colour space.

    Each pixel by itself: this comes last, after resizing, since a mean of two hues is no hue
    between them.

    Parameters
    ----------
    pixels : uint8 array of shape (n, 3, h, w) or (3, h, w)
    colour : str
        A name in `COLOURS`.

    Returns
    -------
    uint8 array of the same shape
    """
    if colour == "RGB" or not pixels.size:
        return pixels
    last = np.moveaxis(pixels, -3, -1)  # (…, h, w, 3)
    image = Image.fromarray(np.ascontiguousarray(last.reshape(-1, last.shape[-2], 3)))
    done = np.asarray(COLOURS[colour](image))  # (n * h, w, 3)
    return np.moveaxis(done.reshape(last.shape), -1, -3)


def _grey(image: Image.Image) -> Image.Image:
    """Luminance, three times: networks take three channels."""
    return Image.merge("RGB", [image.convert("L")] * 3)


def _lab(image: Image.Image) -> Image.Image:
    """CIELAB under D50: L from 0 to 255 for 0 to 100, a and b with 128 for none."""
    # Band by band: of a whole LAB image Pillow gives a and b with 0 for none, so that they wrap.
    return Image.merge("RGB", _to_lab().apply(image).split())


@cache
def _to_lab() -> ImageCms.ImageCmsTransform:
    try:
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.buildTransform(*profiles, "RGB", "LAB")
    except ImportError as error:
        raise FeatcacheError(
            f"this Pillow has no colour management: {error}", "pip install --force-reinstall pillow"
        ) from None


COLOURS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "RGB": lambda image: image,
    "HSV": lambda image: image.convert("HSV"),
    "LAB": _lab,
    "YCbCr": lambda image: image.convert("YCbCr"),
    "grey": _grey,
}
