"""int8 through OpenVINO against fp32: speed, cosine, and the accuracy of heads.

    python benchmarks/int8.py --weights-dir FOLDER --data FOLDER [--data FOLDER] > table.md
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python benchmarks/int8.py --tables speed

Speed is that of the network on batches in memory, all ways in turns in one process, so that their
ratios hold on a machine that does other things too. Both limits together make it a processor with
AVX2 only, for torch and for OpenVINO.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import ShuffleSplit, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featcache.extraction.engine import open_engine
from featcache.extraction.extract import fill_cache
from featcache.extraction.loader import cosine
from featcache.extraction.network import Network, has_compiler
from featcache.extraction.quantising import quantise
from featcache.extraction.registry import open_backbone
from featcache.images.manifest import Images, subsample
from featcache.images.sources import open_images
from featcache.store.cache import Cache

BATCH = 32
IMAGES = 3000  # of a data set: 2,000 to train on and 1,000 to test, or five folds


def networks(name: str, weights_dir: str | None) -> dict[str, tuple[Network, float]]:
    """Each way of running a network, and the seconds that it took to prepare."""
    backbone = open_backbone(name, weights_dir=weights_dir)
    found = {}
    for label, precision, kind in (
        ("eager fp32", "fp32", "eager"),
        ("compile fp32", "fp32", "compile"),
        ("OpenVINO fp32", "fp32", "openvino"),
        ("int8", "int8", "openvino"),
    ):
        if kind == "compile" and not has_compiler():
            continue
        start = time.perf_counter()
        if precision == "int8":
            stored = quantise(backbone, pixels(BATCH, backbone.preprocess.crop))
            backbone = replace(backbone, quantised=lambda stored=stored: stored)
        found[label] = (open_engine("cpu", precision, kind).load(backbone), start)
        found[label][0].run(pixels(BATCH, backbone.preprocess.crop))
        found[label] = (found[label][0], time.perf_counter() - start)
    return found


def pixels(count: int, side: int) -> np.ndarray:
    """Noise, channels last in memory as the loader gives it."""
    shape = (count, side, side, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8).transpose(0, 3, 1, 2)


def speed(names: list[str], weights_dir: str | None, turns: int = 5) -> None:
    """Images a second, the best of some turns; and what it takes to begin."""
    isa = os.environ.get("ONEDNN_MAX_CPU_ISA", "as it is")
    print(f"\nISA {isa}, load {os.getloadavg()[0]:.1f}\n")
    print("| network | way | images/s | over eager fp32 | over OpenVINO fp32 | seconds to begin |")
    print("|---|---|---|---|---|---|")
    for name in names:
        ways = networks(name, weights_dir)
        best = dict.fromkeys(ways, 0.0)
        side = open_backbone(name, weights_dir=weights_dir).preprocess.crop
        batch = pixels(BATCH, side)
        for _ in range(turns):
            for way, (network, _) in ways.items():
                start = time.perf_counter()
                network.run(batch)
                best[way] = max(best[way], len(batch) / (time.perf_counter() - start))
        for way, rate in best.items():
            over = [f"{rate / best[other]:.2f} ×" for other in ("eager fp32", "OpenVINO fp32")]
            print(f"| {name} | {way} | {rate:.0f} | {' | '.join(over)} | {ways[way][1]:.1f} |")


def accuracy(names: list[str], data: list[str], weights_dir: str | None) -> None:
    """Cosine of vectors, and accuracy of logistic regression on each."""
    print("\n| data | network | cosine: least | 1 % | median | accuracy fp32 | int8 | difference |")
    print("|---|---|---|---|---|---|---|---|")
    for folder in data:
        images = open_images(folder, cache=None)
        images = subsample(images, IMAGES // len(set(images.labels.tolist())))
        for name in names:
            exact, rough = (vectors(images, name, p, weights_dir) for p in ("fp32", "int8"))
            found = cosine(exact.X, rough.X)
            scores = np.array(
                [
                    [score(X, exact.y, train, test) for X in (exact.X, rough.X)]
                    for train, test in folds(exact)
                ]
            )  # (folds, 2)
            fp32, int8 = 100 * scores.mean(axis=0)
            apart = 100 * (scores[:, 1] - scores[:, 0])
            error = apart.std(ddof=1) / len(apart) ** 0.5
            print(
                f"| {Path(folder).name} ({len(exact)}) | {name} | {found.min():.4f} | "
                f"{np.quantile(found, 0.01):.4f} | {np.median(found):.4f} | {fp32:.2f} | "
                f"{int8:.2f} | {int8 - fp32:+.2f} (± {error:.2f}) |",
                flush=True,
            )


def vectors(images: Images, name: str, precision: str, weights_dir: str | None):
    """A data set's vectors, as `extract` makes them."""
    with tempfile.TemporaryDirectory() as folder:
        report = fill_cache(images, backbone=name, precision=precision, engine="openvino",
                            weights_dir=weights_dir, cache=folder)  # fmt: skip
        store = Cache(folder)
        return store.features(images, store.choose(images.name, report.selectors))


def folds(features):
    """Five, of a small data set; five draws of a third to test, of a larger one."""
    if len(features) < IMAGES:
        split = StratifiedGroupKFold(5, shuffle=True, random_state=0)
        groups = np.where(features.groups == "", features.ids, features.groups)
        return list(split.split(features.X, features.y, groups))
    return list(ShuffleSplit(5, test_size=1 / 3, random_state=0).split(features.X))


def score(X, y, train, test) -> float:
    """Accuracy on the test rows."""
    head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return head.fit(X[train], y[train]).score(X[test], y[test])


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backbone", default="resnet18,mobilenet_v2")
    parser.add_argument("--weights-dir")
    parser.add_argument("--data", action="append", default=[])
    parser.add_argument("--tables", default="speed,accuracy")
    options = parser.parse_args()
    names = options.backbone.split(",")
    if "speed" in options.tables:
        speed(names, options.weights_dir)
    if "accuracy" in options.tables:
        accuracy(names, options.data, options.weights_dir)


if __name__ == "__main__":
    main()
