"""Fits on a cluster: the folds of each candidate by joblib's own Dask backend."""

from __future__ import annotations

import _thread
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from importlib.metadata import version
from threading import Event, Thread, current_thread, main_thread
from typing import Any, TypeVar

from featcache.errors import ClusterError
from featcache.scaling.cluster import Cluster

T = TypeVar("T")

log = logging.getLogger("featcache")

_TRIES = 5  # times that workers may be lost in such a way that a candidate must be begun again
_REMIND = 10.0  # seconds between notes that no worker is there


def fit_on(cluster: Cluster, fit: Callable[[int], T]) -> T:
    """Fit with the folds spread over a cluster's workers.

    Parameters
    ----------
    cluster : Cluster
    fit : callable
        Is told how many jobs to use; `compare` and `evaluate` take it up inside. Called again
        where workers were lost together with data that they shared: what `compare` has put into
        run folders is not fitted again.

    Returns
    -------
    object
        What `fit` returns.

    Raises
    ------
    ClusterError
        Where no scheduler answers, it is lost, or workers have other versions than this machine.
    """
    import joblib
    from distributed import KilledWorker

    for left in reversed(range(_TRIES)):
        jobs = _wait(cluster)
        _refuse_other_versions(cluster)
        try:
            with _watched(cluster), joblib.parallel_config(backend="dask", client=cluster.client):
                return fit(max(2, jobs))
        except (CancelledError, KilledWorker) as error:
            if not left:
                raise ClusterError(
                    f"workers were lost {_TRIES} times ({type(error).__name__})",
                    "Look at their logs: memory may have run out. What is fitted is kept.",
                ) from None
            log.warning("workers were lost (%s); fitting goes on", type(error).__name__)
    raise AssertionError


@contextmanager
def _watched(cluster: Cluster) -> Iterator[None]:
    """Ends the block when the scheduler is gone: joblib would wait for it for ever.

    That takes an interrupt, which only the main thread can have.
    """
    from distributed.comm.core import CommClosedError

    over, lost = Event(), Event()

    def watch() -> None:
        while not over.wait(0.5):
            if cluster.client.status == "closed":
                lost.set()
                _thread.interrupt_main()
                return

    watcher = Thread(target=watch, daemon=True)
    if current_thread() is main_thread():
        watcher.start()
    try:
        yield
    except CommClosedError:  # it was just being asked
        raise cluster.lost() from None
    except KeyboardInterrupt:
        if lost.is_set():
            raise cluster.lost() from None
        raise
    finally:
        over.set()


def _wait(cluster: Cluster) -> int:
    """Until a worker is there; how many tasks all take together."""
    start = time.monotonic() - _REMIND
    while not (there := cluster.workers()):
        if time.monotonic() - start > _REMIND:
            start = time.monotonic()
            log.info("waiting for workers at %s", cluster.where)
        time.sleep(0.2)
    return sum(there.values())


def _refuse_other_versions(cluster: Cluster) -> None:
    """The same scores need the same libraries."""
    mine = libraries()
    try:
        found: dict[str, Any] = cluster.client.run(libraries)
    except ImportError as error:
        raise ClusterError(
            f"a worker at {cluster.where} can't import featcache: {error}",
            "Install featcache where the workers run.",
        ) from None
    for address, theirs in sorted(found.items()):
        other = [f"{name} {theirs.get(name)}, not {wanted}"
                 for name, wanted in mine.items() if theirs.get(name) != wanted]  # fmt: skip
        if other:
            raise ClusterError(
                f"the worker {address} would fit otherwise: it has {'; '.join(other)}",
                "Stop it, or give it the versions of this machine.",
            )


def libraries() -> dict[str, str]:
    """What scores depend on, and must be the same everywhere."""
    from featcache.scaling.plan import versions

    return versions() | {name: version(name) for name in ("scikit-learn", "xgboost")}
