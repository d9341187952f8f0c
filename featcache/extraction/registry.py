"""The backbones that come by name.

`BACKBONES` at the foot names them all, with the width of their vector; one of your own is one
more line there, or any `Backbone` passed in place of a name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from featcache.errors import UnknownName, unknown
from featcache.extraction.backbone import PENULTIMATE, Backbone, BackboneOptions
from featcache.extraction.preprocess import Preprocess
from featcache.extraction.timm_hub import CARDS
from featcache.extraction.timm_models import PREFIX, Timm
from featcache.extraction.torchvision_models import Torchvision
from featcache.extraction.weights import ENDINGS, NOT_AT_HAND, Absent, check_spec
from featcache.store.spec import HUB, IMPORTED, Spec, parse_spec, written_layer

Names = str | Backbone | Sequence[str | Backbone]
_DEFAULTS = BackboneOptions()


def open_backbone(
    backbone: str | Backbone,
    *,
    weights: str = "auto",
    weights_dir: str | Path | None = None,
    layer: str = PENULTIMATE,
    image_size: int | None = None,
    colour: str | None = None,
    filter: str | None = None,
    scale: str | None = None,
    pool: str = "own",
    layers: str = "last",
    absent: Absent = "download",
) -> Backbone:
    """Find a backbone by name, with its weights and its own preprocessing.

    Parameters
    ----------
    backbone : str or Backbone
        A name in `BACKBONES`, with options of its own if it has some
        (`vit_b_16:size=384:colour=hsv`, see `featcache.store.spec`); or an object of your own,
        returned as it is. The other parameters are for what the name leaves open.
    weights : str, default "auto"
        "auto" (the library's default), a tag, a file, or "random[:SEED]".
    weights_dir : str or Path, optional
        A folder of weight files, searched first (default: FEATCACHE_WEIGHTS).
    layer : str, default "penultimate"
        Or the name of a module of the network, whose output is averaged over positions.
    image_size : int, optional
        Side of the square that the network sees, in pixels; its own by default.
    colour, filter, scale : str, optional
        See `Preprocess.changed`.
    pool : {"own", "cls", "mean", "cls+mean", "max", "gem", "mean+max"}, default "own"
        How the last map or the last block's tokens become one vector, see `extraction.pooling`.
    layers : str, default "last"
        Or "-4..-1": the class tokens of these blocks of a vision transformer, joined.
    absent : {"download", "refuse", "name"}, default "download"
        What to do if its weights are not at hand, see `find_weights`; with "name" the backbone
        has a key, and `build` raises WeightsError.

    Raises
    ------
    UnknownName
        If there is no such backbone, or an option that there is not.
    RecipeError
        If an option's value can't be used.
    WeightsError
        If its weights can't be found or read.
    """
    if isinstance(backbone, Backbone):
        return backbone
    options = BackboneOptions(
        weights, weights_dir, layer, image_size, colour, filter, scale, pool, layers
    )
    return _open(_filled(backbone, options), weights_dir, absent)


def open_backbones(
    backbone: Names, options: BackboneOptions = _DEFAULTS, absent: Absent = "download"
) -> list[Backbone]:
    """`open_backbone` for one or several; one name may come again with other options."""
    opened = [
        one if isinstance(one, Backbone) else _open(one, options.weights_dir, absent)
        for one in _several(backbone, options)
    ]
    _refuse_repeats(opened, [one.key().digest for one in opened])
    return opened


def check_specs(backbone: Names, options: BackboneOptions = _DEFAULTS) -> None:
    """Refuse names, options and files that are not there; no library is imported, nothing read.

    What only torchvision or timm knows (tags of weights, layers, models of timm) is left to
    `open_backbones`.

    Raises
    ------
    UnknownName, RecipeError, UnknownWeights
    """
    for one in _several(backbone, options):
        if isinstance(one, Spec):
            family_of(one.name)
            words = {name: one.options.get(name) for name in ("colour", "filter", "scale")}
            Preprocess().changed(**words)
            check_spec(one.name, one.options["weights"])


def check_backbones(backbone: Names, options: BackboneOptions = _DEFAULTS) -> list[Backbone]:
    """Find what `open_backbones` would refuse, and layers that are not there, without any weights.

    Returns
    -------
    list of Backbone
        As `open_backbones` gives them, but for the weights of a library: these are random.

    Raises
    ------
    UnknownName, RecipeError
        As `open_backbones`.
    WeightsError
        For a weight file that is not there.
    """
    import torch

    opened: list[Backbone] = []
    marks = []
    for one in _several(backbone, options):
        if isinstance(one, Backbone):
            opened.append(one)
            marks.append(one.key().digest)
            continue
        weights = one.options["weights"]
        published = weights == "auto" or weights in family_of(one.name).published(one.name)
        untrained = replace(one, options={**one.options, "weights": "random"})
        opened.append(_open(untrained if published else one, None))
        marks.append(f"{opened[-1].key().digest} {weights}")
        if _layer(one) != PENULTIMATE:
            try:
                with torch.device("meta"):  # the parts of the network, without its numbers
                    _open(untrained, None).build()
            except NotImplementedError:  # torchvision's RegNets compute with them
                _open(untrained, None).build()
    _refuse_repeats(opened, marks)
    return opened


def _filled(text: str, options: BackboneOptions) -> Spec:
    spec = parse_spec(text)
    return replace(spec, options={**options.words, **spec.options})


def _several(backbone: Names, options: BackboneOptions) -> list[Spec | Backbone]:
    backbones = [backbone] if isinstance(backbone, str | Backbone) else list(backbone)
    if not backbones:
        raise UnknownName("no backbone named", "For instance --backbone resnet18.")
    found = [one if isinstance(one, Backbone) else _filled(one, options) for one in backbones]
    specs = [one for one in found if isinstance(one, Spec)]
    _refuse_repeats(specs, [f"{one.name} {sorted(one.options.items())}" for one in specs])
    weights = options.weights
    sharing = {one.name for one in specs if one.options["weights"] == weights}
    if len(sharing) > 1 and Path(weights).suffix in ENDINGS:
        raise UnknownName(
            f"--weights {weights} is one file, and there are {len(sharing)} backbones",
            "Put a file for each into one folder and pass --weights-dir FOLDER.",
        )
    return found


def _refuse_repeats(backbones: Sequence[Spec | Backbone], marks: Sequence[str]) -> None:
    if len(set(marks)) < len(marks):
        names = ", ".join(backbone.name for backbone in backbones)
        raise UnknownName(
            f"the same backbone twice: {names}", "Name each once, or with other options."
        )


def _open(spec: Spec, weights_dir: str | Path | None, absent: Absent = "download") -> Backbone:
    """The backbone of a spec that says its weights and layer."""
    options = spec.options
    family = family_of(spec.name)
    words = {name: options.get(name) for name in ("colour", "filter", "scale")}
    Preprocess().changed(**words)  # refused before a weight file is looked for
    folder = None if weights_dir is None else Path(weights_dir).expanduser()
    size = int(options["size"]) if "size" in options else None
    what = (spec.name, options["weights"], folder, _layer(spec), size)
    opened = family.open(*what, absent)
    if opened.weights_sha256.startswith(NOT_AT_HAND):  # never a network of random weights instead
        opened = replace(opened, build=lambda: family.open(*what, "refuse").build())
    return replace(opened, preprocess=opened.preprocess.changed(**words))


def _layer(spec: Spec) -> str:
    return written_layer(*(spec.options[name] for name in ("layer", "pool", "layers")))


def family_of(name: str) -> Torchvision | Timm:
    """What opens the backbones of that name.

    Raises
    ------
    UnknownName
        If there is no such backbone.
    """
    if name.startswith(PREFIX):
        return Timm()
    if name.startswith(IMPORTED):
        raise UnknownName(
            f"{name} can't be extracted: another tool has made its vectors",
            "Import those of further images: featcache import FILE --data DATA --as "
            f"{name.removeprefix(IMPORTED)}",
        )
    if name in BACKBONES:
        return BACKBONES[name]
    if name.lower() in FAMILIES:
        raise UnknownName(
            f"{name!r} is no backbone, but the name of several",
            f"{' or '.join(FAMILIES[name.lower()])}; see: featcache backbones --search {name}",
        )
    first = name.partition(":")[0]
    if first in ("hf-hub", "hf_hub", "local-dir"):
        raise UnknownName(f"unknown backbone {name!r}", f"timm opens it: {PREFIX}{name}")
    hint = f"Options are written {first}:size=384." if first in BACKBONES else ""
    raise unknown("backbone", name, BACKBONES, hint or "See: featcache backbones")


# Plain names of families, and the specs that they may mean; the smallest first.
FAMILIES: dict[str, tuple[str, ...]] = {
    "dinov3": (
        "timm:vit_small_patch16_dinov3.lvd1689m", "timm:vit_base_patch16_dinov3.lvd1689m",
        "timm:vit_large_patch16_dinov3.lvd1689m", "timm:convnext_tiny.dinov3_lvd1689m",
        "timm:convnext_base.dinov3_lvd1689m",
    ),
    "dinov2": (
        "timm:vit_small_patch14_dinov2.lvd142m", "timm:vit_small_patch14_reg4_dinov2.lvd142m",
        "timm:vit_base_patch14_dinov2.lvd142m", "timm:vit_base_patch14_reg4_dinov2.lvd142m",
        "timm:vit_large_patch14_reg4_dinov2.lvd142m",
    ),
    "siglip": (
        "timm:vit_base_patch16_siglip_224.v2_webli", "timm:vit_base_patch16_siglip_224.webli",
        "timm:vit_large_patch16_siglip_256.v2_webli", "timm:vit_so400m_patch14_siglip_224.v2_webli",
    ),
    "clip": (
        "timm:vit_base_patch32_clip_224.openai", "timm:vit_base_patch16_clip_224.openai",
        "timm:vit_base_patch16_clip_224.laion2b", "timm:vit_large_patch14_clip_224.openai",
    ),
    "uni": (f"{HUB}MahmoodLab/UNI2-h", f"{HUB}MahmoodLab/UNI"),
    "uni2": (f"{HUB}MahmoodLab/UNI2-h",),
    "virchow": (f"{HUB}paige-ai/Virchow2", f"{HUB}paige-ai/Virchow"),
    "virchow2": (f"{HUB}paige-ai/Virchow2",),
    "h-optimus": (f"{HUB}bioptimus/H-optimus-1", f"{HUB}bioptimus/H-optimus-0"),
    "h0-mini": (f"{HUB}bioptimus/H0-mini",),
    "gigapath": (f"{HUB}prov-gigapath/prov-gigapath",),
    "kaiko": tuple(f"{HUB}{one}" for one in CARDS if "kaiko" in one),
    "lunit": tuple(f"{HUB}{one}" for one in CARDS if "lunit" in one),
}  # fmt: skip

BACKBONES: dict[str, Torchvision] = {
    "alexnet": Torchvision(4096),
    "convnext_base": Torchvision(1024),
    "convnext_large": Torchvision(1536),
    "convnext_small": Torchvision(768),
    "convnext_tiny": Torchvision(768),
    "densenet121": Torchvision(1024),
    "densenet161": Torchvision(2208),
    "densenet169": Torchvision(1664),
    "densenet201": Torchvision(1920),
    "efficientnet_b0": Torchvision(1280),
    "efficientnet_b1": Torchvision(1280),
    "efficientnet_b2": Torchvision(1408),
    "efficientnet_b3": Torchvision(1536),
    "efficientnet_b4": Torchvision(1792),
    "efficientnet_b5": Torchvision(2048),
    "efficientnet_b6": Torchvision(2304),
    "efficientnet_b7": Torchvision(2560),
    "efficientnet_v2_l": Torchvision(1280),
    "efficientnet_v2_m": Torchvision(1280),
    "efficientnet_v2_s": Torchvision(1280),
    "googlenet": Torchvision(1024),
    "inception_v3": Torchvision(2048),
    "maxvit_t": Torchvision(512),
    "mnasnet0_5": Torchvision(1280),
    "mnasnet0_75": Torchvision(1280),
    "mnasnet1_0": Torchvision(1280),
    "mnasnet1_3": Torchvision(1280),
    "mobilenet_v2": Torchvision(1280),
    "mobilenet_v3_large": Torchvision(1280),
    "mobilenet_v3_small": Torchvision(1024),
    "regnet_x_16gf": Torchvision(2048),
    "regnet_x_1_6gf": Torchvision(912),
    "regnet_x_32gf": Torchvision(2520),
    "regnet_x_3_2gf": Torchvision(1008),
    "regnet_x_400mf": Torchvision(400),
    "regnet_x_800mf": Torchvision(672),
    "regnet_x_8gf": Torchvision(1920),
    "regnet_y_128gf": Torchvision(7392),
    "regnet_y_16gf": Torchvision(3024),
    "regnet_y_1_6gf": Torchvision(888),
    "regnet_y_32gf": Torchvision(3712),
    "regnet_y_3_2gf": Torchvision(1512),
    "regnet_y_400mf": Torchvision(440),
    "regnet_y_800mf": Torchvision(784),
    "regnet_y_8gf": Torchvision(2016),
    "resnet101": Torchvision(2048),
    "resnet152": Torchvision(2048),
    "resnet18": Torchvision(512),
    "resnet34": Torchvision(512),
    "resnet50": Torchvision(2048),
    "resnext101_32x8d": Torchvision(2048),
    "resnext101_64x4d": Torchvision(2048),
    "resnext50_32x4d": Torchvision(2048),
    "shufflenet_v2_x0_5": Torchvision(1024),
    "shufflenet_v2_x1_0": Torchvision(1024),
    "shufflenet_v2_x1_5": Torchvision(1024),
    "shufflenet_v2_x2_0": Torchvision(2048),
    "squeezenet1_0": Torchvision(512),
    "squeezenet1_1": Torchvision(512),
    "swin_b": Torchvision(1024),
    "swin_s": Torchvision(768),
    "swin_t": Torchvision(768),
    "swin_v2_b": Torchvision(1024),
    "swin_v2_s": Torchvision(768),
    "swin_v2_t": Torchvision(768),
    "vgg11": Torchvision(4096),
    "vgg11_bn": Torchvision(4096),
    "vgg13": Torchvision(4096),
    "vgg13_bn": Torchvision(4096),
    "vgg16": Torchvision(4096),
    "vgg16_bn": Torchvision(4096),
    "vgg19": Torchvision(4096),
    "vgg19_bn": Torchvision(4096),
    "vit_b_16": Torchvision(768),
    "vit_b_32": Torchvision(768),
    "vit_h_14": Torchvision(1280),
    "vit_l_16": Torchvision(1024),
    "vit_l_32": Torchvision(1024),
    "wide_resnet101_2": Torchvision(2048),
    "wide_resnet50_2": Torchvision(2048),
}
