"""CSV whose cells no spreadsheet takes for a formula, and that is read as it was written.

A text that begins with =, +, -, @, a tab or a carriage return, and is no plain number, gets an
apostrophe before it, as spreadsheets write it themselves; one that begins with apostrophes before
such a character gets one more. `read_cell` takes it away again.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable
from typing import IO

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_WRITTEN = re.compile(r"'+[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)")


def cell(value: object) -> object:
    """A value as it is written: text that a spreadsheet would run gets an apostrophe."""
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def read_cell(text: str) -> str:
    """The text that `cell` was given."""
    return text[1:] if _WRITTEN.match(text) else text


def row_writer(file: IO[str]) -> Callable[[Iterable[object]], None]:
    """A function that writes one row; lines end in \\n.

    Parameters
    ----------
    file : text file
        Opened with `newline=""`.
    """
    # csv quotes what its own line end holds: so a carriage return in a cell can be read again.
    writer = csv.writer(_WithoutReturns(file), lineterminator="\r\n")
    return lambda row: writer.writerow([cell(value) for value in row])


class _WithoutReturns:
    """Takes lines that end in \\r\\n, each whole."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, line: str) -> None:
        self._file.write(line[:-2])
        self._file.write("\n")
