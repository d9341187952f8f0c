"""Identity: what tells one estimator object from another, as plain values and as a short name."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

import numpy as np

from featcache.errors import RecipeError
from featcache.hashing import sha256_array, sha256_json

_LONGEST = 40  # characters of the parameters in a short name
_SAFE = re.compile(r"[\w.,=+-]+")  # in a folder's name, and in a shell


def identity(estimator: Any) -> dict[str, Any]:
    """The qualified name of an estimator's class and its parameters, as JSON can hold them.

    The code of the class is not in it: a class that was edited has the identity that it had.

    Parameters
    ----------
    estimator : sklearn estimator

    Returns
    -------
    dict
        `class`, and `params` as `get_params` gives them; an array is its sha256.

    Raises
    ------
    RecipeError
        For a parameter that has no name or value to tell it from another.
    """
    kind = type(estimator)
    params = {
        name: _plain(value, f"parameter {name!r} of {kind.__name__}")
        for name, value in sorted(estimator.get_params(deep=False).items())
    }
    return {"class": f"{kind.__module__}.{kind.__qualname__}", "params": params}


def short_name(estimator: Any) -> str:
    """The class's name, and behind it the parameters that differ from its defaults.

    For instance "GaussianNB", or "SVC-C=3,kernel=linear"; of parameters that are too long or
    no plain words, a digest: "SVC-1f0c29d4".
    """
    name, params = type(estimator).__name__, identity(estimator)["params"]
    try:
        defaults = identity(type(estimator)())["params"]
    except TypeError:  # a parameter that has no default
        defaults = {}
    changed = {k: v for k, v in params.items() if k not in defaults or v != defaults[k]}
    if not changed:
        return name
    text = ",".join(f"{k}={v}" for k, v in changed.items())
    short = len(text) <= _LONGEST and _SAFE.fullmatch(text)
    return f"{name}-{text if short else sha256_json(changed)[:8]}"


def _plain(value: Any, what: str) -> Any:
    """A parameter's value as JSON can hold it."""
    if isinstance(value, np.ndarray) and value.dtype != object:
        return {"array": sha256_array(value)}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(one, what) for one in value]
    if isinstance(value, dict):
        return {str(name): _plain(one, what) for name, one in value.items()}
    if hasattr(value, "get_params") and not inspect.isclass(value):
        return identity(value)
    named = inspect.isclass(value) or inspect.isroutine(value) or isinstance(value, np.ufunc)
    name = str(getattr(value, "__qualname__", None) or getattr(value, "__name__", ""))
    if named and "<" not in name:
        return f"{getattr(value, '__module__', None) or 'numpy'}.{name}"
    raise RecipeError(
        f"{what} is {str(value)[:60]}: nothing tells it from another, so its run could not be "
        "told from another's",
        "Use numbers, text, lists of them, arrays, estimators, or functions that have a name.",
    )
