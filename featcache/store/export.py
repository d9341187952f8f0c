"""Export: features as one file that other tools read."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np

from featcache.errors import FeatcacheError, unknown
from featcache.store.features import Features


def export(features: Features, path: str | Path) -> Path:
    """Write features, aligned with ids and labels, in the format that the ending names.

    Parameters
    ----------
    features : Features
    path : str or Path
        `.npz` (arrays X, y, ids, groups, split, blocks, names), `.parquet` or `.csv` (a row for
        each image: id, label, group, split, and a column for each number, as `resnet18_0`).
    """
    path = Path(path)
    if path.suffix not in _FORMATS:
        raise unknown("format", path.suffix or str(path), _FORMATS)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp{path.suffix}")
    try:
        _FORMATS[path.suffix](features, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _columns(features: Features) -> list[str]:
    return [
        f"{name}_{i}"
        for name, width in zip(features.names, features.blocks, strict=True)
        for i in range(width)
    ]


def _npz(features: Features, path: Path) -> None:
    np.savez(
        path, X=features.X, y=features.y, ids=features.ids, groups=features.groups,
        split=features.split, blocks=np.array(features.blocks), names=np.array(features.names),
    )  # fmt: skip


def _csv(features: Features, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "label", "group", "split", *_columns(features)])
        labels = zip(features.ids, features.y, features.groups, features.split, strict=True)
        for facts, row in zip(labels, features.X, strict=True):
            # str of a float32 is the shortest text that reads back as the same float32
            writer.writerow([*facts, *(str(value) for value in row)])


def _parquet(features: Features, path: Path) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise FeatcacheError(
            "writing Parquet needs pyarrow", 'pip install "featcache[parquet]"'
        ) from None
    facts = {
        "id": features.ids, "label": features.y, "group": features.groups, "split": features.split,
    }  # fmt: skip
    arrays = [pa.array(column.tolist()) for column in facts.values()]
    arrays += [pa.array(features.X[:, i]) for i in range(features.X.shape[1])]
    pq.write_table(pa.table(arrays, names=[*facts, *_columns(features)]), path)


_FORMATS: dict[str, Callable[[Features, Path], None]] = {
    ".npz": _npz,
    ".parquet": _parquet,
    ".csv": _csv,
}
