import logging
from dataclasses import replace

import numpy as np
import pytest

from featcache.errors import CacheRefused
from featcache.fitting.checks import check_features

from .conftest import make_features


def spoilt(change, **kind):
    features = make_features(**kind)
    X = features.X.copy()
    change(X)
    return replace(features, X=X)


def put(rows, columns, value):
    def change(X):
        X[rows, columns] = value

    return change


def copy_row(X):
    X[7, 6:] = X[3, 6:]


BROKEN = [
    (put(5, 2, np.nan), "net0: 1 of 120 rows are NaN or infinite: img0005.png"),
    (put(5, 7, -np.inf), "net1: 1 of 120 rows are NaN or infinite: img0005.png"),
    (put([4, 6], slice(0, 6), 0), "net0: 2 of 120 rows are all zero: img0004.png, img0006.png"),
    (put(slice(None), slice(6, 10), 3), "net1: .* equal for different images"),
    (copy_row, "net1: 1 of 120 rows are equal for different images: img0007.png"),
]


def test_sound_features_pass(features, caplog):
    check_features(features)
    assert not caplog.records


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_broken_features(change, message, caplog):
    features = spoilt(change)
    with pytest.raises(CacheRefused, match=message) as caught:
        check_features(features)
    assert caught.value.exit_code == 4
    with caplog.at_level(logging.WARNING, "featcache"):
        check_features(features, gate="warn")
    assert message.split(":")[0] in caplog.text


def test_constant_block():
    sha256 = np.full(120, "same")
    features = spoilt(put(slice(None), slice(6, 10), 3), sha256=sha256)
    with pytest.raises(CacheRefused, match="net1: constant in all of its 4 columns"):
        check_features(features)


def test_constant_column_is_only_logged(caplog):
    caplog.set_level("INFO", "featcache")
    check_features(spoilt(put(slice(None), 1, 3)))
    assert "net0: 16.7 % of 6 columns are constant" in caplog.text


def test_equal_rows_of_one_content_pass():
    sha256 = [f"{i:064x}" for i in range(120)]
    sha256[7] = sha256[3]
    check_features(spoilt(copy_row, sha256=sha256))


def test_minus_zero_equals_zero():
    def change(X):
        X[3, 0], X[7, 0] = 0.0, -0.0
        X[7, 1:6] = X[3, 1:6]

    with pytest.raises(CacheRefused, match="equal for different images"):
        check_features(spoilt(change))


def test_rows_of_several_pieces():
    def change(X):
        X[4999, :6] = X[0, :6]

    with pytest.raises(CacheRefused, match=r"1 of 5,000 rows are equal .*: img4999"):
        check_features(spoilt(change, n=5000))


def test_one_row():
    check_features(make_features(n=1))
