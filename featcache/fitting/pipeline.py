"""One sklearn pipeline from a fusion, a head and the settings of both."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from featcache.errors import (
    FeatcacheError,
    RecipeError,
    UnknownName,
    did_you_mean,
    first_line,
    unknown,
)
from featcache.fitting.fusions import FUSIONS
from featcache.fitting.fusions.concat import ConcatFusion
from featcache.fitting.heads import HEADS
from featcache.fitting.names import belongs_to_nothing, has_no_parameter
from featcache.fitting.registry import name_of, search_space
from featcache.fitting.selection import make_selection
from featcache.fitting.tuning import TunedClassifier, check_tuning

log = logging.getLogger("featcache")


def make_classifier(
    fusion: Any = "concat",
    head: Any = "mlp",
    *,
    blocks: Sequence[int] | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    select: str = "",
    tune: int = 0,
    tuner: str = "random",
) -> Any:
    """A pipeline with the steps "fusion" and "head", and perhaps "select" between them.

    "attention", "gated" and "hadamard" with "mlp" are trained jointly: the "fusion" step
    standardises the columns and the "head" step holds fusion and perceptron. Before another head
    they are trained on the rows that it is then fitted on: its probabilities are too sure, and
    "logreg" and "ridge" have their usual penalty, since those rows can't choose one. A late fusion
    ("vote", "stack", or any with a parameter `head`) holds the head itself, so that "fusion" is the
    only step. Any other is fitted before its head.

    A selection of columns stands between fusion and head; in a late fusion, before each clone of
    the head. With one, these fusions are trained before "mlp", not jointly. Selecting by
    variance takes columns as "concat", "vote" and "stack" find them and standardises them after.

    Parameters
    ----------
    fusion : str or sklearn transformer, default "concat"
        A name in `FUSIONS`, or an object, which is cloned.
    head : str or sklearn classifier, default "mlp"
        A name in `HEADS`, or an object, which is cloned.
    blocks : sequence of int, default None
        Width of each backbone's block; None leaves it to `evaluate`, or means one block.
    seed : int, default 0
        The `random_state` of what goes by a name; objects keep theirs.
    settings : mapping, default None
        Parameters by dotted name: "head.hidden" or "fusion.dim" for whatever head or fusion this
        is; "mlp.hidden" or "attention.dim" only where that one is used; "select.amount".
    select : str, default ""
        See `selection.make_selection`, for instance "anova:256"; "" for none.
    tune : int, default 0
        Settings to try in an inner loop, see `tuning`; 0 for none.
    tuner : {"random", "optuna"}, default "random"

    Returns
    -------
    Pipeline; TunedClassifier around one where `tune` is above 0

    Raises
    ------
    UnknownName
        For a fusion or head that is not registered.
    RecipeError
        For a setting that nothing here has.
    """
    steps = {"fusion": _named_fusion(fusion, seed), "head": _named_head(head, seed)}
    spaces = {
        "fusion": search_space(fusion, steps["fusion"], FUSIONS),
        "head": search_space(head, steps["head"], HEADS),
    }
    named = isinstance(fusion, str) and isinstance(head, str)
    joint: Mapping[str, str] = {}  # of the fusion's parameters, those that the head has
    if named and not select and hasattr(steps["head"], "joint_network"):
        joint = getattr(steps["fusion"], "joint", {})
    if isinstance(head, str) and getattr(steps["fusion"], "joint", {}) and not joint:
        # The head sees vectors that were learned with the labels of the same rows: whatever it
        # holds out of them is no test of a penalty.
        steps["head"].set_params(**getattr(steps["head"], "usual", {}))
    if select:
        steps = {**steps, "select": make_selection(select, seed)}
        if select.startswith("variance") and "scale" in steps["fusion"].get_params():
            steps["fusion"].set_params(scale="none")
    if joint:
        own = {of_head: getattr(steps["fusion"], name) for name, of_head in joint.items()}
        steps["head"].set_params(fusion=fusion, **own)
        steps["fusion"] = ConcatFusion()
    names = {"fusion": fusion, "head": head}
    for key, value in (settings or {}).items():
        _apply(steps, names, key, value, joint)
    late = is_late(steps["fusion"])
    if late:
        under = Pipeline([(s, steps[s]) for s in ("select", "head")]) if select else steps["head"]
        steps = {"fusion": steps["fusion"].set_params(head=under)}
    order = [name for name in ("fusion", "select", "head") if name in steps]
    made = Pipeline([(name, steps[name]) for name in order])
    if not tune:
        return with_blocks(made, blocks)
    check_tuning(tune, tuner)
    inside = f"fusion__head__{'head__' if select else ''}" if late else "head__"
    space = _space(spaces, names, settings or {}, inside, joint)
    if select.startswith("variance"):
        space.pop("fusion__scale", None)  # standardised columns have no variance to select by
    tuned = TunedClassifier(made, space, tries=tune, tuner=tuner, random_state=seed)
    return with_blocks(tuned, blocks)


def _space(
    spaces: Mapping[str, Mapping[str, Any]],
    names: Mapping[str, Any],
    settings: Mapping[str, Any],
    inside: str,
    joint: Mapping[str, str],
) -> dict[str, Any]:
    """What to search for these names, under sklearn's parameter names; what is set is left out."""
    space = {}
    for role, searched in spaces.items():
        for parameter, what in searched.items():
            if {f"{role}.{parameter}", f"{names[role]}.{parameter}"} & set(settings):
                continue
            if role == "head":
                space[f"{inside}{parameter}"] = what
            elif not joint:
                space[f"fusion__{parameter}"] = what
            elif parameter in joint:
                space[f"{inside}{joint[parameter]}"] = what
    return space


