"""Processors without bf16 give right vectors all the same, and say what it costs."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny import tiny_backbone, tiny_images

from featcache.extraction import conv_bn_fusion, engine
from featcache.extraction.engine import Engine, computes_in, native_bf16
from featcache.extraction.extract import fill_cache
from featcache.extraction.loader import cosine
from featcache.extraction.registry import open_backbone
from featcache.store.cache import Cache

# oneDNN reads its limit once, so it takes a process of its own.
SCRIPT = """
import json, logging, sys
import numpy as np
from featcache.extraction.engine import Engine, computes_in, native_bf16
from featcache.extraction.registry import open_backbone
logging.basicConfig(stream=sys.stderr)
backbone = open_backbone("squeezenet1_1", weights="random:0", image_size=32)
pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
vectors = {p: Engine(batch_size=2, precision=p).load(backbone).run(pixels).tolist()
           for p in ("fp32", "bf16")}
print(json.dumps({"native": native_bf16("cpu"), "computes": computes_in("cpu", "bf16"), **vectors}))
"""


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="the limits are those of x86"
)
def test_limited_to_avx2_it_emulates_bf16_and_auto_does_not_take_it() -> None:
    limits = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, **limits},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["native"], found["computes"]) == (False, False)
    assert done.stderr.count("no arithmetic in bf16") == 1
    backbone = open_backbone("squeezenet1_1", weights="random:0", image_size=32)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    here = Engine(batch_size=2).load(backbone).run(pixels)
    assert cosine(here, np.array(found["fp32"], np.float32)).min() > 0.999999
    assert cosine(here, np.array(found["bf16"], np.float32)).min() > 0.999


@pytest.fixture
def without(monkeypatch):
    """A processor that computes in fp32 only."""
    monkeypatch.setattr(engine, "can_fuse", lambda dtype: dtype is torch.float32)
    native_bf16.cache_clear()
    yield
    native_bf16.cache_clear()


def test_what_it_can_not_do_is_no_native_precision(without):
    assert computes_in("cpu", "fp32")
    assert not computes_in("cpu", "bf16")
    assert not native_bf16("cpu")
    assert computes_in("cuda:0", "fp16")


def test_without_onednn_fp32_is_no_emulation(monkeypatch, cache, caplog):
    monkeypatch.setattr(engine, "can_fuse", lambda dtype: False)
    assert computes_in("cpu", "fp32")
    fill_cache(tiny_images(), backbone=tiny_backbone(), cache=cache, precision="fp32")
    assert "emulated" not in caplog.text


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_emulation_is_said_once_a_network(without, precision, cache, caplog):
    fill_cache(tiny_images(), backbone=tiny_backbone(), cache=cache, precision=precision)
    assert caplog.text.count(f"no arithmetic in {precision}") == 1
    assert "--precision fp32" in caplog.text
    caplog.clear()
    fill_cache(tiny_images(), backbone=tiny_backbone(), cache=cache, precision=precision)
    assert "emulated" not in caplog.text, "nothing was computed"


def test_auto_extends_a_bf16_file_there(without, cache, caplog):
    fill_cache(tiny_images(), backbone=tiny_backbone(), cache=cache, precision="bf16")
    report = fill_cache(tiny_images(50), backbone=tiny_backbone(), cache=cache)
    assert (report.outcomes[0].key.precision, report.outcomes[0].computed) == ("bf16", 10)
    assert len(Cache(cache).entries("tiny")) == 1


def test_a_torch_without_the_fused_calls_fuses_nothing(monkeypatch):
    def gone(*_):
        raise AttributeError("mkldnn_reorder_conv2d_weight")

    monkeypatch.setattr(conv_bn_fusion, "_FusedConv", gone)
    assert not conv_bn_fusion.can_fuse.__wrapped__(torch.float32)
