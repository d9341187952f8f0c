"""Features to compare on, and run folders with chosen outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featcache.fitting.evaluate import Result
from featcache.fitting.fold import FoldResult
from featcache.fitting.metrics import interval, scores
from featcache.fitting.splits import Fold
from featcache.reporting.run_folder import save_run
from featcache.reporting.schema import Run, rows_digest
from featcache.store.features import Features

CLASSES = ["cat", "dog"]


def make_features(
    n: int = 80, signal: float = 1.5, groups: Sequence[str] | None = None, data: str = "toy"
) -> Features:
    """Two backbones of which the first has a signal and the second less of it."""
    rng = np.random.default_rng(0)
    y = np.arange(n) % 2
    X = rng.normal(size=(n, 5)).astype(np.float32)
    X[:, 0] += signal * y
    X[:, 3] += signal / 3 * y
    empty = np.full(n, "")
    return Features(
        X=X,
        y=np.array(CLASSES)[y],
        ids=np.array([f"img{i:05d}.png" for i in range(n)]),
        sha256=np.array([f"{i:064x}" for i in range(n)]),
        groups=empty if groups is None else np.array(groups),
        split=empty,
        blocks=(3, 2),
        names=("big", "small"),
        keys=("key0", "key1"),
        data=data,
    )


def make_result(
    features: Features, folds: Sequence[Fold], right: np.ndarray, head: str, seconds: float = 1.0
) -> Result:
    """A result that is right on the rows where `right` (n,) is True."""
    other = np.where(features.y == "cat", "dog", "cat")
    pred = np.where(right, features.y, other)
    done = []
    for fold in folds:
        true, said = features.y[fold.test], pred[fold.test]
        proba = np.where(said[:, None] == np.array(CLASSES), 0.9, 0.1)
        done.append(
            FoldResult(
                name=fold.name,
                ids=features.ids[fold.test],
                true=true,
                pred=said,
                proba=proba,
                metrics=scores(true, said, proba, CLASSES),
                fit_seconds=seconds,
                predict_seconds=0.1,
                train_size=len(fold.train),
            )
        )
    return Result(
        backbones=features.names,
        fusion="concat",
        head=head,
        data=features.data,
        keys=features.keys,
        classes=CLASSES,
        folds=done,
        interval=interval(right),
    )


def make_run(
    reports: Path,
    features: Features,
    folds: Sequence[Fold],
    right: np.ndarray,
    head: str,
    seconds: float = 1.0,
) -> Run:
    """The run folder of a result, named after its head."""
    result = make_result(features, folds, right, head, seconds)
    rows = rows_digest(features, folds)
    folder = reports / features.data / f"{result.name}.00000000"
    return save_run(folder, result, features, folds, rows=rows, seed=0, settings={})


def own_split(n: int, tested: int) -> list[Fold]:
    """One test split: the last `tested` rows."""
    rows = np.arange(n)
    return [Fold(rows[: n - tested], rows[n - tested :], "test")]
