"""The README's blocks run, and its commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from featcache.cli.main import cli, run

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.S)


def _commands() -> list[list[str]]:
    lines = [line for block in _blocks("bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_blocks_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, *others = _blocks("python")
    exec(compile(first, "README.md", "exec"), {})
    assert "| digits | 3 folds |" in capsys.readouterr().out
    names = {"path": next(here.glob("cache/digits/*.h5"))}
    for block in others:
        exec(compile(block, "README.md", "exec"), names)
    assert names["vectors"].shape[0] == names["contents"].shape[0] == 1797


@pytest.mark.parametrize("words", [w for w in _commands() if w[0] == "featcache"], ids=" ".join)
def test_commands_are_spelled_right(words: list[str]) -> None:
    """Each parses: asking for help as well stops it before it runs."""
    done = CliRunner().invoke(cli, [*words[1:], "--help"])
    assert done.exit_code == 0
    known = set(re.findall(r"--[a-z-]+", done.output))
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("words", [w for w in _commands() if w[0] == "make"], ids=" ".join)
def test_make_targets_exist(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{words[1]}:", makefile, flags=re.M)


def test_the_two_commands_of_the_mission_run_as_they_stand(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With weights in FEATCACHE_WEIGHTS; the images are cut to a few to keep it quick."""
    import torch
    from safetensors.torch import save_file
    from torchvision.models import get_model

    from featcache.images import sources

    with torch.random.fork_rng():
        save_file(get_model("resnet18").state_dict(), here / "resnet18.safetensors")
    monkeypatch.setenv("FEATCACHE_WEIGHTS", str(here))
    whole = sources.digits("", sources.SourceOptions("digits"))
    few = sources.from_arrays(
        "digits", [whole.read(i) for i in range(100)], ids=whole.ids[:100].tolist(),
        labels=whole.labels[:100].tolist(),
    )  # fmt: skip
    monkeypatch.setitem(sources.SOURCES, "digits", lambda *_: few)
    assert run(shlex.split("extract --backbone resnet18")) == 0
    assert run(shlex.split("fit --fusion concat --head mlp")) == 0
    assert list(here.glob("reports/digits/resnet18.concat.mlp.*/metrics.json"))


def test_features_listed_in_the_readme_exist() -> None:
    for command in re.findall(r"`featcache ([a-z]+)", TEXT):
        assert command in cli.commands or command in cli.list_commands(None)  # type: ignore[arg-type]
