"""Linear heads: at one penalty they are sklearn's; the penalty is chosen on held-out rows."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import log_loss

from featcache.errors import DataError, RecipeError
from featcache.fitting.calibration import best_on_path, held_out_rows
from featcache.fitting.heads import HEADS
from featcache.fitting.heads.linear import LDAHead, discriminants

from .conftest import make_features


@pytest.mark.parametrize("classes", [("a", "b"), ("a", "b", "c")])
def test_at_a_given_penalty_they_are_sklearns(classes):
    features = make_features(classes=classes, signal=0.5)
    X, y = features.X, features.y
    for name, given, bare in (
        ("logreg", {"C": 0.3}, LogisticRegression(C=0.3, max_iter=1000)),
        ("ridge", {"alpha": 7.0}, RidgeClassifier(alpha=7.0)),
    ):
        ours, theirs = HEADS[name](0, **given).fit(X, y), bare.fit(X, y)
        np.testing.assert_array_equal(ours.coef_, theirs.coef_)
        np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
        assert not hasattr(ours, "held_out_")


@pytest.mark.parametrize("classes", [("a", "b"), ("a", "b", "c")])
def test_the_penalty_is_the_best_of_the_path_on_rows_that_were_held_out(classes):
    """By hand, with sklearn alone and without a warm start."""
    features = make_features(n=150, classes=classes, signal=0.3)
    X, y = features.X.astype(np.float64), features.y
    folds = held_out_rows(y, None, 0)
    assert len(folds) == 3

    def of_c(C):
        made = LogisticRegression(C=C, max_iter=1000)
        return sum(
            log_loss(y[held], made.fit(X[train], y[train]).predict_proba(X[held])) * len(held)
            for train, held in folds
        )

    def of_alpha(alpha):
        made, total = RidgeClassifier(alpha=alpha), 0.0
        for train, held in folds:
            values = made.fit(X[train], y[train]).decision_function(X[held])
            wanted = (y[held] == "b") if values.ndim == 1 else y[held][:, None] == made.classes_
            total += np.square(values - (2.0 * wanted - 1)).sum()
        return total

    logreg, ridge = HEADS["logreg"](0).fit(X, y), HEADS["ridge"](0).fit(X, y)
    assert of_c(logreg.C_) <= 1.01 * min(map(of_c, logreg.path))
    assert of_alpha(ridge.alpha_) <= 1.01 * min(map(of_alpha, ridge.path))
    bare = LogisticRegression(C=logreg.C_, max_iter=1000).fit(X, y)
    np.testing.assert_array_equal(logreg.coef_, bare.coef_)
    rows, proba = logreg.held_out_
    codes = np.searchsorted(classes, y[rows])
    ours = -np.log(proba[np.arange(150), codes]).sum()
    assert ours == pytest.approx(of_c(logreg.C_), rel=1e-3)


@pytest.mark.parametrize("name", ["logreg", "ridge", "lda"])
def test_groups_are_held_out_together(name, monkeypatch):
    from featcache.fitting import splits

    seen, plain = [], splits.stratified_groups
    monkeypatch.setattr(
        splits, "stratified_groups", lambda y, groups, *rest: seen.append(groups) or plain(
            y, groups, *rest
        )
    )  # fmt: skip
    features, groups = make_features(n=120), np.arange(120) // 6
    HEADS[name](0).fit(features.X, features.y, groups=groups)
    assert seen[0] is groups


@pytest.mark.parametrize(
    ("losses", "best", "tried"),
    [
        ((9, 8, 7, 5, 6, 4), 3, [2, 3, 4]),  # weaker, until it no longer falls
        ((9, 8, 7, 6.99, 1, 1), 2, [2, 3, 1]),  # a small gain is none
        ((9, 6.99, 7, 8, 1, 1), 1, [2, 3, 1, 0]),  # but to the strong side any counts
        ((1, 2, 3, 4, 5, 6), 0, [2, 3, 1, 0]),
    ],
)
def test_the_path_is_walked_from_its_middle(losses, best, tried):
    seen = []

    class Fixed(LogisticRegression):
        def fit(self, X, y):
            seen.append(self.C)
            return self

    found, (rows, outputs) = best_on_path(
        Fixed(C=2), "C", range(6), lambda one, X: np.full(len(X), one.C),
        lambda outputs, rows: losses[int(outputs[0])], np.zeros((4, 1)), np.zeros(4),
        [(np.arange(2), np.arange(2, 4))],
    )  # fmt: skip
    assert (found, seen, outputs.tolist()) == (best, tried, [best, best])
    assert rows.tolist() == [2, 3]


def test_many_rows_are_held_out_once():
    y = np.arange(9000) % 3
    assert len(held_out_rows(y, None, 0)) == 1
    assert len(held_out_rows(y[:4500], None, 0)) == 2
    assert held_out_rows(np.array([0, 0, 0, 1]), None, 0) == []


@pytest.mark.parametrize("n", [200, 30])  # more rows than columns, and fewer
def test_lda_is_sklearns(n):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(n, 40)), np.arange(n) % 3
    X += 0.4 * rng.normal(size=(3, 40))[y]
    variance = np.square(X - np.stack([X[y == c].mean(0) for c in range(3)])[y]).mean()
    shrinkage = 0.3

    class Shrunk:  # what sklearn asks for its covariance, class by class
        def fit(self, part):
            centred = part - part.mean(axis=0)
            plain = centred.T @ centred / len(part)
            self.covariance_ = (1 - shrinkage) * plain + shrinkage * variance * np.eye(40)
            return self

    theirs = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=Shrunk()).fit(X, y)
    ours = LDAHead(shrinkage, calibrate=False).fit(X, y)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-8)
    assert ours.temperature_ == 1


def test_lda_chooses_on_rows_that_were_held_out():
    features = make_features(n=150, signal=0.4)
    X, y = features.X, np.unique(features.y, return_inverse=True)[1]
    head = LDAHead().fit(X, features.y)

    def loss(shrinkage, temperature):
        total = 0.0
        for train, held in held_out_rows(y, None, 0):
            ((weight, bias),) = discriminants(X[train], y[train], (shrinkage,))
            proba = softmax((X[held] @ weight.T + bias) / temperature, axis=1)
            total -= np.log(proba[np.arange(len(held)), y[held]]).sum()
        return total

    best = loss(head.shrinkage_, head.temperature_)
    for other in head.path:
        assert best <= loss(other, head.temperature_) + 0.2  # of 150 rows: Laplace's rule
    for temperature in (0.5, 0.8, 1.25, 2):
        assert best < loss(head.shrinkage_, head.temperature_ * temperature)
    tuned, raw = head.predict_proba(X), LDAHead(head.shrinkage_, False).fit(X, features.y)
    np.testing.assert_array_equal(tuned.argmax(axis=1), raw.predict_proba(X).argmax(axis=1))


def test_lda_of_another_kind(features):
    with pytest.raises(RecipeError, match=r"shrinkage is 1\.5"):
        LDAHead(1.5).fit(features.X, features.y)
    with pytest.raises(DataError, match="1 class: cat"):
        LDAHead().fit(features.X[::3], features.y[::3])


@pytest.mark.parametrize("name", ["logreg", "ridge", "lda", "svm"])
def test_labels_that_say_nothing_are_not_learned(name):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(1200, 60)), rng.integers(0, 4, 1200)
    head = HEADS[name](0).fit(X[:600], y[:600])
    assert head.score(X[600:], y[600:]) == pytest.approx(0.25, abs=0.06)  # 3.4 standard errors
    if name != "ridge":
        assert log_loss(y[600:], head.predict_proba(X[600:])) < np.log(4) + 0.05
