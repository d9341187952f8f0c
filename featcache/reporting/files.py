"""Files: written whole or not at all, and images as text that a page can hold."""

from __future__ import annotations

import base64
import os
from pathlib import Path

from featcache.atomic import replacing
from featcache.errors import FeatcacheError

_KINDS = {".png": "image/png", ".svg": "image/svg+xml", ".jpg": "image/jpeg"}


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text beside `path`, then put it in its place.

    A reader, or a second process that writes the same file, never meets half of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")
    return path


def data_uri(content: bytes, ending: str) -> str:
    """An image's bytes as a `data:` address; `ending` is ".png", ".svg" or ".jpg"."""
    return f"data:{_KINDS[ending]};base64,{base64.b64encode(content).decode('ascii')}"


def need_writable(folder: Path) -> None:
    """Refuse a folder that can't take the runs before the first one is fitted, and lost.

    Raises
    ------
    FeatcacheError
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        why = "" if os.access(folder, os.W_OK | os.X_OK) else "no permission"
    except OSError as error:
        why = error.strerror or str(error)
    if why:
        raise FeatcacheError(
            f"{folder} can't be written: {why}", "Choose another with --reports FOLDER."
        )
