from __future__ import annotations

import numpy as np
import pytest
from small import coloured, small_backbone

from featcache.errors import CacheRefused
from featcache.extraction.extract import extract
from featcache.finetuning.data import table, validation_rows
from featcache.fitting.leakage import refuse_trained
from featcache.fitting.splits import components, make_folds
from featcache.images.manifest import from_arrays
from featcache.reporting.schema import rows_digest


@pytest.mark.parametrize("options", [{}, {"folds": 3}])
def test_folds_and_digest_are_those_of_cached_features(cache, options: dict) -> None:
    images, backbone = coloured(), small_backbone()
    cached = extract(images, backbone=backbone, cache=cache, device="cpu")
    mine = table(images, [backbone])
    theirs = make_folds(cached, **options, seed=3)
    folds = make_folds(mine, **options, seed=3)
    for a, b in zip(folds, theirs, strict=True):
        assert np.array_equal(a.train, b.train)
        assert np.array_equal(a.test, b.test)
    assert rows_digest(mine, folds) == rows_digest(cached, theirs)


def test_the_own_val_split_validates() -> None:
    images = coloured(30)
    images.split[[1, 5]] = "test"
    images.split[[3, 4, 12]] = "val"
    features = table(images, [small_backbone()])
    (fold,) = make_folds(features)
    train, held = validation_rows(features, fold, 0.1, 0)
    assert held.tolist() == [3, 4, 12]
    assert set(train) | set(held) == set(fold.train)
    assert not set(train) & set(held)


def test_else_a_stratified_share_that_keeps_groups_together() -> None:
    images = coloured(120, groups=[f"g{i // 3}" for i in range(120)])
    features = table(images, [small_backbone()])
    (fold,) = make_folds(features)
    train, held = validation_rows(features, fold, 0.1, 0)
    linked = components(features)
    assert not set(linked[train]) & set(linked[held])
    assert sorted([*train, *held]) == sorted(fold.train)
    assert 6 <= len(held) <= 12  # of 80
    assert len(set(features.y[held])) == 3
    again = validation_rows(features, fold, 0.1, 0)
    other = validation_rows(features, fold, 0.1, 1)
    assert np.array_equal(again[1], held)
    assert not np.array_equal(other[1], held)


def test_too_few_rows_or_no_share_give_no_validation() -> None:
    features = table(coloured(9), [small_backbone()])
    (fold,) = make_folds(features)
    assert not len(validation_rows(features, fold, 0.1, 0)[1])
    assert not len(validation_rows(features, fold, 0.0, 0)[1])


def test_weights_that_have_seen_a_row_are_not_tested_on_it() -> None:
    images = coloured(30)
    features = table(images, [small_backbone()])
    (fold,) = make_folds(features)
    seen = frozenset(images.sha256[fold.train].tolist())
    refuse_trained(table(images, [small_backbone(trained_on=seen)]), [fold])
    one = frozenset(images.sha256[fold.test[:1]].tolist())
    with pytest.raises(CacheRefused, match="1 of 12 test images"):
        refuse_trained(table(images, [small_backbone(trained_on=one)]), [fold])


def test_equal_images_count_as_one_in_the_digest_too() -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    images = from_arrays("two", [pixels, pixels], ids=["a", "b"], labels=["x", "y"])
    assert len(set(components(table(images, [small_backbone()])).tolist())) == 1
