"""featcache backbones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from featcache.cli.tables import say, show_table, table_options

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
@click.option(
    "--search",
    metavar="TEXT",
    help="Of every source: models whose name contains TEXT, or a family (dinov3, dinov2, siglip, clip, uni, virchow, h-optimus, gigapath, kaiko, lunit), with their licence; * stands for anything.",
)
@click.option("--at-hand", is_flag=True, help="Only those whose weights need no download.")
@click.option("--weights-dir", metavar="FOLDER", help="A folder of weight files, searched first. [default: $FEATCACHE_WEIGHTS]")  # fmt: skip
@table_options
def backbones(
    part: str, of_timm: bool, search: str | None, at_hand: bool, weights_dir: str | None
) -> None:
    """List the backbones.

    With the width of their vector, size, cost of an image (GFLOPs), the side of the image they
    see, their source, and whether the weights are at hand; only those whose name contains PART,
    if it is given. The models of timm are backbones too, by the name timm:MODEL[.TAG], where timm
    is installed: pip install "featcache[timm]". So are timm's models on the Hugging Face hub,
    timm:hf-hub:ORGANISATION/MODEL, and in folders, timm:local-dir:FOLDER. The full name of one of
    timm's shows also how it prepares images, and its licence.

    \b
    Example:
      featcache backbones
      featcache backbones resnet --format csv
      featcache backbones --timm inception
      featcache backbones --search dinov3
      featcache backbones timm:vit_small_patch16_dinov3.lvd1689m
    """
    if search is not None:
        found = _of_every_source(search, weights_dir)
    elif part.startswith("timm:") and not of_timm:
        found = iter([_in_full(part, weights_dir)])
    else:
        found = _of_timm(part, weights_dir) if of_timm else _of_torchvision(part, weights_dir)
    rows = [row for row in found if row["at_hand"] or not at_hand]
    licensed = ["licence"] * any("licence" in row for row in rows)
    show_table((*_COLUMNS, *licensed), [_cells(row) for row in rows], drop=_DROP, data=rows)
    for row in rows:
        if "prepared" in row:
            say(row["prepared"])
    if search is not None and search.lower() in _families():
        click.echo(f"and whatever else has that name: --search '*{search}*'", err=True)
    elif not of_timm and search is None and not licensed:
        from featcache.extraction.weight_files import packaged_at_hand
        from featcache.extraction.weights import PACKAGED

        click.echo("and the models of timm: featcache backbones --timm PART", err=True)
        if installed := [f"{name} ({PACKAGED[name].licence})" for name in packaged_at_hand()]:
            click.echo(f"with weights that pip installed: {', '.join(installed)}", err=True)


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


def _families() -> dict[str, tuple[str, ...]]:
    from featcache.extraction.registry import FAMILIES

    return FAMILIES


def _of_every_source(text: str, weights_dir: str | None) -> Iterator[dict[str, Any]]:
    """A family's models, or those whose name contains the text, of torchvision, timm and cards."""
    import importlib.util
    from fnmatch import fnmatchcase

    from featcache.errors import RecipeError, unknown
    from featcache.extraction.registry import BACKBONES, family_of
    from featcache.extraction.timm_hub import CARDS
    from featcache.extraction.timm_models import licence_of, list_timm
    from featcache.store.spec import HUB

    wanted = text.lower().removeprefix("timm:")
    pattern = wanted if "*" in wanted else f"*{wanted}*"
    timms = list_timm() if importlib.util.find_spec("timm") else []
    every = [*BACKBONES, *(f"{HUB}{one}" for one in CARDS), *timms]
    names = _families().get(wanted) or [n for n in every if fnmatchcase(n.lower(), pattern)]
    if not names:
        raise unknown("backbone", text, [*_families(), *every])
    for name in names:
        family = family_of(name)
        try:
            width, size = (
                (BACKBONES[name].dim, BACKBONES[name].size(name)) if name in BACKBONES
                else family.outline(name)  # type: ignore[union-attr]
            )  # fmt: skip
        except RecipeError:
            continue  # it sees no square of RGB, or gives no vector
        row = _row(name, family.library, width, size, weights_dir)
        yield row | {"licence": "" if name in BACKBONES else licence_of(name)}


def _in_full(text: str, weights_dir: str | None) -> dict[str, Any]:
    """One model of timm, as its spec opens it, with how it prepares images."""
    import math

    import torch

    from featcache.extraction.registry import family_of, open_backbone
    from featcache.extraction.timm_models import licence_of
    from featcache.extraction.torchvision_models import Size
    from featcache.store.spec import parse_spec, prepared
    from featcache.store.weights_folder import weights_folder

    name = parse_spec(text).name
    opened = open_backbone(text, weights="random", weights_dir=weights_dir, absent="refuse")
    side = opened.preprocess.crop
    with torch.device("meta"), torch.no_grad():  # shapes without numbers
        network = opened.build().eval()
        width = int(network(torch.zeros(1, 3, side, side)).shape[1])
    millions = sum(tensor.numel() for tensor in network.parameters()) / 1e6
    size = Size(millions, math.nan, math.nan, side, next(iter(family_of(name).published(name)), ""))
    row = _row(name, opened.library, width, size, weights_dir) | {
        "licence": licence_of(name, weights_folder(weights_dir))
    }
    return row | {"prepared": f"images: {prepared(opened.preprocess.plain())}"}


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
        *([row["licence"] or "see its page"] if "licence" in row else []),
    )  # fmt: skip
