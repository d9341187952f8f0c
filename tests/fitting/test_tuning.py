import json

import numpy as np
import pytest
from packages import EACH_HEAD
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score

from featcache.errors import DataError, RecipeError, UnknownName
from featcache.fitting.evaluate import evaluate
from featcache.fitting.fusions import FUSIONS
from featcache.fitting.pipeline import describe, make_classifier
from featcache.fitting.tuning import TunedClassifier, _inner_folds

from .conftest import make_features

C = {"C": ("log", 1e-4, 1.0)}


class Spy(ClassifierMixin, BaseEstimator):
    """Remembers the rows that it was fitted on and asked about, by their first column."""

    seen: list = []  # noqa: RUF012

    def __init__(self, knob=0):
        self.knob = knob

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        self.rows_ = set(X[:, 0].tolist())
        return self

    def predict(self, X):
        Spy.seen.append((self.knob, self.rows_, set(X[:, 0].tolist())))
        return np.full(len(X), self.classes_[min(self.knob, len(self.classes_) - 1)])


def test_scores_are_those_of_cross_val_score():
    features = make_features(signal=0.3)
    tuned = TunedClassifier(LogisticRegression(C=1e-4), C, tries=6).fit(features.X, features.y)
    seed = np.random.RandomState(0).randint(2**31 - 1)
    folds = StratifiedKFold(3, shuffle=True, random_state=seed)
    made = LogisticRegression(**{"C": 1e-4, **tuned.tuned_["chosen"]})
    expected = cross_val_score(made, features.X, features.y, cv=folds).mean()
    assert tuned.tuned_["score"] == pytest.approx(expected)
    assert tuned.tuned_["score"] >= tuned.tuned_["default_score"]
    assert tuned.tuned_["tries"] == 6
    json.dumps(tuned.tuned_)


def test_only_training_rows_are_seen():
    features = make_features(n=60)
    features.X[:, 0] = np.arange(60)
    Spy.seen = []
    made = TunedClassifier(Spy(), {"knob": [1, 2]}, tries=3)
    result = evaluate(made, features, folds=3)
    assert [fold.tuned["tries"] for fold in result.folds] == [3, 3, 3]
    for fold in result.folds:
        test = {float(id_[3:7]) for id_ in fold.ids.tolist()}
        mine = [(fit, asked) for _, fit, asked in Spy.seen if not fit & test]
        inner = [(fit, asked) for fit, asked in mine if asked != test]
        assert len(inner) == 9  # three settings, three inner folds
        assert not any(asked & test or asked & fit for fit, asked in inner)


def test_groups_stay_together_inside():
    y = np.array(["a", "b"] * 30)
    groups = np.repeat(np.arange(15), 4)
    for train, held in _inner_folds(y, groups, 3, 0):
        assert not set(groups[train]) & set(groups[held])


def test_groups_reach_the_search():
    features = make_features(n=60, groups=[f"g{i // 6}" for i in range(60)])
    features.X[:, 0] = np.arange(60)
    Spy.seen = []
    evaluate(TunedClassifier(Spy(), {"knob": [1]}, tries=1), features, folds=2)
    for _, fit, asked in Spy.seen:
        assert not {row // 6 for row in fit} & {row // 6 for row in asked}


@pytest.mark.parametrize("tuner", ["random", "optuna"])
def test_seed_determines_the_search(tuner):
    if tuner == "optuna":
        pytest.importorskip("optuna")
    features = make_features(signal=0.3)

    def tuned(seed):
        made = TunedClassifier(LogisticRegression(), C, tries=5, tuner=tuner, random_state=seed)
        found = made.fit(features.X, features.y).tuned_
        del found["seconds"]
        return found

    assert tuned(0) == tuned(0)
    assert tuned(0)["tuner"] == tuner


def test_finds_a_better_setting_than_a_bad_default():
    features = make_features(n=300, signal=0.5)
    made = TunedClassifier(LogisticRegression(C=1e-9), {"C": [1.0]}, tries=2)
    found = made.fit(features.X, features.y).tuned_
    assert found["chosen"] == {"C": 1.0}
    assert found["score"] > found["default_score"]


@pytest.mark.parametrize("select", ["", "anova:3"])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("head", EACH_HEAD)
def test_every_space_fits_its_classifier(fusion, head, select):
    made = make_classifier(fusion, head, tune=3, select=select)
    assert isinstance(made, TunedClassifier)
    assert describe(made) == (fusion, head)
    known = made.estimator.get_params(deep=True)
    assert set(made.space) <= set(known)
    if head not in ("nearest_mean", "dummy"):  # these have no settings
        assert made.space


def test_a_setting_that_is_given_is_not_searched():
    free, fixed = (
        make_classifier("concat", "logreg", tune=3, settings=settings).space
        for settings in ({}, {"head.C": 1.0})
    )
    assert "head__C" in free
    assert "head__C" not in fixed


def test_a_class_of_one_row():
    with pytest.raises(DataError, match="held out"):
        TunedClassifier(LogisticRegression(), C).fit(np.eye(5), np.array(["a", "a", "b", "b", "c"]))


def test_budgets_and_tuners_that_are_none():
    with pytest.raises(RecipeError, match="settings to try"):
        make_classifier(tune=-1)
    with pytest.raises(UnknownName, match="tuner"):
        make_classifier(tune=2, tuner="grid")
