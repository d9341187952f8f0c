"""Fit and score a classifier on every fold."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed, effective_n_jobs
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline

from featcache.errors import DataError
from featcache.fitting.classifier import describe, with_blocks
from featcache.fitting.fit_one import backbone_weights, fit_timed, predict_all
from featcache.fitting.gate import check_features
from featcache.fitting.leaks import refuse_trained
from featcache.fitting.memory import PeakMemory
from featcache.fitting.metrics import interval, scores
from featcache.fitting.numbered import numbered
from featcache.fitting.reuse import Parts, Shelf, part_keys
from featcache.fitting.splits import Fold, Rows, components, groups_to_keep, make_folds
from featcache.store.features import Features, Floats, Strings, take


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
    memory : int or None
        Bytes that the fit added to the process at its peak, see `memory.PeakMemory`.
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
    memory: int | None = None
    tuned: dict[str, Any] | None = None
    attention: dict[str, list[float]] | None = None

    def __post_init__(self) -> None:
        if not self.train_images:
            object.__setattr__(self, "train_images", self.train_size)


@dataclass(frozen=True, eq=False)
class Result:
    """What one candidate gave.

    Attributes
    ----------
    backbones : tuple of str
        Names of the blocks.
    fusion, head : str
        Registered names, or the classes' own.
    data : str
        The data set's name.
    keys : tuple of str
        Digest of each block's cache key.
    classes : list of str
        All labels of the features, sorted.
    folds : list of FoldResult
    interval : (low, high)
        95 % bootstrap interval of the accuracy over all test rows together; rows linked by group
        or content are drawn together.
    seed : int
        What the bootstrap was drawn with, and the folds where `evaluate` made them.
    """

    backbones: tuple[str, ...]
    fusion: str
    head: str
    data: str
    keys: tuple[str, ...]
    classes: list[str]
    folds: list[FoldResult]
    interval: tuple[float, float]
    seed: int = 0

    @property
    def name(self) -> str:
        """For instance "resnet18+mobilenet_v2.concat.mlp"."""
        return f"{'+'.join(self.backbones)}.{self.fusion}.{self.head}"

    @property
    def metrics(self) -> dict[str, float]:
        """Each metric's mean over the folds in which it is defined; NaN where in none."""
        return {name: float(np.mean(v)) if len(v) else float("nan") for name, v in self._values()}

    @property
    def sd(self) -> dict[str, float]:
        """Each metric's standard deviation over folds (n - 1); NaN for fewer than two."""
        return {
            name: float(np.std(v, ddof=1)) if len(v) > 1 else float("nan")
            for name, v in self._values()
        }

    @property
    def fit_seconds(self) -> float:
        """Of all folds together, as if run one after another."""
        return sum(fold.fit_seconds for fold in self.folds)

    @property
    def predict_seconds(self) -> float:
        """Of all folds together."""
        return sum(fold.predict_seconds for fold in self.folds)

    def _values(self) -> list[tuple[str, NDArray[np.float64]]]:
        table = {
            name: np.array([fold.metrics[name] for fold in self.folds])
            for name in self.folds[0].metrics
        }
        return [(name, values[~np.isnan(values)]) for name, values in table.items()]


