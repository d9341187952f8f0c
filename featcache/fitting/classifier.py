"""One sklearn pipeline from a fusion, a head and the settings of both."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from sklearn.base import clone
from sklearn.pipeline import Pipeline

from featcache.errors import RecipeError, did_you_mean, unknown
from featcache.fitting.fusion import FUSIONS, ConcatFusion
from featcache.fitting.heads import HEADS

log = logging.getLogger("featcache")

# Where the joint attention + mlp keeps the parameters of the attention module.
_JOINT = {"dim": "dim", "heads": "heads", "dropout": "attention_dropout"}

_NAMES = {
    "ConcatFusion": "concat",
    "AttentionFusion": "attention",
    "MLPHead": "mlp",
    "SVMHead": "svm",
    "XGBHead": "xgboost",
    "LogisticRegression": "logreg",
}


def make_classifier(
    fusion: Any = "concat",
    head: Any = "mlp",
    *,
    blocks: Sequence[int] | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> Pipeline:
    """A pipeline with the steps "fusion" and "head".

    "attention" with "mlp" is trained jointly: the "fusion" step standardises the columns and the
    "head" step holds attention and perceptron. Any other fusion is fitted before its head.

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
        is; "mlp.hidden" or "attention.dim" only where that one is used.

    Returns
    -------
    Pipeline

    Raises
    ------
    UnknownName
        For a fusion or head that is not registered.
    RecipeError
        For a setting that nothing here has.
    """
    joint = fusion == "attention" and head == "mlp"
    steps = {"fusion": _named_fusion(fusion, seed), "head": _named_head(head, seed)}
    if joint:
        steps["fusion"] = ConcatFusion()
        steps["head"].set_params(fusion="attention")
    names = {"fusion": fusion, "head": head}
    for key, value in (settings or {}).items():
        _apply(steps, names, key, value, joint)
    return with_blocks(Pipeline(list(steps.items())), blocks)


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
    steps = dict(classifier.steps) if isinstance(classifier, Pipeline) else {}
    head = steps.get("head", classifier)
    fusion = type(steps["fusion"]).__name__ if "fusion" in steps else "none"
    if getattr(head, "fusion", None) == "attention":
        fusion = "attention"
    kind = type(head).__name__
    return _NAMES.get(fusion, fusion), _NAMES.get(kind, kind)


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


def _apply(steps: dict[str, Any], names: dict[str, Any], key: str, value: Any, joint: bool) -> None:
    """Put one setting into the step that it belongs to, if any."""
    where, _, parameter = key.partition(".")
    role = where if where in steps else "fusion" if where in FUSIONS else "head"
    if where not in {*steps, *FUSIONS, *HEADS} or not parameter:
        raise RecipeError(
            f"setting {key!r} belongs to nothing",
            did_you_mean(where, [*steps, *FUSIONS, *HEADS])
            + " Write head.NAME, fusion.NAME, or the name of a head or fusion and its parameter.",
        )
    if where not in steps and where != names[role]:
        # Not this candidate's; but a misspelt parameter is an error in all of them.
        _check(_named_fusion(where, 0) if role == "fusion" else _named_head(where, 0), key)
        return
    if not joint or role == "head":
        _set(steps[role], key, parameter.replace(".", "__"), value)
        return
    if where == "attention":
        _check(_named_fusion(where, 0), key)
        if parameter not in _JOINT:
            log.warning(
                "%s has no effect with mlp: both are trained in one loop, see mlp.%s",
                key,
                parameter,
            )
            return
    elif parameter not in _JOINT:
        raise RecipeError(
            f"setting {key!r}: attention trained jointly with mlp has no {parameter!r} of its own",
            f"{did_you_mean(parameter, _JOINT)} The training loop is the head's: head.NAME.",
        )
    _set(steps["head"], key, _JOINT[parameter], value)


def _check(step: Any, key: str) -> None:
    parameter = key.partition(".")[2]
    known = step.get_params(deep=True)
    if parameter.replace(".", "__") not in known:
        raise RecipeError(
            f"setting {key!r}: {type(step).__name__} has no parameter {parameter!r}",
            did_you_mean(parameter, [name.replace("__", ".") for name in known]),
        )


def _set(step: Any, key: str, parameter: str, value: Any) -> None:
    """Set a parameter; text becomes a number where the parameter is one.

    YAML reads 1e-3 as text: it wants 1.0e-3.
    """
    known = step.get_params(deep=True)
    if parameter not in known:
        _check(step, key)
    before = known[parameter]
    if isinstance(value, str) and isinstance(before, (int, float)) and not isinstance(before, bool):
        try:
            value = float(value)
        except ValueError:
            raise RecipeError(
                f"setting {key!r} is {value!r}, not a number", f"The default is {before!r}."
            ) from None
    step.set_params(**{parameter: value})
