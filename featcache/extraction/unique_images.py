"""Unique images: the distinct images of a manifest, and those known to be broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featcache.errors import DataError, counted
from featcache.extraction.batch import Problem
from featcache.extraction.report import Report
from featcache.images.manifest import Images
from featcache.store.cache import FAILED_CSV, Cache, Coverage
from featcache.store.failures import NOT_THERE
from featcache.store.feature_file import Digests, to_digests


class UniqueImages:
    """The distinct images of a manifest, and those known to be broken.

    Attributes
    ----------
    count : int
        Of all distinct images, broken or not: the same in every run over one data set.
    """

    def __init__(self, images: Images, cache: Cache, retry_failed: bool = False) -> None:
        self.images = images
        self._cache = cache
        distinct = images.distinct()
        self.count = len(distinct)
        hopeless = {} if retry_failed else cache.failed(images.name)
        bad = np.array([str(s) in hopeless for s in images.sha256[distinct]], np.bool_)
        self.problems: dict[int, Problem] = {
            int(row): Problem("decode", hopeless[str(images.sha256[row])])
            for row in distinct[bad]
        }  # fmt: skip
        self.rows: NDArray[np.intp] = distinct[~bad]
        self.digests: Digests = to_digests(images.sha256[self.rows])

    @property
    def failed_csv(self) -> Path:
        """Where failures are listed."""
        return self._cache.folder / self.images.name / FAILED_CSV

    def none_left(self, report: Report) -> DataError:
        """Write failed.csv; the error for when not one image could be embedded."""
        self.note_failed(report)
        text = next(iter(report.failed.values()), "there are none")
        return DataError(
            f"not one of {counted(len(self.images), 'image')} could be embedded (the first: "
            f"{text})",
            f"Look at {self.failed_csv}; delete it to try the same files again.",
        )

    def note_failed(self, report: Report) -> None:
        """Write failed.csv, and the report's list, with a line for every copy of an image."""
        broken = {str(self.images.sha256[row]): p for row, p in self.problems.items()}
        rows = {
            row: broken[sha256]
            for row, sha256 in enumerate(self.images.sha256.tolist())
            if sha256 in broken
        }
        self._cache.note_failed(self.images, {row: (p.kind, p.text) for row, p in rows.items()})
        report.failed = {str(self.images.ids[row]): p.text for row, p in rows.items()}
        report.failed |= dict.fromkeys(self.images.absent, NOT_THERE)
        there = np.ones(len(self.images), np.bool_)
        there[list(rows)] = False
        report.coverage = Coverage.of(self.images, there, broken)
