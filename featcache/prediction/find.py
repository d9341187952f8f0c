"""Find the model that a user means."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from featcache.errors import DataError, UnknownName, did_you_mean
from featcache.reporting.bundle import FACTS, FOLDER

# Settings that `fit` has an option for.
_OPTIONS = ("select", "tune", "tuner")


def find_model(run: str | Path, reports: str | Path = "reports") -> Path:
    """The bundle's folder of a run.

    Parameters
    ----------
    run : str or Path
        A run folder, its `model/` folder or a copy of that, or the beginning of a run folder's
        name below `reports`, with or without the data set's name before it.
    reports : str or Path, default "reports"

    Returns
    -------
    Path
        A folder that holds model.json.

    Raises
    ------
    UnknownName
        Where the name means no run, or several.
    DataError
        Where the run has no model; it names the command that gives it one.
    """
    folder = Path(run).expanduser()
    if not folder.is_dir():
        folder = _named(str(run), Path(reports))
    if (folder / FACTS).is_file():
        return folder
    if (folder / FOLDER / FACTS).is_file():
        return folder / FOLDER
    if (folder / "run.json").is_file():
        raise DataError(f"{folder} has no model", _command(folder / "run.json"))
    raise DataError(
        f"{folder} is neither a run folder nor a model",
        "Pass a folder that holds run.json or model.json.",
    )


def _named(name: str, reports: Path) -> Path:
    runs = {path.parent: path.parent.name for path in sorted(reports.glob("*/*/run.json"))}
    wanted = name.removeprefix(f"{reports.as_posix()}/").replace(":", ".")  # as folder_name does
    found = [
        path for path, short in runs.items() if wanted in (short, f"{path.parent.name}/{short}")
    ] or [
        path
        for path, short in runs.items()
        if short.startswith(wanted) or f"{path.parent.name}/{short}".startswith(wanted)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise UnknownName(
            f"{name!r} is the beginning of {len(found)} runs",
            "One of:\n" + "\n".join(str(path) for path in found[:10]),
        )
    remedy = did_you_mean(name, runs.values()) if runs else "Fit one first: featcache fit"
    raise UnknownName(f"no run {name!r} in {reports}/", remedy)


def _command(path: Path) -> str:
    """The command that fits a run again and keeps its model."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(facts.get("command"), str):
            return f"Fit it again:\n{facts['command']}"
        words = ["featcache", "fit", "--data", facts["data"]]
        for name in facts["backbones"]:
            words += ["--backbone", _selector(name, facts)]
        words += ["--fusion", facts["fusion"], "--head", facts["head"], *_split(facts)]
        words += ["--seed", str(facts["seed"])] if facts["seed"] else []
        for name, value in facts["settings"].items():
            given = [f"--{name}", str(value)] if name in _OPTIONS else []
            words += given or ["--set", f"{name}={json.dumps(value)}"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "Fit it again: featcache fit"
    return f"This fits it once more and keeps it:\n{shlex.join(words)}"


def _selector(name: str, facts: dict[str, Any]) -> str:
    digest = facts["keys"][name]
    return name if "@" in name else f"{name}@{digest[:8]}"


def _split(facts: dict[str, Any]) -> list[str]:
    """The options that say which rows train and which are tested."""
    found = re.match(r"(?:(\d+) x )?(\d+) folds", facts["split"])
    words = ["--folds", found[2]] if found else ["--test-split"]
    words += ["--repeats", found[1]] if found and found[1] else []
    words += [word for name in facts.get("view") or () for word in ("--view", name)]
    words += ["--group", facts["group"]] if facts.get("group") else []
    return words + [f"--{name}" for name in ("balance", "leaky") if facts.get(name)]
