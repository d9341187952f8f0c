"""featcache doctor."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from featcache.cli.options import cache_option, reports_option

_COLOURS = {"OK": "green", "WARN": "yellow", "FAIL": "red"}


@click.command()
@cache_option
@reports_option
@click.option("--weights-dir", metavar="FOLDER", help="A folder of weight files. [default: $FEATCACHE_WEIGHTS]")  # fmt: skip
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True, help="How to print it.")  # fmt: skip
@click.pass_context
def doctor(
    ctx: click.Context, cache: str, reports: str, weights_dir: str | None, form: str
) -> None:
    """Look at this machine: what works, what does not, and how to mend it.

    Versions, processor, GPU, engines, precision, folders, weights, extras. Exit code 1 if
    something is broken that every stage needs; what only some of it needs is a warning.

    \b
    Example:
      featcache doctor
      featcache doctor --format json
    """
    from featcache.cli.findings import examine

    found = examine(cache, reports, weights_dir)
    if form == "json":
        click.echo(json.dumps([asdict(finding) for finding in found], indent=1))
    else:
        for finding in found:
            mark = click.style(f"{finding.level:4}", fg=_COLOURS[finding.level])
            click.echo(f"{mark} {finding.name}: {finding.text}")
            for line in finding.fix.splitlines():
                click.echo(f"       → {line}")
    if any(finding.level == "FAIL" for finding in found):
        ctx.exit(1)
