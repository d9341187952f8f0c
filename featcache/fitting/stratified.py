"""Stratified: rows dealt out to folds class by class, groups whole."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.intp]


def stratified_groups(y: NDArray[Any], groups: NDArray[Any], k: int, seed: int = 0) -> Ints:
    """Put rows into k folds: groups whole, every class spread evenly.

    Groups of several rows come first, the largest first, each into the fold that has least of its
    classes so far (as scikit-learn's StratifiedGroupKFold does, but without trying every fold on
    every group). Rows that stand alone then level the folds out class by class.

    Parameters
    ----------
    y, groups : arrays of shape (n,)
        Labels; rows with equal groups go into one fold.
    k : int
        Folds.
    seed : int, default 0
        Shuffles rows and groups of one size.

    Returns
    -------
    int array of shape (n,)
        The fold of each row, from 0.
    """
    rng = np.random.default_rng(seed)
    classes, codes = np.unique(y, return_inverse=True)  # (n,)
    _, group, size = np.unique(groups, return_inverse=True, return_counts=True)  # (n,), (g,)
    alone = size[group] == 1  # (n,)
    counts = np.zeros((k, len(classes)), np.intp)  # rows of each fold and class
    fold = np.empty(len(y), np.intp)
    if not alone.all():
        fold[~alone] = _largest_first(codes[~alone], group[~alone], np.bincount(codes), counts, rng)
    for code in rng.permutation(len(classes)):
        rows = rng.permutation(np.flatnonzero(alone & (codes == code)))
        more = _level(counts[:, code], counts.sum(axis=1), len(rows))  # (k,)
        fold[rows] = np.repeat(np.arange(k), more)
        counts[:, code] += more
    return fold


def _largest_first(
    codes: Ints, group: Ints, totals: Ints, counts: Ints, rng: np.random.Generator
) -> Ints:
    """The fold of each row of the groups; `counts` (k, classes) are raised along."""
    _, group = np.unique(group, return_inverse=True)
    # The classes of each group and how many rows of each: group by group in one long list.
    pairs, rows = np.unique(group * len(totals) + codes, return_counts=True)
    owner, code = np.divmod(pairs, len(totals))
    share = rows / totals[code]
    size = np.bincount(owner, weights=share)  # (g,)
    starts = np.searchsorted(owner, np.arange(len(size) + 1))
    shares = counts / totals  # (k, classes)
    weight = np.zeros(len(counts))  # (k,) of all classes, to tell equals apart
    chosen = np.empty(len(size), np.intp)
    shuffled = rng.permutation(len(size))
    for one in shuffled[np.argsort(-size[shuffled], kind="stable")].tolist():
        here = slice(starts[one], starts[one + 1])
        # The sum of squared shares grows by 2 * shares * share and a term that no fold changes.
        grows = shares[:, code[here]] @ share[here]  # (k,)
        best = np.flatnonzero(grows <= grows.min() + 1e-12)
        fold = best[np.argmin(weight[best])]
        chosen[one] = fold
        shares[fold, code[here]] += share[here]
        weight[fold] += size[one]
        counts[fold, code[here]] += rows[here]
    return chosen[group]


def _level(have: Ints, totals: Ints, more: int) -> Ints:
    """How many of `more` rows each fold gets, so that `have` gets as even as it can (k,).

    What can't be dealt out evenly goes to the folds with the fewest rows of all classes.
    """
    level = np.sort(have)
    filled = 1
    while filled < len(have) and (level[filled] - level[:filled]).sum() <= more:
        filled += 1
    height, rest = divmod(int(level[:filled].sum()) + more, filled)
    added = np.maximum(height - have, 0)
    open_ = np.flatnonzero(have <= height)
    added[open_[np.argsort((totals + added)[open_], kind="stable")[:rest]]] += 1
    return added
