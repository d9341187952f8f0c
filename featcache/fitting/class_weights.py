"""How much a row of each class counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_class_weight

from featcache.errors import RecipeError

_REMEDY = 'Give "balanced", or a weight above 0 for each label: {"cat": 1, "dog": 3}.'


def class_weights(
    class_weight: str | Mapping[Any, float] | None, classes: NDArray[Any], y: NDArray[Any]
) -> NDArray[np.float64] | None:
    """The weights of `classes` (float64, in their order), or None for none.

    Parameters
    ----------
    class_weight : None, "balanced" or mapping
        "balanced": n / (classes * rows of the class); a mapping gives labels their weights, and
        1 to the labels it leaves out.
    classes : array of labels
    y : array of labels of shape (n,)

    Raises
    ------
    RecipeError
        For anything else, or weights that are not above 0.
    """
    if class_weight is None:
        return None
    named = dict(class_weight) if isinstance(class_weight, Mapping) else class_weight
    try:
        weights = compute_class_weight(named, classes=classes, y=y)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"class_weight is {class_weight!r}", _REMEDY) from error
    if not (np.isfinite(weights) & (weights > 0)).all():
        raise RecipeError(f"class_weight is {class_weight!r}", _REMEDY)
    return np.asarray(weights, dtype=np.float64)  # (classes,)
