"""A Dask scheduler and workers, each a process of its own that a test may kill."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


class Machines:
    """Processes around one scheduler file; all end with the block."""

    address = "127.0.0.1"  # the scheduler's

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "scheduler.json"
        self.scheduler: subprocess.Popen[bytes] | None = None
        self.workers: list[subprocess.Popen[bytes]] = []
        self.folder.mkdir(parents=True, exist_ok=True)

    def start_scheduler(self) -> None:
        self.file.unlink(missing_ok=True)
        self.scheduler = self._start("scheduler", {}, "--host", self.address, "--port", "0",
                                     "--scheduler-file", str(self.file))  # fmt: skip
        for _ in range(600):
            if self.file.is_file():
                return
            time.sleep(0.05)
        raise AssertionError("the scheduler never started")

    def start_worker(self, preload: str = "", **env: str) -> subprocess.Popen[bytes]:
        """Another worker; `preload` is Python that it runs first."""
        words = ["--scheduler-file", str(self.file), "--no-nanny", "--nthreads", "1",
                 "--memory-limit", "0", "--local-directory", str(self.folder)]  # fmt: skip
        if preload:
            script = self.folder / f"preload{len(self.workers)}.py"
            script.write_text(preload)
            words += ["--preload", str(script)]
        self.workers.append(self._start("worker", env, *words))
        return self.workers[-1]

    def kill_worker(self, number: int) -> None:
        """kill -9, and another in its place."""
        self.workers[number].kill()
        self.workers[number].wait()
        self.start_worker()
        self.workers[number] = self.workers.pop()

    def _on(self, kind: str) -> list[str]:
        """What to put before a command to have it run where it belongs."""
        return []

    def _start(self, kind: str, env: dict[str, str], *words: str) -> subprocess.Popen[bytes]:
        log = self.folder / f"{kind}{len(self.workers)}.log"
        with log.open("ab") as out:
            return subprocess.Popen(
                [*self._on(kind), sys.executable, "-m", f"distributed.cli.dask_{kind}", *words,
                 "--no-dashboard"],
                cwd=ROOT, stdout=out, stderr=out,
                env={**os.environ, "OMP_NUM_THREADS": "1", **env},
            )  # fmt: skip

    def __enter__(self) -> Machines:
        return self

    def __exit__(self, *_: object) -> None:
        for process in [*self.workers, self.scheduler]:
            if process is not None:
                process.kill()
                process.wait()
