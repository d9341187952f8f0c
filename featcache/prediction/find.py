"""Find the model that a user means."""

from __future__ import annotations

from pathlib import Path

from featcache.errors import DataError
from featcache.reporting.bundle import FACTS, FOLDER
from featcache.reporting.named import find_run
from featcache.reporting.redo import refit_remedy


def find_model(run: str | Path, reports: str | Path = "reports") -> Path:
    """The bundle's folder of a run.

    Parameters
    ----------
    run : str or Path
        A run folder, its `model/` folder or a copy of that, or the beginning of a run folder's
        name below `reports`, see `find_run`.
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
        folder = find_run(str(run), reports)
    if (folder / FACTS).is_file():
        return folder
    if (folder / FOLDER / FACTS).is_file():
        return folder / FOLDER
    if (folder / "run.json").is_file():
        raise DataError(f"{folder} has no model", refit_remedy(folder, again=False))
    raise DataError(
        f"{folder} is neither a run folder nor a model",
        "Pass a folder that holds run.json or model.json.",
    )
