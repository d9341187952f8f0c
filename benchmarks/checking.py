"""What it costs to check rows while they are loaded, and what other digests would cost.

    python benchmarks/checking.py > table.md

"Vectors" is `FeatureFile.read` of all rows into memory that was written to before; "load" is what a
command does before it has features: `Cache.images`, `choose` and `features`. Warm is the
processor's time with the files in the system's cache, the best of several; cold is a load by the
clock after the feature file was put out of that cache (posix_fadvise). The digests are of vectors
in memory, row by row as they are stored. xxhash is measured if it is there.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from featcache.hashing import sha256_bytes
from featcache.images.manifest import make_images
from featcache.store import feature_file
from featcache.store.cache import Cache
from featcache.store.feature_file import FeatureFile, checksums, create, to_digests
from featcache.store.features import Features
from featcache.store.key import Key

ROWS, WIDTHS, LOADS = (1_000, 10_000, 60_000), (512, 1280, 4096), 7
KEY = Key("net", "test", "none", "none", "penultimate", {"view": "none"})


def made(folder: Path, rows: int, dim: int) -> Cache:
    """A cache with a finished file of noise."""
    rng = np.random.default_rng(0)
    names = [f"class{i % 10}/{i:06d}.png" for i in range(rows)]
    images = make_images(
        "noise", names, (sha256_bytes(name.encode()) for name in names),
        labels=[f"class{i % 10}" for i in range(rows)],
    )  # fmt: skip
    cache = Cache(folder)
    cache.note_images(images)
    digests = to_digests(images.sha256)
    with create(cache.partial("noise", KEY), KEY, digests, dim) as file:
        for start in range(0, rows, 1000):
            part = np.arange(start, min(rows, start + 1000))
            file.write(part, rng.standard_normal((len(part), dim), np.float32))
        file.finish(cache.path("noise", KEY))
    return cache


@contextmanager
def unchecked() -> Iterator[None]:
    """Load without a look at the checksums."""
    plain = feature_file.damaged_rows
    feature_file.damaged_rows = lambda *_: np.empty(0, np.intp)
    try:
        yield
    finally:
        feature_file.damaged_rows = plain


def read(cache: Cache, out: np.ndarray[Any, Any]) -> Callable[[], object]:
    """Reads the vectors alone."""

    def work() -> None:
        with FeatureFile(cache.path("noise", KEY)) as file:
            file.read(np.arange(len(out)), out)

    return work


def load(cache: Cache) -> Features:
    return cache.features(cache.images("noise"), cache.choose("noise"))


def forget(path: Path) -> None:
    """Put a file out of the system's cache."""
    handle = os.open(path, os.O_RDONLY)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def by_turns(
    work: Callable[[], object], clock: Callable[[], float], times: int, before: Callable[[], object]
) -> tuple[float, float]:
    """The least seconds without checks, and with them."""
    spent: list[list[float]] = [[], []]
    for _ in range(times):
        for checked, how in enumerate((unchecked, nullcontext)):
            before()
            with how():
                spent[checked].append(timed(work, clock))
    return min(spent[0]), min(spent[1])


def loads() -> None:
    print(
        "| rows | width | MB | vectors, unchecked | checked | more | load, unchecked | checked "
        "| more | cold load, unchecked | checked |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for rows in ROWS:
        for dim in WIDTHS:
            with tempfile.TemporaryDirectory(dir=".") as folder:
                cache, out = made(Path(folder), rows, dim), np.zeros((rows, dim), np.float32)
                path = cache.path("noise", KEY)
                cells = [f"{rows:,}", f"{dim:,}", f"{out.nbytes / 1e6:,.0f}"]
                for work in (read(cache, out), partial(load, cache)):
                    work()
                    times = by_turns(work, time.process_time, LOADS, lambda: None)
                    cells += [f"{1e3 * seconds:,.1f} ms" for seconds in times]
                    cells += [f"{100 * (times[1] / times[0] - 1):.0f} %"]
                times = by_turns(
                    partial(load, cache), time.perf_counter, 3, partial(forget, path)
                )  # fmt: skip
                cells += [f"{1e3 * seconds:,.0f} ms" for seconds in times]
            print("|", " | ".join(cells), "|", flush=True)


def digests() -> None:
    rows = np.random.default_rng(0).standard_normal((1023, 1280), np.float32)
    sha256 = np.zeros((len(rows), 32), np.uint8)
    stored = checksums(sha256, rows)
    kinds: dict[str, Callable[[], Any]] = {
        "copying them": rows.copy,
        "sums of rows, CRC-32 of these (as it is)":
            lambda: feature_file.damaged_rows(sha256, rows, stored),
        "CRC-32 of each (zlib)": lambda: [zlib.crc32(row) for row in rows],
        "SHA-256 of each (hashlib)": lambda: [hashlib.sha256(row).digest() for row in rows],
        "BLAKE2b of each (hashlib)": lambda: [hashlib.blake2b(row).digest() for row in rows],
    }  # fmt: skip
    if importlib.util.find_spec("xxhash"):
        import xxhash

        kinds["XXH3, 128 bits, of each (xxhash)"] = lambda: [
            xxhash.xxh3_128_digest(row) for row in rows
        ]
    print("| 1,023 rows × 1,280 | GB/s |\n|---|---|")
    for name, work in kinds.items():
        best = min(timed(work) for _ in range(30))
        print(f"| {name} | {rows.nbytes / best / 1e9:.2f} |", flush=True)


def timed(work: Callable[[], Any], clock: Callable[[], float] = time.process_time) -> float:
    start = clock()
    work()
    return clock() - start


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    digests()
    print()
    loads()
