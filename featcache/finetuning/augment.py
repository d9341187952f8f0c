"""Augment: random resized crop, mirror and colour jitter, drawn for each image.

What is drawn follows from the seed, the epoch and the image's place among the training rows, so
that neither batches nor threads change it. The transforms are torchvision's v2, image by image, or
the same arithmetic for a whole batch of small images at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from featcache.finetuning.options import Options

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

_TRIES = 10  # as torchvision's RandomResizedCrop
_RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Draws:
    """What is done to each of n images.

    Attributes
    ----------
    box : int64 tensor of shape (n, 4)
        Top, left, height and width of the crop, in pixels.
    flip : bool tensor of shape (n,)
    colour : float32 tensor of shape (n, 3)
        Factors of brightness, contrast and saturation.
    """

    box: Tensor
    flip: Tensor
    colour: Tensor

    def __getitem__(self, rows: Tensor) -> Draws:
        return Draws(self.box[rows], self.flip[rows], self.colour[rows])

    def to(self, device: torch.device) -> Draws:
        """The same on a device."""
        return Draws(self.box.to(device), self.flip.to(device), self.colour.to(device))


def draw(sizes: Tensor, options: Options, generator: torch.Generator) -> Draws:
    """Draw for images of these sizes, int64 (n, 2): height and width.

    The crop is that of torchvision's `RandomResizedCrop`: a share of the area between
    `crop_scale` and 1, a ratio between 3/4 and 4/3; after ten misfits the largest centred
    rectangle of a fitting ratio.
    """
    n = len(sizes)
    height, width = sizes[:, :1].double(), sizes[:, 1:].double()  # (n, 1)
    share = torch.rand(n, _TRIES, generator=generator, dtype=torch.float64)
    area = height * width * (options.crop_scale + (1 - options.crop_scale) * share)  # (n, tries)
    low, high = (math.log(ratio) for ratio in _RATIO)
    spread = torch.rand(n, _TRIES, generator=generator, dtype=torch.float64)
    ratio = torch.exp(low + (high - low) * spread)  # (n, tries)
    w, h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()  # (n, tries)
    fits = (w > 0) & (h > 0) & (w <= width) & (h <= height)
    first = fits.int().argmax(1, keepdim=True)  # (n, 1)
    some = fits.any(1, keepdim=True)  # (n, 1)
    wide = torch.minimum(width, (height * _RATIO[1]).round())
    tall = torch.minimum(height, (width / _RATIO[0]).round())
    w = torch.where(some, w.gather(1, first), wide)  # (n, 1)
    h = torch.where(some, h.gather(1, first), tall)  # (n, 1)
    place = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    top = torch.where(some, (place[:, :1] * (height - h + 1)).floor(), ((height - h) / 2).floor())
    left = torch.where(some, (place[:, 1:] * (width - w + 1)).floor(), ((width - w) / 2).floor())
    flip = torch.rand(n, generator=generator) < 0.5
    colour = 1 + options.jitter * (2 * torch.rand(n, 3, generator=generator) - 1)
    box = torch.cat((top, left, h, w), 1).long()  # (n, 4)
    return Draws(box, flip if options.flip else torch.zeros_like(flip), colour)


def crop_one(image: Tensor, box: Tensor, flip: Tensor, side: int) -> Tensor:
    """One uint8 image (3, h, w) cropped, resized with antialias and mirrored: (3, side, side)."""
    from torchvision.transforms.v2 import functional as transforms

    top, left, h, w = box.tolist()
    out: Tensor = transforms.resized_crop(image, top, left, h, w, [side, side], antialias=True)
    if flip:
        out = transforms.horizontal_flip(out)
    return out


def crop_batch(images: Tensor, draws: Draws, side: int) -> Tensor:
    """All uint8 images (b, 3, h, w) of a batch at once: float32 (b, 3, side, side), 0 … 1.

    Bilinear without antialias, which agrees with `crop_one` wherever the crop is no larger than
    `side`.
    """
    device = images.device
    height, width = images.shape[2:]
    box = draws.box.to(device, torch.float32)  # (b, 4)
    centre = (torch.arange(side, device=device) + 0.5) / side  # (side,)
    across = torch.where(draws.flip.to(device)[:, None], 1 - centre, centre)  # (b, side)
    # Clamped to the crop: a bare grid_sample would mix in the pixels beside it.
    y = _source(centre.expand(len(box), -1), box[:, 0:1], box[:, 2:3])  # (b, side)
    x = _source(across, box[:, 1:2], box[:, 3:4])  # (b, side)
    y, x = (2 * y + 1) / height - 1, (2 * x + 1) / width - 1
    shape = (len(box), side, side)
    grid = torch.stack((x[:, None, :].expand(shape), y[:, :, None].expand(shape)), -1)
    pixels = images.float().div_(255)  # (b, 3, h, w)
    return functional.grid_sample(pixels, grid, "bilinear", "border", align_corners=False)


def _source(place: Tensor, start: Tensor, length: Tensor) -> Tensor:
    """Pixel coordinates of places 0 … 1 within a crop."""
    return torch.minimum(torch.maximum(start + place * length - 0.5, start), start + length - 1)


def jitter(images: Tensor, colour: Tensor) -> Tensor:
    """Change brightness, contrast and saturation, in that order, as torchvision's `adjust_…` do.

    Parameters
    ----------
    images : float32 tensor of shape (b, 3, h, w), 0 … 1
    colour : float32 tensor of shape (b, 3)
        The three factors.
    """
    factors = colour.to(images.device)[:, :, None, None, None]  # (b, 3, 1, 1, 1)
    brightness, contrast, saturation = factors.unbind(1)  # (b, 1, 1, 1)
    images = (images * brightness).clamp_(0, 1)
    mean = _grey(images).mean((1, 2, 3), keepdim=True)  # (b, 1, 1, 1)
    images = torch.lerp(mean, images, contrast).clamp_(0, 1)
    return torch.lerp(_grey(images), images, saturation).clamp_(0, 1)


def _grey(images: Tensor) -> Tensor:
    """Luminance, (b, 1, h, w)."""
    return (images * _grey_weights(images.device)).sum(1, keepdim=True)


@cache
def _grey_weights(device: torch.device) -> Tensor:
    return torch.tensor((0.2989, 0.587, 0.114), device=device).view(1, 3, 1, 1)


def mixer(mixup: float, cutmix: float, classes: int) -> Mix | None:
    """torchvision's MixUp, CutMix, or one of the two drawn for each batch; None for neither.

    It takes images (b, 3, h, w) and classes (b,), and gives mixed images and targets (b, classes)
    whose rows sum to 1. It draws from torch's global state.
    """
    from torchvision.transforms import v2

    kinds: list[Any] = []
    if mixup:
        kinds.append(v2.MixUp(alpha=mixup, num_classes=classes))
    if cutmix:
        kinds.append(v2.CutMix(alpha=cutmix, num_classes=classes))
    if not kinds:
        return None
    mix: Mix = kinds[0] if len(kinds) == 1 else v2.RandomChoice(kinds)
    return mix
