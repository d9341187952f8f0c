"""Runs that views trained are told from the others, by name, label, columns and page."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored import blobs, store

from featcache.cli.tables import show_runs
from featcache.reporting import compare as module
from featcache.reporting.compare import compare
from featcache.reporting.comparison import Comparison, read_runs, write_comparison
from featcache.reporting.run_page import write_run_page
from featcache.reporting.schema import read_run, run_label, run_name

HEAD: dict[str, Any] = {"head": "logreg", "singles": False}


@pytest.fixture
def features(tmp_path: Path) -> dict[str, Any]:
    """The same images with no views, one and two; of the second class there are few."""
    X, y = blobs(90, classes=2)
    split = np.where(np.arange(90) % 3 == 0, "test", "train").tolist()
    few = [i for i in range(90) if y[i] == "class0" or i < 60]
    X, y, split = X[few], [y[i] for i in few], [split[i] for i in few]
    views = ("hflip", "rot90")
    cache, images = store(tmp_path / "cache", X, y, (6, 4), split=split, views=views)
    entries = cache.choose("toy")
    return {
        "+".join(some): cache.features(images, entries, some) for some in ((), views[:1], views)
    }


def fit(features: dict[str, Any], reports: Path) -> dict[str, Any]:
    runs = {name: compare(one, reports=reports, **HEAD).best for name, one in features.items()}
    balanced = compare(features["hflip+rot90"], reports=reports, balance=True, **HEAD).best
    return runs | {"balanced": balanced}


def headings_of(path: Path) -> list[str]:
    return re.findall("<h3>(.*?)</h3>", path.read_text(encoding="utf-8"))


def test_names_labels_and_columns(features, tmp_path, capsys):
    runs = fit(features, tmp_path / "reports")
    name = "net0+net1.concat.logreg"
    assert [run.name for run in runs.values()] == [
        name, f"{name}.views-hflip", f"{name}.views-hflip+rot90",
        f"{name}.views-hflip+rot90.balanced",
    ]  # fmt: skip
    assert {run.candidate for run in runs.values()} == {name}
    assert [run_label(run).removeprefix("net0 + net1 · concat · ") for run in runs.values()] == [
        "logreg", "logreg · with hflip", "logreg · with hflip, rot90",
        "logreg · with hflip, rot90, balanced",
    ]  # fmt: skip
    for run in runs.values():
        assert run.folder.name.rpartition(".")[0] == run.name
        assert read_run(run.folder).name == run.name
        assert json.loads((run.folder / "run.json").read_text())["name"] == run.name
        assert json.loads((run.folder / "model" / "model.json").read_text())["name"] == run.name
    with (tmp_path / "reports" / "comparison.csv").open() as file:
        found = {(row["view"], row["balance"]) for row in csv.DictReader(file)}
    assert found == {("", ""), ("hflip", ""), ("hflip+rot90", ""), ("hflip+rot90", "yes")}
    show_runs([runs["balanced"]])
    assert "logreg (with hflip, rot90, balanced)" in capsys.readouterr().out
    page = write_run_page(runs["hflip"].folder)
    assert "<h1>net0 + net1 · concat · logreg · with hflip</h1>" in page.read_text()


def test_the_page_says_that_the_test_images_are_the_same(features, tmp_path):
    reports = tmp_path / "reports"
    runs = fit(features, reports)
    compare(features[""], reports=reports, folds=3, **HEAD)
    compare(features[""], reports=reports, folds=3, seed=1, **HEAD)
    order = {name: f"2026-01-0{i}T00:00:00+00:00" for i, name in enumerate(runs, 1)}
    for run in read_runs(reports):
        facts = json.loads((run.folder / "run.json").read_text())
        named = [name for name, one in runs.items() if one.folder == run.folder]
        facts["created"] = order[named[0]] if named else "2025-01-01T00:00:00+00:00"
        (run.folder / "run.json").write_text(json.dumps(facts))
    write_comparison(reports)
    headings = headings_of(reports / "comparison.html")
    same = "(the same test images as above; other rows to train on)"
    parts = [text for text in headings if " test images" in text]
    assert parts == [
        "test split, 20 test images, with hflip, rot90, balanced",
        f"test split, 20 test images, with hflip, rot90 {same}",
        f"test split, 20 test images, with hflip {same}",
        f"test split, 20 test images {same}",
        "3 folds, 60 test images (other test images than above)",
        "3 folds, 60 test images (other test images than above)",
    ]
    for run in runs.values():
        (run.folder / "run.json").unlink()
    write_comparison(reports)
    headings = headings_of(reports / "comparison.html")
    assert "3 folds, 60 test images (the same images as above, in other folds)" in headings


def test_run_folders_of_earlier_versions_are_found(features, tmp_path, monkeypatch):
    reports = tmp_path / "reports"
    run = compare(features["hflip"], reports=reports, **HEAD).best
    digest = run.folder.name.rpartition(".")[2]
    earlier = run.folder.with_name(f"net0+net1.concat.logreg.{digest}")
    run.folder.rename(earlier)
    seen: list[str] = []
    evaluate_all = module.evaluate_all

    def noted(classifiers, *args, **kwargs):
        seen.extend(one.name for one in classifiers)
        return evaluate_all(classifiers, *args, **kwargs)

    monkeypatch.setattr(module, "evaluate_all", noted)
    again: Comparison = compare(features["hflip"], reports=reports, **HEAD)
    assert seen == []
    assert again.best.folder == earlier
    assert again.best.name == "net0+net1.concat.logreg.views-hflip"
    compare(features["hflip"], reports=reports, again=True, **HEAD)
    assert seen == ["net0+net1.concat.logreg"]
    assert [path.parent for path in reports.glob("toy/*/run.json")] == [earlier]


def test_the_digests_are_those_of_earlier_versions(features, tmp_path):
    runs = fit(features, tmp_path / "reports")
    assert [run.folder.name.rpartition(".")[2] for run in runs.values()] == [
        "afc3e7e6", "b6cebee4", "d17ef0d2", "9d27163d",
    ]  # fmt: skip


def test_a_name_without_views_is_the_candidates():
    assert run_name("a.concat.mlp", (), False) == "a.concat.mlp"
