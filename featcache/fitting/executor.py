"""Executor: processes elsewhere that fit folds, of several candidates at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np

from featcache.fitting.evaluate import Result, check_split, result_of
from featcache.fitting.fitted_steps import FittedSteps, Parts, step_keys
from featcache.fitting.fold import FoldResult, run_fold
from featcache.fitting.grid import Candidate, classifier_of
from featcache.fitting.pipeline import with_blocks
from featcache.fitting.splits import Fold, Rows, groups_to_keep
from featcache.store.features import Features
from featcache.store.lazy import LazyRows


@dataclass(frozen=True, eq=False)
class SharedContext:
    """What all fits of a grid need: sent to a process once, however many it does.

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

    def __reduce__(self) -> tuple[Any, ...]:
        rest = {field.name: getattr(self.features, field.name) for field in fields(Features)}
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
    fold : int
        Its place among the folds.
    seed : int
    settings : mapping
    keep : bool
        Send the fitted classifier back.
    wanted : frozenset of str
        The parts to send back, see `reuse`.
    """

    candidate: Candidate
    fold: int
    seed: int
    settings: Mapping[str, Any]
    keep: bool
    wanted: frozenset[str]

    def __call__(
        self, common: SharedContext, given: Parts, threads: int
    ) -> tuple[FoldResult, Parts]:
        """Fit it with so many threads, taking the parts that are given."""
        features = common.features.select(self.candidate.backbones)
        classifier = classifier_of(self.candidate, self.seed, self.settings)
        return run_fold(
            with_blocks(classifier, features.blocks), features.X, features.y, features.ids,
            common.folds[self.fold], np.unique(features.y), self.keep, common.groups,
            step_keys(classifier, features.names), self.wanted, given, threads,
        )  # fmt: skip


Task = tuple[FoldTask, Parts]
Outcome = tuple[FoldResult, Parts]


class Executor(Protocol):
    """What fits folds; see `scaling.fitting`."""

    @property
    def here(self) -> int:
        """Processes on this machine, which see its memory and its files; 0 where it is others."""

    def run(
        self, common: SharedContext, following: Callable[[], Task | None]
    ) -> Generator[tuple[FoldTask, Outcome]]:
        """Each fit and what came of it, as soon as it is done.

        `following` gives the next fit and the parts for it; None where there is none until
        another is done. An error in a fit is raised; to close it gives up what is being fitted.
        """


def fit_by(
    crew: Executor,
    features: Features,
    folds: Sequence[Fold],
    shelf: FittedSteps,
    seed: int,
    settings: Mapping[str, Any],
    keep: bool,
) -> Generator[tuple[Candidate, Result]]:
    """Fit the candidates of a shelf's plans, folds of several at a time.

    Parameters
    ----------
    crew : Executor
    features : Features
    folds : sequence of Fold
    shelf : FittedSteps
        Says what has to wait for what.
    seed, settings
        See `make_classifier`.
    keep : bool
        Keep each fold's fitted classifier.

    Yields
    ------
    Candidate, Result
        When its last fold is done, in whatever order that is; the result is that of `evaluate`.

    Raises
    ------
    CacheRefused, DataError, RecipeError
        As `evaluate`; what is being fitted then is lost.
    """
    left: deque[FoldTask] = deque()
    keys: dict[Candidate, list[str]] = {}
    done: dict[Candidate, dict[int, FoldResult]] = {}

    def following() -> Task | None:
        if not left:
            candidate = shelf.ready()
            if candidate is None:
                return None
            check_split(features.select(candidate.backbones, vectors=False), folds)
            keys[candidate], done[candidate] = shelf.plans[candidate], {}
            shelf.next(candidate)
            left.extend(
                FoldTask(candidate, place, seed, settings, keep, shelf.wanted())
                for place in range(len(folds))
            )
        fit = left.popleft()
        return fit, shelf.given(fit.fold, keys[fit.candidate])

    with shared(features, 2 if crew.here else 1) as all_:
        mapped = crew.here > 0 and not isinstance(features.X, LazyRows)
        common = SharedContext(all_, folds, groups_to_keep(features, folds), mapped)
        with closing(crew.run(common, following)) as results:
            for fit, (result, parts) in results:
                shelf.put(fit.fold, parts)
                candidate, mine = fit.candidate, done[fit.candidate]
                mine[fit.fold] = result
                if len(mine) == len(folds):
                    shelf.done(candidate)
                    chosen = features.select(candidate.backbones, vectors=False)
                    in_order = [mine[place] for place in range(len(folds))]
                    del done[candidate]
                    fusion, head = candidate.fusion, candidate.head
                    yield candidate, result_of(fusion, head, chosen, folds, in_order, seed)


@contextmanager
def shared(features: Features, jobs: int) -> Iterator[Features]:
    """The features with X on disk as a read-only memory map, where there are several jobs.

    joblib hands a memory map to its workers by file name, so that X is written once for a whole
    grid, and neighbouring blocks of it are the same memory too. With one job, or where X stays on
    disk anyway, the features themselves.
    """
    if jobs < 2 or isinstance(features.X, LazyRows):
        yield features
        return
    with TemporaryDirectory(prefix="featcache-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "X.npy"
        np.save(path, features.X)
        yield replace(features, X=np.load(path, mmap_mode="r"))
