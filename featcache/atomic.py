"""Atomic: a file or folder takes its name whole or not at all; and what a disk may refuse."""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import get_native_id

from featcache.errors import CacheUnwritable, FeatcacheError

_LARGE = 2**28  # bytes
SETTLED = 3600.0  # seconds after a change when nobody is at a temporary file any more
FREE_SOME = "Free some space and run the same command again: what is done is kept."


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file beside `path`, which takes its place when the block has ended well.

    The temporary file's name is this thread's own, so that two that write the same file don't
    meet; after an error nothing is left of it.

    Parameters
    ----------
    path : Path
        Its folder must be there.

    Yields
    ------
    Path
        What to write to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{get_native_id()}.tmp")
    sweep(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def making_folder(path: Path) -> Iterator[Path]:
    """The name of a folder beside `path` to write into, and to rename when it is whole.

    After the block nothing is left under that name.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    sweep(path)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep(path: Path) -> None:
    """Delete what killed processes have left beside `path` while they were writing it."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError):  # another process may sweep too
            if time.time() - left.lstat().st_mtime < SETTLED:
                continue
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            else:
                left.unlink()


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
        full = is_full(error)
        why = "the disk is full" if full else str(error)
        raise CacheUnwritable(
            f"{path} can't be written: {why}",
            FREE_SOME
            if full
            else "Check the folder's permissions, or choose another one with --cache.",
        ) from None


def is_full(error: BaseException) -> bool:
    """Whether a disk, or the user's part of it, is full."""
    numbers = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in numbers or "No space left" in str(error)


def regular(path: Path) -> Path:
    """The path of a file that is to be read; a pipe would be waited for, a device never ends.

    Raises
    ------
    OSError
        If something else is there, or a file of nothing but holes. That nothing is there is seen
        when it is opened.
    """
    if path.exists():
        if not path.is_file():
            raise OSError(f"{path} is no file")
        if is_hollow(path, size := path.stat().st_size):
            raise OSError(f"{path} says that it has {size / 1e9:,.0f} GB, and has not")
    return path


def is_hollow(path: Path, needed: int) -> bool:
    """Whether that many bytes of a file, which hardly compress, are by far more than it takes.

    A disk of some kilobytes can hold a file of holes that no memory can. Small ones do no harm,
    and a disk may take its time to say how much they take.
    """
    if needed <= _LARGE or not hasattr(os, "SEEK_DATA"):
        return False
    if taken := path.stat().st_blocks * 512:
        return taken < needed // 64
    with path.open("rb") as file:  # there is nothing at all, or the system doesn't say
        try:
            os.lseek(file.fileno(), 0, os.SEEK_DATA)
        except OSError as error:
            return error.errno == errno.ENXIO
    return False


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


def place(finished: Path, folder: Path, mark: str, again: bool) -> bool:
    """Rename a finished folder to `folder`; what it replaces is then under its old name.

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
    replaced = again or not (folder / mark).is_file()
    if replaced and folder.is_dir() and not folder.is_symlink():
        _exchange(finished, folder)
        return True
    try:
        finished.replace(folder)
    except OSError:  # not empty
        if replaced:
            raise
        return False
    return True


def _exchange(one: Path, other: Path) -> None:
    """Two folders take each other's names: at once, or where that can't be, almost."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if rename and not rename(here, os.fsencode(one), here, os.fsencode(other), exchange):
        return
    aside = other.with_name(f".{other.name}.{os.getpid()}-old.tmp")
    other.rename(aside)
    try:
        one.rename(other)
    except BaseException:
        aside.rename(other)
        raise
    aside.rename(one)
