"""Disk: room, permission and durability, with errors that say what to do."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featcache.errors import CacheUnwritable, FeatcacheError


def check_space(path: Path, what: str, needed: int) -> None:
    """Refuse to begin a file of `needed` bytes, for `what`, that its disk has no room for."""
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise CacheUnwritable(
            f"{path.parent} has {free / 1e9:.2f} GB free, and {what} needs {needed / 1e9:.2f} GB",
            "Free some space (featcache cache prune --help), or choose another folder with "
            "--cache, and run the same command again.",
        )


@contextmanager
def guard_writes(path: Path) -> Iterator[None]:
    """Say what to do when a folder refuses to be written."""
    try:
        yield
    except FeatcacheError:
        raise
    except (OSError, RuntimeError) as error:  # HDF5 raises both
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        why = "the disk is full" if full else str(error)
        raise CacheUnwritable(
            f"{path} can't be written: {why}",
            "Free some space and run the same command again: what is done is kept."
            if full
            else "Check the folder's permissions, or choose another one with --cache.",
        ) from None


def sync(path: Path) -> None:
    """Push a file or folder to the disk, where the system can."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some network file systems refuse to sync a folder
        if not path.is_dir():
            raise
    finally:
        os.close(handle)
