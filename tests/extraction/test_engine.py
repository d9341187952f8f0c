from __future__ import annotations

import copy
import json
import os
import platform
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import SIDE, TinyNet, tiny_backbone, tiny_images
from torch import nn

from featcache.errors import FeatcacheError, RecipeError, UnknownName
from featcache.extraction import conv_bn_fusion, engine, extract
from featcache.extraction.backbone import Backbone
from featcache.extraction.engine import Engine, computes_in, native_bf16, open_engine
from featcache.extraction.extract import fill_cache
from featcache.extraction.loader import Loading, cosine
from featcache.extraction.preprocess import Preprocess
from featcache.extraction.registry import open_backbone
from featcache.store.cache import Cache
from featcache.store.feature_file import FeatureFile

NAMES = ["resnet18", "mobilenet_v2", "squeezenet1_1", "densenet121"]


def pixels(n, side=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 3, side, side), dtype=np.uint8)


@pytest.fixture(scope="module", params=NAMES)
def network(request):
    backbone = open_backbone(request.param, weights="random:0", image_size=32)
    return Engine(batch_size=8).load(backbone)


def test_batch_statistics_do_not_move(network):
    module = network._forward
    before = copy.deepcopy(module.state_dict())
    network.run(pixels(8))
    after = module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(part.training for part in module.modules())
    assert not any(p.requires_grad for p in module.parameters())


def test_a_row_does_not_depend_on_its_company(network):
    """Order, neighbours and filler: bit for bit the same."""
    x = pixels(8)
    whole = network.run(x)
    order = np.random.default_rng(0).permutation(8)
    assert np.array_equal(network.run(x[order]), whole[order])
    assert np.array_equal(network.run(x[:3]), whole[:3])
    assert np.array_equal(network.run(x[5:6]), whole[5:6])
    others = pixels(8, seed=1)
    others[2] = x[4]
    assert np.array_equal(network.run(others)[2], whole[4])


def test_more_images_than_a_batch_are_run_in_batches(network):
    x = pixels(19)
    parts = [network.run(x[i : i + 8]) for i in (0, 8, 16)]
    assert np.array_equal(network.run(x), np.concatenate(parts))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_batch_size_changes_a_row_by_rounding_only(name, batch_size):
    backbone = open_backbone(name, weights="random:0", image_size=32)
    x = pixels(6)
    ours = Engine(batch_size=batch_size).load(backbone).run(x)
    theirs = Engine(batch_size=8).load(backbone).run(x)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * max(1, np.abs(theirs).max()))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_is_close(precision):
    backbone = open_backbone("resnet18", weights="random:0", image_size=32)
    x = pixels(4)
    exact = Engine(batch_size=4).load(backbone).run(x).astype(np.float64)
    rough = Engine(batch_size=4, precision=precision).load(backbone).run(x)
    assert rough.dtype == np.float32
    lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(rough, axis=1)
    assert ((exact * rough).sum(axis=1) / lengths).min() > 0.999


def test_gradients_are_not_recorded(network):
    assert isinstance(network.run(pixels(1)), np.ndarray)
    assert torch.is_grad_enabled()


def around(module, side=SIDE):
    return Backbone("mine", "tests", "w", "0", Preprocess(resize=side, crop=side), lambda: module)


