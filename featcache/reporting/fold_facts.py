"""Fold facts: what metrics.json says of one fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from featcache.fitting.fold_result import FoldResult


def fold_facts(fold: FoldResult, backbones: Sequence[str]) -> dict[str, Any]:
    """A fold as plain JSON values.

    `tuned` is what a search among settings came to, and `attention` the mean weight (classes,
    backbones) of each backbone for the test rows of each class; each is left out if there is none.
    """
    facts: dict[str, Any] = {
        "name": fold.name,
        "train": fold.train_size,
        "train_images": fold.train_images,
        "test": len(fold.ids),
        "metrics": finite(fold.metrics),
        "fit_seconds": fold.fit_seconds,
        "predict_seconds": fold.predict_seconds,
        "history": fold.history,
    }
    if fold.tuned is not None:
        facts["tuned"] = fold.tuned
    if fold.attention is not None:
        facts["attention"] = {
            "classes": list(fold.attention),
            "backbones": list(backbones),
            "mean": list(fold.attention.values()),
        }
    return facts


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """JSON knows no NaN."""
    return {name: None if value != value else float(value) for name, value in values.items()}
