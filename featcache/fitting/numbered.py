"""Numbered: texts as whole numbers, without copies of the texts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_AT_ONCE = 2**16  # rows


def numbered(values: NDArray[np.str_]) -> NDArray[np.intp]:
    """A number for each text, from 0; equal texts share it. In no particular order, shape (n,).

    As the inverse of `np.unique`, which sorts the texts and makes several copies of them: for a
    million digests 256 MB each.

    Parameters
    ----------
    values : str array of shape (n,)
    """
    n = len(values)
    if not n:
        return np.empty(0, np.intp)
    letters = np.ascontiguousarray(values).view(np.uint32).reshape(n, -1)  # (n, longest)
    odd = np.random.default_rng(0).integers(2**63, size=letters.shape[1], dtype=np.uint64) * 2 + 1
    digest = np.concatenate(
        [letters[start : start + _AT_ONCE] @ odd for start in range(0, n, _AT_ONCE)]
    )  # (n,)
    order = np.argsort(digest, kind="stable")
    new = np.diff(digest[order]) != 0  # (n - 1,)
    for again in np.split(np.flatnonzero(~new), range(_AT_ONCE, n, _AT_ONCE)):
        if (values[order[again]] != values[order[again + 1]]).any():  # two texts, one digest
            return np.asarray(np.unique(values, return_inverse=True)[1], np.intp)
    found = np.empty(n, np.intp)
    found[order] = np.concatenate([[0], np.cumsum(new)])
    return found
