"""Which model is meant by what the user wrote."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from featcache.errors import DataError, UnknownName
from featcache.prediction.bundle_reader import find_model

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
