"""Groups reach every step of a fit that holds rows back, in heads, fusions and pipelines alike."""

import numpy as np
import pytest
from packages import needs_xgboost
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featcache.fitting import splits
from featcache.fitting.evaluate import evaluate
from featcache.fitting.out_of_core import fit_with_routing
from featcache.fitting.pipeline import make_classifier
from featcache.fitting.splits import make_folds

from .conftest import add_views, make_features
from .test_evaluate import QUICK


class Asks(ClassifierMixin, BaseEstimator):
    """Remembers the groups that it was told."""

    def fit(self, X, y, groups=None):
        self.groups_ = groups
        self.classes_ = np.unique(y)
        return self


def test_groups_reach_what_asks_for_them_and_nothing_else():
    X, y, groups = np.zeros((4, 2)), np.array([0, 1, 0, 1]), np.arange(4) // 2
    assert fit_with_routing(Asks(), X, y, groups).groups_ is groups
    pipeline = fit_with_routing(make_pipeline(StandardScaler(), Asks()), X, y, groups)
    assert pipeline[-1].groups_ is groups
    assert fit_with_routing(Asks(), X, y).groups_ is None
    X[1::2] = 1
    fit_with_routing(LogisticRegression(), X, y, groups)


@pytest.mark.parametrize(
    ("fusion", "head"),
    [
        ("concat", "mlp"),
        ("attention", "logreg"),
        ("gated", "mlp"),
        pytest.param("concat", "xgboost", marks=needs_xgboost),
        ("vote", "mlp"),
        ("stack", "logreg"),
        ("concat", "svm"),
        ("concat", "logreg"),
        ("concat", "ridge"),
        ("concat", "lda"),
    ],
)
def test_what_is_held_back_in_a_fit_never_divides_an_image_from_its_views(
    monkeypatch, fusion, head
):
    seen, plain = [], splits.stratified_groups

    def noted(y, groups, *args):
        part = plain(y, groups, *args)
        seen.append((groups, part))
        return part

    monkeypatch.setattr(splits, "stratified_groups", noted)
    features = add_views(make_features(), "hflip", "rot90")
    classifier = make_classifier(fusion, head, settings=QUICK)
    evaluate(classifier, features, folds=2)
    assert seen
    assert max(len(np.unique(groups)) for groups, _ in seen) == 60  # fewer in a fold of a fold
    for groups, part in seen:
        assert len(np.unique(np.stack((groups, part)), axis=1).T) == len(np.unique(groups))


def test_rows_that_stand_alone_are_held_back_as_before(features, monkeypatch):
    def never(*_):
        raise AssertionError("no groups are there")

    monkeypatch.setattr(splits, "stratified_groups", never)
    evaluate(make_classifier("concat", "mlp", settings=QUICK), features, folds=2)
    leaky = add_views(features, "hflip")
    split = make_folds(leaky, folds=2, leaky=True)
    evaluate(make_classifier("concat", "mlp", settings=QUICK), leaky, split=split)
