from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import TinyNet, tiny_backbone, tiny_images

from featcache.extraction import engine
from featcache.extraction.extract import fill_cache
from featcache.store.cache import Cache
from featcache.store.feature_file import FeatureFile


@pytest.fixture
def native(monkeypatch):
    """A processor that computes in bf16."""
    monkeypatch.setattr(engine, "native_bf16", lambda device: True)


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
    monkeypatch.setattr(engine, "native_bf16", lambda device: hardware)

    def refuse():
        raise AssertionError("a network was built")

    assert fill(cache, replace(tiny_backbone(), build=refuse)).key.precision == begun
    more = fill(cache, images=tiny_images(50))
    assert (more.key.precision, more.computed, more.rows) == (begun, 10, 50)


def test_of_two_precisions_it_takes_the_one_with_less_to_do(native, cache):
    fill(cache, precision="fp32")
    fill(cache, precision="bf16", images=tiny_images(50))
    assert fill(cache, images=tiny_images(50)).computed == 0


def test_a_canary_on_images_that_do_not_decode_is_no_crash(native, tmp_path, cache):
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
    assert built[0] == 2, "one in fp32 for the canary, one that does the work"


def test_a_view_goes_on_in_its_own_precision(native, cache):
    fill(cache, tiny_backbone(view="hflip"), precision="fp32")
    more = tiny_images(50)
    report = fill_cache(more, backbone=tiny_backbone(), view="hflip", cache=cache)
    assert [done.key.precision for done in report.outcomes] == ["bf16", "fp32"]
    assert report.outcomes[1].computed == 10
