"""Run folder: one candidate's result on disk, in JSON and CSV that any tool reads; its model."""

from __future__ import annotations

import json
import logging
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from featcache.atomic import making_folder, place
from featcache.errors import FeatcacheError
from featcache.fitting.evaluate import Result
from featcache.fitting.fold import FoldResult
from featcache.fitting.grid import Candidate, classifier_of, fit_candidate
from featcache.fitting.metrics import positive_scores
from featcache.fitting.splits import Fold, describe_folds, folds_to_json, groups_to_keep, is_leaky
from featcache.reporting.bundle import (
    ALL,
    FOLDER,
    SPLIT,
    Writer,
    add_bundle,
    backbone_facts,
    try_to_write,
    write_facts,
    write_networks,
)
from featcache.reporting.html import write_text
from featcache.reporting.places import split_places, write_origin
from featcache.reporting.predictions import write_predictions
from featcache.reporting.run_reader import read_contents
from featcache.reporting.schema import FORMAT, Run, read_json, read_run, run_of
from featcache.store.features import Features

log = logging.getLogger("featcache")

LEAKS = "leaks.json"
_LIBRARIES = ("featcache", "numpy", "scikit-learn", "torch", "xgboost")
_WRITTEN_WITH = ("featcache", "numpy", "scikit-learn", "skops", "torch", "torchvision", "xgboost")


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
    run_json = {**_facts(result, folds, rows, seed, settings), **(facts or {})}
    scores = _metrics(result)
    run = run_of(folder, run_json, scores)
    with making_folder(folder) as temporary:
        temporary.mkdir(parents=True)
        shown, origin = split_places(run_json)
        _write_json(temporary / "run.json", {"format": FORMAT, "name": run.name, **shown})
        write_origin(temporary, origin)
        _write_json(temporary / "metrics.json", scores)
        _write_json(temporary / "splits.json", folds_to_json(folds, features))
        write_predictions(temporary / "predictions.csv", result, features)
        if leaks is not None:
            _write_json(temporary / LEAKS, leaks)
        if write_model is not None:
            try_to_write(temporary / FOLDER, write_model, folder)
        if not place(temporary, folder, "run.json", again):
            return read_run(folder)
    return run


def give_positive(run: Run, label: str) -> Run:
    """The run with this label as the positive one of its two classes, in its folder too."""
    if label == run.positive:
        return run
    contents = read_contents(run.folder)
    scores, facts = (read_json(run.folder / name) for name in ("metrics.json", "run.json"))
    for fold in scores["folds"]:
        rows = contents.fold == fold["name"]
        fold["metrics"] |= positive_scores(contents.true[rows], contents.pred[rows], label)
    for name in positive_scores(contents.true, contents.pred, label):
        values = [fold["metrics"][name] for fold in scores["folds"]]
        scores["mean"][name] = float(np.mean(values))
        scores["sd"][name] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    for name, value in (("metrics.json", scores), ("run.json", facts | {"positive": label})):
        write_text(run.folder / name, json.dumps(value, indent=1, allow_nan=False) + "\n")
    return read_run(run.folder)


def give_model(
    run: Run,
    candidate: Candidate,
    features: Features,
    folds: Sequence[Fold],
    seed: int,
    settings: Mapping[str, Any],
) -> None:
    """Fit a candidate once more and keep it in its run folder; nothing to do where one is kept.

    With several folds it is fitted on all rows of the features; with one, on its training rows, as
    when it was scored. A class of the user's own that no file brings back is not fitted for it.
    """
    if (run.folder / FOLDER).is_dir():
        return
    if candidate.own and (why := _why_not(classifier_of(candidate, seed, settings))):
        if len(folds) > 1:  # else it was said when the run was saved
            log.warning("no model is kept in %s: %s", run.folder, why)
        return
    chosen = features.select(candidate.backbones)
    rows = folds[0].train if len(folds) == 1 else None
    groups = groups_to_keep(chosen, folds)
    pipeline = fit_candidate(candidate, chosen, rows, seed, settings, groups)
    write = pipeline_writer(pipeline, candidate, chosen, folds, seed, settings, run.name)
    add_bundle(run.folder, write)


def pipeline_writer(
    pipeline: Any,
    candidate: Candidate,
    features: Features,
    folds: Sequence[Fold],
    seed: int,
    settings: Mapping[str, Any],
    name: str,
) -> Writer:
    """What writes a fitted pipeline into a folder, see `bundle`.

    Parameters
    ----------
    pipeline : fitted sklearn pipeline
        On the training rows of the one fold, or on all rows where there are several.
    candidate : Candidate
    features : Features
        With the candidate's backbones only.
    folds : sequence of Fold
    seed : int
    settings : mapping
    name : str
        The run's.
    """
    alone = len(folds) == 1
    rows = len(folds[0].train) if alone else len(features)
    facts = {
        "kind": "features",
        "name": name,
        "data": features.data,
        "fusion": candidate.fusion,
        "head": candidate.head,
        "classes": sorted(set(features.y.tolist())),
        "seed": seed,
        "settings": {**settings, **candidate.options},
        "backbones": backbone_facts(
            features.names, features.blocks, features.keys, features.origins
        ),
        "trained_on": {"rows": rows, "what": SPLIT if alone else ALL},
        "versions": library_versions(),
    }

    def write(folder: Path) -> None:
        from featcache.fitting.persist import save_pipeline

        networks = write_networks(folder, features)
        parts = save_pipeline(folder, pipeline)
        write_facts(folder, {**facts, **networks, "parts": parts})

    return write


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


def installed_version(library: str) -> str | None:
    """The version of a library; None if it is not installed."""
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def library_versions() -> dict[str, str]:
    """Of what a bundle was written with."""
    found = {name: installed_version(name) for name in _WRITTEN_WITH}
    return {name: version for name, version in found.items() if version is not None}


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
        **({"positive": result.positive} if result.positive else {}),
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
        **({"seed_sd": finite(result.seed_sd)} if result.seeds > 1 else {}),
        "interval": list(result.interval),
        "folds": [fold_facts(fold, result.backbones) for fold in result.folds],
    }


def _write_json(path: Path, value: Any) -> None:
    with path.open("w", encoding="utf-8") as file:  # piece by piece: folds are long
        json.dump(value, file, indent=1, allow_nan=False)
        file.write("\n")


def _why_not(unfitted: Any) -> FeatcacheError | None:
    """Why a pipeline can't be written, tried before it is fitted; None if it can."""
    from featcache.fitting.persist import save_pipeline

    try:
        with TemporaryDirectory() as folder:
            save_pipeline(Path(folder), unfitted)
    except FeatcacheError as error:
        return error
    return None
