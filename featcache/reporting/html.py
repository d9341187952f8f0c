"""Page: one HTML file that needs no other, rendered from a template.

Escaping is on: image ids, labels and messages come from outside and may hold anything.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import featcache
from featcache.atomic import regular, replacing
from featcache.errors import FeatcacheError, counted
from featcache.hashing import sha256_json


def write_page(path: Path, template: str, shows: str, **values: Any) -> Path:
    """Render a template of this package into `path`, all or nothing.

    `shows` is what `digest_of` or `digest_of_all` gives for the runs on the page, see `shown_by`.
    """
    environment = _environment()
    script = "".join(environment.get_template(name).render() for name in _SCRIPTS)
    # The browser runs the script with this digest, and no other that a text might bring.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = environment.get_template(template).render(
        version=featcache.__version__, script=Markup(script), digest=f"sha256-{digest}", **values
    )
    return write_text(path, f"{text}{_SHOWS}{shows} -->\n")


_SCRIPTS = ("sort.js", "explore.js")
COMPARISON_PAGE, RUN_PAGE = "comparison.html", "report.html"
_SHOWS, _TAIL = "\n<!-- shows ", 200  # bytes
_SHOWN = ("run.json", "metrics.json", "splits.json", "predictions.csv", "leaks.json")


def shown_by(page: Path) -> str:
    """The digest of what a page shows; "" if it isn't there or doesn't say."""
    try:
        with regular(page).open("rb") as file:
            file.seek(-min(_TAIL, page.stat().st_size), os.SEEK_END)
            end = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return end.rpartition(_SHOWS)[2].removesuffix(" -->\n") if _SHOWS in end else ""


def digest_of(data: Path, metric: str) -> str:
    """What tells the runs of a data set from what they were, or from another version's pages."""
    return _digest(metric, (run.parent for run in data.glob("*/run.json")))


def digest_of_all(reports: Path, metric: str, folders: Iterable[Path] | None = None) -> str:
    """The same of these runs, by default of all data sets, and which have a page to link to."""
    if folders is None:
        folders = (run.parent for run in reports.glob("*/*/run.json"))
    pages = sorted(str(page.relative_to(reports)) for page in reports.glob(f"*/*/{RUN_PAGE}"))
    return _digest(metric, folders, pages)


def _digest(metric: str, folders: Iterable[Path], pages: Sequence[str] = ()) -> str:
    stamps = [
        (folder.parent.name, folder.name, name, found.st_size, found.st_mtime_ns)
        for folder in sorted(folders)
        if not folder.name.startswith(".")
        for name in _SHOWN
        if (found := _stat(folder / name)) is not None
    ]
    return sha256_json([featcache.__version__, metric, stamps, list(pages)])


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def picture(folder: Path, name: str) -> str:
    """A saved plot as a `data:` address, its SVG if that is the smaller; "" where there is none."""
    files = [folder / f"{name}.{ending}" for ending in ("svg", "png")]
    there = [path for path in files if path.is_file() and not path.is_symlink()]
    if not there:
        return ""
    smallest = min(
        there, key=lambda path: path.stat().st_size / (3 if path.suffix == ".svg" else 1)
    )
    return data_uri(smallest.read_bytes(), smallest.suffix)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("featcache.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number,
        percent=percent,
        seconds=seconds,
        count=count,
        counted=counted,
        p_value=p_value,
    )
    return environment


def number(value: float | None, digits: int = 4) -> str:
    """0.8664, or a dash where there is none."""
    return "–" if not _is_number(value) else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """86.6 %"""
    return (
        "–"
        if value is None or not _is_number(value)
        else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"
    )


def seconds(value: float | None) -> str:
    """0.42 s, 12.0 s, 3 min 20 s."""
    if value is None or not _is_number(value):
        return "–"
    if value < 100:
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{value / 3600:.1f} h"


def count(value: float | None) -> str:
    """10,000"""
    return "–" if value is None or not _is_number(value) else f"{value:,.0f}"


def p_value(value: float | None) -> str:
    """0.013, < 0.001, or nothing."""
    if value is None:
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.2g}"


def _is_number(value: Any) -> bool:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and math.isfinite(value)


_KINDS = {".png": "image/png", ".svg": "image/svg+xml", ".jpg": "image/jpeg"}


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text beside `path`, then put it in its place.

    A reader, or a second process that writes the same file, never meets half of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")
    return path


def data_uri(content: bytes, ending: str) -> str:
    """An image's bytes as a `data:` address; `ending` is ".png", ".svg" or ".jpg"."""
    return f"data:{_KINDS[ending]};base64,{base64.b64encode(content).decode('ascii')}"


def need_writable(folder: Path) -> None:
    """Refuse a folder that can't take the runs before the first one is fitted, and lost.

    Raises
    ------
    FeatcacheError
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        why = "" if os.access(folder, os.W_OK | os.X_OK) else "no permission"
    except OSError as error:
        why = error.strerror or str(error)
    if why:
        raise FeatcacheError(
            f"{folder} can't be written: {why}", "Choose another with --reports FOLDER."
        )
