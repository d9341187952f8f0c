"""Fits on features that stay on disk against the same fits in memory.

    python benchmarks/streaming.py [--rows 10000,100000] [--heads mlp,logreg] [--epochs 5]
        [--in-memory-up-to 200000] [--folder /tmp/streaming]

For each number of rows a cache is written: two backbones, 512 and 1,280 columns in float16, ten
classes of noise around a centre, class after class as in a folder of images; a fifth is the test
split. Then `featcache fit` runs on it as a user would, each time in a process of its own: loading,
the checks, fit, prediction and report. The peak is the most memory that the process had resident.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from featcache.images.manifest import Images, strings
from featcache.store.cache import Cache
from featcache.store.feature_file import create, to_digests
from featcache.store.key import Key

WIDTHS = (512, 1280)
CLASSES = 10
SPREAD = 0.07  # of the centres, where the noise has 1
AT_ONCE = 2**15


def write_cache(folder: Path, rows: int) -> None:
    """A cache of `rows` images and two backbones."""
    code = np.arange(rows) * CLASSES // rows
    images = Images(
        name="bench",
        ids=strings(f"class{c}/{i:07d}.png" for i, c in enumerate(code.tolist())),
        sha256=strings(hashlib.sha256(i.to_bytes(8, "big")).hexdigest() for i in range(rows)),
        labels=strings(f"class{c}" for c in code.tolist()),
        groups=strings("" for _ in range(rows)),
        split=strings("test" if i % 5 == 0 else "train" for i in range(rows)),
    )
    cache = Cache(folder)
    cache.note_images(images)
    digests = to_digests(images.sha256)
    for number, width in enumerate(WIDTHS):
        rng = np.random.default_rng(number)
        centres = rng.standard_normal((CLASSES, width), dtype=np.float32) * SPREAD
        key = Key(f"net{number}", "bench", "none", "none", "penultimate", {"view": "none"},
                  dtype="float16")  # fmt: skip
        with create(cache.partial("bench", key), key, digests, width) as file:
            for start in range(0, rows, AT_ONCE):
                part = np.arange(start, min(start + AT_ONCE, rows))
                noise = rng.standard_normal((len(part), width), dtype=np.float32)
                file.write(part, (noise + centres[code[part]]).astype(np.float16))
            file.finish(cache.path("bench", key))


def fit(folder: Path, head: str, memory: str, epochs: int) -> dict[str, float]:
    """Run the command; what it took and came to."""
    reports = folder / f"reports.{head}.{memory}"
    command = [
        sys.executable, "-m", "featcache", "fit", "--head", head, "--cache", str(folder / "cache"),
        "--reports", str(reports), "--memory", memory, "--no-near-duplicates", "-q",
    ]  # fmt: skip
    command += ["--set", f"head.epochs={epochs}"] if head == "mlp" else []
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    took = time.perf_counter() - start
    if status:
        sys.exit(f"{' '.join(command)} ended with {status}")
    (run,) = reports.glob("bench/*/run.json")
    scores = json.loads((run.parent / "metrics.json").read_text())
    history = scores["folds"][0].get("history") or {}
    found = {
        "seconds": took,
        "fit": json.loads(run.read_text())["fit_seconds"],
        "peak": used.ru_maxrss / 1024,
        "accuracy": scores["mean"]["accuracy"],
        "epochs": len(history.get("train_loss", [])),
    }
    shutil.rmtree(reports)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="10000,100000")
    parser.add_argument("--heads", default="mlp,logreg")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--in-memory-up-to", type=int, default=200_000)
    parser.add_argument("--folder", type=Path, help="Keep the caches here, and use those there.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = options.folder or Path(place)
        print("| rows | head | features | command, s | fit, s | epoch, s | peak, MiB | accuracy |")
        print("|---" * 8 + "|", flush=True)
        for rows in (int(text) for text in options.rows.split(",")):
            folder = root / str(rows)
            if not (folder / "done").exists():
                shutil.rmtree(folder, ignore_errors=True)
                write = [sys.executable, __file__, "--write", str(rows), str(folder / "cache")]
                subprocess.run(write, check=True)  # so that its memory is given back
                (folder / "done").touch()
            for head in options.heads.split(","):
                for name, memory in (("in memory", "1TB"), ("on disk", "1KB")):
                    if name == "in memory" and rows > options.in_memory_up_to:
                        continue
                    found = fit(folder, head, memory, options.epochs)
                    epoch = f"{found['fit'] / found['epochs']:.1f}" if found["epochs"] else "–"
                    print(f"| {rows:,} | {head} | {name} | {found['seconds']:.0f} |"
                          f" {found['fit']:.1f} | {epoch} | {found['peak']:,.0f} |"
                          f" {found['accuracy']:.4f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write_cache(Path(sys.argv[3]), int(sys.argv[2]))
    else:
        main()
