"""featcache demo."""

from __future__ import annotations

import click

from featcache.cli.compare import say_fitted
from featcache.cli.console import progress_bar, show_runs
from featcache.cli.extract import show_report
from featcache.cli.options import cache_option, pictures_option, reports_option, with_log
from featcache.errors import counted

_RECIPE = {
    "data": "digits",
    "backbone": ["resnet18", "mobilenet_v2"],
    "image_size": 64,
    "fusion": ["concat", "attention"],
    "head": ["mlp", "svm", "logreg"],
    "folds": 3,
}


@click.command()
@cache_option
@reports_option
@pictures_option
@with_log
def demo(cache: str, reports: str, pictures: bool, quiet: bool) -> None:
    """See it all work on the bundled digits, offline.

    Two backbones, their fusion against each alone, a table and a plot. Without ImageNet weights
    at hand it says so and takes random ones: here only, never by itself elsewhere.

    \b
    Example:
      featcache demo
    """
    from featcache.errors import WeightsError
    from featcache.extraction.registry import open_backbones
    from featcache.recipe import compare_for, extract_for, make_recipe

    plain = {**_RECIPE, "cache": cache, "reports": reports}
    try:
        open_backbones(_RECIPE["backbone"])  # type: ignore[arg-type]
    except WeightsError:
        click.secho(
            "No ImageNet weights here and none could be downloaded: the demo takes seeded random "
            "weights, so its accuracies say nothing about the backbones.",
            err=True, fg="yellow",
        )  # fmt: skip
        plain["weights"] = "random:0"
    recipe = make_recipe(plain)
    with progress_bar("images", quiet) as progress:
        report = extract_for(recipe, progress)
    show_report(report, cache)
    done = compare_for(recipe, report, say_fitted, pictures=pictures)
    show_runs(done.runs, f"digits, {done.best.split}, {counted(done.best.tested, 'test image')}")
    best_alone = next(run for run in done if len(run.backbones) == 1)
    best_fused = next(run for run in done if len(run.backbones) > 1)
    click.echo(
        f"Best fusion: {best_fused.metric('accuracy'):.4f} ({best_fused.fusion}, "
        f"{best_fused.head}); best backbone alone: {best_alone.metric('accuracy'):.4f} "
        f"({best_alone.backbones[0]}, {best_alone.head})."
    )
    click.echo(f"Plot: {reports}/digits/comparison.png")
    click.echo("Next: featcache extract --data YOUR_FOLDER --backbone resnet18")
