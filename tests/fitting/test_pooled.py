import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from featcache.errors import RecipeError, UnknownName
from featcache.fitting.fusions.pooled import MaxFusion, MeanFusion, SumFusion, procrustes

KINDS = [SumFusion, MeanFusion, MaxFusion]


def projected(train, X, blocks, width):
    """Each block's components at mean square 1, by sklearn alone: (n, k, width)."""
    scaler, start, parts = StandardScaler().fit(train), 0, []
    for block in blocks:
        columns = slice(start, start + block)
        start += block
        pca = PCA(width, svd_solver="full").fit(scaler.transform(train)[:, columns])
        size = np.sqrt((pca.transform(scaler.transform(train)[:, columns]) ** 2).mean())
        parts.append(pca.transform(scaler.transform(X)[:, columns]) / size)
    return np.stack(parts, axis=1)


@pytest.mark.parametrize(
    ("kind", "merge"),
    [
        (SumFusion, lambda a, b: a + b),
        (MeanFusion, lambda a, b: (a + b) / 2),
        (MaxFusion, np.maximum),
    ],
)
def test_is_the_formula(features, kind, merge):
    train, test = features.X[:80].astype(float), features.X[80:].astype(float)
    fused = kind(features.blocks, align=False).fit(train).transform(test)
    expected = merge(*np.moveaxis(projected(train, test, features.blocks, 4), 1, 0))
    assert fused.shape == (40, 4)
    np.testing.assert_allclose(fused, expected, atol=1e-8)


@pytest.mark.parametrize(
    ("kind", "merge"),
    [(SumFusion, lambda a, b: a + b), (MaxFusion, np.maximum)],
)
def test_blocks_are_turned_as_scipy_turns_them(features, kind, merge):
    train, test = features.X[:80].astype(float), features.X[80:].astype(float)
    mine, theirs = np.moveaxis(projected(train, train, features.blocks, 4), 1, 0)
    turn, _ = orthogonal_procrustes(theirs, mine)
    one, other = np.moveaxis(projected(train, test, features.blocks, 4), 1, 0)
    fused = kind(features.blocks).fit(train).transform(test)
    np.testing.assert_allclose(fused, merge(one, other @ turn), atol=1e-8)


def test_blocks_that_see_the_same_are_found_out():
    """Three views of one signal, each turned its own way: after a sum it is whole."""
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(400, 5))
    turns = [np.linalg.qr(rng.normal(size=(5, 5)))[0] for _ in range(3)]
    tokens = np.stack([signal @ turn for turn in turns])  # (k, n, w)
    products = np.einsum("ina,jnb->ijab", tokens, tokens)
    turned = np.einsum("kna,kab->knb", tokens, procrustes(products))
    np.testing.assert_allclose(turned, np.broadcast_to(turned[0], (3, 400, 5)), atol=1e-8)
    noisy = tokens + rng.normal(scale=0.5, size=tokens.shape)
    found = procrustes(np.einsum("ina,jnb->ijab", noisy, noisy))
    turned = np.einsum("kna,kab->knb", noisy, found)
    apart = np.square(turned - turned.mean(axis=0)).mean()
    assert apart < 0.2 < np.square(noisy - noisy.mean(axis=0)).mean()
    np.testing.assert_allclose(
        found @ found.transpose(0, 2, 1), np.eye(5)[None].repeat(3, 0), atol=1e-9
    )


@pytest.mark.parametrize("kind", KINDS)
def test_one_block_is_only_projected(features, kind):
    X = features.X.astype(float)
    fused = kind().fit_transform(X)
    np.testing.assert_allclose(fused, projected(X, X, (10,), 10)[:, 0], atol=1e-8)


def test_width_that_fits(features):
    assert SumFusion((6, 4), width=3).fit(features.X).width_ == 3
    assert SumFusion((6, 4), width=None).fit(features.X).width_ == 4
    assert SumFusion((6, 4)).fit(features.X[:4]).width_ == 3
    assert SumFusion((6, 4), projection="random").fit(features.X[:4]).width_ == 4


def test_random_projection(features):
    def fused(seed):
        fusion = SumFusion((6, 4), projection="random", random_state=seed)
        return fusion.fit_transform(features.X)

    assert fused(0).dtype == np.float32
    np.testing.assert_array_equal(fused(0), fused(0))
    assert not np.array_equal(fused(0), fused(1))


def test_a_wide_block_does_not_outweigh_a_narrow_one():
    X = np.random.default_rng(0).normal(size=(200, 44))
    fusion = SumFusion((40, 4)).fit(X)
    square = (fusion._tokens(X) ** 2).mean(axis=(0, 2))
    np.testing.assert_allclose(square, 1)


@pytest.mark.parametrize("width", [0, 2.5, True, "wide"])
def test_width_out_of_range(features, width):
    with pytest.raises(RecipeError, match="width"):
        SumFusion(width=width).fit(features.X)


def test_unknown_projection(features):
    with pytest.raises(UnknownName, match=r"'pcaa'\nDid you mean pca"):
        SumFusion(projection="pcaa").fit(features.X)
