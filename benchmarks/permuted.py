"""Labels that say nothing: every head under every fusion, selection and search has to be at chance.

    OMP_NUM_THREADS=1 python benchmarks/permuted.py [--seeds 1] [--head svm,…] [--fusion sum,…]

Two classes, as many rows of each, and columns of noise in two blocks. What sees the rows that it is
scored on, be it a scaler, a selection, a search or a calibration, is above a half. The tables on
stdout are those of reports/benchmarks/permuted.md.
"""

from __future__ import annotations

import argparse
import time
import warnings
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from featcache.fitting.evaluate import evaluate
from featcache.fitting.fusions import FUSIONS
from featcache.fitting.heads import HEADS
from featcache.fitting.pipeline import make_classifier
from featcache.store.features import Features

ROWS, BLOCKS, FOLDS = 200, (30, 20), 2
QUICK = {
    "mlp.epochs": 5, "mlp.hidden": 16, "attention.dim": 8, "gated.dim": 8, "hadamard.dim": 8,
    "bilinear.width": 32, "xgboost.n_estimators": 10, "forest.n_estimators": 10, "stack.cv": 2,
    "forest.n_jobs": 1, "xgboost.n_jobs": 1,
}  # fmt: skip
DESIGNS = [("", 0), ("anova:8", 0), ("", 2), ("anova:8", 2)]


def noise(seed: int) -> Features:
    """Rows without anything to learn."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(ROWS) % 2).astype(str)  # (n,)
    X = rng.normal(size=(ROWS, sum(BLOCKS))).astype(np.float32)  # (n, d)
    names, empty = np.arange(ROWS).astype(str), np.full(ROWS, "")
    return Features(X, y, names, names, empty, empty, BLOCKS, ("a", "b"), ("a", "b"))


def accuracies(head: str, fusion: str, select: str, tune: int, seeds: int) -> NDArray[np.float64]:
    """One a seed."""
    settings = {key: value for key, value in QUICK.items() if key.split(".")[0] in (head, fusion)}
    made = make_classifier(fusion, head, blocks=BLOCKS, settings=settings, select=select, tune=tune)
    found = [evaluate(made, noise(seed), folds=FOLDS, seed=seed) for seed in range(seeds)]
    return np.array([result.metrics["accuracy"] for result in found])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--head", default=",".join(name for name in HEADS if name != "dummy"))
    parser.add_argument("--fusion", default=",".join(FUSIONS))
    parser.add_argument("--design", default="0,1,2,3", help="which of DESIGNS")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    heads, fusions = options.head.split(","), options.fusion.split(",")
    start, every, error = time.process_time(), [], sqrt(0.25 / (ROWS * options.seeds))
    for select, tune in (DESIGNS[int(place)] for place in options.design.split(",")):
        print(f"\nSelection: {select or 'none'}; settings tried in an inner loop: {tune}\n")
        print(f"| head | {' | '.join(fusions)} |\n|---|{'--:|' * len(fusions)}", flush=True)
        for head in heads:
            row = [accuracies(head, fusion, select, tune, options.seeds) for fusion in fusions]
            every += [found.mean() for found in row]
            print(f"| {head} | {' | '.join(f'{found.mean():.2f}' for found in row)} |", flush=True)
    far = np.abs(np.array(every) - 0.5).max() / error
    print(
        f"\n{len(every)} cells of {ROWS} rows, {options.seeds} seeds: mean {np.mean(every):.3f}, "
        f"{np.min(every):.3f} … {np.max(every):.3f}, the farthest {far:.1f} standard errors from a "
        f"half; {time.process_time() - start:,.0f} CPU seconds"
    )


if __name__ == "__main__":
    main()
