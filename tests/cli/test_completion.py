"""What the shell is offered for a word, and that it is offered quickly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from featcache.cli.main import cli

HEAVY = ("torch", "torchvision", "sklearn", "scipy", "pandas", "matplotlib")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with a data set, and a reports folder with two runs."""
    monkeypatch.chdir(tmp_path)
    for name in ("cache/photos/images.csv", "store/cells/images.csv",
                 "reports/photos/resnet18.concat.mlp.4f1c2a9e/run.json",
                 "reports/photos/resnet18.concat.svm.0a1b2c3d/run.json"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    return tmp_path


def offered(*words: str) -> list[str]:
    """What is offered for the last word; a path as its type."""
    complete = ShellComplete(cli, {}, "featcache", "_FEATCACHE_COMPLETE")
    found = complete.get_completions(list(words[:-1]), words[-1])
    return [item.value if item.type == "plain" else f"<{item.type}>" for item in found]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("com", "compare"),
        ("extract --backbone vgg16", "vgg16 vgg16_bn"),
        ("extract --backbone resnet18,vgg16", "resnet18,vgg16 resnet18,vgg16_bn"),
        ("compare --head mlp,lo", "mlp,logreg"),
        ("compare --head mlp,ml", ""),
        ("compare --fusion st", "stack"),
        ("fit --fusion ga", "gated"),
        ("fit --head nearest", "nearest_mean"),
        ("fit --select ano", "anova"),
        ("fit --view rot", "rot90 rot180 rot270"),
        ("fit --data ph", "<file> photos"),
        ("fit --cache store --data c", "<file> cells"),
        ("cache verify --data ", "digits photos"),
        ("predict resnet18.concat.m", "<file> resnet18.concat.mlp.4f1c2a9e"),
        ("predict resnet18.concat.mlp.4f1c2a9e ne", "<file>"),
        ("export resnet18.concat.s", "<file> resnet18.concat.svm.0a1b2c3d"),
        ("report resnet18.concat.s", "<file> resnet18.concat.svm.0a1b2c3d"),
        ("weights path vgg16", "vgg16 vgg16_bn"),
        ("fit --reports re", "<dir>"),
    ],
)
def test_offers(place: Path, words: str, expected: str) -> None:
    assert offered(*words.split(" ")) == expected.split()


def test_completion_imports_nothing_heavy(place: Path) -> None:
    code = (
        "import sys\nfrom featcache.cli.main import main\n"
        f"try: main()\nfinally: print([n for n in {HEAVY!r} if n in sys.modules])"
    )
    line = "featcache compare --head mlp,lo"
    words = {"_FEATCACHE_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": "3"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **words}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["plain,mlp,logreg", "[]"]
