"""featcache compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from featcache.cli.completion import completer, fusions, heads
from featcache.cli.console import need_pages, note
from featcache.cli.options import (
    DataOptions,
    backbone_option,
    cache_option,
    cached_features,
    cluster_at,
    dask_option,
    data_options,
    executor_at,
    fit_options,
    fits_here,
    pictures_option,
    reports_option,
    several,
    with_log,
)
from featcache.cli.tables import (
    about,
    print_runs,
    show_runs,
    show_table,
    table_format,
    table_options,
)

if TYPE_CHECKING:
    from featcache.reporting.schema import Run


@click.command()
@data_options
@backbone_option
@several(
    "--fusion",
    shell_complete=completer(fusions, commas=True),
    default=["concat"],
    show_default=True,
    help="Fusions to try.",
)
@several(
    "--head",
    shell_complete=completer(heads, commas=True),
    default=["mlp"],
    show_default=True,
    help="Heads to try.",
)
@click.option("--singles/--no-singles", default=True, help="Also each backbone alone.")
@click.option("--ablate", is_flag=True, help="Also all backbones but one, and what each adds.")
@fit_options
@cache_option
@reports_option
@pictures_option
@dask_option
@table_options
@with_log
def compare(
    images: DataOptions,
    backbone: list[str],
    view: list[str],
    cache: str,
    reports: str,
    dask: str | None,
    jobs: int,
    memory: str,
    quiet: bool,
    **options: Any,
) -> None:
    """Fit and score a grid of classifiers on the same folds.

    The table comes best first; "=" marks what can't be told from the best by a paired test. Every
    fusion goes with every head on all backbones together; each backbone alone is beside them. What
    was run before is not run again.

    \b
    Example:
      featcache compare --fusion concat,attention --head mlp,svm,xgboost
      featcache compare --backbone resnet18 --head logreg,svm --folds 10
    """
    from featcache.fitting.names import check_names

    check_names(options["fusion"], options["head"], options["settings"], options["select"])

    options["group"], options["opened"] = images.kind, images.opened(cache)
    options |= {"jobs": jobs, "reports": reports, "cache": cache}
    options["fitted"] = say_fitted(options["metric"])
    with cluster_at(dask) as cluster:
        jobs_here = fits_here(cluster, jobs)
        features = cached_features(images, backbone, cache, view, memory, jobs_here)
        from featcache import compare as run_grid

        done = run_grid(features, crew=executor_at(cluster), **options)
    show_runs(done.runs, about(done.best))
    print_runs(done.runs)
    if options["ablate"]:
        show_ablation(done.runs, reports)
    if options["report"]:
        need_pages(reports, done.best)


def show_ablation(runs: Sequence[Run], reports: str) -> None:
    """What each backbone adds, as a table on stdout and files beside the runs."""
    from pathlib import Path

    from featcache.reporting.ablation import CELLS, ablation, write_ablation

    found = ablation(runs)
    if not found:
        note("one backbone: nothing to leave out")
        return
    if table_format() == "table":
        show_table(CELLS, [one.cells() for one in found], "what each backbone adds")
    note(str(write_ablation(Path(reports) / runs[0].data, found)))


def say_fitted(metric: str = "accuracy") -> Callable[[int, int, Run], None]:
    """What says one line on stderr for each candidate; its accuracy if its run has no `metric`."""

    def say_one(number: int, count: int, run: Run) -> None:
        from featcache.fitting.metrics import ACCURACY, metric_of

        by = metric_of(metric) if metric in run.metrics else ACCURACY
        score = f"{by.label} {run.metric(by.name):.4f}"
        note(f"[{number}/{count}] {run.name}: {score} ({run.fit_seconds:.2f} s a fit)")

    return say_one
