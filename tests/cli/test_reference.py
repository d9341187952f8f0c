"""The page on the commands is that of their help, and every help has an example."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from featcache.cli.reference import commands, reference

PAGE = Path(__file__).parent.parent.parent / "docs" / "cli.md"
ALL = {name: (command, context) for name, command, context in commands()}


def test_the_page_is_fresh() -> None:
    fresh = PAGE.read_text(encoding="utf-8") == reference()
    assert fresh, "Run: python -m featcache.cli.reference docs/cli.md"


@pytest.mark.parametrize("name", ALL)
def test_every_command_has_an_example_that_parses(name: str) -> None:
    command, context = ALL[name]
    help_ = command.get_help(context)
    _, _, example = help_.partition("Example:")
    lines = [line.strip() for line in example.splitlines() if line.strip().startswith("featcache ")]
    assert lines, f"{name} --help has no Example block"
    assert any(line.startswith(name) for line in lines)


def test_every_option_has_a_line_of_help() -> None:
    silent = [
        f"{name} {parameter.opts[0]}"
        for name, (command, _) in ALL.items()
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.help
    ]
    assert [one for one in silent if "singles" not in one] == []


def test_each_command_is_there_once() -> None:
    text = reference()
    for name in ALL:
        assert text.count(f"\n## {name}\n") == 1
    assert {"featcache weights add", "featcache cache verify", "featcache doctor"} <= set(ALL)
