"""Flip storm: one bit of a cache is flipped, then `cache ls`, `cache verify` and `fit` are run.

    python benchmarks/flips.py [--flips 2000] [--processes 2] > table.md

A flip is *seen* if `fit` refuses, and *harmless* if all goes as without it: `fit` then had the
same vectors, ids, labels, splits, keys and images that trained the backbone, to the bit. All else
is what must not be: a *wrong use*, or a *traceback*, *crash* or *hang* of any command. They run in
child processes, without `fit`'s plots and pages, which read nothing of the cache that `fit` has
not read. What is flipped in .canary.json is asked for, too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from stored import blobs, store

from featcache.cli.main import cli
from featcache.errors import FeatcacheError
from featcache.extraction.canary import VERDICTS, Question, Verdict
from featcache.hashing import sha256_bytes
from featcache.images.manifest import IMAGES_CSV, ORIGIN_JSON
from featcache.store.cache import FAILED_CSV, Cache
from featcache.store.feature_file import FeatureFile, create, write_trained_on
from featcache.store.features import Features

ROWS, WIDTHS, LIMIT = 60, (6, 4), 120.0  # seconds for three commands, on a busy machine
SEAL = 112  # bytes
SHARES = {  # of the flips
    "HDF5's own": 30, "attributes": 20, "features": 15, "sha256": 12, "checksum": 8, "done": 5,
    "trained_on": 5, "seal": 5,
}  # fmt: skip
BESIDE = {IMAGES_CSV: 20, FAILED_CSV: 5, ORIGIN_JSON: 5, VERDICTS: 10}  # flips more, in percent
VERDICT = Verdict("bf16", "eager", 0.9998), Question(
    "ab" * 32, "a processor", "2.11.0", "0.1.0", "eager", ("fp16", "bf16")
)  # fmt: skip
CONTEXT = multiprocessing.get_context("spawn")
OUTCOMES = ("seen", "harmless", "wrong use", "traceback", "crash", "hang")


def make(folder: Path) -> None:
    """A cache of two backbones; net0 is fine-tuned, sealed, and attacked."""
    X, y = blobs(ROWS, WIDTHS)
    split = ["test" if i % 3 == 0 else "train" for i in range(ROWS)]
    cache, images = store(folder, X, y, WIDTHS, split=split, absent=(7,))
    (entry,) = cache.choose("toy", ["net0"])
    with FeatureFile(entry.path) as file:
        key, digests = file.key, file.digests
        values = np.empty((len(file), WIDTHS[0]), np.float32)
        file.read(np.arange(len(file)), values)
    with create(cache.partial("toy", key), key, digests, WIDTHS[0]) as file:
        file.write(np.arange(len(values)), values)
        write_trained_on(file.path, ["ab" * 32, "cd" * 32])
        file.annotate({"seconds": 1.5, "device": "cpu", "engine": "torch"})
        file.finish(entry.path)
    cache.note_images(images)
    VERDICT[1].remember(folder, VERDICT[0])


def attacked(folder: Path) -> dict[str, Path]:
    """The files whose bits are flipped."""
    (h5,) = (folder / "toy").glob("net0.*.h5")
    return {"h5": h5, VERDICTS: folder / VERDICTS} | {
        name: folder / "toy" / name for name in (IMAGES_CSV, FAILED_CSV, ORIGIN_JSON)
    }


def regions(path: Path) -> dict[str, list[int]]:
    """Where the bytes of each part of a feature file are."""
    content = path.read_bytes()
    where = np.full(len(content), "HDF5's own", object)
    with h5py.File(path, "r", locking=False) as file:
        for value in file.attrs.values():
            if isinstance(value, str):
                at = content.find(value.encode())
                where[at : at + len(value.encode())] = "attributes"
        for name in file:
            begin = file[name].id.get_offset()
            where[begin : begin + file[name].nbytes] = name
    where[len(content) - SEAL :] = "seal"
    return {name: np.flatnonzero(where == name).tolist() for name in SHARES}


def plan(folder: Path, flips: int, seed: int) -> Iterator[tuple[str, str, int, int]]:
    """(region, file, byte, bit)."""
    rng = random.Random(seed)
    files = attacked(folder)
    for name, at in regions(files["h5"]).items():
        for _ in range(flips * SHARES[name] // 100):
            yield name, "h5", rng.choice(at), rng.randrange(8)
    for name, share in BESIDE.items():
        for _ in range(flips * share // 100):
            yield name, name, rng.randrange(files[name].stat().st_size), rng.randrange(8)


def work(connection: Connection, folder: Path) -> None:
    """Flip, use, mend, and say what happened, again and again."""
    from featcache.reporting import compare

    compare.write_comparison = lambda *_: None
    used: list[str] = []
    plain = Cache.features

    def noted(*what: Any, **options: Any) -> Features:
        found = plain(*what, **options)
        used.append(content_of(found))
        return found

    Cache.features = noted
    files = attacked(folder)
    connection.send(use(folder, used))
    while (flip := connection.recv()) is not None:
        name, at, bit = flip
        content = files[name].read_bytes()
        damaged = bytearray(content)
        damaged[at] ^= 1 << bit
        files[name].write_bytes(damaged)
        connection.send(use(folder, used))
        files[name].write_bytes(content)


def content_of(features: Features) -> str:
    """All that a fit takes from features."""
    trained_on = [sorted(one) for one in features.trained_on]
    return sha256_bytes(features.X.tobytes() + json.dumps([features.digest(), trained_on]).encode())


def use(folder: Path, used: list[str]) -> str:
    """Run the commands; "traceback …", "refused", or what was used."""
    used.clear()
    where = ["--cache", str(folder)]
    fit = ["fit", "--data", "toy", "--backbone", "net0,net1", "--head", "nearest_mean"]
    fit += ["--test-split", "--again", "--reports", f"{folder}/reports"]
    for words in (["cache", "ls"], ["cache", "verify"], fit):
        done = CliRunner().invoke(cli, [*words, *where])
        if not isinstance(done.exception, FeatcacheError | SystemExit | None):
            return f"traceback {' '.join(words[:2])}: {done.exception!r}"
    if done.exit_code:
        return "refused"
    verdict = VERDICT[1].recall(folder)
    return "".join(used) if verdict in (VERDICT[0], None) else f"{verdict}"


class Child:
    """A process that tries flips on a cache of its own; if it dies or hangs, another one does."""

    def __init__(self, folder: Path) -> None:
        make(folder)
        self.folder = folder
        self._start()

    def _start(self) -> None:
        self._connection, other = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=work, args=(other, self.folder), daemon=True)
        self._process.start()
        other.close()
        self._right = self._connection.recv()

    def end(self) -> None:
        self._connection.send(None)
        self._process.join()

    def outcome(self, name: str, at: int, bit: int) -> tuple[str, str]:
        """What a flip came to, and in words."""
        path = attacked(self.folder)[name]
        content = path.read_bytes()
        self._connection.send((name, at, bit))
        try:
            if self._connection.poll(LIMIT):
                found = self._connection.recv()
                if found == self._right:
                    return "harmless", found
                kind = found.partition(" ")[0]
                return {"refused": "seen", "traceback": kind}.get(kind, "wrong use"), found
            outcome = "hang"
        except EOFError:
            outcome = "crash"
        self._process.kill()
        self._process.join()
        path.write_bytes(content)
        self._start()
        return outcome, ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=1e9, help="Then tell what was tried.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    seen: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        children = [Child(Path(scratch) / f"cache{i}") for i in range(options.processes)]
        flips = list(plan(children[0].folder, options.flips, options.seed))
        random.Random(options.seed).shuffle(flips)
        end = time.monotonic() + 60 * options.minutes

        def run(number: int) -> None:
            for region, *flip in flips[number :: len(children)]:
                if time.monotonic() > end:
                    return
                outcome, words = children[number].outcome(*flip)
                seen[region, outcome] += 1
                if outcome not in OUTCOMES[:2]:
                    print(region, flip, outcome, words, file=sys.stderr, flush=True)

        with ThreadPoolExecutor(len(children)) as pool:
            list(pool.map(run, range(len(children))))
        for child in children:
            child.end()
    print("| flipped in | flips |", " | ".join(OUTCOMES), "|")
    print("|---|" + "---|" * (len(OUTCOMES) + 1))
    for region in (*SHARES, *BESIDE):
        counts = [seen[region, outcome] for outcome in OUTCOMES]
        print("|", " | ".join(map(str, (region, sum(counts), *counts))), "|")


if __name__ == "__main__":
    main()
