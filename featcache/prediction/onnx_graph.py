"""Graph: backbones, fusion and head as one torch module, from pixels to probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featcache.errors import UnknownName
from featcache.extraction.preprocess import Preprocess

FUSIONS = ("concat", "attention", "gated")
HEADS = ("mlp", "logreg", "nearest_mean")


class Graph(nn.Module):
    """From uint8 pixels to probabilities.

    Parameters
    ----------
    networks : sequence of modules
        The backbones' networks, (n, 3, h, w) normalised to (n, d_i).
    preprocesses : sequence of Preprocess
        Of each backbone; backbones with the same one share an input.
    rest : module
        From the vectors side by side (n, d1 + … + dk) to probabilities (n, classes).
    """

    def __init__(
        self, networks: Sequence[nn.Module], preprocesses: Sequence[Preprocess], rest: nn.Module
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.inputs = list(dict.fromkeys(preprocesses))
        self.of = [self.inputs.index(preprocess) for preprocess in preprocesses]
        self.normalise = nn.ModuleList(_Normalise(preprocess) for preprocess in preprocesses)
        self.rest = rest

    def forward(self, *pixels: Tensor) -> Tensor:
        """Probabilities (n, classes) of one uint8 tensor (n, 3, h, w) for each of `inputs`."""
        vectors = [
            network(normalise(pixels[i]))
            for network, normalise, i in zip(self.networks, self.normalise, self.of, strict=True)
        ]
        probabilities: Tensor = self.rest(torch.cat(vectors, dim=1))  # (n, classes)
        return probabilities


class TunedGraph(nn.Module):
    """The same for a fine-tuned network, which takes all pixels and gives logits."""

    def __init__(self, network: nn.Module, preprocesses: Sequence[Preprocess]) -> None:
        super().__init__()
        self.network = network
        self.inputs = list(dict.fromkeys(preprocesses))
        self.of = [self.inputs.index(preprocess) for preprocess in preprocesses]
        self.normalise = nn.ModuleList(_Normalise(preprocess) for preprocess in preprocesses)

    def forward(self, *pixels: Tensor) -> Tensor:
        """Probabilities (n, classes)."""
        pairs = zip(self.normalise, self.of, strict=True)
        logits: Tensor = self.network(*(normalise(pixels[i]) for normalise, i in pairs))
        return logits.softmax(1)  # (n, classes)


def as_module(pipeline: Any, classes: Sequence[str]) -> nn.Module:
    """A fitted pipeline as a module from vectors (n, d) to probabilities (n, classes).

    Raises
    ------
    UnknownName
        For a step that can't be written so.
    """
    steps = _steps(pipeline)
    modules = [_transformer(step) for step in steps[:-1]]
    return nn.Sequential(*modules, _head(steps[-1]), _Spread(steps[-1].classes_, classes)).eval()


def _steps(estimator: Any) -> list[Any]:
    """The steps of pipelines within pipelines, in a row."""
    if not hasattr(estimator, "steps"):
        return [estimator]
    inner = [step for _, step in estimator.steps if step not in (None, "passthrough")]
    return [one for step in inner for one in _steps(step)]


def _transformer(step: Any) -> nn.Module:
    name = type(step).__name__
    if name == "ConcatFusion":
        return _Concat(step)
    if name in ("AttentionFusion", "GatedFusion"):
        return nn.Sequential(_Standardise(step.scaler_), step.network_)
    if name == "StandardScaler":
        return _Standardise(step)
    if name == "PrincipalComponents":
        return _components(step.pca_)
    if hasattr(step, "get_support"):
        kept, scaler = _Select(step.get_support(indices=True)), getattr(step, "scaler_", None)
        return kept if scaler is None else nn.Sequential(kept, _Standardise(scaler))
    raise _unsupported(name)


def _head(step: Any) -> nn.Module:
    name = type(step).__name__
    if name == "MLPHead":
        return step.network_  # type: ignore[no-any-return]
    if name == "LogisticRegression":
        weight, bias = step.coef_, step.intercept_
        if len(weight) == 1:  # two classes: the first one's logit is 0
            weight, bias = np.vstack([0 * weight, weight]), np.append(0 * bias, bias)
        return _linear(weight, bias)
    if name == "NearestMeanHead":
        # |x - m|² = |x|² - 2 x·m + |m|², and |x|² is the same for all classes.
        means, variance = step.means_, step.variance_
        return _linear(means / variance, -np.square(means).sum(axis=1) / (2 * variance))
    raise _unsupported(name)


def _unsupported(name: str) -> UnknownName:
    return UnknownName(
        f"{name} can't be written as an ONNX graph",
        f"Fusions that can: {', '.join(FUSIONS)}; heads that can: {', '.join(HEADS)}. Others label "
        "images with featcache predict; featcache export --standalone takes them elsewhere.",
    )


class _Normalise(nn.Module):
    """uint8 pixels as the backbone takes them."""

    mean: Tensor
    std: Tensor

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        shape = (1, 3, 1, 1)
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(shape))
        self.register_buffer("std", torch.tensor(preprocess.std).view(shape))

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels.to(torch.float32) / 255 - self.mean) / self.std  # (n, 3, h, w)


class _Standardise(nn.Module):
    """A fitted StandardScaler."""

    mean: Tensor
    scale: Tensor

    def __init__(self, scaler: Any) -> None:
        super().__init__()
        self.register_buffer("mean", _float32(scaler.mean_))
        self.register_buffer("scale", _float32(scaler.scale_))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.scale  # (n, d)


class _Concat(nn.Module):
    """A fitted `ConcatFusion`."""

    def __init__(self, fusion: Any) -> None:
        super().__init__()
        self.blocks = list(fusion.blocks_)
        self.by_row = fusion.scale == "l2"
        self.scale = nn.Identity() if fusion.scaler_ is None else _Standardise(fusion.scaler_)
        self.pca = nn.ModuleList(_components(pca) for pca in fusion.pca_ or ())

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


class _Select(nn.Module):
    """The columns that a feature selection kept."""

    columns: Tensor

    def __init__(self, columns: Any) -> None:
        super().__init__()
        self.register_buffer("columns", torch.from_numpy(np.asarray(columns, np.int64)))

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.columns)  # (n, kept)


class _Spread(nn.Module):
    """Softmax; a class that was not trained on gets 0."""

    table: Tensor | None

    def __init__(self, trained: Any, classes: Sequence[str]) -> None:
        super().__init__()
        known = [str(label) for label in trained]
        table = torch.tensor([[float(a == b) for b in classes] for a in known])
        self.register_buffer("table", None if known == list(classes) else table)

    def forward(self, logits: Tensor) -> Tensor:
        proba = logits.softmax(1)  # (n, trained classes)
        return proba if self.table is None else proba @ self.table  # (n, classes)


def _components(pca: Any) -> nn.Linear:
    """A fitted PCA that doesn't whiten."""
    return _linear(pca.components_, -pca.components_ @ pca.mean_)


def _linear(weight: Any, bias: Any) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(_float32(weight))
        layer.bias.copy_(_float32(bias))
    return layer


def _float32(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))


def described_inputs(graph: Graph | TunedGraph, names: Sequence[str]) -> Mapping[str, Any]:
    """What an input's pixels must have been through, by the input's name."""
    return {
        name: {**preprocess.plain(), "layout": "uint8 RGB (n, 3, height, width), resized and cut"}
        for name, preprocess in zip(names, graph.inputs, strict=True)
    }
