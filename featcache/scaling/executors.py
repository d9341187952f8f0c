"""Executors: extraction, and the fits of folds, done by the workers of a cluster."""

from __future__ import annotations

import logging
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from featcache.errors import ClusterError, FeatcacheError, counted, first_line
from featcache.extraction.extract import Embed, ExtractionContext
from featcache.fitting.executor import FoldTask, Outcome, SharedContext, Task
from featcache.fitting.fitted_steps import Steps
from featcache.scaling.cluster import Cluster
from featcache.scaling.plan import make_plan
from featcache.scaling.scheduler import PartMerger, RangeScheduler, WorkerSummary
from featcache.scaling.transport import open_transport
from featcache.store.lazy import LazyRows

log = logging.getLogger("featcache")

_TRIES = 5  # times that a fit may lose what it needs, or every worker that tries it
_AHEAD = 2  # fits that are handed out for each one that can run, so that no worker waits for us
_LOOK = 1.0  # seconds between looks at which workers are there
_REMIND = 10.0  # seconds between notes that no worker is there


class DaskExecutor:
    """A cluster's workers as the `fitting.executor.Executor` that fits a grid.

    The features are sent to each worker once, or, if the workers are on this machine, mapped by
    them from one file. What a worker was fitting when it was lost is fitted by another.

    Parameters
    ----------
    cluster : Cluster
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    @property
    def here(self) -> int:
        """Workers on this machine; 0 if there are none."""
        return self.cluster.here

    def run(
        self, context: SharedContext, next_task: Callable[[], Task | None]
    ) -> Generator[tuple[FoldTask, Outcome]]:
        """Each fit and what came of it, as soon as it is done; see `Executor`.

        Raises
        ------
        ClusterError
            If no scheduler answers, it is lost, workers are lost over one fit again and again,
            or one has other versions than this machine or can't read features on disk.
        """
        sent, workers = _Sent(self.cluster, context), _Workers(self.cluster, context)
        running: dict[Any, Task] = {}  # by future
        lost: deque[Task] = deque()
        times: Counter[FoldTask] = Counter()
        try:
            while True:
                fallen: list[Task] = []
                slots = workers.slots()
                while len(running) < _AHEAD * slots and not fallen:
                    task = lost.popleft() if lost else next_task()
                    if task is None:
                        break
                    future = sent.submit(*task)
                    if future is None:
                        fallen.append(task)
                    else:
                        running[future] = task
                if not running and not fallen:
                    return
                for future in _ended(running):
                    task = running.pop(future)
                    outcome = _outcome(future)
                    if outcome is None:
                        fallen.append(task)
                    else:
                        yield task[0], outcome
                if fallen:
                    self.cluster.workers()  # which is an error where the scheduler is lost
                    times.update(fit for fit, _ in fallen)
                    _go_on([fit for fit, _ in fallen], times)
                    lost.extend(fallen)
        finally:
            self.cluster.forget(list(running))


class _Sent:
    """What is on the cluster already, and sent again if it is lost."""

    def __init__(self, cluster: Cluster, context: SharedContext) -> None:
        self._cluster, self._context = cluster, context
        self._future: Any = None

    def submit(self, fit: FoldTask, fitted_steps: Steps) -> Any:
        """The future of a fit; None if the workers were lost that it was to be sent to."""
        from distributed.client import ClosedClientError

        client = self._cluster.client
        try:
            if self._future is None or self._future.status in ("cancelled", "lost"):
                self._future = client.scatter(self._context, broadcast=True, hash=False)
            # Fitted steps may be large, so they don't go through the scheduler's list of tasks.
            # In a list: of a dict the items would be sent, under their own names.
            steps = client.scatter([fitted_steps], hash=False)[0] if fitted_steps else fitted_steps
            name = f"{fit.candidate.name}, {self._context.folds[fit.fold].name}"
            return client.submit(
                _fit, fit, self._future, steps, self._cluster.threads or 1, pure=False,
                key=f"{name}-{uuid4().hex}",
            )  # fmt: skip
        except (OSError, TimeoutError, CancelledError, ClosedClientError):
            return None


def _fit(fit: FoldTask, context: SharedContext, fitted_steps: Steps, threads: int) -> Outcome:
    """On a worker."""
    if find_spec("daal4py") is not None:
        # In a thread, as here, scikit-learn-intelex takes all processors, and warns of it.
        warnings.filterwarnings("ignore", "'Threading' parallel backend is not supported")
        import_module("daal4py").daalinit(threads)
    return fit(context, fitted_steps, threads)


class _Workers:
    """Those that are there; each is checked before what it has fitted counts."""

    def __init__(self, cluster: Cluster, context: SharedContext) -> None:
        self._cluster = cluster
        X = context.features.X
        self._row = X.take(np.arange(1)) if isinstance(X, LazyRows) else None
        self._known: set[str] = set()
        self._slots = 0
        self._looked = -_LOOK

    def slots(self) -> int:
        """How many fits all take together, at least one; looked up now and then."""
        if time.monotonic() - self._looked >= _LOOK:
            there = _wait(self._cluster)
            new = sorted(set(there) - self._known)
            if new:
                _refuse_others(self._cluster, new, self._row)
            self._known, self._slots = set(there), sum(there.values())
            self._looked = time.monotonic()
        return self._slots


def _wait(cluster: Cluster) -> dict[str, int]:
    """The workers and how many tasks each takes, as soon as there is one."""
    start = time.monotonic() - _REMIND
    while not (there := cluster.workers()):
        if time.monotonic() - start > _REMIND:
            start = time.monotonic()
            log.info("waiting for workers at %s", cluster.where)
        time.sleep(0.2)
    return there


def _ended(running: dict[Any, Task]) -> list[Any]:
    """The futures that have come to an end; after half a second none."""
    end = time.monotonic() + _LOOK / 2
    while time.monotonic() < end:
        found = [future for future in running if future.done() or future.status == "lost"]
        if found:
            return found
        time.sleep(0.01)
    return []


def _outcome(future: Any) -> Outcome | None:
    """What a fit came to; None if it was lost with its workers. Its own error is raised."""
    from distributed import KilledWorker

    if future.status == "lost":
        return None
    try:
        outcome: Outcome = future.result()
    except (CancelledError, KilledWorker):
        return None
    return outcome


def _go_on(fallen: Sequence[FoldTask], times: Counter[FoldTask]) -> None:
    for fit in fallen:
        if times[fit] >= _TRIES:
            raise ClusterError(
                f"workers were lost {_TRIES} times over {fit.candidate.name}, fold {fit.fold + 1}",
                "Look at their logs: memory may have run out. What is fitted is kept.",
            )
    log.warning("%s lost with a worker: done by another", counted(len(fallen), "fit"))


def _refuse_others(cluster: Cluster, workers: Sequence[str], row: LazyRows | None) -> None:
    """The same scores need the same libraries, and rows on disk the same files.

    Raises
    ------
    ClusterError
    """
    from distributed.comm.core import CommClosedError

    mine = _look(row)
    found: dict[str, Any]
    try:
        found = cluster.client.run(_look, row, workers=workers, on_error="return")
    except CommClosedError:  # the scheduler was just being asked
        raise cluster.lost() from None
    for address, theirs in sorted(found.items()):
        if isinstance(theirs, ImportError):
            raise ClusterError(
                f"the worker {address} can't import featcache: {theirs}",
                "Install featcache where the workers run.",
            )
        if isinstance(theirs, OSError) and not isinstance(theirs, FeatcacheError):
            continue  # the worker is gone
        if isinstance(theirs, Exception):
            raise ClusterError(
                f"the worker {address} can't read the features: {first_line(theirs)}",
                "They stay on disk, so workers need the cache folder under the same path, as on a "
                "shared file system. Or load them: --memory 1TB.",
            )
        other = [f"{name} {theirs.get(name)}, not {wanted}"
                 for name, wanted in mine.items() if theirs.get(name) != wanted]  # fmt: skip
        if other:
            raise ClusterError(
                f"the worker {address} would fit otherwise: it has {'; '.join(other)}",
                "Stop it, or give it the versions of this machine.",
            )


def _look(row: LazyRows | None) -> dict[str, str]:
    """What scores depend on, and must be the same everywhere; the row is read, if there is one."""
    from featcache.hashing import sha256_bytes
    from featcache.reporting.run_folder import library_versions
    from featcache.scaling.plan import versions

    here = library_versions()
    found = versions() | {name: here.get(name, "none") for name in ("scikit-learn", "xgboost")}
    return found if row is None else found | {"first row": sha256_bytes(row[:].tobytes())[:8]}


_MOST = 4096  # rows in a range: what a lost worker has in hand at most
_EACH = 4  # ranges for each worker at least, so that all end at about the same time


def embed_on(
    cluster: Cluster, data_root: str | Path | None = None, size: int = 0, parts: str = ""
) -> Embed:
    """What `fill_cache` takes as `embed` to have the work done by a cluster's workers.

    Each worker opens the images itself, embeds ranges of rows on its own device, and writes them
    into part files beside the file in progress; here they are moved into that file. On processors
    the result is that of one machine to the bit, whatever the ranges and whoever embedded them.
    Images, weights and the cache folder must be there for all, under the same paths or URLs; with
    `parts`, part files travel through an object store, and the cache folder need not be.

    Before it gets work, a worker must have the versions of this machine and the same weights, and
    embed a few images to the same vectors; one that does not is left out, with a warning.

    Parameters
    ----------
    cluster : Cluster
    data_root : str or Path, optional
        As for `open_images`: where torchvision's data sets are.
    size : int, optional
        Rows in a range; by default as suits the number of workers, at most 4,096.
    parts : str, optional
        A URL that all may write to and read from, `s3://bucket/parts`, of no other cache folder's.

    Returns
    -------
    callable

    Raises
    ------
    ClusterError
        When called: where no scheduler answers, it is lost, or no worker may help; where the
        store of the parts refuses.
    RecipeError
        When called: where the images are in memory only.
    """

    def embed(context: ExtractionContext) -> None:
        if not context.pending():
            return
        images = context.unique.images
        where = open_transport(parts, context.cache.folder, images.name)
        merger = PartMerger(where, images, context.files)
        where.check({})
        merger.take_left(context.pending())
        rows = len(context.pending())
        if not rows:
            return
        plan, files = make_plan(context, data_root, cluster.threads, where.url), context.files
        workers = max(1, len(cluster.workers()))
        size_ = size or _size(rows, workers, context)
        ranges = RangeScheduler(cluster, plan.json(), context, files, size_, merger)
        ranges.run()
        merger.clear()
        _note(context, ranges.summary)
        devices = {answer["device"] for answer in ranges.summary.workers.values()}
        for file in files:
            file.features.annotate({"device": ", ".join(sorted(devices))})

    return embed


def _size(rows: int, workers: int, context: ExtractionContext) -> int:
    """Rows in a range: whole batches, several ranges for each worker, none too long."""
    share = min(_MOST, -(-rows // (workers * _EACH)))
    size = context.loader.batch_size
    return max(1, -(-share // size)) * size


def _note(context: ExtractionContext, summary: WorkerSummary) -> None:
    context.report.workers = max(1, len(summary.workers))
    unequal = [answer for answer in summary.workers.values() if not answer["identical"]]
    if unequal:
        least = min(answer["cosine"] for answer in unequal)
        log.info(
            "rounding otherwise than this machine: %s, cosine %.6f",
            counted(len(unequal), "worker"),
            least,
        )
    log.info(
        "workers that helped: %d, refused: %d; ranges that lost theirs: %d, rows done again: %d",
        len(summary.workers), len(summary.refused), summary.lost, summary.again,
    )  # fmt: skip
