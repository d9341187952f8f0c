"""Plan: what a recipe comes to, in lines, before any of it is done."""

from __future__ import annotations

from featcache.errors import counted
from featcache.fitting.grid import candidates
from featcache.recipe.data import missing_path
from featcache.recipe.finetune import fusion_of, options_of, sets_of
from featcache.recipe.model import Recipe
from featcache.recipe.protocols import honest, protocols_of


def plan(recipe: Recipe) -> list[str]:
    """Lines for a reader: vectors, fits by each protocol, fine-tuning, and data that is not there.

    Parameters
    ----------
    recipe : Recipe
        Checked.
    """
    views = f", each image also as {', '.join(recipe.view)}" if recipe.view else ""
    lines = [f"extract: {', '.join(recipe.backbone)}{views}"]
    lines += [_fits(name, one) for name, one in protocols_of(recipe).items()]
    if recipe.finetune is not None:
        lines.append(_training(recipe))
    missing = missing_path(recipe)
    if missing:
        lines.append(f"NOT HERE: {missing}. Say where it is with --data, or try --quick.")
    return lines


def _fits(name: str, recipe: Recipe) -> str:
    count = len(
        candidates(recipe.backbone, recipe.fusion, recipe.head, recipe.singles, recipe.ablate)
    )
    folds = (recipe.folds or 5) * recipe.repeats
    head = f"{name}{' (LEAKY)' if recipe.leaky else ''}: " if name else "fit: "
    tuned = f", {recipe.tune} settings tried in each" if recipe.tune else ""
    what = f"{head}{counted(count, 'candidate')}"
    if recipe.test_split:
        return f"{what} on the data's test split = {counted(count, 'fit')}{tuned}"
    said = f"{what} x {folds} folds = {count * folds:,} fits{tuned}"
    if recipe.folds is None and recipe.test_split is None:
        said += f"; {count} where the data has a test split"
    return said


def _training(recipe: Recipe) -> str:
    tested = honest(recipe) or recipe
    options = options_of(recipe)
    sets = sets_of(recipe, tested)
    return (
        f"fine-tune, if --finetune is given (it takes a GPU): "
        f"{', '.join('+'.join(names) for names in sets)} with {fusion_of(recipe, tested)}, "
        f"{counted(options.epochs, 'epoch')}, {options.freeze_epochs} of them frozen"
    )
