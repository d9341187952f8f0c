"""Persist: a fitted pipeline as files that any tool can read, and back; nothing is unpickled.

The pipeline itself goes through skops: a zip of JSON and NumPy arrays. What skops can't hold is
taken out of it and put back on loading, wherever it stands: torch networks become tensors in one
safetensors file, XGBoost's boosters UBJ files. The parts' places are a list that whoever keeps
the files keeps too. Of a search only what it chose is kept; any SVC becomes scikit-learn's own.

An estimator with a torch network must be able to make it again, untrained: it has a method
`untrained()`.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from sklearn.base import BaseEstimator
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.tree._tree import Tree
from torch import Tensor, nn

from featcache.errors import DataError, FeatcacheError, first_line
from featcache.fitting.heads.booster_file import check_booster

try:
    import skops.io
except ModuleNotFoundError as error:
    problem = f"fitted classifiers are kept with the package {error.name}, which is not installed"
    raise FeatcacheError(problem, f"pip install {error.name}") from error

log = logging.getLogger("featcache")

PIPELINE = "pipeline.skops"
NETWORKS = "networks.safetensors"
_SCHEMA = "schema.json"  # skops' own, in its zip

# Beside what skops itself trusts (scikit-learn's estimators, NumPy's types): what fitted
# pipelines here are seen to hold. All are plain data, or functions of arrays.
_TRUSTED = frozenset(
    {
        "scipy.sparse._csr.csr_array",
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.feature_selection._mutual_info.mutual_info_classif",
        "sklearn.feature_selection._univariate_selection.chi2",
        "sklearn.feature_selection._univariate_selection.f_classif",
        "sklearn.frozen._frozen.FrozenEstimator",
        "sklearn.metrics.pairwise.rbf_kernel",
        "sklearn.model_selection._split.KFold",
        "sklearn.model_selection._split.StratifiedKFold",
        "sklearn.tree._tree.Tree",
    }
)
_OURS = "featcache.fitting."
# Where older versions had the classes of models that they have kept.
_MOVED = {
    _OURS + old: _OURS + new
    for old, new in {
        "bilinear": "fusions.learned",
        "boosting": "heads.xgboost",
        "classifier": "pipeline",
        "concat": "fusions.concat",
        "late": "fusions.late",
        "learned": "fusions.learned",
        "mlp": "heads.mlp",
        "neighbours": "heads.neighbours",
        "nsga": "selection",
        "pooled": "fusions.pooled",
        "principal": "fusions.concat",
        "svm": "heads.svm",
    }.items()
}
_MODULE = re.compile(r'(?<="__module__": ")[\w.]+(?=")')
_OF_THE_FIT = "held_out_"  # of use to what is fitted after it; as long as the training rows
_CHOSEN = ("best_estimator_", "best_")  # where a search keeps it: sklearn's, `TunedClassifier`

Part = dict[str, Any]
Place = tuple[str | int, ...]


def save_pipeline(folder: Path, pipeline: Any) -> list[Part]:
    """Write a fitted pipeline into a folder.

    Parameters
    ----------
    folder : Path
        An empty folder.
    pipeline : fitted sklearn estimator

    Returns
    -------
    list of mappings
        The networks and boosters: `kind`, `place` (names and positions that lead to it), and
        `file` for a booster. JSON can hold it.

    Raises
    ------
    FeatcacheError
        For an estimator that can't be kept without a pickle.
    """
    found: list[tuple[Place, Any]] = []
    plain = _without_parts(pipeline, found)
    parts: list[Part] = []
    tensors: dict[str, Tensor] = {}
    for number, (place, value) in enumerate(found):
        part: Part = {"kind": "network", "place": list(place)}
        if isinstance(value, nn.Module):
            tensors |= {f"{number}.{name}": v.contiguous() for name, v in _state(value)}
        else:
            part |= {"kind": "booster", "file": f"booster{number}.ubj"}
            value.save_model(folder / part["file"])
            _refuse_unreadable(value, folder / part["file"])
        parts.append(part)
    if tensors:
        (folder / NETWORKS).write_bytes(save(tensors))  # save_file makes it private
    try:
        skops.io.dump(plain, folder / PIPELINE)
        strange = _strange(folder / PIPELINE)
    except Exception as error:
        raise FeatcacheError(
            f"{type(pipeline).__name__} can't be kept without a pickle: {error}"
        ) from error
    if strange:
        raise FeatcacheError(
            f"{', '.join(strange)}: models are kept of scikit-learn's and featcache's classes only"
        )
    return parts


def load_pipeline(folder: Path, parts: Sequence[Mapping[str, Any]]) -> Any:
    """The pipeline that `save_pipeline` wrote.

    Only types that featcache's own pipelines hold are made, whatever the file asks for.

    Raises
    ------
    DataError
        If a file is damaged, or holds anything else.
    """
    path = folder / PIPELINE
    try:
        _refuse_bomb(path)
        file = _with_modules_of_today(path)
        strange = _strange(file)
        if strange:
            raise DataError(
                f"{path} holds types that no model of featcache has: {', '.join(strange)}",
                "It may do harm when it is loaded; it was not. Take models only from their maker.",
            )
        pipeline = _load(file, path)
        tensors = load_file(folder / NETWORKS) if (folder / NETWORKS).is_file() else {}
        for number, part in enumerate(parts):
            _put_back(pipeline, folder, number, part, tensors)
    except FeatcacheError:
        raise
    except (SafetensorError, Exception) as error:
        raise DataError(
            f"{folder} holds no readable model: {type(error).__name__} {first_line(error)}",
            "Copy the whole folder again, or fit it again.",
        ) from error
    return pipeline


def _refuse_unreadable(booster: Any, file: Path) -> None:
    """Only boosters that can be checked when they are read are kept: trees, without categories."""
    try:
        check_booster(file.read_bytes())
    except ValueError as error:
        raise FeatcacheError(
            f"a {type(booster).__name__} like this can't be kept: {error}",
            "Models are kept with boosters of trees (booster='gbtree') on columns of numbers.",
        ) from None


def _with_modules_of_today(path: Path) -> Path | BytesIO:
    """The file; if an older version has kept it, a copy in which each class is where it is now."""
    with zipfile.ZipFile(path) as archive:
        schema = archive.read(_SCHEMA).decode("utf-8")
        renewed = _MODULE.sub(lambda module: _MOVED.get(module[0], module[0]), schema)
        if renewed == schema:
            return path
        copy = BytesIO()
        with zipfile.ZipFile(copy, "w") as new:
            for name in archive.namelist():
                new.writestr(name, renewed if name == _SCHEMA else archive.read(name))
    return copy


def _load(file: Path | BytesIO, path: Path) -> Any:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", InconsistentVersionWarning)
        trusted = skops.io.get_untrusted_types(file=file)  # each was held against our own list
        pipeline = skops.io.load(file, trusted=trusted)
    for warning in {str(w.message).split(". ")[0] for w in caught}:
        log.warning("%s", warning)
    if not isinstance(pipeline, BaseEstimator):
        raise DataError(f"{path} holds a {type(pipeline).__name__}, no estimator")
    _check_trees(pipeline, path)
    return pipeline


def _check_trees(value: Any, path: Path) -> None:
    """scikit-learn follows the numbers in a tree without looking: each must lead on in it."""
    if isinstance(value, Tree):
        here = np.arange(value.node_count)
        for child in (value.children_left, value.children_right):
            if not ((child == -1) | ((child > here) & (child < value.node_count))).all():
                raise DataError(f"{path} holds a tree that leads out of itself", "Don't load it.")
        inner = value.children_left != -1
        if not ((value.feature[inner] >= 0) & (value.feature[inner] < value.n_features)).all():
            raise DataError(f"{path} holds a tree of columns that aren't there", "Don't load it.")
    elif isinstance(value, (list, tuple)):
        for one in value:
            _check_trees(one, path)
    elif isinstance(value, dict):
        _check_trees(list(value.values()), path)
    elif isinstance(value, np.ndarray) and value.dtype == object:
        _check_trees(value.ravel().tolist(), path)
    elif isinstance(value, BaseEstimator) or type(value).__module__.startswith("sklearn."):
        _check_trees(list(getattr(value, "__dict__", {}).values()), path)


def _refuse_bomb(path: Path) -> None:
    """Our files are stored as they are: nothing in them may grow on reading."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    grown = sum(member.file_size for member in members)
    if any(m.compress_type != zipfile.ZIP_STORED for m in members) or grown > path.stat().st_size:
        raise DataError(
            f"{path} unpacks to more than it is", "No model of featcache does. Don't load it."
        )


