"""Tuned weights: what a weight file written by a fine-tuning says of itself.

Such a file holds a backbone's tensors under the library's own names, so that it loads anywhere. In
its metadata it also carries which images trained it and how it saw them: that travels with every
copy of the file.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.errors import WeightsError
from featcache.hashing import canonical_json
from featcache.store.weights_folder import file_stem

if TYPE_CHECKING:
    import torch

TAG = "tuned"
_ENTRY = "featcache.tuned"
IN_A_RUN = Path("model") / "weights"


@dataclass(frozen=True)
class Tuned:
    """How weights were tuned.

    Attributes
    ----------
    trained_on : frozenset of str
        sha256 of the images whose labels they have seen, validation images included.
    preprocess : mapping
        Plain `Preprocess`: how the network saw its images.
    """

    trained_on: frozenset[str]
    preprocess: Mapping[str, Any]


def tuned_file(backbone: str) -> str:
    """The name of the file that a run keeps a backbone's tuned weights in."""
    return f"{file_stem(backbone)}.safetensors"


def find_tuned(files: Container[str], backbone: str) -> str:
    """Which of a bundle's files holds a backbone's tuned weights.

    Bundles may also have it under the backbone's name as it is spelt, "timm:resnet18.safetensors".
    """
    spelt = f"{IN_A_RUN.name}/{backbone}.safetensors"
    return spelt if spelt in files else f"{IN_A_RUN.name}/{tuned_file(backbone)}"


def in_run(run: Path, architecture: str) -> Path | None:
    """The tuned weights of a backbone in a run folder; None where it has none."""
    bundle = run / IN_A_RUN.parent
    files = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*.safetensors")}
    path = bundle / find_tuned(files, architecture)
    return path if path.is_file() else None


def write_tuned(
    path: Path,
    state: Mapping[str, torch.Tensor],
    trained_on: Iterable[str],
    preprocess: Mapping[str, Any],
) -> None:
    """Write a backbone's tensors with what they were trained on."""
    from safetensors.torch import save_file

    digests = b"".join(bytes.fromhex(sha256) for sha256 in sorted(set(trained_on)))
    # One entry: safetensors writes several in any order, and the file's sha256 is in cache keys.
    facts = {"trained_on": base64.b64encode(digests).decode(), "preprocess": dict(preprocess)}
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    save_file(tensors, path, {_ENTRY: canonical_json(facts)})


def read_tuned(path: Path | None) -> Tuned | None:
    """What a weight file says of its tuning; None for any other file.

    Raises
    ------
    WeightsError
        Where it says something unreadable.
    """
    from safetensors import SafetensorError, safe_open

    if path is None or path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError):  # reading the tensors will say what is wrong
        return None
    if _ENTRY not in metadata:
        return None
    try:
        facts = json.loads(metadata[_ENTRY])
        digests = base64.b64decode(facts["trained_on"], validate=True).hex()
        preprocess = facts["preprocess"]
        if len(digests) % 64 or not isinstance(preprocess, dict):
            raise ValueError("not a whole number of digests")
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path} does not say what trained it in a way that can be read: {error}",
            "Fine-tune again: such weights can't be tested honestly.",
        ) from None
    seen = frozenset(digests[i : i + 64] for i in range(0, len(digests), 64))
    return Tuned(seen, preprocess)
