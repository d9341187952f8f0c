"""Memory: how much more of it a piece of work made the process hold."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil

_EVERY = 0.005  # seconds


class PeakMemory:
    """The highest resident memory seen while the block runs, less that at its start.

    Looked at every 5 ms, so that shorter peaks are missed. Memory that the process already held
    and uses again is not seen either: the figure is a lower bound of what the work needs, and
    what it adds to a process that holds the features.

    Attributes
    ----------
    bytes : int
        Known after the block; at least 0.
    """

    def __enter__(self) -> PeakMemory:
        self._process = psutil.Process()
        self._start = self._peak = self._process.memory_info().rss
        self._done = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._peak = max(self._peak, self._process.memory_info().rss)
        self._done.set()
        self._watch.join()
        self.bytes = int(max(0, self._peak - self._start))

    def _look(self) -> None:
        while not self._done.wait(_EVERY):
            self._peak = max(self._peak, self._process.memory_info().rss)
