"""Data card: what a run was fitted and scored on."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featcache.fitting.numbered import numbered
from featcache.images.manifest import SPLITS, Images
from featcache.reporting.contents import Contents
from featcache.store.coverage import Coverage

_FAILED_CSV = "failed.csv"  # written by the cache, beside images.csv


@dataclass(frozen=True)
class DataCard:
    """Counts over all images of the data set, or over the tested ones where only those are known.

    Attributes
    ----------
    whole : bool
        Whether the manifest was at hand.
    splits : list of str
        The columns of `counts`.
    counts : dict of str to list of int
        Class -> images in each split.
    groups : int
        Different groups; 0 without any.
    duplicates : int
        Images that repeat the bytes of another.
    coverage : Coverage or None
        How many have a vector; None if only the tested images are known.
    conflicts : int
        Contents that come with two labels.
    failed : list of (id, problem)
    """

    whole: bool
    splits: list[str]
    counts: dict[str, list[int]]
    groups: int = 0
    duplicates: int = 0
    coverage: Coverage | None = None
    conflicts: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Images in all."""
        return sum(map(sum, self.counts.values()))


def data_card(contents: Contents, images: Images | None, folder: Path | None) -> DataCard:
    """Count.

    Parameters
    ----------
    contents : Contents
    images : Images, optional
        The manifest; without it only the tested rows are counted.
    folder : Path, optional
        The data set's folder in the cache, where failed.csv is.
    """
    if images is None:
        tested = Counter(contents.true.tolist())
        return DataCard(False, ["tested"], {name: [n] for name, n in sorted(tested.items())})
    failed = [] if folder is None else read_failed(folder)
    broken = {id_ for id_, _ in failed}
    bad = np.array([id_ in broken for id_ in images.ids.tolist()], np.bool_)
    labels, split = images.labels.tolist(), images.split.tolist()
    splits = [name for name in (*SPLITS, "") if name in set(split)]
    table = Counter(zip(labels, split, strict=True))
    content, label_of = numbered(images.sha256), numbered(images.labels)  # (n,), (n,)
    kinds = int(label_of.max(initial=0)) + 1
    named = np.unique(content * kinds + label_of) // kinds  # each content once for each label
    return DataCard(
        whole=True,
        splits=[name or "images" for name in splits],
        counts={label: [table[label, name] for name in splits] for label in sorted(set(labels))},
        groups=len(set(images.groups.tolist()) - {""}),
        duplicates=len(images) - len(np.unique(content)),
        conflicts=int((np.bincount(named) > 1).sum()),
        failed=failed,
        coverage=Coverage.of(images, ~bad, set(images.sha256[bad].tolist())),
    )


def read_failed(folder: Path) -> list[tuple[str, str]]:
    """The images of a data set's folder that could not be decoded, and why; none where unknown."""
    try:
        with (folder / _FAILED_CSV).open(newline="", encoding="utf-8") as file:
            return [(row["id"], row["problem"]) for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, csv.Error):
        return []
