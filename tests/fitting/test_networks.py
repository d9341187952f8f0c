import pytest
import torch

from featcache.errors import RecipeError
from featcache.fitting.networks import MLP, Attention, Gate, Product, seeded


def test_mlp_is_the_formula():
    with seeded(0):
        network = MLP(3, (4,), 2)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    first, _, _, last = network.layers
    hidden = (x @ first.weight.T + first.bias).clamp(min=0)
    torch.testing.assert_close(network(x), hidden @ last.weight.T + last.bias)


def test_attention_is_the_formula():
    with seeded(0):
        network = Attention((3, 2), dim=4, heads=1).eval()
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    tokens = torch.stack((network.project[0](x[:, :3]), network.project[1](x[:, 3:])), dim=1)
    tokens = tokens + network.embedding
    q, k, v = (
        tokens @ w.T + b
        for w, b in zip(
            network.attention.in_proj_weight.chunk(3),
            network.attention.in_proj_bias.chunk(3),
            strict=True,
        )
    )
    weights = (q @ k.transpose(1, 2) / 2).softmax(-1)
    gathered = network.attention.out_proj(weights @ v)
    torch.testing.assert_close(network.weights(x), weights)
    torch.testing.assert_close(network(x), network.norm(tokens + gathered).flatten(1))


def test_attention_weights_sum_to_one():
    x = torch.randn(7, 9)
    weights = Attention((2, 3, 4), dim=8, heads=2).weights(x)
    assert weights.shape == (7, 3, 3)
    torch.testing.assert_close(weights.sum(-1), torch.ones(7, 3))


def test_width_no_multiple_of_heads():
    with pytest.raises(RecipeError, match="width 10 can't be shared by 4 heads"):
        Attention((3,), dim=10, heads=4)


def test_gate_is_the_formula():
    with seeded(0):
        network = Gate((3, 2), dim=4)
        torch.nn.init.normal_(network.gate.weight)
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    weights = (x @ network.gate.weight.T + network.gate.bias).softmax(1)
    first, second = network.project[0](x[:, :3]).tanh(), network.project[1](x[:, 3:]).tanh()
    torch.testing.assert_close(network.weights(x), weights)
    torch.testing.assert_close(network(x), weights[:, :1] * first + weights[:, 1:] * second)


def test_gate_starts_as_the_mean():
    weights = Gate((2, 3, 4), dim=8).weights(torch.randn(7, 9))
    torch.testing.assert_close(weights, torch.full((7, 3), 1 / 3))


def test_product_is_the_formula():
    with seeded(0):
        network = Product((3, 2), dim=4)
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    first, second = network.project[0](x[:, :3]).clamp(min=0), network.project[1](x[:, 3:]).relu()
    product = first * second
    expected = (product - product.mean(1, keepdim=True)) / torch.sqrt(
        product.var(1, correction=0, keepdim=True) + 1e-5
    )
    torch.testing.assert_close(network(x), expected)


def test_product_starts_as_a_sum():
    """Of vectors that are near 1: (1 + a)(1 + b) is nearly 1 + a + b."""
    x = torch.randn(50, 9) / 100
    network = Product((2, 3, 4), dim=8)
    parts = zip(network.project, torch.split(x, [2, 3, 4], dim=1), strict=True)
    total = sum(layer(part) for layer, part in parts)
    found = torch.nn.functional.layer_norm(total, (8,), eps=0.0)
    network.norm.eps = 0.0
    torch.testing.assert_close(network(x), found, atol=0.15, rtol=0)


def test_seeded_leaves_the_global_state():
    before = torch.get_rng_state()
    with seeded(0):
        first = torch.randn(3)
    with seeded(0):
        again = torch.randn(3)
    with seeded(1):
        other = torch.randn(3)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())
