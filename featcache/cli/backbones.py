"""featcache backbones."""

from __future__ import annotations

import csv
import json
import sys
from typing import Any

import click

from featcache.cli.console import show_table

_COLUMNS = ("backbone", "width", "parameters", "weights", "GFLOPs", "image", "tag", "source", "at hand")  # fmt: skip


@click.command()
@click.argument("part", default="")
@click.option("--at-hand", is_flag=True, help="Only those whose weights need no download.")
@click.option("--weights-dir", metavar="FOLDER", help="A folder of weight files, searched first. [default: $FEATCACHE_WEIGHTS]")  # fmt: skip
@click.option("--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True, help="How to print it.")  # fmt: skip
def backbones(part: str, at_hand: bool, weights_dir: str | None, form: str) -> None:
    """List the backbones.

    With the width of their vector, size, cost of an image (GFLOPs), the side of the image they
    see, their source, and whether the weights are at hand; only those whose name contains PART,
    if it is given.

    \b
    Example:
      featcache backbones
      featcache backbones resnet --format csv
    """
    from featcache.errors import unknown
    from featcache.extraction.registry import BACKBONES

    names = [name for name in BACKBONES if part in name]
    if not names:
        raise unknown("backbone", part, BACKBONES)
    rows = [row for name in names if (row := _row(name, weights_dir))["at_hand"] or not at_hand]
    if form == "json":
        click.echo(json.dumps(rows, indent=1))
    elif form == "csv":
        writer = csv.DictWriter(sys.stdout, rows[0] if rows else ("backbone",), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        show_table(_COLUMNS, [_cells(row) for row in rows])


def _row(name: str, weights_dir: str | None) -> dict[str, Any]:
    from featcache.extraction.registry import BACKBONES
    from featcache.extraction.weight_files import locate

    family = BACKBONES[name]
    size = family.size(name)
    return {
        "backbone": name,
        "width": family.dim,
        "parameters": round(size.millions * 1e6),
        "megabytes": _known(size.megabytes),
        "gflops": _known(size.gflops),
        "pixels": size.pixels,
        "tag": size.tag,
        "source": family.library,
        "at_hand": locate(name, weights_dir).path is not None,
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