def _strange(file: Path | BytesIO) -> list[str]:
    """The types in a file that are none of ours."""
    return sorted(t for t in skops.io.get_untrusted_types(file=file) if not _is_known(t))


def _is_known(name: str) -> bool:
    """Whether a type may be made: one of the list, or an estimator that `fitting` defines."""
    module_name, _, class_name = name.rpartition(".")
    if name in _TRUSTED:
        return True
    if not module_name.startswith(_OURS):
        return False
    try:
        module = importlib.import_module(module_name)
    except ImportError:
        return False
    found = vars(module).get(class_name)
    if not inspect.isclass(found) or found.__module__ != module_name:
        return False
    return issubclass(found, BaseEstimator)


def _state(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, v.detach().cpu()) for name, v in network.state_dict().items())


def _without_parts(value: Any, found: list[tuple[Place, Any]], place: Place = ()) -> Any:
    """A copy, as deep as need be, in which None stands for every network and booster."""
    module = type(value).__module__.split(".")[0]
    if isinstance(value, nn.Module) or (module == "xgboost" and hasattr(value, "save_model")):
        found.append((place, value))
        return None
    for chosen in _CHOSEN:
        if isinstance(value, BaseEstimator) and hasattr(value, chosen):
            return _without_parts(getattr(value, chosen), found, place)
    if module == "sklearnex":
        value = _stock(value)
    if type(value) in (list, tuple):
        items = [_without_parts(v, found, (*place, i)) for i, v in enumerate(value)]
        same = all(a is b for a, b in zip(items, value, strict=True))
        return value if same else type(value)(items)
    if type(value) is dict:
        inside = {k: _without_parts(v, found, (*place, k)) for k, v in value.items()}
        return value if all(inside[k] is v for k, v in value.items()) else inside
    if not isinstance(value, BaseEstimator) and module not in ("sklearn", "featcache"):
        return value
    if inspect.isclass(value) or not hasattr(value, "__dict__") or inspect.isroutine(value):
        return value
    kept = {k: v for k, v in vars(value).items() if k != _OF_THE_FIT}
    state = {k: _without_parts(v, found, (*place, k)) for k, v in kept.items()}
    if len(kept) == len(vars(value)) and all(state[k] is v for k, v in kept.items()):
        return value
    copy = object.__new__(type(value))
    vars(copy).update(state)
    return copy


