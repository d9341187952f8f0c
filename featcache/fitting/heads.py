"""The heads that go by a name: callables from a seed to an sklearn classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def mlp(seed: int) -> Any:
    """`mlp.MLPHead`."""
    from featcache.fitting.mlp import MLPHead

    return MLPHead(random_state=seed)


def svm(seed: int) -> Any:
    """`svm.SVMHead`."""
    from featcache.fitting.svm import SVMHead

    return SVMHead(random_state=seed)


def xgboost(seed: int) -> Any:
    """`boosting.XGBHead`.

    Raises
    ------
    FeatcacheError
        If xgboost is not installed.
    """
    from featcache.fitting.boosting import XGBHead

    return XGBHead(random_state=seed)


def logreg(seed: int) -> Any:
    """sklearn's LogisticRegression with the strong L2 that some 2,000 standardised columns need.

    The solver draws nothing, so the seed changes nothing.
    """
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=0.01, max_iter=1000, random_state=seed)


def knn(_: int) -> Any:
    """`neighbours.KNNHead`; it draws nothing."""
    from featcache.fitting.neighbours import KNNHead

    return KNNHead()


def ridge(seed: int) -> Any:
    """sklearn's RidgeClassifier with the strong L2 that some 2,000 standardised columns need.

    It has decision values and no probabilities, so `evaluate` gives no AUC, log loss or ECE.
    """
    from sklearn.linear_model import RidgeClassifier

    return RidgeClassifier(alpha=1000.0, random_state=seed)


def forest(seed: int) -> Any:
    """sklearn's RandomForestClassifier: 200 trees, on all cores."""
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(n_estimators=200, n_jobs=-1, random_state=seed)


def nearest_mean(_: int) -> Any:
    """`neighbours.NearestMeanHead`; it draws nothing."""
    from featcache.fitting.neighbours import NearestMeanHead

    return NearestMeanHead()


def dummy(seed: int) -> Any:
    """sklearn's DummyClassifier: the most frequent class, whatever the image; what to beat."""
    from sklearn.dummy import DummyClassifier

    return DummyClassifier(strategy="prior", random_state=seed)


HEADS: dict[str, Callable[[int], Any]] = {
    "mlp": mlp,
    "svm": svm,
    "xgboost": xgboost,
    "logreg": logreg,
    "ridge": ridge,
    "knn": knn,
    "nearest_mean": nearest_mean,
    "forest": forest,
    "dummy": dummy,
}
