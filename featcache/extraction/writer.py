"""Writer: one thread that writes finished batches while the next are computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

_AHEAD = 1  # batches that may be on their way to the disk: a kill loses no more


class Writer:
    """Runs what it is given in order, in one thread.

    An error there is raised by a later `submit`, or when the block ends. What was submitted
    before an error or an interrupt is still written.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="featcache-write")
        self._waiting: deque[Future[None]] = deque()

    def submit(self, work: Callable[[], None]) -> None:
        """Run `work` after all that was submitted before; waits while too much is under way."""
        while len(self._waiting) >= _AHEAD:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(work))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True)
        if error is None:
            for done in self._waiting:
                done.result()
