"""Groups reach every step of a fit that holds rows back, in heads, fusions and pipelines alike."""

import numpy as np
import pytest
from packages import needs_pymoo, needs_xgboost
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featcache.fitting import splits
from featcache.fitting.evaluate import evaluate
from featcache.fitting.out_of_core import fit_with_routing
from featcache.fitting.pipeline import make_classifier
from featcache.fitting.selection import NSGASelection
from featcache.fitting.splits import make_folds

from .conftest import add_views, make_features
from .test_evaluate import QUICK


class Asks(ClassifierMixin, BaseEstimator):
    """Remembers the groups that it was told."""

    def fit(self, X, y, groups=None):
        self.groups_ = groups
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, X):
        return np.full((len(X), len(self.classes_)), 1 / len(self.classes_))


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


@pytest.mark.parametrize("fusion", ["vote", "stack"])
@pytest.mark.parametrize("select", ["anova:3", "pca:3", pytest.param("nsga", marks=needs_pymoo)])
def test_groups_reach_the_steps_of_a_pipeline_within_a_pipeline(fusion, select):
    features, groups = make_features(), np.arange(120) // 6
    made = make_classifier(fusion, Asks(), blocks=features.blocks, select=select)
    if select == "nsga":
        short = ("population", "generations")
        made.set_params(**{f"fusion__head__select__{name}": 2 for name in short})
    fit_with_routing(made, features.X, features.y, groups)
    for member in made[-1].members_:
        assert member[-1][-1].groups_ is groups


@needs_pymoo
@pytest.mark.parametrize("rows", [2000, 60])
def test_nsga_searches_on_parts_that_groups_do_not_cross(rows):
    """Labels that belong to groups alone: whoever sees half a group knows the other half."""
    rng = np.random.default_rng(0)
    groups = np.arange(120) // 6
    y = np.array(["cat", "dog"])[rng.permutation(20) % 2][groups]
    X = rng.normal(size=(20, 40))[groups] + 0.01 * rng.normal(size=(120, 40))
    search = NSGASelection(population=6, generations=3, rows=rows, pick="error")
    made = make_pipeline(search, Asks())
    assert fit_with_routing(made, X, y)[0].front_[:, 0].min() < 0.1
    assert fit_with_routing(made, X, y, groups)[0].front_[:, 0].min() > 0.2


def test_rows_that_stand_alone_are_held_back_as_before(features, monkeypatch):
    def never(*_):
        raise AssertionError("no groups are there")

    monkeypatch.setattr(splits, "stratified_groups", never)
    evaluate(make_classifier("concat", "mlp", settings=QUICK), features, folds=2)
    leaky = add_views(features, "hflip")
    split = make_folds(leaky, folds=2, leaky=True)
    evaluate(make_classifier("concat", "mlp", settings=QUICK), leaky, split=split)
