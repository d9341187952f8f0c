import numpy as np
import pytest

from featcache.errors import DataError
from featcache.images.manifest import from_arrays


def test_equal_pixels_have_equal_digests_and_another_shape_another():
    a = np.arange(12, dtype=np.uint8)
    arrays = [a.reshape(3, 4), a.reshape(3, 4).copy(), a.reshape(4, 3)]
    images = from_arrays("x", arrays, ids=list("abc"), labels=["", "", ""])
    assert images.sha256[0] == images.sha256[1] != images.sha256[2]
    assert images.read(2) is arrays[2]
    assert images.groups.tolist() == images.split.tolist() == ["", "", ""]
    assert images.source == "memory"


def test_lengths_must_agree():
    with pytest.raises(DataError, match="sha256 has 1 row, ids has 2"):
        from_arrays("x", [np.zeros((2, 2), np.uint8)], ids=["a", "b"], labels=["", ""])
