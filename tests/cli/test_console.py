"""What the console shows of numbers."""

from __future__ import annotations

import pytest

from featcache.cli.console import _looks_numeric


@pytest.mark.parametrize(
    ("cell", "numeric"),
    [("1", True), ("= 2", True), ("0.93 s", True), ("–", True), ("", False), ("resnet18", False)],
)
def test_columns_of_numbers_are_told_from_text(cell: str, numeric: bool) -> None:
    assert _looks_numeric(cell) is numeric
