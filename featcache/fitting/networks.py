"""The torch modules of the learned fusions and of the MLP head, and what fitted arrays compute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featcache.errors import RecipeError


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Everything drawn inside (initial weights, dropout) follows from `seed`.

    On the CPU, and on this device if it is a GPU. The generators are as before afterwards.
    """
    cuda = device is not None and device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        # torch.manual_seed would also reseed the other GPUs, which this fork doesn't restore.
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed(seed)
        yield


class MLP(nn.Module):
    """(linear, ReLU, dropout) for each hidden width, then linear to the classes.

    Parameters
    ----------
    width : int
        Columns of the input.
    hidden : sequence of int
        Widths of the hidden layers; empty gives a linear classifier.
    classes : int
        Width of the output: one logit a class.
    dropout : float, default 0.0
        Share of the hidden units dropped in training.
    """

    def __init__(
        self, width: int, hidden: Sequence[int], classes: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for size in hidden:
            layers += [nn.Linear(width, size), nn.ReLU(), nn.Dropout(dropout)]
            width = size
        self.layers = nn.Sequential(*layers, nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, classes) of x (n, width)."""
        logits: Tensor = self.layers(x)  # (n, classes)
        return logits


class Attention(nn.Module):
    """Cross-attention between the vectors of several backbones.

    Each backbone's block is projected to a token of width `dim` and marked with a learned
    embedding of its backbone. Every token attends to the others and itself; what it gathers is
    added to it and layer-normalised.

    Parameters
    ----------
    blocks : sequence of int
        Width of each backbone's block (d1, …, dk).
    dim : int, default 128
        Width of a token; a multiple of `heads`.
    heads : int, default 4
        Attention heads.
    dropout : float, default 0.0
        Share of the attention weights dropped in training.

    Raises
    ------
    RecipeError
        If `dim` is no multiple of `heads`.
    """

    def __init__(
        self, blocks: Sequence[int], dim: int = 128, heads: int = 4, dropout: float = 0.0
    ) -> None:
        if heads < 1 or dim < 1 or dim % heads:
            raise RecipeError(
                f"attention of width {dim} can't be shared by {heads} heads",
                "Make dim a multiple of heads, for instance dim 128 and heads 4.",
            )
        super().__init__()
        self.blocks = tuple(blocks)
        self.width = len(self.blocks) * dim  # of the output
        self.project = nn.ModuleList(nn.Linear(block, dim) for block in blocks)
        self.embedding = nn.Parameter(torch.empty(len(self.blocks), dim))  # (k, dim)
        nn.init.normal_(self.embedding, std=0.02)
        self.attention = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """The fused vectors (n, k * dim) of x (n, d1 + … + dk)."""
        tokens = self._tokens(x)  # (n, k, dim)
        gathered, _ = self.attention(tokens, tokens, tokens, need_weights=False)  # (n, k, dim)
        fused: Tensor = self.norm(tokens + gathered)  # (n, k, dim)
        return fused.flatten(1)  # (n, k * dim)

    def weights(self, x: Tensor) -> Tensor:
        """How much token i attends to token j, mean over heads: (n, k, k), rows sum to 1."""
        tokens = self._tokens(x)  # (n, k, dim)
        _, weights = self.attention(tokens, tokens, tokens, need_weights=True)
        return weights  # type: ignore[no-any-return]  # (n, k, k)

    def _tokens(self, x: Tensor) -> Tensor:
        return _tokens(x, self.blocks, self.project) + self.embedding  # (n, k, dim)


class Gate(nn.Module):
    """A weighted mean of the backbones' vectors, with weights that depend on the vectors.

    Each backbone's block is projected to width `dim` and squashed by tanh; a linear layer on all
    blocks and a softmax give each backbone its weight. All weights are equal at the start. After
    Arevalo et al., 2017, Gated multimodal units, https://arxiv.org/abs/1702.01992, with one weight
    a backbone instead of one a column.

    Parameters
    ----------
    blocks : sequence of int
        Width of each backbone's block (d1, …, dk).
    dim : int, default 128
        Width of the output.

    Raises
    ------
    RecipeError
        If `dim` is no whole number above 0.
    """

    def __init__(self, blocks: Sequence[int], dim: int = 128) -> None:
        _check_dim(dim)
        super().__init__()
        self.blocks = tuple(blocks)
        self.width = dim  # of the output
        self.project = nn.ModuleList(nn.Linear(block, dim) for block in blocks)
        self.gate = nn.Linear(sum(self.blocks), len(self.blocks))
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The fused vectors (n, dim) of x (n, d1 + … + dk)."""
        squashed = _tokens(x, self.blocks, self.project).tanh()  # (n, k, dim)
        return (self.weights(x).unsqueeze(2) * squashed).sum(1)  # (n, dim)

    def weights(self, x: Tensor) -> Tensor:
        """How much each backbone counts: (n, k), rows sum to 1."""
        logits: Tensor = self.gate(x)  # (n, k)
        return logits.softmax(1)  # (n, k)


class Product(nn.Module):
    """The product of the backbones' vectors, element by element.

    Each backbone's block is projected to width `dim`, and what is negative becomes 0; the product
    is layer-normalised. Biases begin at 1: then a product of vectors that are near 1 is nearly
    their sum, and training begins with a sum. Without that, most products are 0 from the start.
    After Kim et al., 2017, Hadamard product for low-rank bilinear pooling,
    https://arxiv.org/abs/1610.04325.

    Parameters
    ----------
    blocks : sequence of int
        Width of each backbone's block (d1, …, dk).
    dim : int, default 256
        Width of the output.

    Raises
    ------
    RecipeError
        If `dim` is no whole number above 0.
    """

    def __init__(self, blocks: Sequence[int], dim: int = 256) -> None:
        _check_dim(dim)
        super().__init__()
        self.blocks = tuple(blocks)
        self.width = dim  # of the output
        self.project = nn.ModuleList(nn.Linear(block, dim) for block in blocks)
        for name, parameter in self.project.named_parameters():
            if name.endswith("bias"):
                nn.init.ones_(parameter)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """The fused vectors (n, dim) of x (n, d1 + … + dk)."""
        tokens = _tokens(x, self.blocks, self.project).relu()  # (n, k, dim)
        fused: Tensor = self.norm(reduce(torch.mul, tokens.unbind(1)))  # (n, dim)
        return fused


def _tokens(x: Tensor, blocks: Sequence[int], project: nn.ModuleList) -> Tensor:
    """Each block of x (n, d1 + … + dk), projected: (n, k, dim)."""
    parts = torch.split(x, list(blocks), dim=1)  # k of (n, d_i)
    return torch.stack([layer(part) for layer, part in zip(project, parts, strict=True)], dim=1)


def _check_dim(dim: Any) -> None:
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
        raise RecipeError(f"dim is {dim!r}", "Give a whole number above 0.")


class Standardise(nn.Module):
    """A fitted StandardScaler."""

    mean: Tensor
    scale: Tensor

    def __init__(self, scaler: Any) -> None:
        super().__init__()
        self.register_buffer("mean", _float32(scaler.mean_))
        self.register_buffer("scale", _float32(scaler.scale_))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.scale  # (n, d)


class Concat(nn.Module):
    """The blocks side by side, as a fitted `ConcatFusion` scales and reduces them."""

    def __init__(
        self, blocks: Sequence[int], scaler: Any, by_row: bool, pca: Sequence[Any]
    ) -> None:
        super().__init__()
        self.blocks = list(blocks)
        self.by_row = by_row
        self.scale = nn.Identity() if scaler is None else Standardise(scaler)
        self.pca = nn.ModuleList(components(one) for one in pca)

    def forward(self, x: Tensor) -> Tensor:
        x = self.scale(x)  # (n, d)
        if not self.by_row and not self.pca:
            return x
        parts = torch.split(x, self.blocks, dim=1)  # k of (n, d_i)
        if self.by_row:
            parts = tuple(nn.functional.normalize(part, dim=1) for part in parts)
        if self.pca:
            parts = tuple(pca(part) for pca, part in zip(self.pca, parts, strict=True))
        return torch.cat(parts, dim=1)  # (n, sum of the widths)


def components(pca: Any) -> nn.Linear:
    """A fitted PCA that doesn't whiten."""
    return linear(pca.components_, -pca.components_ @ pca.mean_)


def linear(weight: Any, bias: Any) -> nn.Linear:
    """A layer with these weights (out, in) and biases (out,)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(_float32(weight))
        layer.bias.copy_(_float32(bias))
    return layer


def logits(head: Any) -> nn.Linear:
    """A fitted LogisticRegression."""
    weight, bias = head.coef_, head.intercept_
    if len(weight) == 1:  # two classes: the first one's logit is 0
        weight, bias = np.vstack([0 * weight, weight]), np.append(0 * bias, bias)
    return linear(weight, bias)


def _float32(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))
