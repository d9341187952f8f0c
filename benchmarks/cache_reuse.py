"""What an unchanged rerun and one per cent more images cost, against the full run.

    python benchmarks/cache_reuse.py path/to/images --backbone resnet18 --weights-dir weights

Forward passes are counted inside the network, not inferred. The images are linked into a folder
of the benchmark's own, one in a hundred held back; then: a full run, an unchanged rerun, the rest
added, everything moved to other folders and relabelled. Each run is a process of its own, so that
start-up counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from featcache.images.files import list_images

CHILD = """
import json, sys, time
start = time.perf_counter()
from featcache.extraction import network
from featcache.extraction.extract import fill_cache
from featcache.images.decode import Image
from featcache.images.sources import open_images
imported = time.perf_counter() - start
passes, opened = [0], [0]
run, load = network.Network.start, Image.open
def counted(self, pixels):
    passes[0] += len(pixels)
    return run(self, pixels)
def opening(*args, **kwargs):
    opened[0] += 1
    return load(*args, **kwargs)
network.Network.start, Image.open = counted, opening
data, cache, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
images = open_images(data, name="reuse", cache=cache)
report = fill_cache(images, cache=cache, **options)
print(json.dumps({"images": len(images), "passes": passes[0], "opened": opened[0],
                  "computed": report.outcomes[0].computed,
                  "seconds": time.perf_counter() - start, "import": imported}))
"""


def step(data: Path, cache: Path, options: dict[str, object]) -> dict[str, float]:
    """One run in a process of its own."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(data), str(cache), json.dumps(options)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return {**json.loads(done.stdout), "wall": time.perf_counter() - start}


def link(source: Path, target: Path, ids: list[str]) -> None:
    """Hard links where the disk allows them, else symbolic ones."""
    for id_ in ids:
        place = target / id_
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / id_, place)
        except OSError:
            place.symlink_to((source / id_).resolve())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--weights-dir")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--image-size", type=int)
    given = parser.parse_args()
    options = {name: value for name, value in vars(given).items() if name != "data" and value}
    ids = list_images(given.data)
    late = ids[::100]
    with tempfile.TemporaryDirectory(dir=given.data.resolve().parent) as folder:
        data, cache = Path(folder) / "images", Path(folder) / "cache"
        link(given.data, data, sorted(set(ids) - set(late)))
        time.sleep(2.5)  # links made this very moment would rightly be read again
        rows = [("full run", step(data, cache, options))]
        rows.append(("unchanged", step(data, cache, options)))
        link(given.data, data, late)
        rows.append(("1 % added", step(data, cache, options)))
        moved = Path(folder) / "moved"
        data.rename(moved)
        rows.append(("folder renamed", step(moved, cache, options)))
    full = rows[0][1]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {options}")
    print("| run | images | computed | passes* | images opened | seconds | of the full run |")
    print("|---|---|---|---|---|---|---|")
    for name, row in rows:
        print(
            f"| {name} | {row['images']:,} | {row['computed']:,} | {row['passes']:,} | "
            f"{row['opened']:,} | {row['wall']:.1f} (start-up {row['import']:.1f}) | "
            f"{row['wall'] / full['wall']:.1%} |"
        )
    print("\n*images through the network, with the probe and the check of old rows")


if __name__ == "__main__":
    main()
