"""Stream: rows that stay on disk, as the steps of a pipeline so far have left them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler

from featcache.store.lazy import Stored

Rows = NDArray[np.intp]
T = TypeVar("T")

_BLOCK = 2**24  # bytes of float32 in a block; some five times as much is held at a time


@dataclass(frozen=True, eq=False)
class Stream:
    """A matrix (n, d) of which a block of rows at a time is in memory.

    Attributes
    ----------
    X : Stored
        The rows on disk.
    steps : tuple
        Fitted transformers that each block goes through when it is read, in order.
    """

    X: Stored
    steps: tuple[Any, ...] = ()

    def __len__(self) -> int:
        return len(self.X)

    @cached_property
    def width(self) -> int:
        """Columns after the steps."""
        return int(self.read(np.arange(1)).shape[1])

    @cached_property
    def order(self) -> Rows:
        """All rows, in the order in which they are on disk: the quickest to read, (n,)."""
        return self.X.file_order()

    @property
    def block_rows(self) -> int:
        """Rows of a block."""
        return max(1, _BLOCK // (4 * max(self.X.shape[1], self.width)))

    def then(self, step: Any) -> Stream:
        """What a fitted transformer makes of it."""
        return Stream(self.X, (*self.steps, step))

    def take(self, index: Any) -> Stream:
        """The rows at `index` (positions, a slice or a boolean mask)."""
        return replace(self, X=self.X.take(index))

    def columns(self, part: slice) -> Stream:
        """Some columns of it; of one without steps the others are not even read."""
        return self.then(_Columns(part)) if self.steps else replace(self, X=self.X[:, part])

    def read(self, rows: Rows) -> NDArray[Any]:
        """These rows, (m, width)."""
        block: NDArray[Any] = self.X[rows]  # (m, d)
        for step in self.steps:
            block = step.transform(block)
        return block  # (m, width)

    def blocks(self) -> Iterator[tuple[Rows, NDArray[Any]]]:
        """All rows once, in the order of the disk: positions (m,) and values (m, width)."""
        return self.pieces(self.order, self.block_rows)

    def pieces(self, rows: Rows, size: int) -> Iterator[tuple[Rows, NDArray[Any]]]:
        """These rows in this order, `size` at a time, the next being read meanwhile."""
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        values = ahead(partial(self.read, part) for part in parts)
        return zip(parts, values, strict=True)


class _Columns:
    """A step that leaves some columns."""

    def __init__(self, part: slice) -> None:
        self.part = part

    def transform(self, X: NDArray[Any]) -> NDArray[Any]:
        return X[:, self.part]


def ahead(works: Iterable[Callable[[], T]]) -> Iterator[T]:
    """What the calls return, each made in a thread while the one before it is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="featcache-read") as thread:
        coming = None
        for work in works:
            ready, coming = coming, thread.submit(work)
            if ready is not None:
                yield ready.result()
                ready = None
        if coming is not None:
            yield coming.result()


def some_rows(X: Any, rows: Rows) -> Any:
    """The rows of an array, or of a stream, which stay on disk."""
    return X.take(rows) if isinstance(X, Stream) else X[rows]


def standardise(stream: Stream) -> StandardScaler:
    """A StandardScaler of the stream's columns, as `fit` makes it of a matrix in memory."""
    scaler = StandardScaler()
    for _, block in stream.blocks():
        scaler.partial_fit(block)
    return scaler
