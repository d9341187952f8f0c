"""Out of core: rows that stay on disk, as the steps of a pipeline have left them; fits on them.

The pipeline is the same object as in memory, and so is what it has learned. An estimator takes part
if it has a method `fit_stream(stream, y, groups=None)`, or is one of scikit-learn's in `FITS`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import has_fit_parameter

from featcache.errors import RecipeError
from featcache.fitting.class_weights import class_weights
from featcache.fitting.fusions import FUSIONS
from featcache.fitting.heads import HEADS
from featcache.fitting.registry import name_of, names_with
from featcache.store.lazy import LazyRows

Rows = NDArray[np.intp]
T = TypeVar("T")

_BLOCK = 2**24  # bytes of float32 in a block; some five times as much is held at a time


@dataclass(frozen=True, eq=False)
class Stream:
    """A matrix (n, d) of which a block of rows at a time is in memory.

    Attributes
    ----------
    X : LazyRows
        The rows on disk.
    steps : tuple
        Fitted transformers that each block goes through when it is read, in order.
    """

    X: LazyRows
    steps: tuple[Any, ...] = ()

    def __len__(self) -> int:
        return len(self.X)

    @cached_property
    def width(self) -> int:
        """Columns after the steps."""
        return int(self.read(np.arange(1)).shape[1])

    @cached_property
    def order(self) -> Rows:
        """All rows, in the order in which they are on disk: the quickest to read, (n,)."""
        return self.X.file_order()

    @property
    def block_rows(self) -> int:
        """Rows of a block."""
        return max(1, _BLOCK // (4 * max(self.X.shape[1], self.width)))

    def then(self, step: Any) -> Stream:
        """What a fitted transformer makes of it."""
        return Stream(self.X, (*self.steps, step))

    def take(self, index: Any) -> Stream:
        """The rows at `index` (positions, a slice or a boolean mask)."""
        return replace(self, X=self.X.take(index))

    def columns(self, part: slice) -> Stream:
        """Some columns of it; of one without steps the others are not even read."""
        return self.then(_Columns(part)) if self.steps else replace(self, X=self.X[:, part])

    def read(self, rows: Rows) -> NDArray[Any]:
        """These rows, (m, width)."""
        block: NDArray[Any] = self.X[rows]  # (m, d)
        for step in self.steps:
            block = step.transform(block)
        return block  # (m, width)

    def blocks(self) -> Iterator[tuple[Rows, NDArray[Any]]]:
        """All rows once, in the order of the disk: positions (m,) and values (m, width)."""
        return self.pieces(self.order, self.block_rows)

    def pieces(self, rows: Rows, size: int) -> Iterator[tuple[Rows, NDArray[Any]]]:
        """These rows in this order, `size` at a time, the next being read meanwhile."""
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        values = ahead(partial(self.read, part) for part in parts)
        return zip(parts, values, strict=True)


class _Columns:
    """A step that leaves some columns."""

    def __init__(self, part: slice) -> None:
        self.part = part

    def transform(self, X: NDArray[Any]) -> NDArray[Any]:
        return X[:, self.part]


def ahead(works: Iterable[Callable[[], T]]) -> Iterator[T]:
    """What the calls return, each made in a thread while the one before it is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="featcache-read") as thread:
        coming = None
        for work in works:
            ready, coming = coming, thread.submit(work)
            if ready is not None:
                yield ready.result()
                ready = None
        if coming is not None:
            yield coming.result()


def some_rows(X: Any, rows: Rows) -> Any:
    """The rows of an array, or of a stream, which stay on disk."""
    return X.take(rows) if isinstance(X, Stream) else X[rows]


def standardise(stream: Stream) -> StandardScaler:
    """A StandardScaler of the stream's columns, as `fit` makes it of a matrix in memory."""
    scaler = StandardScaler()
    for _, block in stream.blocks():
        scaler.partial_fit(block)
    return scaler


SAMPLE = 2**26  # bytes of float32 rows that the first guess is fitted on


def check_logreg(head: Any) -> None:
    """Refuse a LogisticRegression whose loss is not summed up over rows here.

    Raises
    ------
    RecipeError
        For another solver than lbfgs, or another penalty than L2.
    """
    penalty = getattr(head, "penalty", "deprecated")
    if head.solver != "lbfgs" or penalty not in ("l2", "deprecated") or head.l1_ratio:
        raise RecipeError(
            "on rows that stay on disk, logreg has the solver lbfgs and the penalty L2 only",
            "Leave out --set logreg.solver, penalty and l1_ratio; or give the fit more --memory.",
        )


def fit_logreg(head: Any, stream: Stream, y: NDArray[Any]) -> None:
    """Fit a LogisticRegression in place on a stream (n, d) with labels y (n,).

    L-BFGS on the whole loss, one pass over the rows a step, from the coefficients that a sample
    gives. The loss has one optimum, so the start changes only how many passes it takes.
    """
    check_logreg(head)
    head.classes_, codes = np.unique(y, return_inverse=True)
    head.n_features_in_ = stream.width
    k = len(head.classes_)
    if k < 2:
        raise ValueError(f"logreg needs two classes, y has 1 class: {head.classes_[0]}")
    weights = class_weights(head.class_weight, head.classes_, y)  # (k,)
    loss = _Loss(stream, codes, np.ones(k) if weights is None else weights, head)
    found = minimize(
        loss, _guess(head, stream, y, loss), method="L-BFGS-B", jac=True,
        options={"maxiter": head.max_iter, "maxls": 50, "gtol": head.tol,
                 "ftol": 64 * np.finfo(float).eps},
    )  # fmt: skip
    if found.nit >= head.max_iter:
        warnings.warn(f"logreg did not converge in {found.nit} steps", ConvergenceWarning, 2)
    coefficients = found.x.reshape(-1, stream.width + 1)  # (outputs, d + 1)
    head.coef_ = np.ascontiguousarray(coefficients[:, :-1], np.float32)
    head.intercept_ = coefficients[:, -1].astype(np.float32)
    head.n_iter_ = np.array([found.nit], np.int32)


