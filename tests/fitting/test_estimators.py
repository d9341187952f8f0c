"""Our estimators against scikit-learn's own checks."""

from sklearn.utils.estimator_checks import parametrize_with_checks

from featcache.fitting.bilinear import BilinearFusion
from featcache.fitting.boosting import XGBHead
from featcache.fitting.concat import ConcatFusion
from featcache.fitting.kernel_svm import KernelSVMHead
from featcache.fitting.late import StackFusion, VoteFusion
from featcache.fitting.learned import AttentionFusion, GatedFusion
from featcache.fitting.mlp import MLPHead
from featcache.fitting.neighbours import KNNHead, NearestMeanHead
from featcache.fitting.pooled import HadamardFusion, MaxFusion, MeanFusion, SumFusion

ESTIMATORS = [
    ConcatFusion(),
    ConcatFusion(scale="l2"),
    ConcatFusion(pca=2),
    SumFusion(),
    SumFusion(projection="random"),
    MeanFusion(),
    MaxFusion(),
    HadamardFusion(),
    BilinearFusion(width=16),
    AttentionFusion(dim=8, heads=2, epochs=2),
    GatedFusion(dim=8, epochs=2),
    VoteFusion(),
    StackFusion(),
    MLPHead(hidden=16, epochs=12, lr=0.03),
    MLPHead(hidden=16, epochs=12, lr=0.03, fusion="attention", dim=8, heads=2),
    MLPHead(hidden=16, epochs=12, lr=0.03, fusion="gated", dim=8, schedule="cosine"),
    XGBHead(n_estimators=10, colsample_bytree=1.0, n_jobs=1),
    KernelSVMHead(),
    KernelSVMHead(kernel="linear"),
    KNNHead(),
    NearestMeanHead(),
]


TORCH = (AttentionFusion, GatedFusion, MLPHead)


def known(estimator):
    """The checks that an estimator may fail, each with its reason."""
    if not isinstance(estimator, TORCH):
        return {}
    return {
        "check_methods_subset_invariance": "asks for 1e-7; a float32 matrix product of another "
        "number of rows may differ in its last digit"
    }


@parametrize_with_checks(ESTIMATORS, expected_failed_checks=known)
def test_sklearn_compatible(estimator, check):
    check(estimator)
