import json
from dataclasses import replace

import numpy as np
import pytest

from featcache.errors import CacheRefused
from featcache.fitting import leakage
from featcache.fitting.evaluate import evaluate
from featcache.fitting.leakage import (
    find_leaks,
    leaks_from_json,
    leaks_to_json,
    near_pairs,
    refuse_trained,
    report_leaks,
)
from featcache.fitting.pipeline import make_classifier
from featcache.fitting.splits import Fold, make_folds

from .conftest import add_views, make_features

SPLIT = ["train"] * 90 + ["test"] * 30


def found(features, folds=None, **options):
    leaks = find_leaks(features, folds or make_folds(features), **options)
    return {leak.kind: leak for leak in leaks}


def test_clean_data_has_none():
    assert found(make_features(split=SPLIT)) == {}
    assert found(add_views(make_features(split=SPLIT), "hflip")) == {}
    assert found(make_features(groups=[f"g{i // 3}" for i in range(120)])) == {}


def test_duplicates_across_the_own_split():
    sha256 = [f"{i:064x}" for i in range(120)]
    sha256[99] = sha256[102] = sha256[3]
    leaks = found(make_features(split=SPLIT, sha256=sha256))
    assert set(leaks) == {"duplicates"}
    leak = leaks["duplicates"]
    assert leak.count == 2
    assert leak.pairs == (("img0099.png", "img0003.png"), ("img0102.png", "img0003.png"))
    assert "2 test images are also" in str(leak)
    assert "img0099.png = img0003.png" in str(leak)


def test_folds_keep_duplicates_together():
    sha256 = [f"{i // 3:064x}" for i in range(120)]
    features = make_features(classes=("cat", "dog", "owl"), sha256=sha256)
    same = replace(features, y=np.array(["cat", "dog"])[np.arange(120) // 3 % 2])
    assert "duplicates" not in found(same, make_folds(same), near=False)


def test_groups_across_the_own_split_and_across_folds_by_image():
    groups = [""] * 120
    groups[4] = groups[101] = "patient"
    split = make_features(split=SPLIT, groups=groups)
    assert found(split)["groups"].pairs == (("img0101.png", "img0004.png"),)
    in_thirds = make_features(groups=[f"g{i // 3}" for i in range(120)])
    by_image = make_folds(in_thirds, folds=4, group="image")
    assert found(in_thirds, by_image)["groups"].count > 50


def test_one_content_with_two_labels_names_both_files():
    sha256 = [f"{i:064x}" for i in range(120)]
    sha256[7] = sha256[0]  # a dog and a cat
    leak = found(make_features(sha256=sha256))["labels"]
    assert (leak.count, leak.pairs) == (1, (("img0000.png", "img0007.png"),))
    assert "1 content has two labels (for instance cat and dog)" in str(leak)
    assert "img0000.png = img0007.png" in str(leak)


def wide(**options):
    features = make_features(blocks=(60, 40), signal=0.1, **options)
    X = features.X.copy()
    X[110] = X[5] + np.random.default_rng(3).normal(scale=0.1, size=100)
    return replace(features, X=X)


def test_a_planted_near_duplicate_is_found():
    leak = found(wide(split=SPLIT))["near duplicates"]
    assert leak.pairs == (("img0110.png", "img0005.png"),)
    assert "cosine" in str(leak)
    assert found(wide(split=SPLIT), near=False) == {}
    both_train = wide(split=["test"] * 4 + ["train"] * 116)
    assert found(both_train) == {}


def test_near_duplicates_across_folds_and_not_within_one():
    features = wide()
    together = Fold(np.arange(60), np.arange(60, 120), "a")
    rest = Fold(np.arange(60, 120), np.arange(60), "b")
    leak = found(features, [together, rest])["near duplicates"]
    assert set(leak.pairs[0]) == {"img0110.png", "img0005.png"}
    mine = np.isin(np.arange(120), [*range(50), 110])
    folds = [Fold(np.flatnonzero(mine == i), np.flatnonzero(mine != i), f"f{i}") for i in (0, 1)]
    assert found(features, folds) == {}


def test_leaky_folds_say_how_many_rows_know_their_image():
    features = add_views(make_features(), "hflip")
    leaks = found(features, make_folds(features, leaky=True), near=False)
    assert set(leaks) == {"views"}
    assert leaks["views"].count > 100
    assert "@hflip" in str(leaks["views"])


def test_warnings_and_strict(caplog):
    sha256 = [f"{i:064x}" for i in range(120)]
    for i in range(5):
        sha256[100 + i * 3] = sha256[4 + i * 3]
    features = make_features(split=SPLIT, sha256=sha256)
    leaks = find_leaks(features, make_folds(features))
    report_leaks(leaks)
    assert "5 test images are also among the training images" in caplog.text
    assert caplog.text.count("=") == 3
    with pytest.raises(CacheRefused, match="5 test images") as caught:
        report_leaks(leaks, strict=True, where="leaks.json")
    assert caught.value.exit_code == 4
    assert "leaks.json lists them" in caught.value.remedy
    report_leaks([], strict=True)


def test_json_round_trip():
    leaks = find_leaks(wide(split=SPLIT), make_folds(wide(split=SPLIT)))
    plain = json.loads(json.dumps(leaks_to_json(leaks, near=True)))
    assert plain["near_duplicates_searched"] is True
    assert plain["leaks"][0]["pairs"] == [["img0110.png", "img0005.png"]]
    assert leaks_from_json(plain) == leaks


def test_rows_that_trained_a_backbone_are_not_scored():
    plain = make_features(split=SPLIT)
    seen = replace(plain, trained_on=(frozenset(), frozenset(plain.sha256[85:93].tolist())))
    classifier = make_classifier("concat", "logreg")
    with pytest.raises(CacheRefused, match="net1 was fine-tuned on 3 of 30 test images: img0090"):
        evaluate(classifier, seen)
    with pytest.raises(CacheRefused, match="net1 was fine-tuned on 8 of 120"):
        evaluate(classifier, seen, folds=3)
    refuse_trained(seen.select(["net0"]), make_folds(seen))
    evaluate(classifier, seen.select(["net0"]))
    honest = replace(plain, trained_on=(frozenset(), frozenset(plain.sha256[:90].tolist())))
    evaluate(classifier, honest)


# Near-duplicates.


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
