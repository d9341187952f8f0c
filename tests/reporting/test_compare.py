"""The grid is fitted once, on shared folds, and kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from featcache.errors import CacheRefused, FeatcacheError
from featcache.reporting import compare as module
from featcache.reporting.compare import compare

from .conftest import make_features


@pytest.fixture
def fitted(monkeypatch):
    """The candidates that were really fitted, by name."""
    seen: list[str] = []
    evaluate_all = module.evaluate_all

    def counted(*args, **kwargs):
        for candidate, result in evaluate_all(*args, **kwargs):
            seen.append(candidate.name)
            yield candidate, result

    monkeypatch.setattr(module, "evaluate_all", counted)
    return seen


def test_every_candidate_once_on_the_same_rows(tmp_path, fitted):
    told = []
    done = compare(
        make_features(), head=["logreg", "svm"], folds=3, reports=tmp_path,
        fitted=lambda *facts: told.append(facts),
    )  # fmt: skip
    names = {f"{b}.concat.{h}" for b in ("big+small", "big", "small") for h in ("logreg", "svm")}
    assert {run.name for run in done} == set(fitted) == names
    assert len(fitted) == 6
    assert len({run.rows for run in done}) == 1
    assert [(number, count) for number, count, _ in told] == [(i, 6) for i in range(1, 7)]
    accuracy = [run.metric("accuracy") for run in done]
    assert accuracy == sorted(accuracy, reverse=True)
    assert done.best.p is None
    assert all(run.p is not None for run in done.runs[1:])
    for name in ("comparison.csv", "comparison.md", "toy/comparison.png"):
        assert (tmp_path / name).stat().st_size > 0


def test_the_same_again_fits_nothing(tmp_path, fitted):
    options = {"head": ["logreg"], "folds": 3, "reports": tmp_path}
    first = compare(make_features(), **options)
    fitted.clear()
    assert compare(make_features(), **options) == first
    assert fitted == []
    compare(make_features(), **options, singles=False, again=True)
    assert fitted == ["big+small.concat.logreg"]


def test_the_order_of_the_backbones_makes_no_other_candidate(tmp_path, fitted):
    options = {"head": "logreg", "fusion": ["concat", "vote"], "folds": 3, "reports": tmp_path}
    first = compare(make_features().select(["small", "big"]), **options)
    # As they were before there was one order.
    assert {run.folder.name for run in first} == {
        "big+small.concat.logreg.574e9f92", "big+small.vote.logreg.db3c4288",
        "big.concat.logreg.1db981ae", "small.concat.logreg.c27d1a12",
    }  # fmt: skip
    fitted.clear()
    assert compare(make_features(), **options) == first
    assert fitted == []


def test_a_setting_redoes_only_the_candidates_that_it_is_for(tmp_path, fitted):
    options = {"head": ["logreg", "svm"], "folds": 3, "reports": tmp_path, "singles": False}
    compare(make_features(), **options)
    fitted.clear()
    compare(make_features(), **options, settings={"svm.C": 3.0})
    assert fitted == ["big+small.concat.svm"]


def test_other_labels_or_another_seed_are_fitted_again(tmp_path, fitted):
    options = {"head": "logreg", "folds": 3, "reports": tmp_path, "singles": False}
    compare(make_features(), **options)
    compare(make_features(), **options, seed=1)
    features = make_features()
    compare(replace(features, y=np.roll(features.y, 1)), **options)
    assert len(fitted) == 3


def test_broken_features_are_refused_before_anything_is_fitted(tmp_path, fitted):
    features = make_features()
    X = features.X.copy()
    X[3] = np.nan
    with pytest.raises(CacheRefused):
        compare(replace(features, X=X), head="logreg", reports=tmp_path)
    assert fitted == []
    assert not list(tmp_path.iterdir())


def test_a_backbone_with_signal_is_told_from_one_without(tmp_path):
    features = make_features(600, signal=3.0)
    X = features.X.copy()
    X[:, 3:] = np.random.default_rng(9).normal(size=(600, 2))
    split = np.where(np.arange(600) < 300, "train", "test")
    done = compare(replace(features, X=X, split=split), head="logreg", reports=tmp_path)
    assert done.best.split == "test split"
    # Of the two with the signal one is best and the other ties.
    assert [run.tie for run in done] == [False, True, False]
    assert done.runs[2].backbones == ("small",)


def test_a_reports_folder_that_can_t_be_written_is_refused_before_anything_is_fitted(
    tmp_path, fitted
):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(FeatcacheError, match="can't be written") as caught:
        compare(make_features(), head="logreg", folds=3, reports=tmp_path / "taken")
    assert "--reports" in caught.value.remedy
    assert fitted == []
