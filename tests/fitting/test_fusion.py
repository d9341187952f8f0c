import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from featcache.errors import DataError, RecipeError, UnknownName
from featcache.fitting.fusion import FUSIONS, AttentionFusion, ConcatFusion

from .conftest import make_features

SMALL = {"dim": 8, "heads": 2, "epochs": 3}


def test_standard_is_the_standard_scaler(features):
    train, test = features.X[:80], features.X[80:]
    fused = ConcatFusion(features.blocks).fit(train).transform(test)
    np.testing.assert_array_equal(fused, StandardScaler().fit(train).transform(test))
    assert fused.dtype == np.float32


@pytest.mark.parametrize("scale", [1e-10, 1e6])
def test_columns_of_any_scale(features, scale):
    X = (features.X * scale).astype(np.float32)
    X[:, 2] = 7
    fused = ConcatFusion(features.blocks).fit_transform(X)
    spread = fused.std(axis=0)
    assert spread[2] == 0
    np.testing.assert_allclose(np.delete(spread, 2), 1, rtol=1e-3)
    np.testing.assert_allclose(fused.mean(axis=0), 0, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1])
def test_l2_by_block(features, scale):
    X = (features.X * scale).astype(np.float32)
    X[0, :6] = 0
    fused = ConcatFusion(features.blocks, scale="l2").fit_transform(X)
    expected = np.ones(len(X))
    expected[0] = 0
    np.testing.assert_allclose(np.linalg.norm(fused[:, :6], axis=1), expected, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(fused[:, 6:], axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(
        fused[1, :6], features.X[1, :6] / np.linalg.norm(features.X[1, :6]), rtol=1e-5
    )


def test_none_leaves_x(features):
    fused = ConcatFusion(scale="none").fit_transform(features.X)
    np.testing.assert_array_equal(fused, features.X)
    assert not np.shares_memory(fused, features.X)


@pytest.mark.parametrize("kind", FUSIONS.values())
def test_blocks_of_another_width(features, kind):
    with pytest.raises(DataError, match=r"blocks \(6, 3\) add up to 9, X has 10 columns"):
        kind(blocks=(6, 3)).fit(features.X, features.y)


def test_unknown_scale(features):
    with pytest.raises(UnknownName, match="standrad"):
        ConcatFusion(scale="standrad").fit(features.X)


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
