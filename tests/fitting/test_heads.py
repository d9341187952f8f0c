"""What every head does: labels of text, seeds, rare classes, constant columns."""

import numpy as np
import pytest
import torch
from packages import EACH_HEAD, XGBOOST

from featcache.fitting.heads import HEADS

from .conftest import make_features


def small(name, seed=0):
    head = HEADS[name](seed)
    quick = {
        "mlp": {"hidden": 16, "epochs": 15, "lr": 0.01},
        "xgboost": {"n_estimators": 10, "colsample_bytree": 1.0, "n_jobs": 1},
        "forest": {"n_estimators": 10, "n_jobs": 1},
    }
    return head.set_params(**quick.get(name, {}))


def least(name, classes):
    return 0 if name == "dummy" else 0.9 if classes < 4 else 0.7


@pytest.mark.parametrize("classes", [("a", "b"), ("zebra", "ape", "yak"), tuple("abcdefghijkl")])
@pytest.mark.parametrize("name", EACH_HEAD)
def test_string_labels(name, classes):
    features = make_features(n=40 * len(classes), classes=classes)
    half = 20 * len(classes)
    head = small(name).fit(features.X[:half], features.y[:half])
    pred = head.predict(features.X[half:])
    assert (pred == features.y[half:]).mean() > least(name, len(classes))
    assert head.classes_.tolist() == sorted(classes)
    if name == "ridge":
        assert not hasattr(head, "predict_proba")
        return
    proba = head.predict_proba(features.X[half:])
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(head.classes_[proba.argmax(axis=1)], pred)


@pytest.mark.parametrize("name", ["mlp", XGBOOST, "svm", "forest"])
def test_seeds(name):
    features = make_features(signal=0.3)

    def proba(seed):
        return small(name, seed).fit(features.X, features.y).predict_proba(features.X)

    before = torch.get_rng_state()
    np.testing.assert_array_equal(proba(0), proba(0))
    assert not np.array_equal(proba(0), proba(1))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", EACH_HEAD)
def test_a_class_of_one_row(name):
    features = make_features(n=60)
    keep = np.flatnonzero((features.y != "owl") | (np.arange(60) == 2))
    head = small(name).fit(features.X[keep], features.y[keep])
    if name != "ridge":
        proba = head.predict_proba(features.X)
        assert proba.shape == (60, 3)
        assert np.isfinite(proba).all()
    assert (head.predict(features.X[keep]) == features.y[keep]).mean() > least(name, 3)


@pytest.mark.parametrize("name", EACH_HEAD)
def test_constant_columns_and_tiny_data(name):
    features = make_features(n=6)
    X = features.X.copy()
    X[:, 1] = 7
    assert set(small(name).fit(X, features.y).predict(X)) <= {"cat", "dog", "owl"}
