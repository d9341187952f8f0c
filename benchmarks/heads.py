"""Heads and fusions on real features: accuracy, AUC, log loss, calibration error and seconds.

    python benchmarks/heads.py --cache cache [--data cifar,digits] [--head svm,mlp] [--fusion sum]

Whatever the cache holds, on its own test split or three folds. Each head stands under `--fusion`,
by default concat. A row for each as it is done; two versions of the package give two tables.
"""

from __future__ import annotations

import argparse
import warnings

import featcache as fc
from featcache.fitting.evaluate import evaluate
from featcache.fitting.pipeline import make_classifier

METRICS = ("accuracy", "auc", "log_loss", "ece")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", default="cache")
    parser.add_argument("--data", default="")
    parser.add_argument("--head", default="mlp,svm,xgboost,logreg,ridge,nearest_mean,lda")
    parser.add_argument("--fusion", default="concat")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    settings = dict(one.split("=", 1) for one in options.set)
    store = fc.Cache(options.cache)
    print("| data | fusion | head | accuracy | AUC | log loss | ECE | fit s |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for data in options.data.split(",") if options.data else store.data_sets():
        images = store.images(data)
        features = store.features(images, store.choose(images, []), []).in_order()
        folds = None if set(features.split.tolist()) & {"test", "val"} else 3
        for fusion in options.fusion.split(","):
            for head in options.head.split(","):
                made = make_classifier(fusion, head, blocks=features.blocks, settings=settings)
                result = evaluate(made, features, folds=folds)
                numbers = [result.metrics.get(name, float("nan")) for name in METRICS]
                cells = [f"{number:.3f}" for number in numbers]
                print(f"| {data} | {fusion} | {head} | {' | '.join(cells)} "
                      f"| {result.fit_seconds:.1f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