class Wrong(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer(x)


def test_a_network_that_gives_no_matrix_is_refused():
    with pytest.raises(FeatcacheError, match="4 dimensions, not 2"):
        Engine(batch_size=2).load(around(nn.Identity()))


def test_a_network_that_can_not_take_the_size_says_so():
    with pytest.raises(FeatcacheError, match=r"mine can't run on images of 8 px.*\n.*--image-size"):
        Engine(batch_size=2).load(around(nn.Sequential(nn.Flatten(), nn.Linear(7, 2))))


def test_dim_is_found_by_trying():
    assert Engine(batch_size=2).load(tiny_backbone(dim=7)).dim == 7


def test_describe_records_what_made_it():
    facts = Engine().describe()
    assert facts["device"] == "cpu"
    assert facts["torch"] == torch.__version__


def test_open_engine_defaults(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert open_engine() == Engine("cpu", "auto", "auto", 32, at_once=8)
    assert open_engine("cpu", "bf16", "eager", 5) == Engine("cpu", "bf16", "eager", 5)


@pytest.mark.parametrize(("batch_size", "size"), [("auto", 8), (5, 5), (32, 32)])
def test_the_processor_takes_few_images_at_once_unless_told(batch_size, size, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    seen = []

    class Watch(nn.Module):
        def forward(self, x):
            seen.append(len(x))
            return x.flatten(1)

    network = open_engine("cpu", "fp32", "eager", batch_size).load(around(Watch()))
    network.run(pixels(40))
    assert set(seen) == {size}


@pytest.mark.parametrize(
    ("count", "asked", "size"),
    [(120, 512, 120), (600, 512, 304), (3, 512, 3), (513, 512, 264), (10_000, 512, 504),
     (60_000, 128, 128), (9, 8, 8), (16, 8, 8), (1, 1, 1), (0, 32, 1), (12, 11, 8), (20, 32, 20)],
)  # fmt: skip
def test_batches_are_no_larger_than_the_data_set_fills(count, asked, size):
    engine = Engine(batch_size=asked, at_once=4).for_set(count)
    assert (engine.batch_size, engine.at_once) == (size, min(4, size))


@settings(max_examples=300, deadline=None)
@given(count=st.integers(1, 10**6), asked=st.integers(1, 2048))
def test_no_batch_is_filled_up_by_more_than_a_step(count, asked):
    size = Engine(batch_size=asked).for_set(count).batch_size
    batches = -(-count // size)
    assert 1 <= size <= asked
    assert batches * size - count < 8 * batches


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"device": "gpu"}, UnknownName, "unknown device 'gpu'"),
        ({"device": "cuda:x"}, UnknownName, "cuda:x"),
        ({"device": "cuda:7"}, RecipeError, "no device cuda:7"),
        ({"precision": "fp8"}, UnknownName, "unknown precision 'fp8'"),
        ({"engine": "fast"}, UnknownName, "unknown engine 'fast'"),
        ({"batch_size": 0}, RecipeError, "batch size 0"),
        ({"batch_size": "many"}, RecipeError, "'many'"),
    ],
)
def test_what_is_not_there_is_refused(options, kind, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(kind, match=message):
        open_engine(**options)


def test_a_gpu_that_is_there_and_not_used_is_said_aloud(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    open_engine("cpu")
    assert "there is a GPU, and it is not used" in caplog.text


# The precision that is picked, and kept.


@pytest.fixture
def native(monkeypatch):
    """A processor that computes in bf16."""
    monkeypatch.setattr(engine, "fast_precisions", lambda device: ("bf16",))


class Coarse(TinyNet):
    """Far off as soon as it computes in anything but fp32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        vectors = super().forward(x)
        return vectors if x.dtype is torch.float32 else vectors + 3 * x[:, 0, 0, :5].sign()


def coarse():
    return replace(tiny_backbone(), build=lambda: Coarse(5, 0, None))


def fill(cache, backbone=None, images=None, **options):
    report = fill_cache(
        images or tiny_images(), backbone=backbone or tiny_backbone(), cache=cache, batch_size=8,
        **options,
    )  # fmt: skip
    return report.outcomes[0]


def attributes(outcome):
    with FeatureFile(outcome.path) as file:
        return file.attributes


def test_auto_is_bf16_where_the_network_bears_it_and_says_how_well(native, cache):
    outcome = fill(cache)
    assert outcome.key.precision == "bf16"
    assert 0.999 <= attributes(outcome)["canary"] <= 1
    exact = fill(cache, precision="fp32")
    stored = []
    for one in (outcome, exact):
        with FeatureFile(one.path) as file:
            stored.append(file.read(np.arange(40), out := np.empty((40, 5), np.float32)) or out)
    assert not np.array_equal(*stored)
    assert engine.cosine(*stored).min() > 0.999


def test_auto_falls_back_to_fp32_where_it_does_not(native, cache, caplog):
    outcome = fill(cache, coarse())
    assert outcome.key.precision == "fp32"
    assert attributes(outcome)["canary"] < 0.999
    assert "computing in fp32" in caplog.text


def test_asked_for_in_bf16_it_is_bf16_with_a_warning(cache, caplog):
    outcome = fill(cache, coarse(), precision="bf16")
    assert outcome.key.precision == "bf16"
    assert "differs from fp32" in caplog.text


def test_without_bf16_auto_is_fp32_and_there_is_no_canary(cache):
    outcome = fill(cache)
    assert outcome.key.precision == "fp32"
    assert "canary" not in attributes(outcome)


@pytest.mark.parametrize("begun", ["fp32", "bf16"])
@pytest.mark.parametrize("hardware", [True, False])
def test_auto_goes_on_in_the_precision_that_is_there(monkeypatch, cache, begun, hardware):
    """Also on another machine; a hit builds no network, and ten more images join their file."""
    fill(cache, precision=begun)
    monkeypatch.setattr(engine, "fast_precisions", lambda device: ("bf16",) * hardware)

    def refuse():
        raise AssertionError("a network was built")

    assert fill(cache, replace(tiny_backbone(), build=refuse)).key.precision == begun
    more = fill(cache, images=tiny_images(50))
    assert (more.key.precision, more.computed, more.rows) == (begun, 10, 50)


def test_of_two_precisions_it_takes_the_one_with_less_to_do(native, cache):
    fill(cache, precision="fp32")
    fill(cache, precision="bf16", images=tiny_images(50))
    assert fill(cache, images=tiny_images(50)).computed == 0


def test_images_that_do_not_decode_are_no_crash_of_the_canary(native, tmp_path, cache):
    from featcache.errors import DataError
    from featcache.images.sources import open_images

    for i in range(3):
        path = tmp_path / "bad" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"nonsense %d" % i)
    with pytest.raises(DataError, match="not one of 3 images"):
        fill(cache, images=open_images(tmp_path / "bad", cache=None))


def test_killed_and_resumed_in_bf16_it_is_the_same_to_the_bit(native, tmp_path):
    whole = fill(tmp_path / "whole")
    calls = [0]

    def stop(_):
        calls[0] += 1
        if calls[0] > 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "cut", tiny_backbone(called=stop))
    resumed = fill(tmp_path / "cut")
    images, features = tiny_images(), []
    for folder, one in ((tmp_path / "whole", whole), (tmp_path / "cut", resumed)):
        store = Cache(folder)
        assert one.key.precision == "bf16"
        features.append(store.features(images, store.choose("tiny")).X.tobytes())
    assert features[0] == features[1]


def test_views_share_the_canary_and_the_network_of_their_backbone(native, cache):
    built = [0]
    backbone, plain = tiny_backbone(), tiny_backbone().build

    def build():
        built[0] += 1
        return plain()

    counted = replace(backbone, build=build)
    report = fill_cache(tiny_images(), backbone=counted, view=["hflip", "rot90"], cache=cache)
    assert [done.key.precision for done in report.outcomes] == ["bf16"] * 3
    assert built[0] == 3, "one in fp32 for the canary, one that does the work, one in fp32 after it"


@pytest.mark.parametrize("on_device", [False, True])
def test_a_shared_network_cuts_each_view_as_its_own(native, monkeypatch, cache, on_device):
    loading = Loading(1, on_device=on_device)
    monkeypatch.setattr(extract, "choose_loading", lambda *_: loading)
    options = {"view": ["hflip", "rot90"], "cache": cache}
    together = fill_cache(tiny_images(), backbone=tiny_backbone(), **options).outcomes
    for view, one in zip(("none", "hflip", "rot90"), together, strict=True):
        alone = tiny_backbone(view=view)
        images = np.stack([np.asarray(tiny_images().read(row)) for row in range(40)])
        pixels = np.stack([alone.preprocess.cut(Image.fromarray(image)) for image in images])
        expected = Engine(precision="bf16").load(alone).run(pixels)
        with FeatureFile(one.path) as file:
            file.read(np.arange(40), stored := np.empty((40, 5), np.float32))
        assert cosine(stored, expected).min() > 0.999, view


def test_a_view_goes_on_in_its_own_precision(native, cache):
    fill(cache, tiny_backbone(view="hflip"), precision="fp32")
    more = tiny_images(50)
    report = fill_cache(more, backbone=tiny_backbone(), view="hflip", cache=cache)
    assert [done.key.precision for done in report.outcomes] == ["bf16", "fp32"]
    assert report.outcomes[1].computed == 10


# Processors without bf16 give right vectors all the same, and say what it costs.

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
