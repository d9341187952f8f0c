"""What many classes cost: seconds, peak memory and bytes of a comparison and its run folder.

python benchmarks/many_classes.py --classes 5000 --rows 20000 --head knn
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from stored import store

import featcache as fc


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=5000)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--head", default="knn")
    parser.add_argument("--label", type=int, default=10, help="characters of a class name")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(options.classes), options.rows // options.classes)
    X = rng.normal(size=(options.classes, 64))[y] + 0.8 * rng.normal(size=(len(y), 64))
    labels = [f"{number:0{options.label}d}" for number in y]
    with tempfile.TemporaryDirectory() as folder:
        cache, images = store(Path(folder) / "cache", X.astype(np.float32), labels, (64,))
        features = cache.features(images, cache.choose("toy"))
        started, before = time.perf_counter(), sum(os.times()[:2])
        run = fc.compare(
            features, head=options.head, folds=2, reports=Path(folder) / "reports",
            cache=Path(folder) / "cache",
        ).best  # fmt: skip
        wall, cpu = time.perf_counter() - started, sum(os.times()[:2]) - before
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{wall:.1f} s ({cpu:.1f} s of processor), a fit {run.fit_seconds:.2f} s, "
              f"peak {peak:,.0f} MB")  # fmt: skip
        for path in sorted(run.folder.iterdir()):
            if path.is_file() and path.stat().st_size > 100_000:
                print(f"{path.name} {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
