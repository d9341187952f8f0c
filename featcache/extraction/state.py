"""State: a network's tensors by name: read safely, and held against what a network needs."""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.errors import WeightsError, first_line

if TYPE_CHECKING:
    import torch

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
        Where one is absent, of another shape, or left over.
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
