"""Scheduler: ranges of rows, handed out to workers until all are in the files.

A range is given to one worker that has been checked, under its own address: so a worker that is
refused gets none, and one that is lost is noticed here. What a worker had written of a range when
it was lost is taken over from its part files; only the rest is given out again.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import numpy as np

from featcache.errors import CacheRefused, ClusterError, FeatcacheError, counted, first_line
from featcache.extraction.batch import Problem
from featcache.extraction.extract import ExtractionContext
from featcache.extraction.task import FileInProgress
from featcache.images.dhash import to_hashes
from featcache.images.manifest import Images
from featcache.scaling.cluster import Cluster
from featcache.scaling.transport import Transport
from featcache.scaling.worker import check, embed_range

log = logging.getLogger("featcache")

_AHEAD = 2  # ranges that a worker holds: one under way, one waiting
_LOOK = 1.0  # seconds between looks at who is there
_REMIND = 10.0  # seconds between notes that nobody is
_GRACE = 30.0  # seconds in which a lost worker may come back under another address
_FALLS = 5  # workers that one range may bring down
_LOST = (OSError, TimeoutError, CancelledError)


@dataclass
class WorkerSummary:
    """Which workers helped, and what was lost on the way.

    Attributes
    ----------
    workers : dict of str to dict
        Of each that helped, its address and what it said of itself.
    refused : dict of str to str
        Of each that did not, the reason.
    lost : int
        Ranges whose worker was lost.
    again : int
        Rows that were given out again.
    """

    workers: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    lost: int = 0
    again: int = 0


class RangeScheduler:
    """Hands out ranges, and takes over what comes back.

    Parameters
    ----------
    cluster : Cluster
    plan : str
        A `Plan` as JSON.
    context : ExtractionContext
    files : sequence of FileInProgress
        Those that the plan's parts stand for.
    size : int
        Rows in a range.
    merger : PartMerger
        Takes over what workers have embedded.
    """

    def __init__(
        self,
        cluster: Cluster,
        plan: str,
        context: ExtractionContext,
        files: Sequence[FileInProgress],
        size: int,
        merger: PartMerger,
    ) -> None:
        pending = context.pending()
        self.summary = WorkerSummary()
        self._cluster = cluster
        self._plan = plan
        self._context = context
        self._merger = merger
        self._files = files
        self._todo = deque(
            RowRange(pending[start : start + size]) for start in range(0, len(pending), size)
        )
        self._rows = len(pending)
        self._done = 0
        self._tasks: list[Task] = []
        self._helping: set[str] = set()
        self._wake = Event()
        self._looked = self._reminded = self._missed = -_GRACE

    def run(self) -> None:
        """Until every row is in its file, or known to have failed.

        Raises
        ------
        ClusterError
            If the scheduler is lost, or no worker may help.
        DataError
            If more images failed than are allowed.
        """
        try:
            while self._todo or any(task.range for task in self._tasks):
                self._look()
                self._hand_out()
                self._wake.wait(_LOOK)
                self._wake.clear()
                for task in [task for task in self._tasks if task.future.done()]:
                    self._tasks.remove(task)
                    self._collect(task)
        finally:
            self._cluster.forget([task.future for task in self._tasks])

    def _look(self) -> None:
        """Who is there: newcomers are asked to check themselves, the lost are mourned."""
        now = time.monotonic()
        if now - self._looked < _LOOK:
            return
        self._looked = now
        there = set(self._cluster.workers())
        busy = {task.address for task in self._tasks}
        for address in there - self._helping - busy - set(self.summary.refused):
            self._submit(address, None)
        fallen: set[str] = set()
        for task in [task for task in self._tasks if task.address not in there]:
            self._tasks.remove(task)
            self._again(task, fell=task.address not in fallen)  # the others were waiting
            fallen.add(task.address)
        self._helping &= there
        if not self._helping and not self._tasks:
            self._alone(there, now)

    def _alone(self, there: set[str], now: float) -> None:
        """Nobody helps: say so, and wait, unless nobody is going to."""
        if there and there <= set(self.summary.refused) and now - self._missed > _GRACE:
            reasons = [f"{address}: {self.summary.refused[address]}" for address in sorted(there)]
            raise ClusterError(
                f"none of {counted(len(there), 'worker')} at {self._cluster.where} may help; "
                f"{'; '.join(reasons[:3])}",
                "Give the workers what this machine has: the same versions, weights and folders. "
                "What is done is kept.",
            )
        if now - self._reminded > _REMIND:
            self._reminded = now
            log.info("waiting for workers at %s", self._cluster.where)

    def _hand_out(self) -> None:
        held: dict[str, int] = dict.fromkeys(sorted(self._helping), 0)
        for task in self._tasks:
            if task.address in held:
                held[task.address] += 1
        while self._todo and held:
            address = min(held, key=lambda one: held[one])
            if held[address] >= _AHEAD:
                return
            self._submit(address, self._todo.popleft())
            held[address] += 1

    def _submit(self, address: str, span: RowRange | None) -> None:
        options = {"workers": [address], "allow_other_workers": False, "pure": False}
        if span is None:
            future = self._cluster.client.submit(check, self._plan, **options)
        else:
            future = self._cluster.client.submit(
                embed_range, self._plan, self._spell(span), **options
            )
        self._tasks.append(Task(address, future, span))
        future.add_done_callback(lambda _: self._wake.set())

    def _spell(self, span: RowRange) -> dict[str, Any]:
        """A range as a worker is told of it."""
        images = self._context.unique.images
        return {
            "first": span.rows[0],
            "last": span.rows[-1],
            "ids": images.ids[span.rows].tolist(),
            "sha256": images.sha256[span.rows].tolist(),
            "needs": [
                [place for place, row in enumerate(span.rows) if row in file.pending]
                for file in self._files
            ],
        }

    def _collect(self, task: Task) -> None:
        if task.future.status == "error":
            self._fell(task, task.future.exception(timeout=_LOOK))
            return
        try:
            if task.future.status != "finished":
                raise CancelledError
            answer = task.future.result(timeout=10 * _LOOK)
        except _LOST:  # with what it was to give
            self._again(task)
            return
        if answer["refused"]:
            self._refuse(task, answer["refused"])
        elif task.range is None:
            self._helping.add(task.address)
            self.summary.workers[task.address] = answer
        else:
            self._take(task.range, answer)

    def _fell(self, task: Task, error: BaseException) -> None:
        """A task ended in an error: the user's to mend, or this worker's own."""
        if type(error).__name__ == "KilledWorker":
            self._again(task, fell=True)
        elif isinstance(error, FeatcacheError):
            problem = f"{error.problem} (on the worker {task.address})"
            raise type(error)(problem, error.remedy) from None
        elif isinstance(error, ImportError):
            self._refuse(task, f"featcache can't be imported there: {first_line(error)}")
        else:
            self._refuse(task, f"{type(error).__name__}: {first_line(error)}")

    def _refuse(self, task: Task, why: str) -> None:
        self.summary.refused[task.address] = why
        self._helping.discard(task.address)
        log.warning("the worker %s gets nothing to do: %s", task.address, why)
        if task.range is not None:
            self._again(task)

    def _again(self, task: Task, fell: bool = False) -> None:
        """A worker is lost: what it has written is taken over, the rest is given out again."""
        self._cluster.forget([task.future])
        self._missed = time.monotonic()
        if task.range is None:
            return
        span = task.range
        self.summary.lost += 1
        self._merger.take_left(span.rows, span.name)
        left = self._left(span)
        self._progress(len(span.rows) - len(left))
        log.info(
            "a worker was lost; of its %s %d are done again",
            counted(len(span.rows), "row"),
            len(left),
        )
        if left:
            self._give_again(span, left, fell, "were lost with")

    def _give_again(self, span: RowRange, left: list[int], fell: bool, what: str) -> None:
        falls = span.falls + fell if len(left) == len(span.rows) else 0
        if falls >= _FALLS:
            raise ClusterError(
                f"{falls} workers {what} the images {self._id(left[0])} … "
                f"{self._id(left[-1])}, one after another",
                "Look at the workers' logs: memory may have run out (a smaller --batch-size), or "
                "one of these images may bring them down. What is done is kept.",
            )
        self.summary.again += len(left)
        self._todo.appendleft(RowRange(left, falls))

    def _take(self, span: RowRange, answer: dict[str, Any]) -> None:
        """A range is finished: its parts are moved into the files."""
        self._merger.take(span.rows, [name for name in answer["parts"] if name], must=True)
        report = self._context.report
        for file, seconds in zip(self._files, answer["compute"], strict=True):
            file.seconds += seconds
        for name, seconds in answer["seconds"].items():
            report.seconds[name] += seconds
        rows = np.array(span.rows, np.intp)
        report.hashes += [(rows[places], to_hashes(cells)) for places, cells in answer["hashes"]]
        self._context.failed(
            {span.rows[place]: Problem(kind, text) for place, kind, text in answer["problems"]}
        )
        left = self._left(span)
        self._progress(len(span.rows) - len(left))
        if left:
            log.warning("%s came back damaged: made again", counted(len(left), "vector"))
            self._give_again(span, left, True, "gave damaged vectors of")

    def _left(self, span: RowRange) -> list[int]:
        """Rows that a file still needs, and that are not known to fail."""
        failed = self._context.unique.problems
        return [
            row
            for row in span.rows
            if row not in failed and any(row in file.pending for file in self._files)
        ]

    def _id(self, row: int) -> str:
        return str(self._context.unique.images.ids[row])

    def _progress(self, rows: int) -> None:
        self._done += rows
        if self._context.progress is not None:
            self._context.progress(self._done, self._rows)


@dataclass(eq=False)
class RowRange:
    """Rows that one worker embeds.

    Attributes
    ----------
    rows : list of int
        Of the manifest.
    falls : int
        Workers that were lost with it, and had written nothing.
    """

    rows: list[int]
    falls: int = 0

    @property
    def name(self) -> str:
        """As it stands in the names of part files."""
        return f"{self.rows[0]}-{self.rows[-1]}"


@dataclass(eq=False)
class Task:
    """Something that a worker was asked: to embed a range, or to check itself."""

    address: str
    future: Any
    range: RowRange | None


class PartMerger:
    """Takes over what workers have embedded.

    Parameters
    ----------
    parts : Transport
    images : Images
    files : sequence of FileInProgress
    """

    def __init__(self, parts: Transport, images: Images, files: Sequence[FileInProgress]) -> None:
        self._parts = parts
        self._images = images
        self._files = files

    def take(self, rows: Sequence[int], names: Sequence[str], must: bool = False) -> None:
        """Move these rows of the manifest out of the parts so named, and delete those.

        Raises
        ------
        ClusterError
            If one is not there that `must` be, or the store does not answer.
        """
        row_of = {str(self._images.sha256[row]): row for row in rows}
        for file in self._files:
            for name in names:
                if not name.startswith(f".{file.features.key.stem}.h5.part-"):
                    continue
                try:
                    file.take(self._parts.fetch(name), row_of)
                except FileNotFoundError:
                    if must:
                        raise self._parts.lost(name) from None
                except CacheRefused as error:
                    log.warning("not taken over: %s", error.problem)
                self._parts.delete(name)

    def take_left(self, rows: Sequence[int], span: str = "") -> None:
        """Take over all parts that are there: of a lost worker's span, or of an earlier command."""
        names = [
            name for file in self._files for name in self._parts.names(file.features.key, span)
        ]
        if names:
            self.take(rows, names)

    def clear(self) -> None:
        """Delete what workers that were taken for dead have handed over since."""
        for file in self._files:
            for name in self._parts.names(file.features.key):
                self._parts.delete(name)
