"""Booster file: is XGBoost's UBJ file one that XGBoost can follow? It doesn't look itself.

Format: https://ubjson.org and https://xgboost.readthedocs.io/en/stable/tutorials/saving_model.html
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NUMBERS = {"i": "i1", "U": "u1", "I": ">i2", "l": ">i4", "L": ">i8", "d": ">f4", "D": ">f8"}
_PLAIN = {"Z": None, "T": True, "F": False}
_DEEPEST = 16  # values inside of one another: XGBoost's are 7 deep
_HIGHEST = 1024  # levels of a tree: XGBoost goes down some by recursion

_NO_PARENT = 2**31 - 1

_INTEGERS = ("left_children", "right_children", "parents", "split_indices")
_FLOATS = ("base_weights", "split_conditions", "loss_changes", "sum_hessian")
_BYTES = ("default_left", "split_type")
_CATEGORIES = ("categories", "categories_nodes", "categories_segments", "categories_sizes")


def check_booster(data: bytes, width: int | None = None) -> None:
    """Hold a booster against what XGBoost takes for granted.

    Parameters
    ----------
    data : bytes
        A file that `XGBClassifier.save_model` wrote: trees, without categories.
    width : int, optional
        Columns of X, if they are known.

    Raises
    ------
    ValueError
        If an index leads out of its tree, a tree runs in circles, or sizes don't agree.
    """
    try:
        learner = _Reader(data).whole()["learner"]
        booster = learner["gradient_booster"]
        _need(booster["name"] == "gbtree", f"its booster {booster['name']!r}")
        features, classes = _check_learner(learner, width)
        trees = _check_forest(booster["model"], classes)
        for number, tree in enumerate(trees):
            try:
                _check_tree(tree, features)
            except ValueError as error:
                raise ValueError(f"tree {number}: {error}") from None
        best = learner["attributes"].get("best_iteration")
        _need(best is None or 0 <= _int(best) < len(trees) // classes, "its best round")
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"its structure: {type(error).__name__} {error}") from None


def _check_learner(learner: Mapping[str, Any], width: int | None) -> tuple[int, int]:
    """The columns of X, and the trees of a round."""
    facts, objective = learner["learner_model_param"], learner["objective"]
    features, classes = _int(facts["num_feature"]), _int(facts["num_class"])
    _need(width in (None, features), f"{features} columns in place of {width}")
    _need(0 < features < 2**31 and 0 <= classes < 2**31, "its columns or classes")
    _need(_int(facts.get("num_target", "1")) == 1, "its targets")
    bases = json.loads(facts["base_score"])
    bases = bases if isinstance(bases, list) else [bases]
    _need(len(bases) in (1, max(1, classes)), "its base scores")
    _need(all(math.isfinite(float(one)) for one in bases), "its base scores")
    multi = re.fullmatch(r"multi:soft(prob|max)", objective["name"]) is not None
    if multi:
        _need(
            _int(objective["softmax_multiclass_param"]["num_class"]) == classes > 1, "its classes"
        )
    else:
        _need(re.fullmatch(r"binary:\w+", objective["name"]) is not None, "its objective")
        _need(classes < 2, "its classes")
    _need(learner["feature_names"] == [] and learner["feature_types"] == [], "its features' names")
    attributes = learner["attributes"]
    _need(all(isinstance(text, str) for text in attributes.values()), "its attributes")
    return features, max(1, classes)


def _check_forest(model: Mapping[str, Any], classes: int) -> list[Any]:
    """The trees, as many as are promised, each of a class that is there."""
    trees, facts = model["trees"], model["gbtree_model_param"]
    _need(isinstance(trees, list) and len(trees) == _int(facts["num_trees"]), "its count of trees")
    _need(_int(facts["num_parallel_tree"]) == 1, "its parallel trees")
    rounds, rest = divmod(len(trees), classes)
    _need(rounds > 0 and not rest, "its rounds")
    _need(model["tree_info"] == list(range(classes)) * rounds, "its trees' classes")
    starts = list(range(0, len(trees) + 1, classes))
    _need(model.get("iteration_indptr", starts) == starts, "where its rounds begin")
    categories = model.get("cats", {})
    _need(not any(len(value) for value in categories.values()), "its categories")
    return list(trees)


def _check_tree(tree: Mapping[str, Any], features: int) -> None:
    facts = tree["tree_param"]
    nodes = _int(facts["num_nodes"])
    kinds = {"i": _INTEGERS, "f": _FLOATS, "u": _BYTES}
    for kind, names in kinds.items():
        for name in names:
            array = tree[name]
            _need(isinstance(array, np.ndarray) and array.dtype.kind == kind, f"its {name}")
            _need(len(array) == nodes > 0, f"the length of its {name}")
    _need(not any(len(tree[name]) for name in _CATEGORIES), "its categories")
    _need(not tree["split_type"].any(), "the type of a split")
    _need(_int(facts["num_feature"]) == features, "its columns")
    _need(_int(facts.get("size_leaf_vector", "0")) in (0, 1), "the size of its leaves")
    _need(0 <= _int(facts["num_deleted"]) < nodes, "its deleted nodes")
    left, right = tree["left_children"], tree["right_children"]  # (nodes,); -1 below a leaf
    for children in (left, right):
        _need(bool(((children >= -1) & (children < nodes) & (children != 0)).all()), "a child")
    inner = left != -1
    _need(bool((inner == (right != -1)).all()), "a node of one child")
    parents, rows = tree["parents"], np.flatnonzero(inner)
    _need(parents[0] == _NO_PARENT, "the parent of its root")
    _need(bool(((parents[1:] >= 0) & (parents[1:] < nodes)).all()), "a parent")
    _need(bool((parents[left[rows]] == rows).all() and (parents[right[rows]] == rows).all()),
          "the parent of a child")  # fmt: skip
    column = tree["split_indices"][inner]
    _need(bool(((column >= 0) & (column < features)).all()), "the column of a split")
    _check_shape(left, right)


def _check_shape(left: NDArray[Any], right: NDArray[Any]) -> None:
    """From the root down: whoever comes by more nodes than there are runs in circles."""
    level, seen, height = np.zeros(1, np.int64), 0, 0
    while len(level):
        seen, height = seen + len(level), height + 1
        _need(seen <= len(left) and height <= _HIGHEST, "nodes below themselves, or too many")
        level = np.concatenate([left[level], right[level]])
        level = level[level != -1]


def _int(text: Any) -> int:
    if not isinstance(text, str) or not re.fullmatch(r"-?[0-9]{1,10}", text):
        raise ValueError(f"{text!r} in place of a number")
    return int(text)


def _need(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"{what} can't be right")


class _Reader:
    """UBJSON as XGBoost writes it; every other way to write the same is refused."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def whole(self) -> Any:
        value = self._value(self._marker(), 0)
        _need(self._at == len(self._data), "what comes after its end")
        return value

    def _take(self, count: int) -> bytes:
        part = self._data[self._at : self._at + count]
        if count < 0 or len(part) < count:
            raise ValueError("it is cut short")
        self._at += count
        return part

    def _marker(self) -> str:
        return chr(self._take(1)[0])

    def _count(self) -> int:
        _need(self._marker() == "L", "a length")
        return int.from_bytes(self._take(8), "big", signed=True)

    def _text(self) -> str:
        return self._take(self._count()).decode("utf-8")

    def _value(self, marker: str, depth: int) -> Any:
        _need(depth < _DEEPEST, "its depth")
        if marker == "{":
            return self._object(depth)
        if marker == "[":
            return self._array(depth)
        if marker == "S":
            return self._text()
        if marker in _NUMBERS:
            return self._numbers(marker, 1)[0].item()
        _need(marker in _PLAIN, f"the mark {marker!r}")
        return _PLAIN[marker]

    def _object(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while self._data[self._at : self._at + 1] != b"}":
            name = self._text()
            _need(name not in found, f"a second {name!r}")
            found[name] = self._value(self._marker(), depth + 1)
        self._at += 1
        return found

    def _array(self, depth: int) -> Any:
        kind = self._marker()
        if kind == "$":
            of = self._marker()
            _need(of in _NUMBERS and self._marker() == "#", "an array")
            return self._numbers(of, self._count())
        _need(kind == "#", "an array")
        return [self._value(self._marker(), depth + 1) for _ in range(self._count())]

    def _numbers(self, marker: str, count: int) -> NDArray[Any]:
        dtype = np.dtype(_NUMBERS[marker])
        return np.frombuffer(self._take(count * dtype.itemsize), dtype)
