"""Pooling: how a network's last map or tokens become one vector, and its last blocks' class tokens.

The option `pool` names parts, joined in this order:

| part | of tokens | of a map |
|---|---|---|
| cls | the class token | – |
| mean, max | over the patches, without class and register tokens | over the positions |
| gem | generalised mean over the same, with an exponent of 3 | the same |

What a network does to its own pooled vector before the classifier (a norm, a convolution) it does
to each part, so that `mean` of a network that takes the mean itself is `own`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from featcache.errors import RecipeError

Kind = Literal["tokens", "map", "none"]
OF_TOKENS = ("cls", "mean", "cls+mean", "max", "gem", "mean+max")
OF_MAPS = ("mean", "max", "gem", "mean+max")
_EXPONENT, _LEAST = 3.0, 1e-6  # Radenović et al., https://arxiv.org/abs/1711.02512


def reduce(x: torch.Tensor, part: str, axes: tuple[int, ...]) -> torch.Tensor:
    """One part of a pooling, over these axes."""
    if part == "mean":
        return x.mean(axes)
    if part == "max":
        return x.amax(axes)
    powers = x.float().clamp(min=_LEAST).pow(_EXPONENT)  # beyond the range of fp16
    return powers.mean(axes).pow(1 / _EXPONENT).to(x.dtype)


class MapPooling(nn.Module):
    """Maps (n, d, h, w), or (n, h, w, d), to maps of one position: the parts, one after another."""

    def __init__(self, pool: str, channels_last: bool = False) -> None:
        super().__init__()
        self.parts = pool.split("+")
        self.channels_last = channels_last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        axes = (1, 2) if self.channels_last else (2, 3)
        found = torch.cat([reduce(x, part, axes) for part in self.parts])  # (parts · n, d)
        return found[:, None, None] if self.channels_last else found[:, :, None, None]


class JoinedParts(nn.Module):
    """A network with a `MapPooling` inside: its vectors (parts · n, d) as (n, parts · d)."""

    def __init__(self, network: nn.Module, parts: int) -> None:
        super().__init__()
        self.network = network
        self.parts = parts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = self.network(x)
        # Not by chunk(), which ties an exported graph to the number of images.
        return vectors.reshape(self.parts, x.shape[0], -1).transpose(0, 1).flatten(1)


class TokenPooling(nn.Module):
    """Tokens of one block or several to the parts of a pooling, joined.

    Parameters
    ----------
    network : nn.Module
    blocks : callable
        (network, images) -> for each block that is taken its tokens (n, prefix + patches, d). The
        class tokens come from all of them, the other parts from the last.
    pool : str
    prefix : int
        Class and register tokens, which stand before the patches; the class token is the first.
    norm : nn.Module
        What each part passes.
    """

    def __init__(
        self,
        network: nn.Module,
        blocks: Callable[[Any, torch.Tensor], list[torch.Tensor]],
        pool: str,
        prefix: int,
        norm: nn.Module,
    ) -> None:
        super().__init__()
        self.network = network
        self.parts = pool.split("+")
        self.prefix = prefix
        self.norm = norm
        self._blocks = blocks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        taken = self._blocks(self.network, x)
        patches = taken[-1][:, self.prefix :]  # (n, patches, d)
        found = []
        for part in self.parts:
            of_class = part == "cls"
            found += [one[:, 0] for one in taken] if of_class else [reduce(patches, part, (1,))]
        return torch.cat([self.norm(one) for one in found], dim=1)


def pool_map(network: nn.Module, pool: str, at: str, channels_last: bool = False) -> nn.Module:
    """The network with its map pooled before the module of this name, its own pooling."""
    own = network.get_submodule(at)
    network.set_submodule(at, nn.Sequential(MapPooling(pool, channels_last), own))
    return join(network, pool)


def join(network: nn.Module, pool: str) -> nn.Module:
    """A network with a `MapPooling` inside, its parts side by side."""
    parts = pool.count("+") + 1
    return network if parts == 1 else JoinedParts(network, parts)


def check_pool(name: str, pool: str, layers: str, kind: Kind, has_class: bool = False) -> None:
    """Refuse what a network can't give.

    Parameters
    ----------
    name, pool, layers : str
    kind : {"tokens", "map", "none"}
        What stands before the network's own pooling.
    has_class : bool, default False
        Whether a class token is among the tokens.

    Raises
    ------
    RecipeError
        It says what works.
    """
    known = {"tokens": OF_TOKENS, "map": OF_MAPS, "none": ()}[kind]
    works = [one for one in known if has_class or "cls" not in one]
    asked = f"pool={pool}" if layers == "last" else f"layers={layers}"
    if pool in works and (layers == "last" or has_class):
        return
    why = {
        "tokens": "it has no class token", "map": "its last output is a map without class token",
        "none": "it ends in neither tokens nor a pooled map",
    }[kind]  # fmt: skip
    raise RecipeError(
        f"{name} can't be opened with {asked}: {why}",
        f"It takes pool={', pool='.join(['own', *works])}"
        f"{'; layers=-4..-1 and the like' if has_class else ''}"
        f"{'' if works else ', or layer=NAME, the mean of a module that gives a map'}.",
    )


def block_range(name: str, layers: str, count: int) -> range:
    """Which of `count` blocks `layers` means, counted from 0.

    Raises
    ------
    RecipeError
        If there are not so many.
    """
    first, last = (-1, -1) if layers == "last" else map(int, layers.split(".."))
    if -first > count:
        raise RecipeError(f"{name} has {count} blocks: no layers={layers}", f"layers=-{count}..-1")
    return range(count + first, count + last + 1)
