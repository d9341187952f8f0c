"""A fine-tuned run labels images as it was scored."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from featcache.extraction.state_dict import in_run
from featcache.finetuning.finetune import finetune
from featcache.finetuning.options import Options
from featcache.images.sources import open_images
from featcache.prediction.export import TOLERANCE, copy_model, export_onnx
from featcache.prediction.model import load_model

from .conftest import CLASSES, draw


def test_a_fine_tuned_run_says_what_its_evaluation_said(tmp_path: Path) -> None:
    images = draw(tmp_path / "shapes", 36)
    run = finetune(
        open_images(images, cache=tmp_path / "cache"),
        backbone="squeezenet1_1",
        weights="random:0",
        image_size=32,
        options=Options(epochs=1, freeze_epochs=1, batch_size=8),
        device="cpu",
        workers=1,
        reports=tmp_path / "reports",
        cache=tmp_path / "cache",
    )
    with (run.folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        told = list(csv.DictReader(file))
    proba = [[float(row[f"p_{name}"]) for name in CLASSES] for row in told]
    paths = [str(images / row["id"]) for row in told]
    for folder in (run.folder, copy_model(run.folder, tmp_path / "alone", standalone=True)):
        model = load_model(folder, device="cpu")
        np.testing.assert_allclose(model.predict_proba(paths), proba, atol=1e-5)
        assert model.classes == list(CLASSES)
    assert export_onnx(run.folder, tmp_path / "tuned.onnx").difference <= TOLERANCE


def test_a_fine_tuned_backbone_of_timm_is_found_by_either_name(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    images = draw(tmp_path / "shapes", 18)
    name = "timm:test_resnet"
    run = finetune(
        open_images(images, cache=tmp_path / "cache"),
        backbone=name,
        weights="random:0",
        image_size=32,
        options=Options(epochs=1, freeze_epochs=0, batch_size=8),
        device="cpu",
        workers=1,
        reports=tmp_path / "reports",
        cache=tmp_path / "cache",
    ).folder
    paths = [str(path) for path in sorted((images / "test").rglob("*.png"))]
    proba = load_model(run, device="cpu").predict_proba(paths)
    assert in_run(run, name) == run / "model/weights/timm.test_resnet.safetensors"
    spelt = shutil.copytree(run, tmp_path / "spelt")
    there, here = "weights/timm.test_resnet.safetensors", f"weights/{name}.safetensors"
    (spelt / "model" / there).rename(spelt / "model" / here)
    facts = json.loads((spelt / "model" / "model.json").read_text())
    del facts["sha256"]
    facts["files"][here] = facts["files"].pop(there)
    (spelt / "model" / "model.json").write_text(json.dumps(facts))
    np.testing.assert_array_equal(load_model(spelt, device="cpu").predict_proba(paths), proba)
    assert in_run(spelt, name) == spelt / "model" / here
