"""Console: results go to stdout; progress, logs and errors to stderr."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featcache.errors import FeatcacheError

if TYPE_CHECKING:
    from featcache.reporting.schema import Run

# What steers a terminal, or turns the order of the letters about; \t and \n are left.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_EVERY_SECONDS = 10.0  # between plain progress lines, where there is no terminal


def visible(text: str) -> str:
    """The text with control characters, which names of files may hold, as escapes: \\x1b."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def coloured() -> bool | None:
    """Whether to colour: not if NO_COLOR is set or the terminal is dumb, else as click does."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return False if plain else None


class _Handler(logging.Handler):
    """Log records as plain lines; warnings marked."""

    def emit(self, record: logging.LogRecord) -> None:
        mark = "warning: " if record.levelno >= logging.WARNING else ""
        text = visible(record.getMessage())
        click.secho(f"{mark}{text}", err=True, fg="yellow" if mark else None)


def set_up_logging(quiet: bool) -> None:
    """Send the package's log to stderr; only warnings with `quiet`."""
    log = logging.getLogger("featcache")
    log.handlers[:] = [_Handler()]
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    log.propagate = False


def note(text: str) -> None:
    """One line on stderr that --quiet leaves out."""
    logging.getLogger("featcache").info("%s", text)


def say_error(problem: str, remedy: str = "") -> None:
    """One error on stderr: what is wrong, and what to do next."""
    click.secho(f"error: {visible(problem)}", err=True, fg="red", color=coloured())
    for line in visible(remedy).splitlines():
        click.echo(f"  {line}", err=True)


def need_pages(reports: str, *runs: Run) -> None:
    """Say which pages there are; one that could not be made, and was warned of, is an error.

    Raises
    ------
    FeatcacheError
    """
    pages = [Path(reports) / "comparison.html", *(run.folder / "report.html" for run in runs)]
    if missing := [str(page) for page in pages if not page.is_file()]:
        raise FeatcacheError(
            f"{', '.join(missing)} could not be made: see the warnings above",
            "The runs themselves are whole. When the cause is gone: featcache report",
        )
    note(", ".join(map(str, pages)))


@contextmanager
def progress_bar(label: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A callable(done, total): a bar on a terminal, a plain line now and then elsewhere."""
    if quiet:
        yield lambda done, total: None
    elif sys.stderr.isatty():
        from featcache.display import progress_bar as bar

        with bar(label) as update:
            yield update
    else:
        yield _Lines(label)


class _Lines:
    def __init__(self, label: str) -> None:
        self._label = label
        self._start = self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last < _EVERY_SECONDS:
            return
        self._last = now
        rate = done / (now - self._start)
        left = (total - done) / rate if rate else float("inf")
        click.echo(
            f"{self._label} {done:,} of {total:,}, {rate:,.1f}/s, {left:,.0f} s left", err=True
        )
