"""Maintenance: status, verify, repair, prune and export of what the cache holds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from filelock import Timeout

from featcache.atomic import SETTLED, replacing
from featcache.csv_cells import row_writer
from featcache.errors import (
    CacheDenied,
    CacheMissing,
    CacheRefused,
    DataError,
    FeatcacheError,
    counted,
    unknown,
)
from featcache.images.manifest import Images
from featcache.store.cache import Cache, Coverage
from featcache.store.feature_file import FeatureFile, to_digests, to_hex
from featcache.store.features import Features
from featcache.store.key import Entry, Key
from featcache.store.locking import hold, lock_for, part_beside


@dataclass(frozen=True)
class Finding:
    """What verification found in one file.

    Attributes
    ----------
    path : Path
    rows : int
        Rows that were checked.
    problem : str
        "" where all is well.
    damaged : tuple of str
        Ids of the images whose rows are damaged (their sha256 where the manifest has none).
    readable : bool
        False where there is no permission: nothing is known of the file then.
    imported : bool
        Whether another tool has made the vectors.
    """

    path: Path
    rows: int
    problem: str = ""
    damaged: tuple[str, ...] = ()
    readable: bool = True
    imported: bool = False

    def __str__(self) -> str:
        if not self.problem:
            return f"ok       {self.path}, {counted(self.rows, 'row')}"
        if not self.readable:
            return f"DENIED   {self.path}: {self.problem}"
        shown = ", ".join(self.damaged[:5]) + (", …" if len(self.damaged) > 5 else "")
        return f"DAMAGED  {self.path}: {self.problem}{': ' if shown else ''}{shown}"


def verify(cache: Cache, data: str) -> list[Finding]:
    """Check every finished file of a data set: its key, its marks, and each row's checksum."""
    folder = cache.folder / data
    return [verify_file(path, _ids(cache, data)) for path in sorted(folder.glob("[!.]*.h5"))]


def verify_file(path: Path, ids: dict[str, str]) -> Finding:
    """Check one file; `ids` maps sha256 to image id."""
    try:
        with FeatureFile(path) as file:
            if path.name != f"{file.key.stem}.h5":
                return Finding(path, len(file), f"its name does not fit its key {file.key.key8}")
            if not file.complete:
                return Finding(path, len(file), "it was never finished")
            bad = np.flatnonzero(~file.good())
            if not len(bad):
                return Finding(path, len(file))
            damaged = tuple(ids.get(sha, sha) for sha in to_hex(file.digests[bad]))
            rows = ", ".join(str(row) for row in bad[:5]) + (", …" if len(bad) > 5 else "")
            problem = (
                f"{len(bad)} of {counted(len(file), 'row')} don't fit their checksum (rows {rows})"
            )
            return Finding(path, len(file), problem, damaged, imported=file.key.imported)
    except CacheDenied:
        return Finding(path, 0, "no permission to read it", readable=False)
    except CacheRefused as error:
        return Finding(path, 0, error.problem)


def repair(finding: Finding) -> str:
    """Take a damaged file out of use, so that the next extraction keeps only its good rows.

    Nothing is replaced: what an interrupted extraction has done is a part of the next one. One
    that may not be read stays as it is.

    Returns
    -------
    str
        What was done.
    """
    path = finding.path
    if not finding.readable:
        return f"{path.name} was left as it is: give yourself permission to read it"
    with hold(path):  # a writer at work would put the file back in its place
        if finding.damaged:
            partial = path.with_name(f".{path.name}.partial")
            if os.path.lexists(partial):
                partial.rename(part_beside(path, "interrupted"))
            path.rename(partial)
            what = "must be imported" if finding.imported else "will be embedded"
            return f"{counted(len(finding.damaged), 'row')} of {path.name} {what} again"
        aside = next(name for name in _names_aside(path) if not os.path.lexists(name))
        path.rename(aside)
    return f"{path.name} was renamed to {aside.name}; it will be extracted again"


def _names_aside(path: Path) -> Iterator[Path]:
    yield path.with_name(f"{path.name}.damaged")
    yield from (path.with_name(f"{path.name}.{number}.damaged") for number in count(2))


def _ids(cache: Cache, data: str) -> dict[str, str]:
    try:
        images = cache.images(data)
    except (CacheMissing, DataError):
        return {}
    return dict(zip(images.sha256.tolist(), images.ids.tolist(), strict=True))


_DAY = 86_400.0


@dataclass(frozen=True)
class Victim:
    """A file to delete.

    Attributes
    ----------
    path : Path
    bytes : int
    why : str
    """

    path: Path
    bytes: int
    why: str


