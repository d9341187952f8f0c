"""Prune: choose feature files that nobody needs any more, and delete them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import Timeout

from featcache.store.cache import Cache
from featcache.store.entry import Entry
from featcache.store.writing import lock_for

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
            found[path] = Victim(path, path.stat().st_size, "left over by an unfinished run")
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
    return sorted(
        {path for name in names for p in patterns for path in (cache.folder / name).glob(p)}
    )
