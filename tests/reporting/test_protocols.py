"""Protocols side by side, on runs made by hand."""

from __future__ import annotations

import csv
from pathlib import Path

from featcache.reporting.comparison import (
    METRICS,
    Comparison,
    flattery,
    side_by_side,
    write_protocols,
)
from featcache.reporting.schema import Run


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
