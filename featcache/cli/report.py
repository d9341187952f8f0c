"""featcache report."""

from __future__ import annotations

from pathlib import Path

import click

from featcache.cli.console import note, show_runs
from featcache.cli.options import reports_option, with_log


@click.command()
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path), metavar="[RUN]...")
@reports_option
@with_log
def report(runs: tuple[Path, ...], reports: str, quiet: bool) -> None:
    """Rebuild the comparison of all runs.

    Prints the runs that are named, or all; "=" marks what can't be told from the best of its
    table by a paired test.

    \b
    Example:
      featcache report
      featcache report reports/digits/*.svm.*
    """
    from itertools import groupby

    from featcache.reporting.comparison import sort_runs, write_comparison
    from featcache.reporting.run_folder import read_run

    everything = write_comparison(Path(reports)).runs
    if runs:
        everything = sort_runs([read_run(folder) for folder in runs]).runs
        everything.sort(key=lambda run: (run.data, run.rows))
    for _, same in groupby(everything, key=lambda run: (run.data, run.rows)):
        group = list(same)
        show_runs(group, f"{group[0].data}, {group[0].split}, {group[0].tested:,} test images")
    note(f"{reports}/comparison.md, comparison.csv")
