"""Our estimators against scikit-learn's own checks."""

from importlib.util import find_spec

import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import RidgeClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks

from featcache.fitting.fusions.concat import ConcatFusion
from featcache.fitting.fusions.late import StackFusion, VoteFusion
from featcache.fitting.fusions.learned import (
    AttentionFusion,
    BilinearFusion,
    GatedFusion,
    HadamardFusion,
)
from featcache.fitting.fusions.pooled import MaxFusion, MeanFusion, SumFusion
from featcache.fitting.heads import HEADS
from featcache.fitting.heads.linear import LDAHead
from featcache.fitting.heads.mlp import MLPHead
from featcache.fitting.heads.neighbours import KNNHead, NearestMeanHead
from featcache.fitting.heads.svm import SVMHead
from featcache.fitting.selection import BestColumns, NSGASelection, PrincipalComponents

# Each of our own classes once.
OURS = [
    ConcatFusion(),
    SumFusion(),
    MeanFusion(),
    MaxFusion(),
    BilinearFusion(width=16),
    AttentionFusion(dim=8, heads=2, epochs=2),
    GatedFusion(dim=8, epochs=2),
    HadamardFusion(dim=8, epochs=2),
    VoteFusion(),
    StackFusion(),
    MLPHead(hidden=16, epochs=12, lr=0.03),
    SVMHead(),
    LDAHead(),
    KNNHead(),
    NearestMeanHead(),
    BestColumns(amount=2),
    PrincipalComponents(2),
    *([NSGASelection(population=4, generations=2)] if find_spec("pymoo") else []),
]
# The same in other settings, and scikit-learn's own.
OTHERS = [
    ConcatFusion(scale="l2"),
    ConcatFusion(pca=2),
    SumFusion(projection="random"),
    MLPHead(hidden=16, epochs=12, lr=0.03, fusion="attention", dim=8, heads=2),
    MLPHead(hidden=16, epochs=12, lr=0.03, fusion="gated", dim=8, schedule="cosine"),
    MLPHead(hidden=16, epochs=12, lr=0.03, fusion="hadamard", dim=8),
    SVMHead(kernel="linear"),
    HEADS["logreg"](0),
    HEADS["ridge"](0),
    LDAHead(shrinkage=0.3),
    HEADS["forest"](0).set_params(n_estimators=10, n_jobs=1),
    HEADS["dummy"](0),
    BestColumns("variance", standardise=True),
]
if find_spec("xgboost"):
    OURS.append(HEADS["xgboost"](0).set_params(n_estimators=10, colsample_bytree=1.0, n_jobs=1))


TORCH = (AttentionFusion, GatedFusion, HadamardFusion, MLPHead)


def known(estimator):
    """The checks that an estimator may fail, each with its reason."""
    if isinstance(estimator, TORCH):
        return {
            "check_methods_subset_invariance": "asks for 1e-7; a float32 matrix product of another "
            "number of rows may differ in its last digit"
        }
    if isinstance(estimator, RidgeClassifier):
        return {
            "check_non_transformer_estimators_n_iter": "scikit-learn's own: the solver that it "
            "picks is direct and makes no steps to count"
        }
    if isinstance(estimator, RandomForestClassifier):
        why = "scikit-learn's own: a bootstrap draws repeated rows and weighted ones differently"
        return {
            "check_sample_weight_equivalence_on_dense_data": why,
            "check_sample_weight_equivalence_on_sparse_data": why,
        }
    return {}


@parametrize_with_checks(OURS, expected_failed_checks=known)
def test_sklearn_compatible(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(OTHERS, expected_failed_checks=known)
def test_sklearn_compatible_in_other_settings_too(estimator, check):
    check(estimator)
