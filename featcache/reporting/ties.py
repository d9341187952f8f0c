"""Ties: which runs can't be told from the best one on the same rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path

from featcache.errors import counted
from featcache.fitting.significance import holm
from featcache.reporting.predictions import p_value, read_tested
from featcache.reporting.schema import Run

_METHOD = "(paired test, Holm, 5 %)"
_WORTH_SAYING = 1.1  # times faster
_ENOUGH_FOLDS = 5
_MANY_FOLDS = 10


def mark_ties(runs: Sequence[Run]) -> list[Run]:
    """Test each run against the best with the same rows and folds.

    McNemar's test where there is one test split, else the corrected t-test over the folds'
    accuracies; Holm's adjustment over all runs that share a best. The best is picked by the same
    numbers that are then tested, which no adjustment for its rivals makes up for in full: where
    many equals compete, some of them may look worse than they are.

    Parameters
    ----------
    runs : sequence of Run
        Best first. Of each data set and `rows` the first is what the others are tested against.

    Returns
    -------
    list of Run
        In the order given, with their `p`; None for the best, and for a run whose folder, or
        the best's, lacks the predictions or scores to test.
    """
    marked = [replace(run, p=None) for run in runs]
    for best, *others in _families(runs):
        p_values = _against(runs[best].folder, [runs[place].folder for place in others])
        tested = [(place, p) for place, p in zip(others, p_values, strict=True) if p is not None]
        adjusted = holm([p for _, p in tested])
        for (place, _), p in zip(tested, adjusted, strict=True):
            marked[place] = replace(runs[place], p=p)
    return marked


def verdict(runs: Sequence[Run]) -> str:
    """What the tests come to, in a sentence or two.

    Parameters
    ----------
    runs : sequence of Run
        From `mark_ties`, all with the same rows, best first; at least one.
    """
    best, *others = runs
    names = [run.name for run in runs]

    def name(run: Run) -> str:
        # Runs that differ in a setting only are told apart by their folders.
        return run.name if names.count(run.name) == 1 else run.folder.name

    sentence = f"{leaky_note(runs)} " if leaky_note(runs) else ""
    if not others:
        return f"{sentence}{name(best)} is the only run on these rows."
    ties = [run for run in others if run.tie]
    untested = sum(run.p is None for run in others)
    sentence += f"{name(best)} {_standing(len(ties), len(others), untested)}"
    if 0 < untested < len(others):
        sentence += f" {counted(untested, 'other')} not tested: the predictions are not there."
    cheapest = min(ties, key=lambda run: run.fit_seconds, default=best)
    faster = best.fit_seconds / max(cheapest.fit_seconds, 1e-9)
    if faster >= _WORTH_SAYING:
        times = f"{faster:.1f}" if faster < 9.95 else f"{faster:,.0f}"
        which = "That one" if len(ties) == 1 else "The cheapest of them"
        sentence += f" {which} is {name(cheapest)}, {times} times faster to fit."
    if _is_weak(best, ties):
        sentence += (
            f" {_folds(best)} folds give the test little power: --folds 10 or --repeats 5 tell "
            "more."
        )
    return sentence


def leaky_note(runs: Sequence[Run]) -> str:
    """A sentence where any of the runs redid a protocol that leaks, else ""."""
    count = sum(run.leaky for run in runs)
    if not count:
        return ""
    which = "all runs" if count == len(runs) else f"{count} of {counted(len(runs), 'run')}"
    return (
        f"LEAKY PROTOCOL: in {which} views, equal images and groups were free to go to both sides "
        "of the split. The numbers don't say how well new images are classified."
    )


def verdicts(runs: Sequence[Run]) -> list[str]:
    """One verdict for each data set and `rows`, headed by what it is about if they are several."""
    families = [[runs[place] for place in places] for places in _families(runs)]
    if len(families) == 1:
        return [verdict(runs)]
    return [f"{same[0].data}, {same[0].split}: {verdict(same)}" for same in families]


def _families(runs: Sequence[Run]) -> list[list[int]]:
    """Places of the runs that compare with one another: one data set, equal rows and folds."""
    families: dict[tuple[str, str], list[int]] = {}
    for place, run in enumerate(runs):
        families.setdefault((run.data, run.rows), []).append(place)
    return list(families.values())


def _standing(ties: int, others: int, untested: int) -> str:
    """What follows the best one's name."""
    if untested == others:
        rest = "the other" if others == 1 else "the others"
        return f"is best, not tested against {rest}: the predictions are not there."
    if not ties:
        return f"is best, by more than chance {_METHOD}."
    if ties < others:
        return f"is best; {counted(ties, 'other')} can't be told from it {_METHOD}."
    none_of = "the other one can't" if ties == 1 else f"none of the {ties} others can"
    return f"is best, but {none_of} be told from it {_METHOD}."


def _folds(run: Run) -> int:
    """Fits that it was tested with: 15 of "3 x 5 folds", 1 of "test split"."""
    return prod(map(int, re.findall(r"\d+", run.split)))


def _is_weak(best: Run, ties: Sequence[Run]) -> bool:
    """Whether more folds might well tell apart what these could not."""
    if not ties or _folds(best) < 2:
        return False
    apart = any(run.interval[1] < best.interval[0] for run in ties)
    return _folds(best) < (_MANY_FOLDS if apart else _ENOUGH_FOLDS)


def _against(best: Path, others: Sequence[Path]) -> list[float | None]:
    """The p-value of each of the others; None where one can't be had."""
    if not others:
        return []
    reference = read_tested(best)
    return [None if reference is None else p_value(reference, read_tested(path)) for path in others]
