import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.hashing import (
    canonical_json,
    sha256_array,
    sha256_bytes,
    sha256_file,
    sha256_json,
)

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(plain)
def test_canonical_json_reads_back(value):
    assert json.loads(canonical_json(value)) == value


@given(st.dictionaries(st.text(), st.integers(), min_size=2))
def test_order_of_keys_does_not_matter(value):
    assert canonical_json(value) == canonical_json(dict(reversed(value.items())))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [-float("inf")]])
def test_nan_and_infinity_are_refused(value):
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(value)


def test_known_digests():
    # FIPS 180-2, appendix B.1
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_bytes(b"abc") == abc
    assert sha256_json("é") == hashlib.sha256('"é"'.encode()).hexdigest()


def test_file_larger_than_a_piece(tmp_path):
    data = bytes(range(256)) * 4096
    path = tmp_path / "x"
    path.write_bytes(data)
    assert sha256_file(path) == hashlib.sha256(data).hexdigest()


def test_array_digest_depends_on_values_shape_and_dtype_only():
    a = np.arange(12, dtype=np.uint8)
    digests = {
        sha256_array(x)
        for x in (a, a.reshape(3, 4), a.reshape(4, 3), a.view(np.int8), a.astype(np.uint16))
    }
    assert len(digests) == 5
    wide = np.repeat(a.reshape(3, 4), 2, axis=1)[:, ::2]  # equal, not contiguous
    assert not wide.flags.c_contiguous
    assert sha256_array(wide) == sha256_array(a.reshape(3, 4))
