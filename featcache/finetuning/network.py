"""One network of several backbones, a fusion and an MLP head, frozen or not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from featcache.errors import FeatcacheError, RecipeError, UnknownName, first_line
from featcache.extraction.backbone import Backbone
from featcache.extraction.network import channels_last
from featcache.fitting.fusions import FUSIONS
from featcache.fitting.heads import HEADS
from featcache.fitting.heads.mlp import MLPHead
from featcache.fitting.pipeline import make_classifier
from featcache.fitting.registry import class_of, names_with
from featcache.store.spec import DEFAULTS, read_layer

# What the head's own training loop would take: here the options of the fine-tuning say it.
OF_THE_LOOP = (
    "epochs batch_size lr weight_decay label_smoothing patience validation class_weight schedule "
    "optimiser"
).split()


class FusedNetwork(nn.Module):
    """Pixels to logits: backbones side by side, standardised, then fusion and perceptron.

    Parameters
    ----------
    backbones : sequence of Module
        Each from float32 (n, 3, crop, crop), normalised, to (n, d_i).
    joint : Module
        From (n, d1 + … + dk), standardised, to logits (n, classes).
    width : int
        d1 + … + dk.
    freeze_bn : bool, default False
        Keep the backbones' batch statistics even where they are trained.

    Attributes
    ----------
    mean, scale : float32 tensors of shape (d,)
        What each column is standardised by; fixed, see `standardise`.
    """

    def __init__(
        self, backbones: Sequence[nn.Module], joint: nn.Module, width: int, freeze_bn: bool = False
    ) -> None:
        super().__init__()
        self.backbones = nn.ModuleList(backbones)
        self.joint = joint
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.freeze_bn = freeze_bn
        self.frozen = False

    def forward(self, *pixels: Tensor) -> Tensor:
        """Logits (n, classes) of one tensor (n, 3, crop, crop) for each backbone."""
        logits: Tensor = self.joint((self.embed(*pixels) - self.mean) / self.scale)
        return logits  # (n, classes)

    def embed(self, *pixels: Tensor) -> Tensor:
        """The backbones' vectors side by side, (n, d)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            parts = [
                backbone(x).float() for backbone, x in zip(self.backbones, pixels, strict=True)
            ]
        return torch.cat(parts, dim=1)  # (n, d)

    def standardise(self, vectors: Tensor) -> None:
        """Fix the columns' mean and deviation to those of vectors (n, d); constant columns stay."""
        deviation = vectors.std(0, correction=0)  # (d,)
        self.mean.copy_(vectors.mean(0))
        self.scale.copy_(torch.where(deviation > 0, deviation, torch.ones_like(deviation)))

    def freeze(self, frozen: bool) -> None:
        """Hold the backbones still, batch statistics and dropout included, or let them go."""
        self.frozen = frozen
        self.backbones.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> FusedNetwork:
        """Training mode, but for what is frozen."""
        super().train(mode)
        if self.frozen:
            self.backbones.eval()
        elif self.freeze_bn:
            for module in self.backbones.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


def is_trainable(fusion: str) -> bool:
    """Whether a fusion can be trained by gradients: columns side by side, or what a head holds."""
    return fusion == "concat" or bool(getattr(class_of(FUSIONS.get(fusion)), "joint", {}))


def _holds_fusions(head: Any) -> bool:
    return hasattr(head, "joint_network")


def make_head(fusion: str, head: str, settings: dict[str, Any], seed: int) -> MLPHead:
    """The head, with the fusion in it, that stage 2 would fit; its loop is not used.

    Raises
    ------
    UnknownName
        For a fusion or head that can't be trained by gradients.
    RecipeError
        For a setting that has no meaning here.
    """
    if not is_trainable(fusion) or not _holds_fusions(class_of(HEADS.get(head))):
        fusions, heads = filter(is_trainable, FUSIONS), names_with(HEADS, _holds_fusions)
        raise UnknownName(
            f"{fusion} with {head} can't be trained end to end",
            f"Fusions: {', '.join(fusions)}. Head: {', '.join(heads)}.",
        )
    for name in settings:
        if name.partition(".")[2] in OF_THE_LOOP:
            raise RecipeError(
                f"setting {name!r} belongs to fits on cached features",
                "Use the options of finetune: --epochs, --lr, --batch-size, …",
            )
    steps = make_classifier(fusion, head, seed=seed, settings=settings).named_steps
    scale, pca = steps["fusion"].scale, steps["fusion"].pca
    if scale != "standard" or pca is not None:
        raise RecipeError(
            f"concat with scale {scale!r} and pca {pca!r} can't be trained end to end",
            "Leave concat.scale and concat.pca out.",
        )
    made: MLPHead = steps["head"]
    return made


