"""featcache weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featcache.cli.completion import backbones, completer
from featcache.cli.console import note
from featcache.cli.options import with_log
from featcache.cli.tables import show_table, table_format, table_options
from featcache.errors import WeightsError, counted

if TYPE_CHECKING:
    from featcache.extraction.weight_files import WeightFile

_FOLDER = click.option("--weights-dir", metavar="FOLDER", help="A folder of weight files, searched first. [default: $FEATCACHE_WEIGHTS]")  # fmt: skip


@click.group()
def weights() -> None:
    """See, check and add weight files.

    They are looked for in --weights-dir, else in the folder that FEATCACHE_WEIGHTS names, then
    where torch and timm keep what they download, then in installed packages that ship some.

    \b
    Example:
      featcache weights list
      featcache weights verify
      featcache weights add resnet18 downloads/resnet18-f37072fd.pth
    """


@weights.command("list")
@click.argument("names", nargs=-1, metavar="[BACKBONE]...", shell_complete=completer(backbones))
@_FOLDER
@click.option("--all", "everything", is_flag=True, help="Also backbones without weights at hand.")
@table_options
@with_log
def list_(names: tuple[str, ...], weights_dir: str | None, everything: bool, quiet: bool) -> None:
    """List which weights are at hand, and where.

    \b
    Example:
      featcache weights list
      featcache weights list --all --format json
    """
    from featcache.extraction.weight_files import locate_all

    found = locate_all(names, weights_dir)
    shown = [file for file in found if file.path or file.problem or everything or names]
    plain = [{"backbone": f.backbone, "path": None if f.path is None else str(f.path),
              "bytes": f.path.stat().st_size if f.path else None, "official": f.official,
              "wanted": f.wanted.file, "url": f.wanted.url, "problem": f.problem,
              "package": f.package and f.package.package,
              "licence": f.package and f.package.licence}
             for f in shown]  # fmt: skip
    rows = [
        (f.backbone, _kind(f), _size(f), str(f.path or f.problem or f.wanted.url)) for f in shown
    ]
    if rows or table_format() != "table":
        show_table(("backbone", "weights", "size", "where"), rows, data=plain)
    note(f"{sum(file.path is not None for file in found)} of {counted(len(found), 'backbone')} have weights "
         "at hand; the others are downloaded when they are first needed")  # fmt: skip


@weights.command()
@click.argument("name", metavar="BACKBONE", shell_complete=completer(backbones))
@_FOLDER
@with_log
def path(name: str, weights_dir: str | None, quiet: bool) -> None:
    """Print the path of a backbone's weight file; exit code 1 where there is none.

    \b
    Example:
      featcache weights path resnet18
    """
    from featcache.extraction.weight_files import locate

    found = locate(name, weights_dir)
    if found.path is None:
        raise WeightsError(
            found.problem or f"{name} has no weights at hand ({found.wanted.file})",
            f"Fetch {found.wanted.url}\nand: featcache weights add {name} {found.wanted.file}",
        )
    click.echo(found.path)


@weights.command()
@click.argument("names", nargs=-1, metavar="[BACKBONE]...", shell_complete=completer(backbones))
@_FOLDER
@with_log
@click.pass_context
def verify(
    ctx: click.Context, /, names: tuple[str, ...], weights_dir: str | None, quiet: bool
) -> None:
    """Check weight files: the published hash, and that they load into the network.

    Those of the backbones named, or all at hand. Exit code 1 where one is bad.

    \b
    Example:
      featcache weights verify
      featcache weights verify resnet18 vgg16
    """
    from featcache.extraction.weight_files import locate_all

    found = [file for file in locate_all(names, weights_dir) if names or file.path or file.problem]
    checks = [_check(file) for file in found]
    for check in checks:
        click.echo(f"{'OK ' if check.good else 'BAD'} {check.backbone}: {check.text}")
        if check.remedy:
            click.echo(f"    {check.remedy}")
    if not found:
        note("no weights at hand. Add some: featcache weights add BACKBONE FILE")
    if not all(check.good for check in checks):
        ctx.exit(1)


@weights.command()
@click.argument("name", metavar="BACKBONE", shell_complete=completer(backbones))
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_FOLDER
@click.option("--replace", is_flag=True, help="Overwrite another file of that name.")
@with_log
def add(name: str, file: Path, weights_dir: str | None, replace: bool, quiet: bool) -> None:
    """Check a weight file, and copy it to where `--weights auto` finds it.

    \b
    Example:
      featcache weights add resnet18 downloads/resnet18-f37072fd.pth
      featcache weights add resnet50 mine.safetensors --weights-dir ~/weights
    """
    from featcache.extraction.weight_files import add as take_in

    click.echo(take_in(name, file, weights_dir, replace))


@dataclass(frozen=True)
class _Check:
    backbone: str
    good: bool
    text: str
    remedy: str = ""


def _check(file: WeightFile) -> _Check:
    from featcache.extraction.weight_files import verify as check

    try:
        return _Check(file.backbone, True, f"{file.path}: {check(file)}")
    except WeightsError as error:
        return _Check(file.backbone, False, error.problem, error.remedy)


def _kind(file: WeightFile) -> str:
    if file.path is None:
        return "unclear" if file.problem else "missing"
    if file.package:
        return f"package, {file.package.licence}"
    return "published" if file.official else "local"


def _size(file: WeightFile) -> str:
    return "–" if file.path is None else f"{file.path.stat().st_size / 1e6:,.0f} MB"
