"""The experiment: extract, compare by every protocol, and fine-tune if asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from featcache.errors import RecipeError, counted
from featcache.extraction.extract import Embed, embed_here, fill_cache
from featcache.extraction.report import Report
from featcache.extraction.task import Progress
from featcache.fitting.executor import Executor
from featcache.fitting.grid import candidates
from featcache.images.files import KINDS
from featcache.recipe.checks import (
    check_finetune,
    check_here,
    check_recipe,
    fusion_of,
    options_of,
    sets_of,
    settings_of,
    trainings_of,
    wishes_of,
)
from featcache.recipe.loading import load_recipe
from featcache.recipe.schema import Recipe, honest, images_of, missing_path, protocols_of
from featcache.reporting.compare import Comparison, compare
from featcache.reporting.schema import Run
from featcache.store.cache import Cache
from featcache.store.memory_budget import load

_OF_EXTRACTION = (
    "backbone", "view", "device", "precision", "engine", "batch_size", "workers", "max_failures",
    "retry_failed", "cache",
)  # fmt: skip
_OF_COMPARISON = (
    "fusion", "head", "singles", "folds", "test_split", "repeats", "balance", "leaky", "strict",
    "near_duplicates", "seed", "gate", "jobs", "select", "tune", "tuner", "ablate", "calibrate",
    "seeds", "metric", "positive", "reports", "cache",
)  # fmt: skip

Fitted = Callable[[int, int, Run], None]


def extract_for(
    recipe: Recipe,
    progress: Progress | None = None,
    rehash: bool = False,
    wait: bool = False,
    embed: Embed = embed_here,
) -> Report:
    """The extraction that a recipe asks for, views included; the rest as in `fill_cache`."""
    check_recipe(recipe)
    check_here(recipe)
    options = {name: getattr(recipe, name) for name in _OF_EXTRACTION}
    options |= vars(recipe.backbone_options)
    images = images_of(recipe, rehash)
    return fill_cache(images, progress=progress, wait=wait, embed=embed, **options)


def compare_for(
    recipe: Recipe,
    report: Report,
    fitted: Fitted | None = None,
    again: bool = False,
    protocol: str = "",
    crew: Executor | None = None,
    pictures: bool = True,
) -> Comparison:
    """The comparison that a recipe asks for, on what `extract_for` has put into the cache.

    Parameters
    ----------
    recipe : Recipe
    report : Report
        From `extract_for` of the same recipe.
    fitted : callable, optional
        Called after each candidate with its number, how many there are, and its run.
    again : bool, default False
        Fit even what was run before.
    protocol : str, default ""
        One of the recipe's protocols; "" for a recipe that has none.
    crew : Executor, optional
        Who fits, in place of the recipe's `jobs`; see `compare`.
    pictures : bool, default True
        Show some of the test images in report.html.
    """
    tested = protocols_of(recipe)[protocol]
    # Backbones come first, in the recipe's order; their views after them.
    plain = report.outcomes[: len(recipe.backbone)]
    selector = {
        spec: f"{one.key.backbone}@{one.key.digest}"
        for spec, one in zip(recipe.backbone, plain, strict=True)
    }
    store = Cache(recipe.cache)
    entries = store.choose(report.data, [selector[spec] for spec in tested.backbone])
    return compare(
        load(store, store.images(report.data), entries, tested.view, tested.memory, tested.jobs),
        group=tested.group if tested.group in KINDS else None,
        settings=tested.set,
        again=again,
        fitted=fitted,
        protocol=protocol,
        crew=crew,
        pictures=pictures,
        **{name: getattr(tested, name) for name in _OF_COMPARISON},
    )


def compare_all(
    recipe: Recipe,
    report: Report,
    fitted: Fitted | None = None,
    again: bool = False,
) -> dict[str, Comparison]:
    """`compare_for` by each protocol in turn; a recipe without any has one, called ""."""
    return {name: compare_for(recipe, report, fitted, again, name) for name in protocols_of(recipe)}


def finetune_for(recipe: Recipe, again: bool = False, command: str = "") -> list[Run]:
    """Fine-tune as a recipe asks: on its images, split as by its first protocol that is not leaky.

    Parameters
    ----------
    recipe : Recipe
        With `finetune`.
    again : bool, default False
        Train even what was trained before.
    command : str, default ""
        What makes it run again, for run.json.

    Returns
    -------
    list of Run
        For each mapping of `finetune` in turn: its `networks`; or each backbone alone, where
        `singles` is asked for, and all together.

    Raises
    ------
    RecipeError
        For a recipe without `finetune`, or with one that can't be followed.
    """
    from featcache.finetuning.finetune import finetune

    check_finetune(recipe)
    tested = honest(recipe)
    if recipe.finetune is None or tested is None:
        raise RecipeError(
            "the recipe says nothing of fine-tuning", "Add for instance finetune: {epochs: 8}"
        )
    images = images_of(recipe)
    done: list[Run] = []
    for training in trainings_of(recipe):
        wishes, fusion = wishes_of(training), fusion_of(training, tested)
        keywords: dict[str, Any] = {
            name: wishes.get(name, getattr(recipe, name))
            for name in ("device", "precision", "image_size")
        }
        keywords |= {name: wishes[name] for name in ("warm_start", "minutes") if name in wishes}
        done += [
            finetune(
                images,
                backbone=names,
                weights=recipe.weights,
                weights_dir=recipe.weights_dir,
                fusion=fusion,
                settings=settings_of(tested, fusion),
                options=options_of(training),
                folds=tested.folds,
                test_split=tested.test_split,
                group=tested.group if tested.group in KINDS else None,
                seed=tested.seed,
                workers=recipe.workers,
                cache=recipe.cache,
                reports=recipe.reports,
                again=again,
                command=command,
                **keywords,
            )
            for names in sets_of(training, tested)
        ]
    return done


def run(recipe: Recipe | str | Path) -> Comparison:
    """Extract what the cache lacks, then fit and compare: the whole experiment.

    Fine-tuning is for `finetune_for` and the command line.

    Parameters
    ----------
    recipe : Recipe, or a path to a YAML file

    Returns
    -------
    Comparison
        With several protocols the runs of all, one protocol after another, those that leak last;
        `best` hence is of one that does not, where there is such a one.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    done = compare_all(recipe, extract_for(recipe))
    if len(done) == 1:
        return next(iter(done.values()))
    leaky = {name: one.leaky for name, one in protocols_of(recipe).items()}
    return Comparison([run for name in sorted(done, key=lambda n: leaky[n]) for run in done[name]])


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
    lines += [_training(one) for one in trainings_of(recipe)]
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
    tuned += f", each with {recipe.seeds} seeds" if recipe.seeds > 1 else ""
    what = f"{head}{counted(count, 'candidate')}"
    if recipe.test_split:
        return f"{what} on the data's test split = {counted(count, 'fit')}{tuned}"
    line = f"{what} x {folds} folds = {count * folds:,} fits{tuned}"
    if recipe.folds is None and recipe.test_split is None:
        line += f"; {count} where the data has a test split"
    return line


def _training(recipe: Recipe) -> str:
    tested = honest(recipe) or recipe
    options, sets = options_of(recipe), sets_of(recipe, tested)
    return (
        f"fine-tune, if --finetune is given (it takes a GPU): "
        f"{', '.join('+'.join(names) for names in sets)} with {fusion_of(recipe, tested)}, "
        f"{counted(options.epochs, 'epoch')}, {options.freeze_epochs} of them frozen"
    )
