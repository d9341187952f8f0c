"""Intake: finished parts are moved into the files in progress."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from featcache.errors import CacheRefused
from featcache.extraction.extract import Work
from featcache.extraction.task import Job
from featcache.scaling.parts import Parts

log = logging.getLogger("featcache")


class Intake:
    """Takes over what workers have embedded.

    Parameters
    ----------
    parts : Parts
    work : Work
    jobs : sequence of Job
        Those that have a file in progress.
    """

    def __init__(self, parts: Parts, work: Work, jobs: Sequence[Job]) -> None:
        self._parts = parts
        self._work = work
        self._filling = [(job.key, job.filling) for job in jobs if job.filling is not None]

    def take(self, rows: Sequence[int], names: Sequence[str], must: bool = False) -> None:
        """Move these rows of the manifest out of the parts so named, and delete those.

        Raises
        ------
        ClusterError
            Where one is not there that `must` be, or the store does not answer.
        """
        images = self._work.content.images
        row_of = {str(images.sha256[row]): row for row in rows}
        for key, filling in self._filling:
            for name in names:
                if not name.startswith(f".{key.stem}.h5.part-"):
                    continue
                try:
                    filling.take(self._parts.fetch(name), row_of)
                except FileNotFoundError:
                    if must:
                        raise self._parts.lost(name) from None
                except CacheRefused as error:
                    log.warning("not taken over: %s", error.problem)
                self._parts.delete(name)

    def take_left(self, rows: Sequence[int], span: str = "") -> None:
        """Take over all parts that are there: of a lost worker's span, or of an earlier command."""
        names = [name for key, _ in self._filling for name in self._parts.names(key, span)]
        if names:
            self.take(rows, names)

    def clear(self) -> None:
        """Delete what workers that were taken for dead have handed over since."""
        for key, _ in self._filling:
            for name in self._parts.names(key):
                self._parts.delete(name)
