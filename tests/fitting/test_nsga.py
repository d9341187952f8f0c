import importlib.util

import numpy as np
import pytest

from featcache.errors import DataError, FeatcacheError, RecipeError, UnknownName
from featcache.fitting.selection import NSGASelection, _knee, make_selection

pytest.importorskip("pymoo")


def planted(n=200, noise=28, seed=0):
    """Two columns that tell three classes apart, among many that tell nothing."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    X = rng.normal(size=(n, noise + 2)).astype(np.float32)
    X[:, 5] += 4 * (y == 1)
    X[:, 11] += 4 * (y == 2)
    return X, np.array(["a", "b", "c"])[y]


def test_finds_the_planted_columns():
    X, y = planted()
    found = NSGASelection(population=20, generations=25).fit(X, y)
    assert found.support_[[5, 11]].all()
    assert found.support_.sum() < 12
    assert found.transform(X).shape == (200, found.support_.sum())


def test_the_front_is_one():
    X, y = planted()
    front = NSGASelection(population=16, generations=8).fit(X, y).front_
    for one in front:  # nobody is beaten in both
        better = (front <= one).all(axis=1) & (front < one).any(axis=1)
        assert not better.any()


def test_seed_determines_the_search():
    X, y = planted()

    def found(seed):
        return NSGASelection(8, 4, random_state=seed).fit(X, y).support_

    np.testing.assert_array_equal(found(0), found(0))
    assert not np.array_equal(found(0), found(1))


def test_picks():
    X, y = planted()
    low = NSGASelection(16, 10, pick="error").fit(X, y)
    assert low.support_.sum() == low.front_[low.front_[:, 0].argmin(), 1]
    # By hand: scaled to the unit square the points are (0, 1), (0.1, 0.1), (1, 0).
    assert _knee(np.array([[0.0, 100.0], [0.1, 10.0], [1.0, 0.0]])) == 1


def test_errors():
    X, y = planted(30)
    with pytest.raises(UnknownName, match="pick"):
        NSGASelection(pick="best").fit(X, y)
    with pytest.raises(RecipeError, match="population"):
        NSGASelection(population=1).fit(X, y)
    with pytest.raises(DataError, match="can't hold rows out"):
        NSGASelection().fit(X[:4], np.array(["a", "a", "b", "c"]))


def test_without_pymoo(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FeatcacheError) as caught:
        make_selection("nsga")
    assert "pip install 'featcache[nsga]'" in caught.value.remedy


@pytest.mark.parametrize("rows", [39, 40, 41, 42])
def test_hardly_more_rows_than_it_looks_at(rows):
    X = np.random.default_rng(0).normal(size=(42, 6))
    y = np.arange(42) % 3
    search = NSGASelection(population=4, generations=1, rows=rows).fit(X, y)
    assert search.get_support().any()
