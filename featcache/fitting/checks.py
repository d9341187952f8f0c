"""Refuse features that nothing honest can be learned from."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featcache.errors import CacheRefused, counted, unknown
from featcache.fitting.blocks import slices
from featcache.store.features import Features

log = logging.getLogger("featcache")

GATES = ("refuse", "warn", "off")

_CHUNK = 2048
_SHOWN = 3


def check_features(features: Features, gate: str = "refuse") -> None:
    """Check every block of the features for signs of a failed extraction.

    Refused are: NaN and infinities; rows that are all zero; equal rows from different images
    (different sha256); and a block in which every column is constant. Single constant columns,
    as dead units give, are only logged.

    Parameters
    ----------
    features : Features
    gate : {"refuse", "warn", "off"}, default "refuse"
        "warn" logs instead of refusing; "off" checks nothing.

    Raises
    ------
    CacheRefused
        Naming the backbone, how many rows, and the first ids.
    """
    if gate not in GATES:
        raise unknown("gate", str(gate), GATES)
    if gate == "off":
        return
    for name, part in zip(features.names, slices(features.blocks), strict=True):
        found = _scan(features.X[:, part])
        problems = [
            _rows_problem(features, name, found.bad, "NaN or infinite"),
            _rows_problem(features, name, found.zero, "all zero"),
            _rows_problem(
                features, name, _equal_rows(features, part, found), "equal for different images"
            ),
            f"{name}: constant in all of its {counted(len(found.constant), 'column')}"
            if len(features) > 1 and found.constant.all()
            else "",
        ]
        for problem in filter(None, problems):
            if gate == "refuse":
                raise CacheRefused(
                    problem,
                    "Extract these images again, or take them out of the data; --gate warn fits "
                    "on them as they are.",
                )
            log.warning("%s", problem)
        if len(features) > 1 and found.constant.any() and not found.constant.all():
            log.info(
                "%s: %.1f %% of %d columns are constant",
                name,
                100 * found.constant.mean(),
                len(found.constant),
            )


@dataclass(frozen=True, eq=False)
class _Scan:
    """What one pass over a block found: per row and, for `constant`, per column."""

    bad: NDArray[np.bool_]
    zero: NDArray[np.bool_]
    digest: NDArray[np.uint64]
    constant: NDArray[np.bool_]


def _scan(block: NDArray[np.float32]) -> _Scan:
    """One pass over a block (n, d), in pieces, so that no copy of it is made."""
    n, d = block.shape
    odd = np.random.default_rng(0).integers(2**63, size=d, dtype=np.uint64) * 2 + 1  # (d,)
    bad, zero = np.empty(n, dtype=bool), np.empty(n, dtype=bool)
    digest = np.empty(n, dtype=np.uint64)
    constant = np.ones(d, dtype=bool)
    first = block[:1]  # (1, d)
    for rows in _pieces(n):
        piece = block[rows] + np.float32(0)  # (c, d); turns -0.0 into 0.0
        bad[rows] = ~np.isfinite(piece).all(axis=1)
        zero[rows] = ~piece.any(axis=1)
        # A sum of bit patterns in whole numbers: equal rows give equal sums, exactly, which a
        # floating-point product doesn't promise.
        digest[rows] = piece.view(np.uint32) @ odd
        constant &= (piece == first).all(axis=0)
    return _Scan(bad, zero, digest, constant)


def _pieces(n: int) -> Iterator[slice]:
    return (slice(start, start + _CHUNK) for start in range(0, n, _CHUNK))


def _equal_rows(features: Features, part: slice, found: _Scan) -> NDArray[np.bool_]:
    """Rows that equal an earlier row of another image; zero and bad rows are told elsewhere."""
    rows = np.flatnonzero(~found.zero & ~found.bad)
    order = rows[np.argsort(found.digest[rows], kind="stable")]
    twice = order[1:][found.digest[order[1:]] == found.digest[order[:-1]]]
    equal = np.zeros(len(features), dtype=bool)
    first: dict[int, int] = {}
    for row in order[np.isin(found.digest[order], found.digest[twice])].tolist():
        other = first.setdefault(int(found.digest[row]), row)
        equal[row] = features.sha256[row] != features.sha256[other] and bool(
            (features.X[row, part] == features.X[other, part]).all()
        )
    return equal


def _rows_problem(features: Features, name: str, rows: NDArray[np.bool_], what: str) -> str:
    """A sentence on the rows, or "" where there is none."""
    if not rows.any():
        return ""
    ids = ", ".join(features.ids[np.flatnonzero(rows)[:_SHOWN]].tolist())
    return f"{name}: {rows.sum()} of {counted(len(rows), 'row')} are {what}: {ids}"
