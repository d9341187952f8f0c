"""The README's and the pages' blocks run, their commands and the files that they link to exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from featcache.cli.main import cli, run

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}


def _blocks(language: str) -> list[tuple[str, str]]:
    return [
        (name, block)
        for name, text in TEXTS.items()
        for block in re.findall(rf"```{language}\n(.*?)```", text, flags=re.S)
    ]


def _commands(program: str) -> list[list[str]]:
    lines = [line for _, block in _blocks("bash") for line in block.splitlines()]
    split = [shlex.split(line, comments=True) for line in dict.fromkeys(lines)]
    return [words for words in split if words and words[0] == program]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_blocks_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one folder, so that what one block has extracted is there for the next."""
    names: dict[str, object] = {}
    for page, block in _blocks("python"):
        names.setdefault("path", next(here.glob("cache/digits/*.h5"), None))
        if names["path"] is None:
            del names["path"]
        exec(compile(block, page, "exec"), names)
    assert "| digits | 3 folds |" in capsys.readouterr().out


@pytest.mark.parametrize("words", _commands("featcache"), ids=" ".join)
def test_commands_are_spelled_right(words: list[str]) -> None:
    """Each parses: asking for help as well stops it before it runs."""
    done = CliRunner().invoke(cli, [*words[1:], "--help"])
    assert done.exit_code == 0
    known = set(re.findall(r"--[a-z-]+", done.output))
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("words", _commands("make"), ids=" ".join)
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


def test_commands_named_in_the_text_exist() -> None:
    for text in TEXTS.values():
        for command in re.findall(r"`featcache ([a-z]+)", text):
            assert command in cli.list_commands(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_to_files(page: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", TEXTS[page]):
        assert ((ROOT / page).parent / target).exists(), target


def test_the_readme_is_short_enough_to_be_read() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 200


def test_every_page_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert re.search(rf"(^|\s){re.escape(page.name)}$", nav, flags=re.M), page.name
