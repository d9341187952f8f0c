"""Choice: the feature files that a user's names for backbones stand for."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from featcache.errors import CacheMissing
from featcache.store.command import commands_for_absent
from featcache.store.entry import Entry
from featcache.store.spec import means, parse_spec, split_key

log = logging.getLogger("featcache")


def choose(
    entries: Sequence[Entry], data: str, folder: str, source: str, backbone: Sequence[str] = ()
) -> list[Entry]:
    """The files that stand for these backbones, see `Cache.choose`.

    Parameters
    ----------
    entries : sequence of Entry
        All finished files of the data set, oldest first.
    data, folder : str
        Names of the data set and of the cache folder.
    source : str
        Where its images are; "" where that isn't known.
    backbone : sequence of str

    Raises
    ------
    CacheMissing
        Where there is none.
    UnknownName, RecipeError
        For a spec that can't be read.
    """
    # A view, such as hflip, is taken only where its key is named.
    plain = [e for e in entries if e.key.preprocess.get("view", "none") == "none"]
    names = list(dict.fromkeys(entry.key.backbone for entry in plain))
    asked = list(backbone) or sorted(names)
    found: dict[int, Entry] = {}
    # What says most has the first choice: `vit_b_16` leaves `vit_b_16:size=384` its file.
    for place in sorted(range(len(asked)), key=lambda i: -_says(asked[i])):
        wanted = asked[place]
        name, prefix = (wanted, "") if wanted in names else split_key(wanted)
        known = entries if prefix else plain
        fitting = [
            entry
            for entry in known
            if entry.key.digest.startswith(prefix) and means(name, entry.key)
        ]
        if not fitting:
            without_options = parse_spec(name).name
            same = [entry.selector for entry in known if means(without_options, entry.key)]
            have = ", ".join(same) or ", ".join(names) or "nothing"
            raise CacheMissing(
                f"{data} has no features of {wanted} (it has: {have})",
                commands_for_absent(entries, data, source, wanted),
            )
        taken = [entry for other, entry in found.items() if asked[other] != wanted]
        left = [entry for entry in fitting if entry not in taken] or fitting
        if len(left) > 1:
            others = ", ".join(entry.selector for entry in left[:-1])
            log.info(
                "%s has %d files; taking the newest, %s (others: %s)",
                wanted, len(left), left[-1].selector, others,
            )  # fmt: skip
        found[place] = left[-1]
    if not found:
        raise CacheMissing(
            f"no finished features of {data} in {folder}/",
            commands_for_absent(entries, data, source, "resnet18"),
        )
    return [found[place] for place in range(len(asked))]


def _says(wanted: str) -> int:
    """How much a name says: a key all, options more than none."""
    return 1000 if split_key(wanted)[1] else len(wanted)
