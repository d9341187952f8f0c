"""Named: the run folder that a user means by its name, or by the beginning of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from featcache.errors import UnknownName, did_you_mean
from featcache.reporting.redo import with_reports


def find_run(name: str, reports: str | Path = "reports") -> Path:
    """The run folder below `reports` that has this name, or the only one that begins so.

    Parameters
    ----------
    name : str
        Perhaps with the data set's name before it, as in "photos/resnet18.concat.mlp". Several
        backbones may stand in any order.
    reports : str or Path, default "reports"

    Raises
    ------
    UnknownName
        Where the name means no run, or several.
    """
    folder = Path(reports)
    runs = sorted(path.parent for path in folder.glob("*/*/run.json"))
    wanted = name.removeprefix(f"{folder.as_posix()}/").rstrip("/")
    found = _meant(wanted, {run: run.name for run in runs}) or _meant_in_any_order(wanted, runs)
    if len(found) == 1:
        return found[0]
    if found:
        raise UnknownName(
            f"{name!r} is the beginning of {len(found)} runs",
            "One of:\n" + "\n".join(str(path) for path in found[:10]),
        )
    first = f"Fit one first: {with_reports(['featcache', 'fit'], folder)}"
    near = did_you_mean(name, [run.name for run in runs])
    raise UnknownName(f"no run {name!r} in {reports}/", near if runs else first)


def _meant(wanted: str, names: dict[Path, str]) -> list[Path]:
    """The runs of this name, else those whose name begins so."""
    plain = wanted.replace(":", ".")  # as `folder_name` does
    both = {run: (name, f"{run.parent.name}/{name}") for run, name in names.items()}
    whole = [run for run, spelt in both.items() if plain in spelt]
    return whole or [
        run for run, spelt in both.items() if any(one.startswith(plain) for one in spelt)
    ]


def _meant_in_any_order(wanted: str, runs: list[Path]) -> list[Path]:
    """The same where the backbones are named in another order than the run's."""
    data, slash, short = wanted.rpartition("/")
    asked = {run: f"{data}{slash}{_reordered(short, _backbones(run))}" for run in runs}
    return [run for run, text in asked.items() if text != wanted and _meant(text, {run: run.name})]


def _reordered(name: str, backbones: list[str]) -> str:
    """A run's name, or its beginning, with these backbones as they stand here, if it has them."""
    *first, last = name.replace(":", ".").split("+")
    left = [one for one in backbones if one not in first]
    if len(left) != 1 or len(first) + 1 != len(backbones) or not last.startswith(left[0]):
        return name
    return "+".join(backbones) + last.removeprefix(left[0])


def _backbones(run: Path) -> list[str]:
    try:
        facts: Any = json.loads((run / "run.json").read_text(encoding="utf-8"))
        return [str(name).replace(":", ".") for name in facts["backbones"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
