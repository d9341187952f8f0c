"""The comparison files are always those of the run folders that are there."""

from __future__ import annotations

import csv
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featcache.errors import DataError
from featcache.fitting import metrics
from featcache.reporting.comparison import (
    COLUMNS,
    METRICS,
    Comparison,
    flattery,
    protocol_columns,
    read_runs,
    side_by_side,
    sort_runs,
    write_comparison,
    write_protocols,
)
from featcache.reporting.schema import Run, Score, decimals

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
    assert [line[:6] for line in cells] == [list(row.values())[:6] for row in found]
    assert [line[6] for line in cells][2:] == ["0.95", "0.95"]  # as many as the interval supports
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


# Protocols side by side, on runs made by hand.


def _run(head: str, accuracy: float, leaky: bool = False, auc: float | None = 0.5) -> Run:
    metrics = {**dict.fromkeys(METRICS, accuracy), "auc": auc}
    return Run(
        folder=Path(f"reports/cells/{head}-{accuracy}"), data="cells", backbones=("a", "b"),
        fusion="concat", head=head, split="5 folds", rows="r", tested=1000 * (1 + leaky),
        metrics=metrics, sd={}, interval=(0.0, 1.0), fit_seconds=1.0, created="", leaky=leaky,
    )  # fmt: skip


DONE = {
    "as published": Comparison([_run("svm", 0.99, True), _run("mlp", 0.98, True)]),
    "leak-free": Comparison([_run("mlp", 0.90), _run("svm", 0.85, auc=None)]),
}


def test_candidates_come_by_what_they_reach_without_a_leak() -> None:
    rows = side_by_side(DONE)
    assert [(row["candidate"], row["protocol"]) for row in rows] == [
        ("a+b, concat, mlp", "as published (LEAKY)"),
        ("a+b, concat, mlp", "leak-free"),
        ("a+b, concat, svm", "as published (LEAKY)"),
        ("a+b, concat, svm", "leak-free"),
    ]
    assert [row["accuracy"] for row in rows] == ["0.9800", "0.9000", "0.9900", "0.8500"]
    assert rows[-1]["auc"] == "–"
    assert rows[0]["tested"] == "2,000"


def test_flattery_is_the_difference_of_the_same_candidate() -> None:
    (said,) = flattery(DONE)
    assert "'as published' is a LEAKY protocol. Its best, a+b.concat.svm, has 0.9900" in said
    assert "by 'leak-free' the same candidate has 0.8500: +14.0 points" in said
    assert "Over 2 candidates: +8.0 … +14.0, mean +11.0." in said


def test_protocols_follow_the_metric_that_they_are_ranked_by() -> None:
    log_loss = metrics.METRICS["log_loss"]

    def ranked(runs: Comparison, *values: float) -> Comparison:
        scores = [Score(log_loss, value, value, value) for value in values]
        return Comparison([replace(run, ranked=s) for run, s in zip(runs, scores, strict=True)])

    nan = float("nan")
    done = {
        "as published": ranked(DONE["as published"], 0.1, 0.3),
        "leak-free": ranked(DONE["leak-free"], 0.6, 0.5),
    }
    rows = side_by_side(done)
    assert protocol_columns(done)[2:5] == ("log_loss", "accuracy", "precision")
    assert tuple(rows[0]) == protocol_columns(done)
    assert [row["candidate"].rpartition(" ")[2] for row in rows] == ["svm", "svm", "mlp", "mlp"]
    assert [row["log_loss"] for row in rows] == ["0.1000", "0.5000", "0.3000", "0.6000"]
    (said,) = flattery(done)
    assert "has a log loss of 0.1000" in said
    assert "+0.4000 nats that new images would not see" in said
    assert "Over 2 candidates: +0.3000 … +0.4000, mean +0.3500." in said
    (said,) = flattery(done | {"leak-free": ranked(DONE["leak-free"], 0.6, nan)})
    assert "svm" not in said  # it has no log loss to compare
    assert side_by_side(done | {"leak-free": ranked(DONE["leak-free"], nan, 0.5)})


def test_without_a_leak_nothing_is_flattered() -> None:
    honest = DONE["leak-free"]
    assert flattery({"one": honest, "two": honest}) == []
    assert flattery({"leaky": DONE["as published"]}) == []
    assert flattery({"leaky": DONE["as published"], "other": Comparison([_run("knn", 0.5)])}) == []


def test_the_files_hold_the_table_and_the_sentence(tmp_path: Path) -> None:
    path = write_protocols(tmp_path, "study", DONE)
    with (tmp_path / "study.protocols.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows][:2] == [
        "reports/cells/mlp-0.98", "reports/cells/mlp-0.9",
    ]  # fmt: skip
    lines = path.read_text(encoding="utf-8").splitlines()
    assert (
        lines[0] == "| candidate | protocol | accuracy | precision | recall | f1 | auc | tested |"
    )
    assert len(lines) == 2 + 4 + 2
    assert lines[-1].startswith("'as published' is a LEAKY")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.92, 0.96, 2), (0.1, 0.9, 2), (0.9341, 0.9479, 3), (0.93410, 0.93411, 4),
     (0.5, 0.5, 4), (float("nan"), float("nan"), 4), (0.0, float("inf"), 4)],
)  # fmt: skip
def test_as_many_decimals_as_the_interval_supports(low, high, expected):
    assert decimals(low, high) == expected
