"""Task: what one worker was asked, and the range of rows that it is about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(eq=False)
class Range:
    """Rows that one worker embeds.

    Attributes
    ----------
    rows : list of int
        Of the manifest.
    falls : int
        Workers that were lost with it, and had written nothing.
    """

    rows: list[int]
    falls: int = 0

    @property
    def name(self) -> str:
        """As it stands in the names of part files."""
        return f"{self.rows[0]}-{self.rows[-1]}"


@dataclass(eq=False)
class Task:
    """Something that a worker was asked: to embed a range, or to check itself."""

    address: str
    future: Any
    range: Range | None
