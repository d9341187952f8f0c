"""Recipe: one YAML file is one experiment, from images to the comparison."""

from featcache.recipe.checks import check_here, check_recipe, make_recipe
from featcache.recipe.experiment import (
    Fitted,
    compare_all,
    compare_for,
    extract_for,
    finetune_for,
    run,
)
from featcache.recipe.loading import load_recipe
from featcache.recipe.schema import Recipe, protocols_of

__all__ = [
    "Fitted", "Recipe", "check_here", "check_recipe", "compare_all", "compare_for", "extract_for",
    "finetune_for", "load_recipe", "make_recipe", "protocols_of", "run",
]  # fmt: skip
