"""Bundle: the folder `model/` of a run, all that labelling new images needs, without a pickle.

A bundle explains itself and can be copied elsewhere. It holds `model.json` and the files that
this names::

    model/
      model.json               what it is; below
      pipeline.skops           kind "features": the fitted scikit-learn pipeline
      networks.safetensors     its torch networks, where it has any
      booster0.ubj             its XGBoost boosters, where it has any
      network.safetensors      kind "finetuned": the whole tuned network, in place of the above
      weights/NAME.safetensors the backbones' weights, where it stands alone

model.json holds

format : int
    `FORMAT`.
kind : {"features", "finetuned"}
    "features": backbones give vectors, and the pipeline takes them side by side. "finetuned":
    one network from pixels to logits; `finetuning.serialization.load_network(folder, facts)`
    builds it as a torch module in evaluation mode, whose `forward(*pixels)` takes one float32
    tensor (n, 3, crop, crop) for each backbone, normalised by that backbone's preprocess and in
    the order of `backbones`, and gives logits (n, classes).
name, data, fusion, head : str
classes : list of str
    The order of the probabilities.
settings : mapping
seed : int
backbones : list of mappings
    For each block `name` (of the architecture), `library, weights, weights_sha256, layer,
    preprocess, precision, dtype` as in `store.Key`, its `digest` as `key`, `dim`, and `selector`,
    what the run calls the block. "finetuned" names here what the network was before: `weights` and
    `weights_sha256` are those that the tuning began with. `key` is null where the vectors came from
    no cache: images can't be labelled then.
trained_on : mapping
    `rows`, how many; `what`: `SPLIT`, "the training rows of the test split", or `ALL`, "all rows,
    refitted".
versions : mapping of library to version
files : mapping of file name to {"sha256": …, "bytes": …}
    Every other file of the bundle; a file that has changed since is refused.
sha256 : str
    Of all that model.json says besides; older bundles have none.
parts : list of mappings
    Kind "features": where networks and boosters belong in the pipeline, see `fitting.persist`.
quantised : mapping of selector to file name
    Only for int8 features: the backbones' quantised networks. Those backbones have `calibration`
    too, as in `store.Key`.
weights : mapping of selector to file name
    Only where the bundle stands alone: the backbones' weights, without the classifying layer.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from featcache.atomic import making_folder
from featcache.errors import DataError, FeatcacheError
from featcache.hashing import canonical_json, sha256_file, sha256_json
from featcache.reporting.refit_command import refit_remedy
from featcache.store.feature_file import read_quantised
from featcache.store.features import Features
from featcache.store.key import Key

log = logging.getLogger("featcache")

FORMAT = 1
FOLDER = "model"
FACTS = "model.json"
KINDS = ("features", "finetuned")
SPLIT = "the training rows of the test split"
ALL = "all rows, refitted"

Writer = Callable[[Path], None]

_NEEDED = {
    "kind": str,
    "name": str,
    "classes": list,
    "backbones": list,
    "trained_on": dict,
    "files": dict,
}


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write model.json beside the bundle's other files, which it lists with their sha256.

    Parameters
    ----------
    folder : Path
        Where every other file of the bundle is already.
    facts : mapping
        All of model.json but `format`, `files` and `sha256`.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != FACTS)
    listed = {
        path.relative_to(folder).as_posix(): {
            "sha256": sha256_file(path),
            "bytes": path.stat().st_size,
        }
        for path in files
    }
    whole = {"format": FORMAT, **facts, "files": listed}
    text = json.dumps(whole | {"sha256": _digest(whole)}, indent=1, allow_nan=False)
    (folder / FACTS).write_text(text + "\n", encoding="utf-8")


def read_facts(folder: Path) -> dict[str, Any]:
    """Read model.json, and check that the bundle's files are those that it lists.

    Raises
    ------
    DataError
        If there is no such bundle, it is of another version, or a file is absent or changed.
    """
    path = folder / FACTS
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        version = facts["format"]
        canonical_json(facts).encode()  # NaN and halves of characters are no facts
        wrong = [name for name, kind in _NEEDED.items() if not isinstance(facts[name], kind)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} can't be read as a model: {type(error).__name__} {error}",
            refit_remedy(folder.parent),
        ) from None
    if version != FORMAT or wrong or facts["kind"] not in KINDS:
        what = f"its {wrong[0]} is missing" if wrong else f"format {version}, kind {facts['kind']}"
        raise DataError(
            f"{path} is no model that this featcache reads ({what})",
            "Update featcache, or fit it again.",
        )
    if "sha256" in facts and facts["sha256"] != _digest(facts):
        raise DataError(
            f"{path} is damaged, or was changed: it doesn't fit its checksum",
            "Copy the whole folder again, or fit it again.",
        )
    for name, listed in facts["files"].items():
        _check_file(folder, name, listed)
    return dict(facts)


def _digest(facts: Mapping[str, Any]) -> str:
    """sha256 of all entries but that one, as they are read back."""
    plain = json.loads(json.dumps(facts))
    return sha256_json({name: value for name, value in plain.items() if name != "sha256"})


def _check_file(folder: Path, name: str, listed: Any) -> None:
    path = folder / name
    inside = not Path(name).is_absolute() and ".." not in Path(name).parts
    if not inside or not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise DataError(f"{folder / FACTS} names a file outside its folder: {name!r}")
    if not path.is_file():
        raise DataError(f"{path} is missing", "Copy the whole folder, or fit it again.")
    if not isinstance(listed, dict) or sha256_file(path) != listed.get("sha256"):
        raise DataError(
            f"{path} is not the file that {FACTS} lists: it is damaged, or was changed",
            "Copy the whole folder again, or fit it again.",
        )


def backbone_facts(
    names: Sequence[str], dims: Sequence[int], digests: Sequence[str], keys: Sequence[Key]
) -> list[dict[str, Any]]:
    """The `backbones` of model.json; `keys` may be empty where the whole keys aren't known."""
    known: Sequence[Key | None] = keys or [None] * len(names)
    return [
        {
            "name": name if key is None else key.backbone,
            "selector": name,
            **_recorded(key),
            "key": None if key is None else digest,
            "dim": dim,
        }
        for name, dim, digest, key in zip(names, dims, digests, known, strict=True)
    ]


