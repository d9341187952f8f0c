"""Tables fit the terminal, break no number and no name, and come as CSV, JSON and Markdown."""

from __future__ import annotations

import csv
import io
import json

import click
import pytest
from click.testing import CliRunner

from featcache.cli import tables
from featcache.cli.tables import _is_numeric, say, show_table, table_options

COLUMNS = ("#", "backbones", "fusion", "head", "accuracy", "95 % interval", "balanced", "F1", "AUC",
           "one fit")  # fmt: skip
ROWS = [
    ("1", "efficientnet_b0 + mobilenet_v2 + resnet18", "attention", "mlp (anova:256, best of 20)",
     "0.9071", "0.9012 … 0.9126", "0.9071", "0.9070", "0.9927", "148.20 s"),
    ("= 2", "resnet18-log-1.5", "–", "logreg",
     "0.9070", "0.9011 … 0.9125", "0.9070", "0.9069", "–", "0.02 s"),
]  # fmt: skip
DROP = ("balanced", "AUC", "F1", "one fit")


@click.command()
@table_options
def table() -> None:
    show_table(COLUMNS, ROWS, "digits", drop=DROP, last=("95 % interval",))
    say("a sentence about them, " * 6)


def shown(monkeypatch: pytest.MonkeyPatch, width: int | None, *arguments: str) -> str:
    monkeypatch.setattr(tables, "_terminal_width", lambda: width)
    done = CliRunner().invoke(table, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("width", [60, 72, 80, 100, 120, 200])
def test_no_line_is_wider_than_the_terminal_and_no_word_is_broken(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    text = shown(monkeypatch, width)
    assert max(map(len, text.splitlines())) <= width
    words = set(text.split())
    gone = {*DROP, *(["95 % interval"] if width == 60 else [])}
    always = {place for place, name in enumerate(COLUMNS) if name not in gone}
    for row in ROWS:
        for place in always:
            assert set(row[place].split()) <= words


@pytest.mark.parametrize("width", range(20, 44))
def test_an_interval_is_not_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    monkeypatch.setattr(tables, "_terminal_width", lambda: width)
    say("expected of a winner chosen so: 0.987 (0.974 … 0.994), at 5 %")
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines).endswith("0.987 (0.974 … 0.994), at 5 %")
    assert sum("(0.974 … 0.994)" in line for line in lines) == 1


def test_numbers_stand_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, 80).splitlines()
    assert any("0.9071  0.9012 … 0.9126" in line for line in lines)


def test_columns_leave_in_the_stated_order(monkeypatch: pytest.MonkeyPatch) -> None:
    left = {
        width: [name for name in DROP if name in shown(monkeypatch, width)]
        for width in range(60, 220, 10)
    }
    assert left[60] == []
    assert left[210] == list(DROP)
    for names in left.values():
        assert names == list(DROP[len(DROP) - len(names) :])


def test_wide_leaves_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(name.split()[0] in shown(monkeypatch, 80, "--wide") for name in COLUMNS)


def test_show_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, None, "--show", "auc,head", "--format", "csv")
    assert text.splitlines()[0] == "AUC,head"


def test_an_unknown_column_is_named_with_those_that_there_are() -> None:
    done = CliRunner().invoke(table, ["--show", "area"])
    assert done.exit_code == 2
    assert "no column 'area'; there are #, backbones" in " ".join(done.output.split())


def test_csv_json_and_markdown_hold_every_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [dict(zip(COLUMNS, row, strict=True)) for row in ROWS]
    text = shown(monkeypatch, None, "--format", "csv")
    assert list(csv.DictReader(io.StringIO(text))) == expected
    assert json.loads(shown(monkeypatch, None, "--format", "json")) == expected
    lines = shown(monkeypatch, None, "--format", "markdown").splitlines()
    assert len(lines) == 2 + len(ROWS)
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == list(ROWS[0])


@pytest.mark.parametrize(
    ("cell", "numeric"),
    [("1", True), ("= 2", True), ("0.93 s", True), ("–", True), ("+0.1", True), ("", False),
     ("resnet18", False)],
)  # fmt: skip
def test_columns_of_numbers_are_told_from_text(cell: str, numeric: bool) -> None:
    assert _is_numeric([cell]) is numeric


@click.command()
@table_options
def paths() -> None:
    show_table(("backbone", "where"), [("timm:tf_efficientnet_lite0", "/a/long/way/down" * 9)])


def test_paths_wrap_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_terminal_width", lambda: 60)
    text = CliRunner().invoke(paths).stdout
    assert max(map(len, text.splitlines())) <= 60
    assert "timm:tf_efficientnet_lite0" in text
