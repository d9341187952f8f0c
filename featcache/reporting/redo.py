"""Redo: the command that makes a run again."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

_FOLDS = re.compile(r"^(?:\d+ x )?(\d+) folds(?:, leaky)?$")
_OPTIONS = ("select", "tune", "tuner")  # kept among the settings; options of their own


def redo_command(facts: dict[str, Any]) -> str:
    """The `featcache fit` that gives the numbers of a run, from its run.json.

    Backbones are named with the first digits of their cache key, so that no other file of the
    same backbone is taken.
    """
    if isinstance(facts.get("command"), str):
        return str(facts["command"])
    keys = facts.get("keys")
    keys = keys if isinstance(keys, dict) else {}
    backbones = ",".join(
        name if "@" in name or not isinstance(keys.get(name), str) else f"{name}@{keys[name][:8]}"
        for name in map(str, facts.get("backbones") or [])
    )
    words = ["featcache", "fit", "--data", str(facts.get("data")), "--backbone", backbones,
             "--fusion", str(facts.get("fusion")), "--head", str(facts.get("head"))]  # fmt: skip
    folds = _FOLDS.match(str(facts.get("split")))
    words += ["--folds", folds[1]] if folds else ["--test-split"]
    words += ["--seed", str(facts.get("seed", 0))]
    words += _recorded(facts)
    settings = facts.get("settings")
    for name, value in (settings if isinstance(settings, dict) else {}).items():
        if name in _OPTIONS:
            words += [f"--{name}", str(value)]
            continue
        words += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(words)


def _recorded(facts: dict[str, Any]) -> list[str]:
    """Options that a run records only where they were used."""
    words: list[str] = []
    views = facts.get("view") or facts.get("views") or []
    for view in [views] if isinstance(views, str) else views:
        words += ["--view", str(view)]
    if isinstance(facts.get("group"), str):
        words += ["--group", facts["group"]]
    if isinstance(facts.get("repeats"), int) and facts["repeats"] > 1:
        words += ["--repeats", str(facts["repeats"])]
    for flag in ("balance", "leaky", "strict"):
        words += [f"--{flag}"] if facts.get(flag) is True else []
    return words
