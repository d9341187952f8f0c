import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_validate
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils import check_random_state

from featcache.errors import DataError, RecipeError
from featcache.fitting.fusions.late import StackFusion, VoteFusion
from featcache.fitting.heads import HEADS
from featcache.fitting.heads.mlp import MLPHead
from featcache.fitting.pipeline import make_classifier, with_blocks

from .conftest import make_features

PARTS = (slice(0, 6), slice(6, 10))


class Says(ClassifierMixin, BaseEstimator):
    """Labels only: no probabilities, no decision values."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        self.tree_ = DecisionTreeClassifier(random_state=0).fit(X, y)
        return self

    def predict(self, X):
        return self.tree_.predict(X)


def bare(X, y, part, test):
    """Probabilities of one block's head, by sklearn alone."""
    scaler = StandardScaler().fit(X[:, part])
    head = LogisticRegression().fit(scaler.transform(X[:, part]), y)
    return head.predict_proba(scaler.transform(test[:, part]))


def test_vote_is_the_mean():
    features = make_features(signal=0.5)
    X, y, test = features.X[:90], features.y[:90], features.X[90:]
    vote = VoteFusion(LogisticRegression(), (6, 4)).fit(X, y)
    expected = np.mean([bare(X, y, part, test) for part in PARTS], axis=0)
    np.testing.assert_allclose(vote.predict_proba(test), expected, atol=1e-6)
    np.testing.assert_array_equal(vote.predict(test), vote.classes_[expected.argmax(axis=1)])


def test_stack_learns_from_held_out_probabilities():
    features = make_features(signal=0.5)
    X, y, test = features.X[:90], features.y[:90], features.X[90:]
    stack = StackFusion(LogisticRegression(), (6, 4), random_state=3).fit(X, y)
    seed = check_random_state(3).randint(2**31 - 1)
    scores = np.zeros((90, 6))
    for train, held in StratifiedKFold(3, shuffle=True, random_state=seed).split(X, y):
        parts = [bare(X[train], y[train], part, X[held]) for part in PARTS]
        scores[held] = np.concatenate(parts, axis=1)
    final = LogisticRegression(max_iter=1000).fit(scores, y)
    parts = [bare(X, y, part, test) for part in PARTS]
    expected = final.predict_proba(np.concatenate(parts, axis=1))
    np.testing.assert_allclose(stack.predict_proba(test), expected, atol=1e-5)


def test_stack_does_not_trust_a_block_of_noise():
    """A tree is sure of every row that it was fitted on; held-out rows show what it knows."""
    features = make_features(n=300, signal=2)
    X = features.X.copy()
    X[:, :6] = np.random.default_rng(0).normal(size=(300, 6))
    stack = StackFusion(DecisionTreeClassifier(random_state=0), (6, 4)).fit(
        X[:200], features.y[:200]
    )
    noise, told = np.abs(stack.final_.coef_[:, :3]).mean(), np.abs(stack.final_.coef_[:, 3:]).mean()
    assert told > 3 * noise
    assert stack.score(X[200:], features.y[200:]) > 0.75


@pytest.mark.parametrize("kind", [VoteFusion, StackFusion])
@pytest.mark.parametrize("head", [HEADS["ridge"](0), Says()])
@pytest.mark.parametrize("classes", [("a", "b"), ("a", "b", "c")])
def test_heads_without_probabilities(kind, head, classes):
    features = make_features(classes=classes)
    fusion = kind(head, (6, 4)).fit(features.X[:90], features.y[:90])
    assert fusion.score(features.X[90:], features.y[90:]) > 0.85
    assert hasattr(fusion, "predict_proba") == (kind is StackFusion)


@pytest.mark.parametrize("kind", [VoteFusion, StackFusion])
def test_the_head_sees_one_block(features, kind):
    head = MLPHead(8, epochs=2, fusion="attention", dim=8, heads=2)
    fusion = with_blocks(kind(head), (6, 4)).fit(features.X, features.y)
    assert [member[-1].n_features_in_ for member in fusion.members_] == [6, 4]
    assert not hasattr(head, "network_")


@pytest.mark.parametrize("kind", [VoteFusion, StackFusion])
def test_class_weights_by_label(features, kind):
    """The labels reach the head as they are, also while stacking."""
    head = LogisticRegression(class_weight={"cat": 1, "dog": 2, "owl": 3})
    assert kind(head, (6, 4)).fit(features.X, features.y).score(features.X, features.y) > 0.9


def test_stack_with_a_class_of_one_row(features):
    keep = np.flatnonzero((features.y != "owl") | (np.arange(120) == 2))
    stack = StackFusion(blocks=(6, 4)).fit(features.X[keep], features.y[keep])
    assert stack.predict_proba(features.X).shape == (120, 3)


def test_stack_seeds():
    features = make_features(signal=0.5)

    def proba(seed):
        stack = StackFusion(blocks=(6, 4), random_state=seed)
        return stack.fit(features.X, features.y).predict_proba(features.X)

    np.testing.assert_array_equal(proba(0), proba(0))
    assert not np.array_equal(proba(0), proba(1))


@pytest.mark.parametrize("fusion", ["vote", "stack"])
def test_in_sklearns_searches(features, fusion):
    made = make_classifier(fusion, "logreg", blocks=(6, 4))
    grid = {"fusion__head__C": [1e-9, 1]}
    search = GridSearchCV(made, grid, cv=2, scoring="neg_log_loss").fit(features.X, features.y)
    assert search.best_params_ == {"fusion__head__C": 1}
    scores = cross_validate(made, features.X, features.y, cv=2, scoring="neg_log_loss")
    assert np.isfinite(scores["test_score"]).all()


@pytest.mark.parametrize("kind", [VoteFusion, StackFusion])
def test_one_class(features, kind):
    with pytest.raises(DataError, match="1 class: cat"):
        kind().fit(features.X[::3], features.y[::3])


@pytest.mark.parametrize("cv", [1, 2.5, True])
def test_parts_out_of_range(features, cv):
    with pytest.raises(RecipeError, match="cv"):
        StackFusion(cv=cv).fit(features.X, features.y)
