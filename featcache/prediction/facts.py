"""Facts: a model's model.json, whose entries are held against each other before any is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from featcache.errors import DataError
from featcache.extraction.state_dict import find_tuned
from featcache.reporting.bundle import FACTS, read_facts

_OF_A_BACKBONE = ("library", "weights", "weights_sha256", "layer", "precision", "dtype")


def model_facts(folder: Path) -> dict[str, Any]:
    """Read model.json, for use.

    Raises
    ------
    DataError
        As `read_facts`; and for an entry that no model has, or a file that is to be loaded and
        whose digest isn't listed.
    """
    facts = read_facts(folder)
    wrong = next(_wrong(facts), "")
    if wrong:
        raise DataError(
            f"{folder / FACTS} is damaged, or was changed: {wrong}",
            "Copy the whole folder again, or fit it again.",
        )
    return facts


def _wrong(facts: Mapping[str, Any]) -> Iterator[str]:
    """Every fault found, in words; what comes later counts on what came before."""
    classes, backbones, trained = facts["classes"], facts["backbones"], facts["trained_on"]
    if not classes or not all(isinstance(label, str) for label in classes):
        yield "its classes are no texts"
    if classes != sorted(set(classes)):  # probabilities are placed by their order
        yield "its classes are not in order"
    if not isinstance(trained.get("rows"), int) or not isinstance(trained.get("what"), str):
        yield "it doesn't say what it was trained on"
    if not backbones or not all(map(_is_backbone, backbones)):
        yield "an entry of its backbones is not whole"
    weights, parts = facts.get("weights", {}), facts.get("parts", [])
    if not isinstance(weights, dict) or not all(isinstance(n, str) for n in weights.values()):
        yield "its weights are no names of files"
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        yield "its parts are no list of entries"
    if facts["kind"] == "features" and "parts" not in facts:
        yield "its parts are missing"
    if facts["kind"] == "finetuned":
        kinds = {"fusion": str, "settings": dict, "seed": int}
        yield from (
            f"its {n} is missing" for n, k in kinds.items() if not isinstance(facts.get(n), k)
        )
    for name in _loaded(facts, weights, parts):
        if name not in facts["files"]:
            yield f"{name!r} is not among its files"


def _is_backbone(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return False
    if entry.get("key") is None:  # of vectors that came from no cache: said where it is opened
        return True
    texts = all(isinstance(entry.get(name), str) for name in _OF_A_BACKBONE)
    return texts and isinstance(entry.get("preprocess"), dict) and isinstance(entry.get("dim"), int)


def _loaded(
    facts: Mapping[str, Any], weights: Mapping[str, str], parts: list[dict[str, Any]]
) -> Iterator[str]:
    """Names of the files that are read to label images."""
    yield from weights.values()
    if facts["kind"] == "finetuned":
        yield "network.safetensors"
        yield from (find_tuned(facts["files"], entry["name"]) for entry in facts["backbones"])
        return
    yield "pipeline.skops"
    for part in parts:
        yield str(part.get("file")) if part.get("kind") == "booster" else "networks.safetensors"
