"""Whether a difference between two candidates is more than chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from featcache.errors import DataError, counted

Counts = NDArray[np.float64]

_FEW = 25  # units that differ, below which the test is exact
_ROUNDING = 1e-12  # accuracies are fractions: equal differences differ by this much in floats


def mcnemar(a_right: ArrayLike, b_right: ArrayLike, groups: ArrayLike | None = None) -> float:
    """Two-sided p-value of McNemar's test: is one candidate right more often on the same rows?

    Only the rows count on which exactly one of the two is right; by chance each is as likely
    the one's as the other's. With fewer than 25 such rows the binomial test is exact; with more
    it is the mid-p version, which is as safe in practice and less timid (McNemar 1947,
    doi:10.1007/BF02295996; Fagerland, Lydersen & Laake 2013, doi:10.1186/1471-2288-13-91).

    Rows of one group are not independent, so with `groups` the group is the unit: by chance its
    balance, rows won less rows lost, is as likely to be turned round. That is exact below 25
    groups with a balance; with more it is the limit, chi-squared with one degree of freedom (on
    such tests: Yang, Sun & Hardin 2010, doi:10.1002/bimj.201000035).

    Parameters
    ----------
    a_right, b_right : bool arrays of shape (n,)
        Whether each candidate is right, row by row.
    groups : array of shape (n,), default None
        Rows that share a value belong together; None: each row stands alone.

    Returns
    -------
    float
        1 where the two are never right apart.

    Raises
    ------
    DataError
        If the lengths differ.
    """
    a, b = np.asarray(a_right, dtype=bool), np.asarray(b_right, dtype=bool)
    _same_length(a, b)
    balance = a.astype(float) - b  # (n,)
    if groups is not None:
        _, unit = np.unique(np.asarray(groups), return_inverse=True)  # (n,)
        _same_length(a, unit)
        balance = np.bincount(unit, weights=balance)  # (groups,)
    balance = balance[balance != 0]
    if not len(balance):
        return 1.0
    if (np.abs(balance) == 1).all():
        return _binomial(int((balance > 0).sum()), len(balance))
    if len(balance) < _FEW:
        return _sign_flips(balance)
    return float(stats.chi2.sf(balance.sum() ** 2 / (balance**2).sum(), df=1))


def corrected_t_test(a_scores: ArrayLike, b_scores: ArrayLike, train: float, test: float) -> float:
    """Two-sided p-value of the corrected resampled t-test: do the scores differ over the folds?

    Folds share training rows, so that their scores are correlated and the plain paired t-test
    finds too much; the variance of the mean is taken as (1 / k + test / train) of the
    differences' own, with k - 1 degrees of freedom (Nadeau & Bengio 2003,
    doi:10.1023/A:1024068626366).

    Differences that are the same in every fold have no variance to measure the mean by. Then
    the least that chance gives to a difference d of accuracies stands in for it, d / test: a
    balance of d * test rows takes at least as many rows on which only one is right, each of
    which adds a variance of 1 / test² under the null hypothesis.

    Parameters
    ----------
    a_scores, b_scores : float arrays of shape (k,)
        One score (an accuracy, 0 to 1) for each fold, in the same order.
    train, test : float
        Training and test rows of one fold, or their means.

    Returns
    -------
    float
        1 where the scores are the same.

    Raises
    ------
    DataError
        If the lengths differ, there are fewer than two folds, or a size is not positive.
    """
    a, b = np.asarray(a_scores, dtype=float), np.asarray(b_scores, dtype=float)
    _same_length(a, b)
    folds = len(a)
    if folds < 2 or train <= 0 or test <= 0:
        raise DataError(
            f"a t-test over {folds} folds of {train} training and {test} test rows",
            "It needs two folds or more with rows on both sides.",
        )
    differences = a - b  # (k,)
    mean = abs(float(differences.mean()))
    if mean < _ROUNDING:
        return 1.0
    variance = float(differences.var(ddof=1))
    if variance < _ROUNDING**2:
        variance = mean / test
    t = mean / np.sqrt((1 / folds + test / train) * variance)
    return float(2 * stats.t.sf(t, df=folds - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for being several, by Holm's step-down method.

    Those below 0.05 afterwards hold together: the chance that any of them is a false alarm is
    at most 5 %, however the tests depend on one another (Holm 1979, Scandinavian Journal of
    Statistics 6, 65-70).

    Parameters
    ----------
    p_values : sequence of float
        Between 0 and 1.

    Returns
    -------
    list of float
        In the order given, at most 1.
    """
    p = np.asarray(p_values, dtype=float)  # (m,)
    order = np.argsort(p, kind="stable")
    steps = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in adjusted]


def _binomial(won: int, units: int) -> float:
    """Two-sided p-value of winning `won` of `units`, each with a chance of one half."""
    if units < _FEW:
        return float(stats.binomtest(won, units).pvalue)
    fewer = min(won, units - won)
    # The mid-p value counts the outcome itself by half.
    middle = stats.binom.pmf(fewer, units, 0.5) / 2
    return float(2 * (stats.binom.cdf(fewer, units, 0.5) - middle))


def _sign_flips(balance: Counts) -> float:
    """Share of all ways to turn units round that leave a total as far from 0, or further."""
    sizes = np.abs(balance).astype(int)  # (units,)
    reach = int(sizes.sum())
    chance = np.zeros(2 * reach + 1)  # of each total from -reach to reach
    chance[reach] = 1.0
    for size in sizes:
        chance = (np.roll(chance, size) + np.roll(chance, -size)) / 2
    totals = np.abs(np.arange(-reach, reach + 1))
    return float(min(1.0, chance[totals >= abs(int(balance.sum()))].sum()))


def _same_length(a: NDArray[np.generic], b: NDArray[np.generic]) -> None:
    if a.shape != b.shape:
        raise DataError(
            f"paired values of {len(a)} and {counted(len(b), 'row')}",
            "Give one of each for the same rows.",
        )
