"""A bundle on its own, with weights inside or without."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import get_model

from featcache.errors import DataError, WeightsError
from featcache.extraction.extract import extract
from featcache.prediction.export import copy_model
from featcache.prediction.model import load_model
from featcache.reporting.compare import compare

from .conftest import draw


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A run on a file of weights and on a layer of another; its images; the weights' folder."""
    root = tmp_path_factory.mktemp("standalone")
    weights = root / "weights"
    weights.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name in ("squeezenet1_1", "shufflenet_v2_x0_5"):
            torch.save(get_model(name).state_dict(), weights / f"{name}.pth")
    images = draw(root / "shapes", 45)
    options = {"weights_dir": weights, "image_size": 32, "cache": root / "cache"}
    from featcache.store.features import join

    parts = [
        extract(images, backbone="squeezenet1_1", **options),
        extract(images, backbone="shufflenet_v2_x0_5", layer="stage3", **options),
    ]
    run = compare(join(parts), head="logreg", singles=False, reports=root / "reports").best
    return run.folder, images, weights


def test_it_labels_where_there_are_no_weights(
    trained: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    run, images, weights = trained
    copy = copy_model(run, tmp_path / "alone", standalone=True, weights_dir=weights)
    elsewhere = shutil.move(copy, tmp_path / "machine" / "model")
    with pytest.raises(WeightsError):
        load_model(run, device="cpu")
    np.testing.assert_allclose(
        load_model(elsewhere, device="cpu").predict_proba(images / "test"),
        load_model(run, weights_dir=weights, device="cpu").predict_proba(images / "test"),
        atol=1e-6,
    )
    again = copy_model(elsewhere, tmp_path / "second", standalone=True)
    assert (again / "weights").is_dir()
    assert len(load_model(again, device="cpu").predict(images / "test")) == 15


def test_without_them_it_needs_the_weights_at_hand(
    trained: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    run, images, weights = trained
    copy = copy_model(run, tmp_path / "plain")
    assert not (copy / "weights").exists()
    with pytest.raises(WeightsError):
        load_model(copy)
    assert len(load_model(copy, weights_dir=weights, device="cpu").predict(images / "test")) == 15


def test_weights_inside_are_checked_too(
    trained: tuple[Path, Path, Path], tmp_path: Path
) -> None:  # fmt: skip
    run, _, weights = trained
    copy = copy_model(run, tmp_path / "alone", standalone=True, weights_dir=weights)
    inside = next((copy / "weights").iterdir())
    save_file({"a": torch.zeros(1)}, inside)
    with pytest.raises(DataError, match=r"not the file that model\.json lists"):
        load_model(copy)


def test_nothing_is_overwritten_and_nothing_half_is_left(
    trained: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    run, _, weights = trained
    with pytest.raises(DataError, match="there already"):
        copy_model(run, tmp_path)
    with pytest.raises(WeightsError):
        copy_model(run, tmp_path / "out", standalone=True)
    assert list(tmp_path.iterdir()) == []
    copy = copy_model(run, tmp_path / "out", weights_dir=weights)
    facts = json.loads((copy / "model.json").read_text())
    assert facts == json.loads((run / "model" / "model.json").read_text())
