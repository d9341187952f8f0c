"""How many images have a vector, in words."""

from __future__ import annotations

import pytest

from featcache.store.cache import Coverage


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ((1, 1, 1, 0), "1 image"),
        ((1797, 1797, 1797, 0), "1,797 images"),
        ((1, 0, 0, 1), "1 image: 0 embedded, 1 failed"),
        ((13, 11, 10, 2), "13 images: 11 embedded (10 distinct), 2 failed"),
        ((13, 10, 10, 1), "13 images: 10 embedded, 1 failed, 2 missing"),
    ],
)
def test_counts_in_words(counts, words):
    assert str(Coverage(*counts)) == words
