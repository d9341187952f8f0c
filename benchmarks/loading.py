"""The loader against a plain DataLoader, and how busy it keeps a card.

    python benchmarks/loading.py [--images 2000] [--workers 1,2] > table.md

No network: what is measured is how many images a second are read, decoded and made ready. "Plain"
is what a good practitioner writes: a DataLoader with worker processes and torchvision's transforms
of the weights, batches of float32 in order. "Threads" is the loader as a processor gets it,
resized by Pillow; "processes" as a GPU gets it, which resizes by itself.

The simulated card takes a set time for each batch, on a thread of its own, like a GPU: its busy
share says how well loading, computing and writing overlap in a whole pass into a feature file.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torchvision
from pictures import make_images
from torchvision.datasets import ImageFolder

from featcache.extraction.batch import Decoded
from featcache.extraction.loader import Loader, Loading, load_batches
from featcache.extraction.preprocess import Pixels, Preprocess
from featcache.extraction.registry import open_backbone
from featcache.extraction.report import Report
from featcache.extraction.task import FileInProgress, fill
from featcache.images.manifest import Images
from featcache.images.sources import open_images
from featcache.store.feature_file import create, to_digests

BATCH = 128
KINDS = {  # sizes, and how many of the images that are asked for
    "32 px PNG": ((32, 32), "png", 1.0),
    "224 px PNG": ((224, 224), "png", 0.4),
    "500 × 375 JPEG": ((500, 375), "jpg", 0.4),
    "4000 × 3000 JPEG": ((4000, 3000), "jpg", 0.02),
}
DIM = 512


def rate(work: Callable[[], int]) -> float:
    """Images a second, the better of two runs, after one that warms the disk's cache up."""
    best = 0.0
    for _ in range(2):
        start = time.perf_counter()
        done = work()
        best = max(best, done / (time.perf_counter() - start))
    return best


def plain(folder: Path, workers: int) -> int:
    """DataLoader, worker processes, the transforms of the weights."""
    weights = torchvision.models.get_model_weights("resnet18").DEFAULT
    data = ImageFolder(str(folder), weights.transforms())
    loader = torch.utils.data.DataLoader(data, BATCH, num_workers=workers)
    return sum(len(batch) for batch, _ in loader)


def ours(images: Images, loading: Loading) -> int:
    """The loader alone, for one preprocessing."""
    rows = np.arange(len(images))
    with load_batches(images, rows, [Preprocess()], BATCH, loading) as batches:
        return sum(len(batch.rows) for batch in batches)


class Card:
    """A network that takes a set time for each image, beside the processor, one batch at a time."""

    dim = DIM

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._computing = ThreadPoolExecutor(1)
        self.busy = 0.0
        self.first = 0.0
        self.last = 0.0

    def start(self, pixels: Pixels | Decoded, _: Preprocess) -> Callable[[], np.ndarray]:
        """Begin with a batch; call for its vectors."""
        self.first = self.first or time.perf_counter()
        computed: Future[np.ndarray] = self._computing.submit(self._compute, len(pixels))
        return computed.result

    def _compute(self, count: int) -> np.ndarray:
        start = time.perf_counter()
        time.sleep(count / self._rate)
        self.last = time.perf_counter()
        self.busy += self.last - start
        return np.ones((count, DIM), np.float32)


def keep_busy(images: Images, loading: Loading, card: Card, folder: Path) -> tuple[float, float]:
    """Fill a feature file with what a card gives; its busy share, and images a second."""
    backbone = open_backbone("resnet18", weights="random:0")
    digests = to_digests(images.sha256)
    path = folder / f"{time.time_ns()}.h5"
    with create(path, backbone.key("fp32"), digests, DIM) as features:
        row_of = {row: row for row in range(len(images))}
        file = FileInProgress(features, row_of, backbone.preprocess, lambda: card)  # type: ignore[arg-type,return-value]
        report = Report(images.name, len(images))
        fill([file], Loader(images, BATCH, loading), report, lambda problems: None)
    taken = card.last - card.first
    return card.busy / taken, len(images) / taken


def main() -> None:
    """Make images, measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--workers", default=",".join(map(str, sorted({1, os.cpu_count() or 1}))))
    parser.add_argument("--card", default="0.5,0.8,0.95", help="its speed, as a part of ours")
    options = parser.parse_args()
    counts = [int(n) for n in options.workers.split(",")]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python "
          f"{platform.python_version()}, torch {torch.__version__}; images a second\n")  # fmt: skip
    print("| images | workers | plain DataLoader | threads | processes | processes / plain |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        small = None
        for name, (size, ending, part) in KINDS.items():
            count = max(BATCH // 4, int(options.images * part))
            folder = make_images(Path(temporary) / name.replace(" ", "_"), count, size, ending)
            images = open_images(folder, cache=None)
            small = small or images
            for n in counts:
                usual = rate(lambda n=n, at=folder: plain(at, n))
                threads = rate(lambda n=n, of=images: ours(of, Loading(n)))
                processes = Loading(n, processes=True, on_device=True)
                new = rate(lambda of=images, how=processes: ours(of, how))
                print(f"| {count:,} × {name} | {n} | {usual:,.0f} | {threads:,.0f} | {new:,.0f} | "
                      f"{new / usual:.2f} |", flush=True)  # fmt: skip
        assert small is not None
        print("\n| a simulated card on 32 px PNG that takes | busy | images a second |")
        print("|---|---|---|")
        loading = Loading(max(counts), processes=True, on_device=True)
        fastest = rate(lambda: ours(small, loading))
        for part in map(float, options.card.split(",")):
            busy, speed = keep_busy(small, loading, Card(part * fastest), Path(temporary))
            print(f"| {part * fastest:,.0f} images a second, {part:.0%} of what is decoded | "
                  f"{busy:.1%} | {speed:,.0f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
