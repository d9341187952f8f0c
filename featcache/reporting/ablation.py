"""Ablation: what each backbone adds, by leaving it out."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from featcache.fitting.metrics import interval
from featcache.fitting.significance import holm
from featcache.reporting.predictions import FoldScores, Outcomes, p_value, read_tested
from featcache.reporting.schema import ALPHA, Run

log = logging.getLogger("featcache")

CELLS = ("backbone", "fusion", "head", "with", "without", "adds", "95 % interval", "p")


@dataclass(frozen=True)
class Addition:
    """What one backbone adds to the others, under one fusion and head.

    Attributes
    ----------
    backbone, fusion, head, select : str
    with_it, without : float
        Accuracy of all backbones, and of all but this one.
    low, high : float
        95 % interval of the difference: on one split by bootstrap over groups of the rows' own
        differences, over folds by the corrected t-test's distribution.
    p : float
        Of the paired test that `ties` uses, by Holm's method over all additions.
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
        """The difference of the accuracies."""
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
        The largest first; a backbone whose counterpart is missing is left out. Empty for one
        backbone.
    """
    if not runs:
        return []
    most = max((run.backbones for run in runs), key=len)
    by_setting = {_setting(run): run for run in runs}
    measured = []
    for run in (run for run in runs if run.backbones == most and len(most) > 1):
        for name in most:
            rest = tuple(other for other in most if other != name)
            fusion = run.fusion if len(rest) > 1 else "concat"
            without = by_setting.get((rest, fusion, run.head, run.select, run.tune))
            found = None if without is None else _difference(run.folder, without.folder)
            if without is None or found is None:
                log.warning("no predictions of %s without %s to compare", run.name, name)
                continue
            measured.append((name, run, without, found))
    p_values = holm([found[2] for *_, found in measured])
    made = [
        Addition(name, run.fusion, run.head, run.select, run.metric("accuracy"),
                 without.metric("accuracy"), low, high, p)
        for (name, run, without, (low, high, _)), p in zip(measured, p_values, strict=True)
    ]  # fmt: skip
    return sorted(made, key=lambda one: -one.adds)


def write_ablation(folder: Path, found: Sequence[Addition]) -> Path:
    """Write ablation.csv into a folder; its path."""
    path = folder / "ablation.csv"
    columns = ("backbone", "fusion", "head", "select", "with_it", "without", "adds", "low",
               "high", "p")  # fmt: skip
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([[getattr(one, name) for name in columns] for one in found])
    return path


def _setting(run: Run) -> tuple[Any, ...]:
    return (run.backbones, run.fusion, run.head, run.select, run.tune)


def _difference(one: Path, other: Path) -> tuple[float, float, float] | None:
    """Interval and p-value of the first's accuracy less the other's; None without predictions."""
    mine, theirs = read_tested(one), read_tested(other)
    p = p_value(mine, theirs)
    if p is None:
        return None
    if isinstance(mine, Outcomes) and isinstance(theirs, Outcomes):
        groups = mine.groups or theirs.groups
        differences = np.asarray(mine.right, float) - np.asarray(theirs.right, float)  # (n,)
        return *interval(differences, None if groups is None else np.asarray(groups)), p
    if isinstance(mine, FoldScores) and isinstance(theirs, FoldScores):
        return *_over_folds(mine, theirs), p
    return None


def _over_folds(mine: FoldScores, theirs: FoldScores) -> tuple[float, float]:
    """The interval whose test is `significance.corrected_t_test`."""
    differences = np.subtract(mine.accuracy, theirs.accuracy)  # (k,)
    k = len(differences)
    error = np.sqrt((1 / k + mine.test / mine.train) * differences.var(ddof=1))
    reach = float(stats.t.ppf(1 - ALPHA / 2, df=k - 1) * error)
    mean = float(differences.mean())
    return mean - reach, mean + reach
