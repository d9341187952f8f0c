"""Checks: what would fail after hours of extraction is found before it."""

from __future__ import annotations

from typing import Any

from featcache.errors import RecipeError, unknown
from featcache.extraction.engine import choose_device, open_engine
from featcache.extraction.loader import count_workers
from featcache.extraction.preprocess import VIEWS
from featcache.extraction.registry import check_backbones
from featcache.finetuning.network import check_trainable
from featcache.fitting.checks import GATES
from featcache.fitting.grid import candidates
from featcache.fitting.pipeline import make_classifier, smoke_fit
from featcache.fitting.splits import check_plan
from featcache.images.remote import need_folder
from featcache.recipe.finetune import check_finetune
from featcache.recipe.schema import Recipe, protocols_of, typed
from featcache.store.cache import Cache
from featcache.store.features import NO_VIEW
from featcache.store.memory_budget import parse_memory


def make_recipe(plain: dict[str, Any], where: str = "the recipe") -> Recipe:
    """A recipe from plain values; `where` is named in errors."""
    recipe = typed(plain, where)
    check_recipe(recipe)
    return recipe


def check_recipe(recipe: Recipe) -> None:
    """Find what is wrong with the words of a recipe, on whatever machine.

    Raises
    ------
    UnknownName
        For a backbone, fusion, head, view or gate that there is not.
    RecipeError
        For a setting that nothing has, wishes that exclude each other, or protocols that don't
        differ.
    """
    opened = check_backbones(recipe.backbone, recipe.backbone_options)
    for one in protocols_of(recipe).values():
        _check_evaluation(one)
    Cache(recipe.cache)  # refuses a URL
    need_folder(recipe.reports, "the reports folder")
    check_finetune(recipe)
    if recipe.finetune is not None:
        check_trainable(opened)


def _check_evaluation(recipe: Recipe) -> None:
    for name in recipe.view:
        if name not in VIEWS or name == NO_VIEW:
            raise unknown("view", name, [known for known in VIEWS if known != NO_VIEW])
    if recipe.gate not in GATES:
        raise unknown("gate", recipe.gate, GATES)
    parse_memory(recipe.memory)
    if recipe.folds is not None and recipe.test_split:
        raise RecipeError("both folds and the test split are asked for", "Choose one of them.")
    check_plan(recipe.view, recipe.balance, recipe.leaky, recipe.strict, recipe.repeats)
    for one in candidates(recipe.backbone, recipe.fusion, recipe.head, recipe.singles):
        make_classifier(
            one.fusion, one.head, settings=recipe.set,
            select=recipe.select, tune=recipe.tune, tuner=recipe.tuner,
        )  # fmt: skip


def check_here(recipe: Recipe) -> None:
    """Find what can't be done on this machine, and settings that are out of range.

    Neither images nor weights are looked for.

    Raises
    ------
    UnknownName, RecipeError
        For a device that is not there, and the like; a setting that a head or fusion refuses.
    """
    open_engine(recipe.device, recipe.precision, recipe.engine, recipe.batch_size)
    count_workers(recipe.workers)
    choose_device((recipe.finetune or {}).get("device", "auto"))
    for one in protocols_of(recipe).values():
        # Each fusion and each head once; fusions that are trained with the mlp, with that too.
        pairs = {(fusion, one.head[0]) for fusion in one.fusion}
        pairs |= {("concat", head) for head in one.head}
        pairs |= {(fusion, "mlp") for fusion in one.fusion if "mlp" in one.head}
        for fusion, head in sorted(pairs):
            smoke_fit(
                make_classifier(fusion, head, settings=one.set, select=one.select),
                backbones=len(one.backbone),
            )
