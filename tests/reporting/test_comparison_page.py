"""comparison.html: question, answer, table, and what holds of damaged folders."""

from __future__ import annotations

import json
import logging

import pytest

from featcache.reporting.comparison import write_comparison
from featcache.reporting.run_page import write_run_page
from featcache.reporting.ties import verdict

from .conftest import make_features, make_run, own_split
from .pages import HOSTILE, Page, check_self_contained, make_odd_run


@pytest.fixture
def reports(tmp_path):
    make_odd_run(tmp_path, "mlp", right_rate=0.95)
    make_odd_run(tmp_path, "svm", right_rate=0.4)
    make_odd_run(tmp_path, "svm", right_rate=0.5, backbones=("big",))
    return tmp_path


@pytest.mark.rendered
def test_question_answer_table_and_duel(reports):
    done = write_comparison(reports)
    page = Page(reports / "comparison.html")
    check_self_contained(page)
    assert verdict(done.runs) in page.text
    assert "Which of 3 classifiers on big, small, fused or alone, under mlp, svm?" in page.text
    for run in done:
        assert f"{run.metric('accuracy'):.2f}" in page.text
        assert f"{run.interval[0]:.2f} … {run.interval[1]:.2f}" in page.text
    assert "the best fusion against the best backbone alone" in page.text
    assert HOSTILE in page.text  # a class of the duel
    assert (reports / "toy" / "cost.png").is_file()
    assert (reports / "toy" / "cost.svg").is_file()
    assert "featcache fit --name toy" in page.text


def test_pages_of_runs_are_linked_where_they_are(reports):
    done = write_comparison(reports, lambda runs: write_run_page(runs[0].folder, among=runs))
    links = [a["href"] for a in Page(reports / "comparison.html").all("a")]
    (link,) = [link for link in links if link and link.endswith("report.html")]
    assert link == f"toy/{done.best.folder.name}/report.html".replace("+", "%2B")


def test_sections_and_leaks_and_cost(reports):
    make_run(reports, make_features(data="another"), own_split(80, 20),
             make_features().y == "cat", "mlp")  # fmt: skip
    folder = next(reports.glob("toy/*.mlp.*"))
    facts = json.loads((folder / "run.json").read_text())
    more = {"leaky": True, "extraction_seconds": {"big": 3.0, "small": 4.0}}
    (folder / "run.json").write_text(json.dumps({**facts, **more}))
    found = {"kind": "duplicate", "count": 1, "what": f"{HOSTILE} twice", "pairs": []}
    (folder / "leaks.json").write_text(json.dumps({"leaks": [found]}))
    write_comparison(reports)
    page = Page(reports / "comparison.html")
    check_self_contained(page)
    assert "Leaky on purpose" in page.text[:200]
    assert f"{HOSTILE} twice" in page.text
    assert "7.00 s" in page.text
    assert [s["id"] for s in page.all("section")] == ["data-1", "data-2"]


DAMAGE = {
    "facts are a list": ("run.json", lambda facts: []),
    "data is a number": ("run.json", lambda facts: {**facts, "data": 5}),
    "seconds are text": ("run.json", lambda facts: {**facts, "fit_seconds": "long"}),
    "backbones are text": ("run.json", lambda facts: {**facts, "backbones": "big"}),
    "created is null": ("run.json", lambda facts: {**facts, "created": None}),
    "tested is true": ("run.json", lambda facts: {**facts, "tested": True}),
    "interval is null": ("metrics.json", lambda scores: {**scores, "interval": [None, 1]}),
    "mean is text": ("metrics.json", lambda scores: {**scores, "mean": {"accuracy": "high"}}),
    "scores are null": ("metrics.json", lambda scores: None),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_run_folder_is_left_out_with_a_warning(reports, caplog, name):
    file, change = DAMAGE[name]
    path = next(reports.glob("toy/*.mlp.*")) / file
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with caplog.at_level(logging.WARNING, logger="featcache"):
        done = write_comparison(reports)
    assert [run.head for run in done] == ["svm", "svm"]
    assert any("left out" in m and str(path.parent) in m for m in caplog.messages)
    Page(reports / "comparison.html")


@pytest.mark.parametrize("folds", [None, 5, "many", [1, None], [{"name": None}]])
def test_damaged_folds_do_not_stop_the_page(reports, folds):
    path = next(reports.glob("toy/*.mlp.*")) / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "folds": folds}))
    done = write_comparison(reports, lambda runs: write_run_page(runs[0].folder, among=runs))
    assert len(done) == 3
    Page(done.best.folder / "report.html")


@pytest.mark.parametrize("text", ["", "{", "null", "3", '["a", {"x": [1]}]', '{"near": 3}'])
def test_damaged_leaks_do_not_stop_the_page(reports, text):
    (next(reports.glob("toy/*.mlp.*")) / "leaks.json").write_text(text)
    write_comparison(reports)
    Page(reports / "comparison.html")


def test_a_plot_that_fails_costs_a_warning_only(reports, monkeypatch, caplog):
    def broken(*_):
        raise ValueError("no canvas")

    monkeypatch.setattr("featcache.reporting.plots.comparison.plot_comparison", broken)
    with caplog.at_level(logging.WARNING, logger="featcache"):
        write_comparison(reports)
    assert any("no canvas" in message for message in caplog.messages)
    assert (reports / "comparison.csv").is_file()


def test_files_are_replaced_whole(reports, monkeypatch):
    write_comparison(reports)
    before = {name: (reports / name).read_text() for name in
              ("comparison.csv", "comparison.md", "comparison.html")}  # fmt: skip

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", full)
        with pytest.raises(OSError, match="No space"):
            write_comparison(reports)
    assert {name: (reports / name).read_text() for name in before} == before
    assert [p for p in reports.iterdir() if p.name.startswith(".")] == []
