"""Kill extraction at random moments, again and again, and check every promise after each kill.

    python tests/crash_harness.py --kills 300 --seed 0

A child process fills two feature files; the parent kills it (SIGKILL) after a random delay,
looks at what is on disk, and starts the next child, until one comes through. Then the data set
grows to twice its images, and the same begins again; readers must get what is finished, always. In
the end the files must be bit-identical to those of an undisturbed run.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from tiny import tiny_backbone, tiny_images

from featcache.extraction.extract import fill_cache
from featcache.store import feature_file as feature_file
from featcache.store.cache import Cache
from featcache.store.feature_file import FeatureFile
from featcache.store.features import Features

IMAGES, BATCH, NAMES = 160, 8, ("one", "two")


@dataclass
class Figures:
    """What happened."""

    kills: int = 0
    rounds: int = 0
    resumes: int = 0
    rows_lost: int = 0
    torn: int = 0
    redone_most: int = 0
    readings: int = 0
    identical: int = 0

    def __str__(self) -> str:
        return (
            f"{self.kills} kills in {self.rounds} rounds, {self.resumes} resumed with rows done; "
            f"rows lost: {self.rows_lost}; torn rows marked as done: {self.torn}; most passes "
            f"redone after one kill: {self.redone_most}; read beside an extraction that was "
            f"interrupted: {self.readings} times; finished files bit-identical: "
            f"{self.identical} of {self.rounds * len(NAMES)}"
        )


def work(cache: str, log: str, pause: float, images: int, ready: Event | None = None) -> None:
    """What the child does: extract, noting each forward pass, slowly enough to be killed."""
    if ready is not None:
        gc.freeze()  # going through all that was imported takes longer than a child lives
        _widen_the_gaps(pause)
        ready.set()

    def called(_: int, name: str) -> None:
        with Path(log).open("a") as file:
            file.write(f"{name}\n")
        time.sleep(pause)

    backbones = [
        tiny_backbone(name, dim=64 + 7 * i, seed=i, called=lambda n, name=name: called(n, name))
        for i, name in enumerate(NAMES)
    ]
    options = {"batch_size": BATCH, "workers": 1, "precision": "fp32"}
    fill_cache(tiny_images(images), backbone=backbones, cache=cache, wait=True, **options)


def _widen_the_gaps(pause: float) -> None:
    """Stop for a moment between the steps of a write, where a kill would hurt most."""
    put, flush = feature_file._put, h5py.File.flush

    def slow_put(*args: object) -> None:
        put(*args)
        time.sleep(pause)

    def slow_flush(self: h5py.File) -> None:
        flush(self)
        time.sleep(pause)

    feature_file._put, h5py.File.flush = slow_put, slow_flush


def contents(cache: Path) -> dict[str, tuple[bytes, bytes]]:
    """The finished files' datasets as bytes, by backbone."""
    found = {}
    for path in sorted(cache.glob("tiny/[!.]*.h5")):
        with FeatureFile(path) as file:
            rows = np.empty((len(file), file.dim), np.float32)
            file.read(np.arange(len(file)), rows)
            assert file.complete
            assert file.good().all(), f"{path}: finished, and rows are damaged"
            found[file.key.backbone] = (file.digests.tobytes(), rows.tobytes())
    return found


def look(cache: Path) -> dict[str, set[bytes]]:
    """What is done on disk, by backbone; raises if anything is unreadable or torn."""
    done: dict[str, set[bytes]] = {}
    paths = (*cache.glob("tiny/[!.]*.h5"), *cache.glob("tiny/.*.partial"))
    for path in paths:
        with FeatureFile(path) as file:
            marked = file.done()
            torn = marked & ~file.good()
            if torn.any():
                raise AssertionError(f"{path}: {torn.sum()} rows marked as done are torn")
            rows = {digest.tobytes() for digest in file.digests[marked]}
            done.setdefault(file.key.backbone, set()).update(rows)
    return done


def read(cache: Path, wanted: Features, figures: Figures) -> None:
    """Load what is finished, as `fit` does, whatever was interrupted."""
    store = Cache(cache)
    entries = store.entries("tiny")
    if len(entries) < len(NAMES):
        return
    found = store.features(store.images("tiny"), entries)
    assert len(found) in (IMAGES // 2, IMAGES)
    assert found.ids.tolist() == wanted.ids[: len(found)].tolist()
    assert found.X.tobytes() == wanted.X[: len(found)].tobytes()
    figures.readings += len(found) < IMAGES


def crash(kills: int, seed: int, pause: float = 0.002, delay: float = 0.12) -> Figures:
    """Run rounds until there were this many kills."""
    rng = random.Random(seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiny", "featcache.extraction.extract", "torchvision"])
    figures = Figures()
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = Path(folder) / "undisturbed"
        work(str(undisturbed), os.devnull, 0.0, IMAGES)
        wanted = contents(undisturbed)
        features = Cache(undisturbed).features(
            tiny_images(IMAGES), Cache(undisturbed).entries("tiny")
        )
        while figures.kills < kills:
            cache = Path(folder) / f"round{figures.rounds}"
            before: dict[str, set[bytes]] = {}
            for images in (IMAGES // 2, IMAGES):
                before = _round(
                    context, cache, images, before, features, kills, rng, pause, delay, figures
                )
            figures.identical += sum(contents(cache)[name] == wanted[name] for name in NAMES)
            figures.rounds += 1
    return figures


def _round(
    context: multiprocessing.context.ForkServerContext,
    cache: Path,
    images: int,
    before: dict[str, set[bytes]],
    wanted: Features,
    kills: int,
    rng: random.Random,
    pause: float,
    delay: float,
    figures: Figures,
) -> dict[str, set[bytes]]:
    log = cache.with_suffix(".log")
    while True:
        log.write_text("")
        ready = context.Event()
        child = context.Process(target=work, args=(str(cache), str(log), pause, images, ready))
        child.start()
        killed = False
        if figures.kills < kills:
            ready.wait(10)  # a kill before anything has begun shows nothing
            if rng.random() < 0.7:  # most of them while rows are being written
                _wait_for_a_pass(child, log)
            child.join(rng.uniform(0.0, delay))
            killed = child.is_alive()
            child.kill()
        child.join()
        after = look(cache)
        _check_progress(before, after, log, figures)
        before = after
        read(cache, wanted, figures)
        if not killed:
            assert child.exitcode == 0, f"the child failed with {child.exitcode}"
            return before
        figures.kills += 1
        figures.resumes += any(after.values())


def _wait_for_a_pass(child: multiprocessing.process.BaseProcess, log: Path) -> None:
    while child.is_alive() and log.stat().st_size == 0:
        time.sleep(0.001)


def _check_progress(
    before: dict[str, set[bytes]], after: dict[str, set[bytes]], log: Path, figures: Figures
) -> None:
    passes = log.read_text().split()
    for name in NAMES:
        old, new = before.get(name, set()), after.get(name, set())
        figures.rows_lost += len(old - new)
        # A new file is probed once, an old one compared once; the rest are batches.
        batches = max(0, passes.count(name) - 1 - bool(old))
        kept = -(-len(new - old) // BATCH)
        figures.redone_most = max(figures.redone_most, batches - kept)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--delay", type=float, default=0.12, help="Longest life in seconds; more on a busy machine."
    )
    options = parser.parse_args()
    started = time.monotonic()
    print(crash(options.kills, options.seed, delay=options.delay))
    print(f"{time.monotonic() - started:.0f} s")
