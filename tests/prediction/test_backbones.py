"""Weights are found by what they are, wherever they lie, and no others are taken."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import get_model

from featcache.errors import UnknownName, WeightsError
from featcache.extraction.registry import open_backbone
from featcache.prediction.bundle_reader import open_recorded


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """squeezenet1_1.safetensors of seeded draws."""
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(get_model("squeezenet1_1").state_dict(), folder / "squeezenet1_1.safetensors")
    return folder


def _recorded(**options: Any) -> dict[str, Any]:
    key = open_backbone("squeezenet1_1", image_size=32, **options).key()
    plain = asdict(key)
    return {**plain, "name": plain["backbone"], "key": key.digest, "dim": 512}


def test_found_in_any_folder_under_any_of_its_names(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = _recorded(weights_dir=weights)
    assert recorded["weights"] == "local"
    content = (weights / "squeezenet1_1.safetensors").read_bytes()
    for name in ("squeezenet1_1.safetensors", "squeezenet1_1-mine.safetensors"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_bytes(content)
        same = open_recorded(recorded, weights_dir=folder)
        assert same.key().digest == recorded["key"]
        monkeypatch.setenv("FEATCACHE_WEIGHTS", str(folder))
        assert open_recorded(recorded).key().digest == recorded["key"]
        monkeypatch.delenv("FEATCACHE_WEIGHTS")
    assert same.build().state_dict().keys() == same.build().state_dict().keys()


def test_the_right_one_among_several_is_taken(weights: Path, tmp_path: Path) -> None:
    content = (weights / "squeezenet1_1.safetensors").read_bytes()
    (tmp_path / "squeezenet1_1.safetensors").write_bytes(content + b" ")
    (tmp_path / "squeezenet1_1-old.safetensors").write_bytes(content)
    recorded = _recorded(weights_dir=weights)
    assert (
        open_recorded(recorded, weights_dir=tmp_path).weights_sha256 == (recorded["weights_sha256"])
    )


def test_other_weights_are_refused_and_named(weights: Path, tmp_path: Path) -> None:
    recorded = _recorded(weights_dir=weights)
    content = (weights / "squeezenet1_1.safetensors").read_bytes()
    (tmp_path / "squeezenet1_1.safetensors").write_bytes(content + b" ")
    with pytest.raises(WeightsError) as caught:
        open_recorded(recorded, weights_dir=tmp_path)
    assert recorded["weights_sha256"][:8] in caught.value.problem
    assert str(tmp_path / "squeezenet1_1.safetensors") in caught.value.problem
    assert "--weights-dir" in caught.value.remedy
    assert "--standalone" in caught.value.remedy


def test_none_at_all_is_an_error_that_says_so(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no file of this backbone"):
        open_recorded(_recorded(weights_dir=weights), weights_dir=tmp_path)


def test_random_weights_need_no_file() -> None:
    recorded = _recorded(weights="random:7")
    same = open_recorded(recorded)
    assert same.weights_sha256 == "random:7"
    assert same.key().digest == recorded["key"]


def test_the_recorded_preprocessing_is_taken_not_today_s(weights: Path) -> None:
    recorded = _recorded(weights="random:0")
    other = open_backbone("squeezenet1_1", weights="random:0", image_size=32)
    from dataclasses import replace

    changed = replace(other, preprocess=replace(other.preprocess, resize=40, std=(1.0, 1.0, 1.0)))
    recorded |= {"preprocess": changed.preprocess.plain(), "key": changed.key().digest}
    assert open_recorded(recorded).preprocess == changed.preprocess


def test_another_layer_is_kept(weights: Path) -> None:
    recorded = _recorded(weights="random:0", layer="features.3")
    same = open_recorded(recorded)
    assert same.layer == recorded["layer"] == "features.3:mean"


def test_a_backbone_that_is_not_known_here_is_an_error() -> None:
    with pytest.raises(UnknownName, match="unknown backbone 'resnet9'"):
        open_recorded({**_recorded(weights="random:0"), "name": "resnet9"})


def test_one_of_timm_in_any_place_where_it_may_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timm = pytest.importorskip("timm")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        save_file(timm.create_model("test_vit").state_dict(), tmp_path / "w.safetensors")
    opened = open_backbone("timm:test_vit", weights=str(tmp_path / "w.safetensors"), image_size=96)
    plain = asdict(opened.key())
    recorded = {**plain, "name": plain["backbone"], "key": opened.key().digest, "dim": 64}
    with pytest.raises(WeightsError, match="no file of this backbone"):
        open_recorded(recorded)
    content = (tmp_path / "w.safetensors").read_bytes()
    own = tmp_path / "own"
    own.mkdir()
    (own / "timm.test_vit.safetensors").write_bytes(content)
    same = open_recorded(recorded, weights_dir=own)
    assert same.key().digest == recorded["key"]
    x = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        assert torch.equal(same.build().eval()(x), opened.build().eval()(x))
