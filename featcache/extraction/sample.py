"""Sample: a few images loaded and compared, for checks before the work begins."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from featcache.extraction.preprocess import Pixels, Preprocess
from featcache.hashing import sha256_bytes
from featcache.images.decode import BadImage, decode
from featcache.images.manifest import Images

Rows = NDArray[np.intp]


def spread(rows: Rows, count: int) -> Rows:
    """At most `count` of the rows, evenly spread."""
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.intp)]


def load_sample(images: Images, rows: Rows, preprocess: Preprocess) -> tuple[Pixels, Rows]:
    """Load images one after another.

    Returns
    -------
    pixels : uint8 array of shape (k, 3, crop, crop)
    kept : int array of shape (k,)
        Which of `rows` they are; those that have changed, or can't be read or decoded, are left
        out.
    """
    pixels, kept = [], []
    for i, row in enumerate(rows.tolist()):
        try:
            content = images.read(row)
            if isinstance(content, bytes) and sha256_bytes(content) != images.sha256[row]:
                continue
            pixels.append(preprocess.cut(decode(content, preprocess.alpha, preprocess.at_least)))
        except (BadImage, OSError):
            continue
        kept.append(i)
    side = preprocess.crop
    stack = np.stack(pixels) if pixels else np.empty((0, 3, side, side), np.uint8)
    return stack, np.array(kept, np.intp)


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine between the rows of two arrays of shape (n, d), shape (n,); 1 where both are equal."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)  # (n,)
    found = (x * y).sum(axis=1) / np.where(lengths > 0, lengths, 1.0)  # (n,)
    result: NDArray[np.float64] = np.where((x == y).all(axis=1), 1.0, found)
    return result
