"""Choice: the feature files that a user's names for backbones stand for."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from featcache.errors import CacheMissing
from featcache.store.command import commands_for_absent
from featcache.store.entry import Entry
from featcache.store.spec import means, parse_spec, split_key

log = logging.getLogger("featcache")


def choose(
    entries: Sequence[Entry],
    data: str,
    folder: str,
    source: str,
    backbone: Sequence[str] = (),
    view: Sequence[str] = (),
    options: Sequence[str] = (),
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
    view : sequence of str, default ()
        Views that are asked for too: the remedy names them.
    options : sequence of str, default ()
        What else opens the images, see `Images.options`.

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
    absent: list[str] = []
    # What says most has the first choice: `vit_b_16` leaves `vit_b_16:size=384` its file.
    for place in sorted(range(len(asked)), key=lambda i: (-_says(asked[i]), asked[i])):
        wanted = asked[place]
        name, prefix = (wanted, "") if wanted in names else split_key(wanted)
        known = entries if prefix else plain
        fitting = [
            entry
            for entry in known
            if entry.key.digest.startswith(prefix)
            and (means(name, entry.key) or (prefix and name == entry.selector))
        ]
        if not fitting:
            parse_spec(name)  # refuses what is none
            absent.append(wanted)
            continue
        taken = [entry for other, entry in found.items() if asked[other] != wanted]
        left = [entry for entry in fitting if entry not in taken] or fitting
        if len(left) > 1:
            others = ", ".join(entry.selector for entry in left[:-1])
            log.info(
                "%s has %d files; taking the newest, %s (others: %s)",
                wanted, len(left), left[-1].selector, others,
            )  # fmt: skip
        found[place] = left[-1]
    rest = (folder, view, options)
    if absent:
        missing = [wanted for wanted in asked if wanted in absent]
        which = [parse_spec(split_key(wanted)[0]).name for wanted in missing]
        among = entries if any(split_key(wanted)[1] for wanted in missing) else plain
        same = [e.selector for e in among if any(means(name, e.key) for name in which)]
        have = ", ".join(same) or ", ".join(names) or "nothing"
        raise CacheMissing(
            f"{data} has no features of {', '.join(missing)} (it has: {have})",
            commands_for_absent(entries, data, source, missing, *rest),
        )
    if not found:
        raise CacheMissing(
            f"no finished features of {data} in {folder}/",
            commands_for_absent(entries, data, source, "resnet18", *rest),
        )
    return [_called(found[place], asked[place], names) for place in range(len(asked))]


def _called(entry: Entry, wanted: str, known: Sequence[str]) -> Entry:
    """The file under the name that stands before its key: `vit_b_16-384px@7be2d41c`.

    By that name it is called in reports, also where it needs none to differ from others.
    """
    name, prefix = ("", "") if wanted in known else split_key(wanted)
    spelt = prefix and name != entry.key.backbone and not parse_spec(name).options
    return replace(entry, called=name) if spelt else entry


def _says(wanted: str) -> int:
    """How much a name says: a key all, options more than none."""
    return 1000 if split_key(wanted)[1] else len(wanted)
