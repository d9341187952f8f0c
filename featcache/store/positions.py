"""Positions: where contents stand in a file, whatever the order of either."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from featcache.store.checksum import Digests


def positions(wanted: Digests, have: Digests) -> NDArray[np.intp]:
    """Where each wanted digest stands in `have`, -1 where it does not; shape (len(wanted),)."""
    if np.array_equal(wanted, have):
        return np.arange(len(have), dtype=np.intp)
    where = {have[i].tobytes(): i for i in range(len(have))}
    return np.fromiter(
        (where.get(wanted[i].tobytes(), -1) for i in range(len(wanted))), np.intp, len(wanted)
    )
