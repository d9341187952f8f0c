import numpy as np
import pytest

from featcache.fitting import splits as module
from featcache.fitting.splits import factorize


def same_parts(one, other):
    """Whether two numberings put the same rows together."""
    return len(set(zip(one.tolist(), other.tolist(), strict=True))) == len(set(one.tolist()))


@pytest.mark.parametrize("at_once", [1, 7, 2**16])
def test_as_numpy_s_unique(monkeypatch, at_once):
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    values = np.array(["", "a", "b", "ab", "ba", "é", "a" * 64])[rng.integers(0, 7, 200)]
    expected = np.unique(values, return_inverse=True)[1]
    found = factorize(values)
    assert sorted(set(found.tolist())) == list(range(7))
    assert same_parts(found, expected)
    assert same_parts(factorize(values[::2]), expected[::2])


def test_texts_with_one_digest_are_told_apart(monkeypatch):
    class Nothing:
        def integers(self, *_, size, dtype):
            return np.full(size, 2**62, dtype)  # twice that and 1: of equal weight for all places

    monkeypatch.setattr(np.random, "default_rng", lambda _: Nothing())
    values = np.array(["ab", "ba", "ab", "c"])
    assert same_parts(factorize(values), np.array([0, 1, 0, 2]))


def test_no_text():
    assert factorize(np.empty(0, np.str_)).shape == (0,)
