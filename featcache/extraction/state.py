"""State: a network's tensors by name, and whether a weight file holds just these."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.errors import WeightsError

if TYPE_CHECKING:
    import torch


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
