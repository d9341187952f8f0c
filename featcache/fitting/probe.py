"""Probe: fit a classifier for a moment on a little noise, to hear what it says of its settings."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from featcache.errors import FeatcacheError, RecipeError, UnknownName, first_line
from featcache.fitting.classifier import describe, with_blocks

_ROWS, _CLASSES, _WIDTH = 64, 4, 8
_SHORT = ("epochs", "n_estimators", "generations", "population")


def probe(classifier: Any, backbones: int = 2) -> None:
    """Refuse a classifier with a setting out of range, before there is anything to fit it on.

    It is fitted for one epoch, on 64 rows of noise. What it says of so few rows is no error.

    Parameters
    ----------
    classifier : Pipeline
        From `make_classifier`; not changed.
    backbones : int, default 2
        Blocks of columns.

    Raises
    ------
    RecipeError, UnknownName
        What the fit says of a setting.
    """
    short = {
        name: 2 if name.endswith("population") else 1
        for name, value in classifier.get_params(deep=True).items()
        if name.rpartition("__")[2] in _SHORT and type(value) is int and value > 1
    }
    ready = with_blocks(classifier, (_WIDTH,) * backbones).set_params(**short)
    rng = np.random.default_rng(0)
    y = np.arange(_ROWS) % _CLASSES
    X = rng.normal(size=(_ROWS, _WIDTH * backbones)).astype(np.float32) + y[:, None]  # (n, d)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ready.fit(X, y.astype(np.str_))
        except (RecipeError, UnknownName):
            raise
        except (FeatcacheError, ValueError, TypeError) as error:
            if not _is_about_settings(error):
                return
            head = describe(classifier)[1]
            raise RecipeError(
                f"{head} can't be fitted: {first_line(error)}",
                "Check its settings: --set NAME=VALUE.",
            ) from error


def _is_about_settings(error: Exception) -> bool:
    """Whether it comes of a parameter's value, whatever the rows; by what sklearn and XGBoost say.

    Their own types of error can't be imported from any public place.
    """
    return type(error).__name__ in ("InvalidParameterError", "XGBoostError", "TypeError")
