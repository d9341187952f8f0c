"""Recipe: one YAML file is one experiment, from images to the comparison."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from featcache.errors import RecipeError, did_you_mean
from featcache.extraction.extract import Progress, fill_cache
from featcache.extraction.report import Report
from featcache.images.sources import open_images
from featcache.reporting.compare import Comparison, compare
from featcache.reporting.run_folder import Run
from featcache.store.cache import Cache

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
    weights: str = "auto"
    weights_dir: str | None = None
    layer: str = "penultimate"
    image_size: int | None = Field(default=None, ge=1)
    device: str = "auto"
    precision: str = "auto"
    engine: str = "auto"
    batch_size: int | str = "auto"
    workers: int | str = "auto"

    fusion: list[str] = Field(default=["concat"], min_length=1)
    head: list[str] = Field(default=["mlp"], min_length=1)
    singles: bool = True
    folds: int | None = Field(default=None, ge=2)
    test_split: bool | None = None
    seed: int = Field(default=0, ge=0)
    set: dict[str, Any] = {}
    gate: str = "refuse"
    jobs: int = Field(default=1, ge=1)

    cache: str = "cache"
    reports: str = "reports"

    @field_validator("backbone", "fusion", "head", mode="before")
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
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise RecipeError(f"{path} can't be read as YAML: {error}") from None
    if not isinstance(plain, dict) or not all(isinstance(key, str) for key in plain):
        raise RecipeError(f"{path} is no recipe", "It must map names to values: backbone: resnet18")
    return make_recipe({**plain, **changes}, str(path))


def make_recipe(plain: dict[str, Any], where: str = "the recipe") -> Recipe:
    """A recipe from plain values; `where` is named in errors."""
    try:
        return Recipe(**plain)
    except ValidationError as error:
        raise _explain(error, where) from None


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


def extract_for(recipe: Recipe, progress: Progress | None = None) -> Report:
    """The extraction that a recipe asks for."""
    images = open_images(
        recipe.data,
        name=recipe.name,
        data_root=recipe.data_root,
        group=recipe.group,
        cache=recipe.cache,
    )
    return fill_cache(
        images,
        backbone=recipe.backbone,
        weights=recipe.weights,
        weights_dir=recipe.weights_dir,
        layer=recipe.layer,
        image_size=recipe.image_size,
        device=recipe.device,
        precision=recipe.precision,
        engine=recipe.engine,
        batch_size=recipe.batch_size,
        workers=recipe.workers,
        cache=recipe.cache,
        progress=progress,
    )


def compare_for(recipe: Recipe, report: Report, fitted: Fitted | None = None) -> Comparison:
    """The comparison that a recipe asks for, on what `extract_for` has put into the cache."""
    store = Cache(recipe.cache)
    images = store.images(report.data)
    wanted = [f"{done.backbone}@{done.key.digest}" for done in report.outcomes]
    return compare(
        store.features(images, store.choose(report.data, wanted)),
        fusion=recipe.fusion,
        head=recipe.head,
        singles=recipe.singles,
        folds=recipe.folds,
        test_split=recipe.test_split,
        seed=recipe.seed,
        settings=recipe.set,
        gate=recipe.gate,
        jobs=recipe.jobs,
        reports=recipe.reports,
        fitted=fitted,
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