def _stock(fitted: Any) -> Any:
    """scikit-learn's own SVC in place of scikit-learn-intelex's: any machine can read it."""
    from sklearn.svm import SVC

    if not isinstance(fitted, SVC):
        raise FeatcacheError(
            f"{type(fitted).__name__} of scikit-learn-intelex can't be kept without a pickle",
            "Fit scikit-learn's own estimator of that name.",
        )
    private = ("_onedal_estimator", "_support_vectors_internal", "_dual_coef_internal",
               "_intercept_internal")  # fmt: skip
    plain = SVC()
    vars(plain).update({k: v for k, v in vars(fitted).items() if k not in private})
    learned: dict[str, Any] = dict.fromkeys(
        ("support_vectors_", "dual_coef_", "_dual_coef_", "intercept_", "_intercept_"), np.float64
    )
    learned |= dict.fromkeys(("support_", "_n_support"), np.int32)
    if hasattr(fitted, "support_"):
        for name, dtype in learned.items():
            setattr(plain, name, np.ascontiguousarray(getattr(fitted, name), dtype))
    return plain


def _put_back(
    pipeline: Any, folder: Path, number: int, part: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Put one network or booster where it belongs."""
    *way, last = part["place"]
    owner = pipeline
    for step in way:
        owner = _inside(owner)[step]
    place = _inside(owner)
    if place[last] is not None:
        raise DataError(f"{folder}: the place of part {number} is taken")
    if part["kind"] == "booster":
        from featcache.fitting.heads.xgboost import read_booster

        width = getattr(owner, "n_features_in_", None)
        place[last] = read_booster(folder / Path(part["file"]).name, width)
        return
    with torch.device("meta"):  # no memory and no draws for weights that are replaced at once
        network = owner.untrained()
    prefix = f"{number}."
    state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    network.load_state_dict(state, assign=True)
    place[last] = network.eval().requires_grad_(False)


def _inside(owner: Any) -> Any:
    return owner if isinstance(owner, (list, tuple, dict)) else vars(owner)
