"""Graph: backbones, fusion and head as one torch module, from pixels to probabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from featcache.errors import UnknownName
from featcache.extraction.preprocess import Preprocess
from featcache.fitting.fusions import FUSIONS
from featcache.fitting.heads import HEADS
from featcache.fitting.networks import Standardise, logits
from featcache.fitting.registry import names_with


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
    modules = [_module(step) for step in steps]
    return nn.Sequential(*modules, _Spread(steps[-1].classes_, classes)).eval()


def _steps(estimator: Any) -> list[Any]:
    """The steps of pipelines within pipelines, in a row."""
    if not hasattr(estimator, "steps"):
        return [estimator]
    inner = [step for _, step in estimator.steps if step not in (None, "passthrough")]
    return [one for step in inner for one in _steps(step)]


def _module(step: Any) -> nn.Module:
    """A fitted step as a module; a head's gives logits."""
    if type(step) in _OF_SKLEARN:
        return _OF_SKLEARN[type(step)](step)
    if hasattr(step, "as_module"):
        return step.as_module()  # type: ignore[no-any-return]
    if hasattr(step, "get_support"):
        kept, scaler = _Select(step.get_support(indices=True)), getattr(step, "scaler_", None)
        return kept if scaler is None else nn.Sequential(kept, Standardise(scaler))
    fusions, heads = names_with(FUSIONS, _can), names_with(HEADS, _can)
    raise UnknownName(
        f"{type(step).__name__} can't be written as an ONNX graph",
        f"Fusions that can: {', '.join(fusions)}; heads that can: {', '.join(heads)}. Others label "
        "images with featcache predict; featcache export --standalone takes them elsewhere.",
    )


def _can(kind: Any) -> bool:
    return kind in _OF_SKLEARN or hasattr(kind, "as_module")


_OF_SKLEARN: dict[type, Callable[[Any], nn.Module]] = {
    LogisticRegression: logits,
    StandardScaler: Standardise,
}


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


def described_inputs(graph: Graph | TunedGraph, names: Sequence[str]) -> Mapping[str, Any]:
    """What an input's pixels must have been through, by the input's name."""
    return {
        name: {**preprocess.plain(), "layout": "uint8 RGB (n, 3, height, width), resized and cut"}
        for name, preprocess in zip(names, graph.inputs, strict=True)
    }
