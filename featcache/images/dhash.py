"""dHash: 256 bits of what a picture looks like, by which near duplicates are found.

In eight strips across the picture and eight down it, of 17 cells each: is a cell brighter than the
next? A flip or a quarter turn of the picture only moves bits, and inverts some of them, so that the
hashes of all eight come from one. Cells that differ by a grey level or less count as if the picture
were a trace brighter in its middle: a flat picture's hash is `FLAT`, turned or not, and neither
noise nor JPEG changes it. After Krawetz (2013), Kind of Like That.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

Hashes = NDArray[np.uint8]

BYTES = 32
_STRIPS, _CELLS = 8, 17
ENOUGH = 8 * _CELLS  # pixels a side that a hash is taken from, if there are more than twice as many
_TRACE = np.where(np.arange(_CELLS - 1) < _CELLS // 2, 1.5, -1.5)  # (16,) grey levels
FLAT: Hashes = np.packbits(np.broadcast_to(_TRACE < 0, (2, _STRIPS, _CELLS - 1)))  # (32,)


def no_hashes() -> Hashes:
    """Of images of which none is known: shape (0, 32)."""
    return np.zeros((0, BYTES), np.uint8)


def dhash(image: Image.Image) -> Hashes:
    """The hash of a picture, of shape (32,).

    Parameters
    ----------
    image : PIL.Image.Image
        As `decode` gives it, also if that was at a fraction of its size.
    """
    from PIL.Image import Resampling

    by = max(1, min(image.size) // ENOUGH)
    whole = (0.0, 0.0, image.width / by, image.height / by)
    grey = (image.reduce(by) if by > 1 else image).convert("L")
    across, down = (
        np.asarray(grey.resize(size, Resampling.BILINEAR, box=whole), np.int16)
        for size in ((_CELLS, _STRIPS), (_STRIPS, _CELLS))
    )
    cells = np.stack([across, down.T])  # (2, 8, 17)
    return np.packbits(cells[..., :-1] - cells[..., 1:] > _TRACE)


def symmetries(hashes: Hashes) -> Iterator[Hashes]:
    """The hashes (n, 32), then those of the pictures flipped and turned: eight arrays."""
    bits = np.unpackbits(hashes, axis=1).reshape(-1, 2, _STRIPS, _CELLS - 1)  # (n, 2, 8, 16)
    for across, down in ((0, 1), (1, 0)):  # the second time reflected in the diagonal
        for mirrored in (False, True):
            for upside_down in (False, True):
                turned = bits[:, (across, down)]  # (n, 2, 8, 16)
                if mirrored:
                    turned[:, 0] = 1 - turned[:, 0, :, ::-1]
                    turned[:, 1] = turned[:, 1, ::-1].copy()
                if upside_down:
                    turned[:, 0] = turned[:, 0, ::-1].copy()
                    turned[:, 1] = 1 - turned[:, 1, :, ::-1]
                yield np.packbits(turned.reshape(-1, 8 * BYTES), axis=1)


def to_hashes(cells: list[str]) -> Hashes:
    """Hex digits, or "" where none is known, as an array of shape (n, 32); zeros for ""."""
    none = "0" * 2 * BYTES
    plain = bytes.fromhex("".join(cell or none for cell in cells))
    return np.frombuffer(plain, np.uint8).reshape(-1, BYTES)


def to_cells(hashes: Hashes) -> list[str]:
    """The inverse of `to_hashes`."""
    text, width, none = hashes.tobytes().hex(), 2 * BYTES, "0" * 2 * BYTES
    cells = (text[at : at + width] for at in range(0, len(text), width))
    return ["" if cell == none else cell for cell in cells]
