"""Backbones with options, from images to predictions, on the command line."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featcache.cli.main import run
from featcache.store.cache import Cache

NAME = "squeezenet1_1"
LOG = f"{NAME}:filter=log-1.5:colour=hsv"
ASKED = ["--weights", "random:0", "--image-size", "32", "--device", "cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with photos, three files of one architecture, and a run on all of them."""
    home = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for label, level in (("dark", 60), ("light", 150)):
            folder = home / "photos" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(rng.normal(level, 40, (24, 30, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        three = ["--backbone", f"{NAME},{NAME}:size=48", "--backbone", LOG]
        assert run(["extract", "--data", "photos", *three, *ASKED, "-q"]) == 0
        picked = ["--backbone", f"{NAME}:size=32:filter=none,{NAME}:size=48,{LOG}"]
        assert run(["fit", *picked, "--head", "logreg", "-q"]) == 0
    return home


@pytest.fixture
def here(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return trained


def _run_folder(here: Path) -> Path:
    return next(here.glob("reports/photos/*.concat.logreg.*"))


def test_three_files_of_one_architecture_have_names_that_say_what_differs(here: Path) -> None:
    entries = Cache("cache").entries("photos")
    assert len(entries) == 3
    facts = json.loads((_run_folder(here) / "run.json").read_text())
    names = [f"{NAME}-32px", f"{NAME}-32px-hsv-log-1.5", f"{NAME}-48px"]
    assert facts["backbones"] == names
    assert set(facts["keys"]) == set(names)


def test_predict_sees_new_images_as_they_were_seen_in_training(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _run_folder(here)
    assert run(["predict", str(folder), "photos/test", "--format", "csv", "--device", "cpu"]) == 0
    said = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        told = {f"photos/{row['id']}": row for row in csv.DictReader(file)}
    assert len(said) == len(told) == 12
    for row in said:
        expected = told[row["path"]]
        assert row["pred"] == expected["pred"]
        assert float(row["p_dark"]) == pytest.approx(float(expected["p_dark"]), abs=1e-6)


def test_status_knows_a_spec(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["cache", "status", *ASKED]
    assert run([*asked, "--backbone", f"{LOG},{NAME}:colour=grey"]) == 0
    hit, miss = capsys.readouterr().out.splitlines()
    assert "HIT" in hit
    assert "MISS" in miss
    assert "preprocess.colour RGB → grey" in miss
    assert run([*asked, "--backbone", NAME, "--filter", "log-1.5", "--colour", "HSV"]) == 0
    assert "HIT" in capsys.readouterr().out


def test_the_cache_lists_and_verifies_what_was_asked(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["cache", "ls"]) == 0
    assert "colour=hsv filter=log-1.5" in capsys.readouterr().out
    assert run(["cache", "verify", "--deep", "2", "--data", "photos", "-q"]) == 0
    again = [line for line in capsys.readouterr().out.splitlines() if "embedded again" in line]
    assert len(again) >= 3
    assert all(line.endswith("cosine 1.000000") for line in again)


def test_the_same_again_computes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = ["extract", "--data", "photos", "--backbone", f"{LOG},{NAME}:size=48", *ASKED, "-q"]
    assert run(again) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all("nothing to compute" in line for line in lines)


def test_a_run_says_how_to_redo_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from featcache.reporting.refit_command import redo_command
    from featcache.reporting.schema import read_run

    folder = _run_folder(here).relative_to(here)
    command = shlex.split(redo_command(read_run(folder)))
    assert run([*command[1:], "-q"]) == 0
    assert Path(capsys.readouterr().out.splitlines()[-1]) == folder


def test_what_an_image_lacks_is_asked_for_in_the_same_way(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = here / "photos" / "train" / "dark" / "extra.png"
    Image.new("RGB", (30, 24), (50, 60, 70)).save(extra)
    try:
        names = json.loads((_run_folder(here) / "run.json").read_text())["backbones"]
        assert run(["fit", "--data", "photos", "--backbone", ",".join(names), "-q"]) == 4
        remedy = [line.strip() for line in capsys.readouterr().err.splitlines()
                  if "featcache extract" in line]  # fmt: skip
        assert len(remedy) == 3
        for line in remedy:
            assert run([*shlex.split(line[line.index("featcache") :])[1:], "-q"]) == 0
        out = capsys.readouterr().out.splitlines()
        assert [", 1 computed" in line for line in out] == [True] * 3
    finally:
        extra.unlink()


def test_a_view_of_a_filtered_backbone_trains_beside_it(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flipped = ["extract", "--data", "photos", "--backbone", LOG, "--view", "hflip", *ASKED, "-q"]
    assert run(flipped) == 0
    assert run(["fit", "--backbone", LOG, "--view", "hflip", "--head", "logreg", "-q"]) == 0
    facts = json.loads((Path(capsys.readouterr().out.splitlines()[-1]) / "run.json").read_text())
    assert facts["backbones"] == [f"{NAME}-hsv-log-1.5"]
    assert facts["view"] == ["hflip"]


@pytest.mark.parametrize("command", ["extract", "fit", "cache status", "rank", "finetune"])
def test_a_bad_spec_is_a_usage_error_before_any_work(
    here: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    words = [*command.split(), "--data", "photos", "--backbone", f"{NAME}:siz=64"]
    assert run(words) == 2
    err = capsys.readouterr().err
    assert "Did you mean size" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("option", ["filter=log-1", "colour=hsv", "layer=features.3"])
def test_fine_tuning_refuses_what_only_extraction_does(
    here: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    spec = f"{NAME}:{option}:weights=random"
    assert run(["finetune", "--data", "photos", "--backbone", spec]) == 2
    assert "can't be fine-tuned with an option" in capsys.readouterr().err
    assert run(["finetune", "--data", "photos", "--backbone", f"{NAME}:size=32,{NAME}:size=48",
                "--weights", "random"]) == 2  # fmt: skip
    assert "twice in one network" in capsys.readouterr().err


def test_a_dry_run_finds_a_bad_spec(
    here: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = tmp_path / "r.yaml"
    for spec, said in ((f"{NAME}:layer=featuers.3", "Did you mean features.3"),
                       (f"{NAME}:filter=gauss-1", "gaussian"),
                       (f"{NAME}:size=ten", "no number of pixels")):  # fmt: skip
        recipe.write_text(f"# ?\ndata: digits\nbackbone: [{NAME}, {spec}]\nweights: random\n")
        assert run(["run", str(recipe), "--dry-run"]) == 2
        assert said in capsys.readouterr().err
    recipe.write_text(f"data: digits\nbackbone: [{NAME}, {LOG}]\nweights: random\nscale: 0-1\n")
    assert run(["run", str(recipe), "--dry-run"]) == 0
    assert LOG in capsys.readouterr().out
