"""timm's models, and how each becomes a backbone: `timm:MODEL` or `timm:MODEL.TAG`.

Those outside its registry are in `timm_hub`.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.errors import (
    FeatcacheError,
    RecipeError,
    UnknownName,
    WeightsError,
    first_line,
    unknown,
)
from featcache.extraction.backbone import PENULTIMATE, Backbone, at_layer
from featcache.extraction.preprocess import Preprocess, from_plain
from featcache.extraction.silence import silence
from featcache.extraction.state_dict import (
    difference,
    fit_state,
    of_another,
    read_state,
    read_tuned,
)
from featcache.extraction.timm_hub import (
    Described,
    card_of,
    describe,
    is_elsewhere,
    published_elsewhere,
)
from featcache.extraction.torchvision_models import Size
from featcache.extraction.weights import (
    PACKAGED,
    PYPI,
    Absent,
    Published,
    Weights,
    find_weights,
    on_hub,
)
from featcache.hashing import canonical_json
from featcache.store.spec import known_as, read_layer, written_layer
from featcache.store.weights_folder import file_stem

if TYPE_CHECKING:
    import torch

PREFIX = "timm:"
_UNTAGGED = "default"  # weights to which timm gives no tag
_SEED = 314_159  # of networks that a file fills: none that a user is likely to name
log = logging.getLogger("featcache")


@dataclass(frozen=True)
class Timm:
    """Every model of timm: its pooled features, before the classifier.

    Attributes
    ----------
    library : str
    """

    library: str = "timm"

    def published(self, name: str) -> dict[str, Published]:
        """Its weight files by tag, timm's default first; those that are no pickles."""
        if is_elsewhere(name):
            return published_elsewhere(name)
        files = {tag: _file(name, config) for tag, config in _configs(name).items()}
        known = {tag: file for tag, file in files.items() if file is not None}
        return known | ({PYPI: PACKAGED[name]} if name in PACKAGED else {})

    def outline(self, name: str) -> tuple[int, Size]:
        """The width of its vectors, and how large it is; nothing is computed or downloaded.

        Raises
        ------
        RecipeError
            If it gives no vector of a square of RGB.
        """
        card = card_of(name) if is_elsewhere(name) else None
        if card is not None:
            return card.dim, Size(card.millions, math.nan, math.nan, card.pixels, "main")
        tag, config = next(iter(_configs(name).items()))
        side = _preprocess(name, config, None).crop
        width, parameters = _measured(config.architecture)
        if not width:
            raise RecipeError(f"{name} gives no vector of an image", "Take another model.")
        return width, Size(parameters / 1e6, math.nan, math.nan, side, tag)

    def open(
        self,
        name: str,
        weights: str,
        folder: Path | None,
        layer: str,
        image_size: int | None,
        absent: Absent = "download",
    ) -> Backbone:
        """The backbone with these weights and the preprocessing that belongs to them.

        Parameters
        ----------
        name : str
            "timm:MODEL" or "timm:MODEL.TAG"; without a tag timm's default.
        weights, folder, layer, image_size, absent
            See `open_backbone`.
        """
        if is_elsewhere(name):
            _timm()
            described = describe(name, folder, absent)
            published = published_elsewhere(name, folder)
            name = known_as(name)
            found = find_weights(name, weights, published, folder, absent)
            if layer == PENULTIMATE and described.pool:
                layer = written_layer(PENULTIMATE, described.pool)
        else:
            configs = _configs(name)
            found = find_weights(name, weights, self.published(name), folder, absent)
            described = Described(configs.get(found.tag) or next(iter(configs.values())))
        config = described.config
        preprocess = _preprocess(name, config, image_size)
        _warn_of_squares(name, config)
        tuned = read_tuned(found.path)
        if tuned is not None and image_size is None:
            preprocess = from_plain(tuned.preprocess)
        return Backbone(
            name=name,
            library=self.library,
            weights=found.tag,
            weights_sha256=found.sha256,
            preprocess=preprocess,
            build=lambda: _build(name, described, found, layer, preprocess.crop),
            layer=layer,
            trained_on=frozenset() if tuned is None else tuned.trained_on,
            config=described.digest,
        )


def list_timm(part: str = "") -> list[str]:
    """Names of timm's pretrained models, with their tags, that contain `part` or match it."""
    pattern = part if "*" in part else f"*{part}*"
    return [f"{PREFIX}{name}" for name in _timm().list_pretrained(pattern)]


def licence_of(name: str, folder: Path | None = None) -> str:
    """The licence of a model's weights, by its card or configuration; "" if that is not known."""
    if is_elsewhere(name):
        card = card_of(name)
        return card.licence if card else describe(name, folder, "refuse").config.license or ""
    return next(iter(_configs(name).values())).license or ""


def _timm() -> Any:
    if importlib.util.find_spec("timm") is None:
        raise FeatcacheError("timm is not installed", 'pip install "featcache[timm]"')
    import timm

    return timm


