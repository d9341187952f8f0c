"""Objects of the user's own as fusions and heads of a comparison."""

from __future__ import annotations

import csv
import json
import logging
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin, clone
from sklearn.ensemble import BaggingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import validate_data
from stored import blobs, store

import featcache as fc
from featcache.errors import RecipeError, UnknownName
from featcache.prediction.bundle_reader import find_model

from .conftest import make_features


class Centroids(ClassifierMixin, BaseEstimator):
    """The nearest class mean, some powers of the distance away."""

    fits = 0

    def __init__(self, power: float = 2.0, weights: Any = None, member: Any = None) -> None:
        self.power = power
        self.weights = weights
        self.member = member

    def fit(self, X: Any, y: Any) -> Centroids:
        type(self).fits += 1
        assert not hasattr(self, "means_"), "fitted before: not a clone"
        X, y = validate_data(self, X, y)
        self.classes_ = np.unique(y)
        self.means_ = np.stack([X[y == label].mean(axis=0) for label in self.classes_])
        self.history_ = "no learning curves"  # as other libraries use the name
        return self

    def predict(self, X: Any) -> Any:
        X = validate_data(self, X, reset=False)
        apart = (np.abs(X[:, None] - self.means_) ** self.power).sum(axis=2)
        return self.classes_[apart.argmin(axis=1)]


class Difference(TransformerMixin, BaseEstimator):
    """The first column of each block, times a factor, and nothing else."""

    def __init__(self, factor: float = 1.0, blocks: Any = None) -> None:
        self.factor = factor
        self.blocks = blocks

    def fit(self, X: Any, y: Any = None) -> Difference:
        X = validate_data(self, X)
        assert self.blocks is not None, "the blocks were not set"
        assert sum(self.blocks) == X.shape[1]
        self.starts_ = np.cumsum([0, *self.blocks[:-1]])
        return self

    def transform(self, X: Any) -> Any:
        return self.factor * X[:, self.starts_]


class Careless(GaussianNB):
    """Probabilities that sum to 0.998."""

    def predict_proba(self, X: Any) -> Any:
        return super().predict_proba(X) * 0.998


class mlp(Centroids):
    pass


def names(done: Any) -> set[str]:
    return {run.name for run in done}


def test_own_objects_stand_beside_names(tmp_path):
    done = fc.compare(
        make_features(), fusion=[Difference(), "concat"], head=[Centroids(), "logreg"], folds=3,
        reports=tmp_path,
    )  # fmt: skip
    both = "big+small"
    assert names(done) == {
        f"{both}.Difference.Centroids", f"{both}.Difference.logreg",
        f"{both}.concat.Centroids", f"{both}.concat.logreg",
        "big.concat.Centroids", "small.concat.Centroids",
        "big.concat.logreg", "small.concat.logreg",
    }  # fmt: skip
    with (tmp_path / "comparison.csv").open() as file:
        table = {(row["backbones"], row["fusion"], row["head"]) for row in csv.DictReader(file)}
    assert (both, "Difference", "Centroids") in table


def test_the_scores_are_those_of_the_object_itself(tmp_path):
    features = make_features()
    split = np.where(np.arange(80) < 50, "train", "test")
    done = fc.compare(
        replace(features, split=split), fusion=Difference(), head=Centroids(power=1.0),
        reports=tmp_path, singles=False,
    )  # fmt: skip
    ours = make_pipeline(Difference(blocks=(3, 2)), Centroids(power=1.0))
    ours.fit(features.X[:50], features.y[:50])
    right = (ours.predict(features.X[50:]) == features.y[50:]).mean()
    assert done.best.metric("accuracy") == pytest.approx(right)
    assert done.best.name == "big+small.Difference.Centroids-power=1.0"


def test_two_of_one_class_are_told_apart_whatever_else_is_in_the_grid(tmp_path):
    options: dict[str, Any] = {"folds": 2, "reports": tmp_path, "singles": False}
    heads = [Centroids(), Centroids(power=3), Centroids(weights=np.arange(3)), Centroids(3)]
    done = fc.compare(make_features(), head=heads, **options)
    assert len({run.folder for run in done}) == len(names(done)) == 3  # two are the same
    assert {"big+small.concat.Centroids", "big+small.concat.Centroids-power=3"} < names(done)
    alone = fc.compare(make_features(), head=Centroids(power=3), **options)
    assert alone.best.folder in {run.folder for run in done}


def test_what_was_run_is_not_run_again(tmp_path):
    options: dict[str, Any] = {"folds": 2, "reports": tmp_path, "singles": False}
    fc.compare(make_features(), head=Centroids(), **options)
    Centroids.fits = 0
    fc.compare(make_features(), head=Centroids(), **options)
    assert Centroids.fits == 0
    fc.compare(make_features(), head=Centroids(), **options, again=True)
    assert Centroids.fits == 2  # none for a model that can't be kept
    Centroids.fits = 0
    nested = [Centroids(member=LogisticRegression(C=C)) for C in (1.0, 2.0)]
    fc.compare(make_features(), head=nested, **options)
    assert Centroids.fits == 4


