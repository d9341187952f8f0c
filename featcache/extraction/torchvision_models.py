"""torchvision's classification models, and how each becomes a backbone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.errors import RecipeError
from featcache.extraction.backbone import PENULTIMATE, Backbone, at_layer
from featcache.extraction.preprocess import from_plain
from featcache.extraction.state_dict import fit_state, load_exactly, read_state, read_tuned
from featcache.extraction.weights import Absent, Published, Weights, find_weights
from featcache.store.spec import read_layer

if TYPE_CHECKING:
    import torch

_CLASSES = 1000


@dataclass(frozen=True)
class Size:
    """How large a backbone is, with its default weights.

    Attributes
    ----------
    millions : float
        Parameters, in millions.
    megabytes : float
        The weight file.
    gflops : float
        Multiplications and additions for one image, in billions.
    pixels : int
        Side of the image that it sees.
    tag : str
        The default weights.
    """

    millions: float
    megabytes: float
    gflops: float
    pixels: int
    tag: str


@dataclass(frozen=True)
class Torchvision:
    """A classification model of torchvision.

    Attributes
    ----------
    dim : int
        Width of the vector before the last, classifying layer.
    library : str
    """

    dim: int
    library: str = "torchvision"

    def published(self, name: str) -> dict[str, Published]:
        """Its weight files by tag, the default first."""
        return {one["tag"]: Published(one["tag"], one["url"]) for one in weights_of(name)}

    def size(self, name: str) -> Size:
        """How large it is."""
        default = weights_of(name)[0]
        return Size(
            millions=default["parameters"] / 1e6,
            megabytes=_or_nan(default["megabytes"]),
            gflops=_or_nan(default["gflops"]),
            pixels=default["preprocess"]["crop"],
            tag=default["tag"],
        )

    def open(
        self,
        name: str,
        weights: str,
        folder: Path | None,
        layer: str,
        image_size: int | None,
        absent: Absent = "download",
    ) -> Backbone:
        """The backbone with these weights and the preprocessing that belongs to them."""
        found = find_weights(name, weights, self.published(name), folder, absent)
        known = weights_of(name)
        own = from_plain(next((w for w in known if w["tag"] == found.tag), known[0])["preprocess"])
        tuned = read_tuned(found.path)
        preprocess = own.at(image_size)
        if tuned is not None and image_size is None:
            preprocess = from_plain(tuned.preprocess)
        _check_size(name, preprocess.crop, own.crop)
        return Backbone(
            name=name,
            library=self.library,
            weights=found.tag,
            weights_sha256=found.sha256,
            preprocess=preprocess,
            build=lambda: _build(name, found, layer, preprocess.crop),
            layer=layer,
            trained_on=frozenset() if tuned is None else tuned.trained_on,
        )


def weights_of(name: str) -> Sequence[Mapping[str, Any]]:
    """What torchvision says of a model's weights, the default first; see `read_library`.

    From the table beside this module, which was made of one version of torchvision: to import the
    library takes seconds. Of any other version, from the library itself.
    """
    known = _table()
    return known["models"][name] if known["version"] == _installed() else read_library(name)


def read_library(name: str) -> list[dict[str, Any]]:
    """The weights of a model as plain data: tag, url, size, cost and preprocessing."""
    from torchvision.models import get_model_weights

    enum = get_model_weights(name)
    # VGG16's IMAGENET1K_FEATURES holds NaN in the layers behind the convolutions.
    members = [enum.DEFAULT, *(m for m in enum if m != enum.DEFAULT)]
    return [
        {
            "tag": one.name,
            "url": one.url,
            "parameters": one.meta["num_params"],
            "megabytes": one.meta.get("_file_size"),
            "gflops": one.meta.get("_ops"),
            "preprocess": _plain(one.transforms()),
        }
        for one in members
        if "FEATURES" not in one.name
    ]


TABLE = Path(__file__).with_name("torchvision_weights.json")


@cache
def _table() -> Mapping[str, Any]:
    table: Mapping[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table


def _installed() -> str:
    """The version of torchvision, without what it was built for; "" if it is not installed."""
    try:
        return version("torchvision").partition("+")[0]
    except PackageNotFoundError:
        return ""


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _plain(transforms: Any) -> dict[str, Any]:
    """torchvision's `ImageClassification` preset, as `from_plain` takes it."""
    return {
        "resize": transforms.resize_size[0],
        "crop": transforms.crop_size[0],
        "interpolation": transforms.interpolation.value,
        "mean": list(transforms.mean),
        "std": list(transforms.std),
        "antialias": bool(transforms.antialias),
    }


