"""--dask: the commands' work, done here or by a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from featcache.extraction.work import Embed
    from featcache.scaling.cluster import Cluster

T = TypeVar("T")

dask_option = click.option("--dask", metavar="WHERE", help="Let Dask workers do it: tcp://host:8786, a scheduler file, local:N for N processes here, or local:gpus for one for each GPU.")  # fmt: skip  # noqa: E501


@contextmanager
def cluster_at(where: str | None) -> Iterator[Cluster | None]:
    """The cluster that --dask names, None without it."""
    if where is None:
        yield None
        return
    from featcache.scaling.cluster import Cluster

    with Cluster(where) as cluster:
        yield cluster


def embedding(cluster: Cluster | None, data_root: str | None) -> Embed:
    """Who embeds: what `fill_cache` takes as `embed`."""
    if cluster is None:
        from featcache.extraction.work import embed_here

        return embed_here
    from featcache.scaling.extraction import embed_on

    return embed_on(cluster, data_root)


def fitting(cluster: Cluster | None, jobs: int, fit: Callable[[int], T]) -> T:
    """Call `fit` with the number of jobs: those asked for, or the cluster's."""
    if cluster is None:
        return fit(jobs)
    from featcache.scaling.fitting import fit_on

    return fit_on(cluster, fit)
