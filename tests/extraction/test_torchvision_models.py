"""Penultimate vectors against networks that are built and cut by hand."""

import json

import numpy as np
import pytest
import torch
import torchvision
from noise import noise
from torch import nn
from torchvision.models import get_model, get_model_weights, list_models

from featcache.errors import FeatcacheError, RecipeError, UnknownName, WeightsError
from featcache.extraction import torchvision_models
from featcache.extraction.backbone import BackboneOptions
from featcache.extraction.engine import Engine
from featcache.extraction.registry import BACKBONES, open_backbone, open_backbones


def test_the_table_says_what_the_installed_torchvision_does(monkeypatch):
    """After an update: python tests/extraction/make_table.py"""
    table = json.loads(torchvision_models.TABLE.read_text())
    if table["version"] != torchvision.__version__.partition("+")[0]:
        pytest.skip(f"the table is of torchvision {table['version']}")
    for name in BACKBONES:
        assert table["models"][name] == torchvision_models.read_library(name)
    assert table["models"].keys() == BACKBONES.keys()
    size, published = (getattr(BACKBONES["vgg16"], what)("vgg16") for what in ("size", "published"))
    monkeypatch.setattr(torchvision_models, "_installed", lambda: "of another version")
    monkeypatch.setattr(torchvision_models, "_table", lambda: {"version": "0"})
    assert BACKBONES["vgg16"].size("vgg16") == size
    assert BACKBONES["vgg16"].published("vgg16") == published


# The attribute in which each family keeps its classifier, and how much of it stays.
HEADS = {
    "alexnet": lambda n: setattr(n, "classifier", n.classifier[:-1]),
    "convnext": lambda n: setattr(n, "classifier", n.classifier[:-1]),
    "densenet": lambda n: setattr(n, "classifier", nn.Identity()),
    "efficientnet": lambda n: setattr(n, "classifier", nn.Identity()),
    "googlenet": lambda n: setattr(n, "fc", nn.Identity()),
    "inception": lambda n: setattr(n, "fc", nn.Identity()),
    "maxvit": lambda n: setattr(n, "classifier", n.classifier[:-1]),
    "mnasnet": lambda n: setattr(n, "classifier", nn.Identity()),
    "mobilenet_v2": lambda n: setattr(n, "classifier", nn.Identity()),
    "mobilenet_v3": lambda n: setattr(n, "classifier", n.classifier[:-1]),
    "regnet": lambda n: setattr(n, "fc", nn.Identity()),
    "resne": lambda n: setattr(n, "fc", nn.Identity()),
    "shufflenet": lambda n: setattr(n, "fc", nn.Identity()),
    "squeezenet": lambda n: setattr(n, "classifier", nn.AdaptiveAvgPool2d(1)),
    "swin": lambda n: setattr(n, "head", nn.Identity()),
    "vgg": lambda n: setattr(n, "classifier", n.classifier[:-2]),  # Dropout goes as well
    "vit": lambda n: setattr(n, "heads", nn.Identity()),
    "wide_resnet": lambda n: setattr(n, "fc", nn.Identity()),
}

# Small enough for a test, large enough for the network.
SIDE = {"inception_v3": 96, "maxvit_t": 224, "alexnet": 64, "vit_h_14": 28}


def by_hand(name, side):
    """torchvision's own network with the weights of seed 0, its classifier cut off by hand."""
    options = {"image_size": side} if name.startswith("vit") else {}
    if name in ("googlenet", "inception_v3"):
        # What their builders set by themselves when they are given weights; random weights
        # need the same preparation, or the vectors of other weights could not be trusted.
        options = {"transform_input": True, "aux_logits": False, "init_weights": True}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = get_model(name, weights=None, **options)
    family = max((f for f in HEADS if name.startswith(f)), key=len)
    HEADS[family](network)
    return network.eval()


def check(name):
    side = SIDE.get(name, 32)
    backbone = open_backbone(name, weights="random:0", image_size=side)
    transforms = get_model_weights(name).DEFAULT.transforms(
        crop_size=side, resize_size=backbone.preprocess.resize
    )
    images = [noise(seed, 50, 40) for seed in range(2)]
    with torch.inference_mode():
        theirs = by_hand(name, side)(torch.stack([transforms(i) for i in images])).numpy()
    cut = np.stack([backbone.preprocess.cut(image) for image in images])
    network = Engine(batch_size=2).load(backbone)
    ours = network.run(cut)
    assert network.dim == ours.shape[1] == BACKBONES[name].dim
    assert ours.std() > 0
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * max(1.0, np.abs(theirs).max()))


