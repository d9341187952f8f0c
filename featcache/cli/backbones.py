"""featcache backbones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from featcache.cli.tables import show_table, table_options

if TYPE_CHECKING:
    from featcache.extraction.torchvision_models import Size

_COLUMNS = ("backbone", "width", "parameters", "weights", "GFLOPs", "image", "tag", "source", "at hand")  # fmt: skip
_DROP = ("source", "weights", "tag", "image")


@click.command()
@click.argument("part", default="")
@click.option(
    "--timm",
    "of_timm",
    is_flag=True,
    help="Of timm's models, with every tag of their weights; PART is needed.",
)
@click.option("--at-hand", is_flag=True, help="Only those whose weights need no download.")
@click.option("--weights-dir", metavar="FOLDER", help="A folder of weight files, searched first. [default: $FEATCACHE_WEIGHTS]")  # fmt: skip
@table_options
def backbones(part: str, of_timm: bool, at_hand: bool, weights_dir: str | None) -> None:
    """List the backbones.

    With the width of their vector, size, cost of an image (GFLOPs), the side of the image they
    see, their source, and whether the weights are at hand; only those whose name contains PART,
    if it is given. The models of timm are backbones too, by the name timm:MODEL[.TAG], where timm
    is installed: pip install "featcache[timm]".

    \b
    Example:
      featcache backbones
      featcache backbones resnet --format csv
      featcache backbones --timm inception
    """
    found = _of_timm(part, weights_dir) if of_timm else _of_torchvision(part, weights_dir)
    rows = [row for row in found if row["at_hand"] or not at_hand]
    show_table(_COLUMNS, [_cells(row) for row in rows], drop=_DROP, data=rows)
    if not of_timm:
        click.echo("and the models of timm: featcache backbones --timm PART", err=True)


def _of_torchvision(part: str, weights_dir: str | None) -> Iterator[dict[str, Any]]:
    from featcache.errors import unknown
    from featcache.extraction.registry import BACKBONES

    names = [name for name in BACKBONES if part in name]
    if not names:
        raise unknown("backbone", part, BACKBONES, "Those of timm: featcache backbones --timm PART")
    for name in names:
        family = BACKBONES[name]
        yield _row(name, family.library, family.dim, family.size(name), weights_dir)


def _of_timm(part: str, weights_dir: str | None) -> Iterator[dict[str, Any]]:
    from featcache.errors import RecipeError, unknown
    from featcache.extraction.timm_models import PREFIX, Timm, list_timm

    part = part.removeprefix(PREFIX)
    if not part:
        raise click.UsageError(
            "timm has more than a thousand models: say a part of the name, for instance\n"
            "featcache backbones --timm inception"
        )
    names = list_timm(part)
    if not names:
        raise unknown("timm model", part, (name.removeprefix(PREFIX) for name in list_timm()))
    for name in names:
        try:
            width, size = Timm().outline(name)
        except RecipeError:
            continue  # it sees no square of RGB, or gives no vector
        yield _row(name, Timm.library, width, size, weights_dir)


def _row(
    name: str, library: str, width: int, size: Size, weights_dir: str | None
) -> dict[str, Any]:
    from featcache.errors import WeightsError
    from featcache.extraction.weight_files import locate

    try:
        at_hand = locate(name, weights_dir).path is not None
    except WeightsError:  # none are published
        at_hand = False
    return {
        "backbone": name,
        "width": width,
        "parameters": round(size.millions * 1e6),
        "megabytes": _known(size.megabytes),
        "gflops": _known(size.gflops),
        "pixels": size.pixels,
        "tag": size.tag,
        "source": library,
        "at_hand": at_hand,
    }


def _known(value: float) -> float | None:
    """None for NaN, which JSON has not."""
    return None if value != value else value


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    megabytes = "–" if row["megabytes"] is None else f"{row['megabytes']:,.0f} MB"
    gflops = "–" if row["gflops"] is None else f"{row['gflops']:,.2f}"
    return (
        row["backbone"], str(row["width"]), f"{row['parameters'] / 1e6:,.1f} M", megabytes, gflops,
        f"{row['pixels']} px", row["tag"], row["source"], "yes" if row["at_hand"] else "",
    )  # fmt: skip