def _check_size(name: str, size: int, own: int) -> None:
    if name.startswith("maxvit") and size != own:
        raise RecipeError(f"{name} takes images of {own} px only, not {size}")
    if name.startswith("vit_") and size % int(name.rsplit("_", 1)[1]):
        patch = name.rsplit("_", 1)[1]
        raise RecipeError(f"{name} cuts patches of {patch} px: {size} is no multiple of that")


def _build(name: str, weights: Weights, layer: str, crop: int) -> torch.nn.Module:
    import torch
    from torchvision.models import get_model

    # Its own generator state is put back: making a network must not disturb the caller's.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(weights.seed or 0)  # leaves those of GPUs alone
        network: torch.nn.Module = get_model(name, weights=None, **_options(name, weights, crop))
    head = _take_classifier_away(network)
    if weights.path is not None:
        _load(network, name, weights.path, crop, (f"{head}.", "aux1.", "aux2.", "AuxLogits."))
    if layer == PENULTIMATE:
        return network
    options = read_layer(layer)
    if options["layer"] != PENULTIMATE:
        return at_layer(network, options["layer"])
    return _pooled(network, name, options["pool"], options["layers"])


# Networks that pool without a module, and the one that gives the map.
_LAST_MAPS = {"densenet": "features", "mnasnet": "layers", "mobilenet_v2": "features",
              "shufflenet": "conv5"}  # fmt: skip


def _pooled(network: torch.nn.Module, name: str, pool: str, layers: str) -> torch.nn.Module:
    """The network with another pooling than its own, or the class tokens of several blocks."""
    from torch import nn

    from featcache.extraction.pooling import (
        MapPooling,
        TokenPooling,
        block_range,
        check_pool,
        join,
        pool_map,
    )

    pool = "cls" if pool == "own" else pool  # of several blocks
    if name.startswith("vit_"):
        check_pool(name, pool, layers, "tokens", has_class=True)
        vit: Any = network
        wanted = block_range(name, layers, len(vit.encoder.layers))
        return TokenPooling(network, lambda vit, x: _tokens(vit, x, wanted), pool, 1, nn.Identity())
    at = next((last for start, last in _LAST_MAPS.items() if name.startswith(start)), None)
    poolings = [
        path for path, module in network.named_modules()
        if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1))
    ]  # fmt: skip
    check_pool(name, pool, layers, "map" if at or poolings else "none")
    if at is None:
        return pool_map(network, pool, poolings[-1])  # those before it are of squeeze-excitations
    before = [network.get_submodule(at), *([nn.ReLU()] if at == "features" else [])]
    network.set_submodule(at, nn.Sequential(*before, MapPooling(pool)))
    return join(network, pool)


def _tokens(vit: Any, x: torch.Tensor, wanted: range) -> list[torch.Tensor]:
    """After each block wanted the tokens (n, 1 + patches, d), normalised as after the last."""
    import torch

    x = vit._process_input(x)  # (n, patches, d)
    x = torch.cat([vit.class_token.expand(len(x), -1, -1), x], dim=1)
    x = vit.encoder.dropout(x + vit.encoder.pos_embedding)
    found = []
    for number, block in enumerate(vit.encoder.layers):
        x = block(x)
        found += [vit.encoder.ln(x)] if number in wanted else []
    return found


def _options(name: str, weights: Weights, crop: int) -> dict[str, Any]:
    """What torchvision's builder sets by itself when it is given its own weights."""
    if name in ("googlenet", "inception_v3"):
        # Without transform_input these networks see wrongly normalised images, silently.
        fresh = weights.path is None
        return {"transform_input": True, "aux_logits": False, "init_weights": fresh}
    if name.startswith("vit_"):
        return {"image_size": crop}
    return {}


def _take_classifier_away(network: torch.nn.Module) -> str:
    """Replace the last layer by nothing, so that the network gives what went into it."""
    from torch import nn

    if type(network).__name__ == "SqueezeNet":  # its classifier is a convolution, then pooling
        network.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1))
        return "classifier"
    linear: list[str] = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == _CLASSES
    ]
    network.set_submodule(linear[-1], nn.Identity())
    return linear[-1]


def _load(
    network: torch.nn.Module, name: str, path: Path, crop: int, dropped: tuple[str, ...]
) -> None:
    state: Any = read_state(path)
    if name.startswith("vit_") and "encoder.pos_embedding" in state:
        from torchvision.models.vision_transformer import interpolate_embeddings

        patch = int(name.rsplit("_", 1)[1])
        metadata = getattr(state, "_metadata", None)
        state = interpolate_embeddings(crop, patch, state)
        if metadata is not None:
            state._metadata = metadata
    kept = fit_state(state, network, dropped)
    load_exactly(network, kept, name, path)
