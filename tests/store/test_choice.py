"""Which file of several a spec picks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny import tiny_backbone

from featcache.errors import CacheMissing, RecipeError, UnknownName
from featcache.store.cache import choose
from featcache.store.key import Entry

PLAIN = tiny_backbone("net").key()
LARGE = replace(PLAIN, preprocess={**PLAIN.preprocess, "crop": 16, "resize": 16})
LOG = replace(PLAIN, preprocess={**PLAIN.preprocess, "filters": ["log-1.5"]})
FILES = [Entry("d", Path(f"cache/d/{k.stem}.h5"), k, 3, 5, 60, float(i))
         for i, k in enumerate((PLAIN, LARGE, LOG))]  # fmt: skip


def chosen(*wanted: str) -> list[str]:
    found = choose(FILES, "d", "cache", "photos", wanted)
    return [{PLAIN.digest: "plain", LARGE.digest: "large", LOG.digest: "log"}[e.key.digest]
            for e in found]  # fmt: skip


def test_a_spec_picks_the_file_that_agrees_with_it() -> None:
    assert chosen("net:size=16") == ["large"]
    assert chosen("net:filter=none:size=8") == ["plain"]
    assert chosen("net:size=8") == ["log"]  # of two that agree the newest
    assert chosen("net-16px", "net-log-1.5") == ["large", "log"]
    assert chosen(f"net-16px@{LARGE.key8}") == ["large"]
    assert chosen() == ["log"]


@pytest.mark.parametrize("first", [True, False])
def test_a_name_leaves_the_file_that_a_spec_beside_it_means(first: bool) -> None:
    wanted = ["net", "net:filter=log-1.5"]
    expected = ["large", "log"]
    assert chosen(*(wanted if first else wanted[::-1])) == (expected if first else expected[::-1])


def test_a_backbone_of_ones_own_is_found_whatever_its_name_holds() -> None:
    for name in ("net=1", "net@home", "a:size=3"):
        entry = replace(FILES[0], key=replace(PLAIN, backbone=name))
        assert choose([entry], "d", "cache", "") == [entry]
        assert choose([entry], "d", "cache", "", [name]) == [entry]
        assert choose([entry], "d", "cache", "", [f"{name}@{entry.key.digest}"]) == [entry]


def test_what_is_absent_gets_the_command_that_makes_it() -> None:
    with pytest.raises(CacheMissing, match=f"no features of net:size=32.*net@{LARGE.key8}") as e:
        chosen("net:size=32")
    assert e.value.remedy == "featcache extract --data photos --backbone net:size=32 --name d"


def test_a_bad_spec_is_said_to_be_one() -> None:
    with pytest.raises(UnknownName, match="Did you mean size"):
        chosen("net:siz=32")
    with pytest.raises(RecipeError, match="names no backbone"):
        chosen("@")
