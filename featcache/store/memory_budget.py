"""Memory budget: whether features fit into memory, or have to stay in their files."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import psutil

from featcache.errors import RecipeError, counted
from featcache.images.manifest import Images
from featcache.store.cache import Cache
from featcache.store.features import Features
from featcache.store.key import Entry

log = logging.getLogger("featcache")

AUTO = "auto"
_UNITS = {
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip
# A fit holds the features, its training rows, and those once more standardised and as its head
# takes them: each job of several all but the first.
_COPIES = 3
_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container or a batch job
_USED = Path("/sys/fs/cgroup/memory.current")


def parse_memory(text: str) -> int | None:
    """Bytes in "2GB" or "1.5 GiB"; None for "auto".

    Raises
    ------
    RecipeError
        For anything else.
    """
    if text == AUTO:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?B)\s*", str(text).upper())
    if not found:
        raise RecipeError(f"memory is {text!r}", "Give auto, or a size with its unit: 2GB, 512MiB.")
    return int(float(found[1]) * _UNITS[found[2]])


def free_memory() -> int:
    """Bytes that are free, in a container or batch job within its limit."""
    free = int(psutil.virtual_memory().available)
    try:
        return min(free, max(0, int(_LIMIT.read_text()) - int(_USED.read_text())))
    except (OSError, ValueError):  # no limit, or another system
        return free


def why_streamed(rows: int, dims: Sequence[int], memory: str = AUTO, jobs: int = 1) -> str:
    """A sentence on why these features must stay in their files; "" where they need not.

    Parameters
    ----------
    rows : int
        Views included.
    dims : sequence of int
        Width of each backbone's block.
    memory : str, default "auto"
        What a fit may take, "2GB"; "auto" is what is free.
    jobs : int, default 1
        Fits at a time.

    Raises
    ------
    RecipeError
        For a `memory` that is no size.
    """
    limit = parse_memory(memory)
    need = rows * sum(dims) * 4 * (1 + _COPIES * jobs)
    have = free_memory() if limit is None else limit
    if need <= have:
        return ""
    source = "are free" if limit is None else "are given"
    return (
        f"{counted(rows, 'row')} of {counted(sum(dims), 'column')} would take {_size(need)} to "
        "fit and "
        f"{_size(have)} {source}: they stay on disk and are read block by block"
    )


def load(
    store: Cache,
    images: Images,
    entries: Sequence[Entry],
    view: Sequence[str] = (),
    memory: str = AUTO,
    jobs: int = 1,
) -> Features:
    """`Cache.features`, in memory or left on disk, whichever `why_streamed` tells; and said so."""
    rows = len(images) * (1 + len(dict.fromkeys(view)))
    why = why_streamed(rows, [entry.dim for entry in entries], memory, jobs)
    if why:
        log.info("%s", why)
    return store.features(images, entries, view, lazy=bool(why))


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
