"""Checked: whether what a run folder holds has the types that its readers count on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# What only some runs, or later versions, write.
_OPTIONAL: dict[str, tuple[type | tuple[type, ...], str]] = {
    "select": (str, "text"),
    "keys": (dict, "text by name"),
    "settings": (dict, "values by name"),
    "versions": (dict, "text by name"),
    "machine": (dict, "values by name"),
    "view": ((list, str), "names"),
}


def check_run_types(facts: Any, scores: Any) -> None:
    """Look through run.json and metrics.json.

    Raises
    ------
    TypeError
        Where a value has another type than `save_run` writes; it names the value.
    KeyError
        Where one is missing.
    """
    for name, value in (("run.json", facts), ("metrics.json", scores)):
        if not isinstance(value, dict):
            raise TypeError(f"{name} holds no JSON object")
    for name in ("data", "fusion", "head", "split", "rows", "created"):
        _need(isinstance(facts[name], str), name, facts[name], "text")
    backbones = facts["backbones"]
    several = isinstance(backbones, list) and backbones != []
    _need(several and all(isinstance(b, str) for b in backbones), "backbones", backbones, "names")
    for name in ("tested", "fit_seconds"):
        _need(_is_number(facts[name]), name, facts[name], "a number")
    interval = scores["interval"]
    two = isinstance(interval, list) and len(interval) == 2
    _need(two and all(_is_number(end) for end in interval), "interval", interval, "two numbers")
    for name in ("mean", "sd"):
        numbers = scores[name]
        good = isinstance(numbers, Mapping) and all(
            value is None or _is_number(value) for value in numbers.values()
        )
        _need(good, name, numbers, "numbers by name")
    for name, (kind, called) in _OPTIONAL.items():
        value = facts.get(name)
        _need(value is None or isinstance(value, kind), name, value, called)
    keys = facts.get("keys") or {}
    _need(all(isinstance(key, str) for key in keys.values()), "keys", keys, "text by name")
    tune = facts.get("tune")
    _need(tune is None or _is_number(tune), "tune", tune, "a number")


def _need(good: bool, name: str, value: Any, kind: str) -> None:
    if not good:
        raise TypeError(f"{name} is {str(value)[:60]!r}, not {kind}")


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond any float
        return False
