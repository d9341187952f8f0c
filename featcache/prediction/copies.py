"""Copies: a bundle to take elsewhere, with or without the backbones' weights."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from featcache.errors import DataError
from featcache.prediction.backbones import whole_network
from featcache.prediction.facts import model_facts
from featcache.prediction.find import find_model
from featcache.reporting.bundle import write_facts
from featcache.store.weights_folder import file_stem


def copy_model(
    run: str | Path,
    folder: str | Path,
    *,
    standalone: bool = False,
    reports: str | Path = "reports",
    weights_dir: str | Path | None = None,
) -> Path:
    """Copy a run's model into a folder of its own, all or nothing.

    Parameters
    ----------
    run : str or Path
        See `load_model`.
    folder : str or Path
        Must not be there yet.
    standalone : bool, default False
        Put the backbones' weights in as safetensors, so that nothing else is needed. Without them
        `predict` looks for weights with the recorded sha256.
    reports : str or Path, default "reports"
    weights_dir : str or Path, optional
        A folder of weight files, searched first (default: FEATCACHE_WEIGHTS).

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    DataError
        Where the folder is there, or the run has no model.
    WeightsError
        Where weights are to be put in that can't be found.
    """
    source, target = find_model(run, reports), Path(folder).expanduser()
    facts = model_facts(source)
    refuse_existing(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for name in facts["files"]:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, temporary / name)
        if standalone and facts["kind"] == "features":
            facts["weights"] = _put_in(temporary, facts, source, weights_dir)
        write_facts(temporary, {k: v for k, v in facts.items() if k not in ("format", "files")})
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def refuse_existing(target: Path) -> None:
    """Refuse to write over a file or folder.

    Raises
    ------
    DataError
    """
    if target.exists():
        raise DataError(f"{target} is there already", "Name another, or remove it first.")


def _put_in(
    temporary: Path, facts: dict[str, Any], source: Path, weights_dir: str | Path | None
) -> dict[str, str]:
    """Write each backbone's weights; which file is whose."""
    from safetensors.torch import save

    had: dict[str, str] = facts.get("weights") or {}
    names = {}
    for number, entry in enumerate(facts["backbones"]):
        selector = entry["selector"]
        if selector in had:
            names[selector] = had[selector]
            continue
        # As it is once it is loaded, since older files may have other names for its tensors.
        network = whole_network(entry, weights_dir)
        name = f"weights/{number}-{file_stem(entry['name'])}.safetensors"
        (temporary / name).parent.mkdir(exist_ok=True)
        state = {k: v.detach().clone().contiguous() for k, v in network.state_dict().items()}
        (temporary / name).write_bytes(save(state))  # save_file makes it private
        names[selector] = name
    return names
