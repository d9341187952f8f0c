"""Plots of a comparison: accuracies side by side, and accuracy against the seconds of a fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from featcache.errors import counted
from featcache.reporting.plots.style import colour, legend, marker, new_figure, save_figure, tidy
from featcache.reporting.schema import Run, labels


def plot_comparison(runs: Sequence[Run], folder: Path) -> Path:
    """Draw what runs of one data set are ranked by, with 95 % intervals, best on top.

    Runs tested on other rows than the latest run's are left out: their numbers don't compare.

    Returns
    -------
    Path
        Of the PNG; an SVG stands beside it.
    """
    latest = max(runs, key=lambda run: run.created)
    shown = [run for run in runs if run.rows == latest.rows][::-1]
    heads = sorted({run.head for run in shown})
    figure = new_figure(8, 1.2 + 0.28 * len(shown))
    axes = figure.add_subplot()
    for number, head in enumerate(heads):
        of_head = [(i, run) for i, run in enumerate(shown) if run.head == head]
        scores = [run.score for _, run in of_head]
        reach = np.transpose([_reach(run) for _, run in of_head])  # (2, runs)
        axes.errorbar(
            scores, [i for i, _ in of_head], xerr=reach, fmt=marker(number),
            color=colour(number), label=head, capsize=2, markersize=5, linewidth=1,
        )  # fmt: skip
    axes.set_yticks(range(len(shown)), labels(shown), fontsize=8, parse_math=False)
    axes.set_ylim(-0.7, len(shown) - 0.3)
    title = f"{latest.data}, {latest.split}, {counted(latest.tested, 'test image')}"
    tidy(axes, f"{latest.by.label}, with its 95 % interval", "", title)
    legend(axes, title="head", loc="lower right")
    return save_figure(figure, folder, "comparison")


def front(runs: Sequence[Run]) -> list[Run]:
    """The runs that no other beats in both score and seconds, the cheapest first."""
    kept: list[Run] = []
    for run in sorted(runs, key=lambda run: (run.fit_seconds, run.by.gain(0.0, run.score))):
        if not kept or run.by.gain(run.score, kept[-1].score) > 0:
            kept.append(run)
    return kept


class _Plain(LogFormatter):  # type: ignore[misc,unused-ignore]
    """0.1 rather than 1e-01, for the ticks that would be labelled."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _reach(run: Run) -> tuple[float, float]:
    """How far its interval goes below the score and above."""
    low, high = run.score_interval
    return max(0.0, run.score - low), max(0.0, high - run.score)


def plot_cost(runs: Sequence[Run]) -> Figure | None:
    """A marker for each head, full for fusions and hollow for a backbone alone.

    Parameters
    ----------
    runs : sequence of Run
        With the same rows, best first: their places are written beside them.
    """
    runs = [run for run in runs if run.score == run.score]  # those without a score come last
    if len(runs) < 2:
        return None
    heads = sorted({run.head for run in runs})
    figure = new_figure(7.2, 4.4)
    axes = figure.add_subplot()
    best = front(runs)
    seconds = [max(run.fit_seconds, 1e-3) for run in best]
    axes.plot(seconds, [run.score for run in best], color="#999999",
              linestyle=":", linewidth=1, zorder=1, label="not beaten in both")  # fmt: skip
    for number, head in enumerate(heads):
        label: str | None = head
        for run in (run for run in runs if run.head == head):
            reach = np.transpose([_reach(run)])  # (2, 1)
            fused = len(run.backbones) > 1
            axes.errorbar(max(run.fit_seconds, 1e-3), run.score, yerr=reach, fmt=marker(number),
                          color=colour(number), markersize=6.5, capsize=2, linewidth=0.8,
                          markerfacecolor=colour(number) if fused else "white",
                          label=label)  # fmt: skip
            label = None
    for place, run in enumerate(runs, 1):
        axes.annotate(str(place), (max(run.fit_seconds, 1e-3), run.score),
                      xytext=(6, 3), textcoords="offset points", fontsize=7.5)  # fmt: skip
    axes.set_xscale("log")
    for ticks in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        ticks(_Plain(minor_thresholds=(1.5, 0.6)))
    axes.tick_params(axis="x", which="minor", labelsize=8)
    axes.margins(x=0.08, y=0.1)
    title = "full: several backbones; hollow: one alone; numbers: places in the table"
    label = f"{runs[0].by.label}, with its 95 % interval"
    tidy(axes, "one fit (seconds, log scale)", label, title)
    legend(axes, title="head", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
