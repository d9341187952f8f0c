"""One fold: fitted on its training rows, and what came of its test rows."""

from __future__ import annotations

import time
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline

from featcache.fitting.fit_one import backbone_weights, fit_timed, predict_all
from featcache.fitting.metrics import scores
from featcache.fitting.reuse import Parts
from featcache.fitting.splits import Fold, Rows
from featcache.store.features import Floats, Strings, take


@dataclass(frozen=True, eq=False)
class FoldResult:
    """What one fold gave.

    Attributes
    ----------
    name : str
        The fold's name.
    ids : str array of shape (n,)
        Image ids of the test rows; every array below is in this order.
    true : str array of shape (n,)
        Labels.
    pred : str array of shape (n,)
        Predicted labels.
    proba : float array of shape (n, classes), or None
        Probabilities in the order of the result's `classes`; 0 for a class that was not in the
        training rows. None where the classifier gives none.
    metrics : dict
        See `metrics.scores`.
    fit_seconds, predict_seconds : float
        Wall time of the fit, and of predicting the test rows.
    train_size : int
        Training rows, views included.
    train_images : int
        Images that they are of.
    history : dict of lists, or None
        The head's losses an epoch, where it keeps any.
    classifier : fitted classifier, or None
        Only where `evaluate` was told to keep it.
    tuned : dict or None
        What a search among settings came to, see `tuning.TunedClassifier`.
    attention : dict or None
        Where the fusion weighs backbones: for each class of the test rows, the mean weight of
        each backbone.
    """

    name: str
    ids: Strings
    true: Strings
    pred: Strings
    proba: NDArray[Any] | None
    metrics: dict[str, float]
    fit_seconds: float
    predict_seconds: float
    train_size: int
    history: dict[str, list[float]] | None = None
    classifier: Any = None
    train_images: int = 0
    tuned: dict[str, Any] | None = None
    attention: dict[str, list[float]] | None = None

    def __post_init__(self) -> None:
        if not self.train_images:
            object.__setattr__(self, "train_images", self.train_size)


def run_fold(
    classifier: Any,
    X: Floats,
    y: Strings,
    ids: Strings,
    fold: Fold,
    classes: Strings,
    keep: bool,
    groups: Rows | None = None,
    keys: Sequence[str] = (),
    wanted: Set[str] = frozenset(),
    given: Parts | None = None,
    threads: int | None = None,
) -> tuple[FoldResult, Parts]:
    """Fit on the training rows, predict and score the test rows.

    Of the parts, those that are wanted come back: a fitted head may be as large as the features.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    mine = None if groups is None else groups[fold.train]
    fitted, seconds, parts = fit_timed(
        classifier, take(X, fold.train), y[fold.train], mine, keys, given or {}
    )
    trained = time.perf_counter()
    tested = take(X, fold.test)
    pred, proba = predict_all(fitted, tested, classes)
    predicted = time.perf_counter()
    true = y[fold.test]
    head = fitted.steps[-1][1] if isinstance(fitted, Pipeline) else fitted
    result = FoldResult(
        name=fold.name,
        ids=ids[fold.test],
        true=true,
        pred=pred,
        proba=proba,
        metrics=scores(true, pred, proba, classes.tolist()),
        fit_seconds=seconds,
        predict_seconds=predicted - trained,
        train_size=len(fold.train),
        history=_history(head),
        classifier=fitted if keep else None,
        tuned=getattr(fitted, "tuned_", None),
        attention=backbone_weights(fitted, tested, true),
    )
    return result, {key: part for key, part in parts.items() if key in wanted}


def _history(head: Any) -> dict[str, list[float]] | None:
    """Learning curves as `MLPHead` keeps them; other classes may mean other things by that name."""
    found = getattr(head, "history_", None)
    curves = isinstance(found, dict) and all(isinstance(curve, list) for curve in found.values())
    return found if curves else None
