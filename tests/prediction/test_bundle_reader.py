"""Which model is meant by what the user wrote."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import get_model

from featcache.errors import DataError, UnknownName, WeightsError
from featcache.extraction.registry import open_backbone
from featcache.prediction.bundle_reader import find_model, model_facts, open_recorded, preprocess_of
from featcache.prediction.model import load_model
from featcache.reporting.bundle import FACTS

from .conftest import Made


def _run(reports: Path, name: str, data: str = "cells", model: bool = True) -> Path:
    folder = reports / data / name
    (folder / "model").mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    if model:
        (folder / "model" / "model.json").write_text("{}")
    return folder


def test_a_run_its_model_and_a_copy_are_found(tmp_path: Path) -> None:
    run = _run(tmp_path, "resnet18.concat.mlp.11112222")
    copy = shutil.copytree(run / "model", tmp_path / "copy")
    assert find_model(run) == find_model(run / "model") == run / "model"
    assert find_model(copy) == copy


@pytest.mark.parametrize(
    "name",
    ["resnet18.concat.mlp.11112222", "resnet18.concat.m", "cells/resnet18.concat.mlp",
     "{reports}/cells/resnet18.concat.mlp"],
)  # fmt: skip
def test_the_beginning_of_a_name_is_enough(tmp_path: Path, name: str) -> None:
    run = _run(tmp_path, "resnet18.concat.mlp.11112222")
    _run(tmp_path, "resnet18.concat.svm.33334444")
    assert find_model(name.format(reports=tmp_path.as_posix()), tmp_path) == run / "model"


def test_a_whole_name_wins_over_a_beginning(tmp_path: Path) -> None:
    run = _run(tmp_path, "a.b.c")
    _run(tmp_path, "a.b.c.d")
    assert find_model("a.b.c", tmp_path) == run / "model"


@pytest.mark.parametrize(
    "name",
    ["resnet18+timm:vgg.a1+alexnet.concat.mlp", "timm.vgg.a1+alexnet+resnet18",
     "cells/timm.vgg.a1+resnet18+alexnet.concat.mlp.1111"],
)  # fmt: skip
def test_backbones_are_named_in_any_order(tmp_path: Path, name: str) -> None:
    run = _run(tmp_path, "alexnet+resnet18+timm.vgg.a1.concat.mlp.11112222")
    (run / "run.json").write_text('{"backbones": ["alexnet", "resnet18", "timm:vgg.a1"]}')
    _run(tmp_path, "alexnet+resnet18.concat.mlp.33334444")
    assert find_model(name, tmp_path) == run / "model"
    for other in (
        "resnet18+vgg+alexnet",
        "resnet18+resnet18+alexnet",
        "timm:vgg.a1+alexnet.c",
    ):
        with pytest.raises(UnknownName):
            find_model(other, tmp_path)


def test_an_older_run_is_found_as_it_is_spelt(tmp_path: Path) -> None:
    for one, other in (("a", "b"), ("b", "a")):
        run = _run(tmp_path, f"{one}+{other}.concat.mlp.11112222")
        (run / "run.json").write_text(json.dumps({"backbones": [one, other]}))
    for name in ("a+b.concat", "b+a.concat"):
        assert find_model(name, tmp_path).parent.name.startswith(name)


def test_several_runs_are_listed(tmp_path: Path) -> None:
    runs = [_run(tmp_path, f"resnet18.concat.{head}.1") for head in ("mlp", "svm")]
    with pytest.raises(UnknownName) as caught:
        find_model("resnet18", tmp_path)
    assert all(str(run) in caught.value.remedy for run in runs)


def test_a_misspelt_name_gets_the_nearest(tmp_path: Path) -> None:
    _run(tmp_path, "resnet18.concat.mlp.11112222")
    with pytest.raises(UnknownName, match=r"Did you mean resnet18\.concat\.mlp"):
        find_model("resnet18.conact.mlp.11112222", tmp_path)
    with pytest.raises(UnknownName, match="featcache fit"):
        find_model("resnet18", tmp_path / "empty")


def test_a_folder_that_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither a run folder nor a model"):
        find_model(tmp_path)


def test_a_run_without_a_model_names_the_command_that_makes_it(
    made: Made, tmp_path: Path
) -> None:  # fmt: skip
    run = shutil.copytree(made.run, tmp_path / "run")
    shutil.rmtree(run / "model")
    facts = json.loads((run / "run.json").read_text())
    facts |= {"split": "2 x 3 folds", "seed": 4, "settings": {"logreg.C": 0.5, "head.x": [1, 2]}}
    facts |= {"view": ["hflip"], "balance": True}
    facts["settings"]["select"] = "anova:4"
    (run / "run.json").write_text(json.dumps(facts))
    with pytest.raises(DataError) as caught:
        find_model(run)
    words = shlex.split(caught.value.remedy.splitlines()[-1])
    key = facts["keys"]["tiny"][:8]
    assert words == [
        "featcache", "fit", "--name", "shapes",
        "--backbone", f"other@{facts['keys']['other'][:8]},tiny@{key}", "--fusion", "concat",
        "--head", "logreg", "--folds", "3", "--repeats", "2", "--seed", "4", "--view", "hflip",
        "--balance", "--set", "logreg.C=0.5", "--set", "head.x=[1, 2]", "--select", "anova:4",
    ]  # fmt: skip


def test_a_damaged_run_without_a_model_is_one_clear_error(tmp_path: Path) -> None:
    run = _run(tmp_path, "a", model=False)
    with pytest.raises(DataError, match="featcache fit"):
        find_model(run)


# What model.json says is held against itself before anything is loaded.

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(made: Made, tmp_path: Path) -> Path:
    shutil.copytree(made.run / "model", tmp_path / "model")
    return tmp_path / "model"


def _change(folder: Path, change: Change) -> None:
    facts = json.loads((folder / FACTS).read_text())
    change(facts)
    facts.pop("sha256", None)
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


# Weights are found by what they are, wherever they lie, and no others are taken.


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
