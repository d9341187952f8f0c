"""What the console shows of numbers."""

from __future__ import annotations

import pytest

from featcache.cli.console import _looks_numeric, _memory


@pytest.mark.parametrize(
    ("size", "shown"),
    [(None, "–"), (0, "<1 MB"), (999_999, "<1 MB"), (1_000_000, "1 MB"), (2.5e9, "2,500 MB")],
)
def test_memory(size: int | None, shown: str) -> None:
    assert _memory(size) == shown
    assert _looks_numeric(shown)
