"""The heads that go by a name: callables from a seed to an sklearn classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from featcache.errors import FeatcacheError


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
        Where xgboost is not installed.
    """
    try:
        from featcache.fitting.boosting import XGBHead
    except ModuleNotFoundError as error:
        if error.name != "xgboost":
            raise
        raise FeatcacheError(
            "the head 'xgboost' needs the package xgboost, which is not installed",
            "pip install 'xgboost>=2.1'",
        ) from error
    return XGBHead(random_state=seed)


def logreg(seed: int) -> Any:
    """sklearn's LogisticRegression with the strong L2 that some 2,000 standardised columns need.

    The solver draws nothing, so the seed changes nothing.
    """
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=0.01, max_iter=1000, random_state=seed)


HEADS: dict[str, Callable[[int], Any]] = {
    "mlp": mlp,
    "svm": svm,
    "xgboost": xgboost,
    "logreg": logreg,
}
