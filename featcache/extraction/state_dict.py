"""State dict: what a weight file holds: tensors by name, and what a fine-tuning wrote of itself.

A file that a fine-tuning has written holds a backbone's tensors under the library's own names, so
that it loads anywhere. In its metadata it also carries which images trained it and how it saw them:
that travels with every copy of the file.
"""

from __future__ import annotations

import base64
import json
import re
import warnings
from collections import OrderedDict
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.errors import WeightsError, first_line
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
        If it says something unreadable.
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


_GLOBAL = re.compile(r"GLOBAL (\S+)")  # how torch names what it would not make
_PICKLE = b"\x80"  # the first byte of one that torch.save did not pack into a zip
_CHECK = "Pass a .safetensors file, or a .pth file that holds a state dict of tensors only."
_CONVERT = (
    "If you made the file yourself, write its tensors alone, where you trust it:\n"
    "safetensors.torch.save_file(network.state_dict(), 'weights.safetensors')\n"
    "and pass that file. From anybody else, ask for a .safetensors file."
)


def read_state(path: Path) -> OrderedDict[str, torch.Tensor]:
    """Read a weight file, as tensors and nothing else, in float32.

    Raises
    ------
    WeightsError
        If it is no such file. A pickle that holds anything but tensors is refused.
    """
    import torch

    state = _read_safetensors(path) if path.suffix == ".safetensors" else read_pickled(path)
    for name in ("state_dict", "model", "model_state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = state[name]
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and torch.is_tensor(v) for name, v in state.items()
    ):
        raise WeightsError(f"{path} holds no state dict of tensors", _CONVERT)
    plain = OrderedDict(
        (name.removeprefix("module."), v.float() if v.is_floating_point() else v)
        for name, v in state.items()
    )
    if hasattr(state, "_metadata"):  # layer versions, which some layers need to read old files
        plain._metadata = OrderedDict(  # type: ignore[attr-defined]
            ("" if name == "module" else name.removeprefix("module."), v)
            for name, v in state._metadata.items()
        )
    return plain


def read_pickled(path: Path) -> Any:
    """Read what `torch.save` wrote, if that is tensors and plain values only.

    torch's own messages advise to read the file in an unsafe way, and are never passed on.

    Raises
    ------
    WeightsError
        If the file can't be read, or reading it could run code.
    """
    import pickle
    import struct

    import torch

    try:
        with warnings.catch_warnings(action="ignore"):  # on how the pickle was made
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = _GLOBAL.search(str(error))
        if found or _first_byte(path) == _PICKLE:
            raise WeightsError(
                f"{path} can't be read as weights: it holds Python objects "
                f"({found[1] if found else 'a pickle'}) and not only tensors, and to read those "
                "can run any code",
                _CONVERT,
            ) from None
    except OSError as error:
        raise WeightsError(f"{path} can't be read: {error.strerror or error}", _CHECK) from None
    except (struct.error, RuntimeError, ValueError, LookupError, TypeError, AttributeError,
            AssertionError, EOFError):  # fmt: skip
        pass
    raise WeightsError(
        f"{path} can't be read as weights: it is damaged, cut short, or of another kind", _CHECK
    )


def _first_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1)


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
        raise WeightsError(
            f"{path} can't be read as weights: {first_line(error)}", _CHECK
        ) from None


def fit_state(
    state: OrderedDict[str, torch.Tensor], module: torch.nn.Module, dropped: tuple[str, ...]
) -> OrderedDict[str, torch.Tensor]:
    """The part of a state dict that a network without its classifier needs.

    Parameters
    ----------
    state : state dict
    module : torch.nn.Module
        The network, its last layer already taken away.
    dropped : tuple of str
        Prefixes of what was taken away.
    """
    wanted = module.state_dict()
    kept = OrderedDict(
        (name, value) for name, value in _renamed(state) if not name.startswith(dropped)
    )
    for name, value in wanted.items():
        if name.endswith("num_batches_tracked"):  # absent from old files, unused in eval
            kept.setdefault(name, value)
    kept._metadata = getattr(state, "_metadata", wanted._metadata)  # type: ignore[attr-defined]
    return kept


def load_exactly(
    network: torch.nn.Module, state: Mapping[str, torch.Tensor], name: str, path: Path
) -> None:
    """Load tensors that must be all of a network's, and no others.

    Parameters
    ----------
    network : torch.nn.Module
    state : state dict
    name : str
        The backbone's.
    path : Path
        Where they were read.

    Raises
    ------
    WeightsError
        If one is absent, of another shape, or left over.
    """
    missing, unexpected = difference(network.state_dict(), state)
    if missing or unexpected:
        raise of_another(name, path, missing, unexpected)
    network.load_state_dict(state)


def difference(
    wanted: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]
) -> tuple[list[str], list[str]]:
    """Names absent or of another shape, and names left over."""
    missing = [n for n, v in wanted.items() if n not in found or found[n].shape != v.shape]
    return missing, [name for name in found if name not in wanted]


def of_another(
    name: str, path: Path, missing: list[str], unexpected: list[str]
) -> WeightsError:  # fmt: skip
    """The error for a file that holds another network's weights."""
    shown = [f"absent: {_some(missing)}"] if missing else []
    shown += [f"left over: {_some(unexpected)}"] if unexpected else []
    return WeightsError(
        f"{path} holds no weights of {name} ({'; '.join(shown)})",
        "Check --backbone and --weights: they must be of one architecture.",
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f", … ({len(names)} in all)" if len(names) > 3 else "")


def _renamed(state: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """DenseNet files of old spell `norm.1.weight` for `norm1.weight`."""
    for name, value in state.items():
        yield re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.", r"\1\2.", name), value
