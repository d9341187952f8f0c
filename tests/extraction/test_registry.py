"""Opening backbones by specs: options of one's own, what is shared, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_backbone
from torch import nn
from torchvision.models import squeezenet1_1

from featcache.errors import FeatcacheError, RecipeError, UnknownName, WeightsError
from featcache.extraction.backbone import BackboneOptions
from featcache.extraction.network import FromPixels
from featcache.extraction.registry import check_backbones, open_backbone, open_backbones

NAME = "squeezenet1_1"


def test_options_in_the_name_go_before_those_beside_it() -> None:
    spec = f"{NAME}:size=64:layer=features.3:weights=random:3:colour=hsv:filter=log-1.5:scale=0-1"
    beside = {"weights": "random:9", "layer": "features.6", "image_size": 96}
    one = open_backbone(spec, colour="grey", filter="equalise", scale="own", **beside)
    assert (one.name, one.layer, one.weights_sha256) == (NAME, "features.3:mean", "random:3")
    preprocess = one.preprocess
    assert (preprocess.crop, preprocess.colour, preprocess.filters) == (64, "HSV", ("log-1.5",))
    assert (preprocess.mean, preprocess.std) == ((0.0,) * 3, (1.0,) * 3)
    other = open_backbone(NAME, colour="grey", filter="equalise+gaussian-1", **beside)
    assert (other.preprocess.crop, other.layer) == (96, "features.6:mean")
    assert other.preprocess.filters == ("equalise", "gaussian-1")


def test_the_options_of_a_spec_are_those_of_the_parameters() -> None:
    one = open_backbone(f"{NAME}:size=64:filter=log-2:colour=lab", weights="random")
    two = open_backbone(NAME, weights="random", image_size=64, filter="log-2", colour="LAB")
    assert one.key() == two.key()
    plain = open_backbone(f"{NAME}:filter=none:colour=rgb:scale=own", weights="random:0")
    assert plain.key() == open_backbone(NAME, weights="random:0").key()


def test_one_architecture_may_come_again_with_other_options() -> None:
    pair = open_backbones([NAME, f"{NAME}:filter=log-1"], BackboneOptions(weights="random"))
    assert [one.name for one in pair] == [NAME, NAME]
    assert pair[0].key() != pair[1].key()
    other = replace(tiny_backbone(), layer="x")
    assert len(open_backbones([tiny_backbone(), other])) == 2


@pytest.mark.parametrize("check", [open_backbones, check_backbones])
@pytest.mark.parametrize(
    ("names", "options", "kind", "message"),
    [
        ([NAME, f"{NAME}:size=224"], {}, UnknownName, "the same backbone twice"),
        ([NAME, f"{NAME}:filter=none:colour=RGB"], {}, UnknownName, "the same backbone twice"),
        ([f"{NAME}:siz=64"], {}, UnknownName, "Did you mean size"),
        (["squeezenet:size=64"], {}, UnknownName, "Did you mean squeezenet1_1"),
        ([f"{NAME}:64"], {}, UnknownName, f"written {NAME}:size=384"),
        ([f"{NAME}:colour=hvs"], {}, UnknownName, "Did you mean hsv"),
        ([f"{NAME}:scale=1"], {}, UnknownName, "own, 0-1|0-1, own"),
        ([f"{NAME}:filter=laplace-1"], {}, UnknownName, "unknown filter 'laplace'"),
        ([f"{NAME}:filter=log"], {}, RecipeError, "needs a width"),
        ([NAME], {"colour": "BGR"}, UnknownName, "unknown colour"),
        ([NAME], {"filter": "equalise-1"}, RecipeError, "has no width"),
        ([NAME], {"scale": "imagnet"}, UnknownName, "unknown scale"),
        (["vit_b_16:size=100"], {}, RecipeError, "no multiple"),
        ([f"{NAME}:size=99999999"], {}, RecipeError, "not between"),
        ([], {}, UnknownName, "no backbone named"),
        ([f"{NAME}:weights=absent.pth"], {}, WeightsError, "has no weights 'absent.pth'"),
        ([f"{NAME}:weights=random:x"], {}, RecipeError, "no number"),
    ],
)
def test_what_can_t_be_opened_is_refused(check, names, options, kind, message) -> None:
    with pytest.raises(kind, match=message):
        check(names, BackboneOptions(**{"weights": "random", **options}))


def test_a_check_needs_no_weights_and_finds_layers_that_are_not_there(monkeypatch) -> None:
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *a, **k: pytest.fail("download"))
    found = check_backbones(
        [NAME, f"{NAME}:layer=features.3", f"{NAME}:weights=IMAGENET1K_V1:size=64"]
    )
    assert [one.layer for one in found] == ["penultimate", "features.3:mean", "penultimate"]
    with pytest.raises(UnknownName, match=r"Did you mean features\.3"):
        check_backbones([f"{NAME}:layer=featuers.3"])
    with pytest.raises(UnknownName, match="unknown layer 'encoder'"):
        check_backbones(NAME, BackboneOptions(layer="encoder"))


@pytest.mark.parametrize("name", ["vgg16", "vit_b_16", "inception_v3", "swin_v2_t", "densenet121"])
def test_a_check_of_a_layer_costs_no_memory_for_weights(name: str) -> None:
    with pytest.raises(UnknownName, match="unknown layer"):
        check_backbones(name, BackboneOptions(layer="nowhere"))


def test_one_weight_file_is_for_one_architecture(tmp_path: Path) -> None:
    save_file(squeezenet1_1(weights=None).state_dict(), tmp_path / "w.safetensors")
    path = str(tmp_path / "w.safetensors")
    pair = open_backbones([NAME, f"{NAME}:size=64"], BackboneOptions(weights=path))
    assert len({one.weights_sha256 for one in pair}) == 1
    other = "resnet18:weights=random"
    assert len(open_backbones([NAME, other], BackboneOptions(weights=path))) == 2
    with pytest.raises(FeatcacheError, match="one file, and there are 2 backbones"):
        open_backbones([NAME, "resnet18"], BackboneOptions(weights=path))


def test_a_scale_of_0_1_reaches_the_network() -> None:
    preprocess = open_backbone(f"{NAME}:scale=0-1", weights="random").preprocess
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    assert preprocess.normalise(pixels).flatten().tolist() == pytest.approx([0, 0.2, 1])
    seen = FromPixels(nn.Flatten(), preprocess, torch.bfloat16, "cpu")(pixels)
    assert seen.flatten().tolist() == pytest.approx([0, 0.2, 1], abs=1e-3)
