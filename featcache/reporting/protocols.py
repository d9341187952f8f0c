"""Protocols: the same candidates evaluated in several ways, side by side."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featcache.errors import counted
from featcache.reporting.comparison import Comparison, fusion_label
from featcache.reporting.html import write_text
from featcache.reporting.schema import Run

METRICS = ("accuracy", "precision", "recall", "f1", "auc")
COLUMNS = ("candidate", "protocol", *METRICS, "tested", "run")
_MARK = "LEAKY"


def side_by_side(done: Mapping[str, Comparison]) -> list[dict[str, str]]:
    """One row for each candidate and protocol, under the names in `COLUMNS`.

    Candidates come best first, by the best accuracy without a leak; under each, its protocols.
    Precision, recall and F1 are macro means over the classes.

    Parameters
    ----------
    done : mapping of str to Comparison
        By the protocols' names.
    """
    place = {name: number for number, name in enumerate(done)}
    rows = [(name, run) for name, comparison in done.items() for run in comparison]
    best: dict[str, tuple[bool, float]] = {}
    for _, run in rows:
        mine = (not run.leaky, run.metric("accuracy"))
        best[run.candidate] = max(best.get(run.candidate, mine), mine)
    rows.sort(key=lambda row: (_down(best[row[1].candidate]), row[1].candidate, place[row[0]]))
    return [_row(name, run) for name, run in rows]


def flattery(done: Mapping[str, Comparison]) -> list[str]:
    """How much higher a leaky protocol's accuracies are than an honest one's, in sentences.

    Each pair of a protocol that leaks with one that does not, over the candidates that both have.
    """
    leaky = [name for name, runs in done.items() if any(run.leaky for run in runs)]
    said = []
    for one in leaky:
        for other in (name for name in done if name not in leaky):
            pairs = _pairs(done[one], done[other])
            if not pairs:
                continue
            points = [100 * (a.metric("accuracy") - b.metric("accuracy")) for a, b in pairs]
            top, rival = pairs[0]
            text = (
                f"{one!r} is a {_MARK} protocol. Its best, {top.candidate}, has "
                f"{top.metric('accuracy'):.4f}; by {other!r} the same candidate has "
                f"{rival.metric('accuracy'):.4f}: {points[0]:+.1f} points that new images would "
                "not see."
            )
            if len(pairs) > 1:
                text += (
                    f" Over {counted(len(pairs), 'candidate')}: {min(points):+.1f} … "
                    f"{max(points):+.1f}, "
                    f"mean {sum(points) / len(points):+.1f}."
                )
            said.append(text)
    return said


def write_protocols(folder: Path, name: str, done: Mapping[str, Comparison]) -> Path:
    """Write NAME.protocols.csv and .md into a folder; the path of the second."""
    rows = side_by_side(done)
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / f"{name}.protocols.csv", table.getvalue())
    lines = [f"| {' | '.join(COLUMNS[:-1])} |", "|" + "---|" * (len(COLUMNS) - 1)]
    lines += [f"| {' | '.join(row[column] for column in COLUMNS[:-1])} |" for row in rows]
    text = "\n".join([*lines, *(f"\n{line}" for line in flattery(done))])
    return write_text(folder / f"{name}.protocols.md", f"{text}\n")


def _pairs(one: Comparison, other: Comparison) -> list[tuple[Run, Run]]:
    """Runs of the same candidate, best of the first first."""
    known = {run.candidate: run for run in other}
    return [(run, known[run.candidate]) for run in one if run.candidate in known]


def _down(key: tuple[bool, float]) -> tuple[bool, float]:
    """A key that sorts the other way round."""
    return (not key[0], -key[1])


def _row(name: str, run: Run) -> dict[str, str]:
    numbers: dict[str, Any] = {metric: run.metric(metric) for metric in METRICS}
    return {
        "candidate": f"{'+'.join(run.backbones)}, {fusion_label(run)}, {run.head}",
        "protocol": f"{name} ({_MARK})" if run.leaky else name,
        **{metric: "–" if value != value else f"{value:.4f}" for metric, value in numbers.items()},
        "tested": f"{run.tested:,}",
        "run": str(run.folder),
    }
