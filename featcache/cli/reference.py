"""The page on every command, made from the commands' own help.

`python -m featcache.cli.reference docs/cli.md` writes it; a test holds that it is fresh.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from featcache.cli.main import cli

_HEAD = """# Every command

Made from `featcache COMMAND --help` by `python -m featcache.cli.reference docs/cli.md`."""
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
    """The page in Markdown."""
    parts = [_HEAD]
    for name, command, context in commands():
        help_ = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
        parts.append(f"## {name}\n\n```text\n{help_}\n```")
    return "\n\n".join(parts) + "\n"


def _context(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    settings = command.context_settings if parent is None else {}
    return click.Context(
        command, info_name=name, parent=parent, terminal_width=_WIDTH, max_content_width=_WIDTH,
        **settings,
    )  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
    else:
        click.echo(reference(), nl=False)
