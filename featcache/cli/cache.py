"""featcache cache."""

from __future__ import annotations

import click

from featcache.cli.console import show_table
from featcache.cli.options import cache_option, with_log


@click.group()
def cache() -> None:
    """Look after the cached features.

    \b
    Example:
      featcache cache ls
    """


@cache.command()
@cache_option
@with_log
def ls(cache: str, quiet: bool) -> None:
    """List what the cache holds.

    \b
    Example:
      featcache cache ls
    """
    from featcache.store.cache import Cache

    store = Cache(cache)
    entries = [entry for name in store.data_sets() for entry in store.entries(name)]
    rows = [
        (e.data, e.selector, e.key.weights, f"{e.key.preprocess['crop']} px", e.key.precision,
         f"{e.rows:,}", str(e.dim), f"{e.bytes / 1e6:,.1f} MB")
        for e in entries
    ]  # fmt: skip
    columns = ("data", "backbone@key", "weights", "size", "precision", "rows", "width", "on disk")
    show_table(columns, rows)
