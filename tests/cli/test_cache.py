"""featcache cache …"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featcache.cli.main import run

OPTIONS = ["--backbone", "squeezenet1_1", "--weights", "random:0", "--image-size", "32"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert run(["extract", "-q", *OPTIONS]) == 0
    return tmp_path


def _file(here: Path) -> Path:
    return next(here.glob("cache/digits/*.h5"))


def test_ls(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", "ls"]) == 0
    out = capsys.readouterr().out
    assert "squeezenet1_1@" in out
    assert "1,797" in out


def test_status_explains(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", "status", *OPTIONS]) == 0
    assert "HIT" in capsys.readouterr().out
    assert run(["cache", "status", *OPTIONS[:4], "--image-size", "64"]) == 0
    out = capsys.readouterr().out
    assert "MISS" in out
    assert "preprocess.crop 32 → 64" in out
    assert run(["cache", "status"]) == 0
    assert "HIT, 1,797 images" in capsys.readouterr().out


def test_verify_finds_a_flipped_bit_and_repairs(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cache", "verify", "--deep", "5"]) == 0
    path = _file(here)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)
    capsys.readouterr()
    assert run(["cache", "verify", "--repair"]) == 4
    assert "DAMAGED" in capsys.readouterr().out
    assert run(["extract", *OPTIONS]) == 0
    assert "1,797 vectors, 1 computed" in capsys.readouterr().out
    assert run(["cache", "verify"]) == 0


def test_prune(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", "prune", "--max-size", "0", "--dry-run"]) == 0
    assert "would delete 1 files" in capsys.readouterr().out
    assert _file(here).exists()
    assert run(["cache", "prune", "--max-size", "0"]) == 0
    assert list(here.glob("cache/digits/*.h5")) == []


def test_export(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", "export", "out.npz"]) == 0
    assert np.load("out.npz")["X"].shape == (1797, 512)
    assert run(["cache", "export", "out.mat"]) == 2


def test_max_failures_stops_and_keeps_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos" / "cat"
    folder.mkdir(parents=True)
    for i in range(10):
        pixels = np.full((16, 16, 3), 20 * i, np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    for i in range(3):
        (folder / f"bad{i}.png").write_text(f"broken {i}")
    command = ["extract", "--data", "photos", *OPTIONS]
    assert run([*command, "--max-failures", "2"]) == 1
    assert "failed.csv" in capsys.readouterr().err
    assert run([*command, "--max-failures", "30%"]) == 3
    assert run([*command, "--max-failures", "many"]) == 2
