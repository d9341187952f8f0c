"""Commands that the program prints do what they say when they are pasted into a shell.

All in a folder with spaces and quotes in its name, with options that are not the defaults.
"""

from __future__ import annotations

import importlib
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from featcache.cli.main import run
from featcache.extraction.registry import open_backbone
from featcache.reporting.refit_command import redo_command
from featcache.reporting.schema import read_run

PLACE = 'it\'s "here", $HOME'
CACHE, REPORTS, TABLE = "the 'cache'", "my reports", "lists/the cells'.csv"
DATA = ["--data", TABLE, "--name", "my cells", "--data-root", "scans 1", "--group", "subject"]
BOTH = ["--backbone", "squeezenet1_1,resnet18"]
SMALL = ["--image-size", "32", "--weights", "random:3", "--device", "cpu", "-q"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of 24 images of two classes and twelve subjects, which the images don't stand by."""
    place = tmp_path / PLACE
    scans = place / "scans 1"
    scans.mkdir(parents=True)
    monkeypatch.chdir(place)
    rng = np.random.default_rng(0)
    lines = ["path,label,subject"]
    for i in range(24):
        pixels = rng.integers(0, 200, (32, 32, 3)) + 50 * (i % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(scans / f"{i:02d}.png")
        lines.append(f"{i:02d}.png,{'ab'[i % 2]},s{i // 2}")
    (place / "lists").mkdir()
    (place / TABLE).write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(torch.hub, "download_url_to_file", _no_network)
    for made in ("reporting.compare", "finetuning.finetune"):  # pages and plots take most of a fit
        monkeypatch.setattr(f"featcache.{made}.write_comparison", lambda *_, **__: None)
    for command in ("fit", "compare"):
        monkeypatch.setattr(
            importlib.import_module(f"featcache.cli.{command}"), "need_pages", lambda *_: None
        )
    return place


def _no_network(*_: object, **__: object) -> None:
    raise OSError("no network in tests")


def done(*words: str) -> None:
    assert run(list(words)) == 0, shlex.join(words)


def extracted(*more: str) -> None:
    done("extract", *DATA, *BOTH, *SMALL, "--cache", CACHE, *more)


def fitted(*words: str) -> Path:
    """The newest run folder after this command."""
    done(*words, "--reports", REPORTS, "--cache", CACHE, "-q")
    newest = max(Path(REPORTS).glob("*/*/run.json"), key=lambda path: path.stat().st_mtime_ns)
    return newest.parent


def paste(text: str) -> int:
    """Run each line of a text that is a command."""
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("featcache ")]
    assert lines, text
    for line in lines:
        done(*shlex.split(line)[1:])
    return len(lines)


def command_of(folder: Path) -> str:
    return redo_command(read_run(folder))


def files() -> set[str]:
    return {path.name for path in Path(CACHE).glob("*/*.h5")}


@pytest.mark.parametrize(
    "options",
    [
        [*DATA, *BOTH, "--folds", "3", "--repeats", "2", "--seed", "4", "--set", "logreg.C=0.5"],
        [*DATA, *BOTH, "--view", "hflip", "--balance", "--folds", "2", "--select", "anova:8"],
        [*DATA, *BOTH, "--view", "hflip", "--leaky", "--no-near-duplicates", "--gate", "warn"],
        [*BOTH, "--fusion", "vote", "--strict", "--folds", "2", "--group", "subject"],
        ["--backbone", "resnet18", "--tune", "2", "--folds", "2", "--group", "image"],
        # Written in a short way, these are text for YAML, and a number.
        [*BOTH, "--set", "logreg.C=1.0e-05", "--set", "concat.scale='l2'", "--folds", "2"],
    ],
)  # fmt: skip
def test_a_run_is_made_again_by_its_command(
    place: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    extracted("--view", "hflip")
    folder = fitted("fit", "--head", "logreg", *options)
    assert folder.parent.name == "my cells"
    for name in ("run.json", "predictions.csv"):
        assert (folder / name).is_file()
    command = command_of(folder)
    kept = place / "kept"
    folder.rename(kept)
    paste(command)
    assert (folder / "predictions.csv").read_bytes() == (kept / "predictions.csv").read_bytes()
    # What is wrong with it says the same command.
    shutil.rmtree(folder / "model")
    capsys.readouterr()
    assert run(["predict", str(folder), "scans 1", "--device", "cpu"]) == 1
    assert paste(capsys.readouterr().err) == 1
    assert (folder / "model" / "model.json").is_file()
    (folder / "predictions.csv").write_text("no table")
    assert run(["report", str(folder), "--reports", REPORTS, "--cache", CACHE]) == 1
    assert paste(capsys.readouterr().err) == 1
    assert (folder / "predictions.csv").read_bytes() == (kept / "predictions.csv").read_bytes()
    assert len(list(folder.parent.glob("*/run.json"))) == 1


def test_a_backbone_keeps_the_name_that_it_had_beside_others(place: Path) -> None:
    twice = ["--backbone", "resnet18,resnet18:size=24,squeezenet1_1"]
    done("extract", *DATA, *twice, *SMALL, "--cache", CACHE)
    fitted("compare", *DATA, *twice, "--head", "logreg", "--folds", "2", "--ablate")
    runs = sorted(path.parent for path in Path(REPORTS).glob("*/*/run.json"))
    assert len(runs) == 7
    commands = [command_of(folder) for folder in runs]
    assert any("resnet18-24px@" in command for command in commands)
    shutil.rmtree(REPORTS)
    for command in commands:
        paste(command)
    assert sorted(path.parent for path in Path(REPORTS).glob("*/*/run.json")) == runs


def test_a_fine_tuning_is_made_again_by_its_command(place: Path) -> None:
    tuning = ["--epochs", "1", "--freeze-epochs", "1", "--batch-size", "8", "--folds", "2"]
    folder = fitted("finetune", *DATA, *BOTH, *SMALL, *tuning, "--seed", "2")
    assert folder.name.startswith("resnet18+squeezenet1_1.concat.mlp.finetuned.")
    command = command_of(folder)
    shutil.rmtree(folder)
    paste(command)
    assert (folder / "model" / "model.json").is_file()


def test_a_fit_before_the_extraction_says_what_was_typed(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = place / "my weights"
    weights.mkdir()
    monkeypatch.setenv("FEATCACHE_WEIGHTS", str(weights))
    for name in ("resnet18", "squeezenet1_1"):
        state = open_backbone(name, weights="random:5").build().state_dict()
        save_file(state, weights / f"{name}.safetensors")
    both = ["--backbone", "squeezenet1_1:size=32,resnet18:size=32"]
    wish = ["fit", *DATA, *both, "--view", "hflip,rot90", "--head", "logreg", "--folds", "2",
            "--cache", CACHE, "--reports", REPORTS]  # fmt: skip
    assert run(wish) == 1
    said = capsys.readouterr().err
    assert "no features of squeezenet1_1:size=32, resnet18:size=32" in said
    assert paste(said) == 1
    assert len(files()) == 6
    done(*wish)
    # The views of both are gone.
    before = files()
    for path in Path(CACHE).glob("*/*.h5"):
        path.unlink()
    done("extract", *DATA, *both, "--cache", CACHE, "-q")
    plain = files()
    assert len(plain) == 2
    capsys.readouterr()
    assert run(wish) == 1
    said = capsys.readouterr().err
    assert said.count("hflip of") == said.count("rot90 of") == 2
    assert "FILE" not in said
    paste(said)
    assert files() == before
    # An image more: the rest is taken as it was extracted.
    Image.new("RGB", (32, 32), (9, 9, 9)).save("scans 1/24.png")
    with Path(TABLE).open("a") as table:
        table.write("24.png,a,s0\n")
    assert run(wish) == 4
    paste(capsys.readouterr().err)
    assert files() == before
    done(*wish)


def test_a_warm_start_before_the_extraction_names_all_that_is_absent(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuning = ["--epochs", "1", "--freeze-epochs", "1", "--batch-size", "8", "--folds", "2"]
    wish = ["finetune", *DATA, *BOTH, *SMALL, *tuning, "--warm-start", "--cache", CACHE]
    assert run([*wish, "--reports", REPORTS]) == 1
    said = capsys.readouterr().err
    assert "resnet18 at 32 px, squeezenet1_1 at 32 px" in said
    assert paste(said) == 1
    assert len(files()) == 2
    done(*wish, "--reports", REPORTS)


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        (["fit", "--cache", CACHE], "--cache", CACHE),
        (["report", "--reports", REPORTS], "--reports", REPORTS),
        (["predict", "resnet18", "scans 1", "--reports", REPORTS], "--reports", REPORTS),
    ],
)
def test_the_first_command_of_all_keeps_the_folders(
    place: Path, command: list[str], option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command) in (1, 2)
    words = shlex.split(capsys.readouterr().err.split("featcache ", 1)[1].splitlines()[0])
    assert words[words.index(option) + 1] == value
    done(*words, "--help")
