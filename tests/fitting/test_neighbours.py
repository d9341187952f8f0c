import numpy as np
import pytest
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from featcache.errors import DataError, RecipeError
from featcache.fitting.heads.neighbours import KNNHead, NearestMeanHead

from .conftest import make_features


def test_knn_is_sklearns():
    features = make_features(n=200, signal=0.5)
    X, y, test = features.X[:150], features.y[:150], features.X[150:]
    ours = KNNHead().fit(X, y).predict_proba(test)
    bare = KNeighborsClassifier(10, weights="distance", metric="cosine").fit(X, y)
    np.testing.assert_allclose(ours, bare.predict_proba(test), rtol=1e-6)


def test_knn_with_fewer_rows_than_neighbours(features):
    head = KNNHead().fit(features.X[:6], features.y[:6])
    assert head.predict_proba(features.X).shape == (120, 3)


def test_knn_of_zero_rows(features):
    X = features.X.copy()
    X[:5] = 0
    assert np.isfinite(KNNHead().fit(X, features.y).predict_proba(X)).all()


@pytest.mark.parametrize("k", [0, 2.5, True])
def test_knn_out_of_range(features, k):
    with pytest.raises(RecipeError, match="n_neighbors"):
        KNNHead(k).fit(features.X, features.y)


def test_nearest_mean_is_the_nearest_centroid():
    features = make_features(n=200, signal=0.5)
    X, y, test = features.X[:150], features.y[:150], features.X[150:]
    bare = NearestCentroid().fit(X, y)
    ours = NearestMeanHead().fit(X, y)
    np.testing.assert_array_equal(ours.predict(test), bare.predict(test))
    np.testing.assert_allclose(ours.means_, bare.centroids_, atol=1e-5)


def test_nearest_mean_has_gaussian_probabilities():
    features = make_features(signal=0.3)
    ours = NearestMeanHead().fit(features.X, features.y)
    bayes = GaussianNB(priors=[1 / 3] * 3).fit(features.X, features.y)
    bayes.theta_, bayes.var_ = ours.means_, np.full((3, 10), ours.variance_)
    np.testing.assert_allclose(
        ours.predict_proba(features.X), bayes.predict_proba(features.X), atol=1e-6
    )
    np.testing.assert_array_equal(
        ours.predict(features.X), ours.classes_[ours.predict_proba(features.X).argmax(axis=1)]
    )


def test_nearest_mean_of_single_points(features):
    head = NearestMeanHead().fit(features.X[:3], features.y[:3])
    assert (head.predict(features.X[:3]) == features.y[:3]).all()
    assert np.isfinite(head.predict_proba(features.X)).all()


def test_nearest_mean_of_one_class(features):
    with pytest.raises(DataError, match="1 class: cat"):
        NearestMeanHead().fit(features.X[::3], features.y[::3])
