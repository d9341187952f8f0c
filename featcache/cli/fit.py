"""featcache fit."""

from __future__ import annotations

from typing import Any

import click

from featcache.cli.console import need_pages, show_table
from featcache.cli.options import (
    backbone_option,
    cache_option,
    cached_features,
    cluster_at,
    dask_option,
    data_options,
    executor_at,
    fit_options,
    fits_here,
    how_opened,
    pictures_option,
    reports_option,
    with_log,
)
from featcache.errors import counted
from featcache.images.files import KINDS


@click.command()
@data_options
@backbone_option
@click.option(
    "--fusion",
    default="concat",
    show_default=True,
    metavar="NAME",
    help="How the backbones' vectors become one.",
)
@click.option("--head", default="mlp", show_default=True, metavar="NAME", help="The classifier.")
@fit_options
@cache_option
@reports_option
@pictures_option
@dask_option
@with_log
def fit(
    data: str | None,
    name: str | None,
    data_root: str | None,
    group: str | None,
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

    \b
    Example:
      featcache fit --fusion concat --head mlp
      featcache fit --data photos --backbone resnet18 --head svm --folds 10
      featcache fit --fusion attention --head mlp --set head.hidden=[512,512]
    """  # fmt: skip
    from featcache import compare
    from featcache.reporting.ties import leaky_note

    options["group"] = group if group in KINDS else None
    options["opened"] = how_opened(data, name, data_root, group, cache)
    options |= {"jobs": jobs, "reports": reports, "cache": cache, "singles": False}
    with cluster_at(dask) as cluster:
        features = cached_features(
            data, name, data_root, group, backbone, cache, view, memory, fits_here(cluster, jobs)
        )
        run = compare(features, crew=executor_at(cluster), **options).best
    if run.leaky:
        click.echo(leaky_note([run]))
    rows = [(label, *_values(run, metric)) for label, metric in _SHOWN]
    show_table(("metric", "mean", "sd over folds"), rows, f"{run.name}, {run.split}")
    low, high = run.interval
    click.echo(f"accuracy {run.metric('accuracy'):.4f}, 95 % interval {low:.4f} … {high:.4f}, "
               f"{counted(run.tested, 'test image')}, {run.fit_seconds:.2f} s a fit")  # fmt: skip
    click.echo(run.folder)
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


def _values(run: Any, metric: str) -> tuple[str, str]:
    sd = run.sd.get(metric)
    mean = run.metrics.get(metric)
    return ("–" if mean is None else f"{mean:.4f}", "–" if sd is None else f"{sd:.4f}")