FAST = ["densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5", "mobilenet_v2",
        "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5",
        "squeezenet1_1"]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow])
        for name in list_models(module=torchvision.models)
    ],
)
def test_vectors_are_those_of_the_network_cut_by_hand(name):
    check(name)


def test_backbones_are_all_of_torchvisions_classifiers():
    assert list(BACKBONES) == sorted(list_models(module=torchvision.models))


def test_well_known_widths():
    known = {"resnet18": 512, "resnet50": 2048, "mobilenet_v2": 1280, "vgg16": 4096,
             "squeezenet1_0": 512, "alexnet": 4096, "vit_b_16": 768, "densenet121": 1024,
             "inception_v3": 2048, "efficientnet_b0": 1280}  # fmt: skip
    assert {name: BACKBONES[name].dim for name in known} == known


@pytest.mark.slow
def test_vgg16_gives_the_4096_after_the_second_relu():
    backbone = open_backbone("vgg16", weights="random:0", image_size=32)
    network = backbone.build().eval()
    seen = {}
    network.classifier[4].register_forward_hook(lambda *a: seen.update(relu=a[2].clone()))
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        output = network(x)
    assert output.shape == (2, 4096)
    assert torch.equal(output, seen["relu"])
    assert (output >= 0).all()
    assert (output == 0).any()


SLOW_INCEPTION = pytest.param("inception_v3", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", ["googlenet", SLOW_INCEPTION])
def test_input_is_transformed_as_torchvisions_builder_does_with_its_weights(
    name, tmp_path, monkeypatch
):
    """torchvision itself builds the reference, from a file that it believes to be its own."""
    side = SIDE.get(name, 32)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        trained = get_model(name, weights=None, init_weights=True, aux_logits=True)
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    enum = get_model_weights(name).DEFAULT
    monkeypatch.setattr(
        type(enum), "get_state_dict", lambda *_, **__: torch.load(tmp_path / "w.pth")
    )
    reference = get_model(name, weights=enum).eval()
    assert reference.transform_input
    reference.fc = nn.Identity()
    ours = open_backbone(name, weights=str(tmp_path / "w.pth"), image_size=side).build().eval()
    x = torch.randn(2, 3, side, side)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), reference(x), rtol=0, atol=1e-5)


class TestRandomWeights:
    def values(self, spec):
        return open_backbone("squeezenet1_1", weights=spec, image_size=32).build().state_dict()

    def equal(self, one, two):
        return all(torch.equal(one[name], two[name]) for name in one)

    def test_seed_0_is_random(self):
        assert self.equal(self.values("random"), self.values("random:0"))
        keys = [
            open_backbone("resnet18", weights=spec).key().digest for spec in ("random", "random:0")
        ]
        assert keys[0] == keys[1]

    def test_another_seed_is_another_network_with_another_key(self):
        assert not self.equal(self.values("random:0"), self.values("random:1"))
        zero, one = (open_backbone("resnet18", weights=f"random:{i}").key() for i in (0, 1))
        assert zero.differences(one) == ["weights_sha256 random:0 → random:1"]

    def test_the_callers_generator_is_left_alone(self):
        torch.manual_seed(7)
        expected = torch.rand(3)
        torch.manual_seed(7)
        self.values("random:3")
        assert torch.equal(torch.rand(3), expected)

    def test_generators_of_gpus_are_not_seeded(self, monkeypatch):
        def refuse(*_):
            raise AssertionError("seeded")

        monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
        self.values("random:3")

    @pytest.mark.parametrize("spec", ["random:x", "random:-1", "random:1.5"])
    def test_a_seed_that_is_no_number(self, spec):
        with pytest.raises(RecipeError, match=spec):
            open_backbone("resnet18", weights=spec)


