"""Fits by Dask workers: how much quicker some are than one process, with the same scores.

    OMP_NUM_THREADS=1 python benchmarks/cluster_fits.py --workers 1,2,4
    OMP_NUM_THREADS=1 python benchmarks/cluster_fits.py --cache cache --data photos --workers 8

A grid is fitted in this process, with one thread, and then by workers of one thread each that are
up already, as those of a cluster are. "At a time" is how many fits ran together on the average: the
seconds of all fits, added up, through those on the wall. Features are made up unless a cache is
named. A fit's seconds include those of parts that it takes from another candidate, so that one
process comes to more than one at a time. Run folders must hold the same predictions.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from scaling import Fleet

from featcache.reporting.compare import Comparison, compare
from featcache.scaling.cluster import Cluster
from featcache.scaling.executors import DaskExecutor
from featcache.store.cache import Cache
from featcache.store.features import Features


def made_up(rows: int, blocks: tuple[int, ...], classes: int = 10) -> Features:
    """Vectors around class centres, close enough together to be mistaken now and then."""
    rng = np.random.default_rng(0)
    codes = rng.integers(classes, size=rows)
    centres = rng.standard_normal((classes, sum(blocks)), dtype=np.float32) * 0.1
    X = centres[codes] + rng.standard_normal((rows, sum(blocks)), dtype=np.float32)
    empty = np.full(rows, "")
    return Features(
        X=X, y=np.array([f"class{code}" for code in codes]),
        ids=np.array([f"{i:07d}.png" for i in range(rows)]),
        sha256=np.array([f"{i:064x}" for i in range(rows)]), groups=empty, split=empty,
        blocks=blocks, names=tuple(f"net{i}" for i in range(len(blocks))),
        keys=tuple(f"key{i}" for i in range(len(blocks))), data="made-up",
    )  # fmt: skip


def cached(folder: str, data: str) -> Features:
    store = Cache(folder)
    images = store.images(data)
    return store.features(images, store.choose(images.name, []))


def timed(features: Features, reports: Path, asked: Any, **how: Any) -> tuple[float, Comparison]:
    start = time.perf_counter()
    done = compare(
        features, fusion=asked.fusion.split(","), head=asked.head.split(","), folds=asked.folds,
        reports=reports, near_duplicates=False, gate="off", **how,
    )  # fmt: skip
    return time.perf_counter() - start, done


def predictions(done: Comparison) -> dict[str, bytes]:
    return {run.folder.name: (run.folder / "predictions.csv").read_bytes() for run in done}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", default="1,2", help="how many, several by commas")
    parser.add_argument("--cache")
    parser.add_argument("--data", default=None)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--blocks", default="512,1280", help="widths of the backbones")
    parser.add_argument("--fusion", default="concat,attention,vote")
    parser.add_argument("--head", default="mlp,logreg")
    parser.add_argument("--folds", type=int, default=5)
    asked = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        sys.exit("one thread for each process: OMP_NUM_THREADS=1 python benchmarks/cluster_fits.py")
    logging.getLogger("featcache").setLevel(logging.ERROR)
    blocks = tuple(int(width) for width in asked.blocks.split(","))
    features = cached(asked.cache, asked.data) if asked.cache else made_up(asked.rows, blocks)
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        alone, one = timed(features, here / "one", asked)
        table = [("one process", alone, one)]
        for count in map(int, asked.workers.split(",")):
            fleet = Fleet(here / f"fleet{count}")
            fleet.folder.mkdir()
            with closing(fleet):
                fleet.up(count)
                with Cluster(str(fleet.file)) as cluster:
                    # The libraries are read before, as they are once workers have fitted anything.
                    cluster.client.run(__import__, "featcache.scaling.executors")
                    reports = here / f"workers{count}"
                    seconds, done = timed(features, reports, asked, crew=DaskExecutor(cluster))
            if predictions(done) != predictions(one):
                sys.exit(f"{count} workers: other predictions")
            table.append((f"{count} worker{'s' * (count > 1)}", seconds, done))
        shape = f"{len(features):,} rows of {sum(features.blocks):,}"
        print(f"{shape}, {len(one.runs)} candidates, {asked.folds} folds; the same predictions\n")
        print("| | seconds | speed-up | fits at a time |\n|---|---|---|---|")
        for name, seconds, done in table:
            fits = sum(run.fit_seconds for run in done) * asked.folds
            print(f"| {name} | {seconds:.1f} | {alone / seconds:.2f} | {fits / seconds:.2f} |")


if __name__ == "__main__":
    main()
