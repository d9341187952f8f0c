import numpy as np
import pytest
import torch

from featcache.errors import RecipeError
from featcache.fitting.fusions.learned import (
    AttentionFusion,
    BilinearFusion,
    GatedFusion,
    HadamardFusion,
)

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


def test_product_of_five_blocks_learns_the_labels():
    """Untrained, a product of five would be 0 for most rows."""
    features = make_features(n=300, blocks=(4, 3, 3, 3, 3), signal=0.9)
    fusion = HadamardFusion(features.blocks, dim=16, lr=3e-3).fit(features.X, features.y)
    fused = fusion.transform(features.X)
    assert (fused.shape, fused.dtype) == ((300, 16), np.float32)
    assert fusion.history_["val_loss"][-1] < 0.6 * np.log(3)


@pytest.mark.parametrize("dim", [0, 2.5, True])
def test_product_width(features, dim):
    with pytest.raises(RecipeError, match="dim is"):
        HadamardFusion(dim=dim).fit(features.X, features.y)


# The sketch of bilinear pooling.


def outer_sketch(fusion, parts, width):
    """The count sketch of the outer products themselves, one entry at a time."""
    total = np.zeros((len(parts[0]), width))
    tables = [sketch.toarray() for sketch in fusion.sketches_]
    for a in range(len(parts)):
        for b in range(a + 1, len(parts)):
            for i in range(parts[a].shape[1]):
                for j in range(parts[b].shape[1]):
                    one, two = tables[a][i], tables[b][j]
                    place = (np.flatnonzero(one)[0] + np.flatnonzero(two)[0]) % width
                    total[:, place] += one.sum() * two.sum() * parts[a][:, i] * parts[b][:, j]
    return total


@pytest.mark.parametrize("width", [7, 16])
@pytest.mark.parametrize("blocks", [None, (6, 4), (5, 3, 2)])
def test_is_the_sketch_of_the_outer_product(features, width, blocks):
    X = features.X[:20].astype(float)
    fusion = BilinearFusion(blocks, width=width, scale="none").fit(X)
    parts = [X, X] if blocks is None else np.split(X, np.cumsum(blocks)[:-1], axis=1)
    sketch = outer_sketch(fusion, parts, width)
    rooted = np.sign(sketch) * np.sqrt(np.abs(sketch))
    expected = rooted / np.linalg.norm(rooted, axis=1, keepdims=True)
    np.testing.assert_allclose(fusion._normalised(X), expected, atol=1e-6)
    spread = expected.std(axis=0)
    standard = (expected - expected.mean(axis=0)) / np.where(spread > 0, spread, 1)
    told = spread > 1e-6
    np.testing.assert_allclose(fusion.transform(X)[:, told], standard[:, told], atol=1e-5)


def test_inner_products_are_those_of_the_outer_products():
    """Unbiased; the standard error over 400 draws of 64 columns is below 0.05 here."""
    X = np.random.default_rng(0).normal(size=(2, 8))
    X /= np.linalg.norm(X[:, :4], axis=1, keepdims=True)
    estimates = []
    for seed in range(400):
        fusion = BilinearFusion((4, 4), width=64, scale="none", random_state=seed).fit(X)
        one, two = fusion._sketch(X)
        estimates.append(one @ two)
    expected = (X[0, :4] @ X[1, :4]) * (X[0, 4:] @ X[1, 4:])
    error = np.std(estimates) / np.sqrt(400)
    assert abs(np.mean(estimates) - expected) < 4 * error


def test_rows_have_one_length(features):
    X = features.X.copy()
    X[0] = 0
    fusion = BilinearFusion((6, 4), width=32).fit(X)
    assert fusion.transform(X).dtype == np.float32
    expected = np.ones(120)
    expected[0] = 0
    np.testing.assert_allclose(np.linalg.norm(fusion._normalised(X), axis=1), expected, rtol=1e-5)


def test_seeds(features):
    def fused(seed):
        return BilinearFusion((6, 4), width=32, random_state=seed).fit_transform(features.X)

    np.testing.assert_array_equal(fused(0), fused(0))
    assert not np.array_equal(fused(0), fused(1))


@pytest.mark.parametrize("width", [0, 2.5, True])
def test_width_out_of_range(features, width):
    with pytest.raises(RecipeError, match="width"):
        BilinearFusion(width=width).fit(features.X)


def test_columns_without_a_product_stay_empty():
    """Six products in 64 columns: most hold only rounding, which differs between processors."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 5)).astype(np.float32)
    fusion = BilinearFusion((2, 3), width=64).fit(X)
    Z = fusion.transform(X)
    assert (np.ptp(Z, axis=0) > 0).sum() <= 6
    again = fusion.transform(X + rng.normal(scale=1e-7, size=X.shape).astype(np.float32))
    np.testing.assert_allclose(again, Z, atol=0.02)
