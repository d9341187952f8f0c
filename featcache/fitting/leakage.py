"""Leakage: what lets a classifier know a test row before it is tested; labels that conflict."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import CacheRefused, counted
from featcache.fitting.near_duplicates import COSINE, NearPairs, hash_pairs, near_pairs, telling
from featcache.fitting.splits import Fold, factorize, is_leaky
from featcache.store.features import NO_VIEW, Features
from featcache.store.lazy import LazyRows

log = logging.getLogger("featcache")

Rows = NDArray[np.intp]
Pair = tuple[str, str]

PAIRS_KEPT = 10_000
NEAR_ON_DISK = 50_000  # rows that stay on disk and are still held against each other
NEAR_BY_HASH = 250_000  # images whose dHash is held against each other's: minutes
_SHOWN = 3
_TRAIN, _TEST = 1, 2
_OF_ONE = (  # how the texts below begin when they speak of one
    ("images are", "image is"),
    ("images have their", "image has its"),
    ("rows have their", "row has its"),
    ("contents have", "content has"),
    ("pairs of near duplicates are", "pair of near duplicates is"),
    ("pairs of near duplicates have", "pair of near duplicates has"),
)


@dataclass(frozen=True)
class Leak:
    """One kind of leak, with the images that it was found by.

    Attributes
    ----------
    kind : {"duplicates", "near duplicates", "labels", "near labels", "groups", "views"}
    count : int
        Images, contents or pairs.
    what : str
        A sentence with the count and the first three pairs.
    pairs : tuple of (str, str)
        Ids: of a test image and a training image; for "labels" of two images with one content, for
        "near labels" of two near duplicates. At most 10,000.
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
    vectors or, also mirrored or turned, by their dHash ("near duplicates", see `near_pairs` and
    `hash_pairs`); one content, or near duplicates, under two labels ("labels", "near labels",
    among all images); a group on both sides ("groups"); and an image on one side with a view of it
    on the other ("views").

    Parameters
    ----------
    features : Features
    folds : sequence of Fold
    near : bool, default True
        Also near duplicates: some seconds for 50,000 rows.

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
        found += _near(features, folds, sides, images)
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
    """Whether all vectors can be held against each other in reasonable time; says so if not."""
    if _few_enough(features):
        return True
    most = NEAR_ON_DISK
    log.warning("near duplicates are not looked for by features: every row would be held against "
                "every other, and %s are on disk (%s at most)",
                f"{len(features):,}", f"{most:,}")  # fmt: skip
    return False


def _few_enough(features: Features) -> bool:
    return not isinstance(features.X, LazyRows) or len(features) <= NEAR_ON_DISK


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


def count_hashed(features: Features) -> int:
    """Images that are looked at by their dHash too."""
    return int(features.dhash[(features.view == NO_VIEW)[: len(features.dhash)]].any(axis=1).sum())


def leaks_to_json(leaks: Sequence[Leak], near: bool, hashed: int = 0) -> dict[str, Any]:
    """Plain values for leaks.json.

    Parameters
    ----------
    leaks : sequence of Leak
    near : bool
        Whether near duplicates were looked for by features.
    hashed : int, default 0
        Among how many images by dHash.
    """
    return {
        "near_duplicates_searched": near,
        "hashed": hashed,
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
) -> list[Leak | None]:
    """Near duplicates, not of equal content, on two sides of a fold or under two labels."""
    known = count_hashed(features)
    _say_searched(features, images, known)
    found: list[tuple[Rows, NDArray[np.bool_], str]] = []  # pairs, whether turned, how
    if _few_enough(features):
        found.append(_by_vectors(features, sides, images))
    if known > NEAR_BY_HASH:
        log.warning("near duplicates are not looked for by dHash among %s images (%s at most)",
                    f"{known:,}", f"{NEAR_BY_HASH:,}")  # fmt: skip
    elif known:
        seen = hash_pairs(features.dhash, np.flatnonzero(images))
        how = f"dHash: at most {counted(seen.most, 'bit')} of 256 apart"
        found.append((seen.pairs, seen.turned, how))
    pairs, turned, looks = np.empty((0, 2), np.intp), np.empty(0, bool), []
    for several, flipped, how in found:
        keep = _other_content(features, several)
        several, flipped = several[keep], flipped[keep]
        across = _across_any(sides, several)
        looks.append(f"{across.sum():,} by {how}{_turned(flipped[across])}")
        pairs, turned = np.concatenate([pairs, several]), np.append(turned, flipped)
    _, first = np.unique(np.sort(pairs, axis=1), axis=0, return_index=True)
    first.sort()
    pairs, turned = _test_first(sides, pairs[first]), turned[first]
    leaking = pairs[_across_any(sides, pairs)]
    differ = features.y[pairs[:, 0]] != features.y[pairs[:, 1]]
    where = "a split" if len(folds) > 1 else "the data's own split"
    what = f"pairs of near duplicates are on two sides of {where} ({'; '.join(looks)})"
    return [
        _leak("near duplicates", what, features, leaking, len(leaking)),
        _two_labels(features, pairs[differ], turned[differ]),
    ]


