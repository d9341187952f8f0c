import numpy as np
import pytest

from featcache.fitting import leakage
from featcache.fitting.leakage import near_pairs


def brute_force(X, blocks, least):
    """All pairs by float64 and no projection."""
    X = X.astype(np.float64)
    sd = X.std(axis=0)
    Z = (X - X.mean(axis=0)) / np.where(sd > 0, sd, 1)
    total, start = np.zeros((len(X), len(X))), 0
    for width in blocks:
        part = Z[:, start : start + width]
        part = part / np.linalg.norm(part, axis=1, keepdims=True)
        total += part @ part.T / len(blocks)
        start += width
    i, j = np.triu_indices(len(X), 1)
    keep = total[i, j] >= least
    return set(zip(i[keep].tolist(), j[keep].tolist(), strict=True))


def planted(n=600, d=200, copies=25, noise=0.25, seed=0):
    """Rows of which the last are earlier ones with a little noise."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)).astype(np.float32)
    X[-copies:] = X[:copies] + rng.normal(scale=noise, size=(copies, d))
    return X, {(i, n - copies + i) for i in range(copies)}


@pytest.mark.parametrize("blocks", [(200,), (120, 80)])
@pytest.mark.parametrize("tile", [(1024, 16384), (50, 70)])
def test_finds_what_brute_force_finds(monkeypatch, blocks, tile):
    monkeypatch.setattr(leakage, "_TILE", tile)
    X, copies = planted(noise=0.5)
    found = near_pairs(X, blocks, np.arange(600))
    assert found.least == leakage.COSINE
    assert {tuple(pair) for pair in found.pairs.tolist()} == brute_force(X, blocks, leakage.COSINE)
    assert {tuple(pair) for pair in found.pairs.tolist()} <= copies
    assert (np.diff(found.cosine) <= 0).all()


def test_two_sides():
    X, copies = planted()
    left, right = np.arange(600)[::-1][:300], np.arange(300)
    found = near_pairs(X, (200,), left, right)
    assert {(b, a) for a, b in found.pairs.tolist()} == copies


def test_nothing_is_near_by_chance_where_columns_are_few():
    rng = np.random.default_rng(0)
    for d in (2, 3, 5, 8, 20):
        X = rng.normal(size=(1500, d)).astype(np.float32)
        assert len(near_pairs(X, (d,), np.arange(1500)).pairs) <= 1


def test_data_in_which_every_image_has_copies_is_seen_through():
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(200, 100)), 4, axis=0).astype(np.float32)
    X += rng.normal(scale=0.2, size=X.shape).astype(np.float32)
    found = near_pairs(X, (100,), np.arange(800))
    assert {tuple(pair) for pair in found.pairs.tolist()} == {
        (i, j) for i in range(800) for j in range(i + 1, (i // 4 + 1) * 4)
    }


def test_constant_columns_zero_rows_and_nan_do_no_harm():
    X, copies = planted()
    X[:, :3] = 7.0
    X[300] = 0
    X[301] = np.nan
    X[302, 5] = np.inf
    found = near_pairs(X, (200,), np.arange(600))
    assert {tuple(pair) for pair in found.pairs.tolist()} >= copies


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_few_rows(n):
    X = np.random.default_rng(0).normal(size=(n, 30)).astype(np.float32)
    assert len(near_pairs(X, (30,), np.arange(n)).pairs) <= 1


def test_it_stops_after_enough():
    X, _ = planted(copies=200)
    assert len(near_pairs(X, (200,), np.arange(600), most=10).pairs) >= 10
