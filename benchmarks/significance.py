"""How often the tests and intervals are wrong, by simulation, with the tests of before beside them.

    OMP_NUM_THREADS=1 python benchmarks/significance.py [--full] [--seed N] [--part error,winner,…]

(Not called statistics.py: that would shadow the standard library's module in this folder.)

Two kinds of made-up candidates. On a split: tables of right and wrong, in which rows are hard or
easy for all and groups for each candidate. Over folds: linear classifiers of 12 out of 60 features
each, refitted in every fold; all features tell the classes apart equally well, so that candidates
are equal before they have seen a row. Worse candidates have features without a signal. "unstable"
has trees and small perceptrons in place of the linear classifiers. Tables on stdout are those of
docs/statistics.md; another `--seed` gives experiments that no constant was chosen by.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from featcache.fitting.metrics import (
    METRICS,
    fold_weights,
    interval,
    luck_of_seeds,
    metric_intervals,
    most_rows,
    refit_inflation,
    row_scores,
    scores,
    seed_variance,
)
from featcache.fitting.significance import ALPHA, compare_all, fold_inflation, winner

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

DRAWS = 1000  # of the test's signs: enough for a rate over many tests
USED, INFORMATIVE, WIDTH, SHIFT = 12, 60, 120, 0.3
SIZES, CANDIDATES = (200, 1000, 10_000), (2, 12, 40)
SIGNALS = {200: 3, 1000: 7, 10_000: 10}  # features with a signal of a worse candidate
GAPS = {200: 0.10, 1000: 0.05, 10_000: 0.015}  # points of a worse candidate on a split


@dataclass
class Tested:
    """One made-up experiment: lines (row, fold) by candidate, and what is true of it."""

    right: Floats  # (lines, K)
    units: Ints | None  # (lines,)
    fold: Ints  # (lines,)
    train: float
    truth: Floats  # (K,) accuracy on all rows there could be

    @property
    def folds(self) -> int:
        return int(self.fold.max()) + 1


# --- the tests of before: McNemar or the corrected t-test against the best, with Holm's adjustment


def mcnemar(a: Floats, b: Floats, groups: Ints | None) -> float:
    balance = a - b if groups is None else np.bincount(groups, weights=a - b)
    balance = balance[balance != 0]
    if not len(balance):
        return 1.0
    if (np.abs(balance) == 1).all():
        won, units = int((balance > 0).sum()), len(balance)
        fewer = min(won, units - won)
        if units < 25:
            return float(stats.binomtest(won, units).pvalue)
        middle = stats.binom.pmf(fewer, units, 0.5) / 2
        return float(2 * (stats.binom.cdf(fewer, units, 0.5) - middle))
    if len(balance) < 25:
        reach = int(np.abs(balance).sum())
        chance = np.zeros(2 * reach + 1)
        chance[reach] = 1.0
        for size in np.abs(balance).astype(int):
            chance = (np.roll(chance, size) + np.roll(chance, -size)) / 2
        totals = np.abs(np.arange(-reach, reach + 1))
        return float(min(1.0, chance[totals >= abs(int(balance.sum()))].sum()))
    return float(stats.chi2.sf(balance.sum() ** 2 / (balance**2).sum(), df=1))


def corrected_t(a: Floats, b: Floats, train: float, test: float) -> float:
    differences = a - b
    mean, variance = abs(differences.mean()), differences.var(ddof=1)
    if mean < 1e-12:
        return 1.0
    variance = mean / test if variance < 1e-24 else variance
    t = mean / np.sqrt((1 / len(a) + test / train) * variance)
    return float(2 * stats.t.sf(t, df=len(a) - 1))


def holm(p: Sequence[float]) -> Floats:
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    steps = np.asarray(p)[order] * np.arange(len(p), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def before(one: Tested) -> tuple[bool, Floats]:
    """Whether any candidate was called worse than the best, and which were."""
    means = np.array([one.right[one.fold == f].mean(axis=0) for f in range(one.folds)])
    best = int(means.mean(axis=0).argmax())
    others = [k for k in range(one.right.shape[1]) if k != best]
    if one.folds == 1:
        p = [mcnemar(one.right[:, best], one.right[:, k], one.units) for k in others]
    else:
        test = len(one.fold) / one.folds
        p = [corrected_t(means[:, best], means[:, k], one.train, test) for k in others]
    worse = np.zeros(one.right.shape[1])
    worse[others] = holm(p) < ALPHA
    return bool(worse.any()), worse


def now(one: Tested, repeats: int = 1) -> tuple[bool, Floats]:
    """Whether any pair was told apart, and which candidates were from the best."""
    weights = fold_weights(one.fold)
    factor = fold_inflation(one.folds // repeats, one.train, len(one.fold) / one.folds)
    found = compare_all(one.right, one.units, weights=weights, inflation=factor, draws=DRAWS)
    best = int((weights @ one.right).argmax())
    worse = np.zeros(one.right.shape[1])
    for (a, b), p in zip(found.pairs.tolist(), found.p, strict=True):
        if best in (a, b) and p < ALPHA:
            worse[b if a == best else a] = 1
    return bool((found.p < ALPHA).any()), worse


# --- made-up candidates


def table(rng: Any, n: int, accuracy: Floats, groups: int = 0) -> Tested:
    """A test split: rows that are hard for all, and groups that are hard for some."""
    hard = rng.normal(size=(n, 1)) * sqrt(0.6)
    own = rng.normal(size=(n, len(accuracy))) * sqrt(0.2 if groups else 0.4)
    units = None
    if groups:
        units = np.sort(np.arange(n) % groups)
        hard = rng.normal(size=(n, 1)) * sqrt(0.5) + rng.normal(size=(groups, 1))[units] * sqrt(0.1)
        own += rng.normal(size=(groups, len(accuracy)))[units] * sqrt(0.2)
    right = (hard + own < stats.norm.ppf(accuracy)).astype(float)
    return Tested(right, units, np.zeros(n, np.intp), n, accuracy)


def refitted(
    rng: Any, n: int, candidates: int, worse: int = 0, signals: int = USED, repeats: int = 1,
    groups: int = 0,
) -> Tested:  # fmt: skip
    """Five folds, `repeats` times, with a linear classifier of each candidate fitted in each."""
    y = rng.permutation(np.arange(n) % 2) * 2.0 - 1  # (n,)
    mean = np.where(np.arange(WIDTH) < INFORMATIVE, SHIFT, 0.0)  # (d,)
    X = rng.normal(size=(n, WIDTH)) + y[:, None] * mean  # (n, d)
    units = np.sort(np.arange(n) % groups) if groups else np.arange(n)
    if groups:
        X += 0.3 * rng.normal(size=(groups, WIDTH))[units]
    used = _used(rng, candidates, worse, signals)
    A = np.column_stack([X, np.ones(n), y])  # (n, d + 2)
    right, lines, fold, truth = [], [], [], np.zeros(candidates)
    noise = sqrt(1.09) if groups else 1.0
    for repeat in range(repeats):
        place = rng.permutation(int(units.max()) + 1)[units] % 5  # (n,)
        parts = [np.flatnonzero(place == part) for part in range(5)]
        grams = [A[rows].T @ A[rows] for rows in parts]  # each (d + 2, d + 2)
        whole = np.sum(grams, axis=0)
        for part, rows in enumerate(parts):
            beta, offset = _fit(whole - grams[part], used)
            right.append((A[rows, :WIDTH] @ beta + offset) * y[rows][:, None] > 0)
            lines.append(units[rows])
            fold.append(np.full(len(rows), 5 * repeat + part))
            margin, size = mean @ beta, noise * np.sqrt((beta**2).sum(axis=0))  # (K,), (K,)
            for side in (offset, -offset):
                truth += stats.norm.cdf((margin + side) / size) / (10 * repeats)
    unit = np.concatenate(lines) if groups or repeats > 1 else None
    return Tested(np.concatenate(right).astype(float), unit, np.concatenate(fold), 0.8 * n, truth)


def _used(rng: Any, candidates: int, worse: int, signals: int) -> Ints:
    """The features of each candidate (K, used)."""
    used = np.empty((candidates, USED), int)
    for k in range(candidates):
        known = USED if k < candidates - worse else signals
        told = rng.choice(INFORMATIVE, known, replace=False)
        mute = rng.choice(np.arange(INFORMATIVE, WIDTH), USED - known, replace=False)
        used[k] = np.r_[told, mute]
    return used


def learned(rng: Any, n: int, candidates: int, worse: int, signals: int, tree: bool) -> Tested:
    """The same with trees, or perceptrons of eight units, each drawn anew in each of five folds."""
    from sklearn.neural_network import MLPClassifier
    from sklearn.tree import DecisionTreeClassifier

    many = 1000  # fresh rows that say what is true
    y = rng.permutation(np.arange(n + many) % 2)  # (n + many,)
    mean = np.where(np.arange(WIDTH) < INFORMATIVE, SHIFT, 0.0)  # (d,)
    X = rng.normal(size=(n + many, WIDTH)) + (2 * y[:, None] - 1) * mean  # (n + many, d)
    used, fold = _used(rng, candidates, worse, signals), rng.permutation(n) % 5
    right, truth = np.empty((n, candidates)), np.zeros(candidates)
    for k, part in np.ndindex(candidates, 5):
        seed, columns = int(rng.integers(2**31)), X[:, used[k]]
        made: Any = DecisionTreeClassifier(random_state=seed)
        if not tree:
            made = MLPClassifier((8,), max_iter=60, learning_rate_init=0.05, random_state=seed)
        train, test = np.flatnonzero(fold != part), np.flatnonzero(fold == part)
        made.fit(columns[train], y[train])
        right[test, k] = made.predict(columns[test]) == y[test]
        truth[k] += made.score(columns[n:], y[n:]) / 5
    return Tested(right, None, fold, 0.8 * n, truth)


def _fit(gram: Floats, used: Ints) -> tuple[Floats, Floats]:
    """Ridge coefficients (d, K), zero where a feature isn't used, and offsets (K,).

    Of the products of the columns of the rows' features, 1 and y.
    """
    n, sums, y_mean = gram[WIDTH, WIDTH], gram[WIDTH, :WIDTH], gram[WIDTH, -1] / gram[WIDTH, WIDTH]
    inner = gram[:WIDTH, :WIDTH] - np.outer(sums, sums) / n
    product = gram[:WIDTH, -1] - sums * y_mean
    small = inner[used[:, :, None], used[:, None, :]] + np.eye(USED)  # (K, used, used)
    solved = np.linalg.solve(small, product[used][:, :, None])[:, :, 0]
    beta = np.zeros((WIDTH, len(used)))
    beta[used, np.arange(len(used))[:, None]] = solved
    return beta, y_mean - sums / n @ beta


# --- the tables


def error(runs: int, first: int) -> None:
    """Family error, and the share of worse candidates that were found."""
    print("\n## Family error and power\n")
    print("| design | n | K | family error | before | gap, points | worse ones found | before |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    _error(_designs(), CANDIDATES, runs, first)


def unstable(runs: int, first: int) -> None:
    """The same of learners that change with every row."""
    print("\n## Family error and power of unstable learners\n")
    print("| design | n | K | family error | before | gap, points | worse ones found | before |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    warnings.simplefilter("ignore")
    designs = [
        (f"5 folds, {name}", n, partial(_of_learners, n=n, tree=name == "trees"), 1)
        for name, n in (("trees", 200), ("perceptrons", 200), ("trees", 1000))
    ]
    _error(designs, (2, 12), runs, first)


def _of_learners(rng: Any, count: int, worse: int, n: int, tree: bool) -> Tested:
    return learned(rng, n, count, worse, SIGNALS[n], tree)


def _error(designs: Iterable[Any], counts: Sequence[int], runs: int, first: int) -> None:
    for name, n, make, repeats in designs:
        for count in counts:
            some = max(20, runs // (4 if n > 5000 else 1))
            equal = [
                make(np.random.default_rng(seed), count, 0) for seed in range(first, first + some)
            ]
            false = [(now(one, repeats)[0], before(one)[0]) for one in equal]
            del equal
            found, gaps = [], []
            for seed in range(first, first + max(20, some // 2)):
                one = make(np.random.default_rng(10**6 + seed), count, count // 2)
                worse = slice(count - count // 2, None)
                found.append([test[1][worse].mean() for test in (now(one, repeats), before(one))])
                gaps.append(one.truth[: worse.start].mean() - one.truth[worse].mean())
            cells = [*np.mean(false, axis=0), *np.mean(found, axis=0)]
            a, b, c, d = (f"{100 * cell:.1f} %" for cell in cells)
            gap = f"{100 * np.mean(gaps):.1f}"
            print(f"| {name} | {n:,} | {count} | {a} | {b} | {gap} | {c} | {d} |", flush=True)


def _designs() -> Iterator[tuple[str, int, Callable[..., Tested], int]]:
    def split(n: int, groups: int = 0) -> Callable[..., Tested]:
        def make(rng: Any, count: int, worse: int) -> Tested:
            gap = GAPS[n] * (2 if 0 < groups < 50 else 1)
            return table(rng, n, 0.85 - gap * (np.arange(count) >= count - worse), groups)

        return make

    def fold(n: int, repeats: int, groups: int = 0) -> Callable[..., Tested]:
        def make(rng: Any, count: int, worse: int) -> Tested:
            return refitted(rng, n, count, worse, SIGNALS[200 if groups else n], repeats, groups)

        return make

    for n in SIZES:
        yield "split", n, split(n), 1
    for n in SIZES:
        yield "5 folds", n, fold(n, 1), 1
    for n in SIZES:
        yield "3 × 5 folds", n, fold(n, 3), 3
    for groups in (10, 100):
        yield f"split, {groups} groups", 1000, split(1000, groups), 1
        yield f"5 folds, {groups} groups", 1000, fold(1000, 1, groups), 1


def coverage(runs: int, first: int) -> None:
    """How often the interval of the accuracy holds the true one."""
    print("\n## Coverage of the accuracy's interval\n")
    print("| design | n | accuracy | holds it | mean width, points |")
    print("|---|--:|--:|--:|--:|")
    for n in (50, 200, 1000):
        for p in (0.5, 0.8, 0.9, 0.98):
            made = [interval(np.arange(n) < k) for k in range(n + 1)]
            chance = stats.binom.pmf(np.arange(n + 1), n, p)
            low, high = np.array(made).T
            _covered("split", n, p, chance @ ((low <= p) & (p <= high)), chance @ (high - low))
    for groups, rows in ((10, 20), (20, 5), (30, 20), (100, 10)):
        for p in (0.8, 0.9, 0.98):
            unit = np.repeat(np.arange(groups), rows)
            made = []
            for seed in range(first, first + 2 * runs):
                rng = np.random.default_rng(seed)
                # Shares of a beta distribution: two rows of a group correlate by 0.2.
                share = rng.beta(4 * p, 4 * (1 - p), size=groups)
                made.append(interval(rng.random(len(unit)) < share[unit], unit))
            _covered(f"split, {groups} groups", len(unit), p, *_held(made, [p] * len(made)))
    for n in (50, 200, 1000):
        for repeats in (1, 3):
            made, truth = [], []
            for seed in range(first, first + 2 * runs):
                one = refitted(np.random.default_rng(seed), n, 1, repeats=repeats)
                made.append(
                    interval(
                        one.right[:, 0], one.units, fold_weights(one.fold), most_rows=n,
                        inflation=refit_inflation(5, 0.8, 0.2),
                    )
                )  # fmt: skip
                truth.append(one.truth[0])
            name = "5 folds" if repeats == 1 else "3 × 5 folds"
            expected = float(np.mean(truth))
            _covered(name, n, expected, *_held(made, [expected] * len(made)))


def _held(made: Sequence[tuple[float, float]], truth: Sequence[float]) -> tuple[float, float]:
    low, high = np.array(made).T
    return float(np.mean((low <= truth) & (truth <= high))), float(np.mean(high - low))


def _covered(design: str, n: int, p: float, share: float, width: float) -> None:
    print(f"| {design} | {n:,} | {p:.2f} | {100 * share:.1f} % | {100 * width:.1f} |", flush=True)


def metrics(runs: int, first: int) -> None:
    """The same of balanced accuracy, F1 and AUC."""
    print("\n## Coverage of the intervals of balanced accuracy, macro F1 and AUC\n")
    print("| classes | n | groups | balanced accuracy | F1 | AUC | (their values) |")
    print("|---|--:|--:|--:|--:|--:|---|")
    names = ("balanced_accuracy", "f1", "auc")
    for shares in ((0.5, 0.5), (0.8, 0.2), (0.5, 0.3, 0.2)):
        true, pred, proba = _labelled(np.random.default_rng(0), 2_000_000, shares, 0)[:3]
        classes = [f"{i:02}" for i in range(len(shares))]
        truth = scores(true, pred, proba, classes)
        for n, groups in ((50, 0), (200, 0), (1000, 0), (1000, 10), (1000, 100)):
            held: dict[str, list[bool]] = {name: [] for name in names}
            for seed in range(first, first + runs):
                rng = np.random.default_rng(seed)
                *one, unit = _labelled(rng, n, shares, groups)
                found = metric_intervals(*one, classes, folds=np.zeros(n), groups=unit)
                for name, (low, high) in found.items():
                    held[name].append(low <= truth[name] <= high)
            cells = " | ".join(f"{100 * np.mean(held[name]):.1f} %" for name in names)
            values = ", ".join(f"{truth[name]:.3f}" for name in names)
            mix = " : ".join(f"{100 * share:.0f}" for share in shares)
            print(f"| {mix} | {n:,} | {groups or '–'} | {cells} | {values} |", flush=True)


def _labelled(rng: Any, n: int, shares: Sequence[float], groups: int) -> tuple[Any, ...]:
    """Labels, predictions, probabilities and groups of a classifier with noisy scores."""
    code = rng.choice(len(shares), size=n, p=shares)
    unit = np.sort(np.arange(n) % groups) if groups else None
    noise = rng.normal(size=(n, len(shares)))
    if unit is not None:
        noise = sqrt(0.8) * noise + sqrt(0.2) * rng.normal(size=(groups, len(shares)))[unit]
    raw = 2.0 * np.eye(len(shares))[code] + noise + np.log(shares)
    proba = np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)
    names = np.array([f"{i:02}" for i in range(len(shares))])
    return names[code], names[proba.argmax(axis=1)], proba, unit


def luck(runs: int, first: int) -> None:
    """By how much the winner's score is too high, and the corrected one."""
    print("\n## The winner's luck\n")
    print("| design | candidates | n | K | too high | corrected | interval holds the truth |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for spread, name in ((0.0, "all equal"), (0.01, "spread by 1 point"), (0.03, "by 3 points")):
        for n in (200, 300, 1000, 10_000):
            for count in (12, 40):

                def make(seed: int, n: int = n, count: int = count, sd: float = spread) -> Tested:
                    rng = np.random.default_rng(seed)
                    return table(rng, n, np.clip(0.85 + sd * rng.normal(size=count), 0.5, 0.97))

                _luck("split", name, n, count, make, runs // (4 if n > 5000 else 1), first)
    for n in (200, 1000):
        for count in (12, 40):

            def fit(seed: int, n: int = n, count: int = count) -> Tested:
                return refitted(np.random.default_rng(seed), n, count, count // 2, SIGNALS[n])

            _luck("5 folds", "half of them worse", n, count, fit, runs, first)
    for groups in (10, 100):

        def grouped(seed: int, groups: int = groups) -> Tested:
            return table(np.random.default_rng(seed), 1000, np.full(40, 0.85), groups)

        _luck(f"split, {groups} groups", "all equal", 1000, 40, grouped, runs, first)


def _luck(
    design: str, name: str, n: int, count: int, make: Callable[[int], Tested], runs: int, first: int
) -> None:
    naive, corrected, held = [], [], []
    for seed in range(first, first + max(50, runs)):
        one = make(seed)
        weights = fold_weights(one.fold)
        factor = refit_inflation(one.folds, one.train, len(one.fold) / one.folds)
        found = winner(one.right, one.units, weights=weights, inflation=factor, draws=300)
        truth = one.truth[(weights @ one.right).argmax()]
        naive.append(found.score - truth)
        corrected.append(found.expected - truth)
        held.append(found.low <= truth <= found.high)
    high, left = 100 * np.mean(naive), 100 * np.mean(corrected)
    print(f"| {design} | {name} | {n:,} | {count} | {high:+.2f} | {left:+.2f} | "
          f"{100 * np.mean(held):.1f} % |", flush=True)  # fmt: skip


def by_metric(runs: int) -> None:
    """All of it for every metric: tests, winner, intervals, of classifiers with noisy scores."""
    print("\n## Ranked by another metric\n")
    print("| metric | n | groups | K | family error | worse ones found | winner too high |"
          " corrected | holds it | a run's interval holds | (value, gap) |")  # fmt: skip
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|")
    classes = ["00", "01"]
    big = _rivals(np.random.default_rng(0), 500_000, np.array([2.0, 1.6]), 0)
    truth = {
        name: [float(row_scores(name, big[0], *one, classes, "01").mean()) for one in big[1]]
        for name in METRICS
    }
    for n, groups in ((200, 0), (1000, 0), (1000, 30)):
        for count in (2, 12):
            for metric in METRICS.values():
                good, bad = truth[metric.name]
                alarms, found, high, left, held, own = [], [], [], [], [], []
                for seed in range(max(50, runs)):
                    rng = np.random.default_rng([seed, n, count])
                    for worse in (False, True):
                        signal = np.full(count, 2.0)
                        signal[count // 2 :] -= 0.4 * worse
                        true, rivals, unit = _rivals(rng, n, signal, groups)
                        table = np.stack([
                            row_scores(metric.name, true, *one, classes, "01") for one in rivals
                        ], axis=1)  # fmt: skip
                        if np.isnan(table).any():
                            continue
                        test = compare_all(table, unit, draws=DRAWS)
                        apart = test.p < ALPHA
                        if worse:
                            mixed = signal[test.pairs[:, 0]] != signal[test.pairs[:, 1]]
                            right = (test.difference > 0) != metric.lower
                            found.append(np.mean((apart & right)[mixed]))
                            continue
                        alarms.append(apart.any())
                        most = most_rows(metric.name, true, "01")
                        best = winner(table, unit, draws=300, metric=metric, most_rows=most)
                        high.append(metric.gain(best.score, good))
                        left.append(metric.gain(best.expected, good))
                        held.append(best.low <= good <= best.high)
                        low, top = interval(
                            table[:, 0], unit, most_rows=most, upper=metric.upper
                        )  # fmt: skip
                        own.append(low <= good <= top)
                cells = " | ".join(f"{100 * np.mean(one):.1f} %" for one in (alarms, found))
                luck = " | ".join(f"{100 * np.mean(one):+.2f}" for one in (high, left))
                ends = " | ".join(f"{100 * np.mean(one):.1f} %" for one in (held, own))
                print(f"| {metric.label} | {n:,} | {groups or '–'} | {count} | {cells} | {luck} | "
                      f"{ends} | {good:.3f}, {abs(good - bad):.3f} |", flush=True)  # fmt: skip


def _rivals(rng: Any, n: int, signal: Floats, groups: int) -> tuple[Any, list[Any], Ints | None]:
    """Labels, (predictions, probabilities) of each of K too sure classifiers, and groups."""
    code = (rng.random(n) < 0.3).astype(int)
    unit = np.sort(np.arange(n) % groups) if groups else None
    common = rng.normal(size=n)
    labels, rivals = np.array(["00", "01"]), []
    for one in signal:
        noise = sqrt(0.6) * common + sqrt(0.4) * rng.normal(size=n)
        if unit is not None:
            noise = sqrt(0.8) * noise + sqrt(0.2) * rng.normal(size=groups)[unit]
        raw = one * (code - 0.5) + noise - 0.4
        dog = 1 / (1 + np.exp(-3 * raw))
        rivals.append((labels[(dog > 0.5).astype(int)], np.stack([1 - dog, dog], axis=1)))
    return labels[code], rivals, unit


def by_seed(runs: int) -> None:
    """Family error and power of recipes whose networks are fitted with several seeds, on a split.

    Of each seed the classifier is better or worse than the recipe's mean by so many points.
    """
    print("\n## Recipes under several seeds, 1,000 rows\n")
    print("| sd between seeds, points | K | seeds | family error | seeds ignored |"
          " worse ones found | seeds ignored |")  # fmt: skip
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for shift in (0.0, 0.06, 0.12):
        for count in (2, 8):
            for seeds in (1, 2, 3, 5):
                rates: dict[tuple[bool, bool], list[float]] = {}
                spread = []
                for run in range(max(50, runs)):
                    rng = np.random.default_rng([run, count, seeds])
                    for worse in (False, True):
                        right = _seeded(rng, 1000, count, seeds, shift, 0.25 * worse)
                        luck = np.array([luck_of_seeds(one) for one in right])
                        spread.append(luck.mean())
                        freedom, pairs = count * (seeds - 1), count * (count - 1) // 2
                        most = np.maximum(luck, luck.mean())
                        extra = [seed_variance(one, seeds, freedom, pairs) for one in most]
                        for ignored in (False, True):
                            test = compare_all(
                                right.mean(axis=1).T, extra=0.0 if ignored else extra, draws=300
                            )
                            apart = test.p < ALPHA
                            first, second = (test.pairs < count // 2).T
                            share = np.mean(apart[first != second]) if worse else apart.any()
                            rates.setdefault((worse, ignored), []).append(float(share))
                cells = " | ".join(
                    f"{100 * np.mean(rates[key]):.1f} %"
                    for key in ((False, False), (False, True), (True, False), (True, True))
                )
                sd = 100 * sqrt(max(np.mean(spread), 0.0))
                print(f"| {sd:.1f} | {count} | {seeds} | {cells} |", flush=True)


def _seeded(rng: Any, n: int, count: int, seeds: int, shift: float, gap: float) -> Floats:
    """Right or wrong, (K, seeds, n): hard rows for all, for a candidate, for a seed; half worse."""
    level = 1.5 + shift * rng.normal(size=(count, seeds, 1))
    level[count // 2 :] -= gap
    noise = 1.2 * rng.normal(size=n) + 0.8 * rng.normal(size=(count, 1, n))
    return np.asarray(level + noise + 0.5 * rng.normal(size=(count, seeds, n)) > 0, float)


PARTS = {
    "error": error,
    "unstable": unstable,
    "coverage": coverage,
    "metrics": metrics,
    "winner": luck,
    "by_metric": by_metric,
    "by_seed": by_seed,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200, help="simulations of a cell, at most")
    parser.add_argument("--full", action="store_true", help="ten times as many")
    parser.add_argument("--part", default=",".join(PARTS), help="some of the tables")
    parser.add_argument("--seed", type=int, default=0, help="of the first simulation")
    options = parser.parse_args()
    start = time.perf_counter()
    for part in options.part.split(","):
        PARTS[part](options.runs * (10 if options.full else 1), options.seed)
    print(f"\n{time.perf_counter() - start:,.0f} s on one core")


if __name__ == "__main__":
    main()
