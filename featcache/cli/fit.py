"""featcache fit."""

from __future__ import annotations

from typing import Any

import click

from featcache.cli.completion import fusions, heads
from featcache.cli.console import need_pages
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
    one_of,
    pictures_option,
    reports_option,
    with_log,
)
from featcache.cli.tables import say, show_table, table_options
from featcache.errors import counted


@click.command()
@data_options
@backbone_option
@one_of("--fusion", fusions, "concat", "How the backbones' vectors become one.")
@one_of("--head", heads, "mlp", "The classifier.")
@fit_options
@cache_option
@reports_option
@pictures_option
@dask_option
@table_options
@with_log
def fit(
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
    """Fit and score one classifier on cached features.

    Several backbones are put in the order of their names, whatever order they are typed in, so that
    the same set has one name and one run: --backbone resnet18,mobilenet_v2 is shown as
    mobilenet_v2+resnet18.

    \b
    Example:
      featcache fit --fusion concat --head mlp
      featcache fit --data photos --backbone resnet18 --head svm --folds 10
      featcache fit --fusion attention --head mlp --set head.hidden=[512,512]
    """  # fmt: skip
    from featcache.fitting.names import check_names

    check_names([options["fusion"]], [options["head"]], options["settings"], options["select"])

    options["group"], options["opened"] = images.kind, images.opened(cache)
    options |= {"jobs": jobs, "reports": reports, "cache": cache, "singles": False}
    with cluster_at(dask) as cluster:
        jobs_here = fits_here(cluster, jobs)
        features = cached_features(images, backbone, cache, view, memory, jobs_here)
        from featcache import compare
        from featcache.reporting.ties import leaky_note, seeds_note

        run = compare(features, crew=executor_at(cluster), **options).best
    if run.leaky:
        say(leaky_note([run]))
    of_it = [(f"{label} of {run.positive}", name) for label, name in _POSITIVE if run.positive]
    tables = [run.metrics, run.sd, *([run.seed_sd] if run.seeds > 1 else [])]
    rows = [
        (label, *(_number(table.get(metric)) for table in tables))
        for label, metric in (*_SHOWN, *of_it)
    ]
    heads = ("metric", "mean", "sd over folds", *["sd over seeds"] * (run.seeds > 1))
    show_table(heads, rows, f"{run.name}, {run.split}")
    low, high = run.score_interval
    say(f"{run.by.label} {run.score:.4f}, 95 % interval {low:.4f} … {high:.4f}, "
               f"{counted(run.tested, 'test image')}, {run.fit_seconds:.2f} s a fit")  # fmt: skip
    for line in seeds_note([run]):
        say(line)
    say(str(run.folder))
    if options["report"]:
        need_pages(reports, run)


_SHOWN = (
    ("accuracy", "accuracy"),
    ("balanced accuracy", "balanced_accuracy"),
    ("precision (macro)", "precision"),
    ("recall (macro)", "recall"),
    ("F1 (macro)", "f1"),
    ("AUC", "auc"),
    ("log loss", "log_loss"),
    ("calibration error", "ece"),
)
_POSITIVE = (
    ("precision", "precision_positive"),
    ("recall", "recall_positive"),
    ("F1", "f1_positive"),
)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
