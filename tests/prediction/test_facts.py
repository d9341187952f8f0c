"""What model.json says is held against itself before anything is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featcache.errors import DataError
from featcache.prediction.bundle_reader import model_facts, preprocess_of
from featcache.prediction.model import load_model
from featcache.reporting.bundle import FACTS

from .conftest import Made

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(made: Made, tmp_path: Path) -> Path:
    shutil.copytree(made.run / "model", tmp_path / "model")
    return tmp_path / "model"


def _change(folder: Path, change: Change) -> None:
    facts = json.loads((folder / FACTS).read_text())
    change(facts)
    (folder / FACTS).write_text(json.dumps(facts))


def test_what_a_run_writes_passes(folder: Path) -> None:
    assert model_facts(folder)["name"] == "other+tiny.concat.logreg"


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda f: f.update(classes=f["classes"][::-1]), "not in order"),  # would swap labels
        (lambda f: f.update(classes=["cat", "cat", "owl"]), "not in order"),
        (lambda f: f.update(classes=[1, 2, 3]), "no texts"),
        (lambda f: f.update(classes=[]), "no texts"),
        (lambda f: f.update(trained_on={}), "trained on"),
        (lambda f: f.update(trained_on={"rows": "9", "what": 1}), "trained on"),
        (lambda f: f.update(backbones=[]), "backbones"),
        (lambda f: f.update(backbones=["tiny"]), "backbones"),
        (lambda f: f["backbones"][0].pop("dim"), "backbones"),
        (lambda f: f["backbones"][1].pop("precision"), "backbones"),
        (lambda f: f.update(weights={"tiny": 5}), "names of files"),
        (lambda f: f.update(weights=["tiny"]), "names of files"),
        (lambda f: f.pop("parts"), "parts"),
        (lambda f: f.update(parts="none"), "parts"),
        (lambda f: f.update(kind="finetuned"), "missing|among its files"),
        # Files whose digest nobody would look at, in the folder and out of it.
        (lambda f: f.update(files={}), "'pipeline.skops' is not among its files"),
        (lambda f: f.update(weights={"tiny": "other.safetensors"}), "is not among its files"),
        (lambda f: f.update(weights={"tiny": "../other.safetensors"}), "is not among its files"),
        (lambda f: f.update(parts=[{"kind": "network", "place": []}]), "is not among its files"),
    ],
)  # fmt: skip
def test_a_changed_entry_is_refused(made: Made, folder: Path, change: Change, part: str) -> None:
    _change(folder, change)
    with pytest.raises(DataError, match=part) as caught:
        load_model(folder, backbone=made.backbones, device="cpu")
    assert str(folder / FACTS) in caught.value.problem
    assert "again" in caught.value.remedy


def test_images_prepared_in_a_way_of_the_past_are_refused(made: Made, folder: Path) -> None:
    entry = model_facts(folder)["backbones"][0]
    entry["preprocess"] = {**entry["preprocess"], "antialias": False}
    with pytest.raises(DataError, match="in the same way") as caught:
        preprocess_of(entry)
    assert "fit it again" in caught.value.remedy
