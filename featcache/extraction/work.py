"""Work: what an extraction has to embed, and where; and doing it in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featcache.errors import DataError, counted
from featcache.extraction.content import Content
from featcache.extraction.filling import Filling, Progress, fill, pending_rows
from featcache.extraction.job import Job
from featcache.extraction.loading import Problem
from featcache.extraction.report import Report
from featcache.store.cache import Cache


@dataclass(frozen=True)
class Work:
    """What an extraction has to embed.

    Attributes
    ----------
    jobs : sequence of Job
        Locked and open; those that need nothing have no filling, or one with nothing pending.
    content : Content
    store : Cache
    asked : mapping
        What `fill_cache` was asked for: "backbone", "view", "device", "batch_size", "workers", and
        "opening", the other options of `open_backbones`.
    threads : int
        That read and decode.
    batch_size : int
        Images in a forward pass on this machine.
    limit : float
        How many images may fail.
    report : Report
        Its seconds are added to.
    progress : callable, optional
        Called with the images done and the images to do.
    """

    jobs: Sequence[Job]
    content: Content
    store: Cache
    asked: Mapping[str, Any]
    threads: int
    batch_size: int
    limit: float
    report: Report
    progress: Progress | None = None

    @property
    def fillings(self) -> list[Filling]:
        """The files that need rows, in the order of the jobs."""
        return [job.filling for job in self.jobs if job.filling is not None]

    def pending(self) -> list[int]:
        """Rows of the manifest that any file needs, sorted."""
        return pending_rows(self.fillings)

    def failed(self, problems: Mapping[int, Problem]) -> None:
        """Note images that could not be embedded.

        Raises
        ------
        DataError
            Where there are more than allowed.
        """
        self.content.problems.update(problems)
        if len(self.content.problems) > self.limit:
            self.content.note_failed(self.report)
            raise DataError(
                f"{counted(len(self.content.problems), 'image')} failed, more than "
                "--max-failures allows",
                f"They are listed in {self.content.failed_csv}; what is done is kept.",
            )


Embed = Callable[[Work], None]


def embed_here(work: Work) -> None:
    """Do the work in this process."""
    fill(
        work.fillings,
        work.content.images,
        work.threads,
        work.batch_size,
        work.report,
        work.failed,
        work.progress,
    )
