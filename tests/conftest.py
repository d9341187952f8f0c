"""What every test may use: generated images, an empty cache, and no way to the internet."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

# One thread a process: the tests' arrays are small, and the two workers of `make test` share the
# cores. Set before NumPy, torch or XGBoost is imported; processes that a test starts inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import HealthCheck, settings
from matplotlib.figure import Figure
from noise import noise
from PIL import Image

from featcache.extraction import engine

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("no clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no clock")


def pytest_configure(config: pytest.Config) -> None:
    """Without `-m gpu`, a machine with a card runs the tests as others do: on the processor."""
    chosen = config.option.markexpr
    if "gpu" not in chosen or "not gpu" in chosen:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks, and for child processes


@pytest.fixture(autouse=True)
def _no_weights_of_this_machine(monkeypatch, tmp_path):
    """Neither a weights folder nor torch's hub folder of whoever runs the tests is seen."""
    monkeypatch.delenv("FEATCACHE_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """A test that sets torch's threads sets them for itself alone."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_rendering(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made but saved blank, except in tests marked `rendered`: half a run's time."""
    if request.node.get_closest_marker("rendered") is None:
        monkeypatch.setattr(Figure, "savefig", _save_blank)


def _save_blank(figure: Figure, path: Path, **_: object) -> None:
    if path.suffix == ".svg":
        path.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    else:
        Image.new("L", (1, 1)).save(path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of 3 classes with 4 different PNG images each."""
    root = tmp_path / "pictures"
    for i in range(12):
        path = root / ("cat", "dog", "owl")[i % 3] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(i).save(path)
    return root


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """An empty cache folder."""
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def fp32_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--precision auto` is fp32 in every test, whatever the device; those of bf16 undo this."""
    monkeypatch.setattr(engine, "fast_precisions", lambda device: ())


@pytest.fixture(autouse=True)
def the_log_as_it_was() -> Iterator[None]:
    """A command run inside a test sets up logging; the next test finds nothing of it."""
    log = logging.getLogger("featcache")
    before = (log.level, list(log.handlers), log.propagate)
    yield
    log.setLevel(before[0])
    log.handlers[:], log.propagate = before[1:]
