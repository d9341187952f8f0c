"""featcache: extract once, compare everything."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featcache.errors import FeatcacheError
    from featcache.extraction.backbone import Backbone
    from featcache.extraction.engine import Engine, open_engine
    from featcache.extraction.extract import extract, fill_cache
    from featcache.extraction.preprocess import Preprocess
    from featcache.extraction.registry import BACKBONES, open_backbone
    from featcache.finetuning.finetune import finetune
    from featcache.fitting.evaluate import Result, evaluate
    from featcache.fitting.fusions import FUSIONS
    from featcache.fitting.heads import HEADS
    from featcache.fitting.pipeline import make_classifier
    from featcache.images.manifest import Images
    from featcache.images.sources import SOURCES, open_images
    from featcache.prediction.model import Model, load_model
    from featcache.recipe import Recipe, load_recipe, run
    from featcache.reporting.compare import Comparison, compare
    from featcache.store.cache import Cache
    from featcache.store.features import Features, join
    from featcache.store.importing import import_features
    from featcache.store.key import Key

# Where each public name lives; imported when first used, so that `import featcache` is light.
_HOMES = {
    "errors": ("FeatcacheError",),
    "extraction.backbone": ("Backbone",),
    "extraction.engine": ("Engine", "open_engine"),
    "extraction.extract": ("extract", "fill_cache"),
    "extraction.preprocess": ("Preprocess",),
    "extraction.registry": ("BACKBONES", "open_backbone"),
    "finetuning.finetune": ("finetune",),
    "fitting.pipeline": ("make_classifier",),
    "fitting.evaluate": ("Result", "evaluate"),
    "fitting.fusions": ("FUSIONS",),
    "fitting.heads": ("HEADS",),
    "images.manifest": ("Images",),
    "images.sources": ("SOURCES", "open_images"),
    "prediction.model": ("Model", "load_model"),
    "recipe": ("Recipe", "load_recipe", "run"),
    "reporting.compare": ("Comparison", "compare"),
    "store.cache": ("Cache",),
    "store.features": ("Features", "join"),
    "store.importing": ("import_features",),
    "store.key": ("Key",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [  # noqa: RUF022  (by kind, as a reader looks for them)
    "open_images", "extract", "join", "make_classifier", "evaluate", "compare", "finetune", "run",
    "load_model",
    "Images", "Preprocess", "Backbone", "Engine", "Key", "Cache", "Features", "Result",
    "Comparison", "Model", "Recipe", "FeatcacheError",
    "SOURCES", "BACKBONES", "FUSIONS", "HEADS",
    "fill_cache", "import_features", "load_recipe", "open_backbone", "open_engine",
]  # fmt: skip
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'featcache' has no attribute {name!r}")
    return getattr(importlib.import_module(f"featcache.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
