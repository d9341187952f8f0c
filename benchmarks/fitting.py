"""Stage 2 against what it could cost: loading, MLP, SVM.

    python benchmarks/fitting.py [--rows 45000] [--svm-rows 5000,20000] > table.md

On vectors drawn around ten class centres, so that the machines have something to learn. Each
ratio is measured in one process, in turns.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from torch import nn

from featcache.fitting.heads.mlp import MLPHead
from featcache.fitting.heads.svm import SVMHead
from featcache.fitting.heads.xgboost import XGBHead
from featcache.images.manifest import from_arrays
from featcache.store.cache import Cache
from featcache.store.feature_file import create, to_digests
from featcache.store.key import Key

WIDTHS = (512, 1280)


def features(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (rows, 1792) around ten centres, standardised, and their labels."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 10, rows)
    X = rng.standard_normal((rows, sum(WIDTHS)), dtype=np.float32)
    X += rng.standard_normal((10, sum(WIDTHS)), dtype=np.float32)[y] * 0.25
    return (X - X.mean(0)) / X.std(0), y


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def best(works: dict[str, Callable[[], Any]], repeats: int = 3) -> dict[str, float]:
    """Seconds of each, the best of a few turns."""
    found = dict.fromkeys(works, float("inf"))
    for _ in range(repeats):
        for name, work in works.items():
            found[name] = min(found[name], seconds(work))
    return found


def loading(rows: int) -> None:
    """Two feature files of a data set, joined, against one flat file of the same numbers."""
    X, y = features(rows)
    pixels = [np.frombuffer(i.to_bytes(12, "big"), np.uint8).reshape(2, 2, 3) for i in range(rows)]
    images = from_arrays("bench", pixels, ids=[f"{i}.png" for i in range(rows)],
                         labels=[str(label) for label in y])  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        store = Cache(Path(place) / "cache")
        store.note_images(images)
        for i, width in enumerate(WIDTHS):
            key = Key(f"net{i}", "bench", "none", "none", "last", {"view": "none"})
            part = X[:, sum(WIDTHS[:i]) :][:, :width]
            path = Path(place) / f"{i}.h5"
            with create(path, key, to_digests(images.sha256), width) as file:
                file.write(np.arange(rows), part)
                file.finish(store.path("bench", key), np.zeros(rows, bool))
        flat = Path(place) / "flat.bin"
        X.tofile(flat)
        found = best({
            "flat": lambda: np.fromfile(flat, np.float32).reshape(rows, -1),
            "ours": lambda: store.features(store.images("bench"), store.choose("bench")),
            "vectors": lambda: _vectors(store, images),
        })  # fmt: skip
    print(f"\n### Loading {rows:,} × {X.shape[1]:,}\n")
    print("| | seconds | over np.fromfile |\n|---|---|---|")
    print(f"| np.fromfile | {found['flat']:.3f} | 1 |")
    print(f"| `Cache.features`: two files joined by content | {found['vectors']:.3f} |"
          f" {found['vectors'] / found['flat']:.1f} × |")  # fmt: skip
    print(f"| the same with reading the manifest | {found['ours']:.3f} |"
          f" {found['ours'] / found['flat']:.1f} × |")  # fmt: skip


def _vectors(store: Cache, images: Any) -> Any:
    return store.features(images, store.choose("bench"))


def hand_written(X: np.ndarray, y: np.ndarray, epochs: int) -> None:
    """The shortest loop that trains the same network: batches of 64 from tensors in memory."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(X.shape[1], 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, 10)
    )
    step = torch.optim.AdamW(network.parameters(), 3e-4, weight_decay=1e-4, fused=True)
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    inputs, targets = torch.from_numpy(X), torch.from_numpy(y)
    for _ in range(epochs):
        for part in torch.randperm(len(X)).split(64):
            step.zero_grad()
            loss(network(inputs[part]), targets[part]).backward()
            step.step()


def mlp(rows: int) -> None:
    """Seconds an epoch: the difference between a long and a short fit."""
    X, y = features(rows)

    def sklearn(epochs: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            MLPClassifier((512,), batch_size=64, max_iter=epochs, tol=0, random_state=0).fit(X, y)

    def ours(epochs: int) -> None:
        MLPHead(hidden=512, epochs=epochs, patience=epochs, random_state=0).fit(X, y)

    runs = {"scikit-learn's MLPClassifier": sklearn, "a hand-written torch loop":
            lambda epochs: hand_written(X, y, epochs), "featcache's mlp": ours}  # fmt: skip
    found = dict.fromkeys(runs, float("inf"))
    for _ in range(2):
        for name, run in runs.items():
            short, long = seconds(lambda: run(1)), seconds(lambda: run(3))  # noqa: B023
            found[name] = min(found[name], (long - short) / 2)
    hand = found["a hand-written torch loop"]
    print(f"\n### MLP, {rows:,} × {X.shape[1]:,}, batch 64: one epoch\n")
    print("| | seconds | over the hand-written loop |\n|---|---|---|")
    for name, value in found.items():
        print(f"| {name} | {value:.2f} | {value / hand:.2f} × |")


def svm(sizes: list[int]) -> None:
    """One machine, and the head with its calibrated probabilities."""
    print("\n### SVC rbf, fit\n")
    print("| rows | scikit-learn | scikit-learn-intelex | featcache's svm | over intelex |")
    print("|---" * 5 + "|")
    for rows in sizes:
        X, y = features(rows)
        machine = {"C": 10.0, "gamma": "scale"}
        from sklearn.svm import SVC

        plain = seconds(lambda: SVC(**machine).fit(X, y)) if rows <= 5000 else float("nan")  # noqa: B023
        fast = float("nan")
        if importlib.util.find_spec("sklearnex"):
            from sklearnex.svm import SVC as Fast

            fast = seconds(lambda: Fast(**machine).fit(X, y))  # noqa: B023
        ours = seconds(lambda: SVMHead().fit(X, y))  # noqa: B023
        shown = "minutes" if plain != plain else f"{plain:.1f} s"
        print(f"| {rows:,} | {shown} | {fast:.1f} s | {ours:.1f} s | {ours / fast:.1f} × |",
              flush=True)  # fmt: skip
    print("\nfeatcache's head fits four machines: the one it keeps, and three on two thirds of the"
          " rows each, whose held-out decisions calibrate the probabilities.")  # fmt: skip


def others(rows: int) -> None:
    """XGBoost, for the size of it."""
    X, y = features(rows)
    took = seconds(lambda: XGBHead(random_state=0).fit(X, y))
    print(f"\n### XGBoost (hist, early stopping), {rows:,} × {X.shape[1]:,}\n\n{took:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=45_000)
    parser.add_argument("--svm-rows", default="5000,20000")
    options = parser.parse_args()
    print(f"# Fitting\n\n{os.cpu_count()} cores, {platform.machine()}, Python "
          f"{platform.python_version()}, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads.")  # fmt: skip
    loading(options.rows)
    mlp(options.rows)
    svm([int(size) for size in options.svm_rows.split(",")])
    others(min(options.rows, 10_000))


if __name__ == "__main__":
    main()
