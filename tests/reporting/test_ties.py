"""Ties: what can't be told from the best, and the sentence that says so."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from featcache.cli.main import cli
from featcache.cli.tables import show_runs
from featcache.fitting.significance import compare_all
from featcache.fitting.splits import make_folds
from featcache.reporting import predictions
from featcache.reporting.comparison import sort_runs, write_comparison
from featcache.reporting.predictions import read_outcomes as plain_read
from featcache.reporting.schema import asides, labels
from featcache.reporting.ties import mark_ties, recommendation, verdict, verdicts

from .conftest import make_features, make_run, own_split

N = 400


def drawn(seed: int, rate: float, n: int = N) -> np.ndarray:
    return np.random.default_rng(seed).random(n) < rate


@pytest.fixture
def runs(tmp_path: Path):
    """A callable: run folders on one test split (or K folds) from a dict of head to `right`."""

    def make(right: dict[str, np.ndarray], folds: int | None = None, **seconds: float):
        features = make_features(len(next(iter(right.values()))))
        split = make_folds(features, folds) if folds else own_split(len(features), 200)
        return [
            make_run(tmp_path, features, split, rows, head, seconds.get(head, 1.0))
            for head, rows in right.items()
        ]

    return make


def standing(runs) -> dict[str, bool | None]:
    """None for the best, else whether it is a tie, by head."""
    return {run.head: None if run.p is None else run.tie for run in sort_runs(runs)}


@pytest.mark.parametrize("folds", [None, 5])
def test_identical_candidates_tie_and_a_clearly_worse_one_does_not(runs, folds):
    good = drawn(0, 0.95)
    made = runs({"mlp": good, "svm": good, "logreg": drawn(1, 0.6)}, folds, mlp=1, svm=2)
    assert standing(made) == {"mlp": None, "svm": True, "logreg": False}
    assert next(run.p for run in sort_runs(made) if run.head == "svm") == 1.0


def test_one_split_is_tested_over_all_pairs(runs):
    right = {"mlp": drawn(0, 0.9), "svm": drawn(1, 0.84), "logreg": drawn(2, 0.8)}
    done = sort_runs(runs(right))
    table = np.stack([right[run.head][200:] for run in done], axis=1)
    found = compare_all(table)
    assert [run.p for run in done] == [None, *map(pytest.approx, found.p[:2])]
    assert done.best.family.size == 3
    assert done.best.family.detectable == pytest.approx(found.detectable(0))
    assert [run.family for run in done][1:] == [None, None]


def test_folds_are_tested_by_rows_with_the_variance_of_refits(runs):
    done = sort_runs(runs({"mlp": drawn(0, 0.9), "svm": drawn(1, 0.8)}, folds=4))
    a, b = drawn(0, 0.9) * 1.0, drawn(1, 0.8) * 1.0
    t = (a - b).mean() / np.sqrt((1 + 4 * 100 / 300) * (a - b).var(ddof=1) / N)
    assert done.runs[1].p == pytest.approx(2 * stats.t.sf(t, N - 1), abs=0.01)


def test_a_far_worse_candidate_over_five_folds_is_told_apart(runs):
    worse = drawn(0, 0.9) & drawn(1, 0.87)
    assert standing(runs({"mlp": drawn(0, 0.9), "svm": worse}, folds=5)) == {
        "mlp": None, "svm": False,
    }  # fmt: skip


def test_predictions_are_paired_by_id(runs):
    made = runs({"mlp": drawn(0, 0.9), "svm": drawn(1, 0.84)})
    before = [run.p for run in sort_runs(made)]
    path = made[1].folder / "predictions.csv"
    header, *lines = path.read_text().splitlines()
    order = np.random.default_rng(2).permutation(len(lines))
    path.write_text("\n".join([header, *(lines[i] for i in order)]) + "\n")
    assert [run.p for run in sort_runs(made)] == before
    # The same predictions under other ids are no pairs.
    path.write_text("\n".join([header, *(f"x{line}" for line in lines)]) + "\n")
    assert [run.p for run in sort_runs(made)] == [None, None]


def test_folds_are_paired_by_name(runs):
    made = runs({"mlp": drawn(0, 0.9), "svm": drawn(1, 0.84)}, folds=5)
    before = [run.p for run in sort_runs(made)]
    path = made[1].folder / "predictions.csv"
    text = path.read_text()
    header, *lines = text.splitlines()
    path.write_text("\n".join([header, *reversed(lines)]) + "\n")
    assert [run.p for run in sort_runs(made)] == before
    path.write_text(text.replace(",fold1,", ",fold9,"))
    assert [run.p for run in sort_runs(made)] == [None, None]


def test_folds_that_are_not_on_record_are_not_tested(runs):
    made = runs({"mlp": drawn(0, 0.9), "svm": drawn(1, 0.84)}, folds=5)
    for run in made:
        path = run.folder / "metrics.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"folds": [{"name": 1}]}))
    assert [run.p for run in sort_runs(made)] == [None, None]


def test_rows_of_one_group_count_once(tmp_path):
    # 10 groups of 20 rows: on two of them only one candidate is right.
    features = make_features(N, groups=[f"patient{i // 20}" for i in range(N)])
    split = own_split(N, 200)
    lost = np.ones(N, dtype=bool)
    lost[200:240] = False
    made = [
        make_run(tmp_path, features, split, np.ones(N, dtype=bool), "mlp"),
        make_run(tmp_path, features, split, lost, "svm"),
    ]
    with (made[0].folder / "predictions.csv").open() as file:
        assert len({row["group"] for row in csv.DictReader(file)}) == 10
    assert [run.p for run in sort_runs(made)] == [None, pytest.approx(0.5)]


def test_without_groups_there_is_no_group_column(runs):
    (made,) = runs({"mlp": drawn(0, 0.9)})
    header = (made.folder / "predictions.csv").read_text().splitlines()[0]
    assert header == "id,fold,true,pred,p_cat,p_dog"


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text(""),
        lambda path: path.write_text("id,fold,pred\na,test,cat\n"),
        lambda path: path.write_text("id,fold,true,pred\na,test\n"),
        lambda path: path.write_text("id,fold,true,pred\n"),
        lambda path: path.write_bytes(b"id,fold,true,pred\n\xff\xfe,test,cat,cat\n"),
    ],
    ids=["missing", "empty", "no column", "cut line", "no rows", "not UTF-8"],
)
def test_a_run_without_predictions_is_not_tested(runs, damage):
    good = drawn(0, 0.95)
    made = runs({"mlp": good, "svm": good, "logreg": drawn(1, 0.5)}, mlp=1, svm=2)
    damage(made[1].folder / "predictions.csv")
    done = sort_runs(made)
    assert standing(made) == {"mlp": None, "svm": None, "logreg": False}
    assert "1 other not tested: the predictions are not there." in verdict(done.runs)
    damage(made[0].folder / "predictions.csv")
    assert standing(made) == {"mlp": None, "svm": None, "logreg": None}
    assert "not tested against the others" in verdict(sort_runs(made).runs)


def test_only_runs_on_the_same_rows_are_tested(runs):
    one, two = runs({"mlp": drawn(0, 0.95), "svm": drawn(1, 0.5)})
    assert [run.p for run in mark_ties([one, replace(two, rows="other")])] == [None, None]
    assert [run.p for run in mark_ties([one, replace(two, data="other")])] == [None, None]
    said = verdicts([one, replace(two, rows="other", split="9 folds")])
    assert said == [
        "toy, test split: big+small.concat.mlp is the only run on these rows.",
        "toy, 9 folds: big+small.concat.svm is the only run on these rows.",
    ]


def test_what_is_said_of_one_run(runs):
    assert verdict(sort_runs(runs({"mlp": drawn(0, 0.9)})).runs) == (
        "big+small.concat.mlp is the only run on these rows."
    )


METHOD = "(paired max-T test, 5 %)"


def test_what_is_said_where_nothing_ties(runs):
    made = sort_runs(runs({"mlp": drawn(0, 0.95), "svm": drawn(1, 0.6), "knn": drawn(2, 0.6)}))
    family = made.best.family
    low, high = family.winner.low, family.winner.high
    assert verdict(made.runs) == (
        f"big+small.concat.mlp is best, by more than chance {METHOD}. "
        "The smallest difference that could have been shown is about "
        f"{100 * family.detectable:.1f} points. "
        f"Best of 3: {made.best.metric('accuracy'):.2f}; expected of a winner chosen so: "
        f"{family.winner.expected:.2f} ({low:.2f} … {high:.2f})."
    )
    assert 0.05 < family.detectable < 0.15


def test_what_is_said_where_some_tie(runs):
    good = drawn(0, 0.95)
    right = {"mlp": good, "svm": good, "knn": good, "logreg": drawn(1, 0.6)}
    same = sort_runs(runs(right, mlp=2, svm=2, knn=2, logreg=0.1)).runs
    said = f"big+small.concat.{same[0].head} is best; 2 others can't be told from it {METHOD}."
    assert verdict(same).startswith(said)
    assert recommendation(same) == []  # logreg is cheaper, but no tie


def fewer(right: np.ndarray, count: int) -> np.ndarray:
    """With so many of the last rows wrong."""
    less = right.copy()
    less[np.flatnonzero(right)[-count:]] = False
    return less


def test_what_to_use_is_the_cheapest_tie_within_a_point(runs):
    good = drawn(0, 0.95)
    right = {"mlp": good, "svm": fewer(good, 1), "knn": fewer(good, 2), "logreg": fewer(good, 3)}
    done = sort_runs(runs(right, mlp=4.2, svm=2.1, knn=1, logreg=0.1)).runs
    assert [run.tie for run in done[1:]] == [True] * 3
    assert recommendation([replace(run, fit_seconds=run.fit_seconds / 9) for run in done]) == []
    # logreg is 1.5 points below: outside the margin, however cheap.
    assert recommendation(done) == [
        "To use: big+small.concat.knn, 1.0 points below the best and 3.9 times cheaper "
        "(1.1 s of fit and predictions, not 4.3 s)."
    ]
    assert recommendation(done)[0] in verdict(done)


def test_what_to_use_weighs_the_extraction(runs):
    good = drawn(0, 0.95)
    both, one = sort_runs(runs({"mlp": good, "svm": fewer(good, 1)}, mlp=1, svm=2)).runs
    spent = {"big": 30.0, "small": 10.0}
    whole = [replace(both, extraction_seconds=spent),
             replace(one, extraction_seconds={"small": 10.0})]  # fmt: skip
    assert recommendation(whole) == [
        "To use: big+small.concat.svm, 0.5 points below the best and 3.4 times cheaper "
        "(12.1 s of extraction, fit and predictions, not 41.1 s)."
    ]
    # The slower fit is no gain where the extraction is not known of all.
    assert recommendation([whole[0], one]) == []


def test_what_is_said_where_everything_ties(runs):
    good = np.ones(N, dtype=bool)
    two = sort_runs(runs({"mlp": good, "svm": fewer(good, 2)})).runs
    assert verdict(two).startswith(
        f"big+small.concat.mlp is best, but the other one can't be told from it {METHOD}. "
        "Nothing here can be told apart: too few images, or groups of them, differ. Best of 2: "
    )
    three = sort_runs(runs({"mlp": good, "svm": fewer(good, 2), "knn": fewer(good, 2)})).runs
    assert verdict(three).startswith(
        f"big+small.concat.mlp is best, but none of the 2 others can be told from it {METHOD}."
    )


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_all_right_or_all_wrong(runs, rate):
    done = sort_runs(runs({head: drawn(0, rate) for head in ("mlp", "svm", "knn")}, folds=5)).runs
    assert [run.p for run in done] == [None, 1, 1]
    assert done[0].family.winner.expected == pytest.approx(rate)


def test_runs_of_one_name_are_told_apart_by_what_differs(runs):
    one, two = runs({"mlp": drawn(0, 0.95), "svm": drawn(1, 0.5)})
    one = replace(one, settings={"head.hidden": 64, "head.lr": 0.1, "seeds": 3})
    two = replace(two, head="mlp", p=0.0, settings={"head.lr": 0.1, "seeds": 3})
    assert verdict([one, two]).startswith("big+small.concat.mlp (hidden=64) is best, ")
    assert labels([one, two]) == ["big + small · concat · mlp (hidden=64)",
                                  "big + small · concat · mlp"]  # fmt: skip
    assert asides([one, replace(one, seed=1)]) == ["seed=0", "seed=1"]
    assert asides([one, replace(one, folder=Path("reports/toy/other.1234abcd"))]) == [
        "00000000", "1234abcd",
    ]  # fmt: skip
    assert asides([one, replace(two, head="svm")]) == ["", ""]


def test_settings_stand_in_every_table(runs, tmp_path, capsys):
    one, two = runs({"mlp": drawn(0, 0.95), "svm": drawn(1, 0.5)})
    for run, settings in ((one, {}), (two, {"head.hidden": 64})):
        facts = json.loads((run.folder / "run.json").read_text())
        changed = facts | {"head": "mlp", "settings": settings}
        (run.folder / "run.json").write_text(json.dumps(changed))
    done = write_comparison(tmp_path)
    with (tmp_path / "comparison.csv").open() as file:
        assert [row["settings"] for row in csv.DictReader(file)] == ["", "head.hidden=64"]
    assert "| head.hidden=64 |" in (tmp_path / "comparison.md").read_text()
    page = (tmp_path / "comparison.html").read_text()
    assert "big + small · concat · mlp (hidden=64)" in page
    show_runs(done.runs)
    assert "mlp (hidden=64)" in capsys.readouterr().out


def test_csv_and_markdown_have_the_test(runs, tmp_path):
    good = drawn(0, 0.95)
    runs({"mlp": good, "svm": good, "logreg": drawn(1, 0.6)}, mlp=1, svm=2)
    done = write_comparison(tmp_path)
    with (tmp_path / "comparison.csv").open() as file:
        table = [(row["head"], row["p"], row["tie"]) for row in csv.DictReader(file)]
    assert table[:2] == [("mlp", "", ""), ("svm", "1", "yes")]
    assert (table[2][0], table[2][2]) == ("logreg", "")
    assert float(table[2][1]) < 1e-3
    text = (tmp_path / "comparison.md").read_text()
    assert text.endswith(f"\n\n{verdict(done.runs)}\n")


def test_the_table_marks_ties_and_explains_the_mark(runs, capsys):
    good = drawn(0, 0.95)
    made = runs({"mlp": good, "svm": good, "logreg": drawn(1, 0.6)}, mlp=1, svm=2)
    show_runs(sort_runs(made).runs)
    out = capsys.readouterr().out
    marked = [
        line.strip()[:3] for line in out.splitlines() if line.count(" … ") and "Best of" not in line
    ]
    assert marked == ["1  ", "= 2", "3  "]
    assert "=  can't be told from the best\nbig+small.concat.mlp is best; 1 other" in out
    show_runs(sort_runs([made[0], made[2]]).runs)
    out = capsys.readouterr().out
    assert "=" not in out
    assert "is best, by more than chance (paired max-T test, 5 %)." in out


def test_report_shows_the_verdict_of_the_runs_that_are_named(runs, tmp_path):
    good = drawn(0, 0.95)
    made = runs({"mlp": good, "svm": good, "logreg": drawn(1, 0.6)}, mlp=1, svm=2)
    base = ["report", "--reports", str(tmp_path)]
    everything = CliRunner().invoke(cli, base).stdout
    assert "is best; 1 other can't be told from it" in everything
    named = CliRunner().invoke(cli, [*base, str(made[0].folder), str(made[2].folder)]).stdout
    assert "is best, by more than chance" in named


def test_16_runs_are_read_once_each(runs, monkeypatch):
    made = runs({f"head{i}": drawn(i, 0.9) for i in range(16)})
    read = []
    monkeypatch.setattr(
        predictions, "read_outcomes", lambda path, *by: read.append(path) or plain_read(path, *by)
    )
    done = sort_runs(made)
    assert all(run.p is not None for run in done.runs[1:])
    assert sorted(read) == sorted(run.folder / "predictions.csv" for run in made)
