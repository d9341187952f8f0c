"""Guard: what stands between a training and a test row is looked at once for all candidates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featcache.fitting.leaks import (
    find_leaks,
    leaks_from_json,
    leaks_to_json,
    refuse_trained,
    report_leaks,
)
from featcache.fitting.splits import Fold
from featcache.reporting.files import write_text
from featcache.reporting.run_folder import LEAKS
from featcache.store.features import Features


def guard(
    features: Features,
    folds: Sequence[Fold],
    known: Path | None,
    reports: Path,
    near: bool = True,
    strict: bool = False,
) -> dict[str, Any]:
    """Find leaks, and warn of them or refuse them.

    Parameters
    ----------
    features : Features
    folds : sequence of Fold
    known : Path or None
        A run folder with the same features and folds: what was found for it is not searched again.
    reports : Path
        The reports folder. What `strict` refuses is listed there, in the data set's leaks.json.
    near : bool, default True
        Also near duplicates.
    strict : bool, default False

    Returns
    -------
    dict
        What leaks.json is to hold.

    Raises
    ------
    CacheRefused
        Where a backbone was fine-tuned on test images; with `strict` for any leak.
    """
    refuse_trained(features, folds)
    plain = None if known is None else _read(known / LEAKS, near)
    if plain is None:
        plain = leaks_to_json(find_leaks(features, folds, near), near)
    leaks = leaks_from_json(plain)
    listed = reports / features.data / LEAKS
    if strict and leaks:
        listed.parent.mkdir(parents=True, exist_ok=True)
        write_text(listed, json.dumps(plain, indent=1) + "\n")
    report_leaks(leaks, strict, str(listed))
    return plain


def _read(path: Path, near: bool) -> dict[str, Any] | None:
    """What an earlier run found; None where it did not look for near duplicates and now should."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        leaks_from_json(plain)
        searched = bool(plain["near_duplicates_searched"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if near and not searched:
        return None
    if searched and not near:
        plain["leaks"] = [leak for leak in plain["leaks"] if leak["kind"] != "near duplicates"]
        plain["near_duplicates_searched"] = False
    return dict(plain)
