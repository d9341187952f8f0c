"""Few images of each class: how many, of which splits, and under which name."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_images

from featcache.images.manifest import strings, subsample


def _split(count: int = 60) -> list[str]:
    return ["test" if i % 6 == 5 else "train" for i in range(count)]


def test_each_class_has_at_most_so_many_and_keeps_its_shares_of_the_splits() -> None:
    labels = ["a"] * 36 + ["b"] * 18 + ["c"] * 6
    images = replace(tiny_images(60), labels=strings(labels), split=strings(_split()))
    some = subsample(images, 12)
    pairs = zip(some.labels.tolist(), some.split.tolist(), strict=True)
    assert Counter(pairs) == {
        ("a", "train"): 10, ("a", "test"): 2, ("b", "train"): 10, ("b", "test"): 2,
        ("c", "train"): 5, ("c", "test"): 1,
    }  # fmt: skip
    assert some.name == "tiny-12"


def test_rows_stay_what_they_were() -> None:
    images = tiny_images(40)
    some = subsample(images, 5)
    assert some.ids.tolist() == sorted(some.ids.tolist())
    for row, id_ in enumerate(some.ids.tolist()):
        before = images.ids.tolist().index(id_)
        assert some.sha256[row] == images.sha256[before]
        assert some.labels[row] == images.labels[before]
        assert np.array_equal(some.read(row), images.read(before))


def test_the_seed_draws_and_zero_is_a_seed() -> None:
    images = tiny_images(40)
    first, again, other = subsample(images, 5, 0), subsample(images, 5, 0), subsample(images, 5, 1)
    assert first.ids.tolist() == again.ids.tolist() != other.ids.tolist()


@given(
    counts=st.tuples(*[st.integers(0, 30)] * 3).filter(lambda counts: sum(counts) > 0),
    most=st.integers(2, 40),
)
def test_no_split_is_lost_and_no_class_has_too_many(
    counts: tuple[int, int, int], most: int
) -> None:
    split = [
        name for name, n in zip(("train", "val", "test"), counts, strict=True) for _ in range(n)
    ]
    images = replace(tiny_images(len(split), classes=1), split=strings(split))
    some = subsample(images, most)
    kept = Counter(some.split.tolist())
    assert len(some) == max(min(most, len(split)), min(len(set(split)), most)) or most < len(kept)
    if most >= 3:
        assert set(kept) == set(split)
        assert len(some) == min(most, len(split))


@pytest.mark.parametrize("most", [40, 1000])
def test_more_than_there_are_is_all(most: int) -> None:
    assert len(subsample(tiny_images(40), most)) == 40
