"""Checks: what would fail after hours of extraction is found before it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from featcache.errors import RecipeError, did_you_mean, unknown
from featcache.extraction.engine import choose_device, open_engine
from featcache.extraction.loader import count_workers
from featcache.extraction.preprocess import VIEWS
from featcache.extraction.registry import check_backbones
from featcache.finetuning.data import table
from featcache.finetuning.network import OF_THE_LOOP, check_trainable, is_trainable, make_head
from featcache.finetuning.options import Options
from featcache.fitting.checks import GATES
from featcache.fitting.grid import candidates
from featcache.fitting.heads import HEADS
from featcache.fitting.metrics import metric_of
from featcache.fitting.pipeline import make_classifier, smoke_fit
from featcache.fitting.registry import class_of
from featcache.fitting.splits import check_plan, make_folds
from featcache.images.files import KINDS
from featcache.images.remote import need_folder
from featcache.images.table import TABLES
from featcache.recipe.schema import Recipe, honest, images_of, protocols_of, typed
from featcache.store.cache import Cache
from featcache.store.features import NO_VIEW, canonical
from featcache.store.memory_budget import parse_memory

# Beside the options of the training itself. What is not given is the recipe's own.
_KINDS: dict[str, type | tuple[type, ...]] = {
    "fusion": str, "singles": bool, "warm_start": bool, "minutes": (int, float),
    "device": str, "precision": str, "image_size": int, "protocol": str, "networks": list,
}  # fmt: skip
_PLAIN = {"layer": "penultimate", "colour": None, "filter": None, "scale": None, "pool": "own",
          "layers": "last"}  # fmt: skip


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
        For a backbone, fusion, head, view, gate or metric that there is not.
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
    for training in trainings_of(recipe):
        choose_device(wishes_of(training).get("device", "auto"))
    for one in protocols_of(recipe).values():
        # Each fusion and each head once; each fusion also with a head that may train it along.
        joint = [head for head in one.head if hasattr(class_of(HEADS.get(head)), "joint_network")]
        pairs = {(fusion, one.head[0]) for fusion in one.fusion}
        pairs |= {("concat", head) for head in one.head}
        pairs |= {(fusion, head) for fusion in one.fusion for head in joint}
        for fusion, head in sorted(pairs):
            smoke_fit(
                make_classifier(fusion, head, settings=one.set, select=one.select),
                backbones=len(one.backbone),
            )


def check_data(recipe: Recipe) -> None:
    """Find what can't be split, from the labels, splits and groups of a folder or table here.

    No image is read, and nothing is looked for that is elsewhere or isn't there.

    Raises
    ------
    DataError, UnknownData
        For a column that isn't there, a split, a class or a group that is missing or too small.
    """
    kind, _, path = recipe.data.rpartition(":")
    here = Path(path).expanduser()
    listed = here.is_dir() or (here.is_file() and here.suffix.lower() in TABLES)
    if kind not in ("", "folder", "csv") or not listed:
        return
    images = images_of(recipe, digests=False)
    for one in protocols_of(recipe).values():
        make_folds(
            table(images, ()), one.folds, one.test_split,
            one.group if one.group in KINDS else None, one.seed, repeats=one.repeats,
        )  # fmt: skip


def check_finetune(recipe: Recipe) -> None:
    """Find what is wrong with each of a recipe's fine-tunings, if it has any.

    Raises
    ------
    RecipeError
        For a key that fine-tuning has not, a value of the wrong kind or out of range, or a recipe
        that can't be fine-tuned.
    """
    for training in trainings_of(recipe):
        _check_training(training)


def trainings_of(recipe: Recipe) -> list[Recipe]:
    """The recipe once for each mapping of its `finetune`, which then is that one alone."""
    wishes = [] if recipe.finetune is None else recipe.finetune
    each = wishes if isinstance(wishes, list) else [wishes]
    return [recipe.model_copy(update={"finetune": one}) for one in each]


def wishes_of(training: Recipe) -> dict[str, Any]:
    """What one of `trainings_of` says of fine-tuning."""
    return training.finetune if isinstance(training.finetune, dict) else {}


def _check_training(recipe: Recipe) -> None:
    wishes = wishes_of(recipe)
    known = [*(field.name for field in fields(Options)), *_KINDS]
    for name in [str(key) for key in wishes if key not in known]:
        raise RecipeError(f"finetune has an unknown key {name!r}", did_you_mean(name, known))
    truths = [field.name for field in fields(Options) if field.type in (bool, "bool")]
    kinds = _KINDS | dict.fromkeys(truths, bool)
    for name, kind in kinds.items():
        value = wishes.get(name)
        if name in wishes and (
            not isinstance(value, kind) or (kind is not bool and isinstance(value, bool))
        ):
            raise RecipeError(f"finetune.{name} is {value!r}", "See: featcache finetune --help")
    options_of(recipe)
    unlisted = set().union(*map(_parts, wishes.get("networks", ()))) - set(recipe.backbone)
    if unlisted:
        raise RecipeError(
            f"finetune.networks names {', '.join(sorted(unlisted))}, which backbone doesn't",
            f"Name some of {', '.join(recipe.backbone)}, joined by +.",
        )
    odd = [name for name, usual in _PLAIN.items() if getattr(recipe, name) != usual]
    if odd:
        raise RecipeError(f"a recipe with {odd[0]!r} can't be fine-tuned",
                          "Leave that, or finetune, out.")  # fmt: skip
    tested = honest(recipe)
    if tested is None:
        raise RecipeError(
            "fine-tuning can't redo a protocol that leaks", "Add one that does not: leak-free: {}"
        )
    fusion = fusion_of(recipe, tested)
    make_head(fusion, "mlp", settings_of(tested, fusion), tested.seed)


def fusion_of(recipe: Recipe, tested: Recipe) -> str:
    """The fusion that is fine-tuned: the one named, else the first that can be."""
    possible = [name for name in tested.fusion if is_trainable(name)]
    return str(wishes_of(recipe).get("fusion") or (possible or ["concat"])[0])


def sets_of(recipe: Recipe, tested: Recipe) -> list[list[str]]:
    """The backbones of each network that is trained."""
    wishes = wishes_of(recipe)
    if wishes.get("networks"):
        return [_parts(one) for one in wishes["networks"]]
    alone = [[name] for name in tested.backbone] if wishes.get("singles") else []
    together = list(canonical(tested.backbone))
    return [*alone, together] if len(together) > 1 else [together]


def _parts(network: object) -> list[str]:
    return str(network).split("+")


def options_of(recipe: Recipe) -> Options:
    """How the network is trained."""
    wishes = wishes_of(recipe)
    changes = {f.name: wishes[f.name] for f in fields(Options) if f.name in wishes}
    return Options.of(wishes.get("protocol", "default"), **changes)


def settings_of(recipe: Recipe, fusion: str) -> dict[str, Any]:
    """Settings that mean this network: not those of other heads, nor of the cached fits' loop."""
    parts = [(name.partition("."), value) for name, value in recipe.set.items()]
    return {
        f"{where}.{parameter}": value
        for (where, _, parameter), value in parts
        if where in ("head", "mlp", "fusion", fusion) and parameter not in OF_THE_LOOP
    }


def _check_evaluation(recipe: Recipe) -> None:
    for name in recipe.view:
        if name not in VIEWS or name == NO_VIEW:
            raise unknown("view", name, [known for known in VIEWS if known != NO_VIEW])
    if recipe.gate not in GATES:
        raise unknown("gate", recipe.gate, GATES)
    metric_of(recipe.metric)
    parse_memory(recipe.memory)
    if recipe.folds is not None and recipe.test_split:
        raise RecipeError("both folds and the test split are asked for", "Choose one of them.")
    check_plan(recipe.view, recipe.balance, recipe.leaky, recipe.strict, recipe.repeats)
    for one in candidates(recipe.backbone, recipe.fusion, recipe.head, recipe.singles):
        make_classifier(
            one.fusion, one.head, settings=recipe.set,
            select=recipe.select, tune=recipe.tune, tuner=recipe.tuner,
        )  # fmt: skip
