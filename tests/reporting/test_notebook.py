"""What notebooks show: short reprs, tables whose text is escaped, a bar below the cell."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

import featcache as fc
from featcache.display import html_table, in_notebook, notebook_progress

from .conftest import make_features


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> fc.Comparison:
    features = make_features(90)
    reports = tmp_path_factory.mktemp("reports")
    return fc.compare(features, head=["logreg", "dummy"], folds=3, reports=reports)


def test_reprs_are_one_short_line(table: fc.Comparison) -> None:
    features = make_features(90)
    result = fc.evaluate(fc.make_classifier(head="logreg"), features, folds=3)
    for one in (features, result, table):
        assert "\n" not in repr(one)
        assert len(repr(one)) < 200
    assert "90 rows" in repr(features)
    assert f"{result.metrics['accuracy']:.4f}" in repr(result)
    assert table.best.head in repr(table)


def test_a_comparison_becomes_a_frame_of_numbers(table: fc.Comparison) -> None:
    frame = table.to_frame()
    assert len(frame) == len(table)
    assert frame["accuracy"].tolist() == [round(r.metric("accuracy"), 4) for r in table]
    assert frame["accuracy"].dtype == np.float64
    assert frame["tested"].tolist() == [90] * len(table)


def test_html_holds_every_run_and_the_conclusion(table: fc.Comparison) -> None:
    html = table._repr_html_()
    assert html.count("<tr>") == len(table) + 1
    assert all(run.head in html for run in table)
    assert "<p>" in html


def test_html_is_escaped() -> None:
    html = html_table(("<a>",), [("<script>",)], "<b>", ["<i>"])
    assert "<script>" not in html
    assert html.count("&lt;") == 4


def test_a_notebook_is_known_by_its_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", None)
    assert not in_notebook()

    class ZMQInteractiveShell:
        pass

    there = SimpleNamespace(get_ipython=ZMQInteractiveShell)
    monkeypatch.setitem(sys.modules, "IPython", there)
    shown: list[dict[str, str]] = []

    def display(bundle: dict[str, str], *, raw: bool, display_id: bool) -> SimpleNamespace:
        assert raw and display_id  # noqa: PT018
        shown.append(bundle)
        return SimpleNamespace(update=lambda bundle, raw: shown.append(bundle))

    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    monkeypatch.setattr("featcache.display._EVERY_SECONDS", 0.0)
    assert in_notebook()
    with notebook_progress("<images>") as progress:
        assert progress is not None
        progress(1000, 2000)
    first, half, last = shown
    assert first["text/plain"] == "<images>"
    assert half["text/plain"].startswith("<images> 1,000 of 2,000, ")
    assert 'value="1000" max="2000"></progress> &lt;images&gt; 1,000' in half["text/html"]
    assert set(last.values()) == {""}
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    with notebook_progress("images") as progress:
        assert progress is None