class _Loss:
    """Mean loss over the rows and L2 of the coefficients, and its gradient; as scikit-learn's."""

    def __init__(
        self, stream: Stream, codes: NDArray[np.intp], weights: NDArray[np.float64], head: Any
    ) -> None:
        self.stream, self.codes, self.weights, self.intercept = (
            stream, codes, weights, bool(head.fit_intercept),
        )  # fmt: skip
        self.outputs = 1 if len(weights) == 2 else len(weights)
        self.total = float(weights[codes].sum())
        self.strength = 1 / (head.C * self.total)

    def __call__(self, flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        W = flat.reshape(self.outputs, -1)  # (outputs, d + 1)
        slope, constant = W[:, :-1].astype(np.float32).T, W[:, -1].astype(np.float32)
        loss, gradient = 0.0, np.zeros_like(W)
        for rows, block in self.stream.blocks():
            codes = self.codes[rows]
            weights = self.weights[codes]  # (m,)
            losses, slopes = self._of(block @ slope + constant, codes)  # (m,), (m, outputs)
            loss += float(weights @ losses)
            slopes *= weights[:, None]
            gradient[:, :-1] += slopes.astype(np.float32).T @ block
            gradient[:, -1] += slopes.sum(axis=0)
        gradient /= self.total
        gradient[:, :-1] += self.strength * W[:, :-1]
        gradient[:, -1] *= self.intercept
        size = float(np.square(W[:, :-1]).sum())
        return loss / self.total + self.strength * size / 2, gradient.ravel()

    def _of(
        self, logits: NDArray[np.float32], codes: NDArray[np.intp]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Each row's loss (m,), and its slope along the logits (m, outputs)."""
        z = logits.astype(np.float64)
        if self.outputs == 1:
            z = np.concatenate([np.zeros_like(z), z], axis=1)  # (m, 2)
        log_proba = z - logsumexp(z, axis=1, keepdims=True)  # (m, k)
        place = np.arange(len(codes))
        slopes = np.exp(log_proba)
        slopes[place, codes] -= 1
        return -log_proba[place, codes], slopes[:, -self.outputs :]


def _guess(head: Any, stream: Stream, y: NDArray[Any], loss: _Loss) -> NDArray[np.float64]:
    """Coefficients of a sample, flat; zeros where it lacks a class."""
    n, width = len(stream), stream.width
    start = np.zeros((loss.outputs, width + 1))
    size = min(n, max(1, SAMPLE // (4 * width)))
    rows = np.random.default_rng(0).permutation(n)[:size]
    if size < n and len(np.unique(y[rows])) == len(head.classes_):
        # Few steps do; with the weight of all rows against that of the penalty.
        first = clone(head).set_params(C=head.C * n / size, max_iter=min(100, head.max_iter))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            first.fit(stream.read(np.sort(rows)), y[np.sort(rows)])
        start[:, :-1], start[:, -1] = first.coef_, first.intercept_
    return start.ravel()


_OPTIONS = {
    "TunedClassifier": "--tune",
    "BestColumns": "--select",
    "PrincipalComponents": "--select",
    "NSGASelection": "--select",
}


def fit_stream(estimator: Any, stream: Stream, y: NDArray[Any], groups: Any = None) -> Any:
    """Fit an estimator in place on a stream (n, d) with labels y (n,), and return it.

    Rows that share a value of `groups` (n,) belong together, see `fit_with_routing`.

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
    if not _streams(type(estimator)):
        heads, fusions = names_with(HEADS, _streams), names_with(FUSIONS, _streams)
        every = "every fusion" if len(fusions) == len(FUSIONS) else ", ".join(fusions)
        raise RecipeError(
            f"{_described(estimator)} needs all rows in memory, and they don't fit into it",
            f"These heads can do without: {', '.join(heads)}; and {every}. "
            "Or give the fit more memory: --memory 64GB.",
        )
    inside = estimator.get_params(deep=False).get("head")
    if inside is not None:
        check_streams(inside)


def _streams(kind: Any) -> bool:
    return kind in FITS or hasattr(kind, "fit_stream")


def _described(estimator: Any) -> str:
    """What the user called it: a head, a fusion or an option; else its class."""
    own = type(estimator).__name__
    for role, registered in (("head", HEADS), ("fusion", FUSIONS)):
        if (name := name_of(estimator, registered)) != own:
            return f"the {role} {name}"
    return _OPTIONS.get(own, own)


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


def _asking(pipeline: Pipeline) -> Iterator[str]:
    """The names by which its steps, and those of pipelines in it, are told groups."""
    for name, step in pipeline.steps:
        if isinstance(step, Pipeline):
            yield from (f"{name}__{inner}" for inner in _asking(step))
        elif has_fit_parameter(step, "groups"):
            yield f"{name}__groups"


def fit_with_routing(estimator: Any, X: Any, y: Any, groups: NDArray[Any] | None = None) -> Any:
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
        return estimator.fit(X, y, **dict.fromkeys(_asking(estimator), groups))
    if has_fit_parameter(estimator, "groups"):
        return estimator.fit(X, y, groups=groups)
    return estimator.fit(X, y)
