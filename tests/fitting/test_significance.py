"""Tests of all pairs and the winner's luck, against exact tests, by hand and by simulation."""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest
from scipy import stats

from featcache.errors import DataError
from featcache.fitting.metrics import METRICS
from featcache.fitting.significance import compare_all, fold_inflation, winner


def apart(won: int, lost: int, same: int = 50) -> np.ndarray:
    """Two columns: the first alone is right on `won` rows, the second alone on `lost`."""
    a = np.repeat([True, False, True], [won, lost, same])
    b = np.repeat([False, True, True], [won, lost, same])
    return np.stack([a, b], axis=1)[np.random.default_rng(0).permutation(len(a))]


@pytest.mark.parametrize(("won", "lost"), [(0, 1), (5, 0), (3, 9), (6, 6), (11, 2)])
def test_two_candidates_with_few_rows_apart_are_tested_by_the_exact_binomial(won, lost):
    expected = stats.binomtest(won, won + lost, 0.5).pvalue
    assert compare_all(apart(won, lost)).p == pytest.approx([expected])


@pytest.mark.parametrize(("won", "lost"), [(20, 9), (30, 30), (130, 170)])
def test_with_more_of_them_signs_are_drawn(won, lost):
    half = 0.5 ** (won + lost)
    tail = sum(comb(won + lost, k) * half for k in range(min(won, lost) + 1))
    (p,) = compare_all(apart(won, lost)).p
    assert p == pytest.approx(min(1, 2 * tail), abs=0.015)
    assert compare_all(apart(won, lost)).p == p  # seeded
    assert compare_all(apart(won, lost), seed=1).p != pytest.approx(p, abs=1e-9) or p > 0.99


def test_all_pairs_by_hand():
    """Three candidates on four rows: every way to turn the rows round, with every pair's |t|."""
    scores = np.array([[1, 0, 0], [1, 0, 1], [1, 1, 0], [1, 0, 0]], float)
    found = compare_all(scores)
    assert found.pairs.tolist() == [[0, 1], [0, 2], [1, 2]]
    d = np.stack([scores[:, a] - scores[:, b] for a, b in found.pairs], axis=1)
    root = np.sqrt((d**2).sum(axis=0))
    largest = [np.abs(np.array(s) @ d / root).max() for s in product((-1, 1), repeat=4)]
    expected = [np.mean(np.array(largest) >= t - 1e-9) for t in np.abs(d.sum(axis=0)) / root]
    assert found.p == pytest.approx(expected)
    assert found.difference == pytest.approx([0.75, 0.75, 0])
    pooled = ((d - d.mean(axis=0)) ** 2).sum(axis=0) + 2
    assert found.error == pytest.approx(np.sqrt(pooled * 4 / 3) / 4)
    assert found.critical == found.detectable(0) == float("inf")


def test_groups_are_turned_round_whole():
    rng = np.random.default_rng(3)
    scores, groups = rng.random((60, 2)) < (0.8, 0.5), rng.integers(9, size=60)
    balance = np.array([np.subtract(*scores[groups == g].sum(axis=0)) for g in range(9)], float)
    every = [abs(balance @ signs) for signs in product((-1, 1), repeat=9)]
    expected = np.mean(np.array(every) >= abs(balance.sum()))
    assert compare_all(scores, groups).p == pytest.approx([expected])


def test_weights_count_rows_more_than_once():
    rng = np.random.default_rng(4)
    scores, times = rng.random((12, 3)), rng.integers(1, 4, size=12)
    one = compare_all(scores, weights=times)
    two = compare_all(np.repeat(scores, times, axis=0), np.repeat(np.arange(12), times))
    assert one.p == pytest.approx(two.p)
    assert one.difference == pytest.approx(two.difference)


def test_repeats_are_a_mean_for_each_row():
    rng = np.random.default_rng(5)
    repeats = rng.random((3, 40, 4)) < 0.7
    mean = compare_all(repeats.mean(axis=0))
    lines = compare_all(repeats.reshape(120, 4), np.tile(np.arange(40), 3))
    assert lines.p == pytest.approx(mean.p)
    assert fold_inflation(5, 80, 20) == 2.25
    assert fold_inflation(1, 80, 20) == 1


def test_inflation_divides_t_by_its_root():
    scores = np.random.default_rng(6).normal((0.2, 0.0), 1, (400, 2))
    d = scores[:, 0] - scores[:, 1]
    t = d.mean() / np.sqrt(2.25 * d.var(ddof=1) / 400)
    found = compare_all(scores, inflation=2.25)
    assert found.p == pytest.approx([2 * stats.t.sf(t, 399)], abs=0.01)
    assert found.critical == pytest.approx(1.966, abs=0.06)
    assert found.error == pytest.approx(np.sqrt(2.25 * (d.var(ddof=1) + 2 / 399) / 400), rel=0.01)
    assert found.detectable(1) == found.critical * found.error[0]


def test_many_equal_candidates_are_not_told_apart_more_often_than_said():
    rng = np.random.default_rng(7)
    false = []
    for _ in range(300):
        hard = rng.normal(size=(150, 1))
        right = hard + rng.normal(size=(150, 15)) < 1
        false.append((compare_all(right, draws=300).p < 0.05).any())
    assert 0.01 < np.mean(false) < 0.08


