"""Protocols: one recipe evaluated in several ways, over the same vectors."""

from __future__ import annotations

from itertools import combinations

from featcache.errors import RecipeError, did_you_mean
from featcache.images.files import KINDS
from featcache.recipe.model import Recipe, merge, typed
from featcache.store.features import canonical

# What a protocol may change: nothing that needs other vectors.
CHANGES = (
    "backbone", "view", "group", "fusion", "head", "singles", "folds", "repeats", "test_split",
    "balance", "leaky", "strict", "near_duplicates", "seed", "set", "gate", "select", "tune",
    "tuner", "ablate",
)  # fmt: skip


def protocols_of(recipe: Recipe) -> dict[str, Recipe]:
    """A recipe for each protocol, by its name; the recipe itself, under "", if it has none.

    Raises
    ------
    RecipeError
        For a protocol that changes what is extracted, or that says the same as another.
    """
    if not recipe.protocols:
        return {"": recipe}
    plain = recipe.model_dump(exclude={"protocols"})
    made = {}
    for name, over in recipe.protocols.items():
        where = f"protocol {name!r}"
        if not name.strip():
            raise RecipeError("a protocol without a name", "Give it one: leak-free: {…}")
        for key in [str(key) for key in over if key not in CHANGES]:
            raise RecipeError(f"{where} can't change {key!r}", did_you_mean(key, CHANGES))
        made[name] = typed(merge(plain, over), where)
        _refuse_foreign(recipe, made[name], where)
    for (first, one), (second, other) in combinations(made.items(), 2):
        if _sorted(one) == _sorted(other):
            raise RecipeError(
                f"the protocols {first!r} and {second!r} say the same",
                "Leave one of them out, or the --set that levels them.",
            )
    return made


def _sorted(recipe: Recipe) -> Recipe:
    """With the backbones in the order in which they are fitted."""
    return recipe.model_copy(update={"backbone": list(canonical(recipe.backbone))})


def honest(recipe: Recipe) -> Recipe | None:
    """The first of a recipe's protocols that does not leak; None where all do."""
    return next((one for one in protocols_of(recipe).values() if not one.leaky), None)


def _refuse_foreign(recipe: Recipe, variant: Recipe, where: str) -> None:
    """Refuse backbones and views that are not extracted, and columns to group by."""
    for kind in ("backbone", "view"):
        absent = [name for name in getattr(variant, kind) if name not in getattr(recipe, kind)]
        if absent:
            raise RecipeError(
                f"{where} asks for the {kind} {absent[0]!r}, which the recipe does not extract",
                f"Name it under {kind}: of the recipe too.",
            )
    if variant.group != recipe.group and variant.group not in (None, *KINDS):
        raise RecipeError(
            f"{where} groups by the column {variant.group!r}",
            f"Name the column under group: of the recipe; a protocol says {' or '.join(KINDS)}.",
        )
