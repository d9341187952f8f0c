"""Paired tests, each against an oracle of its own and uniform where there is nothing to find."""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest
from scipy import stats

from featcache.errors import DataError
from featcache.fitting import significance
from featcache.fitting.significance import corrected_t_test, holm, mcnemar


def apart(won: int, lost: int, same: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Two candidates of which one alone is right on `won` rows, the other on `lost`."""
    a = np.repeat([True, False, True], [won, lost, same])
    b = np.repeat([False, True, True], [won, lost, same])
    order = np.random.default_rng(0).permutation(len(a))
    return a[order], b[order]


@pytest.mark.parametrize(("won", "lost"), [(0, 1), (5, 0), (3, 9), (12, 12), (20, 4)])
def test_few_rows_apart_are_tested_exactly(won, lost):
    expected = stats.binomtest(won, won + lost, 0.5).pvalue
    assert mcnemar(*apart(won, lost)) == pytest.approx(expected)


@pytest.mark.parametrize(("won", "lost"), [(20, 5), (30, 30), (59, 6), (130, 170)])
def test_many_rows_apart_are_tested_by_mid_p(won, lost):
    # Both tails of the binomial, term by term, the outcome itself by half.
    half = 0.5 ** (won + lost)
    term = [comb(won + lost, k) * half for k in range(min(won, lost) + 1)]
    assert mcnemar(*apart(won, lost)) == pytest.approx(2 * sum(term) - term[-1])


def test_exact_by_hand():
    # 1 of 8: (1 + 8) of the 256 outcomes are as far down, and as many as far up.
    assert mcnemar(*apart(1, 7, 13)) == pytest.approx(2 * 9 / 256)


def test_mid_p_is_near_chi_squared_for_very_many():
    chi2 = (1040 - 960) ** 2 / 2000
    assert mcnemar(*apart(1040, 960)) == pytest.approx(stats.chi2.sf(chi2, 1), abs=2e-4)


def test_mcnemar_does_not_mind_which_comes_first():
    for won, lost in ((3, 9), (40, 20)):
        a, b = apart(won, lost)
        assert mcnemar(a, b) == pytest.approx(mcnemar(b, a))


def test_identical_candidates_have_p_1():
    right = np.random.default_rng(0).random(300) < 0.8
    assert mcnemar(right, right) == 1.0
    assert mcnemar(right, right, np.arange(300) // 3) == 1.0
    assert corrected_t_test([0.9, 0.8, 0.7], [0.9, 0.8, 0.7], 80, 20) == 1.0


def test_groups_of_one_row_change_nothing():
    a, b = apart(4, 11)
    assert mcnemar(a, b, [f"row{i}" for i in range(len(a))]) == mcnemar(a, b)


def test_few_groups_are_turned_round_in_every_way():
    rng = np.random.default_rng(3)
    a, b = rng.random(60) < 0.8, rng.random(60) < 0.5
    groups = rng.integers(9, size=60)
    balance = np.array([(a[groups == g].astype(int) - b[groups == g]).sum() for g in range(9)])
    every = [abs(balance @ signs) for signs in product((-1, 1), repeat=9)]
    expected = np.mean(np.array(every) >= abs(balance.sum()))
    assert mcnemar(a, b, groups) == pytest.approx(expected)


def test_many_groups_are_tested_by_chi_squared():
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(100), 6)
    a, b = rng.random(600) < 0.75, rng.random(600) < 0.7
    balance = (a.astype(int) - b).reshape(100, 6).sum(axis=1)
    z = balance.sum() / np.sqrt((balance**2).sum())
    assert mcnemar(a, b, groups) == pytest.approx(2 * stats.norm.sf(abs(z)))


def test_exact_and_limit_agree_at_the_border():
    # Balances of 29 psychiatrists and their patients; 25 are not 0.
    balance = [-4, -1, -2, -1, -1, 0, 3, 1, -1, -4, -2, -3, -3, -2, -1, -3, -1, -2, 3, 1, 1, 0,
               -1, -2, -2, 0, 0, -1, -1]  # fmt: skip
    groups = np.repeat(np.arange(29), 4)
    won = np.concatenate([np.arange(4) < max(0, size) for size in balance])
    lost = np.concatenate([np.arange(4) < max(0, -size) for size in balance])
    limit = mcnemar(won, lost, groups)
    assert limit == pytest.approx(stats.chi2.sf(29**2 / 113, 1))
    assert limit == pytest.approx(significance._sign_flips(np.array(balance)), abs=0.003)


def test_corrected_t_test_by_hand():
    # Differences 0.02, 0.04, 0.03, 0.05, 0.01: mean 0.03, variance 0.00025, test / train 1/4.
    a, b = [0.92, 0.94, 0.93, 0.95, 0.91], [0.9] * 5
    t = 0.03 / np.sqrt((1 / 5 + 1 / 4) * 0.00025)  # 2.828
    assert corrected_t_test(a, b, 80, 20) == pytest.approx(2 * stats.t.sf(t, 4))
    assert corrected_t_test(b, a, 80, 20) == pytest.approx(0.0474, abs=5e-5)


def test_corrected_t_test_without_overlap_is_the_paired_t_test():
    rng = np.random.default_rng(1)
    a, b = rng.random(10), rng.random(10)
    assert corrected_t_test(a, b, 1e12, 1) == pytest.approx(stats.ttest_rel(a, b).pvalue)


def test_equal_differences_in_every_fold():
    base = np.array([0.9, 0.7, 0.8, 0.6, 0.5])
    one_row = corrected_t_test(base + 1 / 40, base, 160, 40)
    many_rows = corrected_t_test(base + 16 / 40, base, 160, 40)
    # One row in each of five folds may be chance, a difference of 40 points is none.
    assert one_row == pytest.approx(2 * stats.t.sf(1 / np.sqrt(0.45), 4))
    assert many_rows < 0.01


@pytest.mark.parametrize(
    "call",
    [
        lambda: mcnemar([True], [True, False]),
        lambda: mcnemar([True, False], [True, False], ["g"]),
        lambda: corrected_t_test([0.5, 0.6], [0.5], 8, 2),
        lambda: corrected_t_test([0.5], [0.6], 8, 2),
        lambda: corrected_t_test([0.5, 0.6], [0.6, 0.6], 0, 2),
    ],
)
def test_values_that_are_no_pairs(call):
    with pytest.raises(DataError):
        call()


def test_holm_by_hand():
    # Sorted: 0.005 * 4, 0.01 * 3, 0.03 * 2, 0.04 * 1 lifted to the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_holm_rejects_what_its_definition_does():
    rng = np.random.default_rng(2)
    for _ in range(50):
        p = rng.random(6) ** 4
        rejected = set()
        for step, place in enumerate(np.argsort(p).tolist()):
            if p[place] > 0.05 / (6 - step):
                break
            rejected.add(place)
        assert {i for i, value in enumerate(holm(p.tolist())) if value <= 0.05} == rejected


@pytest.mark.parametrize(("rows", "low"), [(60, 0.005), (1000, 0.035)])
def test_mcnemar_holds_its_level_where_there_is_nothing_to_find(rows, low):
    rng = np.random.default_rng(5)
    p = [mcnemar(*(rng.random((2, rows)) < 0.8)) for _ in range(1500)]
    # The exact test of few rows is timid; with many the rate is 5 %, within 2.3 standard errors.
    assert low < np.mean(np.array(p) < 0.05) < 0.063


def test_mcnemar_by_group_holds_its_level_and_by_row_does_not():
    rng = np.random.default_rng(6)
    groups = np.repeat(np.arange(40), 10)
    by_group, by_row = [], []
    for _ in range(600):
        # Each candidate finds some groups hard, and those groups' rows fail together.
        a, b = rng.random((2, 400)) < np.repeat(rng.choice([0.4, 0.95], (2, 40)), 10, axis=1)
        by_group.append(mcnemar(a, b, groups))
        by_row.append(mcnemar(a, b))
    assert 0.025 < np.mean(np.array(by_group) < 0.05) < 0.075
    assert np.mean(np.array(by_row) < 0.05) > 0.2


def test_corrected_t_test_is_uniform_under_the_correlation_that_it_assumes():
    rng = np.random.default_rng(7)
    rho = 20 / 100  # of two folds' differences: test / (train + test)
    shared, own = rng.normal(size=(2000, 1)), rng.normal(size=(2000, 5))
    differences = np.sqrt(rho) * shared + np.sqrt(1 - rho) * own  # (2000, 5)
    p = [corrected_t_test(row, np.zeros(5), 80, 20) for row in differences]
    assert stats.kstest(p, "uniform").pvalue > 0.01
    plain = stats.ttest_1samp(differences, 0, axis=1).pvalue
    assert np.mean(plain < 0.05) > 0.1
