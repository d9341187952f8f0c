from __future__ import annotations

import pytest
import torch
from small import small_backbone
from torch import nn
from torchvision.models import get_model

from featcache.errors import RecipeError, UnknownName
from featcache.finetuning.network import FusedNetwork, build, groups, make_head, stages
from featcache.fitting.networks import MLP, Attention, Gate, Product, seeded


def _network(freeze_bn: bool = False, fusion: str = "concat") -> FusedNetwork:
    head = make_head(fusion, "mlp", {"head.hidden": [5]}, 0)
    with seeded(0):
        return build([small_backbone(), small_backbone("b", 4)], head, 3, freeze_bn)[0]


def test_the_head_is_that_of_stage_2() -> None:
    assert isinstance(_network().joint, MLP)
    for fusion, kind in (("attention", Attention), ("gated", Gate), ("hadamard", Product)):
        joint = _network(fusion=fusion).joint
        assert isinstance(joint, nn.Sequential)
        assert isinstance(joint[0], kind)
        assert isinstance(joint[1], MLP)


def test_logits_are_the_parts_one_after_the_other() -> None:
    network = _network().eval()
    x = torch.rand(4, 3, 8, 8)
    vectors = torch.cat([network.backbones[0](x), network.backbones[1](x)], 1)
    network.standardise(vectors.detach())
    scaled = (vectors - vectors.mean(0)) / vectors.std(0, correction=0)
    torch.testing.assert_close(network(x, x), network.joint(scaled))


def test_a_constant_column_is_not_divided_by_zero() -> None:
    network = _network()
    network.standardise(torch.ones(5, 10))
    assert torch.equal(network.scale, torch.ones(10))


def test_settings_reach_the_head_and_those_of_its_own_loop_are_refused() -> None:
    assert make_head("concat", "mlp", {"mlp.hidden": [7], "head.dropout": 0.0}, 0).hidden == [7]
    for wrong in ({"mlp.epochs": 3}, {"head.lr": 1e-3}, {"concat.pca": 8}):
        with pytest.raises(RecipeError):
            make_head("concat", "mlp", wrong, 0)
    for fusion, head in (("bilinear", "mlp"), ("concat", "svm")):
        with pytest.raises(UnknownName, match="end to end"):
            make_head(fusion, head, {}, 0)


def test_stages_follow_the_network_from_its_input() -> None:
    resnet = stages(get_model("resnet18", weights=None))
    assert len(resnet) == 2 + 8 + 1  # conv1, bn1, eight blocks, fc
    assert isinstance(resnet[0], nn.Conv2d)
    mobile = get_model("mobilenet_v2", weights=None)
    assert stages(mobile)[:19] == list(mobile.features)
    vit = stages(get_model("vit_b_32", weights=None))
    assert sum(type(part).__name__ == "EncoderBlock" for part in vit) == 12


def test_rates_decay_from_the_last_stage_to_the_first() -> None:
    network = _network()
    found = {
        name: group["lr"]
        for group in groups(network, 1e-2, 1e-3, 0.5)
        for name, parameter in network.named_parameters()
        if any(parameter is one for one in group["params"])
    }
    # SmallNet: convolution, batch norm, convolution.
    assert found["backbones.0.two.0.weight"] == pytest.approx(1e-3)
    assert found["backbones.0.one.1.weight"] == pytest.approx(5e-4)
    assert found["backbones.0.one.0.weight"] == pytest.approx(2.5e-4)
    assert found["joint.layers.0.weight"] == pytest.approx(1e-2)
    assert set(found) == {name for name, _ in network.named_parameters()}


def test_a_frozen_backbone_gets_no_gradient_and_keeps_its_statistics() -> None:
    network = _network()
    network.freeze(True)
    network.train()
    before = {name: value.clone() for name, value in network.backbones.state_dict().items()}
    network(torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)).sum().backward()
    assert all(parameter.grad is None for parameter in network.backbones.parameters())
    assert network.joint.training
    for name, value in network.backbones.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("freeze_bn", [False, True])
def test_statistics_move_after_that_unless_told_not_to(freeze_bn: bool) -> None:
    network = _network(freeze_bn)
    network.freeze(False)
    network.train()
    norm = network.backbones[0].one[1]
    before = norm.running_mean.clone()
    network(torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)).sum().backward()
    assert torch.equal(norm.running_mean, before) is freeze_bn
    assert norm.weight.grad is not None
