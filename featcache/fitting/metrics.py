"""How good the predictions are, and how sure we can be of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    log_loss,
    precision_recall_fscore_support,
    recall_score,
    roc_auc_score,
)


def scores(
    true: NDArray[Any],
    pred: NDArray[Any],
    proba: NDArray[Any] | None,
    classes: Sequence[str],
) -> dict[str, float]:
    """Metrics of one set of predictions, each between 0 and 1 but for the log loss.

    Parameters
    ----------
    true, pred : str arrays of shape (n,)
    proba : float array of shape (n, classes), or None
        Columns in the order of `classes`, rows summing to 1.
    classes : sequence of str
        All labels, sorted.

    Returns
    -------
    dict
        `accuracy`; `balanced_accuracy` (mean recall over the classes that are in `true`);
        `precision`, `recall`, `f1` (macro over the classes in `true` or `pred`; 0 where nothing
        was predicted). With two classes also `precision_positive`, `recall_positive`,
        `f1_positive`, of the second class in sorted order. With `proba` also `auc` (two classes:
        of the positive one; more: one against the rest, macro; NaN where a class is not in
        `true`), `log_loss` (natural logarithm) and `ece` (see `calibration_error`).
    """
    present = np.unique(true)
    macro = precision_recall_fscore_support(true, pred, average="macro", zero_division=0)
    found = {
        "accuracy": accuracy_score(true, pred),
        "balanced_accuracy": recall_score(
            true, pred, labels=present, average="macro", zero_division=0
        ),
        **dict(zip(("precision", "recall", "f1"), macro[:3], strict=True)),
    }
    if len(classes) == 2:
        positive = precision_recall_fscore_support(
            true, pred, labels=[classes[1]], average="macro", zero_division=0
        )
        names = ("precision_positive", "recall_positive", "f1_positive")
        found.update(zip(names, positive[:3], strict=True))
    if proba is not None:
        found["auc"] = _auc(true, proba, classes)
        found["log_loss"] = log_loss(true, proba, labels=list(classes))
        found["ece"] = calibration_error(true, proba, classes)
    return {name: float(value) for name, value in found.items()}


def _auc(true: NDArray[Any], proba: NDArray[Any], classes: Sequence[str]) -> float:
    if not np.isin(classes, true).all():
        return float("nan")
    if len(classes) == 2:
        return float(roc_auc_score(true == classes[1], proba[:, 1]))
    return float(
        roc_auc_score(true, proba, multi_class="ovr", average="macro", labels=list(classes))
    )


def calibration_error(
    true: NDArray[Any], proba: NDArray[Any], classes: Sequence[str], bins: int = 15
) -> float:
    """Expected calibration error of the most probable class.

    The rows are put in `bins` bins of equal width by their highest probability; the error is the
    mean over rows of the distance between a bin's mean probability and its accuracy
    (Guo et al. 2017, arXiv:1706.04599).
    """
    confidence = proba.max(axis=1)  # (n,)
    right = np.asarray(classes)[proba.argmax(axis=1)] == true  # (n,)
    # Bins are open on the left, (0, 1/15], as in the paper.
    bin_ = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # (n,)
    gaps = np.bincount(bin_, weights=confidence - right, minlength=bins)  # (bins,)
    return float(np.abs(gaps).sum() / len(true))


def interval(
    correct: NDArray[Any],
    groups: NDArray[Any] | None = None,
    seed: int = 0,
    draws: int = 1000,
) -> tuple[float, float]:
    """95 % bootstrap percentile interval of the accuracy.

    Parameters
    ----------
    correct : bool array of shape (n,)
    groups : array of shape (n,), default None
        Rows of one group are drawn together; "" or None: each row alone.
    seed : int, default 0
    draws : int, default 1000
        Resamples.

    Returns
    -------
    (low, high) : floats
    """
    n = len(correct)
    if groups is None:
        unit = np.arange(n)
    else:
        _, unit = np.unique(groups, return_inverse=True)
        unit = np.where(np.asarray(groups) == "", n + np.arange(n), unit)
        _, unit = np.unique(unit, return_inverse=True)  # (n,)
    table = np.stack((np.bincount(unit, weights=correct), np.bincount(unit)), axis=1)  # (g, 2)
    # Groups with equal (right, rows) can't be told apart, so how often each kind is drawn is
    # multinomial: as good as drawing groups one by one, in far less memory.
    kinds, count = np.unique(table, axis=0, return_counts=True)  # (kinds, 2), (kinds,)
    drawn = np.random.default_rng(seed).multinomial(len(table), count / len(table), size=draws)
    right, rows = (drawn @ kinds).T  # (draws,), (draws,)
    low, high = np.percentile(right / rows, (2.5, 97.5))
    return float(low), float(high)
