"""int8: what it is quantised on is in the key, and one file is made by one quantised network."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_backbone, tiny_images

import featcache as fc
from featcache.errors import CacheRefused, DataError, FeatcacheError, RecipeError
from featcache.extraction import engine, quantising
from featcache.extraction.engine import likely_precision, open_engine
from featcache.extraction.extract import fill_cache
from featcache.extraction.loader import cosine
from featcache.extraction.network import has_nncf
from featcache.extraction.unique_images import UniqueImages
from featcache.images.manifest import Images
from featcache.images.sources import open_images
from featcache.store.cache import Cache
from featcache.store.feature_file import FeatureFile, read_quantised, to_hex, write_quantised

needs_int8 = pytest.mark.skipif(not has_nncf(), reason="featcache[int8] is not installed")
needs_none = pytest.mark.skipif(has_nncf(), reason="featcache[int8] is installed")


def calibrated(images, cache, backbone=None):
    (found,) = quantising.calibrated(
        [backbone or tiny_backbone()], Cache(cache), UniqueImages(images, Cache(cache))
    )
    return found


# What holds without the extra, too.


@needs_none
def test_without_the_extra_it_names_the_line_that_installs_it(cache):
    with pytest.raises(RecipeError, match=r'pip install "featcache\[int8\]"'):
        fill_cache(tiny_images(), backbone=tiny_backbone(), cache=cache, precision="int8")
    assert not Cache(cache).entries("tiny")


@pytest.mark.parametrize("kind", ["eager", "compile"])
def test_it_runs_in_openvino_alone(kind):
    with pytest.raises(RecipeError, match=f"int8 runs in OpenVINO, not {kind}"):
        open_engine("cpu", "int8", kind)


def test_it_is_the_processors(monkeypatch):
    monkeypatch.setattr(engine, "choose_device", lambda device: "cuda:0")
    with pytest.raises(RecipeError, match=r"int8 runs on the processor\n.*--device cpu"):
        open_engine("auto", "int8")


def test_auto_never_takes_it(cache):
    images, store = tiny_images(), Cache(cache)
    backbone = calibrated(images, cache)
    found = likely_precision(open_engine("cpu"), backbone, store, UniqueImages(images, store))
    assert found in ("fp32", "bf16")


def test_the_sample_is_in_the_key_of_int8_alone(cache):
    plain, backbone = tiny_backbone(), calibrated(tiny_images(), cache)
    other = calibrated(tiny_images(seed=1), cache)
    for precision in ("fp32", "bf16", "fp16"):
        assert backbone.key(precision) == plain.key(precision)
    key = backbone.key("int8")
    assert (len(key.calibration), key.dtype) == (64, "float32")
    assert key.differences(other.key("int8")) == [
        f"calibration {key.calibration} → {other.calibration}"
    ]
    assert calibrated(tiny_images(), cache).key("int8") == key
    assert calibrated(tiny_images(), cache, tiny_backbone(view="hflip")).calibration == (
        key.calibration
    )


@pytest.mark.parametrize("count", [1, 7, 300, 301, 5000])
def test_the_sample_is_even_and_always_the_same(count):
    rows = np.arange(1000, 1000 + count)
    drawn = quantising.draw(rows)
    assert len(drawn) == min(300, count)
    assert len(set(drawn.tolist())) == len(drawn)
    assert np.array_equal(drawn, quantising.draw(rows))
    if count > 300:
        assert np.diff(drawn).max() < 2 * count / 300 + 2


def write(folder: Path, count: int = 24) -> Images:
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / "ab"[i % 2] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return open_images(folder, cache=None)


def test_images_of_the_sample_that_are_gone_or_changed_are_an_error(tmp_path):
    images = write(tmp_path / "data")
    rows = np.arange(len(images))
    assert len(quantising.load(images, rows, tiny_backbone())) == 24
    (tmp_path / "data" / images.ids[3]).unlink()
    with pytest.raises(DataError, match=rf"1 image of the 24 .*{images.ids[3]}\)\n.*--rehash"):
        quantising.load(images, rows, tiny_backbone())
    (tmp_path / "data" / images.ids[5]).write_bytes(b"other")
    with pytest.raises(DataError, match="2 images of the 24"):
        quantising.load(images, rows, tiny_backbone())


def test_images_that_do_not_decode_are_left_out_of_the_sample(tmp_path):
    path = tmp_path / "data" / "a" / "bad.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"nonsense")
    images = open_images(tmp_path / "data", cache=None)
    with pytest.raises(DataError, match=r"not one of 1 image .*tiny"):
        quantising.load(images, np.arange(1), tiny_backbone())
    images = write(tmp_path / "data")
    assert len(quantising.load(images, np.arange(25), tiny_backbone())) == 24


def test_workers_are_refused():
    from featcache.scaling.plan import make_plan

    request, unique = SimpleNamespace(precision="int8"), SimpleNamespace(images=None)
    context = SimpleNamespace(request=request, unique=unique)
    with pytest.raises(RecipeError, match="workers don't embed in int8"):
        make_plan(context, None, 0)


def test_a_network_that_was_not_quantised_does_not_run():
    if not has_nncf():
        pytest.skip("featcache[int8] is not installed")
    with pytest.raises(FeatcacheError, match="tiny was not quantised"):
        open_engine("cpu", "int8").load(tiny_backbone())


# With the extra.


def fill(cache, images=None, **options):
    options.setdefault("backbone", tiny_backbone())
    report = fill_cache(
        images or tiny_images(), cache=cache, batch_size=8, precision="int8", **options
    )
    return report.outcomes[0]


def stored(outcome):
    with FeatureFile(outcome.path) as file:
        file.read(np.arange(len(file)), out := np.empty((len(file), file.dim), np.float32))
        return dict(zip(to_hex(file.digests), out, strict=True))


@needs_int8
def test_vectors_are_near_those_in_fp32_and_no_others(cache):
    outcome = fill(cache)
    exact = fill_cache(tiny_images(), backbone=tiny_backbone(), cache=cache, precision="fp32")
    a, b = stored(outcome), stored(exact.outcomes[0])
    assert outcome.key.precision == "int8"
    assert cosine(np.array([a[k] for k in b]), np.array(list(b.values()))).min() > 0.98
    assert any(not np.array_equal(a[k], b[k]) for k in b)
    assert fill(cache).computed == 0


@needs_int8
def test_quantised_again_on_the_same_images_it_gives_the_same_bits(tmp_path):
    one, two = fill(tmp_path / "one"), fill(tmp_path / "two")
    assert one.path.name == two.path.name
    a, b = stored(one), stored(two)
    assert all(np.array_equal(a[k], b[k]) for k in b)


@needs_int8
def test_killed_and_resumed_it_is_the_same_to_the_bit(tmp_path, monkeypatch):
    whole = fill(tmp_path / "whole")

    def stop(done, _):
        if done > 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "cut", progress=stop)
    monkeypatch.setattr(quantising, "quantise", lambda *_: pytest.fail("quantised again"))
    resumed = fill(tmp_path / "cut")
    assert 0 < resumed.computed < 40
    a, b = stored(whole), stored(resumed)
    assert (whole.key, a.keys()) == (resumed.key, b.keys())
    assert all(np.array_equal(a[k], b[k]) for k in b)


@needs_int8
def test_more_images_join_the_file_by_the_network_that_began_it(cache, monkeypatch):
    """Though they would give another sample, and images of the first are not there any more."""
    first, old = fill(cache), None
    old = stored(first)
    monkeypatch.setattr(quantising, "quantise", lambda *_: pytest.fail("quantised again"))
    more = fill(cache, tiny_images(50))
    assert (more.key, more.computed, more.rows) == (first.key, 10, 50)
    new = stored(more)
    assert all(np.array_equal(new[k], old[k]) for k in old)
    fresh = calibrated(tiny_images(50), cache.with_name("none"))
    assert fresh.calibration != first.key.calibration


@needs_int8
def test_views_share_the_network_of_their_backbone(cache, monkeypatch):
    calls, quantise = [], quantising.quantise
    monkeypatch.setattr(quantising, "quantise", lambda *a: calls.append(a) or quantise(*a))
    fill(cache, view="hflip")
    fill(cache, view="rot90")
    assert len(calls) == 1
    store, images = Cache(cache), tiny_images()
    entries = store.entries("tiny")
    assert len({read_quantised(entry.path) for entry in entries}) == 1
    assert len(store.features(images, store.choose(images), ["hflip", "rot90"])) == 120


@needs_int8
def test_a_file_that_has_lost_its_network_is_not_extended_by_another(cache):
    import h5py

    path = fill(cache).path
    with h5py.File(path, "r+") as file:
        del file["quantised"]
    with pytest.raises(CacheRefused, match=r"lacks the quantised network"):
        read_quantised(path)
    other = fill(cache, tiny_images(50))
    assert (other.path == path, other.computed) == (False, 50)


@needs_int8
def test_what_can_not_be_quantised_says_so(cache):
    class Odd(torch.nn.Module):
        def forward(self, x):
            return torch.linalg.eigvals(x[:, 0]).real

    odd, level = replace(tiny_backbone(), build=Odd), logging.root.level
    with pytest.raises(FeatcacheError, match=r"tiny can't be quantised: .*\n.*--precision fp32"):
        quantising.quantise(odd, np.zeros((4, 3, 8, 8), np.uint8))
    assert logging.root.level == level, "or later warnings would not be seen"


@needs_int8
def test_a_network_far_from_fp32_is_said_aloud(caplog, monkeypatch):
    monkeypatch.setattr(quantising, "_LEAST", 1.01)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), np.uint8)
    quantising.quantise(tiny_backbone(), pixels)
    assert "tiny in int8 is far from fp32" in caplog.text


@needs_int8
def test_some_of_a_file_embedded_again_agree(tmp_path, cache):
    from featcache.extraction.consistency import deep_verify

    images = write(tmp_path / "data")
    fill(cache, images, backbone="squeezenet1_1", weights="random:0", image_size=32)
    (checked,) = deep_verify(images, 5, cache=cache)
    assert (checked.agrees, checked.rows, checked.cosine) == (True, 5, 1.0)


@needs_int8
def test_a_model_takes_its_quantised_network_along(tmp_path, cache):
    """So that it labels new images where there is no cache."""
    images = tiny_images(60, classes=3)
    fill(cache, images)
    store = Cache(cache)
    features = store.features(images, store.choose(images))
    fc.compare(features, fusion="concat", head="logreg", reports=tmp_path / "reports")
    (run,) = (path.parent for path in (tmp_path / "reports").glob("*/*/run.json"))
    for entry in store.entries("tiny"):
        entry.path.unlink()
    model = fc.load_model(run, backbone=tiny_backbone())
    pixels = [np.asarray(images.read(row)) for row in range(12)]
    there = model._classify.pipeline.predict(features.X[:12])
    assert model.predict(pixels).tolist() == there.tolist()
    (run / "model" / "quantised" / "0.npz").write_bytes(b"other")
    with pytest.raises(DataError, match="damaged, or was changed"):
        fc.load_model(run, backbone=tiny_backbone())


@needs_int8
def test_status_finds_the_file(tmp_path, cache):
    from click.testing import CliRunner

    from featcache.cli.main import cli

    write(tmp_path / "data")
    options = "--backbone squeezenet1_1 --weights random:0 --image-size 32 --device cpu"
    options += f" --precision int8 --cache {cache}"
    for command in ("extract", "cache status"):
        words = [*command.split(), "--data", str(tmp_path / "data"), *options.split()]
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 0, done.output
    assert "HIT" in done.output


def test_a_file_finished_without_some_rows_keeps_its_network(tmp_path):
    from featcache.store.feature_file import create

    key = calibrated(tiny_images(), tmp_path).key("int8")
    digests = np.arange(96, dtype=np.uint8).reshape(3, 32)
    with create(tmp_path / "x.partial", key, digests, 2) as file:
        write_quantised(file.path, b"network")
        file.write(np.arange(2), np.ones((2, 2), np.float32))
        file.finish(tmp_path / "x.h5", np.array([False, False, True]))
    with FeatureFile(tmp_path / "x.h5") as file:
        assert (len(file), bool(file.quantised), file.key) == (2, True, key)
    assert read_quantised(tmp_path / "x.h5") == b"network"
