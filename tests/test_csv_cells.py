"""Tables hold no formulas, and are read as they were written."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.csv_cells import cell, read_cell, row_writer

TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("='+-@\t\r\n,\""))


def written(*rows: list[object]) -> str:
    file = io.StringIO(newline="")
    write = row_writer(file)
    for row in rows:
        write(row)
    return file.getvalue()


@given(TEXT)
def test_what_is_written_is_read(text: str) -> None:
    assert read_cell(str(cell(text))) == text


@given(st.lists(st.lists(TEXT, min_size=2, max_size=2), min_size=1))
def test_by_csv_too(rows: list[list[str]]) -> None:
    read = csv.reader(io.StringIO(written(*rows), newline=""))
    assert [list(map(read_cell, row)) for row in read] == rows


@pytest.mark.parametrize("text", ["=1+2", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+3", "\t=1", "\r=1"])
def test_a_formula_gets_an_apostrophe(text: str) -> None:
    assert cell(text) == f"'{text}"


@pytest.mark.parametrize("value", ["-1", "+1.5e-3", "-inf", "cat", "a=b", "'90s", "", -1, 0.5])
def test_all_else_is_as_it_was(value: object) -> None:
    assert cell(value) == value


def test_a_plain_table_has_the_bytes_that_csv_writes() -> None:
    rows: list[list[object]] = [["id", "label"], ["a,b.png", 'so "said"'], ["two\nlines", -3]]
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerows(rows)
    assert written(*rows) == file.getvalue()
