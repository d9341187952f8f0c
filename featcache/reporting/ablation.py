"""Ablation: what each backbone adds, by leaving it out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.csv_cells import row_writer
from featcache.fitting.significance import ALPHA
from featcache.reporting.predictions import pair_outcomes
from featcache.reporting.schema import Run

log = logging.getLogger("featcache")

CELLS = ("backbone", "fusion", "head", "with", "without", "adds", "95 % interval", "p")


@dataclass(frozen=True)
class Addition:
    """What one backbone adds to the others, under one fusion and head.

    Attributes
    ----------
    backbone, fusion, head, select : str
    with_it, without : float
        What the runs are ranked by, of all backbones, and of all but this one.
    low, high : float
        95 % interval of the difference, for all additions together.
    p : float
        Of the paired test that `ties` uses, adjusted for all additions.
    """

    backbone: str
    fusion: str
    head: str
    select: str
    with_it: float
    without: float
    low: float
    high: float
    p: float

    @property
    def adds(self) -> float:
        """The difference of the two: of a loss, negative is better."""
        return self.with_it - self.without

    def cells(self) -> tuple[str, ...]:
        """One row of text under `CELLS`; "=" marks a difference that may well be chance."""
        tie = "= " if self.p >= ALPHA else ""
        return (
            self.backbone, self.fusion, self.head, f"{self.with_it:.4f}", f"{self.without:.4f}",
            f"{tie}{self.adds:+.4f}", f"{self.low:+.4f} … {self.high:+.4f}", f"{self.p:.3g}",
        )  # fmt: skip


def ablation(runs: Sequence[Run]) -> list[Addition]:
    """What each backbone adds, for every fusion and head with all backbones among the runs.

    If two backbones are left with one, that one stands alone, so there is nothing to fuse: its
    run is the one under "concat".

    Parameters
    ----------
    runs : sequence of Run
        Of one grid, all with the same rows.

    Returns
    -------
    list of Addition
        What helps most first; a backbone whose counterpart is missing is left out. Empty for one
        backbone.
    """
    if not runs:
        return []
    most = max((run.backbones for run in runs), key=len)
    by_setting = {_setting(run): place for place, run in enumerate(runs)}
    steps = []
    for place, run in enumerate(runs):
        for name in most if run.backbones == most and len(most) > 1 else ():
            rest = tuple(other for other in most if other != name)
            fusion = run.fusion if len(rest) > 1 else "concat"
            steps.append((name, place, by_setting.get((rest, fusion, *_setting(run)[2:]))))
    return sorted(_measured(runs, steps), key=lambda one: runs[0].by.gain(0.0, one.adds))


def _measured(runs: Sequence[Run], steps: Sequence[tuple[str, int, int | None]]) -> list[Addition]:
    """The additions between two runs each, tested together; those that can't be are warned of."""
    paired = pair_outcomes([run.folder for run in runs], runs[0].by) if steps else None
    column = {} if paired is None else {place: at for at, place in enumerate(paired[1])}
    known = []
    for name, one, other in steps:
        if one in column and other in column:
            known.append((name, one, other))
        else:
            log.warning("no predictions of %s without %s to compare", runs[one].name, name)
    if paired is None or not known:
        return []
    found = paired[0].compare([(column[one], column[other]) for _, one, other in known])
    reach = found.critical * found.error  # (additions,)
    low, high = found.difference - reach, found.difference + reach
    most = runs[0].by.upper
    return [
        Addition(name, runs[one].fusion, runs[one].head, runs[one].select,
                 runs[one].score, runs[other].score,
                 max(-most, float(low[i])), min(most, float(high[i])), float(found.p[i]))
        for i, (name, one, other) in enumerate(known)
    ]  # fmt: skip


def write_ablation(folder: Path, found: Sequence[Addition]) -> Path:
    """Write ablation.csv into a folder; its path."""
    path = folder / "ablation.csv"
    columns = ("backbone", "fusion", "head", "select", "with_it", "without", "adds", "low",
               "high", "p")  # fmt: skip
    with path.open("w", newline="", encoding="utf-8") as file:
        write = row_writer(file)
        write(columns)
        for one in found:
            write([getattr(one, name) for name in columns])
    return path


def _setting(run: Run) -> tuple[Any, ...]:
    return (run.backbones, run.fusion, run.head, run.select, run.tune)
