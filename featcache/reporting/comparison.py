"""Comparison: runs side by side, best first, as rows, CSV, Markdown and a plot; and protocols."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.csv_cells import row_writer
from featcache.display import html_table
from featcache.errors import DataError, counted
from featcache.fitting.metrics import ACCURACY, metric_of
from featcache.reporting import ablation, break_even
from featcache.reporting.html import COMPARISON_PAGE, digest_of_all, shown_by, write_text
from featcache.reporting.refit_command import with_reports
from featcache.reporting.schema import Run, read_run, settings_text
from featcache.reporting.ties import leaky_note, named, place_of, rank_by, verdicts

if TYPE_CHECKING:
    import pandas

log = logging.getLogger("featcache")

_METRICS = ("balanced_accuracy", "f1", "auc", "log_loss", "ece")
COLUMNS = (
    "data", "split", "tested", "backbones", "fusion", "head", "accuracy", "low", "high",
    "p", "tie", *_METRICS, "fit_seconds", "select", "tuned", "view", "balance", "settings", "run",
)  # fmt: skip
_SAID = ("select", "tuned", "view", "balance", "settings", "run")
_TEXTS = {*COLUMNS[:2], *COLUMNS[3:6], "tie", *_SAID}
_NOT_IN_NOTEBOOK = {"data", "split", "tested", "p", *_SAID}
METRICS = ("accuracy", "precision", "recall", "f1", "auc")
_MARK = "LEAKY"


@dataclass(frozen=True)
class Comparison:
    """Runs, the best by a metric first, the faster fit first among equals; see `sort_runs`.

    Attributes
    ----------
    runs : list of Run
    """

    runs: list[Run]

    @property
    def columns(self) -> tuple[str, ...]:
        """`COLUMNS`; of another metric than the accuracy, that one in its place."""
        by = self.runs[0].by.name
        others = ["accuracy", *(name for name in _METRICS if name != by)]
        start, end = COLUMNS.index("accuracy"), COLUMNS.index(_METRICS[0])
        rest = COLUMNS[end + len(_METRICS) :]
        between = COLUMNS[start + 1 : end]
        return (*COLUMNS[:start], by, *between, *(n for n in others if n != by), *rest)

    def __len__(self) -> int:
        return len(self.runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def __str__(self) -> str:
        return self.markdown()

    def __repr__(self) -> str:
        if not self.runs:
            return "Comparison(no runs)"
        best = self.best
        return (
            f"Comparison({counted(len(self), 'run')} on {best.data}; best: {best.candidate}, "
            f"{best.by.label} {best.score:.{best.decimals}f})"
        )

    def _repr_html_(self) -> str:
        columns = [name for name in self.columns if name not in _NOT_IN_NOTEBOOK]
        rows = [[_row(run, run.decimals)[name] for name in columns] for run in self.runs]
        return html_table(columns, rows, repr(self), [*self._warning(), *self._sentences()])

    def to_frame(self) -> pandas.DataFrame:
        """One row for each run, under the names in `columns`; numbers as numbers.

        Returns
        -------
        pandas.DataFrame
        """
        import pandas

        frame = pandas.DataFrame(self.rows(), columns=list(self.columns))
        for name in (name for name in self.columns if name not in _TEXTS):
            frame[name] = pandas.to_numeric(frame[name])
        return frame

    @property
    def best(self) -> Run:
        """The run at the top."""
        return self.runs[0]

    def rows(self) -> list[dict[str, str]]:
        """One dict of text for each run, under the names in `columns`."""
        return [_row(run) for run in self.runs]

    def markdown(self) -> str:
        """The table in Markdown, and under it what the paired tests come to.

        Scores are rounded to what their intervals support. Above it, in the first line, whether any
        run is of a leaky protocol.
        """
        lines = [line for note in self._warning() for line in (note, "")]
        lines += _markdown(self.columns, [_row(run, run.decimals) for run in self.runs])
        return "\n".join([*lines, *(f"\n{sentence}" for sentence in self._sentences())])

    def _warning(self) -> list[str]:
        """What stands above the table: that runs are of a leaky protocol, if any are."""
        note = leaky_note(self.runs)
        return [note] if note else []

    def _sentences(self) -> list[str]:
        """What stands below it."""
        return [*verdicts(self.runs), *ablation.answers(self.runs), *break_even.verdicts(self.runs)]


def sort_runs(runs: Sequence[Run], metric: str = "accuracy") -> Comparison:
    """The comparison of these runs, each tested against the best with the same rows and folds.

    The p-values and ties are those among the runs given: they may differ from those of a
    comparison with more of them.

    Parameters
    ----------
    runs : sequence of Run
    metric : str, default "accuracy"
        What they are ranked by, and tested by: a name in `metrics.METRICS`.
    """
    return Comparison(rank_by(metric_of(metric), runs))


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


def write_comparison(
    reports: Path,
    before_page: Callable[[Sequence[Run]], object] | None = None,
    metric: str = "accuracy",
    pages: bool = True,
) -> Comparison:
    """Rebuild comparison.csv, .md and .html, and comparison.png and .svg of every data set.

    Each is put in place whole; a plot or page that can't be made costs a warning only.

    Parameters
    ----------
    reports : Path
    before_page : callable, optional
        Called with all runs, tested and best first, before comparison.html is written: that one
        links to the run pages that are there by then.
    metric : str, default "accuracy"
        See `sort_runs`.
    pages : bool, default True
        False: the tables only, and nothing is drawn.

    Returns
    -------
    Comparison
        Over all data sets; numbers compare only within one data set and split.
    """
    runs = read_runs(reports)
    if not runs:
        raise DataError(
            f"no runs below {reports}/ yet",
            with_reports("featcache compare --fusion concat --head mlp,svm".split(), reports),
        )
    everything = sort_runs(runs, metric)
    everything.runs.sort(key=lambda run: (run.data, run.split, run.rows))
    write_text(reports / "comparison.csv", _csv(everything.columns, everything.rows()))
    write_text(reports / "comparison.md", everything.markdown() + "\n")
    if pages:
        _draw(reports, everything.runs, before_page)
    return everything


def is_up_to_date(reports: Path, metric: str, page: Path | None = None) -> bool:
    """Whether tables and pages, perhaps that of a run among them, show the runs by this metric."""
    files = [reports / "comparison.csv", reports / "comparison.md", *([page] if page else [])]
    there = all(path.is_file() for path in files)
    return there and shown_by(reports / COMPARISON_PAGE) == digest_of_all(reports, metric)


def _draw(
    reports: Path, runs: Sequence[Run], before_page: Callable[[Sequence[Run]], object] | None
) -> None:
    # These import matplotlib, and often there is nothing to draw.
    from featcache.reporting.comparison_page import write_comparison_page
    from featcache.reporting.plots.comparison import plot_comparison
    from featcache.reporting.plots.style import only_warns

    for data in sorted({run.data for run in runs}):
        mine = [run for run in runs if run.data == data and run.score == run.score]
        if mine:
            with only_warns(f"comparison plot of {data}"):
                plot_comparison(mine, reports / data)
    if before_page is not None:
        before_page(runs)
    with only_warns(COMPARISON_PAGE):
        write_comparison_page(reports, runs)


def protocol_columns(done: Mapping[str, Comparison]) -> tuple[str, ...]:
    """What `side_by_side` says of each; what the runs are ranked by comes before other metrics."""
    by = next(iter(done.values())).best.by.name
    return ("candidate", "protocol", *dict.fromkeys((by, *METRICS)), "tested", "run")


def side_by_side(done: Mapping[str, Comparison]) -> list[dict[str, str]]:
    """One row for each candidate and protocol, under the names in `protocol_columns`.

    Candidates come best first, by what they reach without a leak in the metric that they are ranked
    by; under each, its protocols. Precision, recall and F1 are macro means over the classes.

    Parameters
    ----------
    done : mapping of str to Comparison
        By the protocols' names.
    """
    place = {name: number for number, name in enumerate(done)}
    rows = [(name, run) for name, comparison in done.items() for run in comparison]
    best: dict[str, tuple[bool, bool, float]] = {}
    for _, run in rows:
        mine = (run.leaky, *place_of(run)[:2])
        best[run.candidate] = min(best.get(run.candidate, mine), mine)
    rows.sort(key=lambda row: (best[row[1].candidate], row[1].candidate, place[row[0]]))
    columns = protocol_columns(done)
    return [_protocol_row(name, run, columns) for name, run in rows]


def flattery(done: Mapping[str, Comparison]) -> list[str]:
    """How much better a leaky protocol's scores are than an honest one's, in sentences.

    Each pair of a protocol that leaks with one that does not, over the candidates that both have.
    """
    leaky = [name for name, runs in done.items() if any(run.leaky for run in runs)]
    sentences = []
    for one in leaky:
        for other in (name for name in done if name not in leaky):
            pairs = _pairs(done[one], done[other])
            if not pairs:
                continue
            by = pairs[0][0].by
            gains = [by.gain(a.score, b.score) for a, b in pairs]
            top, rival = pairs[0]
            has = "has" if by is ACCURACY else f"has {named(by)} of"
            text = (
                f"{one!r} is a {_MARK} protocol. Its best, {top.candidate}, {has} "
                f"{top.score:.4f}; by {other!r} the same candidate has "
                f"{rival.score:.4f}: {by.difference(gains[0], signed=True)} that new images would "
                "not see."
            )
            if len(pairs) > 1:
                low, high, mean = (
                    by.amount(value, signed=True)
                    for value in (min(gains), max(gains), sum(gains) / len(gains))
                )
                text += f" Over {counted(len(pairs), 'candidate')}: {low} … {high}, mean {mean}."
            sentences.append(text)
    return sentences


def write_protocols(folder: Path, name: str, done: Mapping[str, Comparison]) -> Path:
    """Write NAME.protocols.csv and .md into a folder; the path of the second."""
    rows = side_by_side(done)
    columns = protocol_columns(done)
    write_text(folder / f"{name}.protocols.csv", _csv(columns, rows))
    lines = _markdown(columns[:-1], rows)
    text = "\n".join([*lines, *(f"\n{line}" for line in flattery(done))])
    return write_text(folder / f"{name}.protocols.md", f"{text}\n")


def fusion_label(run: Run) -> str:
    """The fusion, or "–" for a backbone alone."""
    return run.fusion if len(run.backbones) > 1 else "–"


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> str:
    table = io.StringIO()
    write = row_writer(table)
    write(columns)
    for row in rows:
        write(row[name] for name in columns)
    return table.getvalue()


def _markdown(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The lines of a table, its head first."""
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return [*lines, *(f"| {' | '.join(row[name] for name in columns)} |" for row in rows)]


