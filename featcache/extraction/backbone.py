"""Backbone: architecture + weights + layer + preprocessing, and the network they make."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from featcache.errors import FeatcacheError, unknown
from featcache.extraction.preprocess import Preprocess
from featcache.extraction.weights import NOT_AT_HAND
from featcache.store.key import Key

if TYPE_CHECKING:
    import torch

PENULTIMATE = "penultimate"


@dataclass(frozen=True, eq=False)
class Backbone:
    """A pretrained network that turns an image into a vector.

    Attributes
    ----------
    name : str
        For instance "resnet18".
    library : str
        Where the architecture comes from; another library's network of the same name is
        another backbone.
    weights : str
        Their tag.
    weights_sha256 : str
        Hex digest of the weight file, or "random:SEED".
    preprocess : Preprocess
    build : callable
        Makes the network: float32 (n, 3, crop, crop), normalised -> (n, d). Called only when
        there is something to compute.
    layer : str, default "penultimate"
        Whose output is taken, and how it is pooled.
    trained_on : frozenset of str, default empty
        sha256 of the images whose labels fine-tuned weights have seen; goes with the features.
    calibration : str, default ""
        For int8, the digest of what it is quantised on, see `quantising.calibrated`.
    quantised : callable, optional
        For int8, gives the quantised network as bytes, see `quantising.read_network`.
    config : str, default ""
        The digest of what the network is made by, where its name doesn't say that.
    """

    name: str
    library: str
    weights: str
    weights_sha256: str
    preprocess: Preprocess
    build: Callable[[], torch.nn.Module]
    layer: str = PENULTIMATE
    trained_on: frozenset[str] = frozenset()
    calibration: str = ""
    quantised: Callable[[], bytes] | None = None
    config: str = ""

    def key(self, precision: str = "fp32", dtype: str = "float32") -> Key:
        """The cache key of this backbone's vectors in a precision and a stored dtype."""
        return Key(
            backbone=self.name,
            library=self.library,
            weights=self.weights,
            weights_sha256=self.weights_sha256,
            layer=self.layer,
            preprocess=self.preprocess.plain(),
            precision=precision,
            dtype=dtype,
            calibration=self.calibration if precision == "int8" else "",
            config=self.config,
        )

    def without_view(self) -> Backbone:
        """The backbone that sees images as they are."""
        return replace(self, preprocess=replace(self.preprocess, view="none"))


@dataclass(frozen=True)
class BackboneOptions:
    """How backbones are opened, for what their specs leave open; see `open_backbone`."""

    weights: str = "auto"
    weights_dir: str | Path | None = None
    layer: str = PENULTIMATE
    image_size: int | None = None
    colour: str | None = None
    filter: str | None = None
    scale: str | None = None
    pool: str = "own"
    layers: str = "last"

    @classmethod
    def among(cls, values: Mapping[str, Any]) -> Self:
        """Those of a command or recipe, which has others too."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})

    @property
    def words(self) -> dict[str, str]:
        """The options as a spec says them."""
        words = {"size": self.image_size, "weights": self.weights, "layer": self.layer,
                 "colour": self.colour, "filter": self.filter, "scale": self.scale,
                 "pool": self.pool, "layers": self.layers}  # fmt: skip
        return {name: str(value) for name, value in words.items() if value is not None}


def as_cached(backbone: Backbone, keys: Iterable[Key]) -> Backbone:
    """A backbone whose weights are not at hand, under the key that its published weights made.

    Parameters
    ----------
    backbone : Backbone
        Returned as it is, if its weights are at hand or no key has the sha256 that is published.
    keys : iterable of Key
        Of the cache's files.
    """
    begins = backbone.weights_sha256.removeprefix(NOT_AT_HAND)
    if not begins or begins == backbone.weights_sha256:
        return backbone
    same = (backbone.name, backbone.library, backbone.weights)
    for key in keys:
        made = (key.backbone, key.library, key.weights)
        if made == same and key.weights_sha256.startswith(begins):
            return replace(backbone, weights_sha256=key.weights_sha256)
    return backbone


def at_layer(network: torch.nn.Module, layer: str) -> torch.nn.Module:
    """The network cut at a named module; maps and token sequences are averaged over positions."""
    import torch
    from torch import nn

    swin = type(network).__name__ == "SwinTransformer"
    modules = dict(network.named_modules())
    if layer not in modules or not layer:
        raise unknown("layer", layer, [name for name in modules if name])

    class AtLayer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.output: torch.Tensor | None = None
            modules[layer].register_forward_hook(self._keep)

        def _keep(self, _: nn.Module, __: object, output: object) -> None:
            # Pooled at once: what follows may work in place, as ReLU(inplace=True) does.
            self.output = _pooled(output, swin) if isinstance(output, torch.Tensor) else None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.network(x)
            output, self.output = self.output, None
            if output is None:
                raise FeatcacheError(
                    f"layer {layer!r} gives no vector, map or tokens", "Name another --layer."
                )
            return output

    return AtLayer()


def _pooled(output: torch.Tensor, swin: bool) -> torch.Tensor | None:
    """The mean over positions, (n, d); None where it can't be told which axes those are."""
    if output.ndim == 2:
        return output.clone()  # (n, d)
    if output.ndim == 3:
        return output.mean(dim=1)  # (n, tokens, d)
    if output.ndim != 4:
        return None
    # Images are square, and so are maps: (n, d, h, h), but (n, h, h, d) inside Swin and ConvNeXt.
    _, first, middle, last = output.shape
    if middle == last and not (swin and first == middle):
        return output.mean(dim=(2, 3))
    return output.mean(dim=(1, 2)) if first == middle else None
