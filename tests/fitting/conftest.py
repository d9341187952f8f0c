"""Small synthetic features with a signal in every block."""

from __future__ import annotations

import numpy as np
import pytest

from featcache.store.features import Features


def make_features(
    n=120,
    blocks=(6, 4),
    classes=("cat", "dog", "owl"),
    seed=0,
    signal=3.0,
    groups=None,
    split=None,
    sha256=None,
):
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % len(classes)
    centres = rng.normal(size=(len(classes), sum(blocks))) * signal
    X = (centres[codes] + rng.normal(size=(n, sum(blocks)))).astype(np.float32)
    empty = np.full(n, "")
    return Features(
        X=X,
        y=np.array(classes)[codes],
        ids=np.array([f"img{i:04d}.png" for i in range(n)]),
        sha256=np.array([f"{i:064x}" for i in range(n)]) if sha256 is None else np.array(sha256),
        groups=empty if groups is None else np.array(groups),
        split=empty if split is None else np.array(split),
        blocks=tuple(blocks),
        names=tuple(f"net{i}" for i in range(len(blocks))),
        keys=tuple(f"key{i}" for i in range(len(blocks))),
        data="toy",
    )


@pytest.fixture
def features():
    return make_features()
