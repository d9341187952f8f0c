import numpy as np
import pytest
import torch

from featcache.errors import RecipeError
from featcache.fitting.fusions.learned import AttentionFusion, GatedFusion

from .conftest import make_features

SMALL = {"dim": 8, "heads": 2, "epochs": 3}


def test_attention_fuses(features):
    before = torch.get_rng_state()
    fusion = AttentionFusion(features.blocks, **SMALL).fit(features.X, features.y)
    fused = fusion.transform(features.X)
    assert fused.shape == (120, 16)
    assert fused.dtype == np.float32
    assert len(fusion.history_["train_loss"]) == 3
    weights = fusion.attention_weights(features.X)
    assert weights.shape == (120, 2, 2)
    np.testing.assert_allclose(weights.sum(axis=2), 1, rtol=1e-5)
    assert torch.equal(before, torch.get_rng_state())


def test_attention_learns_the_labels():
    features = make_features(n=300, signal=0.7)
    fusion = AttentionFusion(features.blocks, dim=8, heads=2, epochs=30, lr=0.01)
    fusion.fit(features.X, features.y)
    assert fusion.history_["val_loss"][-1] < 0.6 * np.log(3)


def test_attention_standardises(features):
    """Columns on another scale give the same fusion."""
    fusion = AttentionFusion(features.blocks, **SMALL)
    one = fusion.fit_transform(features.X, features.y)
    other = fusion.fit_transform(features.X * np.float32(1024), features.y)
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_attention_seeds(features):
    def fused(seed):
        fusion = AttentionFusion(features.blocks, **SMALL, random_state=seed)
        return fusion.fit_transform(features.X, features.y)

    np.testing.assert_array_equal(fused(0), fused(0))
    assert not np.array_equal(fused(0), fused(1))


def test_attention_width(features):
    with pytest.raises(RecipeError, match="can't be shared"):
        AttentionFusion(dim=9, heads=2).fit(features.X, features.y)


def test_gate_fuses(features):
    before = torch.get_rng_state()
    fusion = GatedFusion(features.blocks, dim=8, epochs=3, lr=0.01).fit(features.X, features.y)
    fused = fusion.transform(features.X)
    assert (fused.shape, fused.dtype) == ((120, 8), np.float32)
    weights = fusion.gate_weights(features.X)
    assert weights.shape == (120, 2)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    assert weights.std(axis=0).min() > 0
    assert torch.equal(before, torch.get_rng_state())


def test_gate_prefers_the_block_that_tells():
    features = make_features(n=300, blocks=(5, 5), signal=1.5)
    X = features.X.copy()
    X[:, 5:] = np.random.default_rng(1).normal(size=(300, 5))
    fusion = GatedFusion((5, 5), dim=8, epochs=30, lr=0.01).fit(X, features.y)
    assert fusion.gate_weights(X).mean(axis=0)[0] > 0.6


def test_gate_of_one_block(features):
    fusion = GatedFusion(dim=8, epochs=1).fit(features.X, features.y)
    np.testing.assert_array_equal(fusion.gate_weights(features.X), 1)


def test_gate_seeds(features):
    def fused(seed):
        fusion = GatedFusion(features.blocks, dim=8, epochs=2, random_state=seed)
        return fusion.fit_transform(features.X, features.y)

    np.testing.assert_array_equal(fused(0), fused(0))
    assert not np.array_equal(fused(0), fused(1))


@pytest.mark.parametrize("dim", [0, 2.5, True])
def test_gate_width(features, dim):
    with pytest.raises(RecipeError, match="dim is"):
        GatedFusion(dim=dim).fit(features.X, features.y)
