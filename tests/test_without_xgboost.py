"""A machine without xgboost, as one with a GPU may be: all but that head works there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from packages import environment_without, hide, needs_xgboost

from featcache.cli.main import run

SMALL = ["--backbone", "squeezenet1_1", "--weights", "random:0", "--image-size", "32"]
EXTRACT = ["extract", "--data", "pictures", *SMALL]
HERE = ["--data", "pictures", "--folds", "2"]
TUNING = ["--epochs", "2", "--freeze-epochs", "1", "--batch-size", "4", "--validation", "0"]
IMAGE = "pictures/cat/00.png"
BOOSTING = "featcache.fitting.heads.xgboost"


@pytest.fixture
def here(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with pictures."""
    monkeypatch.chdir(pictures.parent)
    return pictures.parent


def _python(code: str, *words: str, folder: Path) -> list[str]:
    """What a Python without xgboost prints; it has to come to its end."""
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=folder, text=True, capture_output=True,
        check=False, env=environment_without("xgboost"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_it_is_absent_in_every_way(tmp_path: Path) -> None:
    code = """
from importlib import metadata, util
for look in (lambda: __import__("xgboost"), lambda: metadata.version("xgboost")):
    try:
        look()
    except (ModuleNotFoundError, metadata.PackageNotFoundError) as error:
        print(type(error).__name__, error.name)
print(util.find_spec("xgboost"), util.find_spec("numpy") is not None, metadata.version("numpy"))
"""
    first, second, third = _python(code, folder=tmp_path)
    assert first == "ModuleNotFoundError xgboost"
    assert second == "PackageNotFoundError xgboost"
    assert third.startswith("None True ")


def test_every_stage_works(here: Path) -> None:
    commands = [
        EXTRACT,
        ["fit", *HERE, "--head", "svm", "--set", "xgboost.max_depth=3"],
        ["compare", *HERE, "--head", "mlp,logreg,ridge", "--fusion", "concat,stack",
         "--set", "mlp.epochs=2"],
        ["rank", "--data", "pictures"],
        ["predict", "squeezenet1_1.concat.svm", IMAGE],
        ["export", "squeezenet1_1.concat.svm", "--output", "exported"],
        ["finetune", *HERE, *SMALL, *TUNING],
        ["predict", "squeezenet1_1.concat.mlp.finetuned", IMAGE],
        ["doctor"],
    ]  # fmt: skip
    code = """
import json, sys
from featcache.cli.main import run
print(json.dumps([run(words) for words in json.loads(sys.argv[1])]))
"""
    *said, codes = _python(code, json.dumps(commands), folder=here)
    assert json.loads(codes) == [0] * len(commands), "\n".join(said)
    assert any(line.startswith("WARN xgboost: not installed") for line in said)


def test_a_recipe_with_the_head_is_refused_before_any_work(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hide(monkeypatch, "xgboost", BOOSTING)
    recipe = {"data": "pictures", "backbone": "squeezenet1_1", "head": ["mlp", "xgboost"]}
    (here / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")  # it is YAML too
    assert run(["run", "recipe.yaml"]) == 1
    assert "pip install 'xgboost>=2.1'" in capsys.readouterr().err
    assert not (here / "cache").exists()


@needs_xgboost
def test_a_comparison_with_the_head_is_refused_and_its_model_says_what_it_needs(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model of another machine isn't taken for a harmful one."""
    assert run([*EXTRACT, "-q"]) == 0
    assert run(["fit", *HERE, "--head", "xgboost", "--set", "head.n_estimators=3"]) == 0
    runs = sorted(here.glob("reports/pictures/*/run.json"))
    capsys.readouterr()
    hide(monkeypatch, "xgboost", BOOSTING)
    for command in (
        ["compare", *HERE, "--head", "logreg,xgboost"],
        ["predict", "squeezenet1_1.concat.xgboost", IMAGE],
    ):
        assert run(command) == 1
        said = capsys.readouterr().err
        assert "error: the head 'xgboost' needs the package xgboost, which is not installed" in said
        assert "pip install 'xgboost>=2.1'" in said
    assert sorted(here.glob("reports/pictures/*/run.json")) == runs


def test_without_skops_a_fit_is_scored_and_no_model_kept(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hide(monkeypatch, "skops", "featcache.fitting.persist")
    assert run([*EXTRACT, "-q"]) == 0
    assert run(["fit", *HERE, "--head", "logreg"]) == 0
    captured = capsys.readouterr()
    assert "accuracy" in captured.out
    assert "no model is kept" in captured.err
    assert "pip install skops" in captured.err


def test_a_command_that_can_not_do_without_a_package_names_it(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = [name for name in sys.modules if name.startswith("featcache.recipe")]
    hide(monkeypatch, "pydantic", *mine)
    assert run(["run", "recipe.yaml"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: this needs the package pydantic, which is not installed",
        "  pip install pydantic. featcache doctor shows what else is missing.",
    ]
