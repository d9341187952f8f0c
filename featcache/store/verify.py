"""Verify: read every byte of the feature files, and locate what is damaged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featcache.errors import CacheDenied, CacheMissing, CacheRefused, DataError, counted
from featcache.store.cache import Cache
from featcache.store.file import FeatureFile, to_hex
from featcache.store.writing import hold


@dataclass(frozen=True)
class Finding:
    """What verification found in one file.

    Attributes
    ----------
    path : Path
    rows : int
        Rows that were checked.
    problem : str
        "" where all is well.
    damaged : tuple of str
        Ids of the images whose rows are damaged (their sha256 where the manifest has none).
    readable : bool
        False where there is no permission: nothing is known of the file then.
    """

    path: Path
    rows: int
    problem: str = ""
    damaged: tuple[str, ...] = ()
    readable: bool = True

    def __str__(self) -> str:
        if not self.problem:
            return f"ok       {self.path}, {counted(self.rows, 'row')}"
        if not self.readable:
            return f"DENIED   {self.path}: {self.problem}"
        shown = ", ".join(self.damaged[:5]) + (", …" if len(self.damaged) > 5 else "")
        return f"DAMAGED  {self.path}: {self.problem}{': ' if shown else ''}{shown}"


def verify(cache: Cache, data: str) -> list[Finding]:
    """Check every finished file of a data set: its key, its marks, and each row's checksum."""
    folder = cache.folder / data
    return [verify_file(path, _ids(cache, data)) for path in sorted(folder.glob("[!.]*.h5"))]


def verify_file(path: Path, ids: dict[str, str]) -> Finding:
    """Check one file; `ids` maps sha256 to image id."""
    try:
        with FeatureFile(path) as file:
            if path.name != f"{file.key.stem}.h5":
                return Finding(path, len(file), f"its name does not fit its key {file.key.key8}")
            if not file.complete:
                return Finding(path, len(file), "it was never finished")
            bad = np.flatnonzero(~file.good())
            if not len(bad):
                return Finding(path, len(file))
            damaged = tuple(ids.get(sha, sha) for sha in to_hex(file.digests[bad]))
            rows = ", ".join(str(row) for row in bad[:5]) + (", …" if len(bad) > 5 else "")
            problem = (
                f"{len(bad)} of {counted(len(file), 'row')} don't fit their checksum (rows {rows})"
            )
            return Finding(path, len(file), problem, damaged)
    except CacheDenied:
        return Finding(path, 0, "no permission to read it", readable=False)
    except CacheRefused as error:
        return Finding(path, 0, error.problem)


def repair(finding: Finding) -> str:
    """Take a damaged file out of use, so that the next extraction keeps only its good rows.

    One that may not be read stays as it is.

    Returns
    -------
    str
        What was done.
    """
    path = finding.path
    if not finding.readable:
        return f"{path.name} was left as it is: give yourself permission to read it"
    with hold(path):  # a writer at work would put the file back in its place
        if finding.damaged:
            path.replace(path.with_name(f".{path.name}.partial"))
            return f"{counted(len(finding.damaged), 'row')} of {path.name} will be embedded again"
        path.replace(path.with_name(f"{path.name}.damaged"))
    return f"{path.name} was renamed to {path.name}.damaged; it will be extracted again"


def _ids(cache: Cache, data: str) -> dict[str, str]:
    try:
        images = cache.images(data)
    except (CacheMissing, DataError):
        return {}
    return dict(zip(images.sha256.tolist(), images.ids.tolist(), strict=True))
