"""Poolings against the libraries' own ways to them, on random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from featcache.errors import RecipeError
from featcache.extraction.engine import Engine
from featcache.extraction.registry import check_backbones, open_backbone

timm = pytest.importorskip("timm")

TOKENS = [
    ("test_vit", 32),  # a class token
    ("test_vit2", None),  # a register and no class token; the mean, then a norm
    ("test_vit3", None),  # an attention pooling, as SigLIP has
    ("vit_small_patch14_reg4_dinov2", 28),
    ("vit_tiny_patch16_dinov3_qkvb", 32),  # rotary positions, four registers
    ("eva02_tiny_patch14_224", 28),
]
MAPS = [
    ("test_resnet", None), ("test_efficientnet", None), ("test_convnext", None),
    ("mobilenetv3_small_050", 32), ("densenet121", 32),
]  # fmt: skip


def built(name, size, **options):
    backbone = open_backbone(name, weights="random:0", image_size=size, **options)
    x = torch.randn(
        2, 3, *[backbone.preprocess.crop] * 2, generator=torch.Generator().manual_seed(1)
    )
    return backbone.build().eval(), x


def run(network, x):
    with torch.no_grad():
        return network(x)


def gem(x):
    """Over the last axis, as GeM's authors have it."""
    return F.avg_pool1d(x.clamp(min=1e-6).pow(3), x.shape[-1]).pow(1 / 3).squeeze(-1)


def close(found, expected):
    assert expected.std() > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(("model", "size"), TOKENS)
def test_tokens_are_pooled_as_timm_has_them(model, size):
    network, x = built(f"timm:{model}", size)
    (patches, prefix), = run(
        lambda x: network.forward_intermediates(
            x, indices=1, return_prefix_tokens=True, norm=True, output_fmt="NLC",
            intermediates_only=True),
        x,
    ) if network.num_prefix_tokens else [(run(network.forward_features, x), None)]  # fmt: skip
    norm = network.fc_norm.requires_grad_(False)
    parts = {
        "mean": norm(patches.mean(1)),
        "max": norm(patches.max(1).values),
        "gem": norm(gem(patches.transpose(1, 2))),
    }
    if network.cls_token is not None:
        parts["cls"] = norm(prefix[:, 0])
        parts["cls+mean"] = torch.cat([parts["cls"], parts["mean"]], dim=1)
    parts["mean+max"] = torch.cat([parts["mean"], parts["max"]], dim=1)
    for pool, expected in parts.items():
        again, x = built(f"timm:{model}", size, pool=pool)
        close(run(again, x), expected)
    own = {"token": "cls", "avg": "mean"}.get(network.global_pool)
    if own is not None:
        close(run(network, x), parts[own])
        timms = timm.layers.global_pool_nlc(
            run(network.forward_features, x), "avg", network.num_prefix_tokens
        )
        close(parts["mean"], norm(timms))


@pytest.mark.parametrize("model", ["test_vit2", "test_vit3"])
def test_a_network_without_class_token_says_what_works(model):
    network, _ = built(f"timm:{model}", None)
    assert network.cls_token is None
    for wrong in ({"pool": "cls"}, {"pool": "cls+mean"}, {"layers": "-2..-1"}):
        with pytest.raises(RecipeError, match="it has no class token") as caught:
            built(f"timm:{model}", None, **wrong)
        assert "pool=own, pool=mean, pool=max" in caught.value.remedy


@pytest.mark.parametrize(("model", "size"), [TOKENS[3], TOKENS[4], TOKENS[5]])
def test_several_blocks_are_dinos_linear_probe(model, size):
    """As `create_linear_input` of DINOv2's and DINOv3's evaluations has it."""
    network, x = built(f"timm:{model}", size)
    blocks = run(
        lambda x: network.forward_intermediates(
            x, indices=4, return_prefix_tokens=True, norm=True, output_fmt="NLC",
            intermediates_only=True),
        x,
    )  # fmt: skip
    norm = network.fc_norm.requires_grad_(False)
    classes = [norm(prefix[:, 0]) for _, prefix in blocks]
    close(run(built(f"timm:{model}", size, layers="-4..-1")[0], x), torch.cat(classes, 1))
    both = torch.cat([*classes[:3], norm(blocks[-2][0].mean(1))], dim=1)
    found = run(built(f"timm:{model}", size, layers="-4..-2", pool="cls+mean")[0], x)
    close(found, both)
    one = run(built(f"timm:{model}", size, layers="-1..-1")[0], x)
    torch.testing.assert_close(one, run(built(f"timm:{model}", size, pool="cls")[0], x))


def test_more_blocks_than_there_are_say_how_many():
    with pytest.raises(RecipeError, match="has 6 blocks") as caught:
        built("timm:test_vit", 32, layers="-7..-1")
    assert "layers=-6..-1" in caught.value.remedy


