"""Whether differences between candidates are more than chance, and what the best one is worth."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featcache.errors import DataError, counted
from featcache.fitting.metrics import ACCURACY, Metric, interval, shares, unit_codes

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

ALPHA = 0.05  # differences with a smaller p-value are taken as more than chance
_ALL_SIGNS = 13  # units that differ, up to which every way to turn them round is tried
_MOST_SIGNS = 20_000  # units that differ, from which on Gaussians do as well
_AT_ONCE = 2**22  # numbers of a block of draws
_HELD_OUT = 0.2  # of the units, when a winner is chosen on the others
_CHOICE = 1.5  # times the variance that a winner's expected score has because it is chosen
_MOST_DRAWN = 50_000_000  # units, in all draws together
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Differences:
    """What `compare_all` found, pair by pair.

    Attributes
    ----------
    pairs : int array of shape (m, 2)
        Columns of the scores.
    difference : float array of shape (m,)
        Mean score of the first less that of the second.
    error : float array of shape (m,)
        Its standard error, as if two more rows were each won by another of the two: never 0
        (Bonett & Price 2012, doi:10.3102/1076998611411915).
    p : float array of shape (m,)
        Two-sided, adjusted for all pairs.
    critical : float
        A difference is more than chance from this many standard errors on; infinite if the units
        are too few to show any.
    """

    pairs: Ints
    difference: Floats
    error: Floats
    p: Floats
    critical: float

    def detectable(self, column: int) -> float:
        """The smallest difference from one candidate that would have been shown.

        `critical` times the median standard error of its pairs: a true difference of this size is
        shown with a chance of one half. Infinite if no difference could have been shown; NaN
        without a pair.
        """
        errors = self.error[(self.pairs == column).any(axis=1)]
        return float(self.critical * np.median(errors)) if len(errors) else float("nan")


@dataclass(frozen=True)
class Winner:
    """What `winner` found.

    Attributes
    ----------
    score : float
        The best candidate's mean score.
    expected : float
        That of a candidate chosen so, on rows that it was not chosen by.
    low, high : float
        95 % interval of `expected`.
    """

    score: float
    expected: float
    low: float
    high: float


def compare_all(
    scores: ArrayLike,
    units: ArrayLike | None = None,
    *,
    weights: ArrayLike | None = None,
    pairs: ArrayLike | None = None,
    inflation: float = 1.0,
    extra: ArrayLike = 0.0,
    draws: int = 10_000,
    seed: int = 0,
) -> Differences:
    """Test all pairs of candidates at once by the largest of their t: the max-T method.

    A unit's difference is as likely to be turned round if two candidates are equally good. So the
    signs of all units are drawn, 10,000 times, and each draw keeps the largest |t| of all pairs:
    like draws from a Gaussian with the candidates' covariance (which take over above 20,000 units),
    but exact with few units and with few rows apart, where those are not. The share of draws that
    reach a pair's |t| is its p-value. The chance of any false alarm is 5 %, whichever candidates
    are equal: the largest of all pairs is at least that of the equal ones (Westfall & Young 1993,
    "Resampling-based multiple testing"; Romano & Wolf 2005, doi:10.1198/016214504000000539). For
    one pair and a row each it is McNemar's exact test.

    Candidates that were refitted in k folds share training rows: `inflation` multiplies the
    variances, see `fold_inflation`.

    Parameters
    ----------
    scores : float array of shape (n, K)
        A score of each candidate for each row: whether it is right, or any loss.
    units : array of shape (n,), default None
        Rows that share a value belong together: those of a group, or several tests of one image.
        None: each row stands alone.
    weights : float array of shape (n,), default None
        Of each row in the mean; None: all alike.
    pairs : int array of shape (m, 2), default None
        The columns to compare; None: all with all, (0, 1), (0, 2), … first.
    inflation : float, default 1
    extra : float array of shape (K,), default 0
        Variances of the candidates' means that the rows don't show, see `metrics.seed_variance`.
    draws : int, default 10,000
        With up to 13 units that differ every way to turn them round is tried instead.
    seed : int, default 0

    Raises
    ------
    DataError
        If there is no row, or lengths differ.
    """
    totals, _ = _unit_totals(scores, units, weights)  # (units, K)
    rows = len(np.asarray(scores))
    count, candidates = totals.shape
    if pairs is None:
        pairs = np.stack(np.triu_indices(candidates, 1), axis=1)
    pairs = np.asarray(pairs, np.intp).reshape(-1, 2)  # (m, 2)
    difference, squares = _moments(totals, pairs)
    t = _studentized(difference, squares)
    added = np.broadcast_to(np.asarray(extra, float), candidates)[pairs].sum(axis=1)  # (m,)
    more = added * (count - 1) / np.where(squares > 0, squares, np.inf)
    # In units of t, divided by the root of the inflation, and back: t itself may be infinite.
    reached = t * np.sqrt(count / np.maximum(inflation * (count - t**2) + more + t**2, _ROUNDING))
    largest, sampled = _largest(totals, pairs, squares, draws, seed)
    above = len(largest) - np.searchsorted(largest, reached - _ROUNDING)
    p = (above + sampled) / (len(largest) + sampled)
    # Two rows more, one won by each, so that no error is 0 (Bonett & Price 2012).
    about = np.maximum(squares - difference**2 / count, 0.0) + 2 / rows**2
    error = np.sqrt(inflation * about * count / max(count - 1, 1) + added)
    return Differences(pairs, difference, error, np.minimum(p, 1.0), _critical(largest, count))


def fold_inflation(folds: int, train: float, test: float) -> float:
    """What the variance over rows is multiplied by if they were tested in k folds.

    Folds share training rows, which makes their scores vary together. Nadeau & Bengio (2003,
    doi:10.1023/A:1024068626366) take 1 / k + test / train, in place of 1 / k, of the variance of
    a fold's mean, which is k times that of the mean over all rows: 1 + k * test / train, 2.25 for
    five folds. If the folds are repeated, k is that of one repeat and a row's score its mean over
    the repeats: they average the luck of refits and splits, and add neither rows to test nor rows
    to train on.

    Parameters
    ----------
    folds : int
        Of one repeat; 1 for a test split, which has nothing to share: its candidates are the
        fitted ones, not their recipes.
    train, test : float
        Rows of one fold, or their means.
    """
    return 1.0 if folds < 2 else 1 + folds * test / train


def winner(
    scores: ArrayLike,
    units: ArrayLike | None = None,
    *,
    weights: ArrayLike | None = None,
    inflation: float = 1.0,
    draws: int = 1000,
    seed: int = 0,
    metric: Metric = ACCURACY,
    most_rows: float = math.inf,
    extra: ArrayLike = 0.0,
) -> Winner:
    """What the best candidate's score is without the luck of having been chosen by it.

    The choice is made again and again on four fifths of the units, drawn anew each time, and scored
    on the fifth that it did not see (Bernau, Augustin & Boulesteix 2013, doi:10.1111/biom.12041).
    Bootstrap bias correction (Tsamardinos, Greasidou & Borboudakis 2018,
    doi:10.1007/s10994-018-5714-4) chooses on units drawn with replacement, which is as good as a
    choice by half of them, and so says up to 0.8 points too little; a fifth does up to 0.5.

    What is averaged is how much the choice scores less than the best candidate on the same fifth.
    That is never negative: whatever is chosen leads on the rows that chose it, so it can't lead by
    more on the others. So `expected` is never better than `score`, and a fifth that happens to be
    easy moves neither.

    The interval is that of a mean of as many rows with one and a half times the variance: the
    choice has its own (docs/statistics.md).

    Parameters
    ----------
    scores : float array of shape (n, K)
        Of the metric, see `metrics.row_scores`.
    units, weights
        See `compare_all`.
    inflation : float, default 1
        Of the interval, see `interval`.
    draws : int, default 1000
        Fewer if there are more than 50,000 units.
    seed : int, default 0
    metric : Metric
        Says which of two scores is better, and how large they may be.
    most_rows : float, default infinity
        See `interval`.
    extra : float array of shape (K,), default 0
        See `compare_all`.
    """
    totals, sizes = _unit_totals(scores, units, weights)
    means = totals.sum(axis=0)  # (K,)
    best = int((-means if metric.lower else means).argmax())
    expected = float(means[best])
    if totals.shape[1] > 1 and len(totals) > 1:
        some = max(50, min(draws, _MOST_DRAWN // len(totals)))
        lost = _lost_by_choice(totals, sizes, best, some, seed, metric.lower)
        expected = float(np.clip(expected - lost, 0, metric.upper))
        inflation = _CHOICE * inflation
    low, high = interval(
        np.asarray(scores, float)[:, best], units, weights, most_rows=most_rows,
        inflation=inflation, about=expected, upper=metric.upper,
        extra=float(np.broadcast_to(np.asarray(extra, float), means.shape)[best]),
    )  # fmt: skip
    return Winner(float(means[best]), expected, low, high)


def _unit_totals(
    scores: ArrayLike, units: ArrayLike | None, weights: ArrayLike | None
) -> tuple[Floats, Floats]:
    """Each unit's part of the means, shape (units, K), and of the weights, (units,)."""
    table = np.asarray(scores, float)  # (n, K)
    if table.ndim != 2 or not table.size:
        raise DataError(f"scores of shape {table.shape}", "Give rows of candidates.")
    for values in (units, weights):
        if values is not None and len(np.asarray(values)) != len(table):
            raise DataError(
                f"{counted(len(table), 'row')} of scores and {len(np.asarray(values))} units or "
                "weights",
                "Give one for each row.",
            )
    share, unit = shares(weights, len(table)), unit_codes(units, len(table))
    totals = [np.bincount(unit, weights=share * column) for column in table.T]
    sizes = np.bincount(unit, weights=share)
    return np.stack(totals, axis=1).astype(float), sizes.astype(float)


