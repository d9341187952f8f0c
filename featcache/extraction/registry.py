"""The backbones that come by name.

`BACKBONES` at the foot names them all, with the width of their vector; one of your own is one
more line there, or any `Backbone` passed in place of a name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featcache.errors import UnknownName, unknown
from featcache.extraction.backbone import PENULTIMATE, Backbone
from featcache.extraction.torchvision_models import Torchvision


def open_backbone(
    backbone: str | Backbone,
    *,
    weights: str = "auto",
    weights_dir: str | Path | None = None,
    layer: str = PENULTIMATE,
    image_size: int | None = None,
) -> Backbone:
    """Find a backbone by name, with its weights and its own preprocessing.

    Parameters
    ----------
    backbone : str or Backbone
        A name in `BACKBONES`, or an object of your own, returned as it is.
    weights : str, default "auto"
        "auto" (the library's default), a tag, a file, or "random[:SEED]".
    weights_dir : str or Path, optional
        A folder of weight files, searched first (default: FEATCACHE_WEIGHTS).
    layer : str, default "penultimate"
        Or the name of a module of the network, whose output is averaged over positions.
    image_size : int, optional
        Side of the square that the network sees, in pixels; its own by default.

    Raises
    ------
    UnknownName
        Where there is no such backbone.
    WeightsError
        Where its weights can't be found or read.
    """
    if isinstance(backbone, Backbone):
        return backbone
    if backbone not in BACKBONES:
        raise unknown("backbone", backbone, BACKBONES, "See: featcache backbones")
    folder = None if weights_dir is None else Path(weights_dir).expanduser()
    return BACKBONES[backbone].open(backbone, weights, folder, layer, image_size)


def open_backbones(
    backbone: str | Backbone | Sequence[str | Backbone],
    *,
    weights: str = "auto",
    weights_dir: str | Path | None = None,
    layer: str = PENULTIMATE,
    image_size: int | None = None,
) -> list[Backbone]:
    """`open_backbone` for one or several names."""
    several = [backbone] if isinstance(backbone, str | Backbone) else list(backbone)
    names = [b.name if isinstance(b, Backbone) else b for b in several]
    if not several:
        raise UnknownName("no backbone named", "For instance --backbone resnet18.")
    if len(set(names)) < len(names):
        raise UnknownName(f"the same backbone twice: {', '.join(names)}", "Name each once.")
    if len(several) > 1 and Path(weights).suffix in (".pth", ".pt", ".safetensors"):
        raise UnknownName(
            f"--weights {weights} is one file, and there are {len(several)} backbones",
            "Put a file for each into one folder and pass --weights-dir FOLDER.",
        )
    return [
        open_backbone(
            b, weights=weights, weights_dir=weights_dir, layer=layer, image_size=image_size
        )
        for b in several
    ]


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
