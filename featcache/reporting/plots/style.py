"""Drawing: one look for every plot, without a display and without matplotlib's global state.

Colours are told apart by the colour-blind, and never carry a meaning alone: a marker, a line
style or a label goes with each, so that a plot printed in grey says the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from matplotlib.axes import Axes
from matplotlib.figure import Figure

log = logging.getLogger("featcache")

# Okabe & Ito (2008), Color Universal Design, and two more for ten classes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999",
           "#882255", "#8C6D31")  # fmt: skip
MARKERS = "osD^vP*X"
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_DPI = 130


def colour(number: int) -> str:
    """The colour of the `number`-th thing shown."""
    return COLOURS[number % len(COLOURS)]


def marker(number: int) -> str:
    """Its marker; many more than ten differ in colour or marker."""
    return MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]


def line(number: int) -> Any:
    """Its line style."""
    return LINES[number % len(LINES)]


def new_figure(width: float, height: float) -> Figure:
    """A figure of so many inches whose labels don't overlap."""
    return Figure(figsize=(width, height), layout="constrained")


def tidy(axes: Axes, x: str, y: str, title: str = "") -> None:
    """Label the axes, and leave out what only makes noise."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if title:
        axes.set_title(title, fontsize=10, parse_math=False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def legend(axes: Axes, **options: Any) -> None:
    """A legend whose labels are shown as they are: `$` starts no formula."""
    shown = axes.legend(**{"fontsize": 8, "frameon": False, **options})
    for text in shown.get_texts():
        text.set_parse_math(False)


def save_figure(figure: Figure, folder: Path, name: str) -> Path:
    """Save `name`.svg and `name`.png, each whole or not at all; returns the path of the PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for ending in ("svg", "png"):
        temporary = folder / f".{name}.tmp.{ending}"
        metadata = {"Date": None} if ending == "svg" else None
        temporary.unlink(missing_ok=True)  # a link there would be written through
        try:
            figure.savefig(temporary, dpi=_DPI, metadata=metadata)
            temporary.replace(folder / f"{name}.{ending}")
        finally:
            temporary.unlink(missing_ok=True)
    return folder / f"{name}.png"


@contextmanager
def only_warns(what: str) -> Iterator[None]:
    """A picture that can't be made costs a warning, never the numbers."""
    try:
        yield
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError, OSError, MemoryError,
            ArithmeticError, AttributeError, TemplateError) as error:  # fmt: skip
        first = (str(error).splitlines() or [""])[0]
        log.warning("%s left out: %s %s", what, type(error).__name__, first)


def draw(name: str, folder: Path, make: Callable[[], Figure | None]) -> bool:
    """Save the figure that `make` gives under `name`; False where there is none or it failed."""
    for ending in ("svg", "png"):
        (folder / f"{name}.{ending}").unlink(missing_ok=True)  # never an older run's picture
    with only_warns(f"{name} plot of {folder.name}"):
        figure = make()
        if figure is not None:
            save_figure(figure, folder, name)
            return True
    return False
