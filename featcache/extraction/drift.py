"""Drift: whether this machine still gives the vectors that are stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import CacheRefused
from featcache.extraction.network import Network
from featcache.extraction.preprocess import Preprocess
from featcache.extraction.sample import cosine, load_sample
from featcache.images.manifest import Images

# Least cosine between a stored vector and the same image embedded again. Another library
# version, device or engine rounds otherwise; anything below is another function.
TOLERANCE = {"fp32": 0.9999, "bf16": 0.995, "fp16": 0.995}


def refuse_drift(
    network: Network,
    preprocess: Preprocess,
    images: Images,
    rows: NDArray[np.intp],
    stored: NDArray[np.float32],
    *,
    precision: str,
    where: str,
    then: Mapping[str, Any],
    now: Mapping[str, Any],
) -> None:
    """Embed images again and compare with what is stored.

    Parameters
    ----------
    network : Network
    preprocess : Preprocess
    images : Images
    rows : int array of shape (n,)
        Rows of the manifest.
    stored : float32 array of shape (n, d)
        Their stored vectors.
    precision : str
        Which `TOLERANCE` holds.
    where : str
        The file, for the error.
    then, now : mapping
        Versions and device when they were stored, and now.

    Raises
    ------
    CacheRefused
        Where a cosine is below the tolerance; it says what has changed since.
    """
    found = cosines(network, preprocess, images, rows, stored)
    worst = float(found.min(initial=1.0))
    if worst >= TOLERANCE[precision]:
        return
    changed = [f"{name} {then[name]} → {now[name]}" for name in now
               if name in then and then[name] != now[name]]  # fmt: skip
    raise CacheRefused(
        f"{where} holds vectors that this machine does not give any more: cosine {worst:.4f}, "
        f"at least {TOLERANCE[precision]} expected; changed since: "
        f"{', '.join(changed) or 'nothing that is recorded'}",
        "Use the versions and device it was made with, or move it away to extract everything anew.",
    )


def cosines(
    network: Network,
    preprocess: Preprocess,
    images: Images,
    rows: NDArray[np.intp],
    stored: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Cosine between each stored vector and the same image embedded now, shape (n,).

    Images that have changed, or can't be read or decoded any more, are left out.
    """
    pixels, kept = load_sample(images, rows, preprocess)
    if not len(kept):
        return np.ones(0)
    return cosine(stored[kept], network.run(pixels))
