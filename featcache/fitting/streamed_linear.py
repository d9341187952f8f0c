"""Logistic regression on rows that stay on disk: the optimum that a fit in memory finds."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from featcache.errors import RecipeError
from featcache.fitting.balance import class_weights
from featcache.fitting.stream import Stream

_SAMPLE = 2**26  # bytes of float32 rows that the first guess is fitted on


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
    size = min(n, max(1, _SAMPLE // (4 * width)))
    rows = np.random.default_rng(0).permutation(n)[:size]
    if size < n and len(np.unique(y[rows])) == len(head.classes_):
        # Few steps do; with the weight of all rows against that of the penalty.
        first = clone(head).set_params(C=head.C * n / size, max_iter=min(100, head.max_iter))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            first.fit(stream.read(np.sort(rows)), y[np.sort(rows)])
        start[:, :-1], start[:, -1] = first.coef_, first.intercept_
    return start.ravel()
