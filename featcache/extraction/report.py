"""Report: what an extraction did, and where the time went."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featcache.errors import counted
from featcache.images.dhash import Hashes
from featcache.store.cache import Coverage
from featcache.store.key import Key

_PARTS = ("total", "prepare", "compute", "wait", "blocked", "read", "decode", "write")
_SHARES = {
    "prepare": "preparing", "compute": "computing", "wait": "waiting for images",
    "blocked": "waiting for the disk", "away": "waiting for workers",
}  # fmt: skip
_BESIDE = ("read", "decode", "write")
_HELP = {
    "preparing": "it is paid once; more images in one run share it",
    "computing": "a GPU, --engine openvino or a smaller --image-size would help",
    "decoding": "more processor cores (--workers), or smaller image files would help",
    "reading": "a faster disk, or images on the local one would help",
    "writing": "a cache folder on a faster disk would help",
    "waiting for workers": "they start up once; more images in one run share it",
}


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
    coverage : Coverage or None
        Of the images, known at the end.
    seconds : dict
        "total"; "prepare" (building networks, and the checks before the first batch); "compute";
        what the networks waited for, "wait" (decoded images) and "blocked" (the writer); and
        of the workers beside them "read" and "decode", summed over all, and "write".
    workers : int
        Processes that shared the work; seconds are summed over them, but "total" and "prepare".
    hashes : list of (int array of shape (k,), uint8 array of shape (k, 32))
        Rows of the manifest that were decoded, and the dHash of each.
    """

    data: str
    images: int
    outcomes: list[Outcome] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_PARTS, 0.0))
    workers: int = 1
    coverage: Coverage | None = None
    hashes: list[tuple[NDArray[np.intp], Hashes]] = field(default_factory=list)

    @property
    def selectors(self) -> list[str]:
        """What names each backbone's file on the command line; of several views the first."""
        first: dict[str, str] = {}
        for done in self.outcomes:
            plain = replace(done.key, preprocess={**done.key.preprocess, "view": "none"})
            first.setdefault(plain.digest, f"{done.backbone}@{done.key.digest}")
        return list(first.values())

    @property
    def computed(self) -> int:
        """Images embedded, by the backbone that had most to do."""
        return max((done.computed for done in self.outcomes), default=0)

    @property
    def bottleneck(self) -> str:
        """What took the time.

        "preparing", "computing", "decoding", "reading", "writing" or "waiting for workers".
        """
        seconds = self._shares()
        loading = "reading" if seconds["read"] > seconds["decode"] else "decoding"
        shares = {
            "computing": seconds["compute"],
            "preparing": seconds["prepare"],
            loading: seconds["wait"],
            "writing": seconds["blocked"],
            "waiting for workers": seconds.get("away", 0.0),
        }
        return max(shares, key=lambda name: shares[name])

    def _shares(self) -> dict[str, float]:
        """The seconds of one process, on the average; with workers also those without work."""
        found = {
            part: spent if part in ("total", "prepare") else spent / self.workers
            for part, spent in self.seconds.items()
        }
        if self.workers > 1:
            known = sum(found[part] for part in ("prepare", "compute", "wait", "blocked"))
            found["away"] = max(0.0, found["total"] - known)
        return found

    def time_line(self) -> str:
        """One line: how many images a second, where the time went, and what would help."""
        total = self.seconds["total"]
        if not self.computed:
            return f"no forward pass, {total:.1f} s"
        spent = self._shares()
        shares = ", ".join(
            f"{name} {spent[part] / total:.0%}" for part, name in _SHARES.items() if part in spent
        )
        beside = ", ".join(f"{name} {self.seconds[name]:.1f} s" for name in _BESIDE)
        return (
            f"{counted(self.computed, 'image')} in {total:.1f} s ({self.computed / total:,.1f}/s): "
            f"{shares} (beside it, over all workers: {beside}); "
            f"most of it was {self.bottleneck}: {_HELP[self.bottleneck]}"
        )
