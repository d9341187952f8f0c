"""featcache report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featcache.cli.console import note, show_runs
from featcache.cli.options import cache_option, reports_option, with_log

if TYPE_CHECKING:
    from featcache.images.manifest import Images
    from featcache.reporting.run_folder import Run


@click.command()
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path), metavar="[RUN]...")
@click.option("--open", "show", is_flag=True, help="Open the page in the browser.")
@click.option("--data", metavar="SPEC", help="Where the images are, as for extract, if they were moved since.")  # fmt: skip
@click.option("--data-root", metavar="FOLDER", help="As for extract.")
@cache_option
@reports_option
@with_log
def report(
    runs: tuple[Path, ...],
    show: bool,
    data: str | None,
    data_root: str | None,
    cache: str,
    reports: str,
    quiet: bool,
) -> None:
    """Make the pages: comparison.html, and report.html of runs.

    Of the runs that are named, or of each data set's best, with plots as PNG and SVG beside it.
    Prints those runs, or all; "=" marks what can't be told from the best of its table by a
    paired test. Rebuilds comparison.csv and comparison.md too.

    \b
    Example:
      featcache report --open
      featcache report reports/digits/*.svm.*
    """
    from itertools import groupby

    from featcache.reporting.comparison import sort_runs, write_comparison
    from featcache.reporting.run_folder import read_run

    named = [read_run(folder) for folder in runs]  # before anything is written
    images = _images(data, data_root, cache)
    pages: list[Path] = []
    everything = write_comparison(
        Path(reports),
        lambda known: pages.extend(_pages([run.folder for run in named], known, images, cache)),
    ).runs
    if named:
        everything = sort_runs(named).runs
        everything.sort(key=lambda run: (run.data, run.rows))
    for _, same in groupby(everything, key=lambda run: (run.data, run.rows)):
        group = list(same)
        show_runs(group, f"{group[0].data}, {group[0].split}, {group[0].tested:,} test images")
    for page in pages:
        note(str(page))
    note(f"{reports}/comparison.html, comparison.md, comparison.csv")
    if show:
        click.launch(str((pages[0] if runs else Path(reports) / "comparison.html").resolve()))


def _images(data: str | None, data_root: str | None, cache: str) -> Images | None:
    if data is None:
        return None
    from featcache.images.sources import open_images

    return open_images(data, data_root=data_root, cache=cache, download=False)


def _pages(
    folders: list[Path], known: Sequence[Run], images: Images | None, cache: str
) -> list[Path]:
    """The pages of these runs, or of each data set's best on its newest rows."""
    from featcache.reporting.run_page import write_run_page

    if not folders:
        newest: dict[str, Run] = {}
        for run in sorted(known, key=lambda run: run.created):
            newest[run.data] = run
        rows = {(run.data, run.rows) for run in newest.values()}
        best = {(run.data, run.rows): run for run in reversed(known)}  # the first of each is best
        folders = [best[one].folder for one in sorted(rows)]
    return [
        write_run_page(folder, among=known, images=images, cache=Path(cache)) for folder in folders
    ]
