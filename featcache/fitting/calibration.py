"""Calibration: temperatures and penalties, learned on rows that were held out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from featcache.fitting.splits import Rows, inner_folds

Floats = NDArray[np.float64]
HeldOut = tuple[Rows, Floats]  # rows (m,), and what was said of them by who had not seen them

_ENOUGH = 2000  # rows: a third part of many tells as much as all parts of few
_MOST = 50.0
_GAIN = 0.01


def temperature(logits: NDArray[Any], codes: Rows, weights: NDArray[Any] | None = None) -> float:
    """What to divide logits by, so that their softmax has the lowest log loss.

    Guo et al. 2017, arXiv:1706.04599. The true class of m rows counts as 1 - 1 / (m + 2), as in
    Laplace's rule: rows that are all right don't make it infinitely sure.

    Parameters
    ----------
    logits : float array of shape (m, classes)
        Of rows that were held out; logarithms of probabilities will do.
    codes : int array of shape (m,)
        Their classes.
    weights : float array of shape (classes,), default None
        How much a row of each class counts; None means 1.
    """
    z = np.asarray(logits, np.float64)  # (m, classes)
    doubt = 1 / (len(z) + 2)
    target = np.full(z.shape, doubt / max(z.shape[1] - 1, 1))  # (m, classes)
    target[np.arange(len(z)), codes] = 1 - doubt
    if weights is not None:
        target = target * weights[codes][:, None]

    def loss(sharpness: float) -> float:
        return -float((target * log_softmax(z * np.exp(sharpness), axis=1)).sum())

    reach = np.log(_MOST)
    found = minimize_scalar(loss, bounds=(-reach, reach), method="bounded")
    return float(np.exp(-found.x))


def tempered(proba: NDArray[Any], temperature: float) -> Floats:
    """Probabilities (n, classes) as their logits divided by a temperature give them."""
    logs = np.log(np.maximum(np.asarray(proba, np.float64), np.finfo(np.float64).tiny))
    found: Floats = softmax(logs / temperature, axis=1)  # (n, classes)
    return found


def held_out_rows(
    y: NDArray[Any], groups: NDArray[Any] | None, random_state: Any, parts: int = 3
) -> list[tuple[Rows, Rows]]:
    """Inner folds, as many as hold out 2,000 rows, or all; none if a class is too rare."""
    seed = 0 if random_state is None else check_random_state(random_state).randint(2**31 - 1)
    folds = inner_folds(y, groups, parts, seed)
    held = np.cumsum([len(rows) for _, rows in folds])
    return folds[: 1 + int((held < _ENOUGH).sum())]


def best_on_path(
    estimator: Any,
    name: str,
    values: Sequence[float],
    said: Callable[[Any, NDArray[Any]], Floats],
    loss: Callable[[Floats, Rows], float],
    X: NDArray[Any],
    y: NDArray[Any],
    folds: Sequence[tuple[Rows, Rows]],
) -> tuple[float, HeldOut]:
    """The value of a penalty with the lowest loss on rows that were held out.

    From the estimator's own value on to weaker penalties, while each takes a hundredth off the
    loss, which is far less than its standard error; if the first doesn't, to stronger ones while
    the loss falls. Each fit begins where the last one ended if the estimator has a warm start.

    Parameters
    ----------
    estimator : sklearn classifier
    name : str
        The penalty's parameter.
    values : sequence of float
        The strongest penalty first; one is the estimator's own.
    said : callable
        What a fitted estimator says of rows, (m, …).
    loss : callable
        The loss of what was said of rows at these positions.
    X, y : arrays of shape (n, d) and (n,)
    folds : sequence of (rows to fit on, rows held out)
        One or more.

    Returns
    -------
    (value, (rows, what the estimators with that value said of them))
    """
    fitted = [clone(estimator) for _ in folds]
    rows = np.concatenate([held for _, held in folds])

    def tried(value: float) -> tuple[float, Floats]:
        parts = []
        for one, (train, held) in zip(fitted, folds, strict=True):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                one.set_params(**{name: value}).fit(X[train], y[train])
            parts.append(said(one, X[held]))
        outputs = np.concatenate(parts)
        return loss(outputs, rows), outputs

    own = best = getattr(estimator, name)
    start = values.index(own)
    lowest, outputs = tried(own)
    for way, share in ((values[start + 1 :], 1 - _GAIN), (values[:start][::-1], 1.0)):
        for value in way:
            now, found = tried(value)
            if not now < lowest * share:
                break
            lowest, best, outputs = now, value, found
        if best != own:
            break
    return best, (rows, outputs)
