"""featcache backbones."""

from __future__ import annotations

import click

from featcache.cli.console import show_table


@click.command()
@click.argument("part", default="")
def backbones(part: str) -> None:
    """List the backbones.

    With size and source; only those whose name contains PART, if it is given.

    \b
    Example:
      featcache backbones
      featcache backbones resnet
    """
    from featcache.errors import unknown
    from featcache.extraction.registry import BACKBONES

    found = {name: family for name, family in BACKBONES.items() if part in name}
    if not found:
        raise unknown("backbone", part, BACKBONES)
    rows = []
    for name, family in found.items():
        size = family.size(name)
        rows.append(
            (name, str(family.dim), f"{size.millions:,.1f} M", f"{size.megabytes:,.0f} MB",
             f"{size.gflops:,.2f}", f"{size.pixels} px", size.tag, family.library)
        )  # fmt: skip
    columns = ("backbone", "width", "parameters", "weights", "GFLOPs", "image", "tag", "source")
    show_table(columns, rows)
