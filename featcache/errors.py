"""What can go wrong, said so that the reader knows what to do next.

FeatcacheError              exit 1
├── UnknownName             exit 2   no such backbone, fusion, head, option (ValueError)
├── RecipeError             exit 2   a recipe or a setting that can't be read (ValueError)
├── DataError               exit 1   images, tables or labels that can't be used (ValueError)
│   └── UnknownData         exit 2   no folder, file, table, column or run of that name
├── WeightsError            exit 1   weights absent, unreadable or of another architecture (OSError)
│   └── UnknownWeights      exit 2   no tag, file or folder of weights of that name
├── ClusterError            exit 1   no scheduler, or no worker that may help (ConnectionError)
├── CacheMissing            exit 1   nothing was extracted yet (FileNotFoundError)
├── CacheUnwritable         exit 1   no permission, or the disk is full (OSError)
└── CacheRefused            exit 4   what is cached must not be used as it is
    ├── CacheDenied         exit 4   no permission to read it
    └── CacheBusy           exit 4   another process is writing
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class FeatcacheError(Exception):
    """A problem that the user can solve.

    Parameters
    ----------
    problem : str
        What is wrong, and where; carries the offending value.
    remedy : str, default ""
        What to do or to type next.
    """

    exit_code = 1

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}\n{self.remedy}" if self.remedy else self.problem


class UnknownName(FeatcacheError, ValueError):
    """A name that is not in the list it is looked up in."""

    exit_code = 2


class RecipeError(FeatcacheError, ValueError):
    """A recipe or a setting that can't be read."""

    exit_code = 2


class DataError(FeatcacheError, ValueError):
    """Images, tables or labels that can't be used."""


class UnknownData(DataError):
    """No folder, file, table, column or run folder of the name that was given."""

    exit_code = 2


class WeightsError(FeatcacheError, OSError):
    """Weights that are absent, unreadable or belong to another architecture."""


class UnknownWeights(WeightsError):
    """No tag, file or folder of weights of the name that was given."""

    exit_code = 2


class ClusterError(FeatcacheError, ConnectionError):
    """A cluster that can't be reached, or whose workers can't do the work."""


class CacheMissing(FeatcacheError, FileNotFoundError):
    """Nothing was extracted yet for what is asked."""


class CacheUnwritable(FeatcacheError, OSError):
    """The cache folder can't be written: no permission, or the disk is full."""


class CacheRefused(FeatcacheError):
    """What is cached must not be used as it is."""

    exit_code = 4


class CacheDenied(CacheRefused):
    """A cache file that may not be read: whether it is whole nobody knows."""


class CacheBusy(CacheRefused):
    """Another process is writing this cache file."""


def did_you_mean(name: str, choices: Iterable[str], most: int = 3) -> str:
    """A sentence naming the choices nearest to `name`, or all of them where none is near."""
    known = list(choices)
    near = difflib.get_close_matches(name, known, n=most, cutoff=0.6)
    if near:
        return f"Did you mean {' or '.join(near)}?"
    shown = ", ".join(sorted(known)[:20])
    return f"Known: {shown}{', …' if len(known) > 20 else ''}."


def unknown(kind: str, name: str, choices: Iterable[str], hint: str = "") -> UnknownName:
    """The error for a `kind` of thing called `name` that is none of `choices`."""
    remedy = did_you_mean(name, choices)
    return UnknownName(f"unknown {kind} {name!r}", f"{remedy} {hint}".strip())


def first_line(error: BaseException) -> str:
    """The first line of what an error says; the name of its type where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def counted(number: int, noun: str, plural: str = "") -> str:
    """How many of what: "1 class", "10,000 rows".

    The plural ends in s, es or ies by the noun's ending, unless it is given.
    """
    if number == 1:
        return f"1 {noun}"
    if not plural:
        plural = re.sub(r"(?<![aeiou])y$", "ie", noun)
        plural += "es" if noun.endswith(("s", "x")) else "s"
    return f"{number:,} {plural}"
