"""Memory of extraction: it should follow the batch, not the data set.

    python benchmarks/memory.py [--images 10000,100000,1000000]

Each size runs in a process of its own, on tiny images that are made as they are read, through a
network of one layer: what is measured is featcache, not a network.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def one(count: int) -> None:
    """Extract `count` images; print seconds, and peak memory before and after, in MiB."""
    from tiny import tiny_backbone, tiny_images

    from featcache.extraction.extract import fill_cache
    from featcache.hashing import sha256_bytes
    from featcache.images.manifest import Images, strings

    with tempfile.TemporaryDirectory() as cache:
        fill_cache(tiny_images(100, name="warm"), backbone=tiny_backbone("warm"), cache=cache)
        before = _peak()

        def read(row: int) -> np.ndarray:
            return np.full((8, 8, 3), row % 251, np.uint8)

        images = Images(
            name="many",
            ids=strings(f"{i:07d}.png" for i in range(count)),
            sha256=strings(sha256_bytes(i.to_bytes(8, "big")) for i in range(count)),
            labels=strings(str(i % 10) for i in range(count)),
            groups=strings("" for _ in range(count)),
            split=strings("" for _ in range(count)),
            read=read,
        )
        manifest = _peak()
        start = time.perf_counter()
        fill_cache(images, backbone=tiny_backbone(dim=64), cache=cache, batch_size=256)
        print(f"| {count:,} | {time.perf_counter() - start:.0f} | {before:.0f} | {manifest:.0f} |"
              f" {_peak():.0f} |")  # fmt: skip


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", default="10000,100000,1000000")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one)
        return
    print("| images | seconds | peak at start, MiB | with the manifest | after extraction |")
    print("|---" * 5 + "|", flush=True)
    for count in options.images.split(","):
        subprocess.run([sys.executable, __file__, "--one", count], check=True)


if __name__ == "__main__":
    main()
