import json
import logging
from dataclasses import replace

import numpy as np
import pytest

from featcache.errors import CacheRefused
from featcache.fitting import leakage
from featcache.fitting.evaluate import evaluate
from featcache.fitting.leakage import (
    count_hashed,
    find_leaks,
    leaks_from_json,
    leaks_to_json,
    refuse_trained,
    report_leaks,
)
from featcache.fitting.pipeline import make_classifier
from featcache.fitting.splits import Fold, make_folds
from featcache.images.dhash import FLAT, symmetries

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


def hashed(features, *turns, seed=0):
    """Random hashes, but of rows `(copy, original, bits)` that differ in so many bits."""
    hashes = np.random.default_rng(seed).integers(0, 256, (len(features), 32), dtype=np.uint8)
    for copy, original, bits in turns:
        flipped = np.packbits(np.arange(256) < bits)
        hashes[copy] = hashes[original] ^ flipped
    return replace(features, dhash=hashes)


def test_dhash_finds_what_features_do_not_and_the_other_way_round():
    features = hashed(wide(split=SPLIT), (111, 8, 20))
    leak = found(features)["near duplicates"]
    assert leak.pairs == (("img0110.png", "img0005.png"), ("img0111.png", "img0008.png"))
    assert "2 pairs of near duplicates are on two sides of the data's own split" in str(leak)
    assert "1 by features: cosine of standardised vectors 0.85 or more" in str(leak)
    assert "1 by dHash: at most 24 bits of 256 apart)" in str(leak)
    both = hashed(wide(split=SPLIT), (110, 5, 3))
    assert found(both)["near duplicates"].pairs == (("img0110.png", "img0005.png"),)
    assert found(features, near=False) == {}


def test_a_mirrored_copy_across_folds_is_found_by_dhash_and_said():
    features = hashed(make_features())
    features.dhash[70] = [*symmetries(features.dhash[10:11])][5][0]
    one, two = np.arange(60), np.arange(60, 120)
    folds = [Fold(one, two, "a"), Fold(two, one, "b")]
    leak = found(features, folds)["near duplicates"]
    assert leak.pairs == (("img0010.png", "img0070.png"),)
    assert "24 bits of 256 apart, 1 mirrored or turned" in str(leak)
    together = Fold(np.arange(100), np.arange(100, 120), "c")
    assert "near duplicates" not in found(features, [together])


def test_near_duplicates_under_two_labels_are_reported_wherever_they_are():
    features = hashed(make_features(split=SPLIT), (7, 0, 4), (9, 3, 4))  # dog, cat; cat, cat
    leaks = found(features)
    assert set(leaks) == {"near labels"}
    assert leaks["near labels"].pairs == (("img0000.png", "img0007.png"),)
    text = "1 pair of near duplicates has two labels (for instance cat and dog)"
    assert text in str(leaks["near labels"])
    same = replace(features, sha256=np.where(np.arange(120) == 7, f"{0:064x}", features.sha256))
    assert set(found(same)) == {"labels"}  # equal content is told of once


def test_how_many_images_only_their_features_were_looked_at(caplog):
    features = hashed(make_features(split=SPLIT))
    features.dhash[:30] = 0
    features.dhash[30:32] = FLAT
    with caplog.at_level(logging.INFO, "featcache"):
        assert found(features) == {}
    assert "30 of 120 images have no dHash" in caplog.text
    assert "2 images are too even" in caplog.text
    assert count_hashed(features) == 90
    assert count_hashed(make_features()) == 0


def test_too_many_images_are_not_compared_by_dhash(monkeypatch, caplog):
    features = hashed(make_features(split=SPLIT), (111, 8, 0))
    assert set(found(features)) == {"near duplicates", "near labels"}
    monkeypatch.setattr(leakage, "NEAR_BY_HASH", 119)
    assert found(features) == {}
    assert "not looked for by dHash among 120 images (119 at most)" in caplog.text


def test_views_are_not_looked_at_by_dhash():
    plain = make_features(split=SPLIT)
    features = add_views(plain, "hflip")
    features = replace(features, dhash=np.tile(hashed(plain).dhash, (2, 1)))
    assert found(features) == {}
    assert count_hashed(features) == 120


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
    assert plain["hashed"] == 0
    assert leaks_from_json(plain) == leaks
    too_many = leaks_to_json([], near=False, hashed=60_000)  # for a search by features only
    assert (too_many["near_duplicates_searched"], too_many["hashed"]) == (False, 60_000)


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
