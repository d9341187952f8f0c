"""Seal: the digest of a finished feature file, but for what the checksums of its rows cover.

It stands behind HDF5's own bytes, and is checked before libhdf5 sees the file: some flipped bits
make that crash, hang or misread. Files of older versions have none. It is no signature.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from featcache.atomic import is_hollow
from featcache.errors import CacheRefused

_MARK = b"featcache seal 1"
_SEAL = struct.Struct("<16s8Q32s")  # mark; where `_OF_ROWS` begin and end; sha256 of all else
_PART = 2**20  # bytes
_AGAIN = "Delete it and run the extract command again."


def seal(path: Path, spans: Sequence[int]) -> None:
    """End a file with the digest of what is outside the spans, each a begin and an end."""
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        digest = _digest_outside(file, spans, end)
        file.seek(end)
        file.write(_SEAL.pack(_MARK, *spans, digest))


def check_seal(path: Path, remove: bool, needed: bool = False) -> None:
    """Refuse a file that doesn't fit its seal; before it is written to, its seal is taken off.

    If `needed`, one without a seal is refused too.
    """
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END) - _SEAL.size
        file.seek(max(end, 0))
        mark, *spans, digest = _SEAL.unpack(file.read(_SEAL.size).ljust(_SEAL.size))
        if end < 0 or mark != _MARK:
            if needed:
                raise CacheRefused(f"{path} is damaged: its seal is missing", _AGAIN)
            return
        outside = sum(high - low for low, high in _outside(spans, end))
        if is_hollow(path, outside) or digest != _digest_outside(file, spans, end):
            raise CacheRefused(
                f"{path} is damaged: what it says of its rows doesn't fit its checksum", _AGAIN
            )
    if remove:
        os.truncate(path, end)


def _digest_outside(file: BinaryIO, spans: Sequence[int], end: int) -> bytes:
    digest = hashlib.sha256(repr((spans, end)).encode())
    for low, high in _outside(spans, end):
        file.seek(low)
        while low < high and (part := file.read(min(high - low, _PART))):
            digest.update(part)
            low += len(part)
    return digest.digest()


def _outside(spans: Sequence[int], end: int) -> Iterator[tuple[int, int]]:
    """What lies before `end` and outside of the spans."""
    start = 0
    for low, high in [*sorted(zip(spans[::2], spans[1::2], strict=True)), (end, end)]:
        if start < min(low, end):
            yield start, min(low, end)
        start = min(max(start, high), end)
