"""Entry: one finished feature file of the cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from featcache.store.key import Key


@dataclass(frozen=True)
class Entry:
    """One finished feature file of the cache."""

    data: str
    path: Path
    key: Key
    rows: int
    dim: int
    bytes: int
    mtime: float
    called: str = ""  # the name that a user gave it, where that is not the usual one

    @property
    def selector(self) -> str:
        """What names this file and no other on the command line."""
        return f"{self.key.backbone}@{self.key.key8}"
