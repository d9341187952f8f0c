"""featcache rank."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featcache.cli.console import note
from featcache.cli.options import (
    DataOptions,
    backbone_option,
    cache_option,
    cached_features,
    data_options,
    reports_option,
    with_log,
)
from featcache.cli.tables import say, show_table, table_options
from featcache.csv_cells import row_writer
from featcache.errors import counted

if TYPE_CHECKING:
    from featcache.fitting.transferability import Ranking


@click.command()
@data_options
@backbone_option
@click.option(
    "--k",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="Nearest neighbours that vote.",
)
@click.option(
    "--queries",
    type=click.IntRange(1),
    default=2000,
    show_default=True,
    metavar="N",
    help="Most rows to look neighbours up for.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Of the sample of queries.",
)
@cache_option
@reports_option
@table_options
@with_log
def rank(
    images: DataOptions,
    backbone: list[str],
    k: int,
    queries: int,
    seed: int,
    cache: str,
    reports: str,
    quiet: bool,
) -> None:
    """Rank backbones by their features, before any head is fitted.

    On training rows only: LogME (higher is better), the leave-one-out accuracy of the nearest
    neighbours, and how alike two backbones are (linear CKA, 1 is the same). Data without a split
    of its own is ranked on all rows: don't report folds of the same rows for what was picked so.

    \b
    Example:
      featcache rank
      featcache rank --backbone resnet18,mobilenet_v2 --k 20
    """
    features = cached_features(images, backbone, cache)
    from featcache.fitting.transferability import rank as rank_backbones

    found = rank_backbones(features, k, queries, seed)
    rows = [
        (str(place + 1), found.names[place], str(found.widths[place]), f"{found.logme[place]:.4f}",
         f"{found.knn[place]:.4f}", *(f"{value:.3f}" for value in found.cka[place]))
        for place in range(len(found.names))
    ]  # fmt: skip
    header = (
        "#",
        "backbone",
        "width",
        "LogME",
        f"{k} nearest",
        *(f"CKA {n}" for n in found.names),
    )
    show_table(header, rows, f"{features.data}, {counted(found.rows, 'training row')}",
               drop=[f"CKA {name}" for name in reversed(found.names)])  # fmt: skip
    for sentence in found.conclusions():
        say(sentence)
    for path in write_ranking(Path(reports) / features.data, found):
        note(str(path))


def write_ranking(folder: Path, ranking: Ranking) -> list[Path]:
    """Write ranking.json and ranking.csv; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    values = [[None if math.isnan(v) else v for v in row] for row in ranking.cka.tolist()]
    plain = {
        "rows": ranking.rows,
        "queries": ranking.queries,
        "backbones": [
            {"name": name, "width": width, "logme": evidence, "knn": near}
            for name, width, evidence, near in zip(
                ranking.names, ranking.widths, ranking.logme, ranking.knn, strict=True
            )
        ],
        "cka": {"names": list(ranking.names), "values": values},
    }
    paths = [folder / "ranking.json", folder / "ranking.csv"]
    paths[0].write_text(json.dumps(plain, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    with paths[1].open("w", newline="", encoding="utf-8") as file:
        write = row_writer(file)
        write(["backbone", "width", "logme", "knn", *(f"cka_{n}" for n in ranking.names)])
        facts = (ranking.names, ranking.widths, ranking.logme, ranking.knn, values)
        for row in zip(*facts, strict=True):
            write([*row[:4], *row[4]])
    return paths
