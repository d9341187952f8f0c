"""What every fusion does: blocks that fit, constant columns, tiny data, seeds."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import clone, is_classifier

from featcache.errors import DataError
from featcache.fitting.fusions import FUSIONS

QUICK = {
    "attention": {"dim": 8, "heads": 2, "epochs": 2},
    "gated": {"dim": 8, "epochs": 2},
    "hadamard": {"dim": 8, "epochs": 2},
    "bilinear": {"width": 32},
}


def quick(name, **params):
    return FUSIONS[name](**QUICK.get(name, {}), **params)


def fused(fusion, X):
    return fusion.predict_proba(X) if is_classifier(fusion) else fusion.transform(X)


@pytest.mark.parametrize("name", FUSIONS)
def test_blocks_of_another_width(features, name):
    with pytest.raises(DataError, match=r"blocks \(6, 3\) add up to 9, X has 10 columns"):
        quick(name, blocks=(6, 3)).fit(features.X, features.y)


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize("blocks", [None, (6, 4), (5, 3, 2)])
def test_any_blocks_with_constant_columns(features, name, blocks):
    """One constant column, and one block of zeros where there are several."""
    X = features.X.copy()
    X[:, 0] = 7
    if blocks is not None:
        X[:, -blocks[-1] :] = 0
    out = fused(quick(name, blocks=blocks).fit(X, features.y), X)
    assert np.isfinite(out).all()
    # A product of two blocks has nothing to say where one of them is constant.
    assert (np.ptp(out, axis=0).max() > 0) != (name == "bilinear" and blocks == (6, 4))


@pytest.mark.parametrize("name", FUSIONS)
def test_tiny_data(features, name):
    """Two rows a class, and more columns than rows."""
    out = fused(quick(name, blocks=(6, 4)).fit(features.X[:6], features.y[:6]), features.X)
    assert np.isfinite(out).all()
    assert len(out) == 120


@pytest.mark.parametrize("name", FUSIONS)
def test_same_again_and_global_state_untouched(features, name):
    fusion = quick(name, blocks=(6, 4))
    state = np.random.get_state()[1].copy()
    one, two = (fused(clone(fusion).fit(features.X, features.y), features.X) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(state, np.random.get_state()[1])


def test_names_import_nothing_heavy():
    code = (
        "import sys\n"
        "from featcache.fitting.fusions import FUSIONS\n"
        "from featcache.fitting.heads import HEADS\n"
        "assert 'stack' in FUSIONS and 'knn' in HEADS\n"
        "sys.exit(', '.join({'torch', 'sklearn', 'xgboost', 'scipy'} & {*sys.modules}) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