def _configs(name: str) -> dict[str, Any]:
    """timm's configurations by tag, the default first; where a tag is named, that one alone."""
    timm = _timm()
    model, _, tag = name.removeprefix(PREFIX).partition(".")
    current = timm.models.get_deprecated_models().get(model)
    if current:
        raise UnknownName(f"timm now calls {model} {current}", f"--backbone {PREFIX}{current}")
    if not model or not timm.is_model(model):
        raise unknown(
            "timm model", model, timm.list_models(), "See: featcache backbones --timm PART"
        )
    found = {
        config.tag or _UNTAGGED: config
        for config in timm.models.get_arch_pretrained_cfgs(model).values()
    } or {_UNTAGGED: timm.models.PretrainedCfg(architecture=model)}
    if tag and tag not in found:
        raise unknown(f"tag of {PREFIX}{model}", tag, found)
    return {tag: found[tag]} if tag else found


def _file(name: str, config: Any) -> Published | None:
    """The file in which a configuration's weights are published; None where it isn't safe."""
    tag = config.tag or _UNTAGGED
    if config.hf_hub_id:
        model = name.removeprefix(PREFIX).partition(".")[0]
        stem = file_stem(f"{PREFIX}{model}.{tag}")
        return on_hub(tag, stem, config.hf_hub_id, config.hf_hub_filename or "")
    url = config.url if isinstance(config.url, str) else ""
    return Published(tag, url) if url.endswith((".pth", ".safetensors")) else None


def _preprocess(name: str, config: Any, image_size: int | None) -> Preprocess:
    """timm's own data configuration as plain data."""
    data = _timm().data.resolve_data_config(pretrained_cfg=config.to_dict())
    channels, height, width = data["input_size"]
    if channels != 3 or (height != width and image_size is None):
        raise RecipeError(
            f"{name} sees {channels} channels of {height} × {width} pixels, no square of RGB",
            "Take another model." if channels != 3 else "Pass --image-size.",
        )
    side = image_size or height
    plain = Preprocess(
        resize=math.floor(height / data["crop_pct"]),
        crop=height,
        interpolation=data["interpolation"],
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
    )
    return replace(plain.at(image_size), resize=math.floor(side / data["crop_pct"]))


def _warn_of_squares(name: str, config: Any) -> None:
    if config.crop_mode != "center":
        log.warning(
            "%s: timm has the mode %r for images that are no squares; cutting their middle instead",
            name, config.crop_mode,
        )  # fmt: skip


@functools.cache
def _measured(model: str) -> tuple[int, int]:
    """Width of a model's vectors, 0 where it gives none, and the number of its parameters."""
    import torch

    config = next(iter(_configs(PREFIX + model).values()))
    with torch.device("meta"), torch.no_grad():  # shapes without numbers
        network = _create(Described(config), config.input_size[-1]).eval()
        try:
            output = network(torch.zeros(1, *config.input_size))
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError):
            output = None
    is_vector = isinstance(output, torch.Tensor) and output.ndim == 2
    parameters = sum(tensor.numel() for tensor in network.parameters())
    return (int(output.shape[1]) if is_vector else 0), parameters


def _create(described: Described, crop: int, **options: Any) -> torch.nn.Module:
    """timm's network without its classifier."""
    config, made = described.config, described.options()
    dynamic = made.get("dynamic_img_size")
    fixed = config.fixed_input_size or ("img_size" in made and not dynamic)
    if fixed and config.input_size[1:] != (crop, crop):
        options["img_size"] = crop
    model = f"{config.architecture}.{config.tag}" if config.tag else config.architecture
    made = {**made, "num_classes": 0, **options}
    try:
        network: torch.nn.Module = _timm().create_model(model, **made)
    except (TypeError, LookupError, ValueError, AttributeError, AssertionError) as error:
        if described.arguments is None or options.get("pretrained"):
            raise
        raise WeightsError(
            f"timm can't make {model} with {canonical_json(dict(described.arguments))}: "
            f"{first_line(error)}",
            "Check model_args in its config.json.",
        ) from None
    return network


def _build(
    name: str, described: Described, weights: Weights, layer: str, crop: int
) -> torch.nn.Module:
    import torch

    # Its own generator state is put back: making a network must not disturb the caller's.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_SEED if weights.seed is None else weights.seed)
        network = _create(described, crop)
        if weights.path is not None:
            state = read_state(weights.path)
            if weights.tag == PYPI:
                state = _by_order(state, name, described.config, weights.path)
            network = _loaded(network, name, described, state, weights.path, crop)
    if layer == PENULTIMATE:
        return network
    options = read_layer(layer)
    if options["layer"] != PENULTIMATE:
        return at_layer(network, options["layer"])
    return _pooled(network, name, options["pool"], options["layers"])


