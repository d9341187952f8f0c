"""Labels that say nothing: no head, fusion, selection or search is better than chance on them."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from packages import needs_xgboost
from sklearn.feature_selection import f_classif

from featcache.fitting.evaluate import evaluate
from featcache.fitting.fusions import FUSIONS
from featcache.fitting.pipeline import make_classifier

from .conftest import make_features

# Each fusion and each head in a pair that no other covers.
PAIRS = [
    pytest.param(fusion, head, marks=[needs_xgboost] if head == "xgboost" else [])
    for fusion, head in zip(
        FUSIONS, ("svm", "mlp", "lda", "knn", "forest", "xgboost", "logreg", "ridge", "svm",
                  "nearest_mean"), strict=True,
    )
]  # fmt: skip
ROWS, SEEDS = 100, 4
QUICK = {
    "mlp.epochs": 5,
    "mlp.hidden": 16,
    "attention.dim": 8,
    "gated.dim": 8,
    "hadamard.dim": 8,
    "bilinear.width": 32,
    "xgboost.n_estimators": 10,
    "forest.n_estimators": 10,
    "stack.cv": 2,
}


def accuracy(fusion, head, select, tune):
    settings = {key: value for key, value in QUICK.items() if key.split(".")[0] in (fusion, head)}
    made = make_classifier(fusion, head, settings=settings, select=select, tune=tune)
    found = []
    for seed in range(SEEDS):
        features = make_features(ROWS, (30, 20), ("a", "b"), seed, signal=0)
        found.append(evaluate(made, features, folds=2, seed=seed).metrics["accuracy"])
    return np.mean(found)


@pytest.mark.slow
@pytest.mark.parametrize(("select", "tune"), [("", 0), ("anova:8", 0), ("", 2), ("anova:8", 2)])
@pytest.mark.parametrize(("fusion", "head"), PAIRS)
def test_permuted_labels_are_at_chance(fusion, head, select, tune):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of solvers that end early on noise
        found = accuracy(fusion, head, select, tune)
    assert abs(found - 0.5) < 4 * np.sqrt(0.25 / (ROWS * SEEDS))


def test_the_test_sees_a_selection_that_has_seen_the_test_rows():
    """Eight of fifty columns of noise, chosen on all rows, tell them apart."""
    found = []
    for seed in range(SEEDS):
        features = make_features(ROWS, (30, 20), ("a", "b"), seed, signal=0)
        best = np.argsort(f_classif(features.X, features.y)[0])[-8:]
        leaky = replace(features, X=features.X[:, best], blocks=(5, 3))
        found.append(evaluate(make_classifier("concat", "lda"), leaky, folds=2, seed=seed))
    accuracy = np.mean([result.metrics["accuracy"] for result in found])
    assert accuracy > 0.5 + 4 * np.sqrt(0.25 / (ROWS * SEEDS))
