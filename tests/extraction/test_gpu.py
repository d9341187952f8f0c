"""Stage 1 on a card: the processor's vectors, half precision, out of memory, killed and resumed."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from card import card, short_of_memory
from noise import noise
from small import coloured
from torch import nn

from featcache.extraction import engine as precisions
from featcache.extraction.backbone import Backbone
from featcache.extraction.engine import Engine, fast_precisions, native_bf16
from featcache.extraction.extract import fill_cache
from featcache.extraction.loader import cosine
from featcache.extraction.preprocess import Pixels
from featcache.extraction.registry import open_backbone
from featcache.images.manifest import from_arrays
from featcache.store.feature_file import FeatureFile, to_hex

pytestmark = pytest.mark.gpu

SIDE = 64
NAMES = ["resnet18", "mobilenet_v2", "squeezenet1_1", "densenet121", "convnext_tiny", "vit_b_16"]
FEW = ["resnet18", "mobilenet_v2", "vit_b_16"]
# Rounding to m bits of mantissa errs by up to 2^-m, some 50 times one after another: 3 % of a
# vector's length in bf16 and 0.4 % in fp16. An error of e turns a vector to a cosine of 1 - e²/2.
LEAST = {"fp32": 0.9999, "bf16": 0.999, "fp16": 0.9999}


@pytest.fixture
def device() -> str:
    return card()


def pixels(backbone: Backbone, count: int) -> Pixels:
    return np.stack([backbone.preprocess.cut(noise(i, 96, 80)) for i in range(count)])


def alive(name: str, side: int = SIDE) -> Backbone:
    """A backbone of random weights whose values keep their size from layer to layer.

    Each batch norm divides by the root mean square of all that it gets. As they begin, they leave
    mobilenet_v2 with vectors of 1e-9, which is 0 in fp16.
    """
    backbone = open_backbone(name, weights="random:0", image_size=side)
    x = backbone.preprocess.normalise(torch.from_numpy(pixels(backbone, 8)))  # (8, 3, side, side)

    def rescale(norm: nn.BatchNorm2d, inputs: tuple[torch.Tensor]) -> None:
        norm.running_var.fill_(inputs[0].square().mean())

    def build() -> nn.Module:
        network = backbone.build().eval()
        norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
        hooks = [norm.register_forward_pre_hook(rescale) for norm in norms]
        with torch.no_grad():
            network(x)
        for hook in hooks:
            hook.remove()
        return network

    return replace(backbone, build=build)


@pytest.mark.parametrize("name", NAMES)
def test_vectors_are_those_of_the_processor(name: str, device: str) -> None:
    backbone = alive(name)
    x = pixels(backbone, 8)
    ours = Engine(device, batch_size=8).load(backbone).run(x)
    theirs = Engine("cpu", batch_size=8).load(backbone).run(x)
    assert cosine(ours, theirs).min() >= LEAST["fp32"]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3 * np.abs(theirs).max())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", FEW)
def test_half_precision_is_close_to_the_processor_s_fp32(
    name: str, precision: str, device: str
) -> None:
    if precision == "bf16" and not native_bf16(device):
        pytest.skip("the device does not compute in bf16")
    backbone = alive(name)
    x = pixels(backbone, 8)
    rough = Engine(device, precision, batch_size=8).load(backbone).run(x)
    exact = Engine("cpu", batch_size=8).load(backbone).run(x)
    assert rough.dtype == np.float32
    assert not np.array_equal(rough, exact)
    assert cosine(rough, exact).min() >= LEAST[precision]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", FEW)
def test_a_row_does_not_depend_on_its_company(name: str, precision: str, device: str) -> None:
    """Bit for bit, which is what lets a resumed run be equal to one without a break."""
    backbone = alive(name)
    x = pixels(backbone, 16)
    network = Engine(device, precision, batch_size=16).load(backbone)
    whole = network.run(x)
    order = np.random.default_rng(0).permutation(16)
    assert np.array_equal(network.run(x[order]), whole[order])
    assert np.array_equal(network.run(x[3:8]), whole[3:8])
    again = Engine(device, precision, batch_size=16).load(backbone)
    assert np.array_equal(again.run(x), whole)


def _stored(path: Path) -> dict[str, bytes]:
    """The rows of a feature file, by the digests of their images."""
    with FeatureFile(path) as file:
        rows = np.empty((len(file), file.dim), np.float32)
        file.read(np.arange(len(file)), rows)
        assert file.good().all()
        return dict(zip(to_hex(file.digests), (row.tobytes() for row in rows), strict=True))


def _vectors(path: Path) -> np.ndarray:
    stored = _stored(path)
    return np.stack([np.frombuffer(stored[sha256], np.float32) for sha256 in sorted(stored)])


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_auto_takes_fp16_on_every_data_set_and_records_how_well(
    name: str, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precisions, "fast_precisions", fast_precisions)
    structured = from_arrays(
        "structured", [np.asarray(noise(i)) for i in range(48)],
        ids=[f"{i:02d}.png" for i in range(48)], labels=["a", "b"] * 24,
    )  # fmt: skip
    for images in (coloured(48, 48), structured):
        asked = {"backbone": alive(name), "device": device, "cache": tmp_path}
        (taken,) = fill_cache(images, **asked).outcomes
        (exact,) = fill_cache(images, **asked, precision="fp32").outcomes
        with FeatureFile(taken.path) as file:
            facts = file.attributes
        assert taken.key.precision == (*fast_precisions(device), "fp32")[0]
        fast = taken.key.precision != "fp32"
        assert ("canary" in facts) == ("fidelity" in facts) == fast
        least = cosine(_vectors(taken.path), _vectors(exact.path)).min()
        assert least >= (0.99 if fast else 1.0)
        if fast:
            assert facts["canary"] >= precisions.CANARY
            assert facts["fidelity"] >= least - 1e-4  # of a sample, cut by Pillow


def test_a_batch_that_does_not_fit_is_halved_and_every_row_is_right(
    device: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first convolution's maps alone are 256 x 64 x 112 x 112 x 4 bytes, 822 MB."""
    side, count = (224, 256) if device != "cpu" else (32, 16)
    images = coloured(count, side)
    asked = {"backbone": alive("resnet18", side), "device": device, "precision": "fp32",
             "batch_size": count}  # fmt: skip
    with short_of_memory(device, 600_000_000):
        (cut,) = fill_cache(images, **asked, cache=tmp_path / "short").outcomes
    if device != "cpu":
        assert "memory ran out; going on with batches of" in caplog.text
    caplog.clear()
    (whole,) = fill_cache(images, **asked, cache=tmp_path / "ample").outcomes
    assert "memory ran out" not in caplog.text
    assert cut.key == whole.key
    found, wanted = _vectors(cut.path), _vectors(whole.path)
    assert len(found) == count
    assert cosine(found, wanted).min() >= LEAST["fp32"]


