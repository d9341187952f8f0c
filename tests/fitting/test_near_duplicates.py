from __future__ import annotations

import numpy as np
import pytest
from noise import noise

from featcache.fitting import near_duplicates
from featcache.fitting.near_duplicates import BITS, hash_pairs, near_pairs, telling
from featcache.images.dhash import FLAT, dhash, symmetries


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
    monkeypatch.setattr(near_duplicates, "_TILE", tile)
    X, copies = planted(noise=0.5)
    found = near_pairs(X, blocks, np.arange(600))
    assert found.least == near_duplicates.COSINE
    assert {tuple(pair) for pair in found.pairs.tolist()} == brute_force(
        X, blocks, near_duplicates.COSINE
    )
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


# By dHash.


def random_hashes(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 32), dtype=np.uint8)


def with_flipped(hashes, bits, seed=1):
    """The hashes with so many random bits changed in each."""
    rng = np.random.default_rng(seed)
    changed = np.zeros((len(hashes), 256), np.uint8)
    for row in changed:
        row[rng.permutation(256)[:bits]] = 1
    return hashes ^ np.packbits(changed, axis=1)


@pytest.mark.parametrize("bits", [0, 8, 15, BITS])
@pytest.mark.parametrize("turn", [0, 2, 5, 7])
def test_every_copy_is_found_once_however_turned(bits, turn, monkeypatch):
    monkeypatch.setattr(near_duplicates, "_CANDIDATES", 7)
    hashes = random_hashes(300)
    turned = [*symmetries(with_flipped(hashes[:20], bits))][turn]
    found = hash_pairs(np.concatenate([hashes, turned]), np.arange(320))
    assert found.pairs.tolist() == [[i, 300 + i] for i in range(20)]
    assert found.bits.tolist() == [bits] * 20
    assert found.turned.tolist() == [turn > 0] * 20
    assert found.most == BITS


def test_no_pair_beyond_the_limit_or_outside_the_rows():
    hashes = random_hashes(300)
    far = np.concatenate([hashes, with_flipped(hashes[:20], BITS + 1)])
    assert len(hash_pairs(far, np.arange(320)).pairs) == 0
    near = np.concatenate([hashes, with_flipped(hashes[:20], 5)])
    assert len(hash_pairs(near, np.arange(300)).pairs) == 0
    assert hash_pairs(near, np.array([319, 7, 19, 40])).pairs.tolist() == [[319, 19]]


def test_flat_and_unknown_hashes_are_no_duplicates_of_each_other():
    hashes = random_hashes(60)
    hashes[:20] = 0
    hashes[20:40] = with_flipped(np.tile(FLAT, (20, 1)), 3)
    hashes[40] = ~FLAT
    assert telling(hashes).tolist() == [False] * 41 + [True] * 19
    assert len(hash_pairs(hashes, np.arange(60)).pairs) == 0


def test_pictures_that_are_all_much_alike_are_no_duplicates():
    """As digits are: each has a few of many strokes, so that most are near each other."""
    rng = np.random.default_rng(0)
    ground, strokes = random_hashes(1), random_hashes(12, seed=5) & random_hashes(12, seed=6)
    alike = np.tile(ground, (800, 1))
    for stroke in strokes:
        alike[rng.random(800) < 0.5] ^= stroke & random_hashes(1, seed=int(stroke[0]))[0]
    alike = with_flipped(alike, 5)
    found = hash_pairs(alike, np.arange(800))
    assert found.most < 10
    assert len(found.pairs) < 10


def test_pictures_saved_anew():
    hashes = [dhash(noise(i)) for i in range(40)]
    hashes += [dhash(noise(i).resize((96, 80)).rotate(90, expand=True)) for i in range(10)]
    found = hash_pairs(np.stack(hashes), np.arange(50))
    assert sorted(found.pairs.tolist()) == [[i, 40 + i] for i in range(10)]
    assert found.turned.all()


@pytest.mark.parametrize("n", [10, 14, 30])
def test_the_threshold_of_few_pictures_is_that_of_many(n):
    assert hash_pairs(np.stack([dhash(noise(i)) for i in range(n)]), np.arange(n)).most == BITS


def test_copies_of_one_picture_by_the_thousand_stop_the_search(monkeypatch):
    monkeypatch.setattr(near_duplicates, "_CANDIDATES", 500)
    hashes = np.tile(random_hashes(1), (3000, 1))
    assert 1000 <= len(hash_pairs(hashes, np.arange(3000), most=1000).pairs) <= 1500


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_few_hashes(n):
    assert hash_pairs(random_hashes(n), np.arange(n)).pairs.shape == (0, 2)
