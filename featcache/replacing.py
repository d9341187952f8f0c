"""Replacing a file: a reader finds the old one or the new one, never half of either."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_native_id


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
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
