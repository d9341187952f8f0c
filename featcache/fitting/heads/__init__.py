"""The heads that go by a name: callables from a seed to an sklearn classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _mlp(seed: int) -> Any:
    """`mlp.MLPHead`."""
    from featcache.fitting.heads.mlp import MLPHead

    return MLPHead(random_state=seed)


def _svm(seed: int) -> Any:
    """`svm.SVMHead`."""
    from featcache.fitting.heads.svm import SVMHead

    return SVMHead(random_state=seed)


def _xgboost(seed: int) -> Any:
    """`boosting.XGBHead`.

    Raises
    ------
    FeatcacheError
        If xgboost is not installed.
    """
    from featcache.fitting.heads.xgboost import XGBHead

    return XGBHead(random_state=seed)


def _logreg(seed: int) -> Any:
    """sklearn's LogisticRegression with the strong L2 that some 2,000 standardised columns need.

    The solver draws nothing, so the seed changes nothing.
    """
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=0.01, max_iter=1000, random_state=seed)


def _knn(_: int) -> Any:
    """`neighbours.KNNHead`; it draws nothing."""
    from featcache.fitting.heads.neighbours import KNNHead

    return KNNHead()


def _ridge(seed: int) -> Any:
    """sklearn's RidgeClassifier with the strong L2 that some 2,000 standardised columns need.

    It has decision values and no probabilities, so `evaluate` gives no AUC, log loss or ECE.
    """
    from sklearn.linear_model import RidgeClassifier

    return RidgeClassifier(alpha=1000.0, random_state=seed)


def _forest(seed: int) -> Any:
    """sklearn's RandomForestClassifier: 200 trees, on all cores."""
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(n_estimators=200, n_jobs=-1, random_state=seed)


def _nearest_mean(_: int) -> Any:
    """`neighbours.NearestMeanHead`; it draws nothing."""
    from featcache.fitting.heads.neighbours import NearestMeanHead

    return NearestMeanHead()


def _dummy(seed: int) -> Any:
    """sklearn's DummyClassifier: the most frequent class, whatever the image; what to beat."""
    from sklearn.dummy import DummyClassifier

    return DummyClassifier(strategy="prior", random_state=seed)


HEADS: dict[str, Callable[[int], Any]] = {
    "mlp": _mlp,
    "svm": _svm,
    "xgboost": _xgboost,
    "logreg": _logreg,
    "ridge": _ridge,
    "knn": _knn,
    "nearest_mean": _nearest_mean,
    "forest": _forest,
    "dummy": _dummy,
}
