"""Batches: where the training loop's rows come from, memory or disk."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featcache.fitting.stream import Stream, ahead

_CHUNK = 4096
_RUN = 2**16  # bytes of neighbouring rows that are read together
_BUFFER = 2**26  # bytes of float32 rows that are shuffled together


class Batches(Protocol):
    """The rows of a matrix X (n, d) in pieces, each with its positions."""

    def shuffled(
        self, rows: Tensor, size: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The rows in a random order, in batches: (b, d) and (b,)."""

    def in_order(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The rows in any fixed order, in larger pieces."""


class InMemory:
    """Of a float32 tensor (n, d)."""

    def __init__(self, X: Tensor) -> None:
        self._X = X

    def shuffled(
        self, rows: Tensor, size: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Every order is as likely."""
        order = rows[torch.randperm(len(rows), generator=generator)]
        for part in torch.split(order, size):
            yield self._X.index_select(0, part), part

    def in_order(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """As they are given."""
        for part in torch.split(rows, _CHUNK):
            yield self._X.index_select(0, part), part


class OnDisk:
    """Of a stream: runs of neighbouring rows in random order, shuffled again in a buffer.

    The buffer takes a thousand runs or more, so that a batch has rows from all over the file even
    where the file goes class by class. A matrix no larger than it is shuffled as in memory.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        d = max(stream.X.shape[1], stream.width)
        self._run = max(1, _RUN // (4 * stream.X.shape[1]))
        self._buffer = max(1, _BUFFER // (4 * d))
        self._place = np.empty(len(stream), np.intp)  # (n,) of each row on the disk
        self._place[stream.order] = np.arange(len(stream))

    def shuffled(
        self, rows: Tensor, size: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Random runs, the next buffer being read while the batches of one are used."""
        buffer = max(1, self._buffer // size) * size
        parts = [
            part[torch.randperm(len(part), generator=generator)]
            for part in torch.split(self._runs(rows, generator), buffer)
        ]
        for part, X in zip(parts, ahead(partial(self._read, part) for part in parts), strict=True):
            yield from zip(torch.split(X, size), torch.split(part, size), strict=True)

    def in_order(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """As they are on the disk."""
        parts = torch.split(rows[self._disk_order(rows)], _CHUNK)
        read = ahead(partial(self._read, part) for part in parts)
        return zip(read, parts, strict=True)

    def _runs(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """The rows, each run of neighbours together, the runs in random order."""
        ordered = rows[self._disk_order(rows)]  # (m,)
        runs = -(-len(ordered) // self._run)
        starts = torch.randperm(runs, generator=generator) * self._run  # (runs,)
        places = (starts[:, None] + torch.arange(self._run)).flatten()  # (runs * run,)
        return ordered[places[places < len(ordered)]]

    def _disk_order(self, rows: Tensor) -> Tensor:
        order: NDArray[np.intp] = np.argsort(self._place[rows.numpy()], kind="stable")
        return torch.from_numpy(order)

    def _read(self, rows: Tensor) -> Tensor:
        X: NDArray[Any] = self._stream.read(rows.numpy())  # (b, width)
        return torch.from_numpy(np.require(X, np.float32, ["C", "W"]))
