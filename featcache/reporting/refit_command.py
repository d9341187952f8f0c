"""Refit command: what to type to make a run again."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featcache.errors import DataError
from featcache.reporting.places import split_places, without_place
from featcache.reporting.schema import Run, read_run

_FOLDS = re.compile(r"^(?:(\d+) x )?(\d+) folds(?:, leaky)?$")
_OPTIONS = ("select", "tune", "tuner", "seeds")  # kept among the settings; options of their own
_REPORTS = Path("reports")
_MAKE_RUNS = ("fit", "compare", "finetune", "run")


def redo_command(run: Run, places: bool = True) -> str:
    """The command that gives the numbers of a run, and its digest.

    Backbones are named with the first digits of their cache key, so that no other file of the
    same backbone is taken. Data that was not named then is taken as the cache has it.

    A command that run.json holds may be anybody's. It is quoted anew, so that a shell runs
    nothing but featcache; if it is none that makes runs, it is Python, and a comment says so.

    Parameters
    ----------
    run : Run
    places : bool, default True
        False: of absolute paths only the last part.
    """
    if recorded := _recorded(run.command, places):
        return recorded
    backbones = ",".join(
        f"{name}@{run.keys[name][:8]}" if name in run.keys else name for name in run.backbones
    )
    words = ["featcache", "fit", *(run.opened or ("--name", run.data)), "--backbone", backbones,
             "--fusion", run.fusion, "--head", run.head]  # fmt: skip
    folds = _FOLDS.match(run.split)
    words += ["--folds", folds[2]] if folds else ["--test-split"]
    words += ["--repeats", folds[1]] if folds and folds[1] else []
    words += ["--seed", str(run.seed)]
    words += ["--positive", run.positive] if run.positive not in ("", *run.classes[1:]) else []
    for view in run.view:
        words += ["--view", view]
    for name in ("group", "gate"):
        words += [f"--{name}", getattr(run, name)] if getattr(run, name) else []
    words += [f"--{flag}" for flag in ("balance", "leaky", "strict") if getattr(run, flag)]
    words += [] if run.near_duplicates else ["--no-near-duplicates"]
    for name, value in run.settings.items():
        known = name in _OPTIONS
        words += [f"--{name}", str(value)] if known else ["--set", f"{name}={_yaml(value)}"]
    words += ["--cache", run.cache] if run.cache else []
    copied = run.folder.parent.name != run.data
    reports = _REPORTS if copied else run.folder.parent.parent
    if not places:
        words = [without_place(word) for word in words]
        reports = Path(without_place(str(reports)))
    return with_reports(words, reports)


def _recorded(command: str, places: bool) -> str:
    """The command of run.json; "" if there is none that can be shown."""
    if not command or not all(one.isprintable() or one == "\n" for one in command):
        return ""
    shown = command if places else split_places({"command": command})[0]["command"]
    try:
        words = shlex.split(shown)
    except ValueError:
        words = []
    if words[:1] == ["featcache"] and words[1:2] and words[1] in _MAKE_RUNS and "\n" not in shown:
        return shlex.join(words)
    try:
        ast.parse(shown)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    return f"# From run.json, whoever wrote it: read it before you run it.\n{shown}"


def refit_remedy(folder: Path, again: bool = True) -> str:
    """What to do about a run folder that is not whole: its command, as far as that is known.

    Parameters
    ----------
    folder : Path
    again : bool, default True
        Also what is there is to be computed again. A fine-tuning always is.
    """
    try:
        run = read_run(folder)
    except DataError:
        return "Fit it again: featcache fit, or featcache compare, with --again"
    again = again or run.stage == "finetuned"
    return f"Fit it again:\n{redo_command(run)}{' --again' * again}"


def with_reports(words: Sequence[str], reports: Path) -> str:
    """A command, as it is typed in a shell, for this reports folder."""
    return shlex.join([*words, *([] if reports == _REPORTS else ["--reports", str(reports)])])


def _yaml(value: Any) -> str:
    """A setting, as `--set` reads it back: 1e-05 or "10" are other values there."""
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9)
    return text.removesuffix("...\n").strip()
