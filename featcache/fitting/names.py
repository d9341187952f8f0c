"""Names: fusions, heads, selections and settings, checked before anything is imported for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from featcache.errors import RecipeError, did_you_mean, unknown
from featcache.fitting.fusions import FUSIONS
from featcache.fitting.heads import HEADS
from featcache.fitting.registry import LazyClass

_SELECTION = "featcache.fitting.selection:"
SELECTIONS: dict[str, Callable[..., Any]] = {
    "variance": LazyClass(f"{_SELECTION}BestColumns", criterion="variance", standardise=True),
    "anova": LazyClass(f"{_SELECTION}BestColumns", criterion="anova"),
    "mutual": LazyClass(f"{_SELECTION}BestColumns", criterion="mutual"),
    "pca": LazyClass(f"{_SELECTION}PrincipalComponents"),
    "nsga": LazyClass(f"{_SELECTION}NSGASelection"),
}


def check_names(
    fusion: Sequence[str],
    head: Sequence[str],
    settings: Mapping[str, Any] | None = None,
    select: str = "",
) -> None:
    """Refuse misspelt names and settings without importing a class.

    Parameters of scikit-learn's own classes, and what depends on which fusion meets which head, are
    left to `make_classifier`.

    Parameters
    ----------
    fusion, head : sequence of str
    settings : mapping, optional
        See `make_classifier`.
    select : str, default ""

    Raises
    ------
    UnknownName
        For a fusion, head or selection that is not registered.
    RecipeError
        For a setting that nothing has.
    """
    for kind, names, known in (("fusion", fusion, FUSIONS), ("head", head, HEADS)):
        for name in names:
            if name not in known:
                raise unknown(kind, name, known)
    chosen = select.partition(":")[0]
    if chosen and chosen not in SELECTIONS:
        raise unknown("selection", chosen, SELECTIONS)
    for key in settings or {}:
        _check_setting(key, fusion, head)


def as_numbers(value: Any) -> Any:
    """A setting as YAML reads it, with 1e-5, which YAML 1.1 takes for text, as a number."""
    if isinstance(value, list):
        return [as_numbers(one) for one in value]
    if isinstance(value, dict):
        return {key: as_numbers(one) for key, one in value.items()}
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value


def _check_setting(key: str, fusion: Sequence[str], head: Sequence[str]) -> None:
    where, _, parameter = key.partition(".")
    if where not in {"fusion", "head", "select", *FUSIONS, *HEADS} or not parameter:
        raise belongs_to_nothing(key, ("fusion", "head"))
    registered = FUSIONS if where == "fusion" or where in FUSIONS else HEADS
    meant = {"fusion": fusion, "head": head, "select": ()}.get(where, (where,))
    for name in meant:
        maker = registered[name]
        known = maker.parameters() if isinstance(maker, LazyClass) else None
        if known is None or parameter.partition(".")[0] in known:
            return  # "fusion.dim" may be meant for one of several
    if meant:
        raise has_no_parameter(key, maker.__name__, known or ())


def belongs_to_nothing(key: str, roles: Iterable[str]) -> RecipeError:
    """The error for a setting of what is no role, fusion or head."""
    known = [*roles, *FUSIONS, *HEADS]
    return RecipeError(
        f"setting {key!r} belongs to nothing",
        f"{did_you_mean(key.partition('.')[0], known)} Write head.NAME, fusion.NAME, or the name "
        "of a head or fusion and its parameter.",
    )


def has_no_parameter(key: str, class_name: str, known: Iterable[str]) -> RecipeError:
    """The error for a setting that a class has not."""
    parameter = key.partition(".")[2]
    return RecipeError(
        f"setting {key!r}: {class_name} has no parameter {parameter!r}",
        did_you_mean(parameter, known),
    )
