"""Linked rows inside a fit: what holds rows back to look at must not divide them."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import has_fit_parameter

from featcache.fitting.stream import Stream
from featcache.fitting.streaming import fit_stream


def fit_linked(estimator: Any, X: Any, y: Any, groups: NDArray[Any] | None = None) -> Any:
    """Fit, and tell which rows belong together to whatever part of a pipeline asks for it.

    Parameters
    ----------
    estimator : sklearn estimator
    X : array of shape (n, d), or a Stream of one
    y : array of shape (n,)
    groups : array of shape (n,), default None
        Rows that share a number belong together; None: each row stands alone.

    Returns
    -------
    The estimator, fitted.
    """
    if isinstance(X, Stream):
        return fit_stream(estimator, X, y, groups)
    if groups is None:
        return estimator.fit(X, y)
    if isinstance(estimator, Pipeline):
        steps = [name for name, step in estimator.steps if has_fit_parameter(step, "groups")]
        return estimator.fit(X, y, **{f"{name}__groups": groups for name in steps})
    if has_fit_parameter(estimator, "groups"):
        return estimator.fit(X, y, groups=groups)
    return estimator.fit(X, y)
