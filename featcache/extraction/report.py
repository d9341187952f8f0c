"""Report: what an extraction did, and where the time went."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from featcache.store.key import Key


@dataclass(frozen=True)
class Outcome:
    """What extraction did for one backbone.

    Attributes
    ----------
    backbone : str
    path : Path
        The feature file.
    key : Key
    rows : int
        Distinct images with a vector in the file now.
    computed : int
        Forward passes: images embedded in this run.
    """

    backbone: str
    path: Path
    key: Key
    rows: int
    computed: int


@dataclass
class Report:
    """What an extraction did, and where the time went.

    Attributes
    ----------
    data : str
    images : int
    outcomes : list of Outcome
    failed : dict of id to problem
        Images without a vector.
    seconds : dict
        "total"; of the main thread "wait" (for decoded images), "compute", "write"; and "read"
        and "decode", summed over the loading threads, which work beside it.
    """

    data: str
    images: int
    outcomes: list[Outcome] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(
            ("total", "wait", "compute", "write", "read", "decode"), 0.0
        )
    )

    def time_line(self) -> str:
        """One line: how many images a second, and where the time went."""
        total = self.seconds["total"]
        computed = max((done.computed for done in self.outcomes), default=0)
        if not computed:
            return f"no forward pass, {total:.1f} s"
        shares = ", ".join(
            f"{name} {self.seconds[part] / total:.0%}"
            for name, part in (
                ("waiting for images", "wait"), ("computing", "compute"), ("writing", "write"),
            )
        )  # fmt: skip
        return (
            f"{computed:,} images in {total:.1f} s ({computed / total:,.1f}/s): {shares}; "
            f"beside it the loading threads spent {self.seconds['read']:.1f} s reading and "
            f"{self.seconds['decode']:.1f} s decoding"
        )
