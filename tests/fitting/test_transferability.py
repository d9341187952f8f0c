import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from featcache.errors import DataError, RecipeError
from featcache.fitting.transferability import knn_accuracy, linear_cka, logme, rank

from .conftest import make_features


def slow_logme(X, y):
    """The evidence as the density of the targets, maximised by a general optimiser."""
    X = X.astype(float)
    found = []
    for label in np.unique(y):
        t = (y == label).astype(float)

        def loss(logs, t=t):
            alpha, beta = np.exp(np.clip(logs, -25, 25))
            covariance = np.eye(len(t)) / beta + X @ X.T / alpha
            return -multivariate_normal(np.zeros(len(t)), covariance).logpdf(t)

        starts = ((0.0, 0.0), (3.0, 1.0), (0.0, 3.0))
        best = min(minimize(loss, s, method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-8})
                   .fun for s in starts)  # fmt: skip
        found.append(-best / len(t))
    return np.mean(found)


@pytest.mark.parametrize("n", [60, 8])  # more rows than columns, and fewer
def test_logme_is_the_maximum_evidence(n):
    features = make_features(n=n, signal=0.3)
    assert logme(features.X, features.y) == pytest.approx(
        slow_logme(features.X, features.y), abs=1e-4
    )


def test_logme_of_dependent_columns():
    features = make_features(n=40, signal=0.5)
    X = np.concatenate([features.X, features.X[:, :3]], axis=1)
    assert logme(X, features.y) == pytest.approx(slow_logme(X, features.y), abs=1e-4)


def test_logme_prefers_the_signal():
    strong, weak = (make_features(signal=s) for s in (2.0, 0.1))
    assert logme(strong.X, strong.y) > logme(weak.X, weak.y)


def test_neighbours_are_sklearns():
    features = make_features(n=90, signal=0.4)
    sklearns = KNeighborsClassifier(1, metric="cosine", algorithm="brute")
    expected = cross_val_score(sklearns, features.X, features.y, cv=LeaveOneOut()).mean()
    assert knn_accuracy(features.X, features.y, k=1) == pytest.approx(expected)


def test_votes_by_hand():
    angles = np.radians([0, 10, 11.4, 12, 90])
    X = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    y = np.array(["a", "a", "b", "b", "b"])
    assert knn_accuracy(X[:2], y[:2], k=5) == 1.0
    # Of two, nearest first: row 0 sees a b, and the nearest wins; 1: b b; 2 and 3: b a; 4: b b.
    assert knn_accuracy(X, y, k=2) == pytest.approx(4 / 5)
    # Of three: 0: a b b; 1: b b a; 2 and 3: b a a; 4: b b a.
    assert knn_accuracy(X, y, k=3) == pytest.approx(1 / 5)


def test_linked_rows_are_no_neighbours():
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(40, 8)), 2, axis=0)  # every image twice, labels at random
    y = np.repeat(rng.integers(0, 2, 40).astype(str), 2)
    assert knn_accuracy(X, y, k=1) == 1.0
    assert knn_accuracy(X, y, np.arange(80) // 2, k=1) < 0.8


def test_a_sample_of_queries():
    features = make_features(n=300, signal=0.3)
    part = knn_accuracy(features.X, features.y, queries=100, seed=1)
    assert part == knn_accuracy(features.X, features.y, queries=100, seed=1)
    assert part == pytest.approx(knn_accuracy(features.X, features.y), abs=0.15)
    with pytest.raises(RecipeError, match="queries"):
        knn_accuracy(features.X, features.y, queries=0)


def test_cka_by_its_gram_matrices():
    rng = np.random.default_rng(0)
    X, Z = rng.normal(size=(30, 6)), rng.normal(size=(30, 4))
    H = np.eye(30) - 1 / 30
    K, L = H @ X @ X.T @ H, H @ Z @ Z.T @ H
    expected = (K * L).sum() / np.sqrt((K * K).sum() * (L * L).sum())
    assert linear_cka(X, Z) == pytest.approx(expected)


def test_cka_ignores_rotation_shift_and_scale():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 6))
    turned = 3 * X @ np.linalg.qr(rng.normal(size=(6, 6)))[0] + 5
    assert linear_cka(X, turned) == pytest.approx(1)
    assert np.isnan(linear_cka(X, np.ones((30, 2))))


def test_only_training_rows_count():
    split = ["train"] * 60 + ["test"] * 60
    features = make_features(split=split)
    spoiled = make_features(split=split)
    spoiled.X[60:] = 0
    one, other = rank(features), rank(spoiled)
    assert one.rows == other.rows == 60
    assert (one.names, one.logme, one.knn) == (other.names, other.logme, other.knn)


def test_the_best_comes_first():
    features = make_features(blocks=(4, 6), signal=0.0)
    of_class = np.array([features.y == label for label in np.unique(features.y)]).T  # (n, 3)
    features.X[:, 4:7] += 4 * of_class
    found = rank(features)
    assert found.names == ("net1", "net0")
    assert found.knn[0] > 0.9
    assert found.widths == (6, 4)
    np.testing.assert_allclose(np.diag(found.cka), 1)


def test_one_class():
    with pytest.raises(DataError, match="1 class"):
        rank(make_features(split=["test" if i % 3 else "train" for i in range(120)]))
