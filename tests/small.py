"""A network small enough to train in a test, and images that it can learn."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from featcache.extraction.backbone import Backbone
from featcache.extraction.preprocess import Preprocess
from featcache.images.manifest import Images, from_arrays

SIDE = 8
CLASSES = ("blue", "green", "red")


class SmallNet(nn.Module):
    """Two stages, each a convolution and perhaps a batch norm, then the mean over the map."""

    def __init__(self, dim: int, norm: bool) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(4, dim, 3, stride=2), nn.Tanh())
        if not norm:
            self.one[1] = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x)).mean((2, 3))  # (n, dim)


def small_backbone(
    name: str = "small",
    dim: int = 6,
    norm: bool = True,
    trained_on: frozenset[str] = frozenset(),
    seed: int = 0,
) -> Backbone:
    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return SmallNet(dim, norm)

    return Backbone(
        name=name,
        library="tests",
        weights="fixed",
        weights_sha256=f"seed {seed}",
        preprocess=Preprocess(resize=SIDE, crop=SIDE),
        build=build,
        trained_on=trained_on,
    )


def coloured(
    count: int = 60,
    side: int = SIDE,
    split: bool = True,
    seed: int = 0,
    name: str = "colours",
    groups: list[str] | None = None,
) -> Images:
    """Noise with more of one colour; a third of the images is the test split."""
    rng = np.random.default_rng(seed)
    codes = np.arange(count) % 3
    arrays = rng.integers(0, 160, (count, side, side, 3), dtype=np.uint8)
    arrays[np.arange(count), :, :, 2 - codes] += 60
    parts = ["test" if i % 9 < 3 else "train" for i in range(count)] if split else None
    return from_arrays(
        name,
        list(arrays),
        ids=[f"{i:04d}.png" for i in range(count)],
        labels=[CLASSES[code] for code in codes],
        split=parts,
        groups=groups,
    )