def _pooled(network: torch.nn.Module, name: str, pool: str, layers: str) -> torch.nn.Module:
    """The network with another pooling than its own, or the class tokens of several blocks."""
    from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d

    from featcache.extraction.pooling import TokenPooling, block_range, check_pool, pool_map

    pool = "cls" if pool == "own" else pool  # of several blocks
    prefix = getattr(network, "num_prefix_tokens", None)
    if isinstance(prefix, int) and hasattr(network, "fc_norm"):  # ViT, DINOv2, SigLIP, EVA, BEiT
        has_class = getattr(network, "cls_token", None) is not None
        check_pool(name, pool, layers, "tokens", has_class)
        wanted = list(block_range(name, layers, len(network.get_submodule("blocks"))))  # type: ignore[arg-type]
        blocks = _last if layers == "last" else functools.partial(_several, wanted=wanted)
        return TokenPooling(network, blocks, pool, prefix, network.get_submodule("fc_norm"))
    poolings = [
        path for path, module in network.named_modules()
        if isinstance(module, SelectAdaptivePool2d) and module.pool_type
    ]  # fmt: skip
    check_pool(name, pool, layers, "map" if len(poolings) == 1 else "none")
    nhwc = getattr(network, "output_fmt", "NCHW") == "NHWC"
    return pool_map(network, pool, poolings[0], nhwc)


def _last(network: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """The tokens after the last block, (n, prefix + patches, d), normalised."""
    return [network.forward_features(x)]


def _several(network: Any, x: torch.Tensor, wanted: list[int]) -> list[torch.Tensor]:
    """The same after each of these blocks, as DINOv2's and DINOv3's linear probes take them."""
    import torch

    found = network.forward_intermediates(
        x, indices=wanted, return_prefix_tokens=True, norm=True, output_fmt="NLC",
        intermediates_only=True,
    )  # fmt: skip
    return [torch.cat([prefix, patches], dim=1) for patches, prefix in found]


def _loaded(
    fresh: torch.nn.Module,
    name: str,
    described: Described,
    state: OrderedDict[str, torch.Tensor],
    path: Path,
    crop: int,
) -> torch.nn.Module:
    """The network with a file's weights; those of old or of another size are converted by timm."""
    import torch

    wanted = fresh.state_dict()
    parts, heads = {_part(tensor) for tensor in wanted}, _heads(described.config)
    state = fit_state(state, fresh, ())
    without = OrderedDict(
        (tensor, value) for tensor, value in state.items()
        if tensor in wanted or _part(tensor) not in heads
    )  # fmt: skip
    # Left over may be what this network has no part of, such as an auxiliary classifier.
    missing, unexpected = difference(wanted, without)
    unexpected = [tensor for tensor in unexpected if _part(tensor) in parts]
    if not missing and not unexpected:
        fresh.load_state_dict(OrderedDict((tensor, without[tensor]) for tensor in wanted))
        return fresh
    overlay = {"state_dict": without, "num_classes": 0, "label_offset": None}
    torch.default_generator.manual_seed(_SEED)
    try:
        with silence("timm"):  # its remarks on a file that doesn't fit at once: checked here
            network = _create(described, crop, pretrained=True, pretrained_cfg_overlay=overlay)
    except (RuntimeError, LookupError, ValueError, TypeError, AttributeError, AssertionError):
        raise of_another(name, path, missing, unexpected) from None
    untouched = _untouched(network, wanted, without)
    if untouched:
        raise of_another(name, path, untouched, unexpected)
    del network.pretrained_cfg["state_dict"]  # type: ignore[union-attr,operator]
    return network


def _by_order(
    state: OrderedDict[str, torch.Tensor], name: str, config: Any, path: Path
) -> OrderedDict[str, torch.Tensor]:
    """Tensors that another implementation names differently, under timm's names for them.

    Raises
    ------
    WeightsError
        If one isn't of the kind and shape that stands in its place in timm's order.
    """
    import torch

    with torch.device("meta"):
        wanted = _timm().create_model(config.architecture).state_dict()
    pairs = list(zip(wanted.items(), state.items(), strict=False))
    odd = [
        ours
        for (ours, tensor), (theirs, value) in pairs
        if tensor.shape != value.shape or ours.rpartition(".")[2] != theirs.rpartition(".")[2]
    ]
    odd += [*wanted][len(state) :]
    if odd or len(state) > len(wanted):
        raise of_another(name, path, odd, [*state][len(wanted) :])
    return OrderedDict((ours, value) for (ours, _), (_, value) in pairs)


def _untouched(
    network: torch.nn.Module,
    before: dict[str, torch.Tensor],
    state: OrderedDict[str, torch.Tensor],
) -> list[str]:
    """Weights of layers that are as random as before: some of timm's models load what fits."""
    import torch
    from torch import nn

    layers = (nn.Conv2d, nn.Linear, nn.Embedding)
    return [
        tensor
        for tensor, value in (
            (f"{layer}.weight", module.weight)
            for layer, module in network.named_modules()
            if isinstance(module, layers)
        )
        if tensor in before and torch.equal(value, before[tensor])
        and not (tensor in state and torch.equal(value, state[tensor]))
    ]  # fmt: skip


def _heads(config: Any) -> set[str]:
    """The parts of a network that its classifiers stand in."""
    names = config.classifier or ()
    return {_part(name) for name in ([names] if isinstance(names, str) else names)}


def _part(tensor: str) -> str:
    return tensor.partition(".")[0]
