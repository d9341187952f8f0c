"""Status: whether the cache has what is asked for, and if not, which field of the key differs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from featcache.errors import counted
from featcache.images.manifest import Images
from featcache.store.cache import Cache
from featcache.store.file import to_digests
from featcache.store.key import Key


@dataclass(frozen=True)
class Status:
    """What the cache has of one backbone.

    Attributes
    ----------
    backbone : str
    state : {"HIT", "PARTIAL", "MISS"}
    have, want : int
        Distinct images with a vector, and distinct images.
    path : Path
        The feature file, there or not.
    nearest : Path or None
        On a miss, the file of the same backbone whose key differs least.
    differences : tuple of str
        In which fields, as `preprocess.resize 256 → 224`: what it has → what is asked.
    """

    backbone: str
    state: str
    have: int
    want: int
    path: Path
    nearest: Path | None = None
    differences: tuple[str, ...] = ()

    def __str__(self) -> str:
        images = counted(self.want, "image")
        if self.state == "HIT":
            return f"{self.backbone}: HIT, {images}, {self.path}"
        if self.state == "PARTIAL":
            return f"{self.backbone}: PARTIAL, {self.have:,} of {images}, {self.path}"
        if self.nearest is None:
            return f"{self.backbone}: MISS, never extracted"
        return f"{self.backbone}: MISS, {self.nearest} differs: {'; '.join(self.differences)}"


def status(cache: Cache, images: Images, key: Key) -> Status:
    """What the cache has of these images under a key."""
    digests = to_digests(images.sha256[images.distinct()])
    path = cache.path(images.name, key)
    have = len(digests) - int(cache.missing(images.name, key, digests).sum())
    if have == len(digests):
        return Status(key.backbone, "HIT", have, have, path)
    if path.is_file():
        return Status(key.backbone, "PARTIAL", have, len(digests), path)
    entries = [e for e in cache.entries(images.name) if e.key.backbone == key.backbone]
    if not entries:
        return Status(key.backbone, "MISS", 0, len(digests), path)
    nearest = min(entries, key=lambda entry: len(entry.key.differences(key)))
    differences = tuple(nearest.key.differences(key))
    return Status(key.backbone, "MISS", 0, len(digests), path, nearest.path, differences)
