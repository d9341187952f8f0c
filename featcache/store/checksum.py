"""Checksum: CRC-32 of each stored row, and a check of many rows that costs a fraction of it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import CacheRefused, DataError, counted
from featcache.images.manifest import IMAGES_CSV, read_images_csv
from featcache.images.sources import read_origin
from featcache.store.key import Entry, Key
from featcache.store.spec import extract_commands, in_cache

Digests = NDArray[np.uint8]
ROWS_CHECKED = 31 * 33  # rows that are read and checked together, while they are in a near cache
_LINE = 33  # odd, as 31 is: damage at regular distances then hits some line an odd number of times
_SHOWN = 5


def checksums(digests: Digests, features: NDArray[Any]) -> NDArray[np.uint32]:
    """CRC-32 of each row's digest and vector, uint32 of shape (n,)."""
    rows = np.ascontiguousarray(features).view(np.uint8)  # (n, d * itemsize)
    return np.fromiter(
        (zlib.crc32(row, zlib.crc32(digest)) for digest, row in zip(digests, rows, strict=True)),
        np.uint32,
        count=len(rows),
    )


def damaged_rows(
    digests: Digests, features: NDArray[Any], stored: NDArray[np.uint32]
) -> NDArray[np.intp]:
    """Positions of the rows whose CRC-32 is not the stored one.

    The CRC of every row is only taken if `_agree` finds that something is wrong.
    """
    found = [np.empty(0, np.intp)]
    for start in range(0, len(features), ROWS_CHECKED):
        part = slice(start, start + ROWS_CHECKED)
        if not _agree(digests[part], features[part], stored[part]):
            differs = checksums(digests[part], features[part]) != stored[part]
            found.append(start + np.flatnonzero(differs))
    return np.concatenate(found)


def _agree(digests: Digests, features: NDArray[Any], stored: NDArray[np.uint32]) -> bool:
    """Whether the sums (XOR) of rows agree with the sums of their stored CRCs.

    The CRC of a sum of rows of one length is the sum of their CRCs; for an even number of rows
    plus that of a row of zeros. The rows stand in a grid, of which each line and each column is
    summed: damage to one, two or three rows is found as surely as by the CRC of each row, and to
    more unless the same bits differ in four rows at the corners of a rectangle. Two rows that
    have changed places are found too.
    """
    vectors = np.ascontiguousarray(features)
    size = next(size for size in (8, 4, 2, 1) if vectors[:1].nbytes % size == 0)
    words = vectors.view(f"u{size}")  # (n, d * itemsize / size)
    odd = _sums(np.ones((len(words), 1), np.uint32))[:, 0]  # 1 for a sum of an odd number of rows
    zeros = np.uint32(zlib.crc32(bytes(digests.shape[1] + vectors[:1].nbytes)))
    expected = _sums(stored[:, None])[:, 0] ^ (zeros * (1 - odd))
    return np.array_equal(
        checksums(_sums(digests.view(np.uint64)).view(np.uint8), _sums(words)), expected
    )


def _sums(rows: NDArray[Any]) -> NDArray[Any]:
    """XOR of the rows in each line of the grid, and in each of its columns."""
    short = -len(rows) % _LINE
    if short:
        rows = np.concatenate([rows, np.zeros((short, rows.shape[1]), rows.dtype)])
    grid = rows.reshape(-1, _LINE, rows.shape[1])  # (lines, columns, width)
    return np.concatenate(
        [np.bitwise_xor.reduce(grid, axis=1), np.bitwise_xor.reduce(grid, axis=0)]
    )


def refuse_damaged(path: Path, key: Key, rows: Sequence[int], digests: Digests) -> CacheRefused:
    """The error for rows of a finished file that don't agree with their checksum.

    Parameters
    ----------
    path : Path
    key : Key
        Of the file.
    rows : sequence of int
        The damaged ones.
    digests : uint8 array of shape (n, 32)
        Their images' contents.
    """
    entry = Entry(path.parent.name, path, key, 0, 0, 0, 0.0)
    ids = _ids(path)
    contents = [digest.tobytes().hex() for digest in digests[:_SHOWN]]
    names = [ids.get(sha256, f"sha256 {sha256[:12]}…") for sha256 in contents]
    shown = ", ".join(f"row {row}: {name}" for row, name in zip(rows, names, strict=False))
    does = "doesn't fit its checksum" if len(rows) == 1 else "don't fit their checksums"
    count = f"{counted(len(rows), 'row')} {does}"
    more = ", …" if len(rows) > _SHOWN else ""
    return CacheRefused(
        f"{path} is damaged: {count} ({shown}{more})",
        f"{in_cache(('featcache', 'cache', 'verify', '--repair', '--data', entry.data), entry)}\n"
        f"{extract_commands([entry], read_origin(path.parent).source)}",
    )


def _ids(path: Path) -> dict[str, str]:
    """sha256 -> id of the images beside a feature file, as far as they are listed."""
    try:
        images = read_images_csv(path.with_name(IMAGES_CSV), path.parent.name)
    except (OSError, DataError):
        return {}
    return dict(zip(images.sha256.tolist(), images.ids.tolist(), strict=True))
