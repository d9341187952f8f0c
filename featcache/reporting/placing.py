"""Placing: a finished folder takes its name in one step, whoever else wants the same."""

from __future__ import annotations

import shutil
from pathlib import Path


def place(finished: Path, folder: Path, mark: str, again: bool) -> bool:
    """Rename a finished folder to `folder`.

    Parameters
    ----------
    finished, folder : Path
        Side by side.
    mark : str
        A file that every whole folder has. What lacks it is replaced.
    again : bool
        Whether a whole one is replaced too. If not, another process that did the same work was
        quicker, and goes on working in its folder.

    Returns
    -------
    bool
        Whether it was placed.
    """
    if again or not (folder / mark).is_file():
        shutil.rmtree(folder, ignore_errors=True)
    try:
        finished.replace(folder)
    except OSError:  # not empty
        if again or not (folder / mark).is_file():
            raise
        return False
    return True
