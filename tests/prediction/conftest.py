"""Small runs to predict with, and the images that they were made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import SIDE, tiny_backbone

from featcache.extraction.backbone import Backbone
from featcache.extraction.extract import extract
from featcache.reporting.compare import compare

CLASSES = ("cat", "dog", "owl")


def draw(folder: Path, count: int, seed: int = 0, split: bool = True) -> Path:
    """Images of three colours under noise, a third of them in a test split."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        label = CLASSES[i % 3]
        pixels = rng.integers(0, 120, (SIDE, SIDE, 3))
        pixels[:, :, i % 3] += 100
        where = folder / (("test" if i % 9 < 3 else "train") if split else "") / label
        where.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(where / f"{i:03d}.png")
    return folder


@dataclass(frozen=True)
class Made:
    """A run, and what it was made from."""

    run: Path
    reports: Path
    images: Path
    backbones: list[Backbone]


def make(
    root: Path, fusion: str = "concat", head: str = "logreg", count: int = 90, **options: object
) -> Made:
    """Extract with two tiny backbones, fit, and keep the model."""
    images = draw(root / "shapes", count)
    backbones = [tiny_backbone("tiny", dim=6), tiny_backbone("other", dim=4, seed=1)]
    features = extract(images, backbone=backbones, cache=root / "cache", precision="fp32")
    run = compare(
        features, fusion=fusion, head=head, singles=False, reports=root / "reports", **options
    ).best
    return Made(run.folder, root / "reports", images, backbones)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """One run on a test split: concat and logreg."""
    return make(tmp_path_factory.mktemp("made"))
