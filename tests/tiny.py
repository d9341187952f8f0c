"""A backbone that costs next to nothing, and images to go with it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from featcache.extraction.backbone import Backbone
from featcache.extraction.preprocess import Preprocess
from featcache.images.manifest import Images, from_arrays

SIDE = 8


class TinyNet(nn.Module):
    """A fixed projection of the pixels to `dim` numbers."""

    def __init__(self, dim: int, seed: int, called: Callable[[int], None] | None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.matrix = nn.Parameter(torch.randn(3 * SIDE * SIDE, dim, generator=generator))
        self.called = called

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.called is not None:
            self.called(len(x))
        return torch.tanh(x.flatten(1) @ self.matrix / 10)  # (n, dim)


def tiny_backbone(
    name: str = "tiny",
    dim: int = 5,
    seed: int = 0,
    called: Callable[[int], None] | None = None,
    view: str = "none",
) -> Backbone:
    """A `Backbone` around `TinyNet`; `called` hears of every forward pass."""
    return Backbone(
        name=name,
        library="tests",
        weights="fixed",
        weights_sha256=f"seed {seed}",
        preprocess=Preprocess(resize=SIDE, crop=SIDE, view=view),
        build=lambda: TinyNet(dim, seed, called),
    )


def tiny_images(count: int = 40, seed: int = 0, name: str = "tiny", classes: int = 2) -> Images:
    """Random images in memory, all different."""
    rng = np.random.default_rng(seed)
    arrays = list(rng.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8))
    return from_arrays(
        name,
        arrays,
        ids=[f"{i:04d}.png" for i in range(count)],
        labels=[f"class{i % classes}" for i in range(count)],
    )
