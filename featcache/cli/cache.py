"""featcache cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.cli.completion import completer, data_sets
from featcache.cli.console import note
from featcache.cli.options import (
    DataOptions,
    backbone_option,
    cache_option,
    data_options,
    extract_options,
    images_as_they_are,
    names_data_set,
    readable_images,
    with_log,
)
from featcache.cli.tables import (
    format_option,
    print_records,
    say,
    show_table,
    table_format,
    table_options,
)
from featcache.errors import DataError, counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featcache.images.manifest import Images
    from featcache.store.cache import Cache
    from featcache.store.key import Key

_DATA = click.option(
    "--data",
    metavar="NAME",
    shell_complete=completer(data_sets),
    help="A data set of the cache; all by default.",
)


@click.group()
def cache() -> None:
    """Look after the cached features.

    \b
    Example:
      featcache cache ls
      featcache cache status --data photos --backbone resnet18
    """


@cache.command()
@cache_option
@table_options
@with_log
def ls(cache: str, quiet: bool) -> None:
    """List the files of the cache.

    \b
    Example:
      featcache cache ls
    """
    from featcache.store.cache import Cache
    from featcache.store.spec import options_of

    store = Cache(cache)
    entries = [entry for name in _data_sets(store, None) for entry in store.entries(name)]
    rows = [
        (e.data, e.selector, e.key.weights, f"{options_of(e.key).get('size', '?')} px", e.key.precision,
         _unusual(e.key), f"{e.rows:,}", str(e.dim), f"{e.bytes / 1e6:,.1f} MB")
        for e in entries
    ]  # fmt: skip
    columns = (
        "data",
        "backbone@key",
        "weights",
        "size",
        "precision",
        "options",
        "rows",
        "width",
        "on disk",
    )
    show_table(columns, rows, drop=("width", "size", "options", "weights"))


@cache.command()
@data_options
@backbone_option
@extract_options
@cache_option
@click.option("--rehash", is_flag=True, help="Read every image again to see whether it changed.")
@format_option
@with_log
def status(
    images: DataOptions,
    backbone: list[str],
    cache: str,
    rehash: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Say what `extract` with the same options would find: HIT, PARTIAL or MISS, and why.

    Without --backbone, every file of the data set is held against the images as they are now;
    without --data, of the only data set in the cache. --data takes a data set's name too.

    \b
    Example:
      featcache cache status --data photos --backbone resnet18 --image-size 320
    """
    from featcache.extraction.backbone import BackboneOptions
    from featcache.extraction.registry import check_specs
    from featcache.store.cache import Cache
    from featcache.store.maintenance import status as status_of
    from featcache.store.spec import IMPORTED, names_of

    imported = [name for name in backbone if name.startswith(IMPORTED)]
    others = [name for name in backbone if name not in imported]
    if others:
        check_specs(others, BackboneOptions.among(options))
    store, data = Cache(cache), images.data
    if store.data_sets() if data is None else names_data_set(store, data):
        now = images_as_they_are(store, data or images.name, rehash)
    else:
        now = images.open(cache, rehash=rehash, download=False)
    note(now.describe())
    keys = [entry.key for entry in store.entries(now.name)]
    if backbone:
        found = store.choose(now.name, imported) if imported else []
        keys = [*(entry.key for entry in found), *_wanted(store, now, others, keys, options)]
    states = [
        replace(status_of(store, now, key), backbone=called)
        for key, called in zip(keys, names_of(keys), strict=True)
    ]
    if table_format() != "table":
        rows = [one.row() for one in states]
        print_records(list(rows[0]) if rows else [], rows, table_format())
        return
    for one in states:
        say(str(one))


def _wanted(
    store: Cache,
    images: Images,
    names: Sequence[str],
    there: Sequence[Key],
    options: dict[str, Any],
) -> list[Key]:
    """The keys that `extract` would fill for these backbones and options."""
    if not names:
        return []
    from featcache.extraction.backbone import BackboneOptions, as_cached
    from featcache.extraction.engine import likely_precision, open_engine
    from featcache.extraction.extract import with_views
    from featcache.extraction.network import INT8
    from featcache.extraction.quantising import calibrated
    from featcache.extraction.registry import open_backbones
    from featcache.extraction.unique_images import UniqueImages
    from featcache.extraction.weights import NOT_AT_HAND

    how = ("device", "precision", "engine", "batch_size")
    engine = open_engine(*(options[name] for name in how))
    opened = open_backbones(names, BackboneOptions.among(options), absent="name")
    for one in opened:
        if one.weights_sha256.startswith(NOT_AT_HAND):
            note(f"{one.name}: its weights {one.weights} are not at hand; extract downloads them")
    chosen = [as_cached(one, there) for one in opened]
    chosen += with_views(chosen, options["view"])
    unique = UniqueImages(images, store)
    if engine.precision == INT8:
        chosen = calibrated(chosen, store, unique)
    return [one.key(likely_precision(engine, one, store, unique)) for one in chosen]


