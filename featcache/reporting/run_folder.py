"""Run folder: one candidate's result on disk, in JSON and CSV that any tool reads."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from featcache.atomic import place
from featcache.fitting.evaluate import Result
from featcache.fitting.fold import FoldResult
from featcache.fitting.splits import Fold, describe_folds, folds_to_json, is_leaky
from featcache.reporting.bundle import FOLDER, Writer, try_to_write
from featcache.reporting.digest import FORMAT
from featcache.reporting.predictions import write_predictions
from featcache.reporting.schema import Run, read_run, run_of
from featcache.store.features import Features

LEAKS = "leaks.json"
_LIBRARIES = ("featcache", "numpy", "scikit-learn", "torch", "xgboost")


def save_run(
    folder: Path,
    result: Result,
    features: Features,
    folds: Sequence[Fold],
    *,
    rows: str,
    seed: int,
    settings: Mapping[str, Any],
    write_model: Writer | None = None,
    facts: Mapping[str, Any] | None = None,
    leaks: Mapping[str, Any] | None = None,
    again: bool = True,
) -> Run:
    """Write a run folder, all or nothing, in place of one that is there.

    Parameters
    ----------
    folder : Path
    result : Result
    features : Features
        What was evaluated.
    folds : sequence of Fold
    rows : str
        Their `rows_digest`.
    seed : int
    settings : mapping
        What was set besides the defaults.
    write_model : callable, optional
        Writes the bundle into the folder that it is given, see `bundle`.
    facts : mapping, optional
        What else run.json is to say.
    leaks : mapping, optional
        What leaks.json is to hold, see `leaks_to_json`.
    again : bool, default True
        False: a whole one that another process has written meanwhile stays, and is returned.
    """
    told = {**_facts(result, folds, rows, seed, settings), **(facts or {})}
    scores = _metrics(result)
    run = run_of(folder, told, scores)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _write_json(temporary / "run.json", {"format": FORMAT, "name": run.name, **told})
        _write_json(temporary / "metrics.json", scores)
        _write_json(temporary / "splits.json", folds_to_json(folds, features))
        write_predictions(temporary / "predictions.csv", result, features)
        if leaks is not None:
            _write_json(temporary / LEAKS, leaks)
        if write_model is not None:
            try_to_write(temporary / FOLDER, write_model, folder)
        if not place(temporary, folder, "run.json", again):
            return read_run(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return run


def _facts(
    result: Result, folds: Sequence[Fold], rows: str, seed: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "data": result.data,
        "backbones": list(result.backbones),
        "fusion": result.fusion,
        "head": result.head,
        "split": describe_folds(folds),
        "rows": rows,
        "tested": len({id_ for fold in result.folds for id_ in fold.ids.tolist()}),
        "fit_seconds": result.fit_seconds / len(result.folds),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "leaky": is_leaky(folds),
        "select": settings.get("select", ""),
        "tune": settings.get("tune", 0),
        "view": [],
        "balance": False,
        "seed": seed,
        "settings": dict(settings),
        "keys": dict(zip(result.backbones, result.keys, strict=True)),
        "classes": result.classes,
        "predict_seconds": result.predict_seconds / len(result.folds),
        "versions": {name: installed_version(name) for name in _LIBRARIES},
        "machine": {
            "python": platform.python_version(),
            "system": platform.platform(),
            "cores": os.cpu_count(),
        },
    }


def _metrics(result: Result) -> dict[str, Any]:
    return {
        "mean": finite(result.metrics),
        "sd": finite(result.sd),
        "interval": list(result.interval),
        "folds": [fold_facts(fold, result.backbones) for fold in result.folds],
    }


def _write_json(path: Path, value: Any) -> None:
    with path.open("w", encoding="utf-8") as file:  # piece by piece: folds are long
        json.dump(value, file, indent=1, allow_nan=False)
        file.write("\n")


def installed_version(library: str) -> str | None:
    """The version of a library; None if it is not installed."""
    try:
        return version(library)
    except PackageNotFoundError:
        return None


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
