"""The comparison files are always those of the run folders that are there."""

from __future__ import annotations

import csv
import logging
import shutil

import numpy as np
import pytest

from featcache.errors import DataError
from featcache.reporting.comparison import COLUMNS, read_runs, sort_runs, write_comparison

from .conftest import make_features, make_run, own_split


def rows(wrong: int) -> np.ndarray:
    """Right (80,) but for the last `wrong` rows."""
    return np.arange(80) < 80 - wrong


@pytest.fixture
def reports(tmp_path):
    """Three runs on toy and one on another data set."""
    features = make_features()
    for head, wrong, seconds in (("svm", 2, 3.0), ("mlp", 0, 1.0), ("logreg", 2, 0.5)):
        make_run(tmp_path, features, own_split(80, 40), rows(wrong), head, seconds)
    make_run(tmp_path, make_features(data="another"), own_split(80, 20), rows(5), "mlp")
    return tmp_path


def table(reports):
    with (reports / "comparison.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_best_first_and_the_faster_of_equals_before(reports):
    runs = [run for run in read_runs(reports) if run.data == "toy"]
    assert [run.head for run in sort_runs(runs)] == ["mlp", "logreg", "svm"]
    assert sort_runs(runs).best.head == "mlp"


def test_csv_and_markdown_say_the_same(reports):
    done = write_comparison(reports)
    found = table(reports)
    assert [(row["data"], row["head"]) for row in found] == [
        ("another", "mlp"), ("toy", "mlp"), ("toy", "logreg"), ("toy", "svm"),
    ]  # fmt: skip
    assert tuple(found[0]) == COLUMNS
    assert found == done.rows()
    assert (found[2]["accuracy"], found[2]["fit_seconds"]) == ("0.9500", "0.50")
    lines = (reports / "comparison.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:6]]
    assert cells == [list(row.values()) for row in found]
    assert str(done) == "\n".join(lines)


def test_rebuilt_from_what_is_there_now(reports):
    write_comparison(reports)
    gone = next(reports.glob("toy/*.mlp.*"))
    shutil.rmtree(gone)
    (reports / "comparison.csv").write_text("edited by hand")
    assert len(write_comparison(reports)) == 3
    assert [row["head"] for row in table(reports)] == ["mlp", "logreg", "svm"]


def test_unreadable_run_folders_are_warned_of_and_left_out(reports, caplog):
    broken = next(reports.glob("toy/*.svm.*"))
    (broken / "run.json").write_text("{")
    with caplog.at_level(logging.WARNING, logger="featcache"):
        done = write_comparison(reports)
    assert [run.head for run in done] == ["mlp", "mlp", "logreg"]
    (warning,) = caplog.messages
    assert "left out" in warning
    assert str(broken) in warning


def test_an_unfinished_save_is_not_a_run(reports):
    folder = next(reports.glob("toy/*.svm.*"))
    shutil.copytree(folder, folder.with_name(f".{folder.name}.123.tmp"))
    assert len(read_runs(reports)) == 4


def test_nothing_to_compare(tmp_path):
    with pytest.raises(DataError, match="no runs below"):
        write_comparison(tmp_path)
