import importlib.util

import numpy as np
import pytest
from packages import EACH_HEAD, needs_pymoo
from sklearn.decomposition import PCA
from sklearn.feature_selection import SelectKBest, f_classif, mutual_info_classif

from featcache.errors import DataError, FeatcacheError, RecipeError, UnknownName
from featcache.fitting.evaluate import evaluate
from featcache.fitting.fusions import FUSIONS
from featcache.fitting.pipeline import describe, make_classifier
from featcache.fitting.selection import (
    BestColumns,
    NSGASelection,
    PrincipalComponents,
    _knee,
    make_selection,
)

from .conftest import make_features
from .test_evaluate import QUICK


def test_anova_keeps_what_sklearn_keeps(features):
    ours = BestColumns(amount=4).fit(features.X, features.y)
    theirs = SelectKBest(f_classif, k=4).fit(features.X, features.y)
    np.testing.assert_array_equal(ours.get_support(), theirs.get_support())
    np.testing.assert_array_equal(ours.transform(features.X), theirs.transform(features.X))


def test_mutual_information_is_sklearns(features):
    ours = BestColumns("mutual", 3, random_state=np.random.RandomState(5))
    ours.fit(features.X, features.y)
    seed = np.random.RandomState(5).randint(2**31 - 1)
    scores = mutual_info_classif(features.X, features.y, random_state=seed)
    np.testing.assert_array_equal(np.flatnonzero(ours.support_), np.sort(np.argsort(-scores)[:3]))


def test_variance_standardises_what_it_keeps(features):
    X = features.X * np.arange(1, 11)
    kept = make_selection("variance:3").fit(X, features.y)
    best = np.sort(np.argsort(-X.var(axis=0))[:3])
    np.testing.assert_array_equal(np.flatnonzero(kept.get_support()), best)
    np.testing.assert_allclose(kept.transform(X).std(axis=0), 1, rtol=1e-5)


def test_pca_is_sklearns(features):
    ours = PrincipalComponents(3).fit_transform(features.X)
    theirs = PCA(3).fit_transform(features.X)
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-3)
    assert PrincipalComponents(0.9).fit_transform(features.X).shape[1] < 10
    assert PrincipalComponents(500).fit_transform(features.X[:5]).shape[1] == 4


def test_constant_columns_come_last(features):
    X = features.X.copy()
    X[:, 0] = 3.0
    assert not BestColumns(amount=9).fit(X, features.y).support_[0]


def test_share_of_the_columns(features):
    assert BestColumns(amount=0.5).fit(features.X, features.y).support_.sum() == 5
    assert BestColumns(amount=256).fit(features.X, features.y).support_.sum() == 10


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ("anovaa", UnknownName),
        ("anova:0", RecipeError),
        ("anova:1.5", RecipeError),
        ("anova:many", RecipeError),
        pytest.param("nsga:20", RecipeError, marks=needs_pymoo),
    ],
)
def test_specs_that_are_none(spec, error):
    with pytest.raises(error):
        make_selection(spec)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("head", ["mlp", "logreg", "ridge"])
def test_before_every_head(fusion, head):
    features = make_features(n=60)
    settings = {**QUICK, "attention.epochs": 2, "gated.epochs": 2, "mlp.epochs": 3}
    made = make_classifier(fusion, head, settings=settings, select="anova:3")
    assert describe(made) == (fusion, head)
    result = evaluate(made, features, folds=2, keep=True)
    fitted = result.folds[0].classifier
    chosen = (
        [member.steps[-1][1]["select"] for member in fitted["fusion"].members_]
        if fusion in ("vote", "stack")
        else [fitted["select"]]
    )
    assert all(one.get_support().sum() == 3 for one in chosen)


