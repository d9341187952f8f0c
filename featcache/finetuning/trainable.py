"""Trainable: which backbones can be fine-tuned."""

from __future__ import annotations

from collections.abc import Sequence

from featcache.errors import RecipeError
from featcache.extraction.backbone import PENULTIMATE, Backbone


def check_trainable(backbones: Sequence[Backbone]) -> None:
    """Refuse what only extraction can do.

    Raises
    ------
    RecipeError
        For a layer inside the network, a filter or another colour space: training images are
        augmented in RGB, and pass through the whole network. For one architecture twice: the
        tuned weights are kept by its name.
    """
    for one in backbones:
        asked = {
            "layer": one.layer != PENULTIMATE,
            "filter": bool(one.preprocess.filters),
            "colour": one.preprocess.colour != "RGB",
        }
        for option in (name for name, odd in asked.items() if odd):
            raise RecipeError(
                f"{one.name} can't be fine-tuned with an option {option!r}",
                f"Leave {option} out; features with it are compared by featcache compare.",
            )
    names = [one.name for one in backbones]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(
                f"{name} can't be fine-tuned twice in one network", "Name each backbone once."
            )
