import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from featcache.extraction.conv_bn_fusion import can_fuse, diffuse, fold, fuse_for_cpu
from featcache.extraction.loader import cosine
from featcache.extraction.registry import open_backbone


class Net(nn.Module):
    """Convolutions with and without a norm, shared, added, of odd strides and groups."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm2 = nn.BatchNorm2d(8)
        self.act = nn.ReLU6(inplace=True)
        self.shared = nn.Conv2d(8, 8, 1)
        self.norm3 = nn.BatchNorm2d(8)
        self.same = nn.Conv2d(8, 4, 3, padding="same", dilation=2)
        self.odd = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")

    def forward(self, x):
        x = nn.functional.relu(self.norm(self.first(x)))  # (n, 8, h/2, w/2)
        y = self.act(self.norm2(self.depthwise(x)))
        y = self.norm3(self.shared(y)) + self.shared(x)  # one convolution, two callers
        z = torch.sigmoid(self.same(x + y))  # (n, 4, h/2, w/2)
        return self.odd(z).flatten(1)


def trained(seed=0):
    """With running statistics that are not those of a fresh network."""
    torch.manual_seed(seed)
    net = Net()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
    return net.eval().requires_grad_(False)


X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_folding_keeps_the_function_and_takes_out_the_norms():
    net = trained()
    wanted = net(X)
    folded = fold(net, X)
    torch.testing.assert_close(folded(X), wanted, rtol=1e-4, atol=1e-5)
    # The convolution that two callers share can't take one caller's norm in.
    assert sum(isinstance(m, nn.BatchNorm2d) for m in folded.modules()) == 1


@torch.no_grad()
def test_folding_leaves_the_original_as_it_was():
    net = trained()
    before = copy.deepcopy(net.state_dict())
    fold(net, X)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())


@torch.no_grad()
def test_a_network_that_can_not_be_traced_is_run_as_it_is():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return self.conv(x).flatten(1) if x.sum() > 0 else x.flatten(1)

    net = Branches().eval()
    assert fold(net, X) is net


def need_fused(dtype):
    if not can_fuse(dtype):
        pytest.skip(f"oneDNN has no fused convolutions in {dtype} on this processor")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_fusing_keeps_the_function(dtype):
    need_fused(dtype)
    wanted = trained()(X)
    fused = fuse_for_cpu(fold(trained(), X), X[:1], dtype, 4)
    found = fused(X.to(dtype).to(memory_format=torch.channels_last)).float()
    tolerance = 1e-5 if dtype is torch.float32 else 0.03
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    assert any(type(m).__name__ == "_FusedConv" for m in fused.modules())


class Sums(nn.Module):
    """Sums of every kind: with maps made before and after, in place, of another shape, reused."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(5))
        self.one = nn.Conv2d(3, 1, 1)

    def forward(self, x):
        residual = torch.relu(self.a(x) + x)
        y = self.b(residual)
        y += residual  # in place, and no activation behind it
        z = nn.functional.relu6(self.c(y) + y)
        wide = torch.relu(self.one(z) + z)  # one channel, spread over three
        twice = self.d(wide)
        late = torch.relu(twice + self.e(wide))  # made after the other
        return (late + twice * 2 + torch.relu(self.a(late) + 1.0)).flatten(1)


@pytest.mark.parametrize(("dtype", "sums"), [(torch.float32, 4), (torch.bfloat16, 2)])
@torch.no_grad()
def test_sums_are_done_within_convolutions(dtype, sums):
    need_fused(dtype)
    torch.manual_seed(0)
    net = Sums().eval()
    wanted = net(X)
    fused = fuse_for_cpu(fold(copy.deepcopy(net), X), X[:1], dtype, 4)
    found = fused(X.to(dtype).to(memory_format=torch.channels_last)).float()
    tolerance = 1e-5 if dtype is torch.float32 else 0.03
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    assert (
        sum(node.op == "call_module" and len(node.args) == 2 for node in fused.graph.nodes) == sums
    )


@torch.no_grad()
def test_without_the_fused_calls_it_is_cast(monkeypatch):
    monkeypatch.setattr("featcache.extraction.conv_bn_fusion.can_fuse", lambda dtype: False)
    wanted = trained()(X)
    found = fuse_for_cpu(fold(trained(), X), X[:1], torch.bfloat16, 4)(X.bfloat16()).float()
    torch.testing.assert_close(found, wanted, rtol=0.03, atol=0.03)


@pytest.mark.parametrize(
    "name", ["mobilenet_v2", "squeezenet1_1", "densenet121", "shufflenet_v2_x0_5"]
)
@torch.no_grad()
def test_in_bf16_real_architectures_stay_close_to_fp32(name):
    backbone = open_backbone(name, weights="random:0", image_size=64)
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    wanted = backbone.build().eval()(x)
    fused = fuse_for_cpu(fold(backbone.build().eval(), x), x[:1], torch.bfloat16, 4)
    assert cosine(np.asarray(wanted), np.asarray(fused(x.bfloat16()).float())).min() > 0.999


@torch.no_grad()
def test_a_sum_of_single_pixels_is_fused_or_left_alone():
    """oneDNN of torch 2.11 adds maps of any size but 1 x 1."""
    torch.manual_seed(0)

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            y = torch.relu(self.first(x).mean((2, 3), keepdim=True))  # (n, 4, 1, 1)
            return torch.relu(self.second(y) + y).flatten(1)

    net = Residual().eval()
    fused = fuse_for_cpu(fold(copy.deepcopy(net), X), X[:1], torch.float32, 4)
    found = fused(X.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, net(X), rtol=1e-5, atol=1e-5)


# Error-diffusion rounding.


@given(
    shape=st.sampled_from([(3, 1, 3, 3), (5, 7), (2, 16, 3, 3), (4, 130), (1, 64, 1, 1), (6, 1)]),
    seed=st.integers(0, 50),
    scale=st.sampled_from([1e-3, 1.0, 40.0]),
)
def test_every_value_is_next_to_the_exact_one(shape, seed, scale):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale
    rounded = diffuse(weight)
    assert rounded.shape == weight.shape
    assert rounded.dtype is torch.bfloat16
    # What is carried on is below half a step, so a value moves by a step at most: 2^-7 of it.
    step = weight.abs() * 2**-7
    largest = weight.abs().max() * 2**-8  # half a step of the largest, carried to a small one
    assert bool(((rounded.float() - weight).abs() <= step + largest).all())


@pytest.mark.parametrize("shape", [(32, 1, 3, 3), (16, 64, 3, 3), (8, 300)])
def test_a_filters_sum_is_kept_far_better_than_by_plain_rounding(shape):
    weight = torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 0.1
    exact = weight.flatten(1).double().sum(1)

    def error(rounded):
        return float((rounded.flatten(1).double().sum(1) - exact).abs().mean())

    assert error(diffuse(weight)) < error(weight.bfloat16()) / 2


def test_what_bf16_holds_already_stays():
    weight = torch.randn(4, 3, 3, 3).bfloat16().float()
    assert torch.equal(diffuse(weight).float(), weight)
