"""Extraction by Dask workers: how much quicker two are than one, and what kills cost.

    python benchmarks/scaling.py path/to/images --backbone resnet18 --weights-dir weights

First the images are embedded in one process, then by one and by two workers of one thread each,
which are up already, as those of a cluster are. Then the fault run: workers are killed (SIGKILL)
at random moments and others take their place, the client is killed and started again, and so is
the scheduler. All files must be those of the one process to the bit. Every part is a process of
its own.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import h5py

DASK = [sys.executable, "-m", "distributed.cli.dask_"]


@dataclass
class Fleet:
    """A scheduler and workers, of one thread each."""

    folder: Path
    scheduler: subprocess.Popen[bytes] | None = None
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return self.folder / "scheduler.json"

    def up(self, count: int) -> None:
        self.file.unlink(missing_ok=True)
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0")
        while not self.file.is_file():
            time.sleep(0.05)
        self.workers = [self.worker() for _ in range(count)]
        time.sleep(5)  # they come up

    def worker(self) -> subprocess.Popen[bytes]:
        return self._start("worker", "--no-nanny", "--nthreads", "1", "--memory-limit", "0",
                           "--local-directory", str(self.folder))  # fmt: skip

    def replace(self, number: int) -> None:
        self.workers[number].kill()
        self.workers[number].wait()
        self.workers[number] = self.worker()

    def close(self) -> None:
        for process in [*self.workers, self.scheduler]:
            if process is not None:
                process.kill()
                process.wait()

    def _start(self, kind: str, *words: str) -> subprocess.Popen[bytes]:
        command = [*DASK[:2], DASK[2] + kind, *words, "--scheduler-file", str(self.file)]
        with (self.folder / f"{kind}.log").open("ab") as log:
            return subprocess.Popen([*command, "--no-dashboard"], stdout=log, stderr=log,
                                    env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip


@dataclass
class Client:
    """One `featcache extract`."""

    words: list[str]
    cache: Path

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "featcache", "extract", *self.words, "--cache"]
        return subprocess.Popen(
            [*command, str(self.cache)], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def rows(self) -> int:
        """Vectors that are done, in the file in progress or the finished one."""
        done = 0
        for path in self.cache.glob("*/*"):
            if path.name.endswith((".h5", ".h5.partial")):
                try:
                    with h5py.File(path, locking=False) as file:
                        done = max(done, int(file["done"][...].sum()))
                except (OSError, KeyError):
                    continue
        return done

    def vectors(self) -> bytes:
        (path,) = self.cache.glob("*/[!.]*.h5")
        with h5py.File(path) as file:
            return bytes(file["sha256"][...].tobytes() + file["features"][...].tobytes())


def timed(client: Client) -> tuple[float, float]:
    """Seconds on the wall, and images a second as the command says (start-up left out)."""
    start = time.perf_counter()
    child = client.start()
    _, said = child.communicate()
    if child.returncode:
        sys.exit(said)
    rate = re.search(r"in ([\d.]+) s \(([\d.,]+)/s\)", said)
    return time.perf_counter() - start, float(rate[2].replace(",", "")) if rate else 0.0


def fault_run(fleet: Fleet, client: Client, kills: int, rng: random.Random) -> dict[str, int]:
    """Kill until it is through; what happened."""
    found = {"workers killed": 0, "clients killed": 0, "schedulers killed": 0,
             "ranges lost": 0, "rows given out again": 0, "rows lost": 0}  # fmt: skip
    plan = ["worker"] * kills + ["client", "scheduler"]
    rng.shuffle(plan)
    child, best = client.start(), 0
    while True:
        wait_for_rows(child, client, best + 1)
        time.sleep(rng.uniform(0.0, 2.0))
        best = max(best, client.rows())
        if child.poll() is None and plan:
            what = plan.pop()
            if what == "worker":
                fleet.replace(rng.randrange(len(fleet.workers)))
            elif what == "client":
                child.kill()
            else:
                fleet.close()
                fleet.up(len(fleet.workers))
            found[f"{what}s killed"] += 1
            if what == "worker":
                continue
        _, said = child.communicate()
        summary = r"ranges that lost theirs: (\d+), rows done again: (\d+)"
        for lost, rows in re.findall(summary, said):
            found["ranges lost"] += int(lost)
            found["rows given out again"] += int(rows)
        if child.returncode == 0:
            return found
        after = client.rows()
        found["rows lost"] += max(0, best - after)
        child = client.start()


def wait_for_rows(child: subprocess.Popen[str], client: Client, rows: int) -> None:
    while child.poll() is None and client.rows() < rows:
        time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--weights-dir")
    parser.add_argument("--image-size", default="224")
    parser.add_argument("--limit", type=int, default=512, help="images")
    parser.add_argument("--kills", type=int, default=8, help="of workers, in the fault run")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rng = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        table = here / "images.csv"
        write_table(Path(asked.data), table, asked.limit)
        words = ["--data", str(table), "--backbone", asked.backbone, "--weights", asked.weights,
                 "--image-size", asked.image_size, "--device", "cpu", "-j", "1"]  # fmt: skip
        words += ["--weights-dir", asked.weights_dir] if asked.weights_dir else []
        alone = Client(words, here / "alone")
        rows = [("one process, one thread", *timed(alone))]
        for count in (1, 2):
            fleet = Fleet(here / f"fleet{count}")
            fleet.folder.mkdir()
            client = Client([*words, "--dask", str(fleet.file)], here / f"workers{count}")
            with closing(fleet):
                fleet.up(count)
                rows.append((f"{count} worker{'s' * (count > 1)}", *timed(client)))
                if client.vectors() != alone.vectors():
                    sys.exit(f"{count} workers: other vectors")
                if count == 2:
                    faults = Client(client.words, here / "faults")
                    found = fault_run(fleet, faults, asked.kills, rng)
        print("| | seconds | images/s |\n|---|---|---|")
        for name, seconds, rate in rows:
            print(f"| {name} | {seconds:.1f} | {rate:.1f} |")
        print("\n| fault run | |\n|---|---|")
        for name, value in found.items():
            print(f"| {name} | {value} |")
        same = faults.vectors() == alone.vectors()
        print(f"| bit-identical | {'yes' if same else 'NO'} |")
        sys.exit(not same)


def write_table(data: Path, table: Path, limit: int) -> None:
    """A CSV file that lists the first images of each class in turn, by absolute path."""
    from featcache.images.files import list_images

    by_class: dict[str, list[str]] = {}
    for id_ in list_images(data):
        by_class.setdefault(id_.rsplit("/", 1)[0], []).append(id_)
    turns = [id_ for turn in zip(*by_class.values(), strict=False) for id_ in turn][:limit]
    lines = [f"{(data / id_).absolute()},{id_.split('/')[-2]}" for id_ in turns]
    table.write_text("\n".join(["path,label", *lines]) + "\n")


if __name__ == "__main__":
    main()