def test_the_selection_never_sees_test_rows():
    """Labels at random over many columns: a selection on all rows would look better than chance."""
    rng = np.random.default_rng(0)
    features = make_features(n=120, blocks=(600, 400), classes=("a", "b"), signal=0)
    features.X[:] = rng.normal(size=features.X.shape)
    result = evaluate(make_classifier("concat", "logreg", select="anova:20"), features, folds=5)
    assert 0.35 < result.metrics["accuracy"] < 0.65


def test_settings_of_the_selection():
    made = make_classifier(select="anova", settings={"select.amount": 7})
    assert made["select"].amount == 7
    with pytest.raises(RecipeError, match="nothing is selected"):
        make_classifier(settings={"select.amount": 7})
    with pytest.raises(RecipeError, match="amuont"):
        make_classifier(select="anova", settings={"select.amuont": 7})


def test_variance_sees_columns_before_they_are_scaled():
    assert make_classifier("concat", "svm", select="variance:5")["fusion"].scale == "none"
    assert make_classifier("concat", "svm", select="anova:5")["fusion"].scale == "standard"


@pytest.mark.parametrize("head", EACH_HEAD)
def test_selection_of_one_column(head):
    features = make_features(n=60)
    made = make_classifier("concat", head, settings=QUICK, select="anova:1")
    assert evaluate(made, features, folds=2).metrics["accuracy"] >= 0.3


# Selection by NSGA-II.


def planted(n=200, noise=28, seed=0):
    """Two columns that tell three classes apart, among many that tell nothing."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    X = rng.normal(size=(n, noise + 2)).astype(np.float32)
    X[:, 5] += 4 * (y == 1)
    X[:, 11] += 4 * (y == 2)
    return X, np.array(["a", "b", "c"])[y]


@needs_pymoo
def test_finds_the_planted_columns():
    X, y = planted()
    found = NSGASelection(population=20, generations=25).fit(X, y)
    assert found.support_[[5, 11]].all()
    assert found.support_.sum() < 12
    assert found.transform(X).shape == (200, found.support_.sum())


@needs_pymoo
def test_the_front_is_one():
    X, y = planted()
    front = NSGASelection(population=16, generations=8).fit(X, y).front_
    for one in front:  # nobody is beaten in both
        better = (front <= one).all(axis=1) & (front < one).any(axis=1)
        assert not better.any()


@needs_pymoo
def test_seed_determines_the_search():
    X, y = planted()

    def found(seed):
        return NSGASelection(8, 4, random_state=seed).fit(X, y).support_

    np.testing.assert_array_equal(found(0), found(0))
    assert not np.array_equal(found(0), found(1))


@needs_pymoo
def test_picks():
    X, y = planted()
    low = NSGASelection(16, 10, pick="error").fit(X, y)
    assert low.support_.sum() == low.front_[low.front_[:, 0].argmin(), 1]
    # By hand: scaled to the unit square the points are (0, 1), (0.1, 0.1), (1, 0).
    assert _knee(np.array([[0.0, 100.0], [0.1, 10.0], [1.0, 0.0]])) == 1


@needs_pymoo
def test_errors():
    X, y = planted(30)
    with pytest.raises(UnknownName, match="pick"):
        NSGASelection(pick="best").fit(X, y)
    with pytest.raises(RecipeError, match="population"):
        NSGASelection(population=1).fit(X, y)
    with pytest.raises(DataError, match="can't hold rows out"):
        NSGASelection().fit(X[:4], np.array(["a", "a", "b", "c"]))


@needs_pymoo
def test_without_pymoo(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FeatcacheError) as caught:
        make_selection("nsga")
    assert "pip install 'featcache[nsga]'" in caught.value.remedy


@needs_pymoo
@pytest.mark.parametrize("rows", [39, 40, 41, 42])
def test_hardly_more_rows_than_it_looks_at(rows):
    X = np.random.default_rng(0).normal(size=(42, 6))
    y = np.arange(42) % 3
    search = NSGASelection(population=4, generations=1, rows=rows).fit(X, y)
    assert search.get_support().any()