def with_blocks(classifier: Any, blocks: Sequence[int] | None) -> Any:
    """A clone in which every `blocks` parameter that is None, at any depth, is `blocks`."""
    copy = clone(classifier)
    if blocks is not None:
        empty = [
            name
            for name, value in copy.get_params(deep=True).items()
            if name.rsplit("__", 1)[-1] == "blocks" and value is None
        ]
        copy.set_params(**dict.fromkeys(empty, tuple(blocks)))
    return copy


def describe(classifier: Any) -> tuple[str, str]:
    """The names of a classifier's fusion and head; the class's own where it is not registered.

    Without a step called "fusion", the fusion is "none".
    """
    if isinstance(classifier, TunedClassifier):
        return describe(classifier.estimator)
    steps = dict(classifier.steps) if isinstance(classifier, Pipeline) else {}
    fusion, head = steps.get("fusion"), steps.get("head", classifier)
    last = list(steps.values())[-1] if steps else classifier
    late = is_late(last)
    if late:
        fusion, head = last, last.head
        head = head.steps[-1][1] if isinstance(head, Pipeline) else head
    name = "none" if fusion is None else name_of(fusion, FUSIONS)
    joint = getattr(head, "fusion", None)
    if isinstance(joint, str) and joint in FUSIONS and hasattr(head, "joint_network") and not late:
        name = joint
    return name, "logreg" if head is None else name_of(head, HEADS)


def is_late(fusion: Any) -> bool:
    """Whether this is a classifier that holds the head, and not a transformer before it."""
    return hasattr(fusion, "get_params") and "head" in fusion.get_params(deep=False)


def _named_fusion(fusion: Any, seed: int) -> Any:
    if not isinstance(fusion, str):
        return clone(fusion)
    if fusion not in FUSIONS:
        raise unknown("fusion", fusion, FUSIONS)
    made = FUSIONS[fusion]()
    return made.set_params(random_state=seed) if "random_state" in made.get_params() else made


def _named_head(head: Any, seed: int) -> Any:
    if not isinstance(head, str):
        return clone(head)
    if head not in HEADS:
        raise unknown("head", head, HEADS)
    return HEADS[head](seed)


def _apply(
    steps: dict[str, Any], names: dict[str, Any], key: str, value: Any, joint: Mapping[str, str]
) -> None:
    """Put one setting into the step that it belongs to, if any."""
    where, _, parameter = key.partition(".")
    role = where if where in steps else "fusion" if where in FUSIONS else "head"
    if where == "select" and where not in steps:
        raise RecipeError(f"setting {key!r}: nothing is selected", "Add --select anova:256.")
    if where not in {*steps, *FUSIONS, *HEADS} or not parameter:
        raise belongs_to_nothing(key, steps)
    if where not in steps and where != names[role]:
        # Not this candidate's; but a misspelt parameter is an error in all of them.
        _check_other(where, role, key)
    elif not joint or role == "head":
        _set(steps[role], key, parameter.replace(".", "__"), value)
    else:
        _apply_joint(steps["head"], names, key, value, joint)


def _apply_joint(
    head: Any, names: dict[str, Any], key: str, value: Any, joint: Mapping[str, str]
) -> None:
    """Put one setting of a fusion into the head that it is trained jointly with."""
    where, _, parameter = key.partition(".")
    if parameter in joint:
        _set(head, key, joint[parameter], value)
        return
    if where == "fusion":
        raise RecipeError(
            f"setting {key!r}: {names['fusion']} trained jointly with {names['head']} has no "
            f"{parameter!r} of its own",
            f"{did_you_mean(parameter, joint)} The training loop is the head's: head.NAME.",
        )
    _check(_named_fusion(where, 0), key)
    log.warning(
        "%s has no effect with %s: both are trained in one loop, see %s.%s",
        key, names["head"], names["head"], parameter,
    )  # fmt: skip


def _check_other(name: str, role: str, key: str) -> None:
    """Check a setting of a fusion or head that the candidate has not."""
    try:
        step = _named_fusion(name, 0) if role == "fusion" else _named_head(name, 0)
    except FeatcacheError as error:  # its package is not installed, so its parameters are unknown
        log.debug("setting %r is not checked: %s", key, error.problem)
        return
    _check(step, key)


def _check(step: Any, key: str) -> None:
    parameter = key.partition(".")[2]
    known = step.get_params(deep=True)
    if parameter.replace(".", "__") not in known:
        raise has_no_parameter(
            key, type(step).__name__, [name.replace("__", ".") for name in known]
        )


def _set(step: Any, key: str, parameter: str, value: Any) -> None:
    """Set a parameter; text becomes a number where the parameter is one, or may be.

    YAML reads 1e-3 as text: it wants 1.0e-3.
    """
    known = step.get_params(deep=True)
    if parameter not in known:
        _check(step, key)
    before = known[parameter]
    number = isinstance(before, (int, float)) and not isinstance(before, bool)
    if isinstance(value, str) and (number or before is None):
        try:
            value = float(value)
        except ValueError:
            if number:
                raise RecipeError(
                    f"setting {key!r} is {value!r}, not a number", f"The default is {before!r}."
                ) from None
    step.set_params(**{parameter: value})


_ROWS, _CLASSES, _WIDTH = 64, 4, 8
_SHORT = ("epochs", "n_estimators", "generations", "population")


def smoke_fit(classifier: Any, backbones: int = 2) -> None:
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
