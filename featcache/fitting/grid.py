"""The candidates of a comparison: which backbones, fused how, under which head."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from featcache.errors import RecipeError, UnknownName, unknown
from featcache.fitting.fold import fit_clone
from featcache.fitting.fusions import FUSIONS
from featcache.fitting.heads import HEADS
from featcache.fitting.pipeline import is_late, make_classifier, with_blocks
from featcache.fitting.splits import Rows
from featcache.hashing import sha256_array, sha256_json
from featcache.store.features import Features, take


@dataclass(frozen=True)
class Candidate:
    """Backbones, a fusion and a head by name; a selection of columns and a search, if any.

    Attributes
    ----------
    backbones : tuple of str
    fusion, head : str
        Names in `FUSIONS` and `HEADS`, or the `short_name` of an object in `own`.
    select : str, default ""
        See `selection.make_selection`.
    tune : int, default 0
        Settings to try, see `tuning`.
    tuner : str, default "random"
    refit : int, default 0
        Added to the seed: the same candidate with another one.
    own : mapping of "fusion" or "head" to an sklearn estimator, default {}
        Objects of the user's in place of a registered name. They are cloned before each fit.
    """

    backbones: tuple[str, ...]
    fusion: str
    head: str
    select: str = ""
    tune: int = 0
    tuner: str = "random"
    refit: int = 0
    own: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def name(self) -> str:
        """For instance "resnet18+mobilenet_v2.concat.mlp", or "….concat.anova-256.mlp.tuned-20"."""
        parts = ["+".join(self.backbones), self.fusion, self.select.replace(":", "-"), self.head]
        return ".".join([part for part in parts if part] + [f"tuned-{self.tune}"] * (self.tune > 0))

    @property
    def options(self) -> dict[str, Any]:
        """What a run's digest and its settings hold beside the names; {} without any."""
        found: dict[str, Any] = {"select": self.select} if self.select else {}
        return found | ({"tune": self.tune, "tuner": self.tuner} if self.tune else {})

    def identity(self, role: str) -> Any:
        """What a run's digest holds of its "fusion" or "head": the name, or an object's identity.

        See `identity`.
        """
        return identity(self.own[role]) if role in self.own else getattr(self, role)


def candidates(
    names: Sequence[str],
    fusion: Sequence[Any],
    head: Sequence[Any],
    singles: bool = True,
    ablate: bool = False,
) -> list[Candidate]:
    """Every fusion under every head on all backbones, then each backbone alone.

    Parameters
    ----------
    names : sequence of str
        The backbones.
    fusion, head : sequence of str or sklearn estimator
        Names in `FUSIONS` and `HEADS`, or objects: transformers that may have a parameter `blocks`
        as fusions, classifiers as heads.
    singles : bool, default True
        With several backbones, add each alone under every head, as "concat": one block has
        nothing to fuse with.
    ablate : bool, default False
        Add, for every fusion and head, all backbones but one; of two, that is each alone.

    Returns
    -------
    list of Candidate
        Without repeats, in the order given.

    Raises
    ------
    UnknownName
        For a fusion or head that is not registered.
    RecipeError
        For an object that is no estimator, or two of one name.
    """
    fusions = _by_name("fusion", fusion, FUSIONS)
    heads = _by_name("head", head, HEADS)

    def under_heads(backbones: Sequence[str], over: Mapping[str, Any]) -> list[Candidate]:
        pairs = [(one, under) for one in over for under in heads]
        return [
            Candidate(tuple(backbones), one, under, own=_own(over[one], heads[under]))
            for one, under in pairs
        ]

    made = under_heads(names, fusions)
    if ablate and len(names) > 2:
        for out in names:
            made += under_heads([name for name in names if name != out], fusions)
    if (singles or (ablate and len(names) == 2)) and len(names) > 1:
        for name in names:
            made += under_heads([name], {"concat": None})
    return list(dict.fromkeys(made))


def _by_name(kind: str, values: Sequence[Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """What is asked for, by name: None for a registered one, else the object."""
    if not values:
        raise UnknownName(f"no {kind} named", f"Known: {', '.join(known)}.")
    found: dict[str, Any] = {}
    for one in values:
        if isinstance(one, str):
            if one not in known:
                raise unknown(kind, one, known)
            found[one] = None
            continue
        _check_object(kind, one)
        name = short_name(one)
        if name in known:
            raise RecipeError(
                f"{type(one).__name__} is the name of a {kind} of featcache's",
                "Give your class another.",
            )
        if name in found and identity(found[name]) != identity(one):
            classes = " and ".join(identity(each)["class"] for each in (found[name], one))
            raise RecipeError(
                f"two {kind}s are called {name}: {classes}", "Give one of the classes another name."
            )
        found[name] = one
    return found


def _check_object(kind: str, one: Any) -> None:
    """Refuse what can't be fitted in the place of a fusion or head."""
    if inspect.isclass(one):
        raise RecipeError(
            f"the {kind} {one.__name__} is a class", f"Pass an object: {one.__name__}()."
        )
    late = kind == "fusion" and is_late(one)
    needed = ("fit", "predict") if kind == "head" or late else ("fit", "transform")
    lacking = [name for name in ("get_params", *needed) if not hasattr(one, name)]
    if lacking:
        what = "classifier" if needed[1] == "predict" else "transformer"
        raise RecipeError(
            f"the {kind} {str(one)[:60]} has no {' and no '.join(lacking)}",
            f"Pass a name, or an object that is a scikit-learn {what}.",
        )


def _own(fusion: Any, head: Any) -> dict[str, Any]:
    pairs = (("fusion", fusion), ("head", head))
    return {role: one for role, one in pairs if one is not None}


def classifier_of(
    candidate: Candidate, seed: int = 0, settings: Mapping[str, Any] | None = None
) -> Any:
    """The unfitted classifier of a candidate, see `make_classifier`."""
    return make_classifier(
        candidate.own.get("fusion", candidate.fusion),
        candidate.own.get("head", candidate.head),
        seed=seed + candidate.refit,
        settings=settings,
        select=candidate.select,
        tune=candidate.tune,
        tuner=candidate.tuner,
    )


def takes_seed(classifier: Any, other: Any) -> bool:
    """Whether two classifiers of a candidate, made with two seeds, differ."""
    first, second = (
        {n: v for n, v in one.get_params(deep=True).items() if n.endswith("random_state")}
        for one in (classifier, other)
    )
    return first != second


def fit_candidate(
    candidate: Candidate,
    features: Features,
    rows: Rows | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    groups: Rows | None = None,
) -> Any:
    """A candidate's classifier, fitted on these rows of the features, or on all.

    Rows that share a number of `groups` (n,) belong together, see `fit_with_routing`.

    `features` hold the candidate's backbones and no others.
    """
    classifier = classifier_of(candidate, seed, settings)
    ready = with_blocks(classifier, features.blocks)
    if rows is None:
        return fit_clone(ready, features.X, features.y, groups)
    mine = None if groups is None else groups[rows]
    return fit_clone(ready, take(features.X, rows), features.y[rows], mine)


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