def _by_vectors(
    features: Features, sides: NDArray[np.int8], images: NDArray[np.bool_]
) -> tuple[Rows, NDArray[np.bool_], str]:
    """Pairs between the sides of one split, or among all that folds use; none is turned."""
    right = None
    if len(sides) == 1:
        left, right = (np.flatnonzero(images & (sides[0] == side)) for side in (_TEST, _TRAIN))
    else:
        left = np.flatnonzero(images & sides.any(axis=0))
    if not len(left) or (right is not None and not len(right)):
        found = NearPairs(np.empty((0, 2), np.intp), np.empty(0, np.float32), COSINE)
    else:
        found = near_pairs(features.X, features.blocks, left, right)
    how = f"features: cosine of standardised vectors {found.least:.2g} or more"
    return found.pairs, np.zeros(len(found.pairs), bool), how


def _across_any(sides: NDArray[np.int8], pairs: Rows) -> NDArray[np.bool_]:
    """Which pairs have one row that trains where the other is tested."""
    one, two = pairs.T  # (m,), (m,)
    apart = np.zeros(len(pairs), bool)
    for side in sides:
        apart |= side[one] + side[two] == _TRAIN + _TEST
    return apart


def _other_content(features: Features, pairs: Rows) -> NDArray[np.bool_]:
    """Which pairs are not of equal content, which is another leak."""
    one, two = features.sha256[pairs.T]  # (m,), (m,)
    other: NDArray[np.bool_] = (one != two) | (one == "")
    return other


def _test_first(sides: NDArray[np.int8], pairs: Rows) -> Rows:
    """Of one fold's pairs the test row first."""
    if len(sides) > 1:
        return pairs
    one, two = sides[0][pairs.T]  # (m,), (m,)
    swapped = (one == _TRAIN) & (two == _TEST)
    return np.where(swapped[:, None], pairs[:, ::-1], pairs)


def _two_labels(features: Features, pairs: Rows, turned: NDArray[np.bool_]) -> Leak | None:
    what = "pairs of near duplicates have two labels"
    if len(pairs):
        one, two = features.y[pairs[0]].tolist()
        what += f" (for instance {one} and {two}{_turned(turned)})"
    return _leak("near labels", what, features, pairs, len(pairs))


def _turned(turned: NDArray[np.bool_]) -> str:
    return f", {turned.sum():,} mirrored or turned" if turned.any() else ""


def _say_searched(features: Features, images: NDArray[np.bool_], known: int) -> None:
    """How many images only one look was taken at."""
    count = int(images.sum())
    if known < count:
        log.info(
            "near duplicates: %s of %s have no dHash, and are told by their features alone "
            "(featcache extract --dhash adds it)", f"{count - known:,}", counted(count, "image"),
        )  # fmt: skip
    if known:
        flat = known - int(telling(features.dhash[images]).sum())
        if flat:
            log.info(
                "near duplicates: %s too even for dHash to tell them apart",
                counted(flat, "image is", "images are"),
            )


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
