"""featcache run."""

from __future__ import annotations

from pathlib import Path

import click

from featcache.cli.compare import say_fitted
from featcache.cli.console import note, progress_bar, show_runs
from featcache.cli.extract import show_report
from featcache.cli.options import with_log


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Check the recipe and say what it would do.")
@click.option("--rehash", is_flag=True, help="Read every image again to see whether it changed.")
@click.option("--wait", is_flag=True, help="Wait while another process writes the same file.")
@click.option("--again", is_flag=True, help="Fit even what was run before.")
@with_log
@click.pass_context
def run(
    ctx: click.Context,
    /,
    recipe: Path,
    dry_run: bool,
    rehash: bool,
    wait: bool,
    again: bool,
    quiet: bool,
) -> None:
    """Run a recipe: extract, fit and compare.

    What the cache holds already is not computed again, nor is what was fitted before.

    \b
    Example:
      featcache run pipelines/digits.yaml
    """
    import yaml

    from featcache.recipe import compare_for, extract_for, load_recipe

    loaded = load_recipe(recipe)
    if dry_run:
        click.echo(yaml.safe_dump(loaded.model_dump(exclude_none=True), sort_keys=False).rstrip())
        return
    with progress_bar("images", quiet) as progress:
        report = extract_for(loaded, progress, rehash, wait)
    show_report(report, loaded.cache)
    done = compare_for(loaded, report, say_fitted, again)
    show_runs(done.runs, f"{done.best.data}, {done.best.split}, {done.best.tested:,} test images")
    note(f"{loaded.reports}/comparison.html, {done.best.folder}/report.html")
    if report.failed:
        ctx.exit(3)
