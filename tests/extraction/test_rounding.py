import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featcache.extraction.conv_bn_fusion import diffuse


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
