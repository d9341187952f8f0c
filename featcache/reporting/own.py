"""Own: what a run folder says of a fusion or head that the user passed as an object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featcache.fitting.grid import Candidate
from featcache.fitting.splits import Fold
from featcache.store.features import Features


def own_facts(
    candidate: Candidate,
    features: Features,
    folds: Sequence[Fold],
    cache: str | Path | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """What run.json holds beside the names; {} for a candidate of names only.

    Parameters
    ----------
    candidate : Candidate
    features : Features
        With the candidate's backbones only.
    folds : sequence of Fold
    cache : str or Path, optional
        The cache folder.
    options : mapping
        What `compare` was called with; `view` is what the features were loaded with.

    Returns
    -------
    dict
        `own`, the identity of each object; `command`, the Python that fits the run again: the
        command line takes names only.
    """
    if not candidate.own:
        return {}
    given = {name: value for name, value in options.items() if value}
    view = given.pop("view", None)
    repeats = given.get("repeats", 1)
    given |= {"folds": len(folds) // repeats} if len(folds) > 1 else {"test_split": True}
    objects = {role: candidate.own.get(role, getattr(candidate, role)) for role in _ROLES}
    words = ", ".join(f"{name}={value!r}" for name, value in (objects | given).items())
    files = [
        name if "@" in name else f"{name}@{key[:8]}"
        for name, key in zip(features.names, features.keys, strict=True)
    ]
    lines = [
        "# The command line takes no objects. In Python:",
        "import featcache as fc",
        *(f"from {type(one).__module__} import {type(one).__name__}"
          for one in candidate.own.values()),
        f"cache = fc.Cache({str(cache or 'cache')!r})",
        f"images = cache.images({features.data!r})",
        f"files = cache.choose({features.data!r}, {files!r})",
        f"features = cache.features(images, files{f', {view!r}' if view else ''})",
        f"fc.compare(features, singles=False, {words})",
    ]  # fmt: skip
    identities = {role: candidate.identity(role) for role in candidate.own}
    return {"own": identities, "command": "\n".join(lines)}


_ROLES = ("fusion", "head")