def test_probabilities_that_miss_one_are_made_to_sum_to_it(tmp_path):
    """Gaussians in float32 do, over many columns: scikit-learn refuses the AUC of three classes."""
    X, y = blobs(90)
    cache, images = store(tmp_path / "cache", X, y, (6, 4))
    features = cache.features(images, cache.choose("toy"))
    options: dict[str, Any] = {"folds": 3, "reports": tmp_path, "singles": False}
    exact = fc.compare(features, head=GaussianNB(), **options).best
    run = fc.compare(features, head=Careless(), **options).best
    assert run.metric("auc") == pytest.approx(exact.metric("auc"), abs=0.01)


def test_settings_reach_an_object(tmp_path):
    options: dict[str, Any] = {"folds": 2, "reports": tmp_path, "singles": False}
    one = fc.compare(make_features(), head=Centroids(), **options).best
    other = fc.compare(
        make_features(), head=Centroids(), settings={"head.power": 1.0}, **options
    ).best
    assert one.folder != other.folder


def test_in_processes(tmp_path):
    options: dict[str, Any] = {"fusion": Difference(), "head": Centroids(), "folds": 2}
    here = fc.compare(make_features(), reports=tmp_path / "1", **options)
    there = fc.compare(make_features(), reports=tmp_path / "2", jobs=2, **options)
    assert {run.name: run.metrics for run in there} == {run.name: run.metrics for run in here}


@pytest.mark.parametrize("head", [BaggingClassifier(n_estimators=2),
                                  make_pipeline(StandardScaler(), GaussianNB())])  # fmt: skip
def test_what_has_a_length_is_one_object(tmp_path, head):
    split = np.where(np.arange(80) < 50, "train", "test")
    done = fc.compare(
        replace(make_features(), split=split), head=clone(head), reports=tmp_path, singles=False
    )
    assert len(done) == 1
    # skops reads these back.
    assert (done.best.folder / "model" / "model.json").is_file()


@pytest.mark.parametrize("folds", [None, 2])
def test_a_class_that_no_file_brings_back_leaves_a_note(tmp_path, caplog, folds):
    split = np.where(np.arange(80) < 50, "train", "test")
    features = replace(make_features(), split=split)
    with caplog.at_level(logging.WARNING, logger="featcache"):
        run = fc.compare(
            features, head=Centroids(), reports=tmp_path, singles=False, folds=folds
        ).best
    assert not (run.folder / "model").exists()
    (note,) = [text for text in caplog.messages if "no model is kept" in text]
    assert str(run.folder) in note
    assert "Centroids" in note
    assert "classes only" in note


@pytest.mark.parametrize("views", [(), ("hflip",)])
def test_the_run_says_how_to_fit_it_again_in_python(tmp_path, views):
    X, y = blobs(60)
    cache, images = store(tmp_path / "cache", X, y, (6, 4), views=views)
    features = cache.features(images, cache.choose("toy"), views)
    (run,) = fc.compare(
        features, fusion=Difference(2.0), head=[Centroids(1.0)], settings={"head.power": 3.0},
        folds=2, repeats=2, seed=1, reports=tmp_path, singles=False, cache=tmp_path / "cache",
        balance=bool(views),
    )  # fmt: skip
    facts = json.loads((run.folder / "run.json").read_text())
    module = "reporting.test_own"
    assert facts["own"]["head"] == {
        "class": f"{module}.Centroids", "params": {"member": None, "power": 1.0, "weights": None},
    }  # fmt: skip
    command = run.command
    assert command.startswith("# The command line takes no objects. In Python:\n")
    assert "In Python" in (run.folder / "report.html").read_text()
    Centroids.fits = 0
    found: dict[str, Any] = {}
    exec(command.replace("fc.compare(", "done = fc.compare("), found)
    assert found["done"].best.folder == run.folder
    assert Centroids.fits == 0
    with pytest.raises(fc.FeatcacheError, match="no model") as caught:
        find_model(run.folder)
    assert command in caught.value.remedy


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (Centroids, "is a class"),
        (StandardScaler(), "has no predict"),
        (3, "has no get_params"),
        (mlp(), "mlp is the name of a head of featcache's"),
        ([Centroids(), type("Centroids", (GaussianNB,), {"__module__": "other"})()], "two heads"),
        (Centroids(member=np.random.default_rng(0)), "parameter 'member' of Centroids"),
        (Centroids(member=lambda x: x), "nothing tells it from another"),
    ],
)
def test_what_can_not_be_a_head_is_refused_first(tmp_path, head, said):
    with pytest.raises(RecipeError, match=said) as caught:
        fc.compare(make_features(), head=head, reports=tmp_path)
    assert caught.value.remedy
    assert not list(tmp_path.iterdir())


def test_what_can_not_be_a_fusion_is_refused_first(tmp_path):
    with pytest.raises(RecipeError, match="has no transform"):
        fc.compare(make_features(), fusion=Centroids(), reports=tmp_path)
    with pytest.raises(UnknownName, match="unknown fusion 'difference'"):
        fc.compare(make_features(), fusion=["difference"], reports=tmp_path)


def test_a_named_run_has_the_digest_that_it_had(tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = fc.compare(
            make_features(), head=["logreg", Centroids()], folds=2, reports=tmp_path, singles=False
        )
    assert "big+small.concat.logreg.a1592ee5" in {run.folder.name for run in done}
