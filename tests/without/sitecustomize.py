"""Packages that are installed here, as if they were not.

    WITHOUT=xgboost PYTHONPATH=tests/without:. python -m pytest

Python imports this file by itself when it starts, and so does every process that is started from
there. To imports, `find_spec` and `importlib.metadata` the packages are then not installed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import Distribution, DistributionFinder
from types import ModuleType

ABSENT = frozenset(os.environ.get("WITHOUT", "").split(","))

EVERYTHING = DistributionFinder.Context()


class Finder(PathFinder):
    """Finds what Python's own does, but for the packages that are absent."""

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return None if name.partition(".")[0] in ABSENT else super().find_spec(name, path, target)

    @classmethod
    def find_distributions(
        cls, context: DistributionFinder.Context = EVERYTHING
    ) -> Iterable[Distribution]:
        return () if context.name in ABSENT else super().find_distributions(context)


sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
