"""Progress bars, and tables in notebooks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape

Progress = Callable[[int, int], None]


@contextmanager
def progress_bar(label: str, stderr: bool = True) -> Iterator[Progress]:
    """A bar with rate and time left, as a callable(done, total)."""
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
    console = Console(stderr=True) if stderr else None  # None: rich's own, which knows notebooks
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=None, rate="")
        start = time.monotonic()

        def update(done: int, total: int) -> None:
            rate = done / max(time.monotonic() - start, 1e-9)
            bar.update(task, completed=done, total=total, rate=f"{rate:,.0f}/s")

        yield update


@contextmanager
def notebook_progress(label: str) -> Iterator[Progress | None]:
    """A bar below the cell in a notebook; None anywhere else."""
    if in_notebook():
        with progress_bar(label, stderr=False) as update:
            yield update
    else:
        yield None


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
        f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>{below}"
    )