class TestLayers:
    def vectors(self, name, layer, side=32):
        backbone = open_backbone(name, weights="random:0", image_size=side, layer=layer)
        x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            return backbone.build().eval()(x)

    def hooked(self, name, layer, side=32):
        """What the module gives, copied before anything after it can work in place."""
        network = by_hand(name, side)
        seen = []
        network.get_submodule(layer).register_forward_hook(
            lambda _, __, output: seen.append(output.clone())
        )
        x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            network(x)
        return seen[-1]

    @pytest.mark.parametrize("layer", ["layer3", "layer1", "bn1", "layer2.0.bn2", "avgpool"])
    def test_maps_are_averaged_over_positions(self, layer):
        expected = self.hooked("resnet18", layer).mean(dim=(2, 3))
        torch.testing.assert_close(self.vectors("resnet18", layer), expected)

    @pytest.mark.parametrize("layer", ["features.0", "features.3"])
    def test_a_relu_that_works_in_place_comes_after(self, layer):
        expected = self.hooked("squeezenet1_1", layer).mean(dim=(2, 3))
        torch.testing.assert_close(self.vectors("squeezenet1_1", layer), expected)

    def test_channels_that_come_last_are_channels(self):
        expected = self.hooked("swin_t", "features.1", 64).mean(dim=(1, 2))  # (n, h, w, d)
        assert expected.shape == (2, 96)
        torch.testing.assert_close(self.vectors("swin_t", "features.1", 64), expected)

    @pytest.mark.slow
    def test_as_many_channels_as_rows(self):
        """96 × 96 positions of 96 channels in Swin, 64 × 64 of 64 in ResNet."""
        expected = self.hooked("swin_t", "features.1", 384).mean(dim=(1, 2))
        torch.testing.assert_close(self.vectors("swin_t", "features.1", 384), expected)
        expected = self.hooked("resnet18", "layer1", 256).mean(dim=(2, 3))
        torch.testing.assert_close(self.vectors("resnet18", "layer1", 256), expected)

    @pytest.mark.slow
    def test_tokens_are_averaged(self):
        layer = "encoder.layers.encoder_layer_1"
        expected = self.hooked("vit_b_32", layer, 64).mean(dim=1)
        assert expected.shape == (2, 768)
        torch.testing.assert_close(self.vectors("vit_b_32", layer, 64), expected)

    @pytest.mark.slow
    def test_a_layer_that_gives_no_tensor_is_refused(self):
        layer = "encoder.layers.encoder_layer_0.self_attention"  # gives a tuple
        with pytest.raises(FeatcacheError, match="gives no vector, map or tokens"):
            self.vectors("vit_b_32", layer, 32)

    def test_the_layer_is_in_the_key(self):
        plain = open_backbone("resnet18", weights="random").key()
        other = open_backbone("resnet18", weights="random", layer="layer3").key()
        assert plain.differences(other) == ["layer penultimate → layer3:mean"]

    def test_unknown_layers_get_suggestions(self):
        with pytest.raises(UnknownName, match=r"unknown layer 'layer5'\nDid you mean layer\d"):
            self.vectors("resnet18", "layer5")


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("maxvit_t", 128, "takes images of 224 px only"),
        ("vit_b_16", 100, "patches of 16 px"),
        ("resnet18", 0, "image size 0"),
        ("resnet18", -5, "image size -5"),
    ],
)
def test_sizes_that_can_not_be(name, size, message):
    with pytest.raises(RecipeError, match=message):
        open_backbone(name, weights="random", image_size=size)


def test_a_size_too_small_for_the_network_names_the_option():
    backbone = open_backbone("inception_v3", weights="random", image_size=32)
    with pytest.raises(FeatcacheError, match="--image-size"):
        Engine(batch_size=1).load(backbone)


def test_unknown_backbones_get_suggestions():
    with pytest.raises(UnknownName, match="Did you mean resnet18"):
        open_backbone("resnet-18")


def test_a_backbone_of_ones_own_is_returned_as_it_is():
    own = open_backbone("resnet18", weights="random")
    assert open_backbone(own) is own


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ([], {}, "no backbone named"),
        (["resnet18", "resnet18"], {}, "the same backbone twice"),
        (["resnet18", "vgg11"], {"weights": "one.pth"}, "is one file"),
    ],
)
def test_lists_that_make_no_sense(names, options, message):
    with pytest.raises(UnknownName, match=message):
        open_backbones(names, BackboneOptions(**options))


def test_sizes_are_those_that_torchvision_publishes():
    size = BACKBONES["resnet18"].size("resnet18")
    assert (round(size.millions, 1), size.pixels, size.tag) == (11.7, 224, "IMAGENET1K_V1")


@pytest.mark.slow
def test_vit_at_another_size_takes_interpolated_positions(tmp_path):
    from torchvision.models.vision_transformer import interpolate_embeddings

    torch.manual_seed(0)
    trained = get_model("vit_b_32", weights=None, image_size=64)
    path = tmp_path / "vit.pth"
    torch.save(trained.state_dict(), path)
    ours = open_backbone("vit_b_32", weights=str(path), image_size=96).build().eval()
    reference = get_model("vit_b_32", weights=None, image_size=96)
    reference.load_state_dict(interpolate_embeddings(96, 32, trained.state_dict()))
    reference.heads = nn.Identity()
    x = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), reference.eval()(x))


def test_weights_of_another_architecture_are_no_crash_for_vit(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"conv1.weight": torch.zeros(2)}, path)
    with pytest.raises(WeightsError, match="holds no weights of vit_b_32"):
        open_backbone("vit_b_32", weights=str(path), image_size=32).build()
