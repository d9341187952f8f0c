"""Recipe: one YAML file is one experiment, from images to the comparison."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from featcache.recipe.loading import load_recipe
from featcache.recipe.schema import Recipe, protocols_of

if TYPE_CHECKING:
    from featcache.recipe.checks import check_here, check_recipe, make_recipe
    from featcache.recipe.experiment import (
        Fitted,
        compare_all,
        compare_for,
        extract_for,
        finetune_for,
        run,
    )

__all__ = [
    "Fitted", "Recipe", "check_here", "check_recipe", "compare_all", "compare_for", "extract_for",
    "finetune_for", "load_recipe", "make_recipe", "protocols_of", "run",
]  # fmt: skip
_OF_CHECKS = ("check_here", "check_recipe", "make_recipe")


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'featcache.recipe' has no attribute {name!r}")
    home = "checks" if name in _OF_CHECKS else "experiment"  # these import torch
    return getattr(importlib.import_module(f"featcache.recipe.{home}"), name)
