"""Images in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from featcache.hashing import sha256_array
from featcache.images.manifest import Images, check_name, make_images


def from_arrays(
    name: str,
    arrays: Sequence[np.ndarray[Any, Any]],
    *,
    ids: Sequence[str],
    labels: Sequence[str],
    split: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    source: str = "memory",
) -> Images:
    """The manifest of images in memory.

    Parameters
    ----------
    name : str
        The data set's name.
    arrays : sequence of uint8 arrays of shape (h, w) or (h, w, 3)
        The images.
    ids, labels, split, groups : sequence of str
        One for each image; split and groups may be left out.
    source : str, default "memory"
        What the manifest says of its origin.
    """
    return make_images(
        check_name(name),
        ids,
        (sha256_array(array) for array in arrays),
        labels=labels,
        groups=groups,
        split=split,
        read=arrays.__getitem__,
        source=source,
    )


def row_ids(split: Sequence[str]) -> list[str]:
    """Ids for rows that have no names: their split, and their number among its rows."""
    count: dict[str, int] = {}
    ids = []
    for part in split:
        row = count.setdefault(part, 0)
        ids.append(f"{part or 'all'}/{row:06d}")
        count[part] += 1
    return ids
