"""Make what test_golden.py holds later versions against; run once, by the version that is to last.

    python tests/golden/make.py

What is there already is left alone: it is worth keeping because an earlier version wrote it. To
renew a file, delete it first, and say in the commit why users' caches, runs or models change.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from tiny import tiny_backbone, tiny_images  # noqa: E402

import featcache as fc  # noqa: E402

KEYS, RUNS, FEATURES, MODELS = (
    HERE / name for name in ("keys.json", "runs.json", "features.h5", "models")
)

SPECS = [
    "resnet18", "mobilenet_v2", "vgg16", "vit_b_16", "swin_t", "convnext_tiny", "squeezenet1_1",
    "resnet18:size=64", "resnet18:layer=layer3", "resnet18:colour=hsv", "resnet18:scale=0-1",
    "resnet18:colour=grey:filter=equalise+log-1.5", "vit_b_16:size=384", "timm:resnet18",
    "timm:vit_tiny_patch16_224", "timm:tf_efficientnet_lite0",
]  # fmt: skip
VIEWS = ["hflip", "rot90"]
GRIDS: list[dict[str, Any]] = [
    {"fusion": ["concat", "sum", "hadamard", "vote"], "head": ["ridge", "nearest_mean"]},
    {"fusion": "concat", "head": "logreg", "select": "variance:4"},
    {"fusion": "concat", "head": "ridge", "folds": 3, "seed": 1, "repeats": 2},
    {"fusion": "concat", "head": "ridge", "settings": {"ridge.alpha": 10.0}},
    {"fusion": "concat", "head": "ridge", "view": ["hflip"]},
    {"fusion": "concat", "head": "ridge", "view": ["hflip"], "balance": True},
    {"fusion": "concat", "head": "nearest_mean", "view": ["hflip"], "leaky": True},
]
BUNDLES: list[tuple[str, str, dict[str, Any]]] = [
    ("concat", "logreg", {}),
    ("concat", "svm", {"concat.pca": 3}),
    ("concat", "xgboost", {"xgboost.n_estimators": 3}),
    ("attention", "mlp", {"mlp.epochs": 2, "mlp.hidden": 4, "attention.dim": 8}),
    ("bilinear", "knn", {"bilinear.width": 16}),
    ("stack", "logreg", {}),
    ("vote", "nearest_mean", {}),
    ("hadamard", "nearest_mean", {}),  # when it was a product of principal components
]


def backbones() -> list[fc.Backbone]:
    """Two that cost nothing and see the pixels in different ways."""
    return [tiny_backbone("first", dim=5, seed=1), tiny_backbone("second", dim=4, seed=2)]


def keys(specs: list[str]) -> Iterator[tuple[str, str]]:
    """Name, and file name and digest of its key, of every kind of backbone."""
    from featcache.extraction.extract import with_views

    for spec in specs:
        backbone = fc.open_backbone(spec, weights="random:7")
        for one in [backbone, *with_views([backbone], VIEWS)]:
            key = one.key()
            yield f"{spec} {one.preprocess.view}", f"{key.stem} {key.digest}"
        key = backbone.key("bf16", "float16")
        yield f"{spec} bf16 float16", f"{key.stem} {key.digest}"


def cached(cache: Path, view: list[str] | None = None) -> fc.Features:
    """Features of 60 generated images under both backbones, in three groups a class."""
    images = tiny_images(60, classes=3, name="golden")
    fc.fill_cache(images, backbone=backbones(), view="hflip", precision="fp32", cache=cache)
    store = fc.Cache(cache)
    return store.features(images, store.choose(images, ["first", "second"]), view or [])


def runs(folder: Path) -> list[list[str]]:
    """Names of the run folders of each of `GRIDS`."""
    found = []
    for number, grid in enumerate(GRIDS):
        reports, options = folder / f"reports{number}", dict(grid)
        fc.compare(cached(folder / "cache", options.pop("view", None)), reports=reports, **options)
        found.append(sorted(path.parent.name for path in reports.glob("*/*/run.json")))
    return found


def new_images() -> list[np.ndarray[Any, Any]]:
    """Twelve that no model has seen."""
    images = tiny_images(12, seed=5, name="new")
    return [np.asarray(images.read(row)) for row in range(len(images))]


def models(folder: Path) -> None:
    """One bundle for each of `BUNDLES`, with what it says of `new_images`."""
    features = cached(folder / "cache")
    for fusion, head, settings in BUNDLES:
        target = MODELS / f"{fusion}.{head}"
        if target.exists():
            continue
        reports = folder / target.name
        fc.compare(features, fusion=fusion, head=head, singles=False, settings=settings,
                   reports=reports)  # fmt: skip
        (run,) = (path.parent for path in reports.glob("*/*/run.json"))
        shutil.copytree(run / "model", target)
        model = fc.load_model(target, backbone=backbones())
        said = {
            "labels": model.predict(new_images()).tolist(),
            "proba": np.round(model.predict_proba(new_images()), 6).tolist(),
        }
        (target / "expected.json").write_text(json.dumps(said) + "\n", encoding="utf-8")


def main() -> None:
    """Make what is not there yet."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not KEYS.exists():
            KEYS.write_text(json.dumps(dict(keys(SPECS)), indent=1) + "\n", encoding="utf-8")
        if not RUNS.exists():
            RUNS.write_text(json.dumps(runs(folder), indent=1) + "\n", encoding="utf-8")
        if not FEATURES.exists():
            cached(folder / "cache")
            (plain,) = fc.Cache(folder / "cache").choose("golden", ["first"])
            shutil.copy(plain.path, FEATURES)
        models(folder)


if __name__ == "__main__":
    main()
