"""Near duplicates: pictures that differ in little, by their vectors and by their dHash."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featcache.fitting.blocks import slices
from featcache.images.dhash import FLAT, Hashes, symmetries

Rows = NDArray[np.intp]
Floats = NDArray[np.float32]

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
_FEWEST = 4  # neighbours, below which nothing can be told
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
    129 columns are looked at in all columns. If the data is dense, as with few columns,
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
    if far < _FEWEST:
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
    reach = _reach(distance, _CHANCE)
    return COSINE if reach is None else 1 - reach**2 / 2


def _reach(distance: NDArray[np.floating], chance: float) -> float | None:
    """How near a row comes to another by so little chance; None if that can't be told.

    By the distances of shape (p, far) of some rows to their neighbours, the nearest first.
    """
    far = distance.shape[1]
    near, last = np.median(distance[:, [far // 2 - 1, far - 1]], axis=0)
    if not 0 < near < last:
        return None
    # As many rows are within r as r to the power of the dimension.
    dimension = np.log(far / (far // 2)) / np.log(last / near)
    return float(near * (chance / (far // 2)) ** (1 / dimension))


def _pieces(rows: Rows) -> list[Rows]:
    return [rows[start : start + _SAMPLE] for start in range(0, len(rows), _SAMPLE)]


def _finite(piece: Floats) -> Floats:
    """Without NaN and infinities, which the gate reports."""
    return np.nan_to_num(piece, copy=False, nan=0, posinf=0, neginf=0)


# Of the 256 bits, how many may differ. Among 20,000 images of CIFAR-10 all 49 pairs within it show
# one picture twice, as seen by eye; at 28 bits one or two of 71 do not. JPEG at quality 75 changes
# 7 bits of one of 32 x 32 pixels on average, 2 of 224 x 224.
BITS = 24

_TELLING = 64  # bits in which a hash must differ from a flat picture's, and from its inverse
_SHUFFLES = 3  # of the bits, each cut into 16 keys: of pairs at 24 bits 1 in 30,000 shares none
_SYMMETRIES = 8
_CANDIDATES = 1 << 20  # pairs that are compared at once: 100 MB


@dataclass(frozen=True, eq=False)
class HashPairs:
    """Pairs of rows whose dHash is near, the nearest first.

    Attributes
    ----------
    pairs : int array of shape (m, 2)
    bits : int array of shape (m,)
        In how many the two differ.
    turned : bool array of shape (m,)
        Whether one is nearest if it is flipped or turned.
    most : int
        How many bits might differ.
    """

    pairs: Rows
    bits: NDArray[np.intp]
    turned: NDArray[np.bool_]
    most: int


def hash_pairs(hashes: Hashes, rows: Rows, most: int = 1_000_000) -> HashPairs:
    """Find rows whose pictures have nearly the same dHash, also flipped or turned.

    Two hashes that differ in 15 bits or fewer agree in one of any 16 parts; so only those that
    agree in one of 48, a random sixteenth of the bits each, are compared in all. Beyond 15 bits a
    pair may be missed; at 24, one of 30,000. Flat pictures tell nothing and are left out. If the
    pictures of a data set are much alike, as small drawings are, fewer bits may differ, as for
    `near_pairs`.

    Parameters
    ----------
    hashes : uint8 array of shape (n, 32)
        Zeros where none is known.
    rows : int array
        Positions of those to be compared.
    most : int, default 1,000,000
        Stop after this many pairs.

    Returns
    -------
    HashPairs
    """
    rows = rows[telling(hashes[rows])]
    mine = hashes[rows]  # (k, 32)
    reach = _reach_by_chance(mine)
    limit = BITS if reach is None else min(BITS, int(reach**2))
    found = np.empty((0, 4), np.intp)  # i, j, bits, turned
    pieces: list[Rows] = [found]
    for piece in _alike(mine, limit):
        pieces.append(piece)
        if sum(map(len, pieces)) >= most:
            pieces = [found := _nearest_of_each(np.concatenate(pieces))]
            if len(found) >= most:
                break
    found = _nearest_of_each(np.concatenate(pieces))
    found = found[np.argsort(found[:, 2], kind="stable")]
    return HashPairs(rows[found[:, :2]], found[:, 2], found[:, 3] > 0, limit)


def _nearest_of_each(found: Rows) -> Rows:
    """Of each pair, which many keys may have found, the way in which it is nearest."""
    found = found[np.lexsort(found.T[::-1])]  # (m, 4)
    first = np.ones(len(found), bool)
    first[1:] = (np.diff(found[:, :2], axis=0) != 0).any(axis=1)
    return found[first]


def telling(hashes: Hashes) -> NDArray[np.bool_]:
    """Which hashes tell one picture from others, shape (n,): known ones, of no flat picture."""
    apart = _distance(hashes, FLAT)  # (n,)
    return hashes.any(axis=1) & (np.minimum(apart, 256 - apart) >= _TELLING)


def _alike(hashes: Hashes, limit: int) -> Iterator[Rows]:
    """Pairs i < j within the limit, in how many bits they differ, and whether i was turned."""
    rng = np.random.default_rng(0)
    for _ in range(_SHUFFLES):
        shuffle = rng.permutation(256)
        index = [_Index(keys) for keys in _keys(hashes, shuffle)]
        for turn, seen in enumerate(symmetries(hashes)):
            for keys, here in zip(_keys(seen, shuffle), index, strict=True):
                for i, j in here.find(keys):
                    bits = _distance(seen[i], hashes[j])
                    keep = bits <= limit
                    if keep.any():
                        columns = (i[keep], j[keep], bits[keep], np.full(keep.sum(), turn > 0))
                        yield np.stack(columns, axis=1)  # (m, 4)


def _keys(hashes: Hashes, shuffle: Rows) -> NDArray[np.uint16]:
    """The shuffled bits as 16 keys of each hash: (16, n)."""
    bits = np.take(np.unpackbits(hashes, axis=1), shuffle, axis=1)  # (n, 256)
    return np.ascontiguousarray(np.packbits(bits, axis=1)).view(np.uint16).T


class _Index:
    """Positions by their key."""

    def __init__(self, keys: NDArray[np.uint16]) -> None:
        self._order = np.argsort(keys, kind="stable")
        self._count = np.bincount(keys, minlength=1 << 16)
        self._start = np.cumsum(self._count) - self._count

    def find(self, keys: NDArray[np.uint16]) -> Iterator[tuple[Rows, Rows]]:
        """Positions i < j of which j has the key of i here, some at a time."""
        count = self._count[keys]  # (n,)
        ends = np.cumsum(count)
        for cut in range(0, int(ends[-1]) if len(ends) else 0, _CANDIDATES):
            place = np.arange(cut, min(cut + _CANDIDATES, int(ends[-1])))  # (c,)
            i = np.searchsorted(ends, place, side="right")
            j = self._order[self._start[keys[i]] + place - (ends[i] - count[i])]
            keep = i < j
            if keep.any():
                yield i[keep], j[keep]


_BITS_OF = np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8)).reshape(-1, 16)
_BITS_OF = _BITS_OF.sum(axis=1, dtype=np.uint8)  # (65536,)


def _distance(one: Hashes, other: Hashes) -> NDArray[np.intp]:
    """In how many bits hashes differ: of shapes (n, 32), or one of them (32,)."""
    bits: NDArray[np.intp] = _BITS_OF[(one ^ other).view(np.uint16)].sum(axis=1, dtype=np.intp)
    return bits


def _reach_by_chance(hashes: Hashes) -> float | None:
    """As for vectors: the distance is the root of the bits that differ."""
    far = min(_NEIGHBOURS, len(hashes) // 3)  # not all there are: the farthest tell nothing
    if far < _FEWEST:
        return None
    probes = hashes[np.linspace(0, len(hashes) - 1, min(_PROBES, len(hashes))).astype(int)]
    nearest = [np.partition(_distance(hashes, probe), far)[: far + 1] for probe in probes]
    bits = np.sort(nearest, axis=1)[:, 1:]  # (p, far), without the row itself
    return _reach(np.sqrt(bits), _CHANCE / _SYMMETRIES)
