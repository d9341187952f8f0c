"""Resizing: view, resize, crop and colour of many decoded images at a time, on any device.

Pillow resizes the rows and then the columns of an image, each as a weighted sum with weights of 22
bits, and rounds to 8 bits after each. Here both are products with a matrix of weights of 15 bits:
in units of 2^-15 every sum is a whole number below 2^24, which float32 holds exactly, in whatever
order it is added.
So a pixel depends neither on the device nor on the images beside it, and is at most one level off
Pillow's; where sides double all weights are the same, and so are the pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from featcache.extraction.preprocess import Preprocess, recoloured

_BITS = 15  # of a weight: the sizes of Lanczos weights add up to 1.9, and 255 * 2^15 * 1.9 < 2^24
_AT_ONCE = 2**24  # pixels that are float32 at the same time, 200 MB
_LARGEST = 2**22  # pixels of an image; larger ones would wait for one another in memory
_LONGEST = 20  # sides of images of which Pillow resizes the middle only


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp_(min=0)


def _cubic(x: Tensor) -> Tensor:
    x = x.abs()  # with a = -0.5, as in Pillow
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _lanczos(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 3, torch.sinc(x) * torch.sinc(x / 3), torch.zeros_like(x))


# Each with the distance beyond which it is 0.
_KERNELS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "bilinear": (_triangle, 1.0),
    "bicubic": (_cubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}
# Whether rows and columns change places, and whether the columns and the rows then run backwards.
_TURNS = {
    "none": (False, False, False),
    "hflip": (False, True, False),
    "vflip": (False, False, True),
    "rot180": (False, True, True),
    "rot90": (True, False, True),
    "rot270": (True, True, False),
}


def resizes(preprocess: Preprocess) -> bool:
    """Whether a device can do what Pillow does for this preprocessing."""
    return not preprocess.filters and preprocess.interpolation in _KERNELS


def takes(width: int, height: int) -> bool:
    """Whether an image of this size is one for the device; others are left to Pillow."""
    return width * height <= _LARGEST and max(width, height) <= _LONGEST * min(width, height)


def cut(images: Tensor, sizes: Tensor, preprocess: Preprocess) -> Tensor:
    """What `Preprocess.cut` makes of each image, on the device that they lie on.

    Parameters
    ----------
    images : uint8 tensor of shape (n, h, w, 3)
        RGB; of smaller ones than h × w the rest is anything.
    sizes : int tensor of shape (n, 2), or (1, 2) for one size of all
        Height and width, on the same device.
    preprocess : Preprocess
        One that `resizes`.

    Returns
    -------
    uint8 tensor of shape (n, 3, crop, crop), channels last in memory
    """
    n, h, w, _ = images.shape
    step = max(1, _AT_ONCE // (h * w))
    parts = [
        _cut(images[at : at + step], sizes[at % len(sizes) :][:step], preprocess)
        for at in range(0, n, step)
    ]  # fmt: skip
    done = parts[0] if len(parts) == 1 else torch.cat(parts)  # (n, 3, crop, crop)
    if preprocess.colour == "RGB":
        return done.contiguous(memory_format=torch.channels_last)
    r, g, b = done.to(torch.int64).unbind(1)  # (n, crop, crop) each
    table = _colour_table(preprocess.colour, str(done.device))
    return table[(r << 16) + (g << 8) + b].permute(0, 3, 1, 2)


def _cut(images: Tensor, sizes: Tensor, preprocess: Preprocess) -> Tensor:
    transposed, columns_back, rows_back = _TURNS[preprocess.view]
    h, w = sizes.to(torch.float64).unbind(1)  # (n,), or (1,)
    x = images.permute(0, 3, 1, 2)  # (n, 3, h, w)
    if transposed:
        x, h, w = x.transpose(2, 3), w, h
    # What Preprocess._resized computes, for all at once; halves are rounded to even in both.
    short = torch.minimum(h, w)
    height = (preprocess.resize * h / short).floor()
    width = (preprocess.resize * w / short).floor()
    top = ((height - preprocess.crop) / 2).round()
    left = ((width - preprocess.crop) / 2).round()
    of_columns = _weights(w, width, left, x.shape[3], columns_back, preprocess)  # (n or 1, crop, w)
    of_rows = _weights(h, height, top, x.shape[2], rows_back, preprocess)  # (n or 1, crop, h)
    flat = x.to(of_columns.dtype).reshape(len(x), -1, x.shape[3])  # (n, 3 * h, w)
    bounded = preprocess.interpolation == "bilinear"  # by the pixels: no weight is below 0
    across = of_columns[0] if len(of_columns) == 1 else of_columns
    x = _plus_half(flat @ across.mT, bounded).floor_().view(len(x), 3, x.shape[2], -1)
    return _plus_half(of_rows[:, None] @ x, bounded).to(torch.uint8)  # (n, 3, crop, crop)


def _plus_half(sums: Tensor, bounded: bool) -> Tensor:
    """Sums whose whole part is the level 0 … 255, halves rounded up as Pillow does."""
    sums.add_(0.5)
    return sums if bounded else sums.clamp_(0, 255)


def _weights(
    length: Tensor, resized: Tensor, first: Tensor, side: int, back: bool, preprocess: Preprocess
) -> Tensor:
    """How much each of the pixels of a row counts for each of the pixels kept of the resized row.

    Parameters
    ----------
    length, resized, first : float64 tensors of shape (n,)
        Pixels of the row, before and after resizing, and the first of those that are kept.
    side : int
        Pixels of a row in memory, at least `length`.
    back : bool
        Whether the row runs backwards.
    preprocess : Preprocess

    Returns
    -------
    float tensor of shape (n, crop, side)
        Multiples of 2^-15; each row adds up to 1.
    """
    kernel, support = _KERNELS[preprocess.interpolation]
    length, resized, first = (v.view(-1, 1, 1) for v in (length, resized, first))  # (n, 1, 1)
    scale = length / resized
    stretch = scale.clamp(min=1)
    kept = torch.arange(preprocess.crop, device=length.device, dtype=torch.float64).view(1, -1, 1)
    middle = (first + kept + 0.5) * scale  # (n, crop, 1)
    at = torch.arange(side, device=length.device, dtype=torch.float64).view(1, 1, -1)
    at = length - 1 - at if back else at  # (1 or n, 1, side)
    low = (middle - support * stretch + 0.5).floor().clamp(min=0)
    high = torch.minimum((middle + support * stretch + 0.5).floor(), length)
    found = kernel((at - middle + 0.5) / stretch)  # (n, crop, side)
    found = torch.where((at >= low) & (at < high), found, torch.zeros_like(found))
    found = (found * (2.0**_BITS / found.sum(-1, keepdim=True))).round_()
    rest = 2.0**_BITS - found.sum(-1, keepdim=True)  # (n, crop, 1)
    found.scatter_add_(-1, found.argmax(-1, keepdim=True), rest).mul_(2.0**-_BITS)
    # Where float32 products may be rounded on the way (TF32, bf16), float64 ones are not.
    exact = torch.get_float32_matmul_precision() == "highest"
    return found.to(torch.float32) if exact else found


@lru_cache(maxsize=4)
def _colour_table(colour: str, device: str) -> Tensor:
    """What Pillow makes of each of the 2^24 colours, uint8 of shape (2^24, 3); 50 MB."""
    level = np.arange(256, dtype=np.uint8)
    table = np.empty((256, 256, 256, 3), np.uint8)
    table[..., 0] = level[:, None, None]
    table[..., 1] = level[:, None]
    table[..., 2] = level
    flat = table.reshape(1, 4096, 4096, 3).transpose(0, 3, 1, 2)  # (1, 3, 4096, 4096)
    done = recoloured(flat, colour).transpose(0, 2, 3, 1).reshape(-1, 3)  # (2^24, 3)
    return torch.from_numpy(np.array(done)).to(device)
