"""Executor: what runs the fits of folds: this process, processes of joblib, or a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
from joblib import Parallel, delayed, effective_n_jobs

from featcache.fitting.fitted_steps import Steps
from featcache.fitting.fold import FoldResult, run_fold
from featcache.fitting.grid import Candidate
from featcache.fitting.pipeline import with_blocks
from featcache.fitting.splits import Fold, Rows
from featcache.store.features import Features, Strings
from featcache.store.lazy import LazyRows


@dataclass(eq=False)
class SharedContext:
    """What all fits of a grid need: sent to a worker once, however many it does.

    Attributes
    ----------
    features : Features
        With every backbone.
    folds : sequence of Fold
    groups : int array of shape (n,), or None
        See `splits.groups_to_keep`.
    mapped : bool
        X is the memory map of a whole file, and only the file's name is sent.
    """

    features: Features
    folds: Sequence[Fold]
    groups: Rows | None
    mapped: bool = False
    _selected: Features | None = field(default=None, init=False, repr=False)

    def select(self, backbones: tuple[str, ...]) -> Features:
        """The features of these backbones, which may be a copy: kept until others are asked for."""
        if backbones == self.features.names:
            return self.features
        selected = self._selected
        if selected is None or selected.names != backbones:
            self._selected = selected = None
            self._selected = selected = self.features.select(backbones)
        return selected

    @cached_property
    def classes(self) -> Strings:
        """All labels of the features, sorted."""
        return np.unique(self.features.y)

    def __reduce__(self) -> tuple[Any, ...]:
        rest = {one.name: getattr(self.features, one.name) for one in fields(Features)}
        if self.mapped:
            rest["X"] = None
            return _opened, (str(self.features.X.filename), rest, self.folds, self.groups)  # type: ignore[attr-defined]
        return SharedContext, (self.features, self.folds, self.groups)


def _opened(path: str, rest: dict[str, Any], folds: Sequence[Fold], groups: Any) -> SharedContext:
    features = Features(**rest | {"X": np.load(path, mmap_mode="r")})
    return SharedContext(features, folds, groups, mapped=True)


@dataclass(frozen=True, eq=False)
class FoldTask:
    """One fold of one candidate, to be fitted wherever the `SharedContext` is; small.

    Attributes
    ----------
    candidate : Candidate
    classifier : sklearn classifier
        The candidate's, unfitted.
    fold : int
        Its place among the folds.
    keys : sequence of str
        Of the classifier's steps, see `step_keys`.
    wanted : frozenset of str
        Keys of the fitted steps to send back.
    keep : bool
        Send the fitted classifier back.
    """

    candidate: Candidate
    classifier: Any
    fold: int
    keys: Sequence[str]
    wanted: frozenset[str]
    keep: bool

    def arguments(
        self, context: SharedContext, fitted_steps: Steps, threads: int | None
    ) -> tuple[Any, ...]:
        """What `run_fold` takes: the candidate's columns, and of the folds only this one."""
        features = context.select(self.candidate.backbones)
        return (
            with_blocks(self.classifier, features.blocks), features.X, features.y, features.ids,
            context.folds[self.fold], context.classes, self.keep, context.groups, self.keys,
            self.wanted, fitted_steps, threads,
        )  # fmt: skip

    def __call__(
        self, context: SharedContext, fitted_steps: Steps, threads: int | None = None
    ) -> tuple[FoldResult, Steps]:
        """Fit it with so many threads, taking these fitted steps."""
        return run_fold(*self.arguments(context, fitted_steps, threads))


Task = tuple[FoldTask, Steps]
Outcome = tuple[FoldResult, Steps]


class Executor(Protocol):
    """What fits folds: `LocalExecutor`, `ProcessExecutor`, or `scaling.executors.DaskExecutor`."""

    @property
    def here(self) -> int:
        """Worker processes on this machine, which map X from one file; 0 if there are none."""

    def run(
        self, context: SharedContext, next_task: Callable[[], Task | None]
    ) -> Generator[tuple[FoldTask, Outcome]]:
        """Each fit and what came of it, as soon as it is done.

        `next_task` gives the next fit and the fitted steps for it; None if there is none until
        another is done. The folds of a candidate follow one another. An error in a fit is raised;
        to close it gives up what is being fitted.
        """


class LocalExecutor:
    """One fit after another, in this process."""

    here = 0

    def run(
        self, context: SharedContext, next_task: Callable[[], Task | None]
    ) -> Generator[tuple[FoldTask, Outcome]]:
        """Each fit and what came of it; see `Executor`."""
        while (task := next_task()) is not None:
            fit, fitted_steps = task
            yield fit, fit(context, fitted_steps)


class ProcessExecutor:
    """Joblib's processes: the folds of one candidate at a time.

    Parameters
    ----------
    jobs : int
        Folds fitted at the same time.
    """

    def __init__(self, jobs: int) -> None:
        self.here = jobs

    def run(
        self, context: SharedContext, next_task: Callable[[], Task | None]
    ) -> Generator[tuple[FoldTask, Outcome]]:
        """Each fit and what came of it, when all folds of its candidate are done."""
        threads = max(1, (os.cpu_count() or 1) // self.here)
        run = delayed(run_fold)
        while tasks := [task for _ in context.folds if (task := next_task()) is not None]:
            # X is passed by itself: joblib maps a bare array into the workers, and copies none.
            outcomes = Parallel(n_jobs=self.here)(
                run(*fit.arguments(context, fitted_steps, threads)) for fit, fitted_steps in tasks
            )
            yield from zip((fit for fit, _ in tasks), outcomes, strict=True)


def executor_of(jobs: int, folds: int) -> Executor:
    """Who fits so many folds at a time on this machine; -1 for one on each processor."""
    at_a_time = min(effective_n_jobs(jobs), folds)
    return ProcessExecutor(at_a_time) if at_a_time > 1 else LocalExecutor()


@contextmanager
def shared(features: Features, executor: Executor) -> Iterator[Features]:
    """The features with X on disk as a read-only memory map, if several processes here need it.

    A memory map is handed to workers by its file's name, so that X is written once for a whole
    grid, and neighbouring blocks of it are the same memory too. Without workers here, or if X
    stays on disk anyway, the features themselves.
    """
    if not executor.here or isinstance(features.X, LazyRows):
        yield features
        return
    with TemporaryDirectory(prefix="featcache-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "X.npy"
        np.save(path, features.X)
        yield replace(features, X=np.load(path, mmap_mode="r"))
