import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from featcache.errors import RecipeError, UnknownName
from featcache.fitting.fusions.concat import ConcatFusion


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


def test_unknown_scale(features):
    with pytest.raises(UnknownName, match="standrad"):
        ConcatFusion(scale="standrad").fit(features.X)


def test_pca_is_sklearns_by_block(features):
    train, test = features.X[:80].astype(float), features.X[80:].astype(float)
    fused = ConcatFusion(features.blocks, pca=3).fit(train).transform(test)
    scaler = StandardScaler().fit(train)
    for part, columns in ((slice(0, 6), slice(0, 3)), (slice(6, 10), slice(3, 6))):
        pca = PCA(3, svd_solver="full").fit(scaler.transform(train)[:, part])
        expected = pca.transform(scaler.transform(test)[:, part])
        np.testing.assert_allclose(np.abs(fused[:, columns]), np.abs(expected), atol=1e-8)


def test_pca_by_share(features):
    fusion = ConcatFusion(features.blocks, pca=0.9).fit(features.X)
    for pca, block in zip(fusion.pca_, features.blocks, strict=True):
        ratio = pca.explained_variance_ratio_
        assert ratio.sum() >= 0.9 > ratio[:-1].sum()
        assert pca.n_components_ < block
    fused = fusion.transform(features.X)
    assert fused.shape[1] == sum(fusion.widths_) == len(fusion.get_feature_names_out())
    assert fused.dtype == np.float32


def test_pca_takes_what_fits(features):
    assert ConcatFusion(features.blocks, pca=5).fit(features.X).widths_ == (5, 4)
    few = ConcatFusion(features.blocks, pca=5).fit(features.X[:4])
    assert few.widths_ == (3, 3)
    assert np.isfinite(few.transform(features.X)).all()
    assert few.get_feature_names_out()[3] == "block1_pca0"


@pytest.mark.parametrize("pca", [2, 0.5])
def test_pca_of_a_constant_block(features, pca):
    X = features.X.copy()
    X[:, 6:] = 3
    fused = ConcatFusion(features.blocks, pca=pca).fit_transform(X)
    assert np.isfinite(fused).all()
    assert np.ptp(fused[:, -1]) == 0


@pytest.mark.parametrize("pca", [0, -1, 1.0, 0.0, True, "half"])
def test_pca_out_of_range(features, pca):
    with pytest.raises(RecipeError, match="pca"):
        ConcatFusion(pca=pca).fit(features.X)
