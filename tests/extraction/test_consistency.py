"""Old rows and new rows must come from the same function."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stored import reseal
from tiny import tiny_backbone, tiny_images

from featcache.errors import CacheRefused, WeightsError
from featcache.extraction import consistency
from featcache.extraction.consistency import deep_verify
from featcache.extraction.engine import Engine
from featcache.extraction.extract import fill_cache
from featcache.images.sources import open_images
from featcache.store.cache import Cache


def test_extending_a_file_checks_a_few_old_rows(tmp_path: Path) -> None:
    fill_cache(tiny_images(12), backbone=tiny_backbone(), cache=tmp_path, batch_size=4)
    calls: list[int] = []
    report = fill_cache(
        tiny_images(13), backbone=tiny_backbone(called=calls.append), cache=tmp_path, batch_size=4
    )
    assert report.outcomes[0].computed == 1
    assert len(calls) == 3  # the probe, the check, the one new image


def test_vectors_that_no_longer_come_out_are_not_mixed_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that computes something else under the same key: a library that changed."""
    fill_cache(tiny_images(12), backbone=tiny_backbone(), cache=tmp_path, batch_size=4)
    changed = tiny_backbone()
    changed.__dict__["build"] = tiny_backbone(seed=1).build
    now = {**Engine().describe(), "torch": "99.0"}
    monkeypatch.setattr(Engine, "describe", lambda _: now)
    with pytest.raises(CacheRefused, match=r"torch .* → 99\.0") as caught:
        fill_cache(tiny_images(13), backbone=changed, cache=tmp_path, batch_size=4)
    assert caught.value.exit_code == 4
    cache = Cache(tmp_path)
    assert len(cache.features(tiny_images(12), cache.choose("tiny"))) == 12


def test_a_resumed_run_checks_too(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    count = [0]

    def stop(_: int) -> None:
        count[0] += 1
        if count[0] == 4:
            raise Stop

    with pytest.raises(Stop):
        fill_cache(
            tiny_images(20), backbone=tiny_backbone(called=stop), cache=tmp_path, batch_size=4
        )
    changed = tiny_backbone()
    changed.__dict__["build"] = tiny_backbone(seed=1).build
    with pytest.raises(CacheRefused, match="cosine"):
        fill_cache(tiny_images(20), backbone=changed, cache=tmp_path, batch_size=4)


def test_cosines_against_a_hand_computed_case(tmp_path: Path) -> None:
    images, backbone = tiny_images(3), tiny_backbone()
    network = Engine(batch_size=4).load(backbone)
    pixels = np.stack([backbone.preprocess.cut(_pil(images.read(i))) for i in range(3)])
    stored = network.run(pixels)
    stored[1] = -stored[1]
    stored[2] = 0
    found = consistency.cosines(network, backbone.preprocess, images, np.arange(3), stored)
    np.testing.assert_allclose(found, [1, -1, 0], atol=1e-6)


def _pil(content: object) -> object:
    from PIL import Image

    return Image.fromarray(content)


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    fill_cache(
        open_images("digits"), backbone="squeezenet1_1", weights="random:0", image_size=32,
        cache=tmp_path,
    )  # fmt: skip
    return tmp_path


def test_deep_verify_embeds_again_and_compares(digits: Path) -> None:
    (checked,) = deep_verify("digits", 20, cache=digits)
    assert (checked.rows, checked.agrees) == (20, True)
    assert checked.cosine > 0.99999
    path = Cache(digits).entries("digits")[0].path
    import h5py

    with h5py.File(path, "r+") as file:
        file["features"][:] = np.roll(file["features"][:], 1, axis=0)  # rows of other images
    reseal(path)
    (checked,) = deep_verify("digits", 20, cache=digits)
    assert not checked.agrees


def test_deep_verify_needs_the_same_weights(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from featcache.extraction import consistency as module

    original = module.open_backbone
    monkeypatch.setattr(
        module, "open_backbone", lambda *a, **k: original(*a, **{**k, "weights": "random:1"})
    )
    with pytest.raises(WeightsError, match="random:0 → random:1"):
        list(deep_verify("digits", 5, cache=digits))
