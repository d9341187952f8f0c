"""Designs at the edge: tiny classes, groups of one class, more candidates than rows, no winner."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from featcache.errors import DataError, RecipeError
from featcache.fitting.metrics import METRICS
from featcache.fitting.splits import make_folds
from featcache.reporting.ablation import ablation
from featcache.reporting.compare import compare
from featcache.reporting.comparison import sort_runs
from featcache.reporting.ties import verdict

from .conftest import make_features, make_run, own_split

HEADS = ["nearest_mean", "knn", "dummy"]
EVERY = pytest.mark.parametrize("metric", METRICS)


def whole(runs):
    """Every number that is said of the runs is one, and no interval is of zero width."""
    assert runs
    for run in runs:
        assert math.isnan(run.score) == math.isnan(run.score_interval[0])
        low, high = run.score_interval
        assert math.isnan(run.score) or low < high
        # The accuracy's in these folders is one of all rows.
        assert math.isnan(run.score) or run.ranked is None or low <= run.score <= high
        assert run.p is None or 0 < run.p <= 1
    family = runs[0].family
    if family is not None:
        found = family.winner
        assert found.low <= found.expected <= found.high
        assert found.low < found.high
    assert "nan" not in verdict(runs)


def ten_classes(groups=None):
    """Ten classes with three rows each."""
    features = make_features(30, groups=groups)
    X = features.X + 4 * np.eye(10, 5, dtype=np.float32)[np.arange(30) % 10]
    return replace(features, X=X, y=np.array([f"c{i % 10}" for i in range(30)]))


@EVERY
def test_ten_classes_with_three_rows(tmp_path, metric):
    features = ten_classes()
    if metric == "f1_positive":
        with pytest.raises(RecipeError, match="of one of two classes"):
            compare(features, head=HEADS, folds=3, reports=tmp_path, metric=metric)
        return
    done = compare(features, head=HEADS, singles=False, folds=3, reports=tmp_path, metric=metric)
    whole(done.runs)
    with pytest.raises(DataError, match="class 'c0' has 3 images, fewer than 5 folds"):
        compare(features, head=HEADS, reports=tmp_path, metric=metric)


@EVERY
def test_groups_of_one_class(tmp_path, metric):
    """Every group is of one class: some folds may lack one, and no number may be made up."""
    features = make_features(60, groups=[f"g{i % 2}{i // 20}" for i in range(60)])
    done = compare(features, head=HEADS, singles=False, folds=3, reports=tmp_path, metric=metric)
    whole(done.runs)


@EVERY
def test_more_candidates_than_rows(tmp_path, metric):
    features, rng = make_features(6), np.random.default_rng(0)
    split = own_split(6, 3)
    runs = [
        make_run(tmp_path, features, split, rng.random(6) < 0.7, f"h{number}")
        for number in range(12)
    ]
    done = sort_runs(runs, metric)
    whole(done.runs)
    assert not any(run.p is not None and run.p < 0.05 for run in done)  # three rows show nothing


@EVERY
@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("count", [1, 3])
def test_all_right_or_all_wrong(tmp_path, metric, right, count):
    features = make_features(40)
    split = make_folds(features, 4)
    heads = [f"h{number}" for number in range(count)]
    done = sort_runs(
        [make_run(tmp_path, features, split, np.full(40, right), head) for head in heads], metric
    )
    whole(done.runs)
    assert all(run.tie for run in done.runs[1:])
    if count == 1:
        assert "the only run" in verdict(done.runs)


@EVERY
def test_a_class_that_a_fold_lacks(tmp_path, metric):
    """The second fold tests cats only."""
    features = make_features(60)
    first = replace(own_split(60, 30)[0], name="fold1")
    rest = np.setdiff1d(np.arange(60), np.arange(0, 30, 2))
    cats = replace(first, name="fold2", train=rest, test=np.arange(0, 30, 2))
    rng = np.random.default_rng(1)
    runs = [
        make_run(tmp_path, features, [first, cats], rng.random(60) < 0.8, head)
        for head in ("mlp", "svm", "knn")
    ]
    done = sort_runs(runs, metric)
    whole(done.runs)
    assert done.best.family.size == 3


@EVERY
def test_equal_differences_in_every_fold(tmp_path, metric):
    """Two of ten images more in each of four folds: their spread over folds is 0."""
    features = make_features(40)
    split = make_folds(features, 4)
    worse = np.ones(40, bool)
    for fold in split:
        worse[fold.test[:2]] = False
    made = [
        replace(make_run(tmp_path, features, split, right, "mlp"), backbones=backbones)
        for right, backbones in ((np.ones(40, bool), ("big", "small")),)
    ]
    made += [make_run(tmp_path, features, split, worse, "svm")]
    done = sort_runs(made, metric)
    whole(done.runs)
    assert done.best.head == "mlp"
    assert done.best.family.detectable > 0
    # As what a backbone adds, its interval has a width too.
    alone = replace(done.runs[1], head="mlp", backbones=("big",))
    (found,) = ablation([done.best, alone])
    assert found.low < found.adds < found.high


def test_fewer_rows_than_folds(tmp_path):
    with pytest.raises(DataError, match="4 samples can't fill 5 folds"):
        compare(make_features(4), head=HEADS, reports=tmp_path)
    assert not any(tmp_path.rglob("run.json"))


def test_one_candidate_has_no_luck_to_take_off(tmp_path):
    run = make_run(tmp_path, make_features(40), own_split(40, 20), np.arange(40) % 4 > 0, "mlp")
    (alone,) = sort_runs([run], "f1")
    assert (alone.p, alone.family) == (None, None)
    assert json.loads((run.folder / "metrics.json").read_text())["mean"]["f1"] == alone.score
