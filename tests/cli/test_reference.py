"""The README's section on the commands is that of their help, and every help has an example."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from featcache.cli.reference import commands, reference, refreshed

README = Path(__file__).parent.parent.parent / "README.md"
ALL = {name: (command, context) for name, command, context in commands()}


def test_the_readme_s_commands_are_fresh() -> None:
    text = README.read_text(encoding="utf-8")
    fresh = refreshed(text) == text
    assert fresh, "Run: python -m featcache.cli.reference README.md"


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
        assert text.count(f"<summary><code>{name}</code>") == 1
    assert {"featcache weights add", "featcache cache verify", "featcache doctor"} <= set(ALL)


def test_a_file_without_the_marks_is_refused() -> None:
    with pytest.raises(click.ClickException, match="lacks the lines"):
        refreshed("# featcache")