def _recorded(key: Key | None) -> dict[str, Any]:
    plain = {} if key is None else key.plain()
    return {name: value for name, value in plain.items() if name not in ("backbone", "format")}


def write_networks(folder: Path, features: Features) -> dict[str, Any]:
    """Write the quantised networks of int8 features; what model.json says of them, if any."""
    names = {}
    for number, (name, key) in enumerate(zip(features.names, features.keys, strict=True)):
        if key not in features.quantised:
            continue
        names[name] = f"quantised/{number}.npz"
        (folder / "quantised").mkdir(exist_ok=True)
        (folder / names[name]).write_bytes(read_quantised(features.quantised[key]))
    return {"quantised": names} if names else {}


def try_to_write(folder: Path, write: Writer, run: Path) -> None:
    """Make a bundle's folder; if it can't be written there is none, and a warning says why.

    `run` is the run folder to name: `folder` may stand in a temporary one.
    """
    folder.mkdir()
    try:
        write(folder)
    except FeatcacheError as error:
        shutil.rmtree(folder)
        log.warning("no model is kept in %s: %s", run, error)


def add_bundle(run: Path, write: Writer) -> None:
    """Give a run folder that is there a model, all or nothing, in place of one that it has."""
    with making_folder(run / FOLDER) as temporary:
        try_to_write(temporary, write, run)
        if temporary.is_dir():
            shutil.rmtree(run / FOLDER, ignore_errors=True)
            temporary.replace(run / FOLDER)
