"""Ties: which runs can't be told from the best one on the same rows, and which one to use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from featcache.errors import counted
from featcache.fitting.metrics import ACCURACY, Metric
from featcache.reporting.predictions import Outcomes, pair_outcomes, read_design, try_outcomes
from featcache.reporting.schema import Family, Run, Score, called, decimals

MARGIN = 0.01  # of the metric, that a cheaper run may be worse and still be recommended
METHOD = "(paired max-T test, 5 %)"
_WORTH_SAYING = 1.1  # times cheaper
_LEAST_SAVED = 1.0  # seconds


def rank_by(metric: Metric, runs: Sequence[Run]) -> list[Run]:
    """The runs, best first, the faster fit first among equals; each tested against the best.

    Runs without such a score, as an AUC without probabilities, come last.
    """
    known = None
    if metric is not ACCURACY:
        known = {run.folder: try_outcomes(run.folder, metric) for run in runs}
        runs = [replace(run, ranked=_score(run, metric, known[run.folder])) for run in runs]
    return mark_ties(sorted(runs, key=place_of), known)


def place_of(run: Run) -> tuple[bool, float, float]:
    """What runs are sorted by, best first."""
    lacking = math.isnan(run.score)
    return lacking, 0.0 if lacking else run.by.gain(0.0, run.score), run.fit_seconds


def _score(run: Run, metric: Metric, outcomes: Outcomes | None) -> Score:
    """From metrics.json, else from the predictions; those have the interval."""
    value, low, high = run.metric(metric.name), float("nan"), float("nan")
    design = read_design(run.folder)
    if outcomes is not None and design is not None:
        value = outcomes.mean if math.isnan(value) else value
        low, high = outcomes.interval(design)
    return Score(metric, value, low, high)


def mark_ties(
    runs: Sequence[Run], known: Mapping[Path, Outcomes | None] | None = None
) -> list[Run]:
    """Test each run against the best with the same rows and folds.

    All pairs of these runs are tested at once, by what they are ranked by, see `compare_all`: so
    the best may be picked by the numbers that are then tested.

    Parameters
    ----------
    runs : sequence of Run
        Best first. Of each data set and `rows` the first is what the others are tested against.
    known : mapping of Path to Outcomes or None, optional
        What was read before, by folder.

    Returns
    -------
    list of Run
        In the order given, with their `p`; None for the best, and for a run whose folder, or
        the best's, lacks the predictions to test. The best have their `family`.
    """
    marked = [replace(run, p=None, family=None) for run in runs]
    for places in _families(runs):
        folders = [runs[place].folder for place in places]
        metric = runs[places[0]].by
        paired = pair_outcomes(folders, metric, known) if places[1:] else None
        if paired is None:
            continue
        outcomes, tested = paired
        found = outcomes.compare()
        family = Family(len(tested), found.detectable(0), outcomes.winner())
        marked[places[0]] = replace(runs[places[0]], p=None, family=family)
        # The first pairs are those with the first run.
        for place, p in zip(tested[1:], found.p.tolist(), strict=False):
            marked[places[place]] = replace(runs[places[place]], p=p, family=None)
    return marked


def verdict(runs: Sequence[Run]) -> str:
    """What the tests come to, in a few sentences.

    Parameters
    ----------
    runs : sequence of Run
        From `mark_ties`, all with the same rows, best first; at least one.
    """
    best, *others = runs
    parts = [leaky_note(runs)] if leaky_note(runs) else []
    name = called(best, runs)
    if not others:
        return " ".join([*parts, f"{name} is the only run on these rows."])
    if math.isnan(best.score):
        return " ".join([*parts, f"No run here has {named(best.by)} to be ranked by."])
    without = [run for run in others if math.isnan(run.score)]
    others = [run for run in others if not math.isnan(run.score)]
    lacking = f"{counted(len(without), 'run')} without probabilities not ranked."
    if not others:
        return " ".join([*parts, f"{name} is the only run with {named(best.by)}.", lacking])
    ties = [run for run in others if run.tie]
    untested = sum(run.p is None for run in others)
    by = "" if best.by is ACCURACY else f"By {best.by.label}, "
    parts.append(f"{by}{name} {_standing(len(ties), len(others), untested)}")
    if 0 < untested < len(others):
        parts.append(f"{counted(untested, 'other')} not tested: the predictions are not there.")
    parts += [lacking] if without else []
    if best.family is not None and best.family.size > 1:
        parts += [_detectable(best, best.family), *recommendation(runs), _expected(best.family)]
    return " ".join([*parts, *seeds_note(runs)])


def named(metric: Metric) -> str:
    """Its label with an article: "an accuracy"."""
    return f"{'an' if metric.label[0] in 'AFaeiou' else 'a'} {metric.label}"


def recommendation(runs: Sequence[Run]) -> list[str]:
    """Which run to use if not the best, and what that trades; empty if the best is the one.

    The cheapest of those that can't be told from the best and are at most `MARGIN` worse. Its
    cost is what as many new images take again: to extract the features of all its backbones, to
    fit and to predict; without the extraction, if that isn't known of all these runs.

    Parameters
    ----------
    runs : sequence of Run
        See `verdict`.
    """
    best = runs[0]
    most = MARGIN + 1e-9
    choice = [
        best,
        *(run for run in runs[1:] if run.tie and best.by.gain(best.score, run.score) <= most),
    ]
    extracted = all(run.extraction_seconds for run in choice)
    cost = {
        id(run): run.fit_seconds
        + run.predict_seconds
        + (sum(run.extraction_seconds.values()) if extracted else 0)
        for run in choice
    }
    chosen = min(choice, key=lambda run: cost[id(run)])
    mine, theirs = cost[id(chosen)], cost[id(best)]
    if theirs < max(_WORTH_SAYING * mine, mine + _LEAST_SAVED):
        return []
    times = theirs / max(mine, 1e-9)
    faster = f"{times:.1f}" if times < 9.95 else f"{times:,.0f}"
    trade = best.by.difference(best.by.gain(best.score, chosen.score))
    side = "above" if best.by.lower else "below"
    what = "extraction, fit and predictions" if extracted else "fit and predictions"
    return [
        f"To use: {called(chosen, runs)}, {trade} {side} the best and {faster} times "
        f"cheaper ({mine:,.1f} s of {what}, not {theirs:,.1f} s)."
    ]


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
        return f"is best, by more than chance {METHOD}."
    if ties < others:
        return f"is best; {counted(ties, 'other')} can't be told from it {METHOD}."
    none_of = "the other one can't" if ties == 1 else f"none of the {ties} others can"
    return f"is best, but {none_of} be told from it {METHOD}."


def _detectable(best: Run, family: Family) -> str:
    if not math.isfinite(family.detectable):
        return "Nothing here can be told apart: too few images, or groups of them, differ."
    least = best.by.difference(family.detectable)
    return f"The smallest difference that could have been shown is about {least}."


def seeds_note(runs: Sequence[Run]) -> list[str]:
    """What seeds make of it, in a sentence; none if no run takes any, or over folds with one."""
    best, most = runs[0], max(run.seeds for run in runs)
    if most > 1:
        spread = best.seed_sd.get(best.by.name)
        if spread is None:
            return [f"Runs that take a seed are means over {most}."]
        varies = best.by.difference(spread)
        return [f"Means over {best.seeds} seeds, between which the best varies by {varies} (sd)."]
    if most == 1 and "split" in best.split:
        return ["One seed on one split compares trained classifiers, not recipes: see --seeds."]
    return []


def _expected(family: Family) -> str:
    found = family.winner
    digits = decimals(found.low, found.high)
    score, expected, low, high = (
        f"{value:.{digits}f}" for value in (found.score, found.expected, found.low, found.high)
    )
    return (
        f"Best of {family.size}: {score}; expected of a winner chosen so: {expected} "
        f"({low} … {high})."
    )