def build(
    backbones: Sequence[Backbone], head: MLPHead, classes: int, freeze_bn: bool = False
) -> tuple[FusedNetwork, tuple[int, ...]]:
    """The network with the backbones' weights and an untrained head, and each block's width.

    The head's weights are drawn from torch's global state, see `fitting.networks.seeded`.
    """
    modules = [backbone.build().requires_grad_(True) for backbone in backbones]
    blocks = tuple(_width(b, m) for b, m in zip(backbones, modules, strict=True))
    joint = head.set_params(blocks=blocks).joint_network(sum(blocks), classes)
    network = FusedNetwork(modules, joint, sum(blocks), freeze_bn)
    channels_last(network)
    return network, blocks


def _width(backbone: Backbone, module: nn.Module) -> int:
    side = backbone.preprocess.crop
    try:
        with torch.inference_mode():
            return int(module.eval()(torch.zeros(1, 3, side, side)).shape[1])
    except (RuntimeError, ValueError, AssertionError) as error:
        first = first_line(error)
        raise FeatcacheError(
            f"{backbone.name} can't run on images of {side} px: {first}",
            "Choose another --image-size.",
        ) from None


def stages(module: nn.Module) -> list[nn.Module]:
    """The parts of a backbone that follow one another, the first at the input.

    Sequences are taken apart, and so is a part that holds nearly all parameters.
    """
    whole = _count(module)
    found: list[nn.Module] = []
    for child in module.children():
        if not _count(child):
            continue
        apart = type(child) is nn.Sequential or _count(child) > 0.9 * whole
        found += stages(child) if apart and any(_count(c) for c in child.children()) else [child]
    return found or [module]


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def groups(
    network: FusedNetwork, lr: float, backbone_lr: float, decay: float
) -> Iterator[dict[str, Any]]:
    """AdamW's parameter groups: fusion and head at `lr`, each backbone's stages at theirs.

    The last stage has `backbone_lr`, the one before it `decay` of that, and so on; parameters
    outside all stages count as the first.
    """
    yield {"params": list(network.joint.parameters()), "lr": lr, "base": lr}
    for backbone in network.backbones:
        rates: dict[int, float] = {}
        parts = stages(backbone)
        for depth, part in enumerate(reversed(parts)):
            for parameter in part.parameters():
                rates.setdefault(id(parameter), backbone_lr * decay**depth)
        least = backbone_lr * decay ** (len(parts) - 1)
        by_rate: dict[float, list[nn.Parameter]] = {}
        for parameter in backbone.parameters():
            by_rate.setdefault(rates.get(id(parameter), least), []).append(parameter)
        for rate, parameters in by_rate.items():
            yield {"params": parameters, "lr": rate, "base": rate}


def check_trainable(backbones: Sequence[Backbone]) -> None:
    """Refuse what only extraction can do.

    Raises
    ------
    RecipeError
        For a layer inside the network, another pooling, a filter or another colour space: training
        images are augmented in RGB, and pass through the whole network. For one architecture twice:
        the tuned weights are kept by its name.
    """
    for one in backbones:
        taken = {name: said != DEFAULTS[name] for name, said in read_layer(one.layer).items()}
        unusual = taken | {
            "filter": bool(one.preprocess.filters),
            "colour": one.preprocess.colour != "RGB",
        }
        for option in (name for name, odd in unusual.items() if odd):
            raise RecipeError(
                f"{one.name} can't be fine-tuned with an option {option!r}",
                f"Leave {option} out; features with it are compared by featcache compare.",
            )
    names = [one.name for one in backbones]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(
                f"{name} can't be fine-tuned twice in one network", "Name each backbone once."
            )
