"""Recipe: one YAML file is one experiment, from images to the comparison."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from featcache.errors import RecipeError, did_you_mean, unknown
from featcache.extraction.extract import Progress, fill_cache
from featcache.extraction.preprocess import VIEWS
from featcache.extraction.report import Report
from featcache.fitting.classifier import make_classifier
from featcache.fitting.gate import GATES
from featcache.fitting.grid import candidates
from featcache.fitting.splits import SEEDS
from featcache.fitting.views import check_plan
from featcache.images.options import KINDS
from featcache.images.sources import open_images
from featcache.reporting.compare import Comparison, compare
from featcache.reporting.run_folder import Run
from featcache.store.cache import Cache
from featcache.store.features import NO_VIEW

_OF_EXTRACTION = (
    "backbone", "view", "weights", "weights_dir", "layer", "image_size",
    "device", "precision", "engine", "batch_size", "workers", "max_failures", "retry_failed",
    "cache",
)  # fmt: skip

Fitted = Callable[[int, int, Run], None]


class Recipe(BaseModel):
    """Everything an experiment needs; the names are those of the command line's options.

    Where a list is meant, one name stands for a list of one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    data: str = "digits"
    name: str | None = None
    data_root: str | None = None
    group: str | None = None

    backbone: list[str] = Field(min_length=1)
    view: list[str] = []
    weights: str = "auto"
    weights_dir: str | None = None
    layer: str = "penultimate"
    image_size: int | None = Field(default=None, ge=1)
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
    set: dict[str, Any] = {}
    gate: str = "refuse"
    jobs: int = Field(default=1, ge=1)
    select: str = ""
    tune: int = Field(default=0, ge=0)
    tuner: str = "random"
    ablate: bool = False

    cache: str = "cache"
    reports: str = "reports"

    @field_validator("backbone", "view", "fusion", "head", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value


def load_recipe(path: str | Path, **changes: Any) -> Recipe:
    """Read a recipe.

    Parameters
    ----------
    path : str or Path
        A YAML file.
    **changes
        Values that take the place of the file's.

    Raises
    ------
    RecipeError
        For a key that no recipe has, or a value of the wrong kind.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        plain = yaml.safe_load(text)
    except FileNotFoundError:
        there = [str(p) for p in sorted(Path("pipelines").glob("*.yaml"))]
        remedy = did_you_mean(str(path), there) if there else "Recipes end in .yaml."
        raise RecipeError(f"no recipe {str(path)!r}", remedy) from None
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        raise RecipeError(f"{path} can't be read as YAML: {error}") from None
    if not isinstance(plain, dict) or not all(isinstance(key, str) for key in plain):
        raise RecipeError(f"{path} is no recipe", "It must map names to values: backbone: resnet18")
    return make_recipe({**plain, **changes}, str(path))


def make_recipe(plain: dict[str, Any], where: str = "the recipe") -> Recipe:
    """A recipe from plain values; `where` is named in errors."""
    try:
        recipe = Recipe(**plain)
    except ValidationError as error:
        raise _explain(error, where) from None
    check_recipe(recipe)
    return recipe


def check_recipe(recipe: Recipe) -> None:
    """Find what would fail after the extraction before it.

    Raises
    ------
    UnknownName
        For a fusion, head, view or gate that there is not.
    RecipeError
        For a setting that nothing has, or wishes that exclude each other.
    """
    for name in recipe.view:
        if name not in VIEWS or name == NO_VIEW:
            raise unknown("view", name, [known for known in VIEWS if known != NO_VIEW])
    if recipe.gate not in GATES:
        raise unknown("gate", recipe.gate, GATES)
    if recipe.folds is not None and recipe.test_split:
        raise RecipeError("both folds and the test split are asked for", "Choose one of them.")
    check_plan(recipe.view, recipe.balance, recipe.leaky, recipe.strict, recipe.repeats)
    for one in candidates(recipe.backbone, recipe.fusion, recipe.head, recipe.singles):
        make_classifier(
            one.fusion, one.head, settings=recipe.set,
            select=recipe.select, tune=recipe.tune, tuner=recipe.tuner,
        )  # fmt: skip


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


def extract_for(
    recipe: Recipe, progress: Progress | None = None, rehash: bool = False, wait: bool = False
) -> Report:
    """The extraction that a recipe asks for, views included; `rehash`, `wait` as in `extract`."""
    check_recipe(recipe)
    images = open_images(
        recipe.data,
        name=recipe.name,
        data_root=recipe.data_root,
        group=recipe.group,
        cache=recipe.cache,
        rehash=rehash,
    )
    options = {name: getattr(recipe, name) for name in _OF_EXTRACTION}
    return fill_cache(images, progress=progress, wait=wait, **options)


def compare_for(
    recipe: Recipe, report: Report, fitted: Fitted | None = None, again: bool = False
) -> Comparison:
    """The comparison that a recipe asks for, on what `extract_for` has put into the cache."""
    store = Cache(recipe.cache)
    images = store.images(report.data)
    return compare(
        store.features(images, store.choose(report.data, report.selectors), recipe.view),
        fusion=recipe.fusion,
        head=recipe.head,
        singles=recipe.singles,
        folds=recipe.folds,
        test_split=recipe.test_split,
        repeats=recipe.repeats,
        group=recipe.group if recipe.group in KINDS else None,
        balance=recipe.balance,
        leaky=recipe.leaky,
        strict=recipe.strict,
        near_duplicates=recipe.near_duplicates,
        seed=recipe.seed,
        settings=recipe.set,
        gate=recipe.gate,
        jobs=recipe.jobs,
        select=recipe.select,
        tune=recipe.tune,
        tuner=recipe.tuner,
        ablate=recipe.ablate,
        reports=recipe.reports,
        again=again,
        fitted=fitted,
        cache=recipe.cache,
    )


def run(recipe: Recipe | str | Path) -> Comparison:
    """Extract what the cache lacks, then fit and compare: the whole experiment.

    Parameters
    ----------
    recipe : Recipe, or a path to a YAML file

    Returns
    -------
    Comparison
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    return compare_for(recipe, extract_for(recipe))
