"""Leakage: what lets a classifier know a test row before it is tested; near duplicates."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import CacheRefused, counted
from featcache.fitting.blocks import slices
from featcache.fitting.splits import Fold, factorize, is_leaky
from featcache.store.features import NO_VIEW, Features
from featcache.store.lazy import LazyRows

log = logging.getLogger("featcache")

Rows = NDArray[np.intp]
Pair = tuple[str, str]

PAIRS_KEPT = 10_000
NEAR_ON_DISK = 50_000  # rows that stay on disk and are still held against each other
_SHOWN = 3
_TRAIN, _TEST = 1, 2
_OF_ONE = (  # how the texts below begin when they speak of one
    ("images are", "image is"),
    ("images have their", "image has its"),
    ("rows have their", "row has its"),
    ("contents have", "content has"),
    ("pairs of near duplicates are", "pair of near duplicates is"),
)


@dataclass(frozen=True)
class Leak:
    """One kind of leak, with the images that it was found by.

    Attributes
    ----------
    kind : {"duplicates", "near duplicates", "labels", "groups", "views"}
    count : int
        Images, contents or pairs.
    what : str
        A sentence with the count and the first three pairs.
    pairs : tuple of (str, str)
        Ids: of a test image and a training image; for "labels" of two images with one content. At
        most 10,000.
    """

    kind: str
    count: int
    what: str
    pairs: tuple[Pair, ...]

    def __str__(self) -> str:
        return self.what


def find_leaks(features: Features, folds: Sequence[Fold], near: bool = True) -> list[Leak]:
    """Look for leaks between the training and the test rows of any fold.

    Equal content on both sides ("duplicates"); pictures that differ in little, told by their
    vectors ("near duplicates", see `near_pairs`); one content under two labels ("labels"); a
    group on both sides ("groups"); and an image on one side with a view of it on the other
    ("views").

    Parameters
    ----------
    features : Features
    folds : sequence of Fold
    near : bool, default True
        Also near duplicates: a few seconds for 50,000 rows.

    Returns
    -------
    list of Leak
        Empty where all is well.
    """
    images = features.view == NO_VIEW  # (n,)
    sides = np.zeros((len(folds), len(features)), np.int8)  # (folds, n)
    for side, fold in zip(sides, folds, strict=True):
        side[fold.train], side[fold.test] = _TRAIN, _TEST
    found = [
        _across("duplicates", "test images are also among the training images",
                features, sides, _of(images, features.sha256)),
        _across("groups", "test images have their group among the training images too",
                features, sides, _of(images, features.groups)),
        _labels(features, images),
    ]  # fmt: skip
    if is_leaky(folds) and not images.all():
        problem = "test rows have their image, or a view of it, among the training rows"
        found.append(_across("views", problem, features, sides, features.sources))
    if near:
        found.append(_near(features, folds, sides, images))
    return [leak for leak in found if leak is not None]


def report_leaks(leaks: Sequence[Leak], strict: bool = False, where: str = "") -> None:
    """Log the leaks as warnings; with `strict` refuse them.

    Parameters
    ----------
    leaks : sequence of Leak
    strict : bool, default False
    where : str, default ""
        The file that lists all pairs, for the remedy.

    Raises
    ------
    CacheRefused
        With `strict`, where there are any.
    """
    if strict and leaks:
        listed = f" ({where} lists them)" if where else ""
        raise CacheRefused(
            "; ".join(map(str, leaks)),
            f"Take one image of each pair out of the data{listed}, or give both one group and ask "
            "for folds. Without --strict this is a warning.",
        )
    for leak in leaks:
        log.warning("%s", leak)


def can_search_near(features: Features) -> bool:
    """Whether near duplicates can be looked for in reasonable time; says so where not."""
    most = NEAR_ON_DISK
    if not isinstance(features.X, LazyRows) or len(features) <= most:
        return True
    log.warning("near duplicates are not looked for: every row would be held against every other, "
                "and %s are on disk (%s at most)", f"{len(features):,}", f"{most:,}")  # fmt: skip
    return False


def refuse_trained(features: Features, folds: Sequence[Fold]) -> None:
    """Refuse to score images that a backbone was fine-tuned on.

    Raises
    ------
    CacheRefused
        Naming the backbone and the first images.
    """
    tested = np.unique(np.concatenate([fold.test for fold in folds]))
    for name, seen in zip(features.names, features.trained_on, strict=False):
        rows = [row for row in tested.tolist() if str(features.sha256[row]) in seen] if seen else []
        if rows:
            ids = ", ".join(features.ids[rows[:_SHOWN]].tolist())
            raise CacheRefused(
                f"{name} was fine-tuned on {len(rows):,} of "
                f"{counted(len(tested), 'test image')}: {ids}"
                f"{', …' if len(rows) > _SHOWN else ''}",
                "Test on images that it has not seen: the split that it was fine-tuned with "
                "(--test-split), or leave it out.",
            )


def leaks_to_json(leaks: Sequence[Leak], near: bool) -> dict[str, Any]:
    """Plain values for leaks.json; `near`: whether near duplicates were looked for."""
    return {
        "near_duplicates_searched": near,
        "leaks": [
            {
                "kind": one.kind,
                "count": one.count,
                "what": one.what,
                "pairs": [list(pair) for pair in one.pairs],
            }
            for one in leaks
        ],
    }


def leaks_from_json(plain: dict[str, Any]) -> list[Leak]:
    """The inverse of `leaks_to_json`."""
    return [
        Leak(one["kind"], one["count"], one["what"], tuple((a, b) for a, b in one["pairs"]))
        for one in plain["leaks"]
    ]


def _across(
    kind: str, what: str, features: Features, sides: NDArray[np.int8], values: NDArray[np.str_]
) -> Leak | None:
    """Test rows whose value, other than "", some training row of the same fold has."""
    code = factorize(values)  # (n,)
    nothing = np.unique(code[values == ""])
    partner = np.full(len(features), -1)  # (n,) a training row with the value of this test row
    for side in sides:
        train, test = np.flatnonzero(side == _TRAIN), np.flatnonzero(side == _TEST)
        first = np.full(code.max(initial=-1) + 1, -1)  # (v,)
        first[code[train[::-1]]] = train[::-1]
        first[nothing] = -1
        partner[test] = np.where(partner[test] < 0, first[code[test]], partner[test])
    rows = np.flatnonzero(partner >= 0)
    return _leak(kind, what, features, np.stack((rows, partner[rows]), axis=1), len(rows))


def _of(images: NDArray[np.bool_], values: NDArray[np.str_]) -> NDArray[np.str_]:
    """The values of images, and "" for views; not a copy where all are images."""
    return values if images.all() else np.where(images, values, "")


def _labels(features: Features, images: NDArray[np.bool_]) -> Leak | None:
    """One content under two labels: each image that differs from the first with its content."""
    known = np.flatnonzero(images & (features.sha256 != ""))
    every = len(known) == len(features)
    code = factorize(features.sha256 if every else features.sha256[known])  # (n,)
    first = np.full(code.max(initial=-1) + 1, -1)
    first[code[::-1]] = known[::-1]
    other = first[code]  # (n,) the first image with the content of each
    differs = features.y[known] != features.y[other]
    pairs = np.stack((other[differs], known[differs]), axis=1)
    what = "contents have two labels"
    if len(pairs):
        one, two = features.y[pairs[0]].tolist()
        what += f" (for instance {one} and {two})"
    return _leak("labels", what, features, pairs, len(np.unique(code[differs])))


def _near(
    features: Features,
    folds: Sequence[Fold],
    sides: NDArray[np.int8],
    images: NDArray[np.bool_],
) -> Leak | None:
    """Near duplicates, not of equal content, on two sides of a fold."""
    if len(folds) == 1:
        test, train = (fold[images[fold]] for fold in (folds[0].test, folds[0].train))
        if not len(test) or not len(train):
            return None
        found = near_pairs(features.X, features.blocks, test, train)
    else:
        used = np.flatnonzero(images & sides.any(axis=0))
        found = near_pairs(features.X, features.blocks, used)
    one, two = found.pairs.T  # (m,), (m,)
    apart = np.zeros(len(one), bool)
    for side in sides:  # one trains where the other is tested
        apart |= side[one] + side[two] == _TRAIN + _TEST
    apart &= (features.sha256[one] != features.sha256[two]) | (features.sha256[one] == "")
    pairs = found.pairs[apart]
    what = "pairs of near duplicates are on two sides of a split"
    what += f" (cosine of standardised vectors {found.least:.2g} or more)"
    return _leak("near duplicates", what, features, pairs, len(pairs))


def _leak(kind: str, what: str, features: Features, pairs: Rows, count: int) -> Leak | None:
    if not len(pairs):
        return None
    ids = features.ids[pairs[:PAIRS_KEPT]].tolist()
    shown = ", ".join(f"{one} = {other}" for one, other in ids[:_SHOWN])
    more = ", …" if len(pairs) > _SHOWN else ""
    for several, one in _OF_ONE if count == 1 else ():
        what = what.replace(several, one, 1)
    text = f"{count:,} {what}: {shown}{more}"
    return Leak(kind, count, text, tuple((one, two) for one, two in ids))


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
