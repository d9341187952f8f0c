"""featcache run."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.cli.compare import say_fitted, show_ablation
from featcache.cli.console import need_pages, note, progress_bar
from featcache.cli.extract import show_report
from featcache.cli.options import (
    check_parts,
    cluster_at,
    dask_option,
    embedding,
    executor_at,
    fits_here,
    parts_option,
    pictures_option,
    set_option,
    with_log,
)
from featcache.cli.tables import (
    about,
    print_runs,
    say,
    show_runs,
    show_table,
    table_format,
    table_options,
)

if TYPE_CHECKING:
    from featcache.extraction.report import Report
    from featcache.recipe import Recipe
    from featcache.reporting.comparison import Comparison
    from featcache.reporting.schema import Run
    from featcache.scaling.cluster import Cluster


def _networks(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> dict[str, str]:
    """`--replace vgg16=resnet18` as {"vgg16": "resnet18"}."""
    pairs = [tuple(part.strip() for part in text.partition("=")) for text in value]
    if not all(old and new for old, _, new in pairs):
        raise click.BadParameter("write NETWORK=BACKBONE, as in vgg16=resnet18", ctx, param)
    return {old: new for old, _, new in pairs}


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Check the recipe and say what it would do.")
@click.option("--quick", is_flag=True, help="Its quick size: seconds, offline, kept apart.")
@click.option("--finetune", is_flag=True, help="Fine-tune too, where the recipe says how.")
@click.option("--data", metavar="SPEC", help="Other images than the recipe's.")
@click.option("--name", metavar="NAME", help="Their name in the cache; by default the folder's.")
@click.option("--limit", type=int, metavar="N", help="At most N images of each class.")
@click.option(
    "--replace",
    multiple=True,
    callback=_networks,
    metavar="NETWORK=BACKBONE",
    help="Another network in place of one of the recipe's; repeat it.",
)
@click.option("--weights", metavar="WHICH", help="auto, a tag, random[:SEED], …")
@click.option("--weights-dir", metavar="FOLDER", help="A folder of weight files, searched first.")
@click.option("--device", metavar="WHERE", help="auto, cpu, cuda or cuda:1.")
@click.option("--metric", metavar="NAME", help="What candidates are ranked by.")
@click.option("--positive", metavar="LABEL", help="The positive one of two classes.")
@set_option
@click.option("--cache", metavar="FOLDER", help="The cache folder.")
@click.option(
    "--image-size",
    type=click.IntRange(1),
    metavar="N",
    help="Side of the square that networks see.",
)
@click.option("--reports", metavar="FOLDER", help="The reports folder.")
@click.option("--rehash", is_flag=True, help="Read every image again to see whether it changed.")
@click.option("--wait", is_flag=True, help="Wait while another process writes the same file.")
@click.option("--again", is_flag=True, help="Fit even what was run before.")
@pictures_option
@dask_option
@parts_option
@table_options
@with_log
@click.pass_context
def run(
    ctx: click.Context,
    /,
    recipe: Path,
    dry_run: bool,
    quick: bool,
    finetune: bool,
    replace: dict[str, str],
    settings: dict[str, Any],
    rehash: bool,
    wait: bool,
    again: bool,
    pictures: bool,
    dask: str | None,
    parts: str | None,
    quiet: bool,
    **changes: Any,
) -> None:
    """Run a recipe: extract, fit and compare.

    What the cache holds already is not computed again, nor is what was fitted before. Options with
    a value take the place of what the recipe says.

    \b
    Example:
      featcache run pipelines/digits.yaml
      featcache run pipelines/cifar10_resnet18_mobilenetv2.yaml --quick
      featcache run pipelines/digits.yaml --data photos --weights auto --dry-run
      featcache run pipelines/digits.yaml --replace mobilenet_v2=squeezenet1_1
    """
    from featcache.images.sources import check_source
    from featcache.recipe import load_recipe, protocols_of

    overrides = {name: value for name, value in changes.items() if value is not None}
    loaded = load_recipe(
        recipe, quick=quick, replace=replace, **overrides, **({"set": settings} if settings else {})
    )
    if not dry_run:
        check_source(loaded.data)
    _refuse_absent_finetune(loaded, recipe, finetune)
    if dry_run:
        _show_plan(loaded)
        return
    check_parts(parts, dask)
    from featcache.recipe import extract_for

    cluster = ctx.with_resource(cluster_at(dask))
    with progress_bar("images", quiet) as progress:
        embed = embedding(cluster, loaded.data_root, parts)
        report = extract_for(loaded, progress, rehash, wait, embed)
    show_report(report, loaded.cache)
    done: dict[str, Comparison] = {}
    for name, tested in protocols_of(loaded).items():
        done[name] = _compare(cluster, loaded, report, again, name, pictures)
        _show_comparison(done[name], name)
        if tested.ablate:
            show_ablation(done[name].runs, loaded.reports)
    if finetune:
        words = [str(recipe), *(["--quick"] if quick else [])]
        words += _words(overrides, replace, settings)
        _finetune(loaded, done, ["featcache", "run", *words, "--finetune"], again)
    elif loaded.finetune is not None:
        note("fine-tuning is left out; it takes a GPU: add --finetune")
    print_runs([run for comparison in done.values() for run in comparison])
    if len(done) > 1:
        _show_protocols(loaded, done, recipe.stem)
    best = next(reversed(done.values())).best
    need_pages(loaded.reports, best)
    if report.failed:
        ctx.exit(3)


def _refuse_absent_finetune(loaded: Recipe, path: Path, finetune: bool) -> None:
    from featcache.errors import RecipeError

    if finetune and loaded.finetune is None:
        raise RecipeError(
            f"{path} says nothing of fine-tuning", "Add for instance finetune: {epochs: 8}"
        )


def _show_plan(loaded: Recipe) -> None:
    """The recipe as it is understood, and what it comes to as comments: the whole is YAML."""
    import yaml

    from featcache.recipe import check_here
    from featcache.recipe.checks import check_data
    from featcache.recipe.experiment import plan

    check_here(loaded)
    check_data(loaded)
    click.echo(yaml.safe_dump(loaded.model_dump(exclude_none=True), sort_keys=False).rstrip())
    for line in plan(loaded):
        click.echo(f"# {line}")


def _compare(
    cluster: Cluster | None,
    loaded: Recipe,
    report: Report,
    again: bool,
    protocol: str,
    pictures: bool,
) -> Comparison:
    """The comparison by one protocol, here or on the cluster."""
    from featcache.recipe import compare_for

    tested = loaded.model_copy(update={"jobs": fits_here(cluster, loaded.jobs)})
    fitted = say_fitted(loaded.metric)
    return compare_for(tested, report, fitted, again, protocol, executor_at(cluster), pictures)


def _show_comparison(done: Comparison, protocol: str = "") -> None:
    best = done.best
    show_runs(done.runs, f"{protocol}: {about(best)}" if protocol else about(best))


def _words(
    overrides: dict[str, Any], replace: dict[str, str], settings: dict[str, Any]
) -> list[str]:
    """Options as they would be typed again."""
    words = [[f"--{name.replace('_', '-')}", str(value)] for name, value in overrides.items()]
    words += [["--replace", f"{old}={new}"] for old, new in replace.items()]
    words += [["--set", f"{name}={json.dumps(value)}"] for name, value in settings.items()]
    return [word for pair in words for word in pair]


def _finetune(loaded: Recipe, done: dict[str, Comparison], command: list[str], again: bool) -> None:
    """Fine-tune, and show what came of it beside the frozen runs on the same rows."""
    from featcache.recipe import finetune_for
    from featcache.reporting.comparison import sort_runs

    tuned: list[Run] = finetune_for(loaded, again, shlex.join(command))
    same = [run for comparison in done.values() for run in comparison if run.rows == tuned[0].rows]
    _show_comparison(sort_runs([*same, *tuned], loaded.metric), "fine-tuned")


def _show_protocols(loaded: Recipe, done: dict[str, Comparison], name: str) -> None:
    """All protocols in one table, and how much those that leak flatter."""
    from featcache.reporting.comparison import (
        flattery,
        protocol_columns,
        side_by_side,
        write_protocols,
    )

    columns = protocol_columns(done)[:-1]  # the run folders are in the file
    rows = [[row[column] for column in columns] for row in side_by_side(done)]
    if table_format() == "table":
        show_table(columns, rows, "the protocols side by side")
    for line in flattery(done):
        say(line)
    data = next(iter(done.values())).best.data
    note(str(write_protocols(Path(loaded.reports) / data, name, done)))
