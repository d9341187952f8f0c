"""Fitted steps: what candidates of one grid share on the same rows is fitted once.

A fusion under several heads is such a step, or the head of one backbone alone, which a late fusion
needs too. A step is known by its backbones, by the steps before it and by all parameters; steps
are shared within one fold of one comparison only.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline
from sklearn.utils import get_tags

from featcache.fitting.fusions.concat import ConcatFusion
from featcache.fitting.fusions.late import LateFusion
from featcache.fitting.out_of_core import Stream, fit_with_routing
from featcache.hashing import sha256_array
from featcache.store.features import Floats, Strings


@dataclass(frozen=True, eq=False)
class FittedStep:
    """A fitted estimator, and how long its fit took."""

    fitted: Any
    seconds: float


Steps = dict[str, FittedStep]  # by key, see `step_keys`


@dataclass
class FittedSteps:
    """The fitted steps that later candidates of a grid need.

    Attributes
    ----------
    plans : dict of candidate to list of str
        The steps of each candidate that is still to come, in their order; see `step_keys`.
    slow : set of str
        Those steps that are worth waiting for, see `slow_keys`; for `ready` only.
    """

    plans: dict[Any, list[str]]
    slow: Set[str] = frozenset()
    _steps: dict[int, Steps] = field(default_factory=dict)  # by fold
    _begun: dict[Any, list[str]] = field(default_factory=dict)
    _fitted: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, classifiers: Mapping[Any, Any]) -> FittedSteps:
        """For candidates that have `backbones`, with their unfitted classifiers."""
        plans = {one: step_keys(made, one.backbones) for one, made in classifiers.items()}
        slow = (slow_keys(made, one.backbones) for one, made in classifiers.items())
        return cls(plans, frozenset().union(*slow))

    def ready(self) -> Any:
        """The first candidate to come that need not wait for another's step; None if all must.

        It must if one before it, that is not done yet, fits a slow step of its own. The first
        of those that are neither done nor begun never waits once all that are begun are done.
        """
        before = {key for plan in self._begun.values() for key in plan} - self._fitted
        for candidate, plan in self.plans.items():
            if not before & self.slow & set(plan):
                return candidate
            before |= set(plan) - self._fitted
        return None

    def next(self, candidate: Any) -> None:
        """A candidate's turn has come: what only those before it needed is dropped."""
        self._begun[candidate] = self.plans.pop(candidate, [])
        needed = set(self._begun[candidate]) | self.wanted()
        for steps in self._steps.values():
            for key in [key for key in steps if key not in needed]:
                del steps[key]

    def done(self, candidate: Any) -> None:
        """All its folds are fitted, and nobody waits for it any more."""
        self._fitted.update(self._begun.pop(candidate))

    def wanted(self) -> frozenset[str]:
        """The steps that candidates to come need."""
        return frozenset(key for plan in self.plans.values() for key in plan)

    def given(self, fold: int, keys: Sequence[str]) -> Steps:
        """Those of the steps that are there for a fold."""
        there = self._steps.get(fold, {})
        return {key: there[key] for key in keys if key in there}

    def put(self, fold: int, steps: Steps) -> None:
        """Keep what was fitted in a fold and is wanted again."""
        wanted = self.wanted()
        kept = {key: step for key, step in steps.items() if key in wanted}
        self._steps.setdefault(fold, {}).update(kept)


def step_keys(classifier: Any, names: Sequence[str]) -> list[str]:
    """A key for each step of an unfitted pipeline on these backbones; none if none can be shared.

    For a late fusion, one for each backbone's head; else a step's key includes the steps before it.
    """
    if not isinstance(classifier, Pipeline):
        return []
    last = classifier.steps[-1][1]
    if isinstance(last, LateFusion):
        if last.head is None or isinstance(last.head, Pipeline) or len(classifier.steps) > 1:
            return []
        steps = [_key(ConcatFusion(scale=last.scale)), _key(last.head)]
        return [_chain([name], steps) for name in names]
    steps = [_key(step) for _, step in classifier.steps]
    return [_chain(names, steps[: i + 1]) for i in range(len(steps))]


def slow_keys(classifier: Any, names: Sequence[str]) -> set[str]:
    """Those of its steps that are fitted with labels: heads, learned fusions, selections.

    The rest, scalers and projections, is sooner fitted again than waited for.
    """
    keys = step_keys(classifier, names)
    if not keys or isinstance(classifier.steps[-1][1], LateFusion):
        return set(keys)
    steps = [step for _, step in classifier.steps]
    return {
        key
        for key, step in zip(keys, steps, strict=True)
        if get_tags(step).target_tags.required
    }  # fmt: skip


def fit_steps(
    pipeline: Pipeline,
    X: Floats,
    y: Strings,
    keys: Sequence[str],
    known: Steps,
    groups: NDArray[Any] | None = None,
) -> tuple[float, Steps]:
    """Fit a pipeline in place on X (n, d), taking the fitted steps that are known.

    Returns
    -------
    seconds : float
        What a fit takes if none is known: their own seconds are counted in.
    steps : dict
        Every fitted step, new and known.
    """
    started = time.perf_counter()
    last = pipeline.steps[-1][1]
    if isinstance(last, LateFusion):
        last._ready = [known[key].fitted if key in known else None for key in keys]
        fit_with_routing(pipeline, X, y, groups)
        own = time.perf_counter() - started
        taken = [known[key].seconds if key in known else seconds
                 for key, seconds in zip(keys, last.member_seconds_, strict=True)]  # fmt: skip
        heads = [member.steps[-1][1] for member in last.members_]
        steps = {k: FittedStep(head, s) for k, head, s in zip(keys, heads, taken, strict=True)}
        return own + sum(known[key].seconds for key in keys if key in known), steps
    steps = {}
    inside: Any = X
    total = 0.0
    for place, (key, (name, step)) in enumerate(zip(keys, pipeline.steps, strict=True)):
        started = time.perf_counter()
        fitted = known[key].fitted if key in known else fit_with_routing(step, inside, y, groups)
        seconds = known[key].seconds if key in known else time.perf_counter() - started
        pipeline.steps[place] = (name, fitted)
        steps[key] = FittedStep(fitted, seconds)
        started = time.perf_counter()
        if place < len(pipeline.steps) - 1:
            inside = inside.then(fitted) if isinstance(inside, Stream) else fitted.transform(inside)
        total += seconds + time.perf_counter() - started
    return total, steps


def _chain(names: Sequence[str], steps: Sequence[str]) -> str:
    return " | ".join(("+".join(names), *steps))


def _key(step: Any) -> str:
    """All that a step's fit depends on, but for the rows and blocks."""
    plain = {
        name: _text(value)
        for name, value in step.get_params(deep=True).items()
        if name.rsplit("__", 1)[-1] != "blocks"
    }
    return f"{type(step).__module__}.{type(step).__name__} {sorted(plain.items())}"


def _text(value: Any) -> str:
    """A parameter; of an estimator its class, since its own parameters are listed beside it."""
    if hasattr(value, "get_params"):
        return f"{type(value).__module__}.{type(value).__name__}"
    # A long array's `repr` leaves out its middle.
    numbers = isinstance(value, np.ndarray) and value.dtype != object
    return sha256_array(value) if numbers else repr(value)