@cache.command()
@_DATA
@cache_option
@click.option(
    "--deep",
    type=click.IntRange(1),
    metavar="N",
    help="Also embed N images of each file again and compare; of one data set.",
)
@click.option(
    "--source",
    metavar="SPEC",
    help="For --deep: where the images are, as for extract --data; by default where they were.",
)
@click.option("--weights-dir", metavar="FOLDER", help="For --deep: a folder of weight files.")
@click.option(
    "--repair",
    is_flag=True,
    help="Take damaged files out of use; extract then redoes what is damaged.",
)
@with_log
@click.pass_context
def verify(
    ctx: click.Context,
    /,
    data: str | None,
    cache: str,
    deep: int | None,
    source: str | None,
    weights_dir: str | None,
    repair: bool,
    quiet: bool,
) -> None:
    """Read every byte of the feature files and locate what is damaged.

    Exit code 4 where something is.

    \b
    Example:
      featcache cache verify
      featcache cache verify --data photos --deep 20 --source photos
    """  # fmt: skip
    from featcache.store.cache import Cache
    from featcache.store.maintenance import repair as take_out
    from featcache.store.maintenance import verify as verify_files

    store = Cache(cache)
    findings = [f for name in _data_sets(store, data) for f in verify_files(store, name)]
    for finding in findings:
        click.echo(finding)
        if repair and finding.problem:
            click.echo(f"         {take_out(finding)}")
    bad = any(finding.problem for finding in findings)
    if deep:
        from featcache.extraction.consistency import deep_verify

        where = source or readable_images(store, data)
        for checked in deep_verify(where, deep, cache=cache, weights_dir=weights_dir):
            click.echo(checked)
            bad |= not checked.agrees
    if bad:
        ctx.exit(4)


@cache.command()
@_DATA
@cache_option
@click.option(
    "--superseded",
    is_flag=True,
    help="Files that a newer one of another weight file replaces: backbone, weights' name, layer, "
    "preprocessing (size, view) and precision are the same.",
)
@click.option(
    "--older-than", type=click.FloatRange(0), metavar="DAYS", help="Files last written longer ago."
)
@click.option(
    "--max-size",
    type=click.FloatRange(0),
    metavar="GB",
    help="The oldest files, until the rest fits.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@with_log
def prune(
    data: str | None,
    cache: str,
    superseded: bool,
    older_than: float | None,
    max_size: float | None,
    dry_run: bool,
    quiet: bool,
) -> None:
    """Delete feature files that are not needed any more.

    Always what unfinished runs left behind; finished files only by the rules you name.

    \b
    Example:
      featcache cache prune --superseded --dry-run
      featcache cache prune --older-than 90 --max-size 20
    """  # fmt: skip
    from featcache.store.cache import Cache
    from featcache.store.maintenance import choose_victims, delete

    store = Cache(cache)
    victims = choose_victims(
        store,
        _data_sets(store, data),
        superseded=superseded,
        older_than=older_than,
        max_bytes=None if max_size is None else int(max_size * 1e9),
    )
    gone = victims if dry_run else delete(victims)
    verb = "would delete" if dry_run else "deleted"
    for victim in gone:
        click.echo(f"{verb} {victim.path}, {victim.bytes / 1e6:,.1f} MB: {victim.why}")
    total = sum(victim.bytes for victim in gone) / 1e6
    click.echo(f"{verb} {counted(len(gone), 'file')}, {total:,.1f} MB")
    if len(gone) < len(victims):
        click.echo(
            f"{counted(len(victims) - len(gone), 'file')} left that another process is writing",
            err=True,
        )


@cache.command()
@click.argument("path", type=click.Path(), metavar="FILE")
@_DATA
@backbone_option
@click.option("--force", is_flag=True, help="Overwrite FILE if it is there.")
@cache_option
@with_log
def export(
    path: str, data: str | None, backbone: list[str], force: bool, cache: str, quiet: bool
) -> None:
    """Write features, aligned with ids and labels, to FILE: .npz, .parquet or .csv.

    \b
    Example:
      featcache cache export photos.parquet --data photos
    """
    from featcache.cli.options import DataOptions, cached_features
    from featcache.store.maintenance import export as write

    if Path(path).is_file() and not force:
        raise DataError(f"{path} is there already", "Name another file, or pass --force.")
    features = cached_features(DataOptions(data), backbone, cache)
    write(features, path)
    click.echo(
        f"{path}: {counted(len(features), 'row')}, {counted(features.X.shape[1], 'column')} of features"
    )


def _unusual(key: Key) -> str:
    """The options of a file that are not the usual ones."""
    from featcache.store.spec import DEFAULTS, options_of

    made = options_of(key)
    odd = {name: made[name] for name, usual in DEFAULTS.items() if made[name] != usual}
    view = key.preprocess.get("view", "none")
    odd |= {} if view == "none" else {"view": view}
    return " ".join(f"{name}={value}" for name, value in odd.items())


def _data_sets(store: Any, data: str | None) -> list[str]:
    """The one named, or all; a note on those without a list of images."""
    known = store.data_sets()
    if data and data not in known:
        store.images(data)  # says what there is
    names = [data] if data else known
    for name in names:
        if not store.has_images(name):
            note(f"{name}: no images.csv; the next extract writes it again")
    return names
