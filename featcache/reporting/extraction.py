"""Extraction: what the features that a run rests on took to compute."""

from __future__ import annotations

import math
from pathlib import Path

from featcache.errors import CacheRefused
from featcache.store.cache import Cache
from featcache.store.feature_file import FeatureFile
from featcache.store.features import Features


def extraction_seconds(features: Features, cache: str | Path | None) -> dict[str, float]:
    """Seconds that each backbone's file records, by backbone; without those that record none.

    Backbones that were extracted in one pass share its decoding, and each records the whole pass.
    """
    if cache is None:
        return {}
    found = {}
    known = dict(zip(features.keys, features.names, strict=True))
    for entry in Cache(cache).entries(features.data):
        name = known.get(entry.key.digest)
        if name is None:
            continue
        try:
            with FeatureFile(entry.path) as file:
                seconds = float(file.attributes.get("seconds", math.nan))
        except (CacheRefused, OSError, ValueError, TypeError):
            continue
        if math.isfinite(seconds):
            found[name] = seconds
    return found
