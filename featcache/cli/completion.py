"""Completion: what the shell may offer for a word, found without importing a large library."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def completer(
    names: Callable[[click.Context], Iterable[str]], *, commas: bool = False, files: bool = False
) -> Completer:
    """A `shell_complete` for click.

    Parameters
    ----------
    names : callable
        The words that may stand there.
    commas : bool, default False
        Several of them, separated by commas, may stand there.
    files : bool, default False
        A path may stand there too.
    """

    def complete(
        ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        before, comma, word = incomplete.rpartition(",") if commas else ("", "", incomplete)
        given = before.split(",")
        # The shell offers files only if they are said first.
        found = [CompletionItem(incomplete, type="file")] if files else []
        return found + [
            CompletionItem(f"{before}{comma}{name}")
            for name in names(ctx)
            if name.startswith(word) and name not in given
        ]

    return complete


def folders(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """A `shell_complete` for a folder."""
    return [CompletionItem(incomplete, type="dir")]


def nothing(ctx: click.Context) -> Iterable[str]:
    """For paths alone."""
    return ()


def backbones(ctx: click.Context) -> Iterable[str]:
    """The registered ones; timm's are too many, and known to timm only."""
    from featcache.extraction.registry import BACKBONES

    return BACKBONES


def fusions(ctx: click.Context) -> Iterable[str]:
    from featcache.fitting.fusions import FUSIONS

    return FUSIONS


def heads(ctx: click.Context) -> Iterable[str]:
    from featcache.fitting.heads import HEADS

    return HEADS


def views(ctx: click.Context) -> Iterable[str]:
    from featcache.extraction.preprocess import VIEWS

    return [name for name in VIEWS if name != "none"]


def selections(ctx: click.Context) -> Iterable[str]:
    from featcache.fitting.names import SELECTIONS

    return SELECTIONS


def data_sets(ctx: click.Context) -> Iterable[str]:
    """Those of the cache folder, and the data set that is always there."""
    from featcache.store.cache import Cache

    return dict.fromkeys(["digits", *Cache(ctx.params.get("cache") or "cache").data_sets()])


def runs(ctx: click.Context) -> Iterable[str]:
    """The names of the run folders below the reports folder."""
    reports = Path(ctx.params.get("reports") or "reports")
    return sorted(path.parent.name for path in reports.glob("[!.]*/[!.]*/run.json"))
