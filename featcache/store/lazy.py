"""Stored: vectors that stay in their files, and are read a block of rows at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import CacheRefused, FeatcacheError
from featcache.store.feature_file import Digests, FeatureFile, damaged_rows, refuse_damaged
from featcache.store.key import Entry, Key

Floats = NDArray[np.float32]
Rows = NDArray[np.intp]

_GAP = 2**16  # bytes between two rows that are sooner read than skipped
_PIECE = 2**23  # bytes read at a time


@dataclass(frozen=True)
class _File:
    """Where in a file the vectors stand, and what it was when they were looked up."""

    path: Path
    key: Key
    offset: int
    digests_at: int
    checksums_at: int
    dtype: np.dtype[Any]
    rows: int
    dim: int
    identity: tuple[int, int, int]

    @classmethod
    def of(cls, entry: Entry, rows: Rows, digests: Digests) -> _File:
        identity = _identity(entry.path.stat())  # of this file or of one that it has replaced
        with FeatureFile(entry.path) as file:
            file.check_rows(rows, digests)
            return cls(
                path=entry.path,
                key=entry.key,
                offset=file.offset("features"),
                digests_at=file.offset("sha256"),
                checksums_at=file.offset("checksum"),
                dtype=np.dtype(file.key.dtype),
                rows=len(file),
                dim=file.dim,
                identity=identity,
            )

    def read(self, rows: Rows, columns: slice, out: Floats, places: Rows) -> None:
        """Put `columns` of the sorted `rows` at `places` of `out`, and check each row.

        With plain reads: the pages of a memory map would count as the process's own.
        """
        width = self.dim * self.dtype.itemsize  # bytes
        try:
            with self.path.open("rb", buffering=0) as file:
                if _identity(os.fstat(file.fileno())) != self.identity:
                    raise CacheRefused(
                        f"{self.path} changed while it was read", "Run the command again."
                    )
                for first, last in _spans(rows, _GAP // width, max(1, _PIECE // width)):
                    low, high = int(rows[first]), int(rows[last - 1]) + 1
                    span = self._part(file, self.offset, low, high, self.dtype, self.dim)
                    self._check(file, low, rows[first:last], span)
                    steps = rows[first:last] - low
                    if len(span) != len(steps) or (steps != np.arange(len(steps))).any():
                        span = span[steps]  # with gaps, or some row twice
                    out[places[first:last]] = span[:, columns]
        except OSError as error:
            raise CacheRefused(
                f"{self.path} can't be read: {error.strerror or error}", "Run the command again."
            ) from None

    def _check(self, file: Any, low: int, rows: Rows, span: NDArray[Any]) -> None:
        high = low + len(span)
        digests = self._part(file, self.digests_at, low, high, np.dtype(np.uint8), 32)
        stored = self._part(file, self.checksums_at, low, high, np.dtype(np.uint32), 1)[:, 0]
        bad = low + damaged_rows(digests, span, stored)
        bad = bad[np.isin(bad, rows)]
        if len(bad):
            raise refuse_damaged(self.path, self.key, bad.tolist(), digests[bad - low])

    def _part(
        self, file: Any, offset: int, low: int, high: int, dtype: np.dtype[Any], width: int
    ) -> NDArray[Any]:
        """Rows low … high of a data set of shape (n, width)."""
        part = np.empty((high - low, width), dtype)
        file.seek(offset + low * width * dtype.itemsize)
        self._fill(file, part.reshape(-1).view(np.uint8))
        return part

    def _fill(self, file: Any, buffer: NDArray[np.uint8]) -> None:
        done = 0
        while done < len(buffer):
            count = file.readinto(buffer[done:])
            if not count:
                raise CacheRefused(
                    f"{self.path} is cut short", "Delete it and run the extract command again."
                )
            done += count


@dataclass(frozen=True, eq=False)
class _Block:
    """Columns of one backbone: its files, one under the other, and where each row stands there."""

    files: tuple[_File, ...]
    where: Rows
    columns: slice

    @property
    def width(self) -> int:
        return int(self.columns.stop - self.columns.start)

    def read(self, rows: Rows, out: Floats) -> None:
        stand = self.where[rows]
        order = np.argsort(stand, kind="stable")
        ordered = stand[order]
        start = 0
        for file in self.files:
            low, high = np.searchsorted(ordered, (start, start + file.rows))
            if low < high:
                file.read(ordered[low:high] - start, self.columns, out, order[low:high])
            start += file.rows


class LazyRows:
    """Rows of feature files, side by side and one under the other, that are not in memory.

    Like a float32 array of shape (n, d) where that is cheap: it has `shape`, `dtype`, `ndim`,
    `nbytes` (of that array) and a length; `X[3]`, `X[2:9]`, `X[rows]` and `X[mask]` are read and
    come as float32 arrays; `X[:, columns]` is again one of these. It can be pickled: what goes
    along is where the rows are.

    Raises
    ------
    CacheRefused
        On reading, if a file is another than before, gone or cut short, or a row doesn't agree
        with its checksum.
    """

    ndim = 2
    dtype = np.dtype(np.float32)

    def __init__(self, blocks: Sequence[_Block], index: Rows) -> None:
        self._blocks = tuple(blocks)
        self._index = index  # (n,) which of the blocks' rows

    def __repr__(self) -> str:
        return f"Stored({len(self):,} x {self.shape[1]:,})"

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self._index), sum(block.width for block in self._blocks)

    @property
    def nbytes(self) -> int:
        """Bytes that all of it would take as float32."""
        n, d = self.shape
        return n * d * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: Any) -> Any:
        """Rows as a float32 array; with `[:, columns]` a `LazyRows` of these columns."""
        if isinstance(index, tuple):
            rows, columns = index
            chosen = self._some_columns(columns)
            return chosen if isinstance(rows, slice) and rows == slice(None) else chosen[rows]
        if isinstance(index, (int, np.integer)):
            return self._read(self._index[np.array([index])])[0]  # (d,)
        return self._read(self._index[index])  # (m, d)

    def __array__(self, *_: Any, **__: Any) -> Floats:
        raise FeatcacheError(
            f"{self!r} stays on disk and can't be made one array",
            "Load it into memory: --memory, or Cache.features without lazy.",
        )

    def take(self, index: Any) -> LazyRows:
        """The rows at `index` (positions, a slice or a boolean mask), still on disk."""
        return LazyRows(self._blocks, self._index[index])

    def file_order(self) -> Rows:
        """The positions of all rows in the order in which they stand in the first file, (n,)."""
        return np.argsort(self._blocks[0].where[self._index], kind="stable")

    def _read(self, rows: Rows) -> Floats:
        out = np.empty((len(rows), self.shape[1]), np.float32)  # (m, d)
        start = 0
        for block in self._blocks:
            block.read(rows, out[:, start : start + block.width])
            start += block.width
        return out

    def _some_columns(self, columns: Any) -> LazyRows:
        wanted = np.arange(self.shape[1])[columns]
        cuts = np.flatnonzero(np.diff(wanted) != 1) + 1
        found = []
        for run in np.split(wanted, cuts) if len(wanted) else []:
            start = 0
            for block in self._blocks:
                low, high = max(int(run[0]), start), min(int(run[-1]) + 1, start + block.width)
                if low < high:
                    begin = block.columns.start - start
                    found.append(replace(block, columns=slice(begin + low, begin + high)))
                start += block.width
        return LazyRows(found, self._index)


def stored_tables(
    tables: Sequence[Sequence[Entry]], where: Sequence[Rows], keep: Rows, digests: Digests
) -> LazyRows:
    """Vectors of several views, one view under the other, left where they are.

    Parameters
    ----------
    tables : sequence of sequences of Entry
        For each view its entries, which stand side by side.
    where : sequence of int arrays
        For each entry, in that order, the row of each image.
    keep : int array of shape (n,)
        The images wanted.
    digests : uint8 array of shape (n, 32)
        Their contents.

    Raises
    ------
    CacheRefused
        If a file is damaged, or another one has replaced it meanwhile.
    """
    blocks = []
    for place in range(len(tables[0])):
        rows = [mine[keep] for mine in where[place :: len(tables[0])]]
        files = tuple(
            _File.of(table[place], mine, digests) for table, mine in zip(tables, rows, strict=True)
        )
        starts = np.cumsum([0, *(file.rows for file in files[:-1])])
        stand = [mine + start for mine, start in zip(rows, starts.tolist(), strict=True)]
        blocks.append(_Block(files, np.concatenate(stand), slice(0, files[0].dim)))
    return LazyRows(blocks, np.arange(len(keep) * len(tables)))


def _identity(stat: os.stat_result) -> tuple[int, int, int]:
    """What differs where another file stands under the name, or it was written to."""
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _spans(rows: Rows, gap: int, most: int) -> Iterator[tuple[int, int]]:
    """Sorted rows cut into runs (first, last) of near ones, none over more than `most` rows."""
    cuts = np.flatnonzero(np.diff(rows) > gap + 1) + 1
    for first, last in zip([0, *cuts.tolist()], [*cuts.tolist(), len(rows)], strict=True):
        while int(rows[last - 1]) - int(rows[first]) >= most:
            part = int(np.searchsorted(rows[first:last], rows[first] + most)) + first
            yield first, part
            first = part
        yield first, last
