"""Preprocess: what happens to a decoded image before the network, as plain data.

The tables at the foot name the views, filters and colour spaces.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from featcache.errors import FeatcacheError, RecipeError, unknown
from featcache.images.decode import POLICY
from featcache.store.spec import parse_filter

if TYPE_CHECKING:
    import torch
    from PIL import ImageCms

Pixels = NDArray[np.uint8]
Plane = NDArray[np.float32]

# Resized to a shorter side of 256, a strip of 1 × 5,000 pixels would have 327 million. Of a
# longer one only the middle is resized: the centre crop sees nothing else.
_LONGEST = 20
LARGEST = 16_384  # pixels: beyond it one image alone takes gigabytes
WIDEST = 100.0  # pixels: a wider one takes minutes an image
SCALES = ("own", "0-1")


@dataclass(frozen=True)
class Preprocess:
    """Decode, view, filter, resize, crop, change the colour space, scale to 0 … 1, normalise.

    Attributes
    ----------
    resize : int
        Length of the shorter side after resizing, in pixels.
    crop : int
        Side of the square cut from the centre, in pixels.
    interpolation : {"bilinear", "bicubic", "nearest", "lanczos"}
    mean, std : tuple of three floats
        Subtracted from, and divided into, each channel of 0 … 1.
    antialias : bool
        Pillow always smooths when it makes smaller; False is refused.
    colour : {"RGB", "HSV", "LAB", "YCbCr", "grey"}
    alpha : {"white", "black"}
        What shows through transparent pixels.
    view : str
        A name in `VIEWS`.
    decode : int
        The version of the decode policy.
    filters : tuple of str
        Applied to the whole image, the first one first: "equalise", "gaussian-1.5", "log-2".
    """

    resize: int = 256
    crop: int = 224
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    antialias: bool = True
    colour: str = "RGB"
    alpha: str = "white"
    view: str = "none"
    decode: int = POLICY
    filters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise RecipeError(f"crop {self.crop} must be between 1 and resize {self.resize} pixels")
        if self.view not in VIEWS:
            raise unknown("view", self.view, VIEWS)
        if self.interpolation not in _resamplings():
            raise unknown("interpolation", self.interpolation, _resamplings())
        if self.colour not in COLOURS:
            raise unknown("colour", self.colour, COLOURS)
        if not self.antialias or self.decode != POLICY:
            raise RecipeError("only with antialias, in the current decode policy")
        check_filters(self.filters)

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it; without filters there is no word of them, as in older keys."""
        values = asdict(self)
        if not self.filters:
            del values["filters"]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def at(self, image_size: int | None) -> Preprocess:
        """The same with another crop, the shorter side scaled along.

        Parameters
        ----------
        image_size : int or None
            Side of the crop in pixels, 1 … 16,384; None leaves it.

        Raises
        ------
        RecipeError
            For another size.
        """
        if image_size is None:
            return self
        if not 1 <= image_size <= LARGEST:
            raise RecipeError(f"image size {image_size} is not between 1 and {LARGEST} pixels",
                              "Choose another --image-size.")  # fmt: skip
        return replace(self, crop=image_size, resize=round(self.resize * image_size / self.crop))

    def changed(
        self, colour: str | None = None, filter: str | None = None, scale: str | None = None
    ) -> Preprocess:
        """The same with options in the words of a spec; None leaves what is there.

        Parameters
        ----------
        colour : str, optional
            A name in `COLOURS`, in small letters or large.
        filter : str, optional
            As "equalise+gaussian-1.5", or "none".
        scale : str, optional
            "own", the normalisation that is there, or "0-1": none beyond 0 … 1.

        Raises
        ------
        UnknownName, RecipeError
            For a word that means nothing.
        """
        changes: dict[str, Any] = {}
        if colour is not None:
            names = {name.lower(): name for name in COLOURS}
            if colour.lower() not in names:
                raise unknown("colour", colour, names)
            changes["colour"] = names[colour.lower()]
        if filter is not None:
            changes["filters"] = parse_filter(filter)
        if scale not in (None, *SCALES):
            raise unknown("scale", str(scale), SCALES)
        if scale == "0-1":
            changes |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
        return replace(self, **changes)

    def cut(self, image: Image.Image) -> Pixels:
        """All before the scaling of a decoded image; resized as torchvision does Pillow images.

        Parameters
        ----------
        image : PIL.Image.Image
            Mode RGB, as `decode` gives it.

        Returns
        -------
        uint8 array of shape (3, crop, crop)
        """
        image = _middle(self.prepare(image))
        width, height = image.size
        size, (left, top) = self._resized(width, height)
        if size != image.size:
            image = image.resize(size, _resamplings()[self.interpolation])
        image = image.crop((left, top, left + self.crop, top + self.crop))
        return recoloured(np.asarray(image).transpose(2, 0, 1), self.colour)  # (3, crop, crop)

    @property
    def at_least(self) -> int:
        """Shorter side that `decode` has to leave, in pixels.

        Four for each that resizing keeps: the vectors then have a cosine of 0.9998 or more with
        those of the whole image (measured on photographs of 7 megapixels). 0, all of it, where
        there are filters: their widths are in its pixels.
        """
        return 0 if self.filters else 4 * self.resize

    def prepare(self, image: Image.Image) -> Image.Image:
        """The view of an image, filtered."""
        return filtered(VIEWS[self.view](image), self.filters)

    def doubles(self, image: Image.Image) -> bool:
        """Whether resizing doubles the sides of a square image, once or several times.

        The weights of bilinear interpolation are then multiples of a power of two, and every
        implementation gives the same: `cut_together` can take it.
        """
        times, rest = divmod(self.resize, image.width)
        whole = rest == 0 and times > 1 and times & (times - 1) == 0
        return whole and image.width == image.height and self.interpolation == "bilinear"

    def cut_together(self, images: Pixels) -> Pixels:
        """`cut` for small images of one size, many times faster and with the same result.

        Parameters
        ----------
        images : uint8 array of shape (n, h, h, 3)
            From `prepare`; of a size that `doubles`.

        Returns
        -------
        uint8 array of shape (n, 3, crop, crop)
        """
        import torch
        from torch.nn.functional import interpolate

        (width, height), (left, top) = self._resized(images.shape[2], images.shape[1])
        batch = torch.from_numpy(images).permute(0, 3, 1, 2)  # (n, 3, h, w)
        batch = interpolate(batch, (height, width), mode=self.interpolation, antialias=True)
        cut = batch[:, :, top : top + self.crop, left : left + self.crop].numpy()
        return recoloured(cut, self.colour)

    def _resized(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Width and height after resizing, and the left and top of the crop in it."""
        short = min(width, height)
        # torchvision.transforms.functional: the longer side is rounded down
        w, h = self.resize * width // short, self.resize * height // short
        return (w, h), (round((w - self.crop) / 2), round((h - self.crop) / 2))

    def normalise(self, batch: torch.Tensor) -> torch.Tensor:
        """Pixels as the network takes them: scaled to 0 … 1, less the mean, over the deviation.

        Parameters
        ----------
        batch : uint8 tensor of shape (n, 3, h, w)
            On any device.

        Returns
        -------
        float32 tensor of the same shape, on that device
        """
        mean = batch.new_tensor(self.mean, dtype=_float32()).view(1, 3, 1, 1)
        std = batch.new_tensor(self.std, dtype=_float32()).view(1, 3, 1, 1)
        return batch.to(_float32()).div_(255).sub_(mean).div_(std)  # (n, 3, h, w)


def from_plain(plain: Mapping[str, Any]) -> Preprocess:
    """The inverse of `Preprocess.plain`."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
    return Preprocess(**values)


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


def recoloured(pixels: Pixels, colour: str) -> Pixels:
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


def _middle(image: Image.Image) -> Image.Image:
    width, height = image.size
    short = min(width, height)
    if max(width, height) <= _LONGEST * short:
        return image
    w, h = min(width, _LONGEST * short), min(height, _LONGEST * short)
    left, top = (width - w) // 2, (height - h) // 2
    return image.crop((left, top, left + w, top + h))


def _resamplings() -> dict[str, Image.Resampling]:
    names = ("nearest", "bilinear", "bicubic", "lanczos")
    return {name: Image.Resampling[name.upper()] for name in names}


def _float32() -> torch.dtype:
    import torch

    return torch.float32


def _turned(method: Image.Transpose) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.transpose(method)


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


def check_views(names: Sequence[str]) -> None:
    """Refuse what is no view.

    Raises
    ------
    UnknownName
    """
    for name in names:
        if name not in VIEWS:
            raise unknown("view", name, [known for known in VIEWS if known != "none"])


VIEWS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "none": lambda image: image,
    "hflip": ImageOps.mirror,
    "vflip": ImageOps.flip,
    "rot90": _turned(Image.Transpose.ROTATE_90),
    "rot180": _turned(Image.Transpose.ROTATE_180),
    "rot270": _turned(Image.Transpose.ROTATE_270),
}
FILTERS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "equalise": _equalised,
}
WITH_SIGMA: dict[str, Callable[[Plane, float], Plane]] = {
    "gaussian": _smoothed,
    "log": _laplacian,
}
COLOURS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "RGB": lambda image: image,
    "HSV": lambda image: image.convert("HSV"),
    "LAB": _lab,
    "YCbCr": lambda image: image.convert("YCbCr"),
    "grey": _grey,
}
