"""Progress bars, and tables in notebooks."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape

Progress = Callable[[int, int], None]


@contextmanager
def progress_bar(label: str) -> Iterator[Progress]:
    """A bar on stderr with rate and time left, as a callable(done, total)."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(label), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None, rate="")
        start = time.monotonic()

        def update(done: int, total: int) -> None:
            rate = done / max(time.monotonic() - start, 1e-9)
            bar.update(task, completed=done, total=total, rate=f"{rate:,.0f}/s")

        yield update


@contextmanager
def notebook_progress(label: str) -> Iterator[Progress | None]:
    """A bar below the cell in a notebook, gone when all is done; None anywhere else."""
    if not in_notebook():
        yield None
        return
    # Not rich's: that needs ipywidgets, and warns again and again if they are not installed.
    shown = importlib.import_module("IPython.display").display(_bar(label, 0, 0), **_NEW)
    start = last = time.monotonic()

    def update(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _EVERY_SECONDS:
            last = now
            rate = f", {done / (now - start):,.0f}/s"
            shown.update(_bar(label, done, total, rate), raw=True)

    try:
        yield update
    finally:
        shown.update({"text/plain": "", "text/html": ""}, raw=True)


_NEW = {"raw": True, "display_id": True}
_EVERY_SECONDS = 0.2  # between updates in a notebook


def _bar(label: str, done: int, total: int, rate: str = "") -> dict[str, str]:
    """What a notebook shows of a progress, as text and as HTML."""
    text = f"{label} {done:,} of {total:,}{rate}" if total else label
    bar = (
        f'<progress value="{done}" max="{total}"></progress>' if total else "<progress></progress>"
    )
    return {"text/plain": text, "text/html": f"{bar} {escape(text)}"}


def in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return type(shell).__name__ == "ZMQInteractiveShell"


def html_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str, notes: Sequence[str] = ()
) -> str:
    """A table for a notebook, with sentences below it; every text is escaped."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    below = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return (
        f'<table><caption style="white-space: nowrap">{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>{below}"
    )
