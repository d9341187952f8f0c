"""Fold: a classifier fitted on the training rows of one fold, and what came of its test rows."""

from __future__ import annotations

import time
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline

from featcache.errors import FeatcacheError, RecipeError, first_line
from featcache.fitting.fitted_steps import Steps, fit_steps
from featcache.fitting.metrics import scores
from featcache.fitting.out_of_core import Stream, by_blocks, fit_with_routing
from featcache.fitting.pipeline import describe, with_blocks
from featcache.fitting.splits import Fold, Rows
from featcache.fitting.tuning import TunedClassifier
from featcache.store.features import Floats, Strings, take
from featcache.store.lazy import LazyRows

MANY_PROBABILITIES = 2_000_000  # as text 15 MB


def fit_clone(classifier: Any, X: Floats, y: Strings, groups: Rows | None = None) -> Any:
    """A clone of the classifier, fitted on X (n, d) with labels y (n,).

    Rows that share a number of `groups` (n,) belong together, see `fit_with_routing`. Of a search
    among settings, the best comes back.

    Raises
    ------
    RecipeError
        If a parameter is not to scikit-learn's or XGBoost's liking.
    """
    return fit_timed(classifier, X, y, groups)[0]


def fit_timed(
    classifier: Any,
    X: Floats,
    y: Strings,
    groups: Rows | None = None,
    keys: Sequence[str] = (),
    fitted_steps: Steps | None = None,
) -> tuple[Any, float, Steps]:
    """As `fit_clone`; also its steps, and the seconds that it takes if none is fitted before."""
    fitted = with_blocks(classifier, None)
    if isinstance(X, LazyRows):
        X = cast(Floats, Stream(X))
    started = time.perf_counter()
    try:
        if keys:
            return fitted, *fit_steps(fitted, X, y, keys, fitted_steps or {}, groups)
        fit_with_routing(fitted, X, y, groups)
    except FeatcacheError:
        raise
    except (ValueError, TypeError) as error:  # what sklearn and xgboost say of a bad parameter
        raise RecipeError(
            f"{describe(fitted)[1]} can't be fitted: {first_line(error)}",
            "Check its settings: --set NAME=VALUE.",
        ) from error
    seconds = time.perf_counter() - started
    if isinstance(fitted, TunedClassifier):
        fitted.best_.tuned_ = fitted.tuned_
        return fitted.best_, seconds, {}
    return fitted, seconds, {}


def predict_all(fitted: Any, X: Floats, classes: Strings) -> tuple[Strings, NDArray[Any] | None]:
    """Labels, and probabilities with a column for every class, also for those not trained on.

    X (n, d) may be a `LazyRows`: it is then read and predicted block by block.
    """
    if isinstance(X, LazyRows):
        return _predict_stored(fitted, X, classes)
    if not hasattr(fitted, "predict_proba"):
        return np.asarray(fitted.predict(X)).astype(classes.dtype), None
    known = _sum_to_one(fitted.predict_proba(X))  # (n, known classes)
    if _says_the_most_probable(fitted):
        pred: Strings = fitted.classes_[known.argmax(axis=1)].astype(classes.dtype)  # (n,)
    else:
        pred = np.asarray(fitted.predict(X)).astype(classes.dtype)  # (n,)
    if np.array_equal(fitted.classes_, classes):
        return pred, known
    proba = np.zeros((len(X), len(classes)), dtype=known.dtype)  # (n, classes)
    proba[:, np.searchsorted(classes, fitted.classes_)] = known
    return pred, proba


def _sum_to_one(proba: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities (n, classes), float64 whatever the head counts in: the log loss is clipped by
    the smallest step of the type. Those of some classifiers miss 1 in float32, as GaussianNB's.
    """
    proba = np.asarray(proba, np.float64)  # (n, classes)
    total = proba.sum(axis=1, keepdims=True)  # (n, 1)
    if not (total > 0).all():
        return proba
    exact: NDArray[np.float64] = proba / total  # (n, classes)
    return exact


def backbone_weights(fitted: Any, X: Floats, true: Strings) -> dict[str, list[float]] | None:
    """For each class of X's rows (n, d), the mean weight of each backbone.

    None where the pipeline has no step that weighs backbones.
    """
    inside: Any = Stream(X) if isinstance(X, LazyRows) else X
    for _, step in fitted.steps if isinstance(fitted, Pipeline) else []:
        if callable(getattr(step, "weights", None)):  # a KNN has a setting of that name
            streamed = isinstance(inside, Stream)
            weights = (
                by_blocks(step.weights, inside) if streamed else step.weights(inside)
            )  # (n, k)
            return {
                label: weights[true == label].mean(axis=0, dtype=np.float64).tolist()
                for label in np.unique(true).tolist()
            }
        if not hasattr(step, "transform"):
            return None
        inside = inside.then(step) if isinstance(inside, Stream) else step.transform(inside)
    return None


def _predict_stored(
    fitted: Any, X: LazyRows, classes: Strings
) -> tuple[Strings, NDArray[Any] | None]:
    pred = np.empty(len(X), classes.dtype)  # (n,)
    proba: NDArray[Any] | None = None
    for rows, block in Stream(X).blocks():
        pred[rows], found = predict_all(fitted, block, classes)
        if found is not None:
            proba = np.empty((len(X), len(classes)), found.dtype) if proba is None else proba
            proba[rows] = found
    return pred, proba


def _says_the_most_probable(fitted: Any) -> bool:
    """Whether `predict` is the label of the highest probability, so that one pass gives both."""
    head = fitted.steps[-1][1] if isinstance(fitted, Pipeline) else fitted
    return type(head).__module__.startswith("featcache.")


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
        training rows. Float32 if they are more than two million. None where the classifier gives
        none.
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
        If the fusion weighs backbones: for each class of the test rows, the mean weight of
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
    fitted_steps: Steps | None = None,
    threads: int | None = None,
) -> tuple[FoldResult, Steps]:
    """Fit on the training rows, predict and score the test rows.

    Of the fitted steps, those that are wanted come back: a head may be as large as the features.
    """
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    mine = None if groups is None else groups[fold.train]
    fitted, seconds, steps = fit_timed(
        classifier, take(X, fold.train), y[fold.train], mine, keys, fitted_steps
    )
    trained = time.perf_counter()
    tested = take(X, fold.test)
    pred, proba = predict_all(fitted, tested, classes)
    predicted = time.perf_counter()
    true = y[fold.test]
    metrics = scores(true, pred, proba, classes.tolist())
    if proba is not None and proba.size > MANY_PROBABILITIES:
        proba = proba.astype(np.float32)
    head = fitted.steps[-1][1] if isinstance(fitted, Pipeline) else fitted
    result = FoldResult(
        name=fold.name,
        ids=ids[fold.test],
        true=true,
        pred=pred,
        proba=proba,
        metrics=metrics,
        fit_seconds=seconds,
        predict_seconds=predicted - trained,
        train_size=len(fold.train),
        history=_history(head),
        classifier=fitted if keep else None,
        tuned=getattr(fitted, "tuned_", None),
        attention=backbone_weights(fitted, tested, true),
    )
    return result, {key: step for key, step in steps.items() if key in wanted}


def _history(head: Any) -> dict[str, list[float]] | None:
    """Learning curves as `MLPHead` keeps them; other classes may mean other things by that name."""
    found = getattr(head, "history_", None)
    curves = isinstance(found, dict) and all(isinstance(curve, list) for curve in found.values())
    return found if curves else None
