"""Leaks of a data set's folds: searched once, and kept in leaks.json beside each run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featcache.fitting.leakage import (
    can_search_near,
    count_hashed,
    find_leaks,
    leaks_from_json,
    leaks_to_json,
    refuse_trained,
    report_leaks,
)
from featcache.fitting.splits import Fold
from featcache.reporting.html import write_text
from featcache.reporting.run_folder import LEAKS
from featcache.reporting.schema import read_json
from featcache.store.features import Features


def check_leakage(
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
        If a backbone was fine-tuned on test images; with `strict` for any leak.
    """
    refuse_trained(features, folds)
    by_vectors = near and can_search_near(features)
    hashed = count_hashed(features) if near else 0
    plain = None if known is None else _read(known / LEAKS, by_vectors, hashed)
    if plain is None:
        plain = leaks_to_json(find_leaks(features, folds, near), by_vectors, hashed)
    leaks = leaks_from_json(plain)
    listed = reports / features.data / LEAKS
    if strict and leaks:
        listed.parent.mkdir(parents=True, exist_ok=True)
        write_text(listed, json.dumps(plain, indent=1) + "\n")
    report_leaks(leaks, strict, str(listed))
    return plain


def _read(path: Path, by_vectors: bool, hashed: int) -> dict[str, Any] | None:
    """What an earlier run found; None if it has not looked for all that is to be looked for now."""
    plain = read_json(path)
    try:
        leaks_from_json(plain)
        searched = bool(plain["near_duplicates_searched"])
        searched_hashed = int(plain.get("hashed", 0))
    except (ValueError, KeyError, TypeError):
        return None
    if (by_vectors and not searched) or searched_hashed < hashed:
        return None
    if (searched or searched_hashed) and not (by_vectors or hashed):
        plain["leaks"] = [leak for leak in plain["leaks"] if not leak["kind"].startswith("near ")]
        plain |= {"near_duplicates_searched": False, "hashed": 0}
    return plain
