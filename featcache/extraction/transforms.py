"""Transforms: filters of the whole image before it is resized, and colour spaces.

A filter is written as its name, and if it has a width as `name-SIGMA`, in pixels of the image as
it is stored: filters come before resizing, so that a width means the same structure whatever the
size that a network sees. They are scipy's and Pillow's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from featcache.errors import FeatcacheError, RecipeError, unknown
from featcache.store.spec import parse_filter

if TYPE_CHECKING:
    from PIL import ImageCms


Plane = NDArray[np.float32]

WIDEST = 100.0  # pixels: a wider one takes minutes an image


def filtered(image: Image.Image, filters: Sequence[str]) -> Image.Image:
    """An image with filters applied, the first one first.

    Parameters
    ----------
    image : PIL.Image.Image
        Mode RGB.
    filters : sequence of str
        As `check_filters` passes them.

    Returns
    -------
    PIL.Image.Image
        Mode RGB, of the same size.
    """
    for one in filters:
        name, _, sigma = one.partition("-")
        image = FILTERS[name](image) if name in FILTERS else _each(image, WITH_SIGMA[name], sigma)
    return image


def check_filters(filters: Sequence[str]) -> None:
    """Refuse what is no filter.

    Raises
    ------
    UnknownName
        For a name that there is not.
    RecipeError
        For a width that is missing, or none.
    """
    for one in filters:
        name, dash, number = one.partition("-")
        if name not in (*FILTERS, *WITH_SIGMA):
            raise unknown("filter", name, (*FILTERS, *WITH_SIGMA), "Several are joined by +.")
        if name in FILTERS:
            if dash:
                raise RecipeError(f"filter {one!r}: {name} has no width", f"Write {name}.")
            continue
        if not 0 < _number(number) <= WIDEST:
            raise RecipeError(
                f"filter {one!r} needs a width above 0 and up to {WIDEST:g} pixels",
                f"For instance {name}-1.5.",
            )
        if parse_filter(one) != (one,):
            raise RecipeError(f"filter {one!r} is not in its plain form", *parse_filter(one))


def _equalised(image: Image.Image) -> Image.Image:
    """Histogram equalisation of the luminance: colours keep their hue."""
    luminance, blue, red = image.convert("YCbCr").split()
    return Image.merge("YCbCr", (ImageOps.equalize(luminance), blue, red)).convert("RGB")


def _smoothed(plane: Plane, sigma: float) -> Plane:
    from scipy.ndimage import gaussian_filter

    smooth: Plane = gaussian_filter(plane, sigma)
    return smooth


def _laplacian(plane: Plane, sigma: float) -> Plane:
    """The Laplacian of Gaussian about a middle grey.

    Times sigma squared, it is as large for a wide structure as for a narrow one of the same
    contrast; a flat image becomes 128, and what is beyond 0 … 255 is cut.
    """
    from scipy.ndimage import gaussian_laplace

    response: Plane = gaussian_laplace(plane, sigma)
    return response * np.float32(sigma**2) + 128


def _each(image: Image.Image, work: Callable[[Plane, float], Plane], sigma: str) -> Image.Image:
    """Each channel by itself, in float32, then rounded."""
    pixels = np.asarray(image)  # (h, w, 3)
    done = np.empty_like(pixels)
    for channel in range(pixels.shape[2]):
        plane = work(pixels[:, :, channel].astype(np.float32), float(sigma))  # (h, w)
        done[:, :, channel] = np.clip(np.rint(plane), 0, 255)
    return Image.fromarray(done)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


FILTERS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "equalise": _equalised,
}
WITH_SIGMA: dict[str, Callable[[Plane, float], Plane]] = {
    "gaussian": _smoothed,
    "log": _laplacian,
}


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
