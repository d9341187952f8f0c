"""Plots: drawn without a display, in colours that the colour-blind can tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featcache.errors import counted
from featcache.reporting.drawing import colour, legend, marker, new_figure, save_figure, tidy
from featcache.reporting.run_folder import Run


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
    figure = new_figure(8, 1.2 + 0.28 * len(shown))
    axes = figure.add_subplot()
    for number, head in enumerate(heads):
        of_head = [(i, run) for i, run in enumerate(shown) if run.head == head]
        accuracy = [run.metric("accuracy") for _, run in of_head]
        below = [max(0.0, run.metric("accuracy") - run.interval[0]) for _, run in of_head]
        above = [max(0.0, run.interval[1] - run.metric("accuracy")) for _, run in of_head]
        axes.errorbar(
            accuracy, [i for i, _ in of_head], xerr=(below, above), fmt=marker(number),
            color=colour(number), label=head, capsize=2, markersize=5, linewidth=1,
        )  # fmt: skip
    axes.set_yticks(
        range(len(shown)), [run_label(run) for run in shown], fontsize=8, parse_math=False
    )
    axes.set_ylim(-0.7, len(shown) - 0.3)
    title = f"{latest.data}, {latest.split}, {counted(latest.tested, 'test image')}"
    tidy(axes, "accuracy, with its 95 % interval", "", title)
    legend(axes, title="head", loc="lower right")
    return save_figure(figure, folder, "comparison")


def run_label(run: Run) -> str:
    """For instance "resnet18 + mobilenet_v2 · concat · mlp · with hflip"."""
    fused = [run.fusion] if len(run.backbones) > 1 else []
    tuned = [f"tuned ({run.tune})"] if run.tune else []
    selected = [run.select] if run.select else []
    parts = [" + ".join(run.backbones), *fused, *selected, run.head, *tuned, trained_with(run)]
    return " · ".join(part for part in parts if part)


def trained_with(run: Run) -> str:
    """What trained beside the images: "with hflip, rot90, balanced"; "" for nothing."""
    views = f"with {', '.join(run.view)}" if run.view else ""
    return f"{views}, balanced" if views and run.balance else views
