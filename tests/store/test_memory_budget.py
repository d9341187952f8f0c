"""Whether features fit into memory is told in one place."""

from __future__ import annotations

import logging

import pytest
from stored import blobs, store

from featcache.errors import RecipeError
from featcache.store import memory_budget
from featcache.store.lazy import LazyRows
from featcache.store.memory_budget import free_memory, load, parse_memory, why_streamed


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("auto", None),
        ("2GB", 2 * 10**9),
        ("1.5 gib", 3 * 2**29),
        (" 512MiB ", 2**29),
        ("7kb", 7000),
    ],
)
def test_sizes(text, count):
    assert parse_memory(text) == count


@pytest.mark.parametrize("text", ["", "2", "GB", "-1GB", "two GB", "2 G", "1e3MB", 2])
def test_what_is_no_size(text):
    with pytest.raises(RecipeError, match="memory is") as caught:
        parse_memory(text)
    assert "2GB" in caught.value.remedy


def test_the_threshold():
    # 1,000 rows of 30 columns are 120,000 bytes; a fit takes four times that, two at a time seven.
    assert why_streamed(1000, (10, 20), "480KB") == ""
    assert "30 columns would take 0.5 MB" in why_streamed(1000, (10, 20), "479KB")
    assert why_streamed(1000, (10, 20), "840KB", jobs=2) == ""
    assert why_streamed(1000, (10, 20), "839KB", jobs=2)


def test_auto_goes_by_what_is_free(monkeypatch):
    monkeypatch.setattr(memory_budget, "free_memory", lambda: 480_000)
    assert why_streamed(1000, (30,)) == ""
    assert "0.5 MB are free" in why_streamed(1001, (30,))


def test_the_limit_of_a_container_counts(tmp_path, monkeypatch):
    limit, used = tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr(memory_budget, "_LIMIT", limit)
    monkeypatch.setattr(memory_budget, "_USED", used)
    free = free_memory()
    assert free > 10_000
    limit.write_text("max\n")
    used.write_text("5\n")
    assert free_memory() > 10_000
    limit.write_text("10005\n")
    assert free_memory() == 10_000


def test_load_says_what_it_does(tmp_path, caplog):
    X, y = blobs(60)
    cache, images = store(tmp_path, X, y, (6, 4), views=("hflip",))
    entries = cache.choose("toy")
    with caplog.at_level(logging.INFO, "featcache"):
        assert not isinstance(load(cache, images, entries, memory="1GB").X, LazyRows)
        assert not caplog.records
        # 60 images fit into 10 kB, with a view of each they don't.
        assert not isinstance(load(cache, images, entries, memory="10KB").X, LazyRows)
        assert isinstance(load(cache, images, entries, ["hflip"], memory="10KB").X, LazyRows)
    assert "120 rows of 10 columns" in caplog.text
