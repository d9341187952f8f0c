"""Bundles: what model.json says is covered by a checksum, and held against the pipeline."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small import coloured, small_backbone

from featcache.errors import DataError
from featcache.extraction.extract import fill_cache
from featcache.prediction.bundle_reader import model_facts
from featcache.prediction.model import load_model
from featcache.reporting.compare import compare
from featcache.store.cache import Cache

BACKBONE = small_backbone()


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp = tmp_path_factory.mktemp("fitted")
    images = coloured(36)
    fill_cache(images, backbone=BACKBONE, cache=tmp / "cache")
    cache = Cache(tmp / "cache")
    features = cache.features(images, cache.choose(images))
    done = compare(features, head="logreg", test_split=True, reports=tmp / "r", cache=None)
    return done.best.folder / "model"


@pytest.fixture
def folder(fitted: Path, tmp_path: Path) -> Path:
    return shutil.copytree(fitted, tmp_path / "model")


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "model.json"
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))


def loaded(folder: Path) -> Any:
    return load_model(folder, backbone=BACKBONE, device="cpu")


def test_what_is_written_is_read(folder: Path) -> None:
    picture = np.asarray(Image.new("RGB", (8, 8), "red"))
    assert loaded(folder).predict([picture])[0] in {"blue", "green", "red"}


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts.update(classes=["b0", "b9", "red"]),
        lambda facts: facts["backbones"][0].update(dim=7),
        lambda facts: facts["trained_on"].update(rows=1),
        lambda facts: facts.update(seed=5),
        lambda facts: facts.update(more=1),
    ],
)
def test_a_changed_entry_is_seen(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    changed(folder, change)
    with pytest.raises(DataError, match=r"model\.json is damaged, or was changed"):
        loaded(folder)


@pytest.mark.parametrize(
    "classes", [["b0", "b1", "b2"], ["blue", "green"], ["blue", "green", "res"]]
)
def test_classes_are_those_of_the_pipeline(folder: Path, classes: list[str]) -> None:
    """Also if the checksum is made to fit, or left out as in older bundles."""
    changed(folder, lambda facts: facts.update(classes=classes))
    changed(folder, lambda facts: facts.pop("sha256"))
    with pytest.raises(DataError, match=r"no class in model\.json"):
        loaded(folder)


def test_an_older_bundle_without_a_checksum_is_read(folder: Path) -> None:
    changed(folder, lambda facts: facts.pop("sha256"))
    assert loaded(folder).classes == ["blue", "green", "red"]


@pytest.mark.parametrize("text", ['"\\ud800"', "NaN", "[" * 500 + "]" * 500])
def test_values_that_no_file_can_hold_are_refused(folder: Path, text: str) -> None:
    path = folder / "model.json"
    path.write_text(path.read_text().replace('"seed"', f'"more": {text}, "seed"', 1))
    with pytest.raises(DataError, match=r"model\.json"):
        loaded(folder)


def test_flipped_bits_of_model_json_are_seen_or_harmless(folder: Path) -> None:
    path, rng = folder / "model.json", random.Random(0)
    content = path.read_bytes()
    plain = json.loads(content)
    for _ in range(300):
        data = bytearray(content)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            found = model_facts(folder)
        except DataError:
            continue
        found.pop("sha256", None)
        assert all(found[name] == plain[name] for name in ("classes", "backbones", "trained_on"))
