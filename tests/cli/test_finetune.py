from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from featcache.cli.main import run

SMALL = ["--weights", "random:0", "--image-size", "32"]
QUICK = ["--epochs", "1", "--freeze-epochs", "1", "--batch-size", "4", "--validation", "0"]


def test_finetune_then_extract_with_its_weights(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(pictures.parent)
    command = ["finetune", "--data", "pictures", "--backbone", "squeezenet1_1", *SMALL, *QUICK]
    monkeypatch.setattr(sys, "argv", ["featcache", *command])
    assert run([*command, "--folds", "2"]) == 0
    out, err = capsys.readouterr()
    folder = Path(out.splitlines()[-1])
    assert (folder / "metrics.json").is_file()
    assert "fold1: epoch 1 of 1: train loss" in err
    assert "images/s" in err
    facts = json.loads((folder / "run.json").read_text())
    assert facts["command"].startswith("featcache finetune --data pictures")
    words = ["extract", "--data", "pictures", "--backbone", "squeezenet1_1"]
    assert run([*words, "--weights", str(folder)]) == 0
    assert "squeezenet1_1.tuned." in capsys.readouterr().out


def test_what_is_wrong_is_said_in_one_line(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(pictures.parent)
    assert run(["finetune", "--data", "pictures"]) == 2
    assert "--backbone" in capsys.readouterr().err
    words = ["finetune", "--data", "pictures", "--backbone", "squeezenet1_1", *SMALL]
    assert run([*words, "--epochs", "2", "--protocol", "study"]) == 2
    assert "--freeze-epochs" in capsys.readouterr().err
    assert run([*words, "--head", "svm"]) == 2
    assert "end to end" in capsys.readouterr().err


@pytest.mark.slow  # an interpreter of its own
def test_a_gpu_box_needs_neither_xgboost_nor_pydantic(pictures: Path) -> None:
    blocked = ("xgboost", "pydantic", "skops", "optuna", "onnx")
    words = ["finetune", "--data", str(pictures), "--backbone", "squeezenet1_1", *SMALL, *QUICK,
             "--folds", "2"]  # fmt: skip
    code = (
        f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n"
        f"from featcache.cli.main import run\nsys.exit(run({words!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        cwd=pictures.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
