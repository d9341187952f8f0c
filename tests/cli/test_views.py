"""Views, repeats, leaks and groups on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_backbone

from featcache.cli.main import run
from featcache.extraction.extract import fill_cache
from featcache.images.sources import open_images


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a table of 24 images of two classes, their features and a view of each."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    lines = ["path,label,subject,split"]
    for i in range(24):
        pixels = rng.integers(0, 200, (8, 8, 3)) + 50 * (i % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{i:02d}.png")
        lines.append(f"{i:02d}.png,{'ab'[i % 2]},s{i // 2 % 6},{'test' if i > 15 else 'train'}")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    images = open_images("t.csv", cache="cache")
    for view in ("none", "hflip"):
        fill_cache(images, backbone=tiny_backbone(view=view))
    return tmp_path


def newest(folder: Path) -> dict[str, object]:
    path = max(folder.glob("reports/t/*/run.json"), key=lambda p: p.stat().st_mtime_ns)
    return dict(json.loads(path.read_text()))


def test_views_and_repeats(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(["fit", "--head", "logreg", "--folds", "3", "--repeats", "2", "--view", "hflip"]) == 0
    )
    assert "2 x 3 folds" in capsys.readouterr().out
    assert newest(here)["view"] == ["hflip"]
    assert run(["fit", "--head", "logreg", "--view", "rot90"]) == 1
    assert "--view rot90" in capsys.readouterr().err
    assert run(["fit", "--head", "logreg", "--view", "flip"]) == 2
    assert "unknown view 'flip'" in capsys.readouterr().err
    assert run(["fit", "--head", "logreg", "--balance"]) == 2
    assert "no views" in capsys.readouterr().err


def test_a_leaky_run_says_so_first(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--head", "logreg", "--folds", "3", "--view", "hflip", "--leaky"]
    for command in ("fit", "compare"):
        assert run([command, *options]) == 0
        assert capsys.readouterr().out.startswith("LEAKY PROTOCOL")
    assert newest(here)["leaky"] is True
    assert run(["compare", *options, "--strict"]) == 2


def test_strict_exits_4(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "23.png").write_bytes((here / "01.png").read_bytes())
    options = ["--data", "t.csv", "--head", "logreg", "--no-near-duplicates", "-q"]
    assert run(["fit", *options]) == 0
    assert "warning: 1 test image is also" in capsys.readouterr().err
    assert run(["fit", *options, "--strict"]) == 4
    assert "23.png = 01.png" in capsys.readouterr().err


def test_group_by_column_by_subject_and_by_image(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["fit", "--head", "logreg", "--folds", "3"]
    assert run([*options, "--group", "subject"]) == 1  # as extracted, without groups
    assert "no groups" in capsys.readouterr().err
    assert run([*options, "--group", "image"]) == 0
    assert run([*options, "--data", "t.csv", "--group", "subject"]) == 0
    splits = max(here.glob("reports/t/*/splits.json"), key=lambda p: p.stat().st_mtime_ns)
    for fold in json.loads(splits.read_text()):
        train, test = ({int(id_[:2]) // 2 % 6 for id_ in fold[side]} for side in ("train", "test"))
        assert not train & test
