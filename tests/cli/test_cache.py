"""featcache cache …"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from noise import noise

from featcache.cli.main import run

OPTIONS = ["--backbone", "squeezenet1_1", "--weights", "random:0", "--image-size", "32"]


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extracted") / "cache"
    words = ["extract", "-q", *OPTIONS, "--precision", "fp32", "--cache", str(folder)]
    assert run(words) == 0
    return folder


@pytest.fixture
def here(extracted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own with `extracted` as its cache."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(extracted, tmp_path / "cache")
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
    assert run(["cache", "status", *OPTIONS[:4], "--image-size", "64", "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["state"], row["missing"]) == ("MISS", 1797)
    assert "preprocess.crop 32 → 64" in row["differences"]
    assert run(["cache", "status", "--format", "csv"]) == 0
    assert "squeezenet1_1,HIT,1797,0,0," in capsys.readouterr().out


def test_verify_finds_a_flipped_bit_and_repairs(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cache", "verify", "--deep", "5"]) == 0
    path = _file(here)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)
    fit = ["fit", "-q", "--head", "nearest_mean", "--folds", "2"]
    for command in (fit, [*fit, "--memory", "1KB"], ["compare", *fit[1:]], ["rank"],
                    ["cache", "export", "out.npz"]):  # fmt: skip
        capsys.readouterr()
        assert run(command) == 4
        said = capsys.readouterr().err
        assert f"{path} is damaged: 1 row doesn't fit its checksum".replace(f"{here}/", "") in said
        verify, extract = (line.split() for line in said.splitlines() if "  featcache " in line)
    assert not Path("out.npz").exists()
    assert run(verify[1:]) == 4
    assert "DAMAGED" in capsys.readouterr().out
    assert run(extract[1:]) == 0
    assert "1,797 vectors, 1 computed" in capsys.readouterr().out
    assert run(["cache", "verify"]) == 0
    assert run(fit) == 0


def test_prune(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", "prune", "--max-size", "0", "--dry-run"]) == 0
    assert "would delete 1 file," in capsys.readouterr().out
    assert _file(here).exists()
    assert run(["cache", "prune", "--max-size", "0"]) == 0
    assert list(here.glob("cache/digits/*.h5")) == []


def test_export(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", "export", "out.npz"]) == 0
    before = (here / "out.npz").stat().st_mtime_ns
    assert run(["cache", "export", "out.npz"]) == 1
    assert "out.npz is there already" in capsys.readouterr().err
    assert (here / "out.npz").stat().st_mtime_ns == before
    assert run(["cache", "export", "out.npz", "--force"]) == 0
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


def test_a_data_set_without_images_csv_is_listed_verified_and_pruned(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "cache" / "digits" / "images.csv").unlink()
    for command, said in (
        (["cache", "ls"], "squeezenet1_1@"),
        (["cache", "verify"], "1,797 rows"),
        (["cache", "verify", "--data", "digits"], "1,797 rows"),
        (["cache", "prune", "--max-size", "0"], "deleted 1 file,"),
    ):
        capsys.readouterr()
        assert run(command) == 0
        captured = capsys.readouterr()
        assert said in captured.out
        assert "digits: no images.csv" in captured.err
    assert list(here.glob("cache/digits/*.h5")) == []


def test_status_and_verify_take_the_only_data_set(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run(["extract", "-q", "--data", "pictures", *OPTIONS]) == 0
    capsys.readouterr()
    assert run(["cache", "status"]) == 0
    assert "HIT, 12 images" in capsys.readouterr().out
    assert run(["cache", "verify", "--deep", "3"]) == 0
    assert "3 images embedded again" in capsys.readouterr().out
    (pictures / "cat" / "00.png").write_bytes((pictures / "dog" / "01.png").read_bytes()[:-1])
    assert run(["cache", "status"]) == 0
    assert "PARTIAL, 12 images: 11 embedded, 1 missing" in capsys.readouterr().out
    pictures.rename(tmp_path / "moved")
    assert run(["cache", "status"]) == 0
    assert "not where they were" in capsys.readouterr().err
    assert run(["cache", "verify", "--deep", "3"]) == 1
    assert "--source" in capsys.readouterr().err
    assert run(["cache", "verify", "--deep", "3", "--source", "moved"]) == 0
    assert run(["extract", "-q", *OPTIONS]) == 0
    for command in (["cache", "status"], ["cache", "verify", "--deep", "3"]):
        capsys.readouterr()
        assert run(command) == 2
        assert "--data" in capsys.readouterr().err
    assert run(["cache", "status", "--data", "pictures"]) == 0  # of the two, by name
    assert "HIT, 12 images" in capsys.readouterr().out


def test_a_remedy_for_new_images_is_the_command_that_embeds_them(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run(["extract", "-q", "--data", "pictures", "--name", "pets", *OPTIONS]) == 0
    noise(99).save(pictures / "cat" / "new.png")
    fit = ["fit", "--data", "pictures", "--name", "pets", "--head", "logreg", "--folds", "2"]
    capsys.readouterr()
    assert run(fit) == 4
    (remedy,) = (line for line in capsys.readouterr().err.splitlines() if "  featcache" in line)
    assert run(remedy.split()[1:]) == 0
    assert "13 vectors, 1 computed" in capsys.readouterr().out
    assert run(fit) == 0


@pytest.mark.parametrize("size", ["20000", "99999999999"])
def test_a_huge_image_size_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], size: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["extract", *OPTIONS[:4], "--image-size", size]) == 2
    assert "--image-size" in capsys.readouterr().err


def test_memory_that_runs_out_is_one_clear_error(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def greedy(*_: object) -> None:
        np.empty(1 << 60, np.uint8)

    monkeypatch.setattr("featcache.store.cache.Cache.data_sets", greedy)
    assert run(["cache", "ls"]) == 1
    err = capsys.readouterr().err
    assert "memory ran out: Unable to allocate" in err
    assert "--batch-size" in err


def test_every_command_counts_images_in_the_same_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    for i in range(10):
        path = folder / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(i).save(path)
    (folder / "dog" / "again.png").write_bytes((folder / "dog" / "1.png").read_bytes())
    for label in ("cat", "dog"):
        (folder / label / "broken.png").write_text(f"no {label}")
    extract = ["extract", "--data", "photos", *OPTIONS]
    counted = "13 images: 11 embedded (10 distinct), 2 failed"
    for command, code in (
        (extract, 3), (extract, 3), (["cache", "status"], 0), (["cache", "status", *OPTIONS], 0),
        (["fit", "--head", "nearest_mean", "--folds", "2"], 0), (["rank"], 0),
        (["compare", "--head", "dummy", "--folds", "2"], 0), (["cache", "export", "x.npz"], 0),
    ):  # fmt: skip
        assert run(command) == code
        captured = capsys.readouterr()
        assert counted in captured.out + captured.err, command
        if command[:2] == ["cache", "status"]:
            assert f"HIT, {counted}" in captured.out  # to extract again would embed nothing
        if command[0] == "extract":
            assert "10 vectors" in captured.out
        if command[0] in ("fit", "compare"):
            assert "11 test images" in captured.out
    (page,) = Path("reports/photos").glob("*.nearest_mean.*/report.html")
    assert "<dt>images embedded</dt><dd>11 (10 distinct)</dd>" in page.read_text()