def choose_victims(
    cache: Cache,
    data: Iterable[str],
    *,
    superseded: bool = False,
    older_than: float | None = None,
    max_bytes: int | None = None,
    leftovers: bool = True,
) -> list[Victim]:
    """The files that these rules would delete.

    Parameters
    ----------
    cache : Cache
    data : iterable of str
        Data sets.
    superseded : bool, default False
        Files for which a newer one differs in the weight file alone: the same data set, backbone,
        library, weights' name, layer, preprocessing, precision and stored type. Other seeds of
        random weights are other weights, and stay.
    older_than : float, optional
        Files last written more than this many days ago.
    max_bytes : int, optional
        The oldest files, until the rest is no larger than this.
    leftovers : bool, default True
        What crashed or interrupted runs left behind, and damaged files that were set aside.
    """
    names = list(data)
    entries = [entry for name in names for entry in cache.entries(name)]
    found: dict[Path, Victim] = {}
    if leftovers:
        for path in _leftovers(cache, names):
            try:
                facts = path.lstat()
            except FileNotFoundError:  # it has just taken its place
                continue
            if path.suffix != ".tmp" or time.time() - facts.st_mtime > SETTLED:
                found[path] = Victim(path, facts.st_size, "left over by an unfinished run")
    if superseded:
        newest = {_purpose(entry): entry for entry in entries}  # entries come oldest first
        for entry in entries:
            if newest[_purpose(entry)] is not entry:
                newer = newest[_purpose(entry)].selector
                found[entry.path] = Victim(entry.path, entry.bytes, f"superseded by {newer}")
    if older_than is not None:
        for entry in entries:
            days = (time.time() - entry.mtime) / _DAY
            if days > older_than:
                found[entry.path] = Victim(entry.path, entry.bytes, f"{days:.0f} days old")
    if max_bytes is not None:
        kept = [entry for entry in entries if entry.path not in found]
        total = sum(entry.bytes for entry in kept)
        for entry in sorted(kept, key=lambda entry: entry.mtime):
            if total <= max_bytes:
                break
            total -= entry.bytes
            found[entry.path] = Victim(entry.path, entry.bytes, "to keep within the size")
    return list(found.values())


def delete(victims: Iterable[Victim]) -> list[Victim]:
    """Delete files, but not those that another process is writing; what was deleted."""
    gone = []
    for victim in victims:
        stem = victim.path.name.removeprefix(".").split(".h5")[0]
        try:
            with lock_for(victim.path.with_name(f"{stem}.h5")).acquire(timeout=0):
                victim.path.unlink(missing_ok=True)
                gone.append(victim)
        except Timeout:
            continue
    return gone


def _purpose(entry: Entry) -> tuple[str, str]:
    sha256 = entry.key.weights_sha256
    seed = sha256 if sha256.startswith("random:") else ""
    return entry.data, replace(entry.key, weights_sha256=seed, format=0).json()


def _leftovers(cache: Cache, names: Iterable[str]) -> list[Path]:
    patterns = (".*.partial", ".*.partial.*", ".*.tmp", "*.damaged")
    found = {path for name in names for p in patterns for path in (cache.folder / name).glob(p)}
    return sorted(path for path in found if path.is_symlink() or not path.is_dir())


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
    with replacing(path) as temporary:
        _FORMATS[path.suffix](features, temporary)
    return path


def _columns(features: Features) -> list[str]:
    return [
        f"{name}_{i}"
        for name, width in zip(features.names, features.blocks, strict=True)
        for i in range(width)
    ]


def _npz(features: Features, path: Path) -> None:
    with path.open("wb") as file:  # to a path without its ending it would add that
        np.savez(
            file, X=features.X, y=features.y, ids=features.ids, groups=features.groups,
            split=features.split, blocks=np.array(features.blocks), names=np.array(features.names),
        )  # fmt: skip


def _csv(features: Features, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        write = row_writer(file)
        write(["id", "label", "group", "split", *_columns(features)])
        labels = zip(features.ids, features.y, features.groups, features.split, strict=True)
        for facts, row in zip(labels, features.X, strict=True):
            # str of a float32 is the shortest text that reads back as the same float32
            write([*facts, *(str(value) for value in row)])


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


@dataclass(frozen=True)
class Status:
    """What the cache has of one backbone.

    Attributes
    ----------
    backbone : str
    state : {"HIT", "PARTIAL", "MISS"}
    coverage : Coverage
        Images that can't be decoded count as failed, and are not waited for.
    path : Path
        The feature file, there or not.
    nearest : Path or None
        On a miss, the file of the same backbone whose key differs least.
    differences : tuple of str
        In which fields, as `preprocess.resize 256 → 224`: what it has → what is asked.
    """

    backbone: str
    state: str
    coverage: Coverage
    path: Path
    nearest: Path | None = None
    differences: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.state != "MISS":
            return f"{self.backbone}: {self.state}, {self.coverage}, {self.path}"
        if self.nearest is None:
            return f"{self.backbone}: MISS, never extracted"
        return f"{self.backbone}: MISS, {self.nearest} differs: {'; '.join(self.differences)}"

    def row(self) -> dict[str, Any]:
        """The same by column."""
        return {
            "backbone": self.backbone,
            "state": self.state,
            "embedded": self.coverage.embedded,
            "failed": self.coverage.failed,
            "missing": self.coverage.missing,
            "path": str(self.path),
            "nearest": None if self.nearest is None else str(self.nearest),
            "differences": "; ".join(self.differences),
        }


def status(cache: Cache, images: Images, key: Key) -> Status:
    """What the cache has of these images under a key."""
    path = cache.path(images.name, key)
    there = ~cache.missing(images.name, key, to_digests(images.sha256))
    coverage = Coverage.of(images, there, cache.failed(images.name))
    if path.is_file():
        state = "PARTIAL" if coverage.missing or not coverage.embedded else "HIT"
        return Status(key.backbone, state, coverage, path)
    entries = [e for e in cache.entries(images.name) if e.key.backbone == key.backbone]
    if not entries:
        return Status(key.backbone, "MISS", coverage, path)
    nearest = min(entries, key=lambda entry: len(entry.key.differences(key)))
    differences = tuple(nearest.key.differences(key))
    return Status(key.backbone, "MISS", coverage, path, nearest.path, differences)
