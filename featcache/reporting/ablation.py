"""Ablation: what each backbone adds, by leaving it out."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from featcache.fitting.metrics import interval
from featcache.fitting.statistics import corrected_t_test, holm, mcnemar
from featcache.reporting.predictions import Outcomes, read_outcomes
from featcache.reporting.run_folder import ALPHA, Run

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

    Where two backbones are left with one, that one stands alone, so there is nothing to fuse: its
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
    try:
        mine, theirs = _folds(one), _folds(other)
        if len(mine) > 1:
            return _over_folds(mine, theirs)
        a, b = read_outcomes(one / "predictions.csv"), read_outcomes(other / "predictions.csv")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return _over_rows(a, b) if a.ids == b.ids else None


def _over_rows(a: Outcomes, b: Outcomes) -> tuple[float, float, float]:
    groups = a.groups or b.groups
    differences = np.asarray(a.right, dtype=float) - np.asarray(b.right, dtype=float)  # (n,)
    low, high = interval(differences, None if groups is None else np.asarray(groups))
    return low, high, mcnemar(a.right, b.right, groups)


def _over_folds(
    mine: list[dict[str, Any]], theirs: list[dict[str, Any]]
) -> tuple[float, float, float] | None:
    if [fold["name"] for fold in mine] != [fold["name"] for fold in theirs]:
        return None
    a, b = ([fold["metrics"]["accuracy"] for fold in folds] for folds in (mine, theirs))
    train, test = (float(np.mean([fold[side] for fold in mine])) for side in ("train", "test"))
    differences = np.subtract(a, b)  # (k,)
    # The standard error of the corrected t-test, see `statistics.corrected_t_test`.
    error = np.sqrt((1 / len(a) + test / train) * differences.var(ddof=1))
    reach = float(stats.t.ppf(1 - ALPHA / 2, df=len(a) - 1) * error)
    mean = float(differences.mean())
    return mean - reach, mean + reach, corrected_t_test(a, b, train, test)


def _folds(folder: Path) -> list[dict[str, Any]]:
    scores = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return sorted(scores["folds"], key=lambda fold: str(fold["name"]))
