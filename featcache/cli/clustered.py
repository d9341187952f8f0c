"""--dask: the commands' work, done here or by a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from featcache.extraction.extract import Embed
    from featcache.fitting.crew import Crew
    from featcache.scaling.cluster import Cluster

dask_option = click.option("--dask", metavar="WHERE", help="Let Dask workers do it: tcp://host:8786, a scheduler file, local:N for N processes here, or local:gpus for one for each GPU.")  # fmt: skip  # noqa: E501
parts_option = click.option("--parts", metavar="URL", help="Where Dask workers leave what they have embedded, for instance s3://bucket/parts. [default: the cache folder, which they must share]")  # fmt: skip  # noqa: E501


@contextmanager
def cluster_at(where: str | None) -> Iterator[Cluster | None]:
    """The cluster that --dask names, None without it."""
    if where is None:
        yield None
        return
    from featcache.scaling.cluster import Cluster

    with Cluster(where) as cluster:
        yield cluster


def embedding(cluster: Cluster | None, data_root: str | None, parts: str | None = None) -> Embed:
    """Who embeds: what `fill_cache` takes as `embed`."""
    if cluster is None:
        from featcache.extraction.extract import embed_here

        return embed_here
    from featcache.scaling.executors import embed_on

    return embed_on(cluster, data_root, parts=parts or "")


def crew_of(cluster: Cluster | None) -> Crew | None:
    """Who fits: what `compare` takes as `crew`."""
    if cluster is None:
        return None
    from featcache.scaling.executors import DaskCrew

    return DaskCrew(cluster)


def fits_here(cluster: Cluster | None, jobs: int) -> int:
    """How many fits share this machine's memory."""
    return jobs if cluster is None else max(1, cluster.here)


def check_parts(parts: str | None, dask: str | None) -> None:
    """Refuse what --parts can't be, or where nothing can be written, before any work is done."""
    if parts is None:
        return
    from featcache.images.remote import is_url
    from featcache.scaling.transport import open_parts

    if dask is None:
        raise click.UsageError("--parts goes with --dask: without workers nothing travels")
    if not is_url(parts):
        raise click.UsageError(f"--parts {parts} is no URL. For instance --parts s3://bucket/parts")
    open_parts(parts, Path(), "featcache").check({})
