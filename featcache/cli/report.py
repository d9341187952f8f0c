"""featcache report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featcache.cli.completion import completer, runs
from featcache.cli.console import need_pages, note
from featcache.cli.options import (
    cache_option,
    metric_option,
    pictures_option,
    reports_option,
    with_log,
)
from featcache.cli.tables import about, print_runs, show_runs, table_options
from featcache.errors import counted

if TYPE_CHECKING:
    from featcache.images.manifest import Images
    from featcache.reporting.schema import Run


@click.command()
@click.argument(
    "runs",
    nargs=-1,
    type=click.Path(path_type=Path),
    metavar="[RUN]...",
    shell_complete=completer(runs, files=True),
)
@click.option("--open", "show", is_flag=True, help="Open the page in the browser.")
@click.option("--data", metavar="SPEC", help="Where the images are, as for extract, if they were moved since.")  # fmt: skip
@click.option("--data-root", metavar="FOLDER", help="As for extract.")
@metric_option
@cache_option
@reports_option
@pictures_option
@table_options
@with_log
def report(
    runs: tuple[Path, ...],
    show: bool,
    data: str | None,
    data_root: str | None,
    metric: str,
    cache: str,
    reports: str,
    pictures: bool,
    quiet: bool,
) -> None:
    """Make the pages: comparison.html, and report.html of runs.

    Of the runs that are named, by folder or as for predict, or of each data set's best, with plots as PNG and SVG beside it.
    Prints those runs, or all; "=" marks what can't be told from the best of its table by a
    paired test. Rebuilds comparison.csv and comparison.md too.

    \b
    Example:
      featcache report --open
      featcache report reports/digits/*.svm.*
    """
    from itertools import groupby

    from featcache.reporting.comparison import read_runs, sort_runs, write_comparison
    from featcache.reporting.plots.samples import runs_on
    from featcache.reporting.run_page import standing
    from featcache.reporting.run_reader import find_run
    from featcache.reporting.schema import read_run

    named = [
        read_run(run if run.exists() else find_run(str(run), reports)) for run in runs
    ]  # before anything is written
    images = _images(data, data_root, cache)
    known = named or read_runs(Path(reports))
    theirs = runs_on(images, known) if images is not None and known else []
    pages: list[Path] = []
    everything = write_comparison(
        Path(reports),
        lambda known: pages.extend(_pages(named, known, images, theirs, cache, pictures)),
        metric,
    ).runs
    shown = sort_runs(named, metric).runs if named else everything
    shown.sort(key=lambda run: (run.data, run.rows))
    print_runs(shown)
    for (_, rows), same in groupby(shown, key=lambda run: (run.data, run.rows)):
        group = list(same)
        title = about(group[0])
        there = sum((run.data, run.rows) == (group[0].data, rows) for run in everything)
        if len(group) < there:
            title += f"; {len(group)} of {counted(there, 'run')}"
        alone = len(group) == 1 and there > 1
        show_runs(group, title, standing(group[0], everything) if alone else "")
    for page in pages:
        note(str(page))
    need_pages(reports)
    if show:
        click.launch(str((pages[0] if runs else Path(reports) / "comparison.html").resolve()))


def _images(data: str | None, data_root: str | None, cache: str) -> Images | None:
    if data is None:
        return None
    from featcache.images.sources import open_images

    return open_images(data, data_root=data_root, cache=cache, download=False)


def _pages(
    named: Sequence[Run],
    known: Sequence[Run],
    images: Images | None,
    theirs: Sequence[Run],
    cache: str,
    pictures: bool,
) -> list[Path]:
    """The pages of these runs, or of each data set's best on its newest rows.

    The images are shown on the pages of their own runs. Without named runs no other page is made.
    """
    from featcache.reporting.run_page import write_run_page

    own = {run.data for run in theirs}
    folders = [run.folder for run in named] or [
        run.folder for run in _best(known) if images is None or run.data in own
    ]
    with_images = {run.folder for run in theirs} if named else set(folders)
    return [
        write_run_page(
            folder,
            among=known,
            images=images if folder in with_images else None,
            cache=Path(cache),
            pictures=pictures,
        )
        for folder in folders
    ]


def _best(known: Sequence[Run]) -> list[Run]:
    """Of each data set the best run on its newest rows."""
    newest = {run.data: run.rows for run in sorted(known, key=lambda run: run.created)}
    best = {(run.data, run.rows): run for run in reversed(known)}  # the first of each is best
    return [best[one] for one in sorted(newest.items())]
