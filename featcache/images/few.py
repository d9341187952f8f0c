"""Few: a part of the images, the same number of each class."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.images.manifest import Images, check_name


def few(images: Images, most: int, seed: int = 0) -> Images:
    """At most so many images of each class, drawn at random, as a data set of its own.

    The splits keep their shares of a class, as nearly as whole images allow, and each that has
    images of it keeps one at least, where `most` allows. Rows keep their order.

    Parameters
    ----------
    images : Images
    most : int
        Images of a class, over all splits together.
    seed : int, default 0

    Returns
    -------
    Images
        Called `<name>-<most>`, so that a cache never takes it for the whole.
    """
    rng = np.random.default_rng(seed)
    kept: list[int] = []
    for label in np.unique(images.labels).tolist():
        mine = np.flatnonzero(images.labels == label)
        parts = [mine[images.split[mine] == name] for name in np.unique(images.split[mine])]
        shares = _shares([len(part) for part in parts], most)
        for part, share in zip(parts, shares, strict=True):
            kept += rng.permutation(part)[:share].tolist()
    rows = np.sort(np.array(kept, np.intp))
    where = rows.tolist()

    def take(column: NDArray[Any]) -> NDArray[Any]:
        return column[rows] if len(column) else column

    return replace(
        images,
        name=check_name(f"{images.name}-{most}"),
        ids=take(images.ids),
        sha256=take(images.sha256),
        labels=take(images.labels),
        groups=take(images.groups),
        split=take(images.split),
        size=take(images.size),
        mtime_ns=take(images.mtime_ns),
        read=lambda row: images.read(where[row]),
    )


def _shares(counts: list[int], most: int) -> list[int]:
    """`most` divided in proportion to the counts, by the largest remainders; 1 each at least."""
    total = sum(counts)
    if total <= most:
        return counts
    exact = [most * count / total for count in counts]
    shares = [max(1, int(share)) for share in exact]
    by_rest = sorted(range(len(counts)), key=lambda i: int(exact[i]) - exact[i])
    for i in by_rest:
        if sum(shares) < most and shares[i] < counts[i]:
            shares[i] += 1
    while sum(shares) > most and max(shares) > 1:
        shares[shares.index(max(shares))] -= 1
    return shares
