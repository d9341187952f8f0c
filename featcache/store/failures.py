"""failed.csv: the images of a data set that have no vector, and why."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping
from pathlib import Path

from featcache.atomic import regular
from featcache.csv_cells import read_cell
from featcache.images.manifest import Images, write_csv

log = logging.getLogger("featcache")

NOT_THERE = "the file is not there"


def write_failures(path: Path, images: Images, problems: Mapping[int, tuple[str, str]]) -> None:
    """Write the file, if it is another than the one that is there; without problems there is none.

    Parameters
    ----------
    path : Path
    images : Images
        Those that are `absent` are added, as "missing".
    problems : mapping of int to (str, str)
        Row of the manifest -> kind, "decode" or "read", and what is wrong.
    """
    if not problems and not images.absent:
        path.unlink(missing_ok=True)
        return
    wanted = [["id", "sha256", "kind", "problem"]]
    wanted += [
        [str(images.ids[row]), str(images.sha256[row]), kind, problem]
        for row, (kind, problem) in sorted(problems.items())
    ]
    wanted += [[id_, "", "missing", NOT_THERE] for id_ in images.absent]
    if read_failures(path) != wanted:  # it may be that it can't be written, and need not be
        write_csv(path, wanted[0], wanted[1:])


def read_failures(path: Path) -> list[list[str]]:
    """The rows of failed.csv with its header; none if it isn't there, or damaged."""
    if not path.is_file():
        return []
    try:
        with regular(path).open(newline="", encoding="utf-8") as file:
            return [[read_cell(text) for text in row] for row in csv.reader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        log.warning("%s is left out, and written again by the next extract: %s", path, error)
        return []
