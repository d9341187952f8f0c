"""Near duplicates: rows whose vectors are so close that they must show the same picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featcache.fitting.blocks import slices

Floats = NDArray[np.float32]
Rows = NDArray[np.intp]

# Of two rows, over their backbones, the mean cosine of their standardised vectors. On CIFAR-10
# under ResNet-18 with MobileNetV2, all images made 10 % brighter or shifted by a pixel and 80 % of
# those cut by a pixel all round and enlarged again are at 0.85 or more to their originals (a third
# of those saved as JPEG, which leaves little of 32 x 32 pixels); of the data's own pairs above it
# nearly all show one picture twice. Half of all rows have no neighbour above 0.5.
COSINE = 0.85

_CHANCE = 1e-4  # of a row without a duplicate to be taken for one, where columns are few
_WIDTH = 128  # of the projection
_SAMPLE = 2048  # rows that the projection is made for
_PROBES = 400  # rows whose neighbours are looked at
_NEIGHBOURS = 40  # of each: copies of one picture should be fewer than half as many
_FINE = 0.9999  # a cosine that float32 can still tell from 1
_TILE = (1024, 16384)  # 64 MB of products at a time
_PAIRS_AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class NearPairs:
    """Pairs of rows that are near duplicates, the nearest first.

    Attributes
    ----------
    pairs : int array of shape (m, 2)
    cosine : float32 array of shape (m,)
    least : float
        What the cosine had to reach.
    """

    pairs: Rows
    cosine: Floats
    least: float


def near_pairs(
    X: Floats, blocks: Sequence[int], left: Rows, right: Rows | None = None, most: int = 1_000_000
) -> NearPairs:
    """Find the near duplicates of the rows `left` among the rows `right`.

    No pair is missed: what a projection to orthonormal directions leaves of a distance is never
    more than the distance, and the length of the rest adds to it, so that only pairs near in
    129 columns are looked at in all columns. Where the data is dense, as with few columns,
    unlike rows are near each other too; then the threshold goes up until no more than one row in
    10,000 should have such a neighbour by chance. That is told by the distances to the 20th and
    the 40th neighbour: their ratio gives the dimension of the data (as in Levina & Bickel 2004,
    Maximum likelihood estimation of intrinsic dimension), and the dimension how many rows to
    expect nearer. With two or three columns nothing can be told, and no pair is found.

    Parameters
    ----------
    X : float32 array of shape (n, d)
    blocks : sequence of int
        Width of each backbone's block; each counts the same.
    left, right : int arrays
        Positions; without `right`, all pairs within `left`.
    most : int, default 1,000,000
        Stop after this many pairs.

    Returns
    -------
    NearPairs
    """
    rows = left if right is None else np.concatenate([left, right])
    units = _Units(X, blocks, rows)
    least = max(COSINE, _least_cosine(units, rows))
    if least > _FINE:
        return NearPairs(np.empty((0, 2), np.intp), np.empty(0, np.float32), least)
    low = units.project(left)  # (l, 129)
    other = low if right is None else units.project(right)  # (r, 129)
    found, cosines, count = [], [], 0
    for i, j in _candidates(low, other, least - 1e-4, within=right is None):
        pairs = np.stack((left[i], (left if right is None else right)[j]), axis=1)
        cosine = units.cosine(pairs)  # (m,)
        found.append(pairs[cosine >= least])
        cosines.append(cosine[cosine >= least])
        count += len(found[-1])
        if count >= most:
            break
    cosine = np.concatenate([np.empty(0, np.float32), *cosines])
    order = np.argsort(-cosine, kind="stable")
    pairs = np.concatenate([np.empty((0, 2), np.intp), *found])
    return NearPairs(pairs[order], cosine[order], least)


class _Units:
    """Standardised rows, each block of length 1 / sqrt(blocks): made when asked for."""

    def __init__(self, X: Floats, blocks: Sequence[int], rows: Rows) -> None:
        self._X, self._parts = X, slices(tuple(blocks))
        total, squares = np.zeros(X.shape[1]), np.zeros(X.shape[1])
        for part in _pieces(rows):
            piece = _finite(X[part])  # (c, d)
            total += piece.sum(axis=0, dtype=np.float64)
            squares += np.square(piece, dtype=np.float64).sum(axis=0)
        mean = total / len(rows)
        sd = np.sqrt(np.maximum(squares / len(rows) - mean**2, 0))
        self._mean = mean.astype(np.float32)
        # A column that does not vary says nothing.
        self._scale = np.where(sd > 1e-6 * (1 + np.abs(mean)), 1 / np.maximum(sd, 1e-30), 0)
        self._scale = self._scale.astype(np.float32)
        sample = self(rows[np.linspace(0, len(rows) - 1, min(_SAMPLE, len(rows))).astype(int)])
        width = min(_WIDTH, X.shape[1])
        start = np.random.default_rng(0).standard_normal((X.shape[1], width), dtype=np.float32)
        # Any orthonormal directions are right; those in which the rows vary most rule out most.
        for _ in range(2):
            start = np.linalg.qr(sample.T @ (sample @ start))[0]  # (d, 128)
        self._directions = start

    def __call__(self, rows: Rows) -> Floats:
        """Unit vectors (len(rows), d)."""
        unit = (_finite(self._X[rows]) - self._mean) * self._scale  # (c, d)
        for part in self._parts:
            length = np.linalg.norm(unit[:, part], axis=1, keepdims=True)  # (c, 1)
            unit[:, part] /= np.where(length > 0, length * np.sqrt(len(self._parts)), 1)
        return unit

    def project(self, rows: Rows) -> Floats:
        """The first columns of the rotated unit vectors, and the length of the rest: (c, 129)."""
        low = np.empty((len(rows), self._directions.shape[1] + 1), np.float32)
        for start in range(0, len(rows), _SAMPLE):
            here = slice(start, start + _SAMPLE)
            unit = self(rows[here])  # (c, d)
            low[here, :-1] = unit @ self._directions  # (c, 128)
            rest = (unit**2).sum(axis=1) - (low[here, :-1] ** 2).sum(axis=1)  # (c,)
            low[here, -1] = np.sqrt(np.maximum(rest, 0))
        return low

    def cosine(self, pairs: Rows) -> Floats:
        """The mean cosine of each pair (m, 2) over its blocks, shape (m,)."""
        step = _PAIRS_AT_ONCE
        parts = [pairs[start : start + step] for start in range(0, len(pairs), step)]
        return np.concatenate(
            [np.empty(0, np.float32)]
            + [np.einsum("md,md->m", self(part[:, 0]), self(part[:, 1])) for part in parts]
        )


def _candidates(
    low: Floats, other: Floats, least: float, within: bool
) -> Iterator[tuple[Rows, Rows]]:
    """Positions (i, j) of rows of `low` and `other` whose product reaches `least`, by tiles."""
    tall, wide = _TILE
    for top in range(0, len(low), tall):
        for start in range(top if within else 0, len(other), wide):
            product = low[top : top + tall] @ other[start : start + wide].T  # (tall, wide)
            i, j = np.divmod(np.flatnonzero(product >= least), product.shape[1])
            i, j = i + top, j + start
            keep = j > i if within else np.ones(len(i), bool)
            if keep.any():
                yield i[keep], j[keep]


def _least_cosine(units: _Units, rows: Rows) -> float:
    """The cosine that rows without a duplicate hardly ever reach, by a sample of neighbours."""
    far = min(_NEIGHBOURS, len(rows) - 1)
    if far < 4:
        return COSINE
    probes = np.linspace(0, len(rows) - 1, min(_PROBES, len(rows))).astype(int)
    best = np.full((len(probes), far), -np.inf, np.float32)
    mine = units(rows[probes])  # (p, d)
    for start in range(0, len(rows), _SAMPLE):
        product = mine @ units(rows[start : start + _SAMPLE]).T  # (p, c)
        inside = np.flatnonzero((probes >= start) & (probes < start + _SAMPLE))
        product[inside, probes[inside] - start] = -np.inf  # a row is no neighbour of its own
        both = np.concatenate([best, product], axis=1)
        best = np.partition(both, both.shape[1] - far, axis=1)[:, -far:]  # (p, far)
    best.sort(axis=1)
    distance = np.sqrt(np.maximum(2 - 2 * best[:, ::-1], 0))  # (p, far), the nearest first
    near, last = np.median(distance[:, [far // 2 - 1, far - 1]], axis=0)
    if not 0 < near < last:
        return COSINE
    # As many rows are within r as r to the power of the dimension.
    dimension = np.log(far / (far // 2)) / np.log(last / near)
    reach = near * (_CHANCE / (far // 2)) ** (1 / dimension)
    return float(1 - reach**2 / 2)


def _pieces(rows: Rows) -> list[Rows]:
    return [rows[start : start + _SAMPLE] for start in range(0, len(rows), _SAMPLE)]


def _finite(piece: Floats) -> Floats:
    """Without NaN and infinities, which the gate reports."""
    return np.nan_to_num(piece, copy=False, nan=0, posinf=0, neginf=0)
