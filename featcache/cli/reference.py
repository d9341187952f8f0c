"""Reference: the README's section on every command, made from the commands' own help.

`python -m featcache.cli.reference README.md` writes it into the README, between two marks; a test
holds that it is fresh. Without a file it is printed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from featcache.cli.main import cli

BEGIN = "<!-- The commands: made by `python -m featcache.cli.reference README.md` -->"
END = "<!-- end of the commands -->"
_WIDTH = 96


def commands(
    group: click.Group = cli, parent: click.Context | None = None
) -> Iterator[tuple[str, click.Command, click.Context]]:
    """Every command with its full name and a context, groups before what is in them."""
    context = parent or _context(cli, "featcache", None)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        inner = _context(command, name, context)
        yield inner.command_path, command, inner
        if isinstance(command, click.Group):
            yield from commands(command, inner)


def reference() -> str:
    """The section in Markdown, marks included."""
    parts = [BEGIN]
    for name, command, context in commands():
        help_ = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
        parts.append(
            f"<details>\n<summary><code>{name}</code>: {_first_line(command)}</summary>\n\n"
            f"```text\n{help_}\n```\n\n</details>"
        )
    return "\n\n".join([*parts, END])


def refreshed(text: str) -> str:
    """A README with its section made again.

    Raises
    ------
    click.ClickException
        If the marks are not in it.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise click.ClickException(f"the file lacks the lines {BEGIN!r} and {END!r}")
    return before + reference() + after


def _context(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    settings = command.context_settings if parent is None else {}
    return click.Context(
        command, info_name=name, parent=parent, terminal_width=_WIDTH, max_content_width=_WIDTH,
        **settings,
    )  # fmt: skip


def _first_line(command: click.Command) -> str:
    return (command.help or "").strip().splitlines()[0]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        path = Path(sys.argv[1])
        path.write_text(refreshed(path.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        click.echo(reference())
