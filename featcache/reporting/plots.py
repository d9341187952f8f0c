"""Plots: drawn without a display, in colours that the colour-blind can tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from featcache.reporting.run_folder import Run

# Okabe & Ito (2008), Color Universal Design; each head has a marker of its own too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_MARKERS = "osD^vP*X"


def plot_comparison(runs: Sequence[Run], folder: Path) -> Path:
    """Draw the accuracy of runs of one data set with their 95 % intervals, best on top.

    Runs tested on other rows than the latest run's are left out: their numbers don't compare.

    Returns
    -------
    Path
        Of the PNG; an SVG stands beside it.
    """
    latest = max(runs, key=lambda run: run.created)
    shown = [run for run in runs if run.rows == latest.rows][::-1]
    heads = sorted({run.head for run in shown})
    figure = Figure(figsize=(8, 1.2 + 0.28 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    for head, colour, marker in zip(heads, COLOURS * 9, _MARKERS * 9, strict=False):
        of_head = [(i, run) for i, run in enumerate(shown) if run.head == head]
        accuracy = [run.metric("accuracy") for _, run in of_head]
        below = [max(0.0, run.metric("accuracy") - run.interval[0]) for _, run in of_head]
        above = [max(0.0, run.interval[1] - run.metric("accuracy")) for _, run in of_head]
        axes.errorbar(
            accuracy, [i for i, _ in of_head], xerr=(below, above),
            fmt=marker, color=colour, label=head, capsize=2, markersize=5, linewidth=1,
        )  # fmt: skip
    axes.set_yticks(range(len(shown)), [_label(run) for run in shown], fontsize=8, parse_math=False)
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.set_xlabel("accuracy, with its 95 % interval")
    title = f"{latest.data}, {latest.split}, {latest.tested:,} test images"
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(title="head", fontsize=8, loc="lower right")
    folder.mkdir(parents=True, exist_ok=True)
    for ending in ("svg", "png"):
        path = folder / f"comparison.{ending}"
        figure.savefig(path, dpi=150)
    return path


def _label(run: Run) -> str:
    fused = f" · {run.fusion}" if len(run.backbones) > 1 else ""
    return f"{' + '.join(run.backbones)}{fused} · {run.head}"
