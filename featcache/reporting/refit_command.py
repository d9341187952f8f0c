"""Refit command: what to type to make a run again."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_FOLDS = re.compile(r"^(?:(\d+) x )?(\d+) folds(?:, leaky)?$")
_OPTIONS = ("select", "tune", "tuner")  # kept among the settings; options of their own
_REPORTS = Path("reports")


def redo_command(facts: dict[str, Any], folder: Path | None = None) -> str:
    """The command that gives the numbers of a run, and its digest, from its run.json.

    Backbones are named with the first digits of their cache key, so that no other file of the
    same backbone is taken. Data that was not named then is taken as the cache has it.

    Parameters
    ----------
    facts : dict
        run.json.
    folder : Path, optional
        The run folder, from which the reports folder is known.
    """
    if isinstance(facts.get("command"), str):
        return str(facts["command"])
    keys = facts.get("keys")
    keys = keys if isinstance(keys, dict) else {}
    backbones = ",".join(
        f"{name}@{keys[name][:8]}" if isinstance(keys.get(name), str) else name
        for name in map(str, facts.get("backbones") or [])
    )
    words = ["featcache", "fit", *_data(facts), "--backbone", backbones,
             "--fusion", str(facts.get("fusion")), "--head", str(facts.get("head"))]  # fmt: skip
    folds = _FOLDS.match(str(facts.get("split")))
    words += ["--folds", folds[2]] if folds else ["--test-split"]
    words += ["--repeats", folds[1]] if folds and folds[1] else []
    words += ["--seed", str(facts.get("seed", 0))]
    words += _recorded(facts)
    settings = facts.get("settings")
    for name, value in (settings if isinstance(settings, dict) else {}).items():
        known = name in _OPTIONS
        words += [f"--{name}", str(value)] if known else ["--set", f"{name}={_yaml(value)}"]
    if isinstance(facts.get("cache"), str):
        words += ["--cache", facts["cache"]]
    return with_reports(words, _reports_of(folder, facts))


def refit_remedy(folder: Path, again: bool = True) -> str:
    """What to do about a run folder that is not whole: its command, as far as that is known.

    Parameters
    ----------
    folder : Path
    again : bool, default True
        Also what is there is to be computed again. A fine-tuning always is.
    """
    try:
        facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        if not all(facts.get(name) for name in ("data", "backbones", "fusion", "head", "split")):
            raise ValueError
        command = redo_command(facts, folder)
    except (OSError, ValueError, TypeError, AttributeError):
        return "Fit it again: featcache fit, or featcache compare, with --again"
    again = again or facts.get("stage") == "finetuned"
    return f"Fit it again:\n{command}{' --again' * again}"


def with_reports(words: Sequence[str], reports: Path) -> str:
    """A command, as it is typed in a shell, for this reports folder."""
    return shlex.join([*words, *([] if reports == _REPORTS else ["--reports", str(reports)])])


def _reports_of(folder: Path | None, facts: dict[str, Any]) -> Path:
    """Where the run folder is; the usual one if it was copied to somewhere else."""
    inside = folder is not None and folder.parent.name == facts.get("data")
    return folder.parent.parent if folder is not None and inside else _REPORTS


def _data(facts: dict[str, Any]) -> list[str]:
    opened = facts.get("opened")
    return list(map(str, opened)) if opened and isinstance(opened, list) else [
        "--name", str(facts.get("data")),
    ]  # fmt: skip


def _yaml(value: Any) -> str:
    """A setting, as `--set` reads it back: 1e-05 or "10" are other values there."""
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9)
    return text.removesuffix("...\n").strip()


def _recorded(facts: dict[str, Any]) -> list[str]:
    """Options that a run records only where they were used."""
    words: list[str] = []
    views = facts.get("view") or facts.get("views") or []
    for view in [views] if isinstance(views, str) else views:
        words += ["--view", str(view)]
    for name in ("group", "gate"):
        words += [f"--{name}", facts[name]] if isinstance(facts.get(name), str) else []
    for flag in ("balance", "leaky", "strict"):
        words += [f"--{flag}"] if facts.get(flag) is True else []
    return words + ["--no-near-duplicates"] * (facts.get("near_duplicates") is False)
