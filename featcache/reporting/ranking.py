"""Ranking files: what the features alone say of the backbones, as JSON and CSV."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

from featcache.fitting.ranking import Ranking


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
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["backbone", "width", "logme", "knn", *(f"cka_{n}" for n in ranking.names)])
        facts = (ranking.names, ranking.widths, ranking.logme, ranking.knn, values)
        writer.writerows([[*row[:4], *row[4]] for row in zip(*facts, strict=True)])
    return paths