@pytest.mark.parametrize(("model", "size"), MAPS)
def test_maps_are_pooled_as_timm_does_itself(model, size):
    network, x = built(f"timm:{model}", size)
    vectors = {"mean": run(network, x)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        other = timm.create_model(model, num_classes=0, global_pool="max").eval()
    vectors["max"] = run(other, x)
    vectors["mean+max"] = torch.cat([vectors["mean"], vectors["max"]], dim=1)
    features = run(network.forward_features, x)
    pooled = gem(features.flatten(2))[:, :, None, None]
    vectors["gem"] = run(network.forward_head, pooled)
    for pool, expected in vectors.items():
        close(run(built(f"timm:{model}", size, pool=pool)[0], x), expected)


@pytest.mark.slow
def test_maps_whose_channels_are_last_are_pooled_over_positions():
    name = "timm:swin_tiny_patch4_window7_224"
    network, x = built(name, None)
    features = run(network.forward_features, x)  # (n, 7, 7, 768)
    assert features.shape[1:3] == (7, 7)
    close(run(built(name, None, pool="max")[0], x), features.amax((1, 2)))


@pytest.mark.parametrize(
    ("name", "size", "last"),
    [
        ("resnet18", 64, "layer4"), ("mobilenet_v2", 64, "features"),
        ("shufflenet_v2_x0_5", 64, "conv5"), ("mnasnet0_5", 64, "layers"),
        ("squeezenet1_1", 64, "features"),
        ("densenet121", 64, "features"), ("efficientnet_b0", 64, "features"),
    ],
)  # fmt: skip
def test_torchvisions_maps(name, size, last):
    network, x = built(name, size)
    seen = []
    network.get_submodule(last).register_forward_hook(lambda *a: seen.append(a[2].detach().clone()))
    own = run(network, x)
    features = seen[0].relu() if name.startswith("densenet") else seen[0]
    vectors = {
        "mean": features.mean((2, 3)),
        "max": F.adaptive_max_pool2d(features, 1).flatten(1),
        "gem": gem(features.flatten(2)),
    }
    vectors["mean+max"] = torch.cat([vectors["mean"], vectors["max"]], dim=1)
    close(own, vectors["mean"])
    if features.max() < 1e-3:  # untrained and deep: all of it under the floor of gem
        del vectors["gem"]
    for pool, expected in vectors.items():
        close(run(built(name, size, pool=pool)[0], x), expected)


def test_torchvisions_vision_transformer():
    network, x = built("vit_b_32", 64)
    seen = []
    network.encoder.register_forward_hook(lambda *a: seen.append(a[2].detach()))
    own = run(network, x)
    tokens = seen[0]  # (n, 1 + patches, d)
    torch.testing.assert_close(run(built("vit_b_32", 64, pool="cls")[0], x), own)
    both = torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1)
    close(run(built("vit_b_32", 64, pool="cls+mean")[0], x), both)
    four = run(built("vit_b_32", 64, layers="-4..-1")[0], x)
    assert four.shape == (2, 4 * 768)
    torch.testing.assert_close(four[:, -768:], own)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vgg11", {"pool": "mean"}, "neither tokens nor a pooled map"),
        ("resnet18", {"pool": "cls"}, "without class token"),
        ("resnet18", {"layers": "-4..-1"}, "without class token"),
        ("resnet18", {"pool": "mean", "layer": "layer3"}, "takes no pool"),
    ],
)
def test_what_a_family_cant_do_is_refused_before_any_work(name, options, message):
    spec = ":".join([name, *(f"{option}={value}" for option, value in options.items())])
    with pytest.raises(RecipeError, match=message) as caught:
        check_backbones(spec)
    assert caught.value.remedy


def test_a_network_that_cant_be_made_without_numbers_is_checked_too():
    (checked,) = check_backbones("regnet_y_400mf:pool=mean+max")
    assert checked.layer == "penultimate:mean+max"


def test_the_usual_pooling_has_the_usual_key():
    usual = open_backbone("timm:test_vit", weights="random:0").key()
    same = open_backbone("timm:test_vit:pool=own:layers=last", weights="random:0").key()
    assert same == usual
    other = open_backbone("timm:test_vit:pool=cls", weights="random:0").key()
    assert usual.differences(other) == ["layer penultimate → penultimate:cls"]


@pytest.mark.parametrize(("model", "pool"), [("test_resnet", "mean+max"), ("test_vit", "cls+mean")])
def test_an_exported_graph_takes_any_number_of_images(model, pool):
    network, x = built(f"timm:{model}", 64, pool=pool)
    with torch.no_grad():
        many = {0: torch.export.Dim("n")}
        graph = torch.export.export(network, (x,), dynamic_shapes=(many,)).module()
        five = torch.cat([x, x, x[:1]])
        torch.testing.assert_close(graph(five), network(five), rtol=1e-4, atol=1e-5)


def test_reduced_precision_stays_near_fp32():
    """`gem` raises to powers that fp16 can't hold, so that they are fp32 everywhere."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)
    for model, pool in (("test_vit", "cls+mean"), ("test_resnet", "gem")):
        backbone = open_backbone(f"timm:{model}", weights="random:0", image_size=64, pool=pool)
        exact, rough = (
            Engine(precision=precision, batch_size=2).load(backbone).run(pixels)
            for precision in ("fp32", "bf16")
        )
        cosines = (exact * rough).sum(1) / np.linalg.norm(exact, axis=1)
        assert (cosines / np.linalg.norm(rough, axis=1) > 0.99).all()