def _row(run: Run, digits: int = 4) -> dict[str, str]:
    low, high = run.score_interval
    numbers = {name: run.metric(name) for name in ("accuracy", *_METRICS)}
    numbers |= {run.by.name: run.score, "low": low, "high": high}
    return {
        "data": run.data,
        "split": run.split,
        "tested": str(run.tested),
        "backbones": "+".join(run.backbones),
        "fusion": fusion_label(run),
        "head": run.head,
        "p": "" if run.p is None else f"{run.p:.3g}",
        "tie": "yes" if run.tie else "",
        **{name: f"{value:.{digits}f}".replace("nan", "") for name, value in numbers.items()},
        "fit_seconds": f"{run.fit_seconds:.2f}",
        "select": run.select,
        "tuned": str(run.tune or ""),
        "view": "+".join(run.view),
        "balance": "yes" if run.balance else "",
        "settings": settings_text(run.settings),
        "run": _folder(run),
    }


def _protocol_row(name: str, run: Run, columns: Sequence[str]) -> dict[str, str]:
    numbers = {metric: run.metric(metric) for metric in columns[2:-2]} | {run.by.name: run.score}
    return {
        "candidate": f"{'+'.join(run.backbones)}, {fusion_label(run)}, {run.head}",
        "protocol": f"{name} ({_MARK})" if run.leaky else name,
        **{metric: "–" if value != value else f"{value:.4f}" for metric, value in numbers.items()},
        "tested": f"{run.tested:,}",
        "run": _folder(run),
    }


def _folder(run: Run) -> str:
    """The run folder as it was named; an absolute one from the reports folder on."""
    folder = run.folder
    return "/".join(folder.parts[-3:]) if folder.is_absolute() else str(folder)


def _pairs(one: Comparison, other: Comparison) -> list[tuple[Run, Run]]:
    """Runs of the same candidate that both have a score, best of the first first."""
    known = {run.candidate: run for run in other if run.score == run.score}
    return [(run, known[run.candidate]) for run in one
            if run.candidate in known and run.score == run.score]  # fmt: skip
