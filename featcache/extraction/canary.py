"""Canary: built-in images that tell which precision a network bears, and what they have told.

They are the same on every machine, so that a backbone's precision doesn't depend on the images of
a data set.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featcache.atomic import regular, replacing
from featcache.extraction.preprocess import Pixels, Preprocess
from featcache.hashing import sha256_json

CANARY = 0.999  # least cosine between a fast vector and the fp32 one
VERDICTS = ".canary.json"  # in the cache folder

_SIDE = 256
_LEAVES = 300  # discs in an image

Array = NDArray[np.float64]


def canary_pixels(preprocess: Preprocess) -> Pixels:
    """The built-in images as a network takes them, uint8 (16, 3, crop, crop)."""
    return np.stack([preprocess.cut(Image.fromarray(image)) for image in canary_images()])


@cache
def canary_images() -> Pixels:
    """Images whose edges, shading and spectrum are those of photographs.

    Raw integers of the generator and plain arithmetic: the same bits for every version of numpy.

    Returns
    -------
    uint8 array of shape (16, 256, 256, 3)
    """
    random = _Random()
    fall_off = np.linspace(0.5, 1.0, 8).tolist()
    images = [_leaves(random) for _ in fall_off] + [_noise(random, fall) for fall in fall_off]
    return np.rint(np.clip(np.stack(images), 0.0, 1.0) * 255.0).astype(np.uint8)


class _Random:
    """Numbers from 0 to 1."""

    def __init__(self) -> None:
        self._raw = np.random.Philox(key=17)

    def __call__(self, *shape: int) -> Array:
        whole = self._raw.random_raw(int(np.prod(shape))) >> np.uint64(11)
        return whole.reshape(shape).astype(np.float64) * 2.0**-53


def _leaves(random: _Random) -> Array:
    """Discs in front of one another, each with a colour and a shade, of all sizes; (h, w, 3)."""
    canvas = np.broadcast_to(random(3), (_SIDE, _SIDE, 3)).copy()
    small, large = 5.0, 100.0
    radii = small / np.sqrt(1.0 - random(_LEAVES) * (1.0 - (small / large) ** 2))
    centres = random(_LEAVES, 2) * 1.2 * _SIDE - 0.1 * _SIDE
    colours = 0.6 * random(_LEAVES, 1) + 0.4 * random(_LEAVES, 3)
    slopes = random(_LEAVES, 2) - 0.5
    pixels = np.arange(_SIDE)
    for radius, (y, x), colour, (down, right) in zip(radii, centres, colours, slopes, strict=True):
        rows = slice(max(0, int(y - radius)), max(0, int(y + radius) + 2))
        columns = slice(max(0, int(x - radius)), max(0, int(x + radius) + 2))
        dy = (pixels[rows, None] - y) / radius  # (h, 1)
        dx = (pixels[None, columns] - x) / radius  # (1, w)
        inside = dy * dy + dx * dx <= 1.0  # (h, w)
        shade = 1.0 + down * dy + right * dx  # (h, w)
        canvas[rows, columns][inside] = shade[inside][:, None] * colour
    return canvas + 0.08 * (random(_SIDE, _SIDE, 1) - 0.5)  # grain


def _noise(random: _Random, fall: float) -> Array:
    """Smooth noise at scales of 128 to 1 pixels, each weaker by `fall` than the one before."""
    total = np.zeros((2, 2, 3))
    for octave in range(1, 9):
        total = _doubled(_doubled(total).swapaxes(0, 1)).swapaxes(0, 1)  # (2**octave + 1, …, 3)
        grid = 0.8 * random(*total.shape[:2], 1) + 0.4 * random(*total.shape) - 0.6
        total += grid * fall**octave
    total = total[:_SIDE, :_SIDE]
    image: Array = 0.3 + 0.4 * random(1) + 0.6 * total / np.abs(total).max()
    return image


def _doubled(rows: Array) -> Array:
    """With the mean of each two neighbours between them, (n, …) -> (2 n - 1, …)."""
    between = np.empty((2 * len(rows) - 1, *rows.shape[1:]))
    between[::2] = rows
    between[1::2] = (rows[:-1] + rows[1:]) / 2.0
    return between


@dataclass(frozen=True)
class Verdict:
    """What the canary has told of a backbone.

    Attributes
    ----------
    precision : str
        The first that the network bears; "fp32" if it bears none faster.
    engine : str
        The kind that computes in it.
    cosine : float
        The least one with fp32, of the precision that was tried last.
    """

    precision: str
    engine: str
    cosine: float


@dataclass(frozen=True)
class Question:
    """All that a verdict depends on. Verdicts are kept in a file of the cache folder.

    Attributes
    ----------
    backbone : str
        Digest of its fp32 key without a view.
    device, torch, featcache : str
        The device's name, and versions.
    engine : str
        The kind that is tried before "eager".
    precisions : tuple of str
        Those that are tried, in order.
    """

    backbone: str
    device: str
    torch: str
    featcache: str
    engine: str
    precisions: tuple[str, ...]

    def recall(self, folder: Path) -> Verdict | None:
        """The verdict that is kept; None if there is none that makes sense."""
        try:
            found = _read(folder)[str(self)]
            verdict = Verdict(found["precision"], found["engine"], float(found["cosine"]))
            if found["sha256"] != self._digest(verdict):
                return None
        except (OSError, ValueError, LookupError, TypeError, OverflowError):
            return None
        bears = verdict.precision in self.precisions and verdict.cosine >= CANARY
        sound = bears or (verdict.precision == "fp32" and verdict.cosine < CANARY)
        return verdict if sound and verdict.engine in (self.engine, "eager") else None

    def remember(self, folder: Path, verdict: Verdict) -> None:
        """Keep a verdict, if the folder can be written."""
        kept: dict[str, Any] = {}
        with suppress(OSError, ValueError, TypeError):
            kept = dict(_read(folder))
        kept[str(self)] = asdict(verdict) | {"sha256": self._digest(verdict)}
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(folder / VERDICTS) as temporary:
                temporary.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")

    def _digest(self, verdict: Verdict) -> str:
        return sha256_json([str(self), asdict(verdict)])

    def __str__(self) -> str:
        return (
            f"{self.backbone} in {' or '.join(self.precisions)}, {self.engine}, on {self.device}, "
            f"torch {self.torch}, featcache {self.featcache}"
        )


def _read(folder: Path) -> Any:
    try:
        return json.loads(regular(folder / VERDICTS).read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
