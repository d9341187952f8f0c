"""Refit model: a run's fitted pipeline as the bundle in its folder; fitted once more if need be."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from featcache.errors import FeatcacheError
from featcache.fitting.grid import Candidate, classifier_of, fit_candidate
from featcache.fitting.splits import Fold, groups_to_keep
from featcache.reporting.bundle import (
    ALL,
    FOLDER,
    SPLIT,
    Writer,
    add_bundle,
    backbone_facts,
    write_facts,
)
from featcache.reporting.run_folder import installed_version
from featcache.reporting.schema import Run
from featcache.store.features import Features

log = logging.getLogger("featcache")

_LIBRARIES = ("featcache", "numpy", "scikit-learn", "skops", "torch", "torchvision", "xgboost")


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

        write_facts(folder, {**facts, "parts": save_pipeline(folder, pipeline)})

    return write


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


def _why_not(unfitted: Any) -> FeatcacheError | None:
    """Why a pipeline can't be written, tried before it is fitted; None if it can."""
    from featcache.fitting.persist import save_pipeline

    try:
        with TemporaryDirectory() as folder:
            save_pipeline(Path(folder), unfitted)
    except FeatcacheError as error:
        return error
    return None


def library_versions() -> dict[str, str]:
    """Of what a bundle was written with."""
    found = {name: installed_version(name) for name in _LIBRARIES}
    return {name: version for name, version in found.items() if version is not None}
