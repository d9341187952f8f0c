"""Where each backbone's columns stand in X."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from featcache.errors import DataError


def resolve_blocks(blocks: Sequence[int] | None, width: int) -> tuple[int, ...]:
    """The widths of the blocks of an X with `width` columns; None means one block.

    Raises
    ------
    DataError
        If a width is below 1 or the widths don't add up to `width`.
    """
    if blocks is None:
        return (width,)
    widths = tuple(int(block) for block in blocks)
    if min(widths, default=0) < 1 or sum(widths) != width:
        raise DataError(
            f"blocks {widths} add up to {sum(widths)}, X has {width} columns",
            "Pass the blocks of the features that X came from (features.blocks).",
        )
    return widths


def slices(blocks: Sequence[int]) -> list[slice]:
    """The columns of each block."""
    return [slice(start, stop) for start, stop in pairwise(np.cumsum((0, *blocks)).tolist())]