def _moments(totals: Floats, pairs: Ints) -> tuple[Floats, Floats]:
    """Sum and sum of squares of the units' differences, each of shape (m,)."""
    sums, squares = np.zeros(len(pairs)), np.zeros(len(pairs))
    for first in np.unique(pairs[:, 0]):
        rows = np.flatnonzero(pairs[:, 0] == first)
        apart = totals[:, [first]] - totals[:, pairs[rows, 1]]  # (units, rows)
        sums[rows], squares[rows] = apart.sum(axis=0), (apart**2).sum(axis=0)
    return sums, squares


def _studentized(sums: Floats, squares: Floats) -> Floats:
    """|t| without the mean taken off its variance: from 0 to the root of the units' number.

    t itself is this u as u * sqrt((G - 1) / (G - u²)), for all pairs alike. 0 for equal candidates.
    """
    return np.abs(sums) / np.sqrt(np.where(squares > 0, squares, np.inf))


def _largest(
    totals: Floats, pairs: Ints, squares: Floats, draws: int, seed: int
) -> tuple[Floats, bool]:
    """The largest of all pairs, sorted, of each way to turn units round; whether it was drawn."""
    differ = totals[(totals != totals[:, :1]).any(axis=1)]  # (active, K)
    active, first, second = len(differ), pairs[:, 0], pairs[:, 1]
    gaussian = active > _MOST_SIGNS
    sampled = active > _ALL_SIGNS
    found = [np.zeros(0)]
    block = max(1, _AT_ONCE // max(len(differ), len(pairs), 1))
    for signs in _signs(len(differ), draws if sampled else 0, block, seed, gaussian):
        means = signs @ differ  # (b, K)
        apart = _studentized(means[:, first] - means[:, second], squares)  # (b, m)
        found.append(apart.max(axis=1, initial=0.0))
    return np.sort(np.concatenate(found)), sampled


def _signs(
    count: int, draws: int, block: int, seed: int, gaussian: bool = False
) -> Iterator[Floats]:
    """Rows of 1 and -1, shape (b, count): drawn, or with `draws` 0 all of them; or Gaussians.

    The first unit's sign is always 1 then: all turned round is the same difference.
    """
    if draws:
        rng = np.random.default_rng(seed)
        for start in range(0, draws, block):
            size = (min(block, draws - start), count)
            plain = (
                rng.normal(size=size)
                if gaussian
                else rng.integers(2, size=size, dtype=np.int8) * 2 - 1
            )
            yield np.asarray(plain, float)
        return
    codes = np.arange(2 ** max(count - 1, 0))
    yield np.asarray(1 - 2 * ((codes[:, None] >> np.arange(count)) & 1), float)


def _critical(largest: Floats, units: int) -> float:
    """The least t whose p-value is below `ALPHA`; infinite if there is none."""
    values, first = np.unique(largest, return_index=True)
    rare = values[(len(largest) - first) / len(largest) < ALPHA]
    if not len(rare) or rare[0] ** 2 >= units - _ROUNDING:
        return float("inf")
    return float(rare[0] * np.sqrt((units - 1) / (units - rare[0] ** 2)))


def _lost_by_choice(
    totals: Floats, sizes: Floats, best: int, draws: int, seed: int, lower: bool
) -> float:
    """How much less than the best candidate that one scores, on a fifth of the units, that is best
    on the others; negative for a loss, which is more then.
    """
    rng = np.random.default_rng(seed)
    lost = rows = 0.0
    block = max(1, _AT_ONCE // len(totals))
    for start in range(0, draws, block):
        size = (min(block, draws - start), len(totals))
        out = rng.random(size, dtype=np.float32) < _HELD_OUT  # (b, units)
        out = out[~out.all(axis=1)].astype(float)
        scores = out @ totals  # (b, K)
        # All candidates of a draw have the same rows, so the largest sum is the largest mean.
        seen = totals.sum(axis=0) - scores
        chosen = (-seen if lower else seen).argmax(axis=1)
        lost += float((scores[:, best] - scores[np.arange(len(chosen)), chosen]).sum())
        rows += float((out @ sizes).sum())
    return lost / rows
