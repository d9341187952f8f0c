"""Comparison page: comparison.html, the question and its answer over all runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

from featcache.errors import DataError, counted
from featcache.reporting import ablation, break_even
from featcache.reporting.html import COMPARISON_PAGE, RUN_PAGE, digest_of_all, picture, write_page
from featcache.reporting.places import without_places
from featcache.reporting.plots.comparison import plot_cost
from featcache.reporting.plots.confusion import duel, rivals
from featcache.reporting.plots.style import draw, log
from featcache.reporting.refit_command import redo_command
from featcache.reporting.run_reader import Contents, read_contents, read_leaks
from featcache.reporting.schema import Run, called, labels, trained_with
from featcache.reporting.ties import verdict

_COLUMNS = {"accuracy": "accuracy", "balanced_accuracy": "balanced", "f1": "F1", "auc": "AUC",
            "log_loss": "log loss", "ece": "ECE"}  # fmt: skip
_MOST_CLASSES = 40  # in the table of the duel


def write_comparison_page(reports: Path, runs: Sequence[Run]) -> Path:
    """Write comparison.html: one section for each data set, in it one part for each `rows`.

    Parameters
    ----------
    reports : Path
        The reports folder.
    runs : sequence of Run
        From `mark_ties`, sorted by data set and rows, best first within.
    """
    sections = []
    for data, grouped in groupby(runs, key=lambda run: run.data):
        of_data = list(grouped)
        families = [list(same) for _, same in groupby(of_data, key=lambda run: run.rows)]
        # The newest folds first: older ones are there to be looked up.
        families.sort(key=lambda same: max(run.created for run in same), reverse=True)
        newest = families[0][0]
        parts = [
            _part(reports, data, number, same) | {"about": _about(same[0], newest)}
            for number, same in enumerate(families)
        ]
        sections.append(
            {
                "data": data,
                "parts": parts,
                "plot": picture(reports / data, "comparison"),
                "answers": ablation.answers(of_data),
            }
        )
    shows = digest_of_all(reports, runs[0].by.name, [run.folder for run in runs])
    return write_page(reports / COMPARISON_PAGE, "comparison.html.j2", shows, sections=sections)


def _part(reports: Path, data: str, number: int, runs: list[Run]) -> dict[str, Any]:
    folder, name = reports / data, "cost" if number == 0 else f"cost-{number + 1}"
    draw(name, folder, lambda: plot_cost(runs))
    leaks = dict.fromkeys(leak for run in runs for leak in read_leaks(run.folder))
    best = runs[0]
    return {
        "runs": [_row(reports, run, label) for run, label in zip(runs, labels(runs), strict=True)],
        "best": best,
        "columns": {name: label for name, label in _COLUMNS.items() if name != best.by.name},
        "verdict": verdict(runs),
        "more": break_even.verdicts(runs),
        "leaky": [called(run, runs) for run in runs if run.leaky],
        "leaks": [without_places(leak) for leak in leaks],
        "cost": picture(folder, name),
        "duel": _duel(runs) if number == 0 else None,
        "extraction": any(run.extraction_seconds for run in runs),
        "question": _question(runs),
        "command": redo_command(best, places=False),
    }


def _about(run: Run, newest: Run) -> str:
    """What a part's runs were tested and trained on, beside what the newest ones were."""
    images = counted(run.tested, "test image")
    text = ", ".join(part for part in (run.split, images, trained_with(run)) if part)
    return text if run.rows == newest.rows else f"{text} ({_beside(run, newest)})"


def _beside(run: Run, newest: Run) -> str:
    try:
        mine, theirs = (
            set(zip(contents.fold.tolist(), contents.ids.tolist(), strict=True))
            for contents in (read_contents(run.folder, False), read_contents(newest.folder, False))
        )
    except DataError:
        return "other rows than above"
    if mine == theirs:
        return "the same test images as above; other rows to train on"
    if {id_ for _, id_ in mine} == {id_ for _, id_ in theirs}:
        return "the same images as above, in other folds"
    return "other test images than above"


def _question(runs: Sequence[Run]) -> str:
    """What was asked, in a sentence."""
    backbones = sorted({name for run in runs for name in run.backbones})
    heads = sorted({run.head for run in runs})
    several = any(len(run.backbones) > 1 for run in runs)
    which = f"Which of {len(runs)} classifiers" if len(runs) > 1 else "How good is one classifier"
    fused = ", fused or alone," if several else ""
    return f"{which} on {_some(backbones)}{fused} under {_some(heads)}?"


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names) if len(names) <= most else f"{len(names)} of them ({names[0]}, …)"


def _row(reports: Path, run: Run, label: str) -> dict[str, Any]:
    inside = os.path.relpath(run.folder, reports).replace(os.sep, "/")
    page = run.folder / RUN_PAGE
    return {
        "run": run,
        "label": label,
        "link": quote(f"{inside}/{RUN_PAGE}") if page.is_file() else "",
        "extraction": sum(run.extraction_seconds.values()) if run.extraction_seconds else None,
        "leaky": run.leaky,
        "protocol": run.protocol,
    }


def _duel(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Class by class: the best fusion against the best backbone alone."""
    pair = rivals(runs)
    if pair is None:
        return None
    try:
        fused, single = (read_contents(run.folder, False) for run in pair)
    except DataError as error:
        log.warning("no comparison by class: %s", error.problem)
        return None
    rows = duel(fused, single)
    return {"fused": pair[0], "names": [called(run, runs) for run in pair],
            "rows": rows[:_MOST_CLASSES], "left": max(0, len(rows) - _MOST_CLASSES),
            "what": "image" if len(fused.ids) == pair[0].tested else "prediction",
            "only": _only(fused, single)}  # fmt: skip


def _only(first: Contents, second: Contents) -> tuple[int, int] | None:
    """Images that only the first, and only the second, has right; None where ids differ."""
    one, two = (  # with repeated folds an image is tested several times
        dict(zip(zip(c.fold.tolist(), c.ids.tolist(), strict=True), c.right.tolist(), strict=True))
        for c in (first, second)
    )
    if set(one) != set(two):
        return None
    return (sum(one[i] and not two[i] for i in one), sum(two[i] and not one[i] for i in one))
