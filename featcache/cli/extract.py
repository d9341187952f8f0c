"""featcache extract."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from featcache.cli.console import note, progress_bar
from featcache.cli.options import (
    DataOptions,
    backbone_option,
    cache_option,
    check_parts,
    cluster_at,
    dask_option,
    data_options,
    embedding,
    extract_options,
    parts_option,
    with_log,
)
from featcache.errors import counted

if TYPE_CHECKING:
    from featcache.extraction.report import Report


@click.command()
@data_options
@backbone_option
@extract_options
@cache_option
@click.option("--rehash", is_flag=True, help="Read every image again to see whether it changed.")
@click.option("--max-failures", metavar="N|P%", help="Stop when more images than this fail.")
@click.option("--retry-failed", is_flag=True, help="Try images again that could not be decoded.")
@click.option("--dhash", is_flag=True, help="Decode also images that have no dHash yet.")
@click.option("--wait", is_flag=True, help="Wait while another process writes the same file.")
@dask_option
@parts_option
@with_log
@click.pass_context
def extract(
    ctx: click.Context,
    /,
    images: DataOptions,
    backbone: list[str],
    cache: str,
    rehash: bool,
    dask: str | None,
    parts: str | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Embed images with pretrained backbones, into the cache.

    What the cache holds already is not computed again.

    \b
    Example:
      featcache extract --backbone resnet18
      featcache extract --data photos --backbone resnet18,mobilenet_v2
      featcache extract --data cells.csv --data-root scans --backbone vgg16 --image-size 320
      featcache extract --backbone vit_b_16,vit_b_16:size=384,vgg16:colour=hsv:filter=log-1.5
      featcache extract --data photos --backbone resnet50 --dask tcp://head:8786
      featcache extract --data s3://bucket/photos --backbone resnet50
    """
    from featcache.extraction.backbone import BackboneOptions
    from featcache.extraction.preprocess import check_views
    from featcache.extraction.registry import check_specs
    from featcache.images.sources import check_source
    from featcache.store.cache import Cache

    if not backbone:
        raise click.UsageError("Missing option '--backbone'. For instance --backbone resnet18", ctx)
    check_specs(backbone, BackboneOptions.among(options))
    check_views(options["view"])
    check_source(images.data or "digits")
    check_parts(parts, dask)
    Cache(cache)  # refuses a URL before images are read
    found = images.open(cache, rehash=rehash)
    note(found.describe())
    from featcache.extraction.extract import fill_cache  # imports torch, for good words only

    with cluster_at(dask) as cluster, progress_bar("images", quiet) as progress:
        options["embed"] = embedding(cluster, images.data_root, parts)
        report = fill_cache(found, backbone=backbone, cache=cache, progress=progress, **options)
    show_report(report, cache)
    if report.failed:
        ctx.exit(3)


def show_report(report: Report, cache: str) -> None:
    """What was extracted, on stdout; where the time went and what failed, on stderr."""
    from featcache.store.spec import names_of, prepared

    names = names_of([done.key for done in report.outcomes])
    for done, name in zip(report.outcomes, names, strict=True):
        what = f"{done.computed:,} computed" if done.computed else "nothing to compute"
        click.echo(f"{name}: {done.path}, {counted(done.rows, 'vector')}, {what}")
        if done.key.config:  # prepared as its config.json says
            note(f"{name}: {prepared(done.key.preprocess)}")
    if report.coverage is not None and report.coverage.found > report.coverage.distinct:
        note(f"{report.data}: {report.coverage}")
    note(report.time_line())
    if report.failed:
        click.secho(
            f"warning: {counted(len(report.failed), 'image')} failed, listed in "
            f"{cache}/{report.data}/failed.csv; for instance:",
            err=True, fg="yellow",
        )  # fmt: skip
        for id_, problem in list(report.failed.items())[:3]:
            click.echo(f"  {id_}: {problem}", err=True)
