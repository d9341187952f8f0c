"""Status: whether the cache has what is asked for, and if not, which field of the key differs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from featcache.images.manifest import Images
from featcache.store.cache import Cache
from featcache.store.coverage import Coverage
from featcache.store.file import to_digests
from featcache.store.key import Key


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
