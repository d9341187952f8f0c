"""Extraction on a cluster: the file that one machine would have written, made by many."""

from __future__ import annotations

import logging
from pathlib import Path

from featcache.errors import counted
from featcache.extraction.extract import Embed, Work
from featcache.scaling.cluster import Cluster
from featcache.scaling.intake import Intake
from featcache.scaling.parts import open_parts
from featcache.scaling.plan import make_plan, unfinished
from featcache.scaling.ranges import Ranges, Tally

log = logging.getLogger("featcache")

_MOST = 4096  # rows in a range: what a lost worker has in hand at most
_EACH = 4  # ranges for each worker at least, so that all end at about the same time


def embed_on(
    cluster: Cluster, data_root: str | Path | None = None, size: int = 0, parts: str = ""
) -> Embed:
    """What `fill_cache` takes as `embed` to have the work done by a cluster's workers.

    Each worker opens the images itself, embeds ranges of rows on its own device, and writes them
    into part files beside the file in progress; here they are moved into that file. On processors
    the result is that of one machine to the bit, whatever the ranges and whoever embedded them.
    Images, weights and the cache folder must be there for all, under the same paths or URLs; with
    `parts`, part files travel through an object store, and the cache folder need not be.

    Before it gets work, a worker must have the versions of this machine and the same weights, and
    embed a few images to the same vectors; one that does not is left out, with a warning.

    Parameters
    ----------
    cluster : Cluster
    data_root : str or Path, optional
        As for `open_images`: where torchvision's data sets are.
    size : int, optional
        Rows in a range; by default as suits the number of workers, at most 4,096.
    parts : str, optional
        A URL that all may write to and read from, `s3://bucket/parts`, of no other cache folder's.

    Returns
    -------
    callable

    Raises
    ------
    ClusterError
        When called: where no scheduler answers, it is lost, or no worker may help; where the
        store of the parts refuses.
    RecipeError
        When called: where the images are in memory only.
    """

    def embed(work: Work) -> None:
        if not work.pending():
            return
        where = open_parts(parts, work.store.folder, work.content.images.name)
        intake = Intake(where, work, unfinished(work))
        where.check({})
        intake.take_left(work.pending())
        rows = len(work.pending())
        if not rows:
            return
        plan, jobs = make_plan(work, data_root, cluster.threads, where.url)
        workers = max(1, len(cluster.workers()))
        size_ = size or _size(rows, workers, work)
        ranges = Ranges(cluster, plan.json(), work, jobs, size_, intake)
        ranges.run()
        intake.clear()
        _note(work, ranges.tally)
        for job in jobs:
            devices = {said["device"] for said in ranges.tally.workers.values()}
            if job.filling is not None:
                job.filling.file.annotate({"device": ", ".join(sorted(devices))})

    return embed


def _size(rows: int, workers: int, work: Work) -> int:
    """Rows in a range: whole batches, several ranges for each worker, none too long."""
    share = min(_MOST, -(-rows // (workers * _EACH)))
    return max(1, -(-share // work.batch_size)) * work.batch_size


def _note(work: Work, tally: Tally) -> None:
    work.report.workers = max(1, len(tally.workers))
    unequal = [said for said in tally.workers.values() if not said["identical"]]
    if unequal:
        least = min(said["cosine"] for said in unequal)
        log.info(
            "rounding otherwise than this machine: %s, cosine %.6f",
            counted(len(unequal), "worker"),
            least,
        )
    log.info(
        "workers that helped: %d, refused: %d; ranges that lost theirs: %d, rows done again: %d",
        len(tally.workers), len(tally.refused), tally.lost, tally.again,
    )  # fmt: skip
