"""featcache compare."""

from __future__ import annotations

from typing import Any

import click

from featcache.cli.cached import cached_features
from featcache.cli.console import note, show_runs
from featcache.cli.options import (
    backbone_option,
    cache_option,
    data_options,
    fit_options,
    reports_option,
    several,
    with_log,
)


@click.command()
@data_options
@backbone_option
@several("--fusion", default=["concat"], show_default=True, help="Fusions to try.")
@several("--head", default=["mlp"], show_default=True, help="Heads to try.")
@click.option("--singles/--no-singles", default=True, help="Also each backbone alone.")
@fit_options
@cache_option
@reports_option
@with_log
def compare(
    data: str | None,
    name: str | None,
    data_root: str | None,
    group: str | None,
    backbone: list[str],
    cache: str,
    reports: str,
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
    from featcache import compare as run_grid

    features = cached_features(data, name, data_root, group, backbone, cache)
    done = run_grid(features, reports=reports, fitted=say_fitted, **options)
    show_runs(done.runs, f"{done.best.data}, {done.best.split}, {done.best.tested:,} test images")
    note(f"{reports}/comparison.md, comparison.csv, {done.best.data}/comparison.png")


def say_fitted(number: int, count: int, run: Any) -> None:
    """One line on stderr for each candidate."""
    accuracy, seconds = run.metric("accuracy"), run.fit_seconds
    note(f"[{number}/{count}] {run.name}: {accuracy:.4f} ({seconds:.2f} s a fit)")
