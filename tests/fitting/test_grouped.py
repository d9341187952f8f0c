import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from featcache.fitting import splits
from featcache.fitting.splits import hold_out, inner_folds, stratified_groups


def spread(fold, y, k):
    """The widest gap, over classes, between the folds' counts of one class."""
    counts = np.array([[((fold == f) & (y == c)).sum() for c in np.unique(y)] for f in range(k)])
    return int((counts.max(axis=0) - counts.min(axis=0)).max())


@settings(max_examples=60)
@given(
    groups=st.lists(st.integers(0, 60), min_size=30, max_size=120),
    k=st.integers(2, 6),
    seed=st.integers(0, 3),
)
def test_groups_are_whole_and_every_row_has_one_fold(groups, k, seed):
    groups = np.array(groups)
    y = np.array(["cat", "dog", "owl"])[np.arange(len(groups)) % 3]
    fold = stratified_groups(y, groups, k, seed)
    assert fold.shape == y.shape
    assert fold.min() >= 0
    assert fold.max() < k
    assert all(len(set(fold[groups == group])) == 1 for group in groups)
    np.testing.assert_array_equal(fold, stratified_groups(y, groups, k, seed))


def test_rows_that_stand_alone_level_the_folds():
    rng = np.random.default_rng(0)
    y = rng.choice(["a", "b", "c"], 1000, p=[0.7, 0.2, 0.1])
    groups = np.arange(1000)
    groups[:60] = np.repeat(np.arange(20), 3) + 2000
    fold = stratified_groups(y, groups, 5)
    assert spread(fold, y, 5) <= 1
    assert np.ptp(np.bincount(fold)) <= 1


@pytest.mark.parametrize("seed", range(3))
def test_as_even_as_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    groups = rng.choice(40, 600, p=rng.dirichlet(np.ones(40)))
    y = rng.choice(["a", "b", "c"], 600, p=[0.6, 0.3, 0.1])
    theirs = np.empty(600, int)
    splitter = StratifiedGroupKFold(4, shuffle=True, random_state=seed)
    for i, (_, test) in enumerate(splitter.split(y, y, groups)):
        theirs[test] = i
    share = [
        np.array([np.mean(y[fold == f] == c) for f in range(4) for c in "abc"])
        for fold in (stratified_groups(y, groups, 4, seed), theirs)
    ]
    overall = np.tile([np.mean(y == c) for c in "abc"], 4)
    off, their_off = (np.abs(shares - overall).max() for shares in share)
    assert off < their_off + 0.03


def test_seeds_shuffle():
    y, groups = np.array(["a", "b"] * 50), np.arange(100) // 2
    assert not np.array_equal(
        stratified_groups(y, groups, 5, 0), stratified_groups(y, groups, 5, 1)
    )


def test_only_rows_with_a_partner_are_placed_one_by_one(monkeypatch):
    """What scikit-learn does with every row; for 60,000 of them that takes it 9 s."""
    placed, plain = [], splits._largest_first

    def counted(codes, *rest):
        placed.append(len(codes))
        return plain(codes, *rest)

    monkeypatch.setattr(splits, "_largest_first", counted)
    y = np.array([f"c{i}" for i in range(10)])[np.arange(60_000) % 10]
    groups = np.arange(60_000)
    groups[7] = 59_999
    fold = stratified_groups(y, groups, 5)
    assert placed == [2]
    assert fold[7] == fold[59_999]
    assert spread(fold, y, 5) <= 1


@pytest.mark.parametrize("groups", [None, np.arange(120) // 5])
def test_inner_folds_hold_every_row_out_once(groups):
    y = np.arange(120) % 4
    folds = inner_folds(y, groups, 3, 0)
    assert sorted(np.concatenate([held for _, held in folds])) == list(range(120))
    for rest, held in folds:
        assert sorted([*rest, *held]) == list(range(120))
        assert set(y[rest]) == set(range(4))
        assert groups is None or not set(groups[rest]) & set(groups[held])


def test_a_class_too_rare_for_inner_folds():
    y = np.array(["a"] * 9 + ["b"] * 2)
    assert len(inner_folds(y, None, 3, 0)) == 2
    assert inner_folds(y[:-1], None, 3, 0) == []
    one_group = np.array([*range(9), 9, 9])  # the class "b" is on one side of each fold
    assert inner_folds(y, one_group, 3, 0) == []
    assert inner_folds(y, np.zeros(11), 3, 0) == []


def test_the_share_held_out_is_stratified():
    y = np.repeat([0, 1], [80, 20])
    train, held = hold_out(y, None, 0.1, 0)
    assert np.bincount(y[held]).tolist() == [8, 2]
    assert sorted([*train, *held]) == list(range(100))


def test_the_share_held_out_does_not_divide_groups():
    y = np.arange(400) % 4
    groups = np.arange(400) // 8
    train, held = hold_out(y, groups, 0.1, 0)
    assert sorted([*train, *held]) == list(range(400))
    assert not set(groups[train]) & set(groups[held])
    assert 24 <= len(held) <= 56
    assert set(y[held]) == set(range(4))
    one_group = hold_out(y, np.zeros(400), 0.1, 0)
    assert [len(rows) for rows in one_group] == [400, 0]


def test_a_group_can_bring_all_classes_into_a_small_share():
    y, groups = np.arange(12) % 3, np.arange(12) // 3  # a tenth of 12 rows can't have 3 classes
    assert len(hold_out(y, groups, 0.1, 0)[1]) == 0
    assert len(hold_out(y, groups, 0.1, 0, by_count=False)[1]) == 3
