"""Sharing: one copy of the features for all processes that fit on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from featcache.store.features import Features
from featcache.store.lazy import Stored


@contextmanager
def shared(features: Features, jobs: int) -> Iterator[Features]:
    """The features with X on disk as a read-only memory map, where there are several jobs.

    joblib hands a memory map to its workers by file name, so that X is written once for a whole
    grid, and neighbouring blocks of it are the same memory too. With one job, or where X stays on
    disk anyway, the features themselves.
    """
    if jobs < 2 or isinstance(features.X, Stored):
        yield features
        return
    with TemporaryDirectory(prefix="featcache-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "X.npy"
        np.save(path, features.X)
        yield replace(features, X=np.load(path, mmap_mode="r"))