def test_a_group_counts_once_however_many_rows_it_has():
    rng = np.random.default_rng(8)
    groups = np.repeat(np.arange(40), 10)
    by_group, by_row = [], []
    for _ in range(200):
        # Each candidate finds some groups hard, and those groups' rows fail together.
        right = rng.random((400, 2)) < np.repeat(rng.choice([0.4, 0.95], (40, 2)), 10, axis=0)
        by_group.append(compare_all(right, groups, draws=300).p[0])
        by_row.append(compare_all(right, draws=300).p[0])
    assert np.mean(np.array(by_group) < 0.05) < 0.09
    assert np.mean(np.array(by_row) < 0.05) > 0.2


def test_equal_candidates_have_p_1_and_an_error():
    right = np.repeat(np.random.default_rng(0).random((300, 1)) < 0.8, 3, axis=1)
    for scores in (right, np.ones((50, 3)), np.zeros((50, 3))):
        found = compare_all(scores)
        assert found.p.tolist() == [1, 1, 1]
        assert (found.error > 0).all()


def test_equal_differences_everywhere():
    scores = np.stack([np.ones(50), np.zeros(50)], axis=1)
    found = compare_all(scores, inflation=2.25)
    assert found.p[0] < 0.001
    assert found.error[0] > 0
    few = compare_all(scores[:5], inflation=2.25)
    assert few.p == pytest.approx([2 / 2**5])
    assert few.critical == float("inf")


def test_more_candidates_than_rows_one_candidate_and_one_unit():
    wide = compare_all(np.random.default_rng(1).random((3, 20)) < 0.5)
    assert len(wide.p) == 190
    assert (wide.p >= 0.05).all()  # three rows show nothing
    alone = compare_all(np.ones((5, 1)))
    assert len(alone.p) == 0
    assert np.isnan(alone.detectable(0))
    one = compare_all([[1, 0], [1, 0]], ["a", "a"])
    assert one.p.tolist() == [1]
    assert one.critical == float("inf")


def test_chosen_pairs_only():
    scores = np.random.default_rng(2).random((100, 5)) < (0.9, 0.8, 0.7, 0.6, 0.5)
    some = compare_all(scores, pairs=[(0, 4), (3, 1)])
    every = compare_all(scores)
    assert some.difference[1] == pytest.approx(-every.difference[5])
    assert (some.p <= [every.p[3], every.p[5]]).all()  # fewer to adjust for


@pytest.mark.parametrize(
    ("scores", "rest"),
    [
        ([], {}),
        (np.zeros((0, 3)), {}),
        ([1, 0, 1], {}),
        ([[1, 0]], {"units": ["a", "b"]}),
        ([[1, 0]], {"weights": [1, 1]}),
    ],
)
def test_scores_that_are_no_table(scores, rest):
    for function in (compare_all, winner):
        with pytest.raises(DataError):
            function(scores, **rest)


def test_winner_of_equals_has_only_luck():
    rng = np.random.default_rng(9)
    found = [winner(rng.random((300, 40)) < 0.8, draws=50, seed=seed) for seed in range(120)]
    assert np.mean([one.score for one in found]) > 0.84
    assert np.mean([one.expected for one in found]) == pytest.approx(0.8, abs=0.009)
    assert np.mean([one.low < 0.8 < one.high for one in found]) > 0.85


def test_winner_against_a_plain_loop():
    rng = np.random.default_rng(10)
    right = rng.random((60, 5)) < rng.uniform(0.6, 0.9, 5)
    groups = rng.integers(20, size=60)
    rows = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    hits = tested = 0
    for _ in range(3000):
        out = rng.random(len(rows)) < 0.2
        seen = np.concatenate([r for r, o in zip(rows, out, strict=True) if not o])
        rest = np.concatenate([np.zeros(0, int), *(r for r, o in zip(rows, out, strict=True) if o)])
        hits += right[rest, right[seen].mean(axis=0).argmax()].sum()
        tested += len(rest)
    found = winner(right, groups, draws=3000)
    assert found.score == pytest.approx(right.mean(axis=0).max())
    assert found.expected == pytest.approx(hits / tested, abs=0.006)


@pytest.mark.parametrize("name", ["accuracy", "log_loss"])
def test_a_winner_is_never_expected_to_score_better_than_it_does(name):
    rng = np.random.default_rng(11)
    metric = METRICS[name]
    for seed in range(40):
        scores = rng.random((30, 4)) + np.array([0.0, 0.0, 0.2, 0.4]) * rng.random()
        scores = scores if metric.lower else scores > 0.5
        found = winner(scores, draws=50, seed=seed, metric=metric)
        assert metric.gain(found.expected, found.score) <= 1e-12
    # Without a choice there is no luck to take off, however many fifths are drawn.
    plain = rng.random(30) < 0.7
    alone = winner(np.stack([plain, np.zeros(30)], axis=1), draws=50)
    assert alone.expected == alone.score == plain.mean()


def test_winner_of_what_leaves_no_choice():
    for right, units in ((np.ones((5, 1)), None), (np.ones((5, 3)), ["a"] * 5)):
        found = winner(right, units)
        assert found.score == found.expected == 1
        assert found.low < 1
    nobody = winner(np.zeros((20, 3)))
    assert (nobody.score, nobody.expected, nobody.low) == (0, 0, 0)
    assert nobody.high > 0