def evaluate(
    classifier: Any,
    features: Features,
    *,
    folds: int | None = None,
    test_split: bool | None = None,
    seed: int = 0,
    n_jobs: int = 1,
    split: Sequence[Fold] | None = None,
    gate: str = "refuse",
    keep: bool = False,
    shelf: Shelf | None = None,
) -> Result:
    """Fit a clone of the classifier on each fold's training rows and score its test rows.

    Everything that is learned, scaling included, is learned inside the training rows. A label
    that is only among the test rows of a fold can't be predicted: those rows count as wrong, with
    probability 0.

    Parameters
    ----------
    classifier : sklearn classifier
        From `make_classifier`, or any other; `blocks` parameters that are None are set to the
        features' blocks.
    features : Features
    folds, test_split, seed
        See `make_folds`.
    n_jobs : int, default 1
        Folds at a time, each in a process of its own.
    split : sequence of Fold, default None
        Ready-made folds, so that several candidates share them.
    gate : {"refuse", "warn", "off"}, default "refuse"
        What to do about features that look broken, see `gate.check_features`.
    keep : bool, default False
        Keep each fold's fitted classifier.
    shelf : Shelf, default None
        Parts that other candidates fitted on these folds, and where to leave this one's.

    Returns
    -------
    Result

    Raises
    ------
    CacheRefused
        Where the features look broken, or a backbone was fine-tuned on rows that are tested.
    DataError
        Where no folds can be made, or a fold is empty or has one class to train on.
    """
    check_features(features, gate)
    if split is None:
        split = make_folds(features, folds, test_split, seed=seed)
    for fold in split:
        _check_fold(fold, features)
    refuse_trained(features, split)
    ready = with_blocks(classifier, features.blocks)
    classes = np.unique(features.y)
    groups = groups_to_keep(features, split)  # (n,)
    keys = [] if shelf is None else part_keys(classifier, features.names)
    given = [{} if shelf is None else shelf.given(i, keys) for i in range(len(split))]
    at_a_time = min(effective_n_jobs(n_jobs), len(split))
    threads = max(1, (os.cpu_count() or 1) // at_a_time) if at_a_time > 1 else None
    run = delayed(_run_fold)
    # X travels alone: joblib maps a bare array into the workers instead of copying it to each.
    pairs: list[tuple[FoldResult, Parts]] = Parallel(n_jobs=at_a_time)(
        run(ready, features.X, features.y, features.ids, fold, classes, keep, groups,
            keys, parts, threads)
        for fold, parts in zip(split, given, strict=True)
    )  # fmt: skip
    done = [one for one, _ in pairs]
    if shelf is not None:
        for place, (_, parts) in enumerate(pairs):
            shelf.put(place, parts)
    fusion, head = describe(classifier)
    tested = np.concatenate([fold.test for fold in split])
    sources = numbered(features.sources)  # (n,)
    right = np.concatenate([fold.true == fold.pred for fold in done])
    return Result(
        backbones=features.names,
        fusion=fusion,
        head=head,
        data=features.data,
        keys=features.keys,
        classes=classes.tolist(),
        folds=[
            replace(one, train_images=len(np.unique(sources[fold.train])))
            for one, fold in zip(done, split, strict=True)
        ],
        interval=interval(right, components(features)[tested], seed=seed),
        seed=seed,
    )


def _check_fold(fold: Fold, features: Features) -> None:
    if not len(fold.test):
        raise DataError(f"{fold.name} has no test rows", "Make the folds again.")
    labels = np.unique(features.y[fold.train])
    if len(labels) < 2:
        raise DataError(
            f"{fold.name} has {len(fold.train)} training rows of {len(labels)} class",
            "Every fold needs training rows of at least two classes.",
        )
    both = np.intersect1d(fold.train, fold.test)
    if len(both):
        raise DataError(
            f"{len(both)} rows of {fold.name} are in both training and test: "
            f"{features.ids[both[0]]}, …",
            "Make the folds again.",
        )


def _run_fold(
    classifier: Any,
    X: Floats,
    y: Strings,
    ids: Strings,
    fold: Fold,
    classes: Strings,
    keep: bool,
    groups: Rows | None = None,
    keys: Sequence[str] = (),
    given: Parts | None = None,
    threads: int | None = None,
) -> tuple[FoldResult, Parts]:
    """Fit on the training rows, predict and score the test rows."""
    if threads is not None:
        torch.set_num_threads(threads)
    mine = None if groups is None else groups[fold.train]
    with PeakMemory() as memory:
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
        history=getattr(head, "history_", None),
        classifier=fitted if keep else None,
        memory=memory.bytes,
        tuned=getattr(fitted, "tuned_", None),
        attention=backbone_weights(fitted, tested, true),
    )
    return result, parts
