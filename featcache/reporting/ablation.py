"""Ablation: what each backbone adds, by leaving it out; what views add; which pair is best."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.csv_cells import row_writer
from featcache.errors import counted
from featcache.fitting.significance import ALPHA
from featcache.reporting.predictions import pair_outcomes
from featcache.reporting.schema import Run
from featcache.reporting.ties import METHOD

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


def answers(runs: Sequence[Run]) -> list[str]:
    """Do views help, and which pair of backbones is best: a sentence each, if runs can tell.

    Parameters
    ----------
    runs : sequence of Run
        Best first within each data set and `rows`.
    """
    families: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if run.score == run.score:
            families.setdefault((run.data, run.rows), []).append(run)
    several = len({run.data for run in runs}) > 1
    sentences = []
    for same in families.values():
        about = f"{same[0].data}: " if several else ""
        sentences += [f"{about}{text}" for text in (*_views(same, runs), *_pairs(same))]
    return sentences


def _views(bases: Sequence[Run], runs: Sequence[Run]) -> list[str]:
    """For each set of views, what it adds to those of `bases` that were fitted with it too."""
    first = bases[0]
    by_setting = {_recipe(run): run for run in bases if not run.view}
    sets: dict[tuple[tuple[str, ...], bool], list[tuple[Run, Run]]] = {}
    for run in runs:
        base = by_setting.get(_recipe(run))
        alike = (run.data, run.split, run.tested) == (first.data, first.split, first.tested)
        if run.view and base is not None and alike:
            sets.setdefault((run.view, run.balance), []).append((run, base))
    sentences = []
    for (view, balance), pairs in sets.items():
        both = [run for pair in pairs for run in reversed(pair)]
        paired = pair_outcomes([run.folder for run in both], first.by)
        column = {} if paired is None else {place: at for at, place in enumerate(paired[1])}
        known = [i for i in range(len(pairs)) if {2 * i, 2 * i + 1} <= set(column)]
        if paired is None or not known:
            continue
        found = paired[0].compare([(column[2 * i + 1], column[2 * i]) for i in known])
        gains = [first.by.gain(gain, 0.0) for gain in found.difference.tolist()]
        sure = [gain for gain, p in zip(gains, found.p.tolist(), strict=True) if p < ALPHA]
        better = sum(gain > 0 for gain in sure)
        named = f"{', '.join(view)}{', balanced,' if balance else ''}"
        sentences.append(
            f"Do views help? With {named} {counted(len(gains), 'candidate')} "
            f"{_range(first, gains)}; {_told(better, len(sure) - better, len(gains))} {METHOD}."
        )
    return sentences


def _range(run: Run, gains: Sequence[float]) -> str:
    """What candidates gain: "gains +0.4 points", "gain -0.2 … +1.4, +0.6 points on average"."""
    if len(gains) == 1:
        return f"gains {run.by.difference(gains[0], signed=True)}"
    low, high = (run.by.amount(end(gains), signed=True) for end in (min, max))
    mean = run.by.difference(sum(gains) / len(gains), signed=True)
    return f"gain {low} … {high}, {mean} on average"


def _told(better: int, worse: int, count: int) -> str:
    """How many differ by more than chance: "1 is better by more than chance, the others …"."""
    if not better + worse:
        which = "it can't" if count == 1 else "none can"
        return f"{which} be told from the same without"
    parts = [
        f"{n} {'is' if n == 1 else 'are'} {what} by more than chance"
        for n, what in ((better, "better"), (worse, "worse"))
        if n
    ]
    rest = count - better - worse
    parts += [f"{rest} can't be told from the same without"] if rest else []
    return ", ".join(parts)


def _pairs(runs: Sequence[Run]) -> list[str]:
    """Which two backbones are best together, against other pairs and the best one alone."""
    shown = [run for run in runs if len(run.backbones) <= 2]
    groups: dict[frozenset[str], int] = {}  # the place of each one's best
    for place, run in enumerate(shown):
        groups.setdefault(frozenset(run.backbones), place)
    pairs = [place for names, place in groups.items() if len(names) == 2]
    alone = [place for names, place in groups.items() if len(names) == 1][:1]
    if len(pairs) < 2:
        return []
    paired = pair_outcomes([run.folder for run in shown], shown[0].by)
    column = {} if paired is None else {place: at for at, place in enumerate(paired[1])}
    if paired is None or not {*pairs, *alone} <= set(column):
        return []
    found = paired[0].compare()  # all with all: the best of each was chosen by the same numbers
    p = {frozenset(pair): p for pair, p in zip(found.pairs.tolist(), found.p.tolist(), strict=True)}
    best, *others = pairs
    ties = [i for i in others if p[frozenset((column[best], column[i]))] >= ALPHA]
    top = shown[best]
    text = (
        f"Which pair of backbones? {' + '.join(top.backbones)} ({top.fusion}, {top.head}): "
        f"{top.by.label} {top.score:.{top.decimals}f}; "
    )
    if not ties:
        what = "the other one is" if len(others) == 1 else f"the {len(others)} others are"
        text += f"{what} worse by more than chance"
    elif len(others) == 1:
        text += "the other one can't be told from it"
    elif len(ties) == len(others):
        text += f"none of the {len(others)} others can be told from it"
    else:
        text += f"{len(ties)} of the {len(others)} others can't be told from it"
    for i in alone:
        name = shown[i].backbones[0]
        if p[frozenset((column[best], column[i]))] >= ALPHA:
            text += f", nor can {name} alone" if ties else f"; {name} alone can't be told from it"
        else:
            text += f"; {name} alone is {'better' if i < best else 'worse'} by more than chance"
    return [f"{text} {METHOD}."]


def _recipe(run: Run) -> tuple[Any, ...]:
    """What a run shares with the same one with other views."""
    return (run.data, run.candidate, str(sorted(run.settings.items())), run.seed, run.leaky)
