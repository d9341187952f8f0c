"""Console: results go to stdout; progress, logs and errors to stderr."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featcache.errors import FeatcacheError

if TYPE_CHECKING:
    from featcache.reporting.schema import Run

_TIE = "="  # beside the place of a run that can't be told from the best
# What steers a terminal, or turns the order of the letters about; \t and \n are left.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_EVERY_SECONDS = 10.0  # between plain progress lines, where there is no terminal


def visible(text: str) -> str:
    """The text with control characters, which names of files may hold, as escapes: \\x1b."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class _Handler(logging.Handler):
    """Log records as plain lines; warnings marked."""

    def emit(self, record: logging.LogRecord) -> None:
        mark = "warning: " if record.levelno >= logging.WARNING else ""
        text = visible(record.getMessage())
        click.secho(f"{mark}{text}", err=True, fg="yellow" if mark else None)


def set_up_logging(quiet: bool) -> None:
    """Send the package's log to stderr; only warnings with `quiet`."""
    log = logging.getLogger("featcache")
    log.handlers[:] = [_Handler()]
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    log.propagate = False


def note(text: str) -> None:
    """One line on stderr that --quiet leaves out."""
    logging.getLogger("featcache").info("%s", text)


def say_error(problem: str, remedy: str = "") -> None:
    """One error on stderr: what is wrong, and what to do next."""
    click.secho(f"error: {visible(problem)}", err=True, fg="red")
    for line in visible(remedy).splitlines():
        click.echo(f"  {line}", err=True)


def need_pages(reports: str, *runs: Run) -> None:
    """Say which pages there are; one that could not be made, and was warned of, is an error.

    Raises
    ------
    FeatcacheError
    """
    pages = [Path(reports) / "comparison.html", *(run.folder / "report.html" for run in runs)]
    if missing := [str(page) for page in pages if not page.is_file()]:
        raise FeatcacheError(
            f"{', '.join(missing)} could not be made: see the warnings above",
            "The runs themselves are whole. When the cause is gone: featcache report",
        )
    note(", ".join(map(str, pages)))


@contextmanager
def progress_bar(label: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A callable(done, total): a bar on a terminal, a plain line now and then elsewhere."""
    if quiet:
        yield lambda done, total: None
    elif sys.stderr.isatty():
        with _bar(label) as update:
            yield update
    else:
        yield _Lines(label)


@contextmanager
def _bar(label: str) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(label), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None, rate="")
        start = time.monotonic()

        def update(done: int, total: int) -> None:
            rate = done / max(time.monotonic() - start, 1e-9)
            bar.update(task, completed=done, total=total, rate=f"{rate:,.0f}/s")

        yield update


class _Lines:
    def __init__(self, label: str) -> None:
        self._label = label
        self._start = self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last < _EVERY_SECONDS:
            return
        self._last = now
        rate = done / (now - self._start)
        left = (total - done) / rate if rate else float("inf")
        click.echo(
            f"{self._label} {done:,} of {total:,}, {rate:,.1f}/s, {left:,.0f} s left", err=True
        )


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A table on stdout; on no terminal as wide as it needs to be."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left")
    for column in columns:
        numeric = bool(rows) and all(_looks_numeric(row[columns.index(column)]) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(visible, row))
    width = None if sys.stdout.isatty() else 200
    Console(width=width, highlight=False, markup=False).print(table)


def show_runs(runs: Sequence[Run], title: str = "", conclusion: str = "") -> None:
    """Runs with the same rows, best first, as a table on stdout, and what it comes to.

    `conclusion` takes the place of what the paired tests among these runs come to.
    """
    from featcache.reporting.break_even import verdicts
    from featcache.reporting.comparison import fusion_label
    from featcache.reporting.ties import leaky_note, verdict

    rows = [
        (
            f"{_TIE} {place}" if run.tie else str(place),
            " + ".join(run.backbones),
            fusion_label(run),
            _head(run),
            f"{run.metric('accuracy'):.4f}",
            f"{run.interval[0]:.4f} … {run.interval[1]:.4f}",
            *(_number(run.metric(name)) for name in ("balanced_accuracy", "f1", "auc")),
            f"{run.fit_seconds:.2f} s",
        )
        for place, run in enumerate(runs, 1)
    ]
    columns = ("#", "backbones", "fusion", "head", "accuracy", "95 % interval", "balanced",
               "F1", "AUC", "one fit")  # fmt: skip
    if leaky_note(runs):
        click.echo(leaky_note(runs))
    show_table(columns, rows, title)
    if any(run.tie for run in runs):
        click.echo(f"{_TIE}  can't be told from the best")
    click.echo(conclusion or verdict(runs))
    for line in verdicts(runs):
        click.echo(line)


def _head(run: Run) -> str:
    """The head, what it is shown and how often it was tuned: "mlp (anova:256, best of 20)"."""
    from featcache.reporting.plots.comparison import trained_with

    asides = [run.select] * bool(run.select) + [f"best of {run.tune}"] * bool(run.tune)
    asides += [trained_with(run)] * bool(run.view)
    return f"{run.head} ({', '.join(asides)})" if asides else run.head


def _number(value: float) -> str:
    return "–" if value != value else f"{value:.4f}"


def _looks_numeric(text: str) -> bool:
    return text.removeprefix(f"{_TIE} ")[:1].isdigit() or text == "–"
