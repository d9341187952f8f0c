"""Streaming: fit a pipeline on rows that stay on disk, and use it on them block by block.

The pipeline is the same object as ever, and so is what it has learned. An estimator takes part if
it has a method `fit_stream(stream, y, groups=None)`, or is one of scikit-learn's in `FITS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline

from featcache.errors import RecipeError
from featcache.fitting.stream import Stream
from featcache.fitting.streamed_linear import check_logreg, fit_logreg

_ABLE = (
    "These heads can do without: mlp, logreg, xgboost, nearest_mean, dummy; and every fusion. "
    "Or give the fit more memory: --memory 64GB."
)
_SAID = {
    "SVMHead": "the head svm",
    "KNNHead": "the head knn",
    "RidgeClassifier": "the head ridge",
    "RandomForestClassifier": "the head forest",
    "TunedClassifier": "--tune",
    "BestColumns": "--select",
    "PrincipalComponents": "--select",
    "NSGASelection": "--select",
}


def fit_stream(estimator: Any, stream: Stream, y: NDArray[Any], groups: Any = None) -> Any:
    """Fit an estimator in place on a stream (n, d) with labels y (n,), and return it.

    Rows that share a value of `groups` (n,) belong together, see `linked.fit_linked`.

    Raises
    ------
    RecipeError
        For an estimator that has to see all rows at once.
    """
    check_streams(estimator)
    if isinstance(estimator, Pipeline):
        *before, (_, last) = estimator.steps
        for _, step in before:
            stream = stream.then(fit_stream(step, stream, y, groups))
        fit_stream(last, stream, y, groups)
    elif type(estimator) in FITS:
        FITS[type(estimator)](estimator, stream, y)
    else:
        estimator.fit_stream(stream, y, groups)
    return estimator


def check_streams(estimator: Any) -> None:
    """Refuse what can't be fitted on rows that stay on disk.

    Raises
    ------
    RecipeError
        Naming what can.
    """
    if isinstance(estimator, Pipeline):
        for _, step in estimator.steps:
            check_streams(step)
        return
    if isinstance(estimator, LogisticRegression):
        check_logreg(estimator)
    if type(estimator) not in FITS and not hasattr(estimator, "fit_stream"):
        raise RecipeError(
            f"{_SAID.get(type(estimator).__name__, type(estimator).__name__)} needs all rows in "
            "memory, and they don't fit into it",
            _ABLE,
        )
    inside = estimator.get_params(deep=False).get("head")
    if inside is not None:
        check_streams(inside)


def _fit_dummy(head: Any, stream: Stream, y: NDArray[Any]) -> None:
    head.fit(np.zeros((len(stream), 1)), y)  # it looks at the labels only


def _fit_columns(transformer: Any, stream: Stream, y: NDArray[Any]) -> None:
    """A ColumnTransformer of one part: two rows give it its form, the stream what it learns."""
    transformer.fit(stream.read(np.arange(min(2, len(stream)))), y[:2])
    (name, step, part), *rest = transformer.transformers_
    fit_stream(step, stream.columns(part), y)
    transformer.transformers_ = [(name, step, part), *rest]


FITS: dict[type, Callable[[Any, Stream, NDArray[Any]], None]] = {
    LogisticRegression: fit_logreg,
    DummyClassifier: _fit_dummy,
    ColumnTransformer: _fit_columns,
}


def by_blocks(function: Callable[[NDArray[Any]], NDArray[Any]], stream: Stream) -> NDArray[Any]:
    """What a function of rows (m, d) gives for all rows of a stream, in their order."""
    out: NDArray[Any] | None = None
    for rows, block in stream.blocks():
        found = function(block)  # (m, …)
        if out is None:
            out = np.empty((len(stream), *found.shape[1:]), found.dtype)  # (n, …)
        out[rows] = found
    return np.empty(0) if out is None else out
