"""Break-even: after how many fits an extraction has cost less than fine-tuning each time."""

from __future__ import annotations

import math
from collections.abc import Sequence

from featcache.errors import counted
from featcache.fitting.metrics import ACCURACY
from featcache.reporting.schema import Run, called


def fits_to_break_even(extraction: float, cached: float, tuned: float) -> int | None:
    """The least n with `extraction + n * cached < n * tuned`, in seconds; None where there is none.

    Parameters
    ----------
    extraction : float
        Once, for all backbones.
    cached : float
        One fit on cached features.
    tuned : float
        One fine-tuning.
    """
    saved = tuned - cached
    return None if saved <= 0 else max(1, math.floor(extraction / saved) + 1)


def verdicts(runs: Sequence[Run]) -> list[str]:
    """A sentence for each fine-tuned run that has a cached rival: equal rows and backbones.

    The rival's features are of the weights that the tuning began with, and not of tuned ones.
    Of several rivals the one counts that is best by what the runs are ranked by.
    """
    sentences = []
    for run in runs:
        if run.stage != "finetuned" or math.isnan(run.score):
            continue
        rivals = [
            other
            for other in runs
            if other.rows == run.rows
            and set(other.backbones) == set(run.backbones)
            and not _is_tuned(other)
            and set(other.keys.values()) <= set(run.rivals)
            and not math.isnan(other.score)
        ]
        if rivals:
            rival = max(rivals, key=lambda other: run.by.gain(other.score, 0.0))
            sentences.append(_sentence(called(run, runs), run, rival))
    return sentences


def _sentence(name: str, run: Run, rival: Run) -> str:
    cost, by = run.cost, run.by
    gain = by.difference(by.gain(run.score, rival.score), signed=True)
    gain += "" if by is ACCURACY else f" of {by.label}"
    spent = f"{run.fit_seconds:,.0f} s"
    if cost.get("gpu_seconds") is not None:
        spent += f" ({cost['gpu_seconds']:,.0f} GPU-seconds)"
    if cost.get("joules") is not None:
        spent += f", {cost['joules'] / 3600:,.1f} Wh"
    text = (
        f"{name} takes {spent}, and gives {gain} over {rival.name}, which takes "
        f"{rival.fit_seconds:,.1f} s on cached features"
    )
    extraction = cost.get("extraction_seconds")
    if extraction is None:
        return f"{text}."
    fits = fits_to_break_even(extraction, rival.fit_seconds, run.fit_seconds)
    if fits is None:
        return f"{text} after {extraction:,.0f} s of extraction: no time is saved."
    return (
        f"{text} after {extraction:,.0f} s of extraction: the cache has paid for itself after "
        f"{counted(fits, 'fit')}."
    )


def _is_tuned(run: Run) -> bool:
    return run.head.endswith(".finetuned")
