"""Comparison: runs side by side, best first, as rows, CSV, Markdown and a plot."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from featcache.errors import DataError
from featcache.reporting.plots import plot_comparison
from featcache.reporting.run_folder import Run, read_run
from featcache.reporting.ties import mark_ties, verdicts

log = logging.getLogger("featcache")

COLUMNS = (
    "data", "split", "tested", "backbones", "fusion", "head", "accuracy", "low", "high",
    "p", "tie", "balanced_accuracy", "f1", "auc", "log_loss", "ece", "fit_seconds", "run",
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Runs, best accuracy first, the faster fit first among equals; see `sort_runs`.

    Attributes
    ----------
    runs : list of Run
    """

    runs: list[Run]

    def __len__(self) -> int:
        return len(self.runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def __str__(self) -> str:
        return self.markdown()

    @property
    def best(self) -> Run:
        """The run at the top."""
        return self.runs[0]

    def rows(self) -> list[dict[str, str]]:
        """One dict of text for each run, under the names in `COLUMNS`."""
        return [_row(run) for run in self.runs]

    def markdown(self) -> str:
        """The table in Markdown, and under it what the paired tests come to."""
        lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
        lines += ["| " + " | ".join(row[name] for name in COLUMNS) + " |" for row in self.rows()]
        return "\n".join([*lines, *(f"\n{said}" for said in verdicts(self.runs))])


def sort_runs(runs: Sequence[Run]) -> Comparison:
    """The comparison of these runs, each tested against the best with the same rows and folds.

    The p-values and ties are those among the runs given: they may differ from those of a
    comparison with more of them.
    """
    best_first = sorted(runs, key=lambda run: (-run.metric("accuracy"), run.fit_seconds))
    return Comparison(mark_ties(best_first))


def fusion_label(run: Run) -> str:
    """The fusion, or "–" for a backbone alone."""
    return run.fusion if len(run.backbones) > 1 else "–"


def read_runs(reports: Path) -> list[Run]:
    """Every run folder below the reports folder; what is none is warned of."""
    runs = []
    for path in sorted(reports.glob("*/*/run.json")):
        if path.parent.name.startswith("."):
            continue
        try:
            runs.append(read_run(path.parent))
        except DataError as error:
            log.warning("left out: %s", error.problem)
    return runs


def write_comparison(reports: Path) -> Comparison:
    """Rebuild comparison.csv, comparison.md and comparison.png of every data set's runs.

    Returns
    -------
    Comparison
        Over all data sets; numbers compare only within one data set and split.
    """
    runs = read_runs(reports)
    if not runs:
        raise DataError(
            f"no runs below {reports}/ yet", "featcache compare --fusion concat --head mlp,svm"
        )
    everything = sort_runs(runs)
    everything.runs.sort(key=lambda run: (run.data, run.split, run.rows))
    with (reports / "comparison.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(everything.rows())
    (reports / "comparison.md").write_text(everything.markdown() + "\n", encoding="utf-8")
    for data in sorted({run.data for run in runs}):
        plot_comparison([run for run in everything if run.data == data], reports / data)
    return everything


def _row(run: Run) -> dict[str, str]:
    low, high = run.interval
    numbers = ("balanced_accuracy", "f1", "auc", "log_loss", "ece")
    return {
        "data": run.data,
        "split": run.split,
        "tested": str(run.tested),
        "backbones": "+".join(run.backbones),
        "fusion": fusion_label(run),
        "head": run.head,
        "accuracy": f"{run.metric('accuracy'):.4f}",
        "low": f"{low:.4f}",
        "high": f"{high:.4f}",
        "p": "" if run.p is None else f"{run.p:.3g}",
        "tie": "yes" if run.tie else "",
        **{name: f"{run.metric(name):.4f}".replace("nan", "") for name in numbers},
        "fit_seconds": f"{run.fit_seconds:.2f}",
        "run": str(run.folder),
    }
