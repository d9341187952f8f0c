"""Canonical JSON, and sha256 of bytes, files, arrays and dicts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text.

    Raises
    ------
    ValueError
        For NaN and infinities, which JSON can't say.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def sha256_bytes(data: bytes) -> str:
    """The 64 hex digits of sha256."""
    return hashlib.sha256(data).hexdigest()


def sha256_json(value: Any) -> str:
    """sha256 of the canonical JSON of a plain value."""
    return sha256_bytes(canonical_json(value).encode())


def sha256_pieces(pieces: Iterable[str]) -> str:
    """sha256 of texts, one behind the other, that together may be too long for memory."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece.encode())
    return digest.hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_array(array: np.ndarray[Any, Any]) -> str:
    """sha256 of an array's dtype, shape and values: the same bytes in another shape differ."""
    head = f"{array.dtype.str} {array.shape}\n".encode()
    return sha256_bytes(head + array.tobytes())
