"""The images that a recipe is about."""

from __future__ import annotations

import re
from pathlib import Path

from featcache.images.manifest import Images, subsample
from featcache.images.remote import is_url
from featcache.images.sources import SOURCES, open_images
from featcache.recipe.schema import Recipe


def images_of(recipe: Recipe, rehash: bool = False) -> Images:
    """The images that a recipe is about."""
    images = open_images(
        recipe.data,
        name=recipe.name,
        data_root=recipe.data_root,
        group=recipe.group,
        cache=recipe.cache,
        rehash=rehash,
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