_SCRIPT = """
import os, signal, sys
sys.path[:0] = [{tests!r}]
from small import coloured
from featcache.extraction.extract import fill_cache
from featcache.store.feature_file import FeatureFile
device, cache, kill = sys.argv[1], sys.argv[2], int(sys.argv[3])
count, write = 0, FeatureFile.write
def counted(self, rows, values):
    global count
    write(self, rows, values)  # and marks them as done
    count += 1
    if count == kill:
        os.kill(os.getpid(), signal.SIGKILL)
FeatureFile.write = counted
fill_cache(coloured(200, 32), backbone=["resnet18", "mobilenet_v2"], weights="random:0",
           image_size=32, device=device, cache=cache, batch_size=16, workers=2)
"""


@pytest.fixture
def go(device: str, tmp_path: Path) -> Callable[[str, int], int]:
    """Extract in a process of its own, killed after so many writes; its exit code."""
    script = tmp_path / "go.py"
    script.write_text(_SCRIPT.format(tests=str(Path(__file__).parent.parent)))

    def run(cache: str, kill: int) -> int:
        command = [sys.executable, str(script), device, str(tmp_path / cache), str(kill)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, env=environment, check=False).returncode

    return run


def test_killed_and_resumed_it_is_an_uninterrupted_run_to_the_bit(
    go: Callable[[str, int], int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "featcache")
    assert go("whole", 0) == 0
    assert go("killed", 11) == -signal.SIGKILL  # of 26 writes
    done = 0
    for path in (tmp_path / "killed").glob("*/.*.partial"):
        with FeatureFile(path) as file:
            done += int(file.done().sum())
    assert 0 < done < 2 * 200
    assert not list((tmp_path / "killed").glob("*/[!.]*.h5"))
    assert go("killed", 0) == 0
    wanted, found = (sorted((tmp_path / cache).glob("*/[!.]*.h5")) for cache in ("whole", "killed"))
    assert [path.name for path in found] == [path.name for path in wanted]
    assert len(wanted) == 2
    for one, other in zip(found, wanted, strict=True):
        assert len(_stored(other)) == 200
        assert _stored(one) == _stored(other)
