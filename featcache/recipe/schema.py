"""Schema: every key that a recipe may have, of what kind it is; the protocols that it asks for."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from featcache.errors import RecipeError, did_you_mean
from featcache.extraction.backbone import BackboneOptions
from featcache.fitting.names import as_numbers
from featcache.fitting.splits import SEEDS
from featcache.images.files import KINDS
from featcache.images.manifest import Images, subsample
from featcache.images.remote import is_url
from featcache.images.sources import SOURCES, open_images
from featcache.store.features import canonical

# What a protocol may change: nothing that needs other vectors.
CHANGES = (
    "backbone", "view", "group", "fusion", "head", "singles", "folds", "repeats", "test_split",
    "balance", "leaky", "strict", "near_duplicates", "seed", "set", "gate", "select", "tune",
    "tuner", "ablate", "calibrate", "seeds", "metric", "positive",
)  # fmt: skip


class Recipe(BaseModel):
    """Everything an experiment needs; the names are those of the command line's options.

    If a list is meant, one name stands for a list of one. A file may have two keys more,
    `extends` and `quick`, see `load_recipe`.

    Attributes
    ----------
    limit : int or None
        Most images of each class, drawn with the seed; see `featcache.images.manifest`.
    protocols : dict of str to dict
        Name -> what it changes: each is compared on its own, over the same vectors; see
        `protocols_of`.
    finetune : dict, list of dicts or None
        Fine-tuning after the fits on cached vectors: options of `finetuning.options.Options`, and
        `protocol`, `networks` (a list of backbones joined by +), `singles`, `fusion`,
        `warm_start`, `minutes`, `device`, `precision`, `image_size`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    data: str = "digits"
    name: str | None = None
    data_root: str | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    class_map: str | None = None
    group: str | None = None
    limit: int | None = Field(default=None, ge=2)

    backbone: list[str] = Field(min_length=1)
    view: list[str] = []
    weights: str = "auto"
    weights_dir: str | None = None
    layer: str = "penultimate"
    image_size: int | None = Field(default=None, ge=1)
    colour: str | None = None
    filter: str | None = None
    scale: str | None = None
    pool: str = "own"
    layers: str = "last"
    device: str = "auto"
    precision: str = "auto"
    engine: str = "auto"
    batch_size: int | str = "auto"
    workers: int | str = "auto"
    max_failures: int | str | None = None
    retry_failed: bool = False

    fusion: list[str] = Field(default=["concat"], min_length=1)
    head: list[str] = Field(default=["mlp"], min_length=1)
    singles: bool = True
    folds: int | None = Field(default=None, ge=2)
    repeats: int = Field(default=1, ge=1)
    test_split: bool | None = None
    balance: bool = False
    leaky: bool = False
    strict: bool = False
    near_duplicates: bool = True
    seed: int = Field(default=0, ge=0, lt=SEEDS)
    seeds: int = Field(default=1, ge=1)
    set: dict[str, Any] = {}
    gate: str = "refuse"
    jobs: int = Field(default=1, ge=1)
    memory: str = "auto"
    select: str = ""
    tune: int = Field(default=0, ge=0)
    tuner: str = "random"
    ablate: bool = False
    calibrate: bool = True
    metric: str = "accuracy"
    positive: str | None = None

    protocols: dict[str, dict[str, Any]] = {}
    finetune: dict[str, Any] | list[dict[str, Any]] | None = None

    cache: str = "cache"
    reports: str = "reports"

    @property
    def backbone_options(self) -> BackboneOptions:
        """How its backbones are opened."""
        return BackboneOptions.among(dict(self))

    @field_validator("backbone", "view", "fusion", "head", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("set")
    @classmethod
    def _with_numbers(cls, value: dict[str, Any]) -> object:
        return as_numbers(value)


def typed(plain: dict[str, Any], where: str) -> Recipe:
    """A recipe from plain values, of the right kinds but not yet checked further.

    Raises
    ------
    RecipeError
        For a key that no recipe has, or a value of the wrong kind; it names `where`.
    """
    try:
        return Recipe(**plain)
    except ValidationError as error:
        raise _explain(error, where) from None


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over` in place of its own.

    Mappings are merged key by key, everything else is replaced; null brings the default back.
    """
    merged = dict(base)
    for name, value in over.items():
        before = merged.get(name)
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict) and isinstance(before, dict):
            merged[name] = merge(before, value)
        else:
            merged[name] = value
    return merged


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


def honest(recipe: Recipe) -> Recipe | None:
    """The first of a recipe's protocols that does not leak; None where all do."""
    return next((one for one in protocols_of(recipe).values() if not one.leaky), None)


def images_of(recipe: Recipe, rehash: bool = False, digests: bool = True) -> Images:
    """The images that a recipe is about; without digests they are only listed."""
    images = open_images(
        recipe.data,
        name=recipe.name,
        data_root=recipe.data_root,
        columns=recipe.columns,
        class_map=recipe.class_map,
        group=recipe.group,
        cache=recipe.cache,
        rehash=rehash,
        digests=digests,
    )
    return images if recipe.limit is None else subsample(images, recipe.limit, recipe.seed)


def missing_path(recipe: Recipe) -> str:
    """The file or folder that `data` names and that is not there; "" where nothing is amiss.

    What torchvision would download is not looked for, nor what is at a URL.
    """
    kind, colon, path = recipe.data.partition(":")
    if recipe.data in SOURCES or kind == "torchvision" or is_url(recipe.data):
        return ""
    # A source may take options behind its path: series:PATH:method=gasf.
    named = re.split(r":(?=\w+=)", path)[0] if colon and kind in SOURCES else recipe.data
    return "" if Path(named).expanduser().exists() else named


def _explain(error: ValidationError, where: str) -> RecipeError:
    # A misspelt key often is the one that is missing: say that first.
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return RecipeError(f"{where} has an unknown key {place!r}",
                           did_you_mean(place, Recipe.model_fields))  # fmt: skip
    if first["type"] == "missing":
        return RecipeError(
            f"{where} lacks {place!r}", f"Add a line, for instance {place}: resnet18"
        )
    return RecipeError(f"{where}: {place} is {first['input']!r}: {first['msg']}")


def _sorted(recipe: Recipe) -> Recipe:
    """With the backbones in the order in which they are fitted."""
    return recipe.model_copy(update={"backbone": list(canonical(recipe.backbone))})


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
